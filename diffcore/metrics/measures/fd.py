"""The Frechet distance of two Gaussians fitted to features (Heusel et al. 2017, arXiv 1706.08500, eq. 6)."""

from torch import Tensor

from diffcore.metrics.estimate import Estimate
from diffcore.metrics.frechet import estimate, frechet
from diffcore.metrics.metric import Distance, Subject
from diffcore.metrics.reference import Halves, Reference, Seen


class FrechetDistance(Distance):
    """of: what of the images it sees, a field of Seen. Of n samples it is too large by about dimension^2 / (4 n)."""

    of = "features"
    biased = True

    def compare(self, seen: Seen, reference: Reference, repeats: Tensor) -> Estimate:
        return estimate(getattr(seen, self.of), getattr(reference.whole, self.of), repeats)

    def measure(self, subject: Subject) -> Estimate:
        return subject.frechet if self.of == "features" else super().measure(subject)

    def between(self, halves: Halves) -> float:
        return frechet(getattr(halves.first, self.of), getattr(halves.second, self.of))
