"""How often a sample is what its caption said where no image that was trained on has this caption."""

from diffcore.metrics.estimate import Estimate
from diffcore.metrics.measures.caption_accuracy import caption_accuracy
from diffcore.metrics.metric import Metric, Subject


class CaptionAccuracyUnseen(Metric):
    """As `caption_accuracy`, of samples drawn for the captions of `data.unseen`."""

    better = "higher"
    needs = ("unseen",)

    def measure(self, subject: Subject) -> Estimate | None:
        return caption_accuracy(subject.unseen.samples, subject.unseen.captions, subject.features)
