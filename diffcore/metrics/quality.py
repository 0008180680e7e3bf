"""How far samples are from the data, each number with its standard error.

Three distances between a set of generated images and the real ones, and one between a student and its teacher:

- `fd`, the Frechet distance of two Gaussians fitted to features (Heusel et al. 2017, arXiv 1706.08500, eq. 6);
- `kid`, the unbiased squared MMD of the same features with a cubic kernel (Binkowski et al. 2018, arXiv 1801.01401);
- `fd_pixels`, the Frechet distance of the pixels themselves, which needs no network and sees what a classifier forgives;
- the RMSE between student and teacher from the same noise.

A Frechet distance of n samples is too large by about dimension^2 / (4 n) at unit variance, so it is compared only at equal
n; kid is not biased. Samples are measured as the 8-bit images they will be kept as, statistics are in float64, and every
standard error covers the drawing of the n samples against a fixed reference: not the training, whose seed moves the
numbers too, nor the choice of the real images. It is a bootstrap's: right where samples differ from the data, and up to
about 1.7 times too large where they do not (measured on Gaussians), since squared distances lose their slope there.

kid and its standard error are those of all pairs, worked out a tile of ROWS x ROWS pairs at a time, so that memory grows
with n + m and never with n m: at 50 000 samples some 150 MB. The time is that of all pairs; of more than KERNEL_ROWS real
images as many are drawn for it, the same for all points.
"""

import functools
import hashlib
import itertools
import math
import operator
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional as F

from diffcore.core import disk
from diffcore.core.errors import Mistake
from diffcore.core.rng import generator
from diffcore.core.shapes import PerSample, Sample
from diffcore.data.feed import to_float, to_uint8
from diffcore.metrics.features import Features, extract

Progress = Callable[[int, int], None]

RESAMPLES = 200
"""Bootstrap resamples: the relative error of a standard error is then about 1 / sqrt(2 * 200) = 5 %."""

SIDE = 8
"""Images are averaged down to at most SIDE x SIDE before their pixels are compared."""

ROWS = 2048
"""Rows and columns of a kernel matrix held at once, and images looked at together."""

KERNEL_ROWS = 50_000
"""The most real images that kid compares with."""

GROUPS = 128
"""Into how many parts, drawn at random, the real images are put; a half of them is half of the parts."""

SPLITS = 64
"""Halvings of the real images that the floor is the mean of."""


@dataclass(frozen=True)
class Moments:
    """Count, mean [d] and scatter [d, d] (the sum of outer products about the mean) of some rows, in float64.

    `a + b` are the moments of both sets together, in any order and grouping. Kept about the mean, since raw second
    moments lose the digits of a variance that is small beside the mean.
    """

    count: int
    mean: Tensor
    scatter: Tensor

    @classmethod
    def empty(cls, dimension: int) -> "Moments":
        """Of no rows: a + empty is a."""
        return cls(0, torch.zeros(dimension).double(), torch.zeros(dimension, dimension).double())

    @classmethod
    def of(cls, rows: Tensor, repeats: PerSample | None = None) -> "Moments":
        """Of rows [n, d], row i counted repeats[i] times (once each if None)."""
        rows = rows.double()
        repeats = torch.ones(len(rows)).double() if repeats is None else repeats.double()
        count = round(repeats.sum().item())
        mean = repeats @ rows / max(count, 1)
        away = rows - mean
        return cls(count, mean, (repeats[:, None] * away).T @ away)

    def __add__(self, other: "Moments") -> "Moments":
        count = self.count + other.count
        if count == 0:
            return self
        gap = other.mean - self.mean
        mean = self.mean + gap * (other.count / count)
        between = torch.outer(gap, gap) * (self.count * other.count / count)
        return Moments(count, mean, self.scatter + other.scatter + between)

    @property
    def covariance(self) -> Tensor:
        """[d, d], with the divisor count - 1."""
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 rows, got {self.count}")
        return self.scatter / (self.count - 1)


