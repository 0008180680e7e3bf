"""The Frechet distance of wide features and its spread by one decomposition: a bootstrap in 2048 dimensions takes hours."""

import functools
import math

import torch
from torch import Tensor

from diffcore.core.shapes import PerSample
from diffcore.metrics.estimate import Estimate
from diffcore.metrics.frechet import Moments
from diffcore.metrics.statistics import Statistics

BLOCK = 2048
"""Rows looked at together."""

ENOUGH = 10_000
"""Rows of which the spread of many is taken: it is then itself right to a hundredth."""


def moments(x: Tensor) -> Moments:
    """Of rows [n, d], a block at a time."""
    return functools.reduce(Moments.__add__, (Moments.of(part) for part in x.split(BLOCK)))


def estimate(x: Tensor, b: Moments | Statistics, root_b: Tensor) -> Estimate:
    """frechet(Moments.of(x), b) of independent rows x [n, d], and its standard error to first order in their weights.

    root_b: the square root of b's covariance. With K = Y Y^T / (n - 1) of Y = (x - mean) B^1/2 the overlap is tr K^1/2, which
    the weight of row i moves by n/2 (K^1/2)_ii: no inverse is needed, and n may be smaller than d.
    """
    n, a = len(x), moments(x)
    gap = a.mean - b.mean
    away = x[:ENOUGH] - a.mean
    overlap, diagonal = _few(away, root_b) if n <= x.shape[1] else _many(away, a, root_b)
    value = gap.square().sum() + a.covariance.trace() + b.covariance.trace() - 2 * overlap
    influence = 2 * away @ gap + away.square().sum(1) * n / (n - 1) - n * diagonal
    return Estimate(max(value.item(), 0.0), influence.std().item() / math.sqrt(n))


def _few(away: Tensor, root_b: Tensor) -> tuple[Tensor, PerSample]:
    """The trace and the diagonal of K^1/2, no more rows than features, from K itself."""
    y = away @ root_b / math.sqrt(len(away) - 1)
    values, vectors = torch.linalg.eigh(y @ y.T)
    roots = _roots(values)
    return roots.sum(), vectors.square() @ roots


def _many(away: Tensor, a: Moments, root_b: Tensor) -> tuple[Tensor, PerSample]:
    """The trace of K^1/2, and its diagonal at some rows, from Y^T Y / (n - 1): as many eigenvalues, and others are 0."""
    values, vectors = torch.linalg.eigh(root_b @ a.covariance @ root_b)
    roots = _roots(values)
    shrunk = vectors * torch.where(roots > 0, roots.rsqrt(), 0)
    return roots.sum(), (away @ (root_b @ shrunk)).square().sum(1) / (a.count - 1)


def _roots(values: Tensor) -> Tensor:
    rounding = torch.finfo(values.dtype).eps * len(values) * values.max()
    return torch.where(values > rounding, values, 0).sqrt()
