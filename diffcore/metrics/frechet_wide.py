"""The Frechet distance of wide features and its spread by one decomposition: a bootstrap in 2048 dimensions takes hours."""

import math

import torch
from torch import Tensor

from diffcore.metrics.estimate import Estimate
from diffcore.metrics.frechet import Moments


def estimate(x: Tensor, b: Moments, root_b: Tensor) -> Estimate:
    """frechet(Moments.of(x), b) of rows x [n, d], and its standard error to first order in the weights of the rows.

    root_b: the square root of b's covariance. With K = Y Y^T / (n - 1) of Y = (x - mean) B^1/2 the overlap is tr K^1/2, of
    which the weight of row i moves n/2 (K^1/2)_ii, since K is congruent to itself under weights: no inverse is needed, and n
    may be smaller than d.
    """
    n, mean = len(x), x.mean(0)
    away = x - mean
    y = away @ root_b / math.sqrt(n - 1)
    overlap, diagonal = _root_of_gram(y)
    gap = mean - b.mean
    value = gap.square().sum() + away.square().sum() / (n - 1) + b.covariance.trace() - 2 * overlap
    influence = 2 * away @ gap + away.square().sum(1) * n / (n - 1) - n * diagonal
    return Estimate(max(value.item(), 0.0), influence.std().item() / math.sqrt(n))


def _root_of_gram(y: Tensor) -> tuple[Tensor, Tensor]:
    """The trace and the diagonal of (y y^T)^1/2, rows y [n, d]: from the smaller of the two Gram matrices."""
    n, d = y.shape
    values, vectors = torch.linalg.eigh(y @ y.T if n <= d else y.T @ y)
    rounding = torch.finfo(values.dtype).eps * len(values) * values.max()
    roots = torch.where(values > rounding, values, 0).sqrt()
    if n <= d:
        return roots.sum(), vectors.square() @ roots
    inverse = torch.where(roots > 0, 1 / roots, 0)
    return roots.sum(), (y @ vectors).square() @ inverse
