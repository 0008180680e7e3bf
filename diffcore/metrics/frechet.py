"""The Frechet distance of two Gaussians (Heusel et al. 2017, arXiv 1706.08500, eq. 6) and its spread, in float64.

A distance of n samples is too large by about dimension^2 / (4 n) at unit variance, so it is compared only at equal n.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from diffcore.core.shapes import PerSample
from diffcore.metrics.estimate import Estimate


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


def frechet_spread(x: Tensor, b: Moments, repeats: Tensor) -> float:
    """The bootstrap standard error of frechet(Moments.of(x), b): x [n, d] resampled by `repeats` [r, n], b fixed."""
    return frechet_resampled(x, b, repeats).std().item()


def frechet_resampled(x: Tensor, b: Moments, repeats: Tensor) -> Tensor:
    """frechet(Moments.of(x), b) of each resample of x [n, d] by `repeats` [r, n]: [r], float64."""
    root_b = root(b.covariance)
    again = [_frechet_again(Moments.of(x, row), b, root_b) for row in repeats]
    return torch.tensor(again, dtype=torch.float64)


def estimate(x: Tensor, b: Moments, repeats: Tensor) -> Estimate:
    """frechet(Moments.of(x), b) of rows x [n, d], and its standard error over `repeats` [r, n]."""
    return Estimate(frechet(Moments.of(x), b), frechet_spread(x, b, repeats))
