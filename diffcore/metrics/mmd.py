"""The unbiased squared MMD under a cubic kernel (Binkowski et al. 2018, arXiv 1801.01401) and its spread, in float64.

Both are those of all pairs, worked out a tile of ROWS x ROWS pairs at a time, so that memory grows with n + m and never with
n m: at 50 000 samples some 150 MB. The time is that of all pairs.
"""

import itertools
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
    return _kid(x, y, mean_of_pairs(y), _no_resample(x))[0]


def _kid(x: Tensor, y: Tensor, pairs_y: float, repeats: Tensor) -> tuple[float, Tensor]:
    """kid(x, y), and but for a constant that of each resample of x by `repeats` [r, n], [r]."""
    pairs, again = _within(x, repeats)
    affinity = _affinity(x, y)
    value = pairs / (len(x) * (len(x) - 1)) + pairs_y - 2 * affinity.mean().item()
    sizes = repeats.sum(1)
    alike = again / (sizes**2 - repeats.square().sum(1))
    return value, alike - 2 * (repeats @ affinity) / sizes


def mean_of_pairs(x: Tensor) -> float:
    """The mean kernel over the pairs of distinct rows."""
    return _within(x, _no_resample(x))[0] / (len(x) * (len(x) - 1))


def _within(x: Tensor, repeats: Tensor) -> tuple[float, Tensor]:
    """The sum of the kernel over the ordered pairs of distinct rows, and over those of each resample, [r]."""
    total = 0.0
    again = torch.zeros(len(repeats)).double()
    for i, j, tile in _tiles(x):
        twice = 1 if i == j else 2
        total += twice * tile.sum().item()
        again += twice * ((repeats[:, i] @ tile) * repeats[:, j]).sum(1)
    return total, again


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


def _no_resample(x: Tensor) -> Tensor:
    return torch.zeros(0, len(x)).double()


def _spans(count: int) -> list[slice]:
    return [slice(first, min(first + ROWS, count)) for first in range(0, count, ROWS)]


def kid_spread(x: Tensor, y: Tensor, repeats: Tensor) -> float:
    """The bootstrap standard error of kid(x, y): x [n, d] resampled by `repeats` [r, n], y [m, d] fixed.

    A resample holds some samples twice; such pairs are left out, as kid leaves out a sample paired with itself.
    """
    return resampled(x, y, repeats).std().item()


def resampled(x: Tensor, y: Tensor, repeats: Tensor) -> Tensor:
    """kid of each resample of x [n, d] by `repeats` [r, n] from y [m, d], less the mean kernel of y's own pairs: [r]."""
    return _kid(x, y, 0.0, repeats)[1]


def estimate(x: Tensor, y: Tensor, pairs_y: float, repeats: Tensor) -> Estimate:
    """kid(x, y) and its standard error over `repeats` [r, n]; pairs_y: the mean kernel over the distinct pairs of y."""
    value, again = _kid(x, y, pairs_y, repeats)
    return Estimate(value, again.std().item())


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
