"""How many real images have a sample near them (coverage, Naeem et al. 2020, arXiv 2002.09797, eq. 4)."""

from diffcore.metrics import proportion
from diffcore.metrics.estimate import Estimate
from diffcore.metrics.metric import Metric, Subject


class Coverage(Metric):
    """The share of real images with a sample within reach: nearer than their fifth nearest real image.

    The standard error is that of `proportion.of_real`. None of fewer than 6 samples or real images.
    """

    better = "higher"

    def measure(self, subject: Subject) -> Estimate | None:
        return subject.reach and proportion.of_real(subject.reach.covering)
