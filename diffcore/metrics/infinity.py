"""The Frechet distance of infinitely many samples, extrapolated (Chong & Forsyth 2020, arXiv 1911.07023, section 3)."""

import torch
from torch import Tensor

from diffcore.core.rng import generator
from diffcore.metrics.frechet import Moments, frechet_again, root

PARTS = (1, 2, 3)
"""Into how many disjoint parts the samples are put; each number of parts is a point of the line in 1/N."""

PAIRS = 46 / 27
"""The variance of the noise of pairs beside that of `frechet`. A distance of K parts takes pairs within a part, K times as
much, and the line's weights are 4/3, 1/3 and -2/3: a pair counts 4/3, and 2/3 more in one half, 2 less in one third. This is
the mean square, over pairs of random rows."""


def extrapolated(x: Tensor, b: Moments, seed: int) -> float:
    """What frechet(Moments.of(x), b) tends to for many rows x: the intercept of a line in 1/N, fitted by least squares.

    The bias of N rows is proportional to 1/N where N is large beside the dimension. Each of PARTS is the mean over disjoint
    parts that hold all rows between them, so that no part's luck enters. b stays as it is, with its own bias. seed: of how
    rows are dealt to the parts, by their rank along the diagonal: in whatever order they come.
    """
    order = x.sum(1).argsort()[torch.randperm(len(x), generator=generator(seed, "parts", len(x)))]
    root_b = root(b.covariance)
    sizes = torch.tensor([count / len(x) for count in PARTS], dtype=torch.float64)
    means = [
        sum(frechet_again(Moments.of(x[part]), b, root_b) for part in order.tensor_split(count)) / count
        for count in PARTS
    ]
    away = sizes - sizes.mean()
    distances = torch.tensor(means, dtype=torch.float64)
    slope = (away @ distances) / away.square().sum()
    return (distances.mean() - slope * sizes.mean()).item()
