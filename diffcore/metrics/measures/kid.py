"""The kernel distance: the unbiased squared MMD of features with a cubic kernel (Binkowski et al. 2018, arXiv 1801.01401)."""

from torch import Tensor

from diffcore.metrics import mmd
from diffcore.metrics.estimate import Estimate
from diffcore.metrics.metric import Distance
from diffcore.metrics.reference import Halves, Reference, Seen


class KernelDistance(Distance):
    """Of more real images than KERNEL_ROWS as many are drawn for it, the same for all points. Its standard error is in closed
    form: `mmd.standard_error`."""

    def compare(self, seen: Seen, reference: Reference, repeats: Tensor) -> Estimate:
        return mmd.estimate(seen.features, reference.rows, reference.pairs)

    def between(self, halves: Halves) -> float:
        reference = halves.reference
        return mmd.kid_of_groups(reference.kernels, reference.sizes.double(), halves.chosen)
