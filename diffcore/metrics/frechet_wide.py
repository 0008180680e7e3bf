"""The Frechet distance of wide features and its spread by one decomposition: a bootstrap in 2048 dimensions takes hours."""

import functools
import math

import torch
from torch import Tensor

from diffcore.metrics.estimate import Estimate
from diffcore.metrics.frechet import Moments, first_order, root, rounded
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
    values = torch.linalg.eigvalsh(lower.T @ a.covariance @ lower)
    return _apart(a, b, rounded(values).sqrt().sum())


def _apart(a: Moments, b: Moments | Statistics, overlap: Tensor) -> float:
    value = (a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace() - 2 * overlap
    return max(value.item(), 0.0)  # 0 up to rounding for equal moments


def estimate(x: Tensor, b: Moments | Statistics, factor_b: Tensor) -> Estimate:
    """frechet(Moments.of(x), b) of independent rows x [n, d], and its standard error to first order in their weights.

    factor_b: `factor` of b's covariance, or its square root. To first order the noise of second order counts twice: near
    the data the error is up to sqrt(2) times too large, and never too small.
    """
    a = moments(x)
    overlap, slopes = first_order(x[:ENOUGH] - a.mean, a, b.mean, factor_b)
    return Estimate(_apart(a, b, overlap), slopes.std().item() / math.sqrt(len(x)))
