"""The Frechet distance of wide features and its spread by one decomposition: a bootstrap in 2048 dimensions takes hours."""

import functools
import math

import numpy as np
import torch
from torch import Tensor

from diffcore.core.shapes import PerSample
from diffcore.metrics.estimate import Estimate
from diffcore.metrics.frechet import Moments, root
from diffcore.metrics.statistics import Statistics

BLOCK = 4096
"""Rows looked at together."""

ENOUGH = 10_000
"""Rows of which the spread of many is taken: it is then itself right to a hundredth."""


def moments(x: Tensor) -> Moments:
    """Of rows [n, d], a block at a time."""
    return functools.reduce(Moments.__add__, map(_moments, x.split(BLOCK)))


def _moments(rows: Tensor) -> Moments:
    away = rows.to(torch.float64, copy=True).numpy()
    mean = away.mean(0)
    away -= mean
    # numpy sees that both are one matrix and works out half of the product, which torch does not
    return Moments(len(rows), torch.from_numpy(mean), torch.from_numpy(away.T @ away))


def factor(covariance: Tensor) -> Tensor:
    """L [d, d] with L L^T = covariance: Cholesky's, at a tenth of the time of a square root; that root of a singular one."""
    lower, failed = torch.linalg.cholesky_ex(covariance)
    return root(covariance) if failed else lower


def distance(a: Moments, b: Moments | Statistics) -> float:
    """The Frechet distance of two Gaussians as `frechet` has it, by the eigenvalues of L^T A L with L L^T = B."""
    lower = factor(b.covariance)
    overlap = _roots(torch.linalg.eigvalsh(lower.T @ a.covariance @ lower)).sum()
    return _apart(a, b, overlap)


def _apart(a: Moments, b: Moments | Statistics, overlap: Tensor) -> float:
    value = (a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace() - 2 * overlap
    return max(value.item(), 0.0)  # 0 up to rounding for equal moments


def estimate(x: Tensor, b: Moments | Statistics, factor_b: Tensor) -> Estimate:
    """frechet(Moments.of(x), b) of independent rows x [n, d], and its standard error to first order in their weights.

    factor_b: `factor` of b's covariance, or its square root. With K = Y Y^T / (n - 1) of Y = (x - mean) L the overlap is
    tr K^1/2, which the weight of row i moves by n/2 (K^1/2)_ii: no inverse is needed, and n may be smaller than d.
    """
    n, a = len(x), moments(x)
    gap = a.mean - b.mean
    away = x[:ENOUGH] - a.mean
    overlap, diagonal = _few(away, factor_b) if n <= x.shape[1] else _many(away, a, factor_b)
    influence = 2 * away @ gap + away.square().sum(1) * n / (n - 1) - n * diagonal
    return Estimate(_apart(a, b, overlap), influence.std().item() / math.sqrt(n))


def _few(away: Tensor, factor_b: Tensor) -> tuple[Tensor, PerSample]:
    """The trace and the diagonal of K^1/2, no more rows than features, from K itself."""
    y = away @ factor_b / math.sqrt(len(away) - 1)
    values, vectors = _eigh(y @ y.T)
    roots = _roots(values)
    return roots.sum(), vectors.square() @ roots


def _many(away: Tensor, a: Moments, factor_b: Tensor) -> tuple[Tensor, PerSample]:
    """The trace of K^1/2, and its diagonal at some rows, from Y^T Y / (n - 1): as many eigenvalues, and others are 0."""
    values, vectors = _eigh(factor_b.T @ a.covariance @ factor_b)
    roots = _roots(values)
    shrunk = vectors * torch.where(roots > 0, roots.rsqrt(), 0)
    return roots.sum(), (away @ (factor_b @ shrunk)).square().sum(1) / (a.count - 1)


def _eigh(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """numpy's LAPACK takes half of the time of torch's."""
    values, vectors = np.linalg.eigh(matrix.numpy())
    return torch.from_numpy(values), torch.from_numpy(vectors)


def _roots(values: Tensor) -> Tensor:
    rounding = torch.finfo(values.dtype).eps * len(values) * values.max()
    return torch.where(values > rounding, values, 0).sqrt()
