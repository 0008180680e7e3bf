"""The Frechet distance without the bias of few samples (Chong & Forsyth 2020, arXiv 1911.07023)."""

from diffcore.metrics import infinity
from diffcore.metrics.estimate import Estimate
from diffcore.metrics.metric import Metric, Subject


class FrechetInfinity(Metric):
    """`fd` extrapolated to infinitely many samples; the bias of the real images' number stays.

    The standard error is made as that of `fd`: the extrapolation is a sum of Frechet distances of the same samples whose
    weights add up to 1, so to first order the samples move it as much, and pairs of them more. None where a part has no more
    samples than features, of which the bias is not proportional to 1/N.
    """

    def measure(self, subject: Subject) -> Estimate | None:
        n, d = subject.seen.features.shape
        if n // max(infinity.PARTS) <= d:
            return None
        value = infinity.extrapolated(subject.seen.features, subject.reference.whole.features, subject.seed)
        return Estimate(value, subject.sway.variance.with_pairs(infinity.PAIRS))
