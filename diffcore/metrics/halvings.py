"""The floor of each distance, from real images alone."""

import math
from collections.abc import Iterable

import torch

from diffcore.core.rng import generator
from diffcore.metrics.bootstrap import resamples
from diffcore.metrics.estimate import Estimate
from diffcore.metrics.floor import Floor
from diffcore.metrics.measures import METRICS
from diffcore.metrics.metric import Distance
from diffcore.metrics.reference import Reference, Seen

SPLITS = 64
"""Halvings of the real images that the floor is the mean of."""


def floor(reference: Reference, count: int, seed: int, held_out: Seen | None = None) -> Floor:
    """The floor under a table of n = `count`; seed: of the halvings and of the bootstrap."""
    distances = {name: each for name, each in METRICS.items() if isinstance(each, Distance)}
    halves, at = _of_halves(distances, reference, count, seed), (count, reference.count)
    if held_out is None:
        compared = reference.count // 2, reference.count - reference.count // 2
        return Floor(halves, at, compared, "halves")
    repeats = resamples(len(held_out), seed)
    share = (1 / count - 1 / len(held_out)) / (1 / count + 1 / reference.count)  # of the floor, for other counts
    metrics = {
        name: _brought(each.compare(held_out, reference, repeats), halves[name], share if each.biased else 0.0)
        for name, each in distances.items()
    }
    return Floor(metrics, at, (len(held_out), reference.count), "held-out")


def _of_halves(distances: dict[str, Distance], reference: Reference, count: int, seed: int) -> dict[str, Estimate]:
    """The mean over SPLITS halvings and its standard error."""
    halvings = torch.tensor(
        [_halved(distances.values(), reference, count, generator(seed, "floor", k)) for k in range(SPLITS)]
    )
    # a column at a time: sums over all of them at once round by how many there are
    parts = ((column.mean().item(), (column.std() / SPLITS**0.5).item()) for column in halvings.T)
    return {name: Estimate(*each) for name, each in zip(distances, parts)}


def _halved(distances: Iterable[Distance], reference: Reference, count: int, rng: torch.Generator) -> list[float]:
    """Each distance between two random halves of the real images, biased ones as they were at the counts of a table."""
    halves = reference.halved(rng)
    share = (1 / count + 1 / reference.count) / (1 / halves.first.count + 1 / halves.second.count)
    return [share * each.between(halves) if each.biased else each.between(halves) for each in distances]


def _brought(score: Estimate, halves: Estimate, share: float) -> Estimate:
    """A score with a share of the halves' floor added; their errors are independent."""
    return Estimate(score.value + share * halves.value, math.hypot(score.se, share * halves.se))
