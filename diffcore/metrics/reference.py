"""Real images and samples as the metrics see them: features, and pixels averaged down; statistics are in float64."""

import functools
import hashlib
import operator
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional as F

from diffcore.core import disk
from diffcore.core.errors import UserError
from diffcore.core.rng import generator
from diffcore.core.shapes import Sample
from diffcore.data.feed import to_float, to_uint8
from diffcore.metrics import copies, sliced
from diffcore.metrics.features import Features, extract
from diffcore.metrics.frechet import Moments
from diffcore.metrics.mmd import sums_of_groups
from diffcore.metrics.neighbours import nearest

Progress = Callable[[int, int], None]


BLOCK = 2048
"""Images looked at together."""

SIDE = 8
"""Images are averaged down to at most SIDE x SIDE before their pixels are compared."""


KERNEL_ROWS = 50_000
"""The most real images that kid compares with."""


GROUPS = 128
"""Into how many parts, drawn at random, the real images are put; a half of them is half of the parts."""


@runtime_checkable
class Images(Protocol):
    """Real images, in memory or not. shape: of one, (c, h, w)."""

    shape: tuple[int, int, int]

    def __len__(self) -> int: ...

    def blocks(self, size: int) -> Iterator[Tensor]:
        """All in order, `size` at a time: uint8 [size, c, h, w]."""
        ...


@dataclass(frozen=True)
class Seen:
    """A set of images as the metrics see it. features: [n, dimension], pixels: [n, c * side * side], both float64."""

    features: Tensor
    pixels: Tensor

    @classmethod
    def of(cls, x: Sample, features: Features) -> "Seen":
        """Of images x [n, c, h, w] in [-1, 1]."""
        return cls(extract(features, x), pooled(x))

    def __getitem__(self, rows: Tensor) -> "Seen":
        return Seen(self.features[rows], self.pixels[rows])

    def __len__(self) -> int:
        return len(self.features)


@dataclass(frozen=True)
class Part:
    """Moments of the features and of the pixels of some real images; `a + b` are those of both sets together."""

    features: Moments
    pixels: Moments

    @classmethod
    def of(cls, seen: Seen) -> "Part":
        return cls(Moments.of(seen.features), Moments.of(seen.pixels))

    def __add__(self, other: "Part") -> "Part":
        return Part(self.features + other.features, self.pixels + other.pixels)

    @property
    def count(self) -> int:
        return self.features.count


