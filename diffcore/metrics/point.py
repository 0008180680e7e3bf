"""One sampling, and what it was found to be worth."""

import dataclasses
import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from diffcore.metrics import order
from diffcore.metrics.estimate import Estimate, Scored, columns

GIVEN = "given"
"""The kind of weights of a network that was trained elsewhere: what became of them there is not known."""

HONEST = ("halves", "halves_se", "crossfit", "trainings")
"""Fields with columns of their own names, after all others."""


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
    with the digests of their weights and their preprocessing. halves: the distance of the even and of the odd samples alone,
    each larger than `fd` by the bias of fewer samples; halves_se: the standard error of either; both None of points of before
    these fields. crossfit: of the best of several tries its distance on the noise that did not choose it, see
    diffcore.metrics.crossfit. trainings: the distance of each training of its line, the first is `fd`; None of a line that
    was trained once.
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
    halves: tuple[float, float] | None = None
    halves_se: float | None = None
    crossfit: Estimate | None = None
    trainings: tuple[float, ...] | None = None

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
        fields = [(key, value) for key, value in vars(self).items() if key not in HONEST]
        place = list(vars(self)).index("metrics")
        unmeasured = dict.fromkeys(key for name in order.COLUMNS for key in (name, f"{name}_se"))
        whole = {**dict(fields[:place]), **unmeasured, **columns(self.metrics), **dict(fields[place + 1 :])}
        return {**whole, **self._halved(), **self._trained()}

    def _halved(self) -> dict[str, float | None]:
        """The columns of the two halves of the noise, and of what was chosen on one and scored on the other."""
        crossfit = (self.crossfit.value, self.crossfit.se) if self.crossfit else (None, None)
        names = "fd_even", "fd_odd", "fd_half_se", "fd_crossfit", "fd_crossfit_se"
        return dict(zip(names, (*(self.halves or (None, None)), self.halves_se, *crossfit)))

    def _trained(self) -> dict[str, float | int | None]:
        """The columns of several trainings: the mean of fd, its standard deviation, and how many they are."""
        spread = self.spread
        numbers = (spread.value, spread.se, len(self.trainings)) if spread else (None, None, None)
        return dict(zip(("fd_trainings", "fd_trainings_sd", "trainings"), numbers))

    @property
    def spread(self) -> Estimate | None:
        """The mean of fd over trainings, and the standard deviation of one; None of a single one."""
        if self.trainings is None:
            return None
        return Estimate(statistics.fmean(self.trainings), statistics.stdev(self.trainings))

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON."""
        return {
            **vars(self),
            "metrics": {name: vars(each) for name, each in self.metrics.items()},
            "times": [*self.times],
            "halves": self.halves and [*self.halves],
            "crossfit": self.crossfit and vars(self.crossfit),
            "trainings": self.trainings and [*self.trainings],
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Point":
        """The inverse of `to_json`; a ValueError for a metric that is no column of `order`."""
        judges = value.get("judges", "")
        if unknown := sorted(name for name in value["metrics"] if not order.is_column(name, judges)):
            raise ValueError(f"metric {unknown[0]!r} is unknown")
        metrics = {name: Estimate(**each) for name, each in value["metrics"].items()}
        crossfit = value.get("crossfit")
        optional = {key: tuple(value[key]) if value.get(key) else None for key in ("halves", "trainings")}
        optional["crossfit"] = crossfit and Estimate(**crossfit)
        return cls(**{**value, "metrics": metrics, "times": tuple(value["times"]), **optional})


def by_calls(points: Iterable[Point]) -> list[Point]:
    """By rising network calls, then fd, then name."""
    return sorted(points, key=lambda p: (p.nfe, p.fd, p.name))


def best_of(points: Iterable[Point]) -> Point:
    """The one with the lowest fd; of equal ones the cheapest, then the first by name."""
    return min(points, key=lambda p: (p.fd, p.nfe, p.name))


def tries(points: Iterable[Point]) -> list[list[Point]]:
    """For each point all of its curve and checkpoint that cost equally many network calls, itself among them."""
    points = list(points)
    groups: dict[tuple[str, str, float | int], list[Point]] = {}
    for point in points:
        groups.setdefault(_try(point), []).append(point)
    return [groups[_try(point)] for point in points]


def _try(point: Point) -> tuple[str, str, float | int]:
    return (point.checkpoint, point.curve, round(point.nfe, 6))


def with_best(points: Iterable[Point]) -> list[Point]:
    """The points with `best` set: of those of one curve and checkpoint that cost equally many network calls, the one with
    the lowest fd. Tries of different cost are points of their own.

    Choosing by the number that is then reported flatters it: of five equal tries whose errors are independent by 1.16 of
    them in the mean, of tries whose errors have correlation r (they share their noise) by sqrt(1 - r) as much. What is
    honest is `diffcore.metrics.crossfit`.
    """
    points = list(points)
    best = {best_of(group).name for group in tries(points)}
    return [dataclasses.replace(point, best=point.name in best) for point in points]
