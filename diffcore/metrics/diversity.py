"""Whether a point has lost more of the teacher's diversity than of its quality."""

import math
from dataclasses import dataclass

from diffcore.metrics.floor import Floor
from diffcore.metrics.point import Point

MEASURES = ("recall", "coverage")
"""Metrics of how many kinds of real image the samples have; 1 is all of them."""


NEAR = 0.5
"""Of a point that keeps less of the quality the distance says enough."""


@dataclass(frozen=True)
class Loss:
    """What a point keeps of a reference's `measure`, and of its nearness to the real images; shares of 1."""

    point: Point
    reference: Point
    measure: str
    kept: float
    quality: float

    def __str__(self) -> str:
        own, whole = (each.metrics[self.measure].plus_minus() for each in (self.point, self.reference))
        return (
            f"{self.point.name} keeps {self.kept:.2f} of the diversity of {self.reference.name} ({self.measure} {own} of "
            f"{whole}) where its fd keeps {self.quality:.2f}"
        )


def loss(point: Point, reference: Point, floor: Floor) -> Loss | None:
    """By the measure of which the point keeps least; None unless that is less than it keeps of the quality, which is the
    reference's fd over its own, and less than all by two standard errors of the difference. None of a point that keeps less
    than NEAR of the quality.

    No fd counts as less than the floor's: nothing is nearer to the real images but by luck.
    """
    own, whole = (max(each.fd, floor.fd) for each in (point, reference))
    quality = whole / own if own > whole else 1.0
    if quality < NEAR:
        return None
    losses = [Loss(point, reference, name, _kept(point, reference, name), quality) for name in _both(point, reference)]
    counting = [each for each in losses if each.kept < quality and _is_significant(each)]
    return min(counting, key=lambda each: each.kept, default=None)


def _both(point: Point, reference: Point) -> list[str]:
    """The measures that both have, and of which there is something to lose."""
    return [
        name
        for name in MEASURES
        if name in point.metrics and name in reference.metrics and reference.metrics[name].value
    ]


def _kept(point: Point, reference: Point, measure: str) -> float:
    return point.metrics[measure].value / reference.metrics[measure].value


def _is_significant(loss: Loss) -> bool:
    own, whole = loss.point.metrics[loss.measure], loss.reference.metrics[loss.measure]
    return whole.value - own.value > 2 * math.hypot(own.se, whole.se)
