"""What a judge takes, tried before anything is measured: of looking at images, and of working out distances.

Distances are worked out of random features, as many as a point has and as there are real images: they take the same whatever
the features are.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from diffcore.core import rng
from diffcore.metrics import frechet_wide
from diffcore.metrics.judge import BATCH, ROWS, Court, Judge
from diffcore.metrics.statistics import Statistics

Clock = Callable[[], float]

ENOUGH_SECONDS = 1.0
"""Of looking at images."""

MOST_SAMPLES = 2000
"""Samples on which distances are timed; of more they are taken to be in proportion."""

DOT = 1, 1, 1
"""The shape of an image that nobody looks at."""

NUMBER = 8
"""Bytes of a feature."""


@dataclass(frozen=True)
class Trial:
    """image: seconds of looking at one. point: of all else that a point takes. once: of what is worked out of the real images
    once they were looked at. kept: bytes of what is kept of them. more: bytes of the features of those samples that were not
    tried. court: with random features, which takes the memory of a real one."""

    image: float
    point: float
    once: float
    kept: int
    more: int
    court: Court


class Wide(nn.Module):
    """Features of images, [b, dimension], without a look at them: random numbers."""

    def __init__(self, dimension: int):
        super().__init__()
        self.dimension, self.dice = dimension, rng.generator("trial", dimension)
        self.register_buffer("none", torch.zeros(0))

    def forward(self, images: Tensor) -> Tensor:
        return torch.randn(len(images), self.dimension, generator=self.dice)


def trial(
    judge: Judge, shape: tuple[int, int, int], samples: int, real: int, statistics: Statistics | None, clock: Clock
) -> Trial:
    """Of points of so many samples against so many real images, [c, h, w] each, or against those that a file holds."""
    image, dimension = looking(judge, shape, clock)
    n, instead = min(samples, MOST_SAMPLES), replace(judge, network=Wide(dimension))
    if statistics is None:
        rows = instead.features(torch.zeros(min(real, ROWS), *DOT))
        court = Court(instead, frechet_wide.moments(rows), rows)
    else:
        court = replace(Court.against_file(judge, statistics, shape), judge=instead)
    images, seconds = torch.zeros(n, *DOT), []
    for _ in range(2):  # the first works out what the court keeps
        began = clock()
        court.measure(images)
        seconds.append(clock() - began)
    kept = NUMBER * dimension * (min(real, ROWS) + dimension + 1)
    more = 2 * NUMBER * dimension * (samples - n)  # in batches, and then together
    once = max(0.0, seconds[0] - seconds[1])
    return Trial(image, seconds[1] * samples / n, once, kept, more, court)


def looking(judge: Judge, shape: tuple[int, int, int], clock: Clock) -> tuple[float, int]:
    """Seconds of looking at one image, and how many features it has."""
    images = rng.draw(rng.noises(shape, 0, range(1)).expand(BATCH, *shape), "trial").noise.clamp(-1, 1)
    dimension = judge.features(images).shape[1]  # the first look does what is done only once
    began, rounds = clock(), 0
    while rounds < 1 or clock() - began < ENOUGH_SECONDS:
        judge.features(images)
        rounds += 1
    return (clock() - began) / (rounds * BATCH), dimension
