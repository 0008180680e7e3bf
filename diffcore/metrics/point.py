"""One sampling, and what it was found to be worth."""

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from diffcore.metrics import order
from diffcore.metrics.estimate import Estimate, Scored, columns

GIVEN = "given"
"""The kind of weights of a network that was trained elsewhere: what became of them there is not known."""


@dataclass(frozen=True)
class Point(Scored):
    """One sampling, and what it was found to be worth.

    curve: what the curve it lies on is called. best: whether it is the best of what was tried for that curve with as many
    steps (several grids, a sweep of scales); only these are shown. recipe: the sampler with its options and what is done to
    the network, as JSON (diffcore.sampling.recipe). nfe: network calls for each sample, as they were counted; parts of a
    network count as their share. metrics: by their names in `order.COLUMNS`, those that were measured. n, seed: how many
    samples, from which noise. weights: which of the checkpoint's. features: digest of the feature network. times: the
    trajectory's. precision: in which the network was called, float32 for all points of before this field; check: what
    bfloat16 was seen to change, see diffcore.metrics.drawing. judges: the networks trained elsewhere that measured it too,
    with the digests of their weights and their preprocessing.
    """

    name: str
    curve: str
    best: bool
    method: str
    checkpoint: str
    sampler: str
    trajectory: str
    recipe: str
    nfe: float | int
    metrics: dict[str, Estimate]
    ms_per_image: float
    n: int
    seed: int
    weights: str
    features: str
    checkpoint_digest: str
    times: tuple[float, ...]
    precision: str = "float32"
    check: str = ""
    judges: str = ""

    def __post_init__(self):
        for key, value in self.row().items():
            if isinstance(value, int | float) and not math.isfinite(value):
                raise ValueError(f"point {self.name}: {key} is {value}; a number that is not finite cannot be compared")
        if "fd" not in self.metrics:
            raise ValueError(f"point {self.name} has no fd, by which points are compared")
        if self.nfe <= 0:
            raise ValueError(f"point {self.name}: nfe must be positive, got {self.nfe}")

    def dominates(self, other: "Point") -> bool:
        """No worse in network calls and in fd, and better in one of them."""
        no_worse = self.nfe <= other.nfe and self.fd <= other.fd
        return no_worse and (self.nfe < other.nfe or self.fd < other.fd)

    def row(self) -> dict[str, Any]:
        """The fields as columns; in the place of `metrics` NAME and NAME_se of each, None where it was not measured."""
        fields = list(vars(self).items())
        place = list(vars(self)).index("metrics")
        unmeasured = dict.fromkeys(key for name in order.COLUMNS for key in (name, f"{name}_se"))
        return {**dict(fields[:place]), **unmeasured, **columns(self.metrics), **dict(fields[place + 1 :])}

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON."""
        return {
            **vars(self),
            "metrics": {name: vars(each) for name, each in self.metrics.items()},
            "times": [*self.times],
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Point":
        """The inverse of `to_json`; a ValueError for a metric that is no column of `order`."""
        judges = value.get("judges", "")
        if unknown := sorted(name for name in value["metrics"] if not order.is_column(name, judges)):
            raise ValueError(f"metric {unknown[0]!r} is unknown")
        metrics = {name: Estimate(**each) for name, each in value["metrics"].items()}
        return cls(**{**value, "metrics": metrics, "times": tuple(value["times"])})


def by_calls(points: Iterable[Point]) -> list[Point]:
    """By rising network calls, then fd, then name."""
    return sorted(points, key=lambda p: (p.nfe, p.fd, p.name))


def best_of(points: Iterable[Point]) -> Point:
    """The one with the lowest fd; of equal ones the cheapest, then the first by name."""
    return min(points, key=lambda p: (p.fd, p.nfe, p.name))


def with_best(points: Iterable[Point]) -> list[Point]:
    """The points with `best` set: of those of one curve and checkpoint that cost equally many network calls, the one with
    the lowest fd. Tries of different cost are points of their own.

    Choosing by the number that is then reported flatters it: of five equal tries whose errors are independent by 1.16 of
    them in the mean, of tries whose errors have correlation r (they share their noise) by sqrt(1 - r) as much.
    """
    points = list(points)
    tries: dict[tuple[str, str, float], list[Point]] = {}
    for point in points:
        tries.setdefault((point.checkpoint, point.curve, round(point.nfe, 6)), []).append(point)
    best = {best_of(group).name for group in tries.values()}
    return [dataclasses.replace(point, best=point.name in best) for point in points]
