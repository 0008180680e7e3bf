"""The Frechet distance of two Gaussians (Heusel et al. 2017, arXiv 1706.08500, eq. 6) and its spread, in float64.

A distance of n samples is too large by about dimension^2 / (4 n) at unit variance, so it is compared only at equal n.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from diffcore.core.shapes import PerSample
from diffcore.metrics.estimate import Estimate, Variance

SHARE = 0.5
"""Of a bootstrap resample's change of the weights, by which `sway` changes them."""


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
    return vectors * rounded(values).sqrt() @ vectors.T


def rounded(values: Tensor) -> Tensor:
    """Eigenvalues [d], those within rounding of 0 as 0."""
    smallest = torch.finfo(values.dtype).eps * len(values) * values.max()
    return torch.where(values > smallest, values, 0)


def _frechet(a: Moments, b: Moments, root_b: Tensor) -> float:
    return _apart(a, b, torch.linalg.svdvals(root(a.covariance) @ root_b).sum())


def frechet_again(a: Moments, b: Moments, root_b: Tensor) -> float:
    """`_frechet` for a spread over many: by the roots of the eigenvalues of B^1/2 A B^1/2, at two fifths of the time."""
    values = torch.linalg.eigvalsh(root_b @ a.covariance @ root_b)
    return _apart(a, b, rounded(values).sqrt().sum())


def _apart(a: Moments, b: Moments, overlap: Tensor) -> float:
    apart = (a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace()
    return max((apart - 2 * overlap).item(), 0.0)  # 0 up to rounding for equal moments


@dataclass(frozen=True)
class Sway:
    """How a distance of n samples moves with their weights, by which its error is. Of two distances of the same noises
    a - b is that of their difference.

    slopes: n times its derivative in the weight of each sample, but for a constant, [n]. bends: what a change of the
    weights adds beyond its slope, for each bootstrap resample, [r]; of which the variance is that of second order.
    """

    slopes: PerSample
    bends: Tensor

    def __sub__(self, other: "Sway") -> "Sway":
        return Sway(self.slopes - other.slopes, self.bends - other.bends)

    def to_json(self) -> dict[str, list[float]]:
        """The fields as JSON."""
        return {"slopes": self.slopes.tolist(), "bends": self.bends.tolist()}

    @classmethod
    def from_json(cls, value: dict[str, list[float]]) -> "Sway":
        """The inverse of `to_json`."""
        return cls(**{key: torch.tensor(each, dtype=torch.float64) for key, each in value.items()})

    @property
    def variance(self) -> Variance:
        return Variance(self.slopes.var().item() / len(self.slopes), self.bends.var().item())

    @property
    def se(self) -> float:
        return self.variance.se


def sway(x: Tensor, b: Moments, repeats: Tensor) -> Sway:
    """Of frechet(Moments.of(x), b) with rows x [n, d] and b fixed; repeats: [r, n], bootstrap resamples.

    Each resample moves the weights by SHARE of what it would, so that no row loses all of its weight: of hardly more
    rows than features a resample, which lacks a third of them, is no small change.
    """
    a, root_b = Moments.of(x), root(b.covariance)
    _, slopes = first_order(x - a.mean, a, b.mean, root_b)
    changes = SHARE * (repeats - 1)
    values = [frechet_again(Moments.of(x, 1 + change), b, root_b) for change in changes]
    beyond = torch.tensor(values, dtype=torch.float64) - changes @ slopes / len(x)
    return Sway(slopes, beyond / SHARE**2)


def first_order(away: Tensor, a: Moments, mean_b: Tensor, factor_b: Tensor) -> tuple[Tensor, PerSample]:
    """tr(A^1/2 B A^1/2)^1/2, and the distance's slope in the weight of some rows, `away` [k, d] from their mean.

    a: of all n rows. factor_b: L with L L^T = B. With K = Y Y^T / (n - 1) of Y = (x - mean) L the overlap is tr K^1/2,
    which the weight of row i moves by n/2 (K^1/2)_ii: no inverse is needed, and n may be smaller than d. Of no more rows
    than features `away` are all of them.
    """
    n = a.count
    total, diagonal = _few(away, factor_b) if n <= away.shape[1] else _many(away, a, factor_b)
    slopes = 2 * away @ (a.mean - mean_b) + away.square().sum(1) * n / (n - 1) - n * diagonal
    return total, slopes


def _few(away: Tensor, factor_b: Tensor) -> tuple[Tensor, PerSample]:
    """The trace and the diagonal of K^1/2, no more rows than features, from K itself."""
    y = away @ factor_b / math.sqrt(len(away) - 1)
    values, vectors = _eigh(y @ y.T)
    roots = rounded(values).sqrt()
    return roots.sum(), vectors.square() @ roots


def _many(away: Tensor, a: Moments, factor_b: Tensor) -> tuple[Tensor, PerSample]:
    """The trace of K^1/2, and its diagonal at some rows, from Y^T Y / (n - 1): as many eigenvalues, and others are 0."""
    values, vectors = _eigh(factor_b.T @ a.covariance @ factor_b)
    roots = rounded(values).sqrt()
    shrunk = vectors * torch.where(roots > 0, roots.rsqrt(), 0)
    return roots.sum(), (away @ (factor_b @ shrunk)).square().sum(1) / (a.count - 1)


def _eigh(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """numpy's LAPACK takes half of the time of torch's."""
    values, vectors = np.linalg.eigh(matrix.numpy())
    return torch.from_numpy(values), torch.from_numpy(vectors)


def estimate(x: Tensor, b: Moments, repeats: Tensor) -> Estimate:
    """frechet(Moments.of(x), b) of rows x [n, d], and its standard error by `sway` with `repeats` [r, n]."""
    return Estimate(frechet(Moments.of(x), b), sway(x, b, repeats).se)
