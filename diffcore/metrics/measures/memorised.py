"""How many samples copy a training image (the adaptive threshold of Carlini et al. 2023, arXiv 2301.13188, section 4.2)."""

from diffcore.metrics import copies, proportion
from diffcore.metrics.estimate import Estimate
from diffcore.metrics.metric import Metric, Subject


class Memorised(Metric):
    """The share of samples that are as near to one training image, beside the next ones, as NOMINAL of new real images are.

    So a sampler of new images scores NOMINAL, one that copies 1. New real images are the held-out ones where there are
    enough, else each training image among the others. What the features see is compared: a mirrored copy may be none.
    Samples enter independently, so the standard error is that of a share, for these real images. None of too few of them.
    """

    def measure(self, subject: Subject) -> Estimate | None:
        limit = subject.reference.copy_limit
        return None if limit is None else proportion.of_samples(copies.closeness(subject.nearest_real) < limit)