def frechet(a: Moments, b: Moments) -> float:
    """|mean_a - mean_b|^2 + tr(A + B - 2 (A^1/2 B A^1/2)^1/2): the squared W2 distance of two Gaussians.

    The last trace is the sum of the singular values of A^1/2 B^1/2. Taken as the roots of the eigenvalues of A B
    instead, or with eigenvalues of A and B that rounding alone keeps from 0, a zero that comes out as 1e-17 would count
    as 3e-9; so near-singular covariances keep their digits.
    """
    return _frechet(a, b, root(b.covariance))


def root(covariance: Tensor) -> Tensor:
    """The symmetric square root of a positive semidefinite matrix [d, d]; eigenvalues within rounding of 0 are 0."""
    values, vectors = torch.linalg.eigh(covariance)
    return vectors * _rounded(values).sqrt() @ vectors.T


def _rounded(values: Tensor) -> Tensor:
    rounding = torch.finfo(values.dtype).eps * len(values) * values.max()
    return torch.where(values > rounding, values, 0)


def _frechet(a: Moments, b: Moments, root_b: Tensor) -> float:
    return _apart(a, b, torch.linalg.svdvals(root(a.covariance) @ root_b).sum())


def _frechet_again(a: Moments, b: Moments, root_b: Tensor) -> float:
    """`_frechet` for a spread over many: by the roots of the eigenvalues of B^1/2 A B^1/2, at two fifths of the time."""
    values = torch.linalg.eigvalsh(root_b @ a.covariance @ root_b)
    return _apart(a, b, _rounded(values).sqrt().sum())


