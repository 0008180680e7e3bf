"""Whether a point has lost more of the teacher's diversity, or of its obedience to what is asked, than of its quality."""

import math
from dataclasses import dataclass

from diffcore.metrics.floor import Floor
from diffcore.metrics.point import Point

DIVERSITY, OBEDIENCE = "diversity", "obedience"

MEASURES = {
    "recall": DIVERSITY,
    "coverage": DIVERSITY,
    "accuracy": OBEDIENCE,
    "caption_accuracy": OBEDIENCE,
    "caption_accuracy_unseen": OBEDIENCE,
}
"""Metrics of how many kinds of real image the samples have, and of how often they are what was asked for, where 1 is all and
always; what each is a measure of."""

CONSEQUENCE = {
    DIVERSITY: "it makes fewer kinds of image than the teacher",
    OBEDIENCE: "its images are what was asked for less often than the teacher's",
}
"""What a loss of each means."""

NEAR = 0.5
"""Of a point that keeps less of the quality the distance says enough."""


@dataclass(frozen=True)
class Loss:
    """What a point keeps of a reference's `measure`, and of its nearness to the real images; shares of 1. Of classes what is
    above guessing counts, and `kept` is negative where a point is below; of captions, which are many, all counts."""

    point: Point
    reference: Point
    measure: str
    kept: float
    quality: float

    @property
    def lost(self) -> str:
        """What the point has lost more of than of its quality: DIVERSITY or OBEDIENCE."""
        return MEASURES[self.measure]

    def __str__(self) -> str:
        own, whole = (each.metrics[self.measure].plus_minus() for each in (self.point, self.reference))
        return (
            f"{self.point.name} keeps {self.kept:.2f} of the {self.lost} of {self.reference.name} ({self.measure} {own} of "
            f"{whole}) where its fd keeps {self.quality:.2f}"
        )


def loss(point: Point, reference: Point, floor: Floor, chance: float = 0.0) -> Loss | None:
    """By the measure of which the point keeps least; None unless that is less than it keeps of the quality, which is the
    reference's fd over its own, and less than all by two standard errors of the difference. None of a point that keeps less
    than NEAR of the quality.

    chance: the accuracy of guessing. No fd counts as less than the floor's: nothing is nearer to the real images but by luck.
    """
    own, whole = (max(each.fd, floor.fd) for each in (point, reference))
    quality = whole / own if own > whole else 1.0
    if quality < NEAR:
        return None
    guessing = {name: chance if name == "accuracy" else 0.0 for name in MEASURES}
    losses = [
        Loss(point, reference, name, _kept(point, reference, name, guessing[name]), quality)
        for name in MEASURES
        if _is_there(point, reference, name, guessing[name])
    ]
    counting = [each for each in losses if each.kept < quality and _is_significant(each)]
    return min(counting, key=lambda each: each.kept, default=None)


def _is_there(point: Point, reference: Point, measure: str, guessing: float) -> bool:
    """Whether both have the measure, and there is something to lose of it."""
    return measure in point.metrics and measure in reference.metrics and reference.metrics[measure].value > guessing


def _kept(point: Point, reference: Point, measure: str, guessing: float) -> float:
    own, whole = (each.metrics[measure].value - guessing for each in (point, reference))
    return own / whole


def _is_significant(loss: Loss) -> bool:
    own, whole = loss.point.metrics[loss.measure], loss.reference.metrics[loss.measure]
    return whole.value - own.value > 2 * math.hypot(own.se, whole.se)
