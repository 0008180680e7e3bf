"""A feature network that was trained elsewhere, and real images as it sees them."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from diffcore.core import precision, processes
from diffcore.core.rng import generator
from diffcore.core.shapes import Sample
from diffcore.data.feed import to_float, to_uint8
from diffcore.metrics import frechet_wide, mmd, order
from diffcore.metrics.estimate import Estimate
from diffcore.metrics.frechet import Moments, root
from diffcore.metrics.reference import BLOCK, Images

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
        device = next(self.network.parameters()).device

        def batch(images: Tensor) -> Tensor:
            return self.network(images.to(device)).double().cpu()

        with torch.no_grad():
            return torch.cat(list(processes.dealt(to_uint8(x).split(BATCH), batch)))


@dataclass(frozen=True)
class Court:
    """A judge with the real images as it sees them. rows: features of at most ROWS of them, drawn once."""

    judge: Judge
    moments: Moments
    rows: Tensor

    @classmethod
    def of(
        cls, judge: Judge, images: Images, on_progress: Callable[[int, int], None] = lambda done, total: None
    ) -> "Court":
        """From all real images, a block at a time."""
        count, done = len(images), 0
        place = torch.randperm(count, generator=generator("real images", count))
        parts, kept = [], []
        for block in images.blocks(BLOCK):
            seen = judge.features(to_float(block))
            parts.append(Moments.of(seen))
            kept.append(seen[place[done : done + len(block)] < ROWS])
            done += len(block)
            on_progress(done, count)
        return cls(judge, functools.reduce(Moments.__add__, parts), torch.cat(kept))

    @functools.cached_property
    def pairs(self) -> float:
        """The mean kernel among the rows."""
        return mmd.mean_of_pairs(self.rows)

    @functools.cached_property
    def root(self) -> Tensor:
        """The square root of the real images' covariance."""
        return root(self.moments.covariance)

    def measure(self, samples: Sample, repeats: Tensor) -> dict[str, Estimate]:
        """`fd_NAME` and `kid_NAME` of samples in [-1, 1]; repeats: the bootstrap's, for kid. fd's error is to first order."""
        seen = self.judge.features(samples)
        estimates = (
            frechet_wide.estimate(seen, self.moments, self.root),
            mmd.estimate(seen, self.rows, self.pairs, repeats),
        )
        return {f"{measure}_{self.judge.name}": each for measure, each in zip(order.JUDGED, estimates)}
