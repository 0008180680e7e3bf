"""How many real images lie where samples do (improved recall, Kynkaanniemi et al. 2019, arXiv 1904.06991, eq. 2)."""

from diffcore.metrics import proportion
from diffcore.metrics.estimate import Estimate
from diffcore.metrics.metric import Metric, Subject


class Recall(Metric):
    """The share of real images within reach of a sample: nearer to it than its third nearest sample.

    The standard error is that of `proportion.of_real` where reaches move. None of fewer than 6 samples or real images.
    """

    better = "higher"

    def measure(self, subject: Subject) -> Estimate | None:
        return subject.reach and proportion.of_real(subject.reach.reaching, subject.reach.regained)
