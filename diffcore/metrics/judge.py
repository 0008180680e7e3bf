"""A feature network that was trained elsewhere, and real images as it sees them."""

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from diffcore.core import precision, processes
from diffcore.core.errors import UserError
from diffcore.core.rng import generator
from diffcore.core.shapes import Sample
from diffcore.data.feed import to_float, to_uint8
from diffcore.metrics import frechet_wide, mmd, order
from diffcore.metrics.estimate import Estimate
from diffcore.metrics.frechet import Moments
from diffcore.metrics.reference import BLOCK, Images
from diffcore.metrics.statistics import Statistics

BATCH = 32
"""Images that a judge looks at together."""

ROWS = 10_000
"""The most real images that a judge's kid compares with."""


@dataclass(frozen=True)
class Judge:
    """network: uint8 [b, c, h, w] -> features [b, dimension]. sha256: of the file of its weights. preprocessing: in words."""

    name: str
    network: nn.Module
    sha256: str
    preprocessing: str

    def __str__(self) -> str:
        return f"{self.name} {self.sha256[:12]} ({self.preprocessing})"

    def to(self, device: torch.device) -> "Judge":
        return Judge(self.name, self.network.to(device), self.sha256, self.preprocessing)

    @precision.exact()
    def features(self, x: Sample) -> Tensor:
        """Of images [n, c, h, w] in [-1, 1], as the 8-bit images they are kept as: [n, dimension], float64, on the CPU."""
        device = next(itertools.chain(self.network.parameters(), self.network.buffers())).device

        def batch(images: Tensor) -> Tensor:
            return self.network(images.to(device)).double().cpu()

        with torch.no_grad():
            return torch.cat(list(processes.dealt(to_uint8(x).split(BATCH), batch)))


@dataclass(frozen=True)
class Court:
    """A judge with what samples are held against. moments: mean and covariance of the features. rows: features of at most
    ROWS of the real images, drawn once; None where the moments are those of a file, which `against` names."""

    judge: Judge
    moments: Moments | Statistics
    rows: Tensor | None
    against: str = ""

    @classmethod
    def of(
        cls, judge: Judge, images: Images, on_progress: Callable[[int, int], None] = lambda done, total: None
    ) -> "Court":
        """Of all real images, a block at a time."""
        count, done = len(images), 0
        place = torch.randperm(count, generator=generator("real images", count))
        parts, kept = [], []
        for block in images.blocks(BLOCK):
            seen = judge.features(to_float(block))
            parts.append(frechet_wide.moments(seen))
            kept.append(seen[place[done : done + len(block)] < ROWS])
            done += len(block)
            on_progress(done, count)
        return cls(judge, functools.reduce(Moments.__add__, parts), torch.cat(kept))

    @classmethod
    def against_file(cls, judge: Judge, statistics: Statistics, shape: tuple[int, int, int]) -> "Court":
        """A UserError for statistics of another judge's features. shape: of one image, (c, h, w)."""
        name = statistics.about.rpartition(" ")[0]
        if statistics.judge not in (None, str(judge)):
            raise UserError(
                f"evaluate.judges.{judge.name}: {name} is of the features of {statistics.judge}; not of {judge}"
            )
        dimension = judge.features(torch.zeros(1, *shape)).shape[1]
        if len(statistics.mean) != dimension:
            raise UserError(
                f"evaluate.judges.{judge.name}: {name} is of {len(statistics.mean)} features, and {judge.name} has "
                f"{dimension}; name statistics of its own features"
            )
        return cls(judge, statistics, None, statistics.about)

    def __str__(self) -> str:
        return f"{self.judge} against {self.against}" if self.against else str(self.judge)

    @functools.cached_property
    def pairs(self) -> float:
        """The mean kernel among the rows."""
        return mmd.mean_of_pairs(self.rows)

    @functools.cached_property
    def factor(self) -> Tensor:
        """Of the covariance."""
        return frechet_wide.factor(self.moments.covariance)

    def measure(self, samples: Sample) -> dict[str, Estimate]:
        """`fd_NAME` of samples in [-1, 1] and, where there are rows, `kid_NAME`. The error of fd is to first order."""
        seen = self.judge.features(samples)
        estimates = {"fd": frechet_wide.estimate(seen, self.moments, self.factor)}
        if self.rows is not None:
            estimates["kid"] = mmd.estimate(seen, self.rows, self.pairs)
        return {order.column(measure, self.judge.name): each for measure, each in estimates.items()}