def _apart(a: Moments, b: Moments, overlap: Tensor) -> float:
    apart = (a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace()
    return max((apart - 2 * overlap).item(), 0.0)  # 0 up to rounding for equal moments


def kernel(x: Tensor, y: Tensor) -> Tensor:
    """(x.y / d + 1)^3 for every pair of rows (arXiv 1801.01401, section 4). [n, d], [m, d] -> [n, m]."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def kid(x: Tensor, y: Tensor) -> float:
    """The unbiased estimate of the squared MMD under `kernel`; below 0 as often as above if x and y are alike.

    x: [n, d], y: [m, d], n and m at least 2. No row is paired with itself.
    """
    return _kid(x, y, _mean_of_pairs(y), _no_resample(x))[0]


def _kid(x: Tensor, y: Tensor, pairs_y: float, repeats: Tensor) -> tuple[float, Tensor]:
    """kid(x, y), and but for a constant that of each resample of x by `repeats` [r, n], [r]."""
    (pairs, again), affinity = _within(x, repeats), _affinity(x, y)
    found = pairs / (len(x) * (len(x) - 1)) + pairs_y - 2 * affinity.mean().item()
    sizes = repeats.sum(1)
    alike = again / (sizes**2 - repeats.square().sum(1))
    return found, alike - 2 * (repeats @ affinity) / sizes


def _mean_of_pairs(x: Tensor) -> float:
    """The mean kernel over the pairs of distinct rows."""
    return _within(x, _no_resample(x))[0] / (len(x) * (len(x) - 1))


def _within(x: Tensor, repeats: Tensor) -> tuple[float, Tensor]:
    """The sum of the kernel over the ordered pairs of distinct rows, and over those of each resample, [r]."""
    total, again = 0.0, torch.zeros(len(repeats)).double()
    for one, other, tile in _tiles(x):
        twice = 1 if one == other else 2
        total += twice * tile.sum().item()
        again += twice * ((repeats[:, one] @ tile) * repeats[:, other]).sum(1)
    return total, again


def _tiles(x: Tensor) -> Iterator[tuple[slice, slice, Tensor]]:
    """The kernel matrix of x with itself on and above the diagonal, which is 0: (rows, columns, values) of each tile."""
    for one, other in itertools.combinations_with_replacement(_spans(len(x)), 2):
        tile = kernel(x[one], x[other])
        yield one, other, tile.fill_diagonal_(0) if one == other else tile


def _affinity(x: Tensor, y: Tensor) -> PerSample:
    """Each row's mean kernel with all of y, [n]."""
    found = torch.zeros(len(x)).double()
    for one, other in itertools.product(_spans(len(x)), _spans(len(y))):
        found[one] += kernel(x[one], y[other]).sum(1)
    return found / len(y)


def _no_resample(x: Tensor) -> Tensor:
    return torch.zeros(0, len(x)).double()


def _spans(count: int) -> list[slice]:
    return [slice(first, min(first + ROWS, count)) for first in range(0, count, ROWS)]


def resamples(count: int, seed: int) -> Tensor:
    """How often each of `count` samples occurs in each bootstrap resample: [RESAMPLES, count], float64."""
    dice = generator(seed, "bootstrap", count)
    drawn = torch.randint(count, (RESAMPLES, count), generator=dice)
    return torch.zeros(RESAMPLES, count).double().scatter_add_(1, drawn, torch.ones(drawn.shape).double())


def frechet_spread(x: Tensor, b: Moments, repeats: Tensor) -> float:
    """The bootstrap standard error of frechet(Moments.of(x), b): x [n, d] resampled by `repeats` [r, n], b fixed."""
    root_b = root(b.covariance)
    again = [_frechet_again(Moments.of(x, row), b, root_b) for row in repeats]
    return torch.tensor(again, dtype=torch.float64).std().item()


def kid_spread(x: Tensor, y: Tensor, repeats: Tensor) -> float:
    """The bootstrap standard error of kid(x, y): x [n, d] resampled by `repeats` [r, n], y [m, d] fixed.

    A resample holds some samples twice; such pairs are left out, as kid leaves out a sample paired with itself.
    """
    return _kid(x, y, 0.0, repeats)[1].std().item()


@dataclass(frozen=True)
class Quality:
    """Distances of n samples from the data, and their standard errors (what those cover: see above)."""

    fd: float
    fd_se: float
    kid: float
    kid_se: float
    fd_pixels: float
    fd_pixels_se: float
    n: int


@dataclass(frozen=True)
class Floor:
    """What a perfect sampler, whose samples are new real images, is to expect of `n` = (N samples, M real images).

    From real images alone. real: "halves", the mean of SPLITS halvings of them, or "held-out", real images that no training
    saw against the others. compared: how many against how many that was. A Frechet distance of equal distributions is
    proportional to 1/n + 1/m (to 3 % where halves have as many images as features, measured on Gaussians), so it is brought
    to N and M by that; kid is 0 in the mean at any counts. The standard errors are those of these estimates: over halvings,
    right for a thousand images and up to twice too small below two hundred; over held-out images by the bootstrap. What one
    set of N perfect samples scores lies about its own standard error around the floor, as often below as above.
    """

    fd: float
    fd_se: float
    kid: float
    kid_se: float
    fd_pixels: float
    fd_pixels_se: float
    n: tuple[int, int]
    compared: tuple[int, int]
    real: Literal["halves", "held-out"]


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
    """A set of images as the measures see it. features: [n, dimension], pixels: [n, c * side * side], both float64."""

    features: Tensor
    pixels: Tensor

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
    the images and the network. shape: (c, h, w).
    """

    parts: tuple[Part, ...]
    rows: Tensor
    sizes: Tensor
    kernels: Tensor
    shape: tuple[int, int, int]
    network: str
    digest: str

    @classmethod
    def of(cls, images: Images, features: Features, on_progress: Progress = lambda done, total: None) -> "Reference":
        """From all real images that count; at least 4, so that `floor` can halve them."""
        count, content = len(images), hashlib.sha256()
        if count < 4:
            raise Mistake(f"quality needs at least 4 real images to compare with, the data have {count}")
        groups = min(GROUPS, count // 2 * 2)
        place = torch.randperm(count, generator=generator("real images", count))
        parts: list[Part | None] = [None] * groups
        kept, done = [], 0
        for block in images.blocks(ROWS):
            seen, here = _look(to_float(block), features), place[done : done + len(block)]
            found = [Part.of(seen[here % groups == group]) for group in range(groups)]
            parts = [part if known is None else known + part for known, part in zip(parts, found)]
            kept.append(seen.features[here < KERNEL_ROWS])
            content.update(block.contiguous().numpy().tobytes())
            done += len(block)
            on_progress(done, count)
        whole = {"images": content.hexdigest(), "shape": [count, *images.shape], "features": features.digest}
        rows, group = torch.cat(kept), place[place < KERNEL_ROWS] % groups
        known = rows, group.bincount(minlength=groups), _kernels(rows, group, groups)
        return cls(tuple(parts), *known, tuple(images.shape), features.digest, disk.digest(whole))

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


def _sum(parts: Iterable[Part]) -> Part:
    return functools.reduce(operator.add, parts)


def _kernels(rows: Tensor, group: Tensor, groups: int) -> Tensor:
    member = torch.nn.functional.one_hot(group, groups).double()
    found = torch.zeros(groups, groups).double()
    for one, other, tile in _tiles(rows):
        part = member[one].T @ tile @ member[other]
        found += part if one == other else part + part.T
    return found


def measure(samples: Sample, reference: Reference, features: Features, seed: int) -> Quality:
    """How far samples [n, c, h, w] in [-1, 1] are from the real images; `seed` is that of the bootstrap.

    `features` must be the network the reference was built with. A Mistake if a sample is not finite, since rounding
    would turn it into an image.
    """
    if features.digest != reference.network:
        raise ValueError("the reference was built with another feature network; build it again with this one")
    if tuple(samples.shape[1:]) != reference.shape or len(samples) < 2:
        raise Mistake(f"need at least 2 samples of shape {list(reference.shape)}, got {list(samples.shape)}")
    _check_finite(samples)
    return _compare(_look(to_8bit(samples), features), reference, seed)


def floor(reference: Reference, count: int, seed: int, held_out: Seen | None = None) -> Floor:
    """The floor under a table of n = `count`; seed: of the halvings and of the bootstrap."""
    halvings = [_halved(reference, count, generator(seed, "floor", k)) for k in range(SPLITS)]
    mean, spread = torch.tensor(halvings).mean(0), torch.tensor(halvings).std(0) / SPLITS**0.5
    (fd, kid, pixels), errors = mean.tolist(), spread.tolist()
    at = count, reference.count
    if held_out is None:
        halves = reference.count // 2, reference.count - reference.count // 2
        return Floor(fd, errors[0], kid, errors[1], pixels, errors[2], at, halves, "halves")
    score = _compare(held_out, reference, seed)
    share = (1 / count - 1 / len(held_out)) / (1 / count + 1 / reference.count)  # of the floor, for other counts
    return Floor(
        fd=score.fd + share * fd,
        fd_se=math.hypot(score.fd_se, share * errors[0]),
        kid=score.kid,
        kid_se=score.kid_se,
        fd_pixels=score.fd_pixels + share * pixels,
        fd_pixels_se=math.hypot(score.fd_pixels_se, share * errors[2]),
        n=at,
        compared=(len(held_out), reference.count),
        real="held-out",
    )


def _halved(reference: Reference, count: int, dice: torch.Generator) -> tuple[float, float, float]:
    """fd, kid and fd_pixels between two random halves of the real images, fd's as they were at the counts of a table."""
    groups = len(reference.parts)
    order = torch.randperm(groups, generator=dice).tolist()
    one, other = (_sum(reference.parts[k] for k in half) for half in (order[: groups // 2], order[groups // 2 :]))
    share = (1 / count + 1 / reference.count) / (1 / one.count + 1 / other.count)
    chosen = torch.zeros(groups, dtype=torch.float64).index_fill_(0, torch.tensor(order[: groups // 2]), 1.0)
    kid = _kid_of_groups(reference.kernels, reference.sizes.double(), chosen)
    return share * frechet(one.features, other.features), kid, share * frechet(one.pixels, other.pixels)


def _kid_of_groups(kernels: Tensor, sizes: Tensor, chosen: Tensor) -> float:
    """kid between the rows of the groups that are `chosen` (1) and those of the others (0)."""
    rest = 1 - chosen
    n, m = chosen @ sizes, rest @ sizes
    alike = chosen @ kernels @ chosen / (n * (n - 1)) + rest @ kernels @ rest / (m * (m - 1))
    return float(alike - 2 * (chosen @ kernels @ rest) / (n * m))


def look(images: Images, features: Features, most: int = KERNEL_ROWS) -> Seen:
    """Real images as the measures see them, the first `most` of an order drawn once; at least 2."""
    if len(images) < 2:
        raise Mistake(
            f"held-out images are compared with the others: there must be at least 2, there are {len(images)}"
        )
    place = torch.randperm(len(images), generator=generator("real images", len(images)))
    parts, done = [], 0
    for block in images.blocks(ROWS):
        chosen = place[done : done + len(block)] < most
        done += len(block)
        if chosen.any():
            parts.append(_look(to_float(block[chosen]), features))
    return Seen(torch.cat([part.features for part in parts]), torch.cat([part.pixels for part in parts]))


@dataclass(frozen=True)
class Fidelity:
    """RMSE over all pixels, in units of [-1, 1], and its standard error over the noises."""

    rmse: float
    se: float


def fidelity(student: Sample, teacher: Sample) -> Fidelity:
    """How far student samples are from the teacher's of the same noises, [n, *x] each, row by row, as they came out."""
    if student.shape != teacher.shape or len(student) < 2:
        raise ValueError(f"need two equal shapes of at least 2 samples, got {student.shape} and {teacher.shape}")
    _check_finite(student)
    squared = (student.double() - teacher.double()).square().flatten(1).mean(1)
    rmse = squared.mean().sqrt().item()
    spread = squared.std().item() / len(squared) ** 0.5
    return Fidelity(rmse, spread / (2 * rmse) if rmse else 0.0)  # d sqrt(m) = dm / (2 sqrt(m))


@dataclass(frozen=True)
class Share:
    """A mean over samples and its standard error."""

    mean: float
    se: float


def accuracy(samples: Sample, labels: Tensor, real: Tensor, features: Features) -> Share:
    """How often the feature network, which no training of a student saw, finds the class that was asked for.

    labels: int64 [n], of the samples; real: those of the images that the network learned from, for it numbers the classes
    that occur. A Mistake for a network that learned no classes.
    """
    if features.card.task != "classes":
        raise Mistake("the feature network learned no classes, so it cannot tell whether samples have the right one")
    known, x = torch.unique(real.cpu()), to_8bit(samples)
    found = torch.cat([features.logits(part.to(features.device)).argmax(1).cpu() for part in x.split(250)])
    right = (known[found] == labels.cpu()).double()
    return Share(float(right.mean()), float(right.std() / len(right) ** 0.5))


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


def _look(x: Tensor, features: Features) -> Seen:
    return Seen(extract(features, x), pooled(x))


def _compare(seen: Seen, reference: Reference, seed: int) -> Quality:
    repeats = resamples(len(seen), seed)
    own, real = Part.of(seen), reference.whole
    kid, again = _kid(seen.features, reference.rows, reference.pairs, repeats)
    return Quality(
        fd=frechet(own.features, real.features),
        fd_se=frechet_spread(seen.features, real.features, repeats),
        kid=kid,
        kid_se=again.std().item(),
        fd_pixels=frechet(own.pixels, real.pixels),
        fd_pixels_se=frechet_spread(seen.pixels, real.pixels, repeats),
        n=len(seen),
    )


def _check_finite(samples: Sample) -> None:
    broken = int((~samples.isfinite().flatten(1).all(1)).sum())
    if broken:
        raise Mistake(
            f"{broken} of {len(samples)} samples are not finite: the network has diverged; train it at a lower lr"
        )
