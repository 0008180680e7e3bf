"""The bootstrap over samples, drawn alike for all metrics of one set."""

import torch
from torch import Tensor

from diffcore.core.rng import generator
from diffcore.metrics.estimate import RESAMPLES


def resamples(count: int, seed: int) -> Tensor:
    """How often each of `count` samples occurs in each bootstrap resample: [RESAMPLES, count], float64."""
    rng = generator(seed, "bootstrap", count)
    drawn = torch.randint(count, (RESAMPLES, count), generator=rng)
    return torch.zeros(RESAMPLES, count).double().scatter_add_(1, drawn, torch.ones(drawn.shape).double())
