"""How often a sample is what its caption said, by measuring it again: for captions that are made of what can be measured."""

from collections.abc import Sequence

import torch

from diffcore.core import precision
from diffcore.core.shapes import Sample
from diffcore.data import attributes
from diffcore.data.feed import to_float, to_uint8
from diffcore.metrics.estimate import Estimate
from diffcore.metrics.features import Features
from diffcore.metrics.metric import Metric, Subject


class CaptionAccuracy(Metric):
    """The share of samples all of whose attributes are those of the caption (see `diffcore.data.attributes`); None for
    captions of other words, and where the feature network did not learn the ten digits."""

    better = "higher"
    needs = ("captions",)

    def measure(self, subject: Subject) -> Estimate | None:
        return caption_accuracy(subject.samples, subject.captions, subject.features)


@precision.exact()
def caption_accuracy(samples: Sample, captions: Sequence[str], features: Features) -> Estimate | None:
    """The share of samples [n, 1, h, w] whose measured caption is the one asked for, and the standard error of this mean. The
    digit is what the feature network takes it for."""
    readable = features.card.task == "classes" and features.card.outputs == len(attributes.DIGITS)
    if not readable or samples.shape[1] != 1 or not all(map(attributes.attributes, captions)):
        return None
    pixels = to_uint8(samples.cpu())
    parts = to_float(pixels).split(250)
    digits = torch.cat([features.logits(part.to(features.device)).argmax(1).cpu() for part in parts])
    measured = attributes.captions(pixels.permute(0, 2, 3, 1).numpy(), digits.tolist())
    right = torch.tensor([one == other for one, other in zip(measured, captions)], dtype=torch.float64)
    return Estimate(float(right.mean()), float(right.std() / len(right) ** 0.5))
