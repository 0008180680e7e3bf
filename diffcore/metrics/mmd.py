"""The unbiased squared MMD under a cubic kernel (Binkowski et al. 2018, arXiv 1801.01401) and its spread, in float64.

Both are those of all pairs, worked out a tile of ROWS x ROWS pairs at a time, so that memory grows with n + m and never with
n m: at 50 000 samples some 150 MB. The time is that of all pairs.
"""

import itertools
import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from diffcore.core.shapes import PerSample
from diffcore.metrics.estimate import Estimate

ROWS = 2048
"""Rows and columns of a kernel matrix held at once."""


def kernel(x: Tensor, y: Tensor) -> Tensor:
    """(x.y / d + 1)^3 for every pair of rows (arXiv 1801.01401, section 4). [n, d], [m, d] -> [n, m]."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def kid(x: Tensor, y: Tensor) -> float:
    """The unbiased estimate of the squared MMD under `kernel`; below 0 as often as above if x and y are alike.

    x: [n, d], y: [m, d], n and m at least 2. No row is paired with itself.
    """
    return scored(x, y, mean_of_pairs(y))[0]


def scored(x: Tensor, y: Tensor, pairs_y: float) -> tuple[float, PerSample]:
    """kid(x, y) with `pairs_y` the mean kernel over the distinct pairs of y, and the slopes of `standard_error`, [n]."""
    total, rows = _within(x)
    near, others = _affinity(x, y), len(x) - 1
    value = total / (len(x) * others) + pairs_y - 2 * near.mean().item()
    return value, 2 * (rows / others - near)


def standard_error(slopes: PerSample) -> float:
    """Of kid(x, y), y fixed, or of the difference of two of one noise, by n times the derivative in each row's weight [n].

    It is the jackknife's, and counts the noise of pairs twice: near the data it is up to sqrt(2) times too large, 1.2 where
    there are 1.8 times as many y. It is left so because a cubic kernel has long tails, and a kid that is low by chance a low
    error: with the noise of pairs once 90 of 100 intervals cover there, and 95 so.
    """
    return slopes.std().item() / math.sqrt(len(slopes))


def mean_of_pairs(x: Tensor) -> float:
    """The mean kernel over the pairs of distinct rows."""
    return _within(x)[0] / (len(x) * (len(x) - 1))


def _within(x: Tensor) -> tuple[float, PerSample]:
    """The sum of the kernel over the ordered pairs of distinct rows, and that of each row with all others, [n]."""
    total, rows = 0.0, torch.zeros(len(x)).double()
    for i, j, tile in _tiles(x):
        total += (1 if i == j else 2) * tile.sum().item()
        rows[i] += tile.sum(1)
        if i != j:
            rows[j] += tile.sum(0)
    return total, rows


def _tiles(x: Tensor) -> Iterator[tuple[slice, slice, Tensor]]:
    """The kernel matrix of x with itself on and above the diagonal, which is 0: (rows, columns, values) of each tile."""
    for i, j in itertools.combinations_with_replacement(_spans(len(x)), 2):
        tile = kernel(x[i], x[j])
        yield i, j, tile.fill_diagonal_(0) if i == j else tile


def _affinity(x: Tensor, y: Tensor) -> PerSample:
    """Each row's mean kernel with all of y, [n]."""
    sums = torch.zeros(len(x)).double()
    for i, j in itertools.product(_spans(len(x)), _spans(len(y))):
        sums[i] += kernel(x[i], y[j]).sum(1)
    return sums / len(y)


def _spans(count: int) -> list[slice]:
    return [slice(first, min(first + ROWS, count)) for first in range(0, count, ROWS)]


def estimate(x: Tensor, y: Tensor, pairs_y: float) -> Estimate:
    """kid(x, y) and its standard error; pairs_y: the mean kernel over the distinct pairs of y."""
    value, slopes = scored(x, y, pairs_y)
    return Estimate(value, standard_error(slopes))


def sums_of_groups(rows: Tensor, group: Tensor, groups: int) -> Tensor:
    """[groups, groups]: the sum of the kernel over the pairs of rows [n, d] of two groups, of one over its distinct ones.

    group: int64 [n], of each row.
    """
    member = F.one_hot(group, groups).double()
    sums = torch.zeros(groups, groups).double()
    for i, j, tile in _tiles(rows):
        part = member[i].T @ tile @ member[j]
        sums += part if i == j else part + part.T
    return sums


def kid_of_groups(kernels: Tensor, sizes: Tensor, chosen: Tensor) -> float:
    """kid between the rows of the groups that are `chosen` (1) and those of the others (0), by their `sums_of_groups`."""
    rest = 1 - chosen
    n, m = chosen @ sizes, rest @ sizes
    alike = chosen @ kernels @ chosen / (n * (n - 1)) + rest @ kernels @ rest / (m * (m - 1))
    return float(alike - 2 * (chosen @ kernels @ rest) / (n * m))
