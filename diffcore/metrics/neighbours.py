"""Nearest neighbours among rows of features, and which rows lie within whose reach, in float64.

A tile of ROWS x ROWS distances is held at a time, so that memory grows with n + m and never with n m.
"""

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from diffcore.core.shapes import PerSample

ROWS = 2048
"""Rows and columns of a matrix of distances held at once."""

NARROW = 3
"""Neighbours within reach of a row for precision and recall (arXiv 1904.06991, section 3)."""

WIDE = 5
"""Neighbours within reach of a row for density and coverage (arXiv 2002.09797, section 4.2)."""

NEAREST = 10
"""Neighbours that are kept of each row."""

ROUNDING = 1e-12
"""Squared distances below this share of the squared lengths are 0: rounding would order equal rows by chance."""


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """Of every pair of rows: [n, d], [m, d] -> [n, m]."""
    lengths = x.square().sum(1)[:, None] + y.square().sum(1)
    squares = lengths - 2 * (x @ y.T)
    return torch.where(squares > ROUNDING * lengths, squares, 0)


@dataclass(frozen=True)
class Neighbours:
    """Of each of n rows those nearest to it, the nearest first. squares: squared distances, rows: which they are, int64;
    both [n, k]."""

    squares: Tensor
    rows: Tensor

    @classmethod
    def of(cls, x: Tensor, y: Tensor | None = None, most: int = NEAREST) -> "Neighbours":
        """Of x [n, d] among y [m, d], k = min(most, m); without y among the other rows of x, k = min(most, n - 1)."""
        other = x if y is None else y
        closest = [cls(torch.empty(len(x[i]), 0).double(), torch.empty(len(x[i]), 0).long()) for i in _spans(len(x))]
        for (place, i), j in itertools.product(enumerate(_spans(len(x))), _spans(len(other))):
            tile = squared_distances(x[i], other[j])
            if y is None and i == j:
                tile.fill_diagonal_(torch.inf)
            first = tile.topk(min(most, tile.shape[1]), largest=False, sorted=True)
            closest[place] = closest[place]._and(first.values, first.indices + j.start, most)
        kept = len(other) - (y is None)
        return cls(*(torch.cat([getattr(each, name) for each in closest])[:, :kept] for name in ("squares", "rows")))

    def _and(self, squares: Tensor, rows: Tensor, most: int) -> "Neighbours":
        squares, rows = torch.cat([self.squares, squares], 1), torch.cat([self.rows, rows], 1)
        first = squares.topk(min(most, squares.shape[1]), largest=False, sorted=True)
        return Neighbours(first.values, rows.gather(1, first.indices))


def nearest(x: Tensor, y: Tensor | None = None, most: int = NEAREST) -> Tensor:
    """The squared distances of each row of x from its nearest ones, rising, as `Neighbours.of` says."""
    return Neighbours.of(x, y, most).squares


@dataclass(frozen=True)
class Reach:
    """Who lies within whose reach: a row's reach is its distance to its k-th nearest row of its own set.

    near, around: for each of n samples the number of real images within whose reach of NARROW and of WIDE neighbours it
    lies, int64 [n]. covering: for each of m real images the samples within its reach of WIDE neighbours; reaching: the
    samples within whose reach of NARROW neighbours it lies. regained: how many of the real images that no other sample
    reaches are reached without this one, since its neighbours then reach to their next one, int64 [n].
    """

    near: Tensor
    around: Tensor
    covering: "Holders"
    reaching: "Holders"
    regained: Tensor

    @classmethod
    def of(cls, samples: Tensor, own: Neighbours, real: Tensor, reals: Tensor) -> "Reach":
        """Of samples [n, d] and real rows [m, d]; own: the samples among themselves, reals: what `nearest` says of the real
        rows, more than WIDE of either."""
        near, around, regained = (torch.zeros(len(samples), dtype=torch.int64) for _ in range(3))
        covering, reaching = (Holders.none(len(real), len(samples)) for _ in range(2))
        for j in _spans(len(real)):
            beyond = []
            for i in _spans(len(samples)):
                tile = squared_distances(samples[i], real[j])
                near[i] += (tile < reals[j, NARROW - 1]).sum(1)
                covered = tile < reals[j, WIDE - 1]
                around[i] += covered.sum(1)
                covering.add(covered, i, j)
                reached = tile < own.squares[i, NARROW - 1, None]
                reaching.add(reached, i, j)
                next_to_it = (tile < own.squares[i, NARROW, None]) & ~reached & (reaching.counts[j] <= 1)
                beyond.append(next_to_it.nonzero() + torch.tensor([i.start, j.start]))
            regained += _regained(torch.cat(beyond), own, reaching)
        return cls(near, around, covering, reaching, regained)


def _regained(beyond: Tensor, own: Neighbours, reaching: "Holders") -> Tensor:
    """beyond: pairs of a sample and a real image between its NARROW-th and its next neighbour, int64 [k, 2]."""
    leaving = own.rows[beyond[:, 0], :NARROW]
    image, gone = torch.stack([beyond[:, 1:].expand_as(leaving), leaving]).view(2, -1).unique(dim=1)
    counts = reaching.counts[image]
    kept = (counts == 0) | (counts == 1) & (reaching.sums[image] == gone)
    return gone[kept].bincount(minlength=reaching.samples)


@dataclass(frozen=True)
class Holders:
    """Which of m real images are held by any of n samples. counts: by how many, int64 [m]; sums, squares: of the numbers of
    those samples, which of one or two samples say who they are."""

    counts: Tensor
    sums: Tensor
    squares: Tensor
    samples: int

    @classmethod
    def none(cls, count: int, samples: int) -> "Holders":
        """Of `count` real images, before any sample was looked at."""
        return cls(*(torch.zeros(count, dtype=torch.int64) for _ in range(3)), samples)

    def add(self, held: Tensor, rows: slice, columns: slice) -> None:
        """held: bool, of the samples in `rows` and the real images in `columns`."""
        numbers = torch.arange(rows.start, rows.stop).double()
        sums, squares = (torch.stack([numbers, numbers**2]) @ held.double()).long()
        self.counts[columns] += held.sum(0)
        self.sums[columns] += sums
        self.squares[columns] += squares

    @property
    def share(self) -> float:
        """Of the real images, those that any sample holds."""
        return (self.counts > 0).double().mean().item()

    @property
    def alone(self) -> PerSample:
        """How many real images each sample alone holds: what is lost without it, [n]."""
        return self.sums[self.counts == 1].bincount(minlength=self.samples).double()

    @property
    def together(self) -> Tensor:
        """How many real images each pair of samples holds that no other one does, of the pairs that hold any: float64 [k]."""
        both = self.counts == 2
        return torch.stack([self.sums[both], self.squares[both]], 1).unique(dim=0, return_counts=True)[1].double()


def _spans(count: int) -> list[slice]:
    return [slice(first, min(first + ROWS, count)) for first in range(0, count, ROWS)]
