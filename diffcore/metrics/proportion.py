"""Shares and their standard errors."""

import math

from torch import Tensor

from diffcore.metrics.estimate import Estimate
from diffcore.metrics.neighbours import Holders


def of_samples(holds: Tensor) -> Estimate:
    """The share of independent samples of which something holds, bool [n].

    The standard error is the binomial one with two samples more that hold and two that do not (Agresti & Coull 1998, doi
    10.1080/00031305.1998.10480550): not 0 where all n agree, which does not say that all do, and of few events not too small
    where there are fewer by chance. About the plain share 1.96 of it cover 93 to 98 % of 3 events in the mean and more, and
    fewer always.
    """
    n, held = len(holds), int(holds.sum())
    a, b = held + 2, n - held + 2
    return Estimate(held / n, math.sqrt(a * b / (a + b)) / (a + b))


MOVED = 0.2
"""How much of what the jackknife says of moving reaches is their noise. It moves each reach by a whole step to the next
neighbour, which of a single one is twice its variance, and reaches near each other move together; with this the error is
0.92 to 1.24 times what it should be (Gaussians in 2 to 64 dimensions, 300 and 1000 samples: `bench/coverage.py`)."""


def of_real(holders: Holders, regained: Tensor | None = None) -> Estimate:
    """The share of the real images that any sample holds.

    To leave out each sample once, the jackknife, counts the noise that q samples make together q times, and to leave out
    pairs of them q (q - 1) / 2 times (Efron & Stein 1981, doi 10.1214/aos/1176345462). Where such noises fall by a constant
    factor from each q to the next, the variance is the jackknife's over 1 + r with the sum over pairs r times that over
    samples. Of few samples that hold anything alone it may be too small by chance: two more are counted.

    regained: where the samples' own reaches hold, as of `Reach`; MOVED of what it adds to the jackknife counts.
    """
    alone, together = holders.alone, holders.together
    count, m = int((alone > 0).sum()), len(holders.counts)
    if count == 0:
        return Estimate(holders.share, math.sqrt(2) / m)
    ratio = (together.square().sum() / alone.square().sum()).item()
    jackknife = _spread(alone)
    if regained is not None:
        jackknife += MOVED * max(0.0, _spread(alone - regained) - jackknife)
    variance = jackknife * (1 + 2 / count) / (1 + ratio)
    return Estimate(holders.share, math.sqrt(max(variance, 2.0)) / m)


def _spread(values: Tensor) -> float:
    return (values - values.mean()).square().sum().item()
