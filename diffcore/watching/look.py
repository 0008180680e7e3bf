"""What one look at a training saw."""

import dataclasses
from dataclasses import dataclass, field, fields

from diffcore.metrics.estimate import Estimate


@dataclass(frozen=True)
class Reading:
    """What samples are worth.

    fd: Frechet distance of the samples to the images in features, fd_se: its error. diversity: the mean distance of
    two samples in features over that of two images. contrast: the standard deviation of the samples' values over the
    images'. beyond: the share of values further than 0.1 beyond [-1, 1]. memorised: the share of samples that copy a training
    image, as `metrics.copies` says, 0.01 for none; None where the images are too few to tell. memorised_se: its error.
    """

    fd: float
    fd_se: float
    diversity: float
    diversity_se: float
    contrast: float
    beyond: float
    memorised: float | None
    memorised_se: float | None


COLUMNS = tuple(each.name for each in fields(Reading))
"""Of a look in a curve's table."""


@dataclass(frozen=True)
class Look(Reading):
    """The reading of the averaged network's samples after `step` updates.

    best: the update of the best look so far, this one included. behind: by how much fd is above that of the best look before
    this one, negative where it is below, 0 at the first look; behind_se: the error of that difference over the same noise.
    seconds: of training until then without those of looks, over all runs of a training that was resumed; equal looks may
    differ in it.
    """

    step: int
    best: int
    behind: float = 0.0
    behind_se: float = 0.0
    seconds: float = field(default=0.0, compare=False)

    @property
    def is_best(self) -> bool:
        return self.best == self.step

    @property
    def is_worse(self) -> bool:
        """Than the best one before it, by more than the error of their difference."""
        return self.behind > self.behind_se

    @property
    def distance(self) -> Estimate:
        return Estimate(self.fd, self.fd_se)

    def columns(self) -> dict[str, float]:
        """Its numbers in a curve's table."""
        return {key: value for key, value in dataclasses.asdict(self).items() if key in COLUMNS}
