"""The sliced Wasserstein distance of features (Bonneel et al. 2015, doi 10.1007/s10851-014-0506-3)."""

import math

from diffcore.metrics import sliced
from diffcore.metrics.estimate import Estimate
from diffcore.metrics.metric import Metric, Subject


class SlicedWasserstein(Metric):
    """The root of the mean over fixed directions of the squared W2 distance along each: no Gaussian is fitted.

    Of more real images than KERNEL_ROWS as many are drawn for it. The standard error is to first order in the samples'
    weights; of samples that are new real images it is about 1.4 times too large, for there the slope is chance alone.
    """

    def measure(self, subject: Subject) -> Estimate:
        along, real = sliced.projected(subject.seen.features), subject.reference.slices
        value = math.sqrt(max(sliced.squared(along, real), 0.0))
        spread = sliced.influence(along, real).std().item() / math.sqrt(along.shape[1])
        return Estimate(value, spread / (2 * value) if value else 0.0)  # d sqrt(m) = dm / (2 sqrt(m))
