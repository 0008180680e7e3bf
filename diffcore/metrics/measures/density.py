"""How densely samples lie where real images do (density, Naeem et al. 2020, arXiv 2002.09797, eq. 3)."""

import math

from diffcore.metrics.estimate import Estimate
from diffcore.metrics.metric import Metric, Subject
from diffcore.metrics.neighbours import WIDE


class Density(Metric):
    """The mean over samples of the real images within whose reach they lie, out of WIDE: 1 for new real images, more where
    samples crowd the middle of the data. A real image's reach is its distance to its fifth nearest real one.

    Samples enter independently, so the standard error is that of a mean; at least that of one real image more. None of fewer
    than 6 samples or real images.
    """

    better = "higher"

    def measure(self, subject: Subject) -> Estimate | None:
        if subject.reach is None:
            return None
        around = subject.reach.around.double()
        spread = max(around.std().item() / math.sqrt(len(around)), 1 / len(around))
        return Estimate(around.mean().item() / WIDE, spread / WIDE)