@dataclass(frozen=True)
class Reference:
    """The real images, looked at once, a block at a time: nothing here grows with their number but `rows`, up to a bound.

    parts: of the images in GROUPS groups drawn at random (fewer of fewer images). rows: features of at most KERNEL_ROWS of
    them, [k, dimension]; sizes: how many of each group. kernels: [groups, groups], the sum of the kernel over the pairs of
    rows of two groups, of one group over its pairs of distinct ones. network: the digest of the feature network. digest: of
    the images, the held-out ones and the network. shape: (c, h, w). held_out: images that no training saw, if there are any.
    """

    parts: tuple[Part, ...]
    rows: Tensor
    sizes: Tensor
    kernels: Tensor
    shape: tuple[int, int, int]
    network: str
    digest: str
    held_out: Seen | None = None

    @classmethod
    def of(
        cls,
        images: Images,
        features: Features,
        on_progress: Progress = lambda done, total: None,
        held_out: Seen | None = None,
    ) -> "Reference":
        """From all real images that count; at least 4, so that `floor` can halve them."""
        count = len(images)
        if count < 4:
            raise UserError(f"quality needs at least 4 real images to compare with, the data have {count}")
        groups = min(GROUPS, count // 2 * 2)
        place = torch.randperm(count, generator=generator("real images", count))
        content = hashlib.sha256()
        parts: list[Part | None] = [None] * groups
        kept: list[Tensor] = []
        done = 0
        for block in images.blocks(BLOCK):
            seen = Seen.of(to_float(block), features)
            here = place[done : done + len(block)]
            added = [Part.of(seen[here % groups == group]) for group in range(groups)]
            parts = [new if part is None else part + new for part, new in zip(parts, added)]
            kept.append(seen.features[here < KERNEL_ROWS])
            content.update(block.contiguous().numpy().tobytes())
            done += len(block)
            on_progress(done, count)
        whole = {"images": content.hexdigest(), "shape": [count, *images.shape], "features": features.digest}
        if held_out is not None:
            whole["held_out"] = hashlib.sha256(held_out.pixels.numpy().tobytes()).hexdigest()
        rows = torch.cat(kept)
        group = place[place < KERNEL_ROWS] % groups
        sizes = group.bincount(minlength=groups)
        kernels = sums_of_groups(rows, group, groups)
        about = tuple(images.shape), features.digest, disk.digest(whole)
        return cls(tuple(parts), rows, sizes, kernels, *about, held_out)

    @functools.cached_property
    def whole(self) -> Part:
        return _sum(self.parts)

    @property
    def count(self) -> int:
        return self.whole.count

    @functools.cached_property
    def pairs(self) -> float:
        """The mean kernel among the rows, kid's only term that no sample enters."""
        return self.kernels.sum().item() / (len(self.rows) * (len(self.rows) - 1))

    @functools.cached_property
    def nearest_rows(self) -> Tensor:
        """The squared distances of each row from its nearest other rows, rising: [k, NEAREST]."""
        return nearest(self.rows)

    @functools.cached_property
    def slices(self) -> Tensor:
        """The rows along each direction of `sliced`, rising: [DIRECTIONS, k]."""
        return sliced.projected(self.rows).sort(1).values

    @functools.cached_property
    def copy_limit(self) -> float | None:
        """The closeness below which a sample is a copy: by held-out images, or where they are too few by the rows."""
        held_out = None if self.held_out is None else copies.limit(nearest(self.held_out.features, self.rows))
        return copies.limit(self.nearest_rows) if held_out is None else held_out

    def halved(self, rng: torch.Generator) -> "Halves":
        """Two halves of the groups, drawn by `rng`."""
        groups = len(self.parts)
        order = torch.randperm(groups, generator=rng).tolist()
        first, second = (_sum(self.parts[k] for k in half) for half in (order[: groups // 2], order[groups // 2 :]))
        chosen = torch.zeros(groups, dtype=torch.float64).index_fill_(0, torch.tensor(order[: groups // 2]), 1.0)
        return Halves(self, first, second, chosen)


@dataclass(frozen=True)
class Halves:
    """The real images in two halves. chosen: [groups] float64, 1 for the groups of `first`, 0 for those of `second`."""

    reference: Reference
    first: Part
    second: Part
    chosen: Tensor


def _sum(parts: Iterable[Part]) -> Part:
    return functools.reduce(operator.add, parts)


def look(images: Images, features: Features, most: int = KERNEL_ROWS) -> Seen:
    """Real images as the metrics see them, the first `most` of an order drawn once; at least 2."""
    if len(images) < 2:
        raise UserError(
            f"held-out images are compared with the others: there must be at least 2, there are {len(images)}"
        )
    place = torch.randperm(len(images), generator=generator("real images", len(images)))
    parts, done = [], 0
    for block in images.blocks(BLOCK):
        chosen = place[done : done + len(block)] < most
        done += len(block)
        if chosen.any():
            parts.append(Seen.of(to_float(block[chosen]), features))
    return Seen(torch.cat([part.features for part in parts]), torch.cat([part.pixels for part in parts]))


def to_8bit(x: Sample) -> Sample:
    """The nearest of the 256 values an image file can hold, still in [-1, 1]; what lies outside is clamped."""
    return to_float(to_uint8(x))


def pooled(x: Tensor) -> Tensor:
    """Pixels [n, c, h, w] averaged down to at most SIDE x SIDE for each channel, as rows [n, c * side * side], float64.

    A covariance of full-sized images would need far more samples than are drawn. Images of up to 8x8 are taken as they
    are; of larger ones fd_pixels sees layout and colour, not sharpness.
    """
    side = [min(length, SIDE) for length in x.shape[2:]]
    return F.adaptive_avg_pool2d(x.double(), side).flatten(1).cpu()
