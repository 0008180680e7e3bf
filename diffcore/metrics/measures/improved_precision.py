"""How many samples lie where real images do (improved precision, Kynkaanniemi et al. 2019, arXiv 1904.06991, eq. 1)."""

from diffcore.metrics import proportion
from diffcore.metrics.estimate import Estimate
from diffcore.metrics.metric import Metric, Subject


class ImprovedPrecision(Metric):
    """The share of samples within reach of a real image: nearer to it than its third nearest real one.

    Samples enter independently, so the standard error is that of a share. None of fewer than 6 samples or real images.
    """

    better = "higher"

    def measure(self, subject: Subject) -> Estimate | None:
        return subject.reach and proportion.of_samples(subject.reach.near > 0)
