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
"""

import dataclasses
import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from diffcore import disk
from diffcore.draw import generator
from diffcore.features import Features, extract
from diffcore.feed import to_float, to_uint8
from diffcore.mistake import Mistake
from diffcore.shapes import PerSample, Sample

RESAMPLES = 200
"""Bootstrap resamples: the relative error of a standard error is then about 1 / sqrt(2 * 200) = 5 %."""

SIDE = 8
"""Images are averaged down to at most SIDE x SIDE before their pixels are compared."""

ROWS = 2048
"""Rows of a kernel matrix held at once."""


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
    rounding = torch.finfo(values.dtype).eps * len(values) * values.max()
    return vectors * torch.where(values > rounding, values, 0).sqrt() @ vectors.T


def _frechet(a: Moments, b: Moments, root_b: Tensor) -> float:
    overlap = torch.linalg.svdvals(root(a.covariance) @ root_b).sum()
    apart = (a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace()
    return max((apart - 2 * overlap).item(), 0.0)  # 0 up to rounding for equal moments


def kernel(x: Tensor, y: Tensor) -> Tensor:
    """(x.y / d + 1)^3 for every pair of rows (arXiv 1801.01401, section 4). [n, d], [m, d] -> [n, m]."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def kid(x: Tensor, y: Tensor) -> float:
    """The unbiased estimate of the squared MMD under `kernel`; below 0 as often as above if x and y are alike.

    x: [n, d], y: [m, d], n and m at least 2. No row is paired with itself.
    """
    return _kid(x, y, _mean_of_pairs(y))


def _kid(x: Tensor, y: Tensor, pairs_y: float) -> float:
    return _mean_of_pairs(x) + pairs_y - 2 * _affinity(x, y).mean().item()


def _mean_of_pairs(x: Tensor) -> float:
    """The mean kernel over the pairs of distinct rows; the upper triangle, a block of rows at a time."""
    blocks = [kernel(x[first : first + ROWS], x[first:]).triu_(1).sum() for first in range(0, len(x), ROWS)]
    return (2 * sum(blocks) / (len(x) * (len(x) - 1))).item()


def _affinity(x: Tensor, y: Tensor) -> PerSample:
    """Each row's mean kernel with all of y, [n]."""
    return torch.cat([kernel(rows, y).mean(1) for rows in x.split(ROWS)])


def resamples(count: int, seed: int) -> Tensor:
    """How often each of `count` samples occurs in each bootstrap resample: [RESAMPLES, count], float64."""
    dice = generator(seed, "bootstrap", count)
    drawn = torch.randint(count, (RESAMPLES, count), generator=dice)
    return torch.zeros(RESAMPLES, count).double().scatter_add_(1, drawn, torch.ones(drawn.shape).double())


def frechet_spread(x: Tensor, b: Moments, repeats: Tensor) -> float:
    """The bootstrap standard error of frechet(Moments.of(x), b): x [n, d] resampled by `repeats` [r, n], b fixed."""
    root_b = root(b.covariance)
    again = [_frechet(Moments.of(x, row), b, root_b) for row in repeats]
    return torch.tensor(again, dtype=torch.float64).std().item()


def kid_spread(x: Tensor, y: Tensor, repeats: Tensor) -> float:
    """The bootstrap standard error of kid(x, y): x [n, d] resampled by `repeats` [r, n], y [m, d] fixed.

    A resample holds some samples twice; such pairs are left out, as kid leaves out a sample paired with itself.
    """
    within = kernel(x, x).fill_diagonal_(0)
    pairs = repeats.sum(1) ** 2 - repeats.square().sum(1)
    alike = ((repeats @ within) * repeats).sum(1) / pairs
    return (alike - 2 * (repeats @ _affinity(x, y)) / repeats.sum(1)).std().item()


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
    """The same distances between two disjoint sets of real images, n = (how many, against how many): what to expect of
    a perfect sampler."""

    fd: float
    fd_se: float
    kid: float
    kid_se: float
    fd_pixels: float
    fd_pixels_se: float
    n: tuple[int, int]


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
class Reference:
    """The real images, looked at once.

    network: the digest of the feature network. digest: of the images and the network. shape: (c, h, w). pairs: the mean
    kernel among the real images, kid's only term that no sample enters.
    """

    seen: Seen
    features: Moments
    pixels: Moments
    pairs: float
    shape: tuple[int, int, int]
    network: str
    digest: str

    @classmethod
    def of(cls, images: Tensor, features: Features) -> "Reference":
        """From all real images that count, uint8 [n, c, h, w]; at least 4, so that `floor` can halve them."""
        if len(images) < 4:
            raise Mistake(f"quality needs at least 4 real images to compare with, the data have {len(images)}")
        parts = [_look(to_float(rows), features) for rows in images.split(ROWS)]
        seen = Seen(torch.cat([part.features for part in parts]), torch.cat([part.pixels for part in parts]))
        content = hashlib.sha256(images.cpu().contiguous().numpy().tobytes()).hexdigest()
        whole = disk.digest({"images": content, "shape": list(images.shape), "features": features.digest})
        return _reference(seen, tuple(images.shape[1:]), features.digest, whole)

    @property
    def count(self) -> int:
        return len(self.seen)


def _reference(seen: Seen, shape: tuple[int, int, int], network: str, whole: str) -> Reference:
    moments = Moments.of(seen.features), Moments.of(seen.pixels)
    return Reference(seen, *moments, _mean_of_pairs(seen.features), shape, network, whole)


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


def floor(reference: Reference, count: int, seed: int) -> Floor:
    """What `count` real images, drawn by `seed`, score against all the others: the floor under a table of n = count.

    Where the data have fewer than twice `count`, one half against the other; the field `n` says so. A Frechet distance
    against fewer real images is larger, so this floor is a little too high.
    """
    order = torch.randperm(reference.count, generator=generator(seed, "floor"))
    count = max(2, min(count, reference.count // 2))
    rest = _reference(reference.seen[order[count:]], reference.shape, reference.network, reference.digest)
    score = _compare(reference.seen[order[:count]], rest, seed)
    return Floor(**{**dataclasses.asdict(score), "n": (count, rest.count)})


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
    return Quality(
        fd=frechet(Moments.of(seen.features), reference.features),
        fd_se=frechet_spread(seen.features, reference.features, repeats),
        kid=_kid(seen.features, reference.seen.features, reference.pairs),
        kid_se=kid_spread(seen.features, reference.seen.features, repeats),
        fd_pixels=frechet(Moments.of(seen.pixels), reference.pixels),
        fd_pixels_se=frechet_spread(seen.pixels, reference.pixels, repeats),
        n=len(seen),
    )


def _check_finite(samples: Sample) -> None:
    broken = int((~samples.isfinite().flatten(1).all(1)).sum())
    if broken:
        raise Mistake(
            f"{broken} of {len(samples)} samples are not finite: the network has diverged; train it at a lower lr"
        )
