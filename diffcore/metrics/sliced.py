"""The sliced Wasserstein distance and its spread (Bonneel et al. 2015, doi 10.1007/s10851-014-0506-3), in float64."""

import torch
from torch import Tensor

from diffcore.core.rng import generator
from diffcore.core.shapes import PerSample

DIRECTIONS = 64
"""Directions that rows are projected on, the same for all points."""


def directions(dimension: int) -> Tensor:
    """Unit vectors [DIRECTIONS, dimension], drawn by the dimension alone."""
    drawn = torch.randn(DIRECTIONS, dimension, generator=generator("directions", dimension), dtype=torch.float64)
    return drawn / drawn.norm(dim=1, keepdim=True)


def projected(rows: Tensor) -> Tensor:
    """Rows [n, d] along each direction: [DIRECTIONS, n]."""
    return directions(rows.shape[1]) @ rows.T


def squared(x: Tensor, y: Tensor) -> float:
    """The mean over directions of the squared W2 distance of projected x [directions, n] and rising y [directions, m].

    In one dimension equal shares of the mass are matched in rising order: both quantile functions are constant between the
    multiples of 1/n and of 1/m.
    """
    sorted_x = x.sort(1).values
    n, m = x.shape[1], y.shape[1]
    ends = torch.cat([torch.arange(1, n + 1) * m, torch.arange(1, m + 1) * n]).unique()  # in units of 1 / (n m)
    starts = torch.cat([ends.new_zeros(1), ends[:-1]])
    share = (ends - starts).double() / (n * m)
    apart = sorted_x[:, starts // m] - y[:, starts // n]
    return (apart.square() @ share).mean().item()


def influence(x: Tensor, y: Tensor) -> PerSample:
    """How `squared` changes with the weight of each sample, to first order and but for a constant: [n].

    It is the mean over directions of the Kantorovich potential, whose slope is 2 (x - T(x)) with the transport T; the
    standard deviation of its mean is that of the distance (del Barrio & Loubes 2019, arXiv 1705.01299, theorem 4.1).
    """
    sorted_x, order = x.sort(1)
    n, m = x.shape[1], y.shape[1]
    onto = y[:, torch.arange(1, n) * m // n]
    rise = sorted_x.square().diff(dim=1) - 2 * onto * sorted_x.diff(dim=1)
    potential = torch.cat([torch.zeros(len(x), 1).double(), rise.cumsum(1)], 1)
    return torch.zeros_like(x).scatter_(1, order, potential).mean(0)
