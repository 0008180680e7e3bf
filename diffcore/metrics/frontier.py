"""Quality against network calls: every sampling as a point, which of them count, and which one to ship."""

import csv
import io
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffcore.core import disk
from diffcore.core.errors import UserError
from diffcore.metrics import diversity, recommendation, table
from diffcore.metrics.estimate import RESAMPLES, Estimate
from diffcore.metrics.floor import Floor
from diffcore.metrics.point import GIVEN, Point, best_of, by_calls
from diffcore.metrics.recommendation import Recommendation
from diffcore.metrics.skill import Skill

SCHEMA = 5

SHARED = ("n", "seed", "features", "weights", "judges")
"""What all points of a frontier have in common; numbers that differ in one of these are not comparable."""


@dataclass(frozen=True)
class Frontier:
    """Points measured alike: a UserError if they differ in n, seed, feature network or kind of weights, but for `given` ones.

    floor: what a perfect sampler is to expect. data: digest of the real images. judge: what the feature network can tell.
    recommended: one of the points, with the reason; None before one is chosen. drawn: who drew what stands for real images,
    empty where they are real.
    """

    points: tuple[Point, ...]
    floor: Floor
    data: str
    judge: Skill
    recommended: Recommendation | None = None
    drawn: str = ""

    def __post_init__(self):
        if not self.points:
            raise UserError("a frontier needs at least one point; evaluate something first")
        names = [point.name for point in self.points]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise UserError(f"two points are called {twice[0]!r}; give each sampling a name of its own")
        for key in SHARED:
            _check_shared([p for p in self.points if key != "weights" or p.weights != GIVEN], key)

    @property
    def about(self) -> dict[str, Any]:
        """What all points share, the digest of the real images, and how many resamples the standard errors are over."""
        shared = {key: getattr(self.points[0], key) for key in SHARED} | {"weights": self._weights()}
        if not shared["judges"]:
            del shared["judges"]
        drawn = {"drawn": self.drawn} if self.drawn else {}
        return {**shared, "data": self.data, **drawn, "resamples": RESAMPLES}

    def non_dominated(self) -> tuple[Point, ...]:
        """The points that no other dominates, by rising network calls. Of equal ones all stay."""
        return tuple(p for p in by_calls(self.points) if not any(q.dominates(p) for q in self.points))

    def recommend(self, tolerance: float, reference: Point | None = None) -> Recommendation:
        """The point to ship; see `recommendation.recommend`."""
        return recommendation.recommend(self.points, self.floor, self.judge, tolerance, reference)

    def table(self) -> str:
        """For a terminal, at most WIDTH columns: rows by rising network calls and then fd, `*` on the frontier.

        Of what was tried for one curve, the best alone; the rest are in the csv.
        """
        best = [point for point in by_calls(self.points) if point.best]
        losses = self.losses()
        return "\n".join([*table.lines(best, self.non_dominated(), losses), "", *self._notes()]) + "\n"

    def losses(self) -> dict[str, diversity.Loss]:
        """By the names of the points that have lost more of the teacher's diversity or obedience than of its quality: see
        `diversity`."""
        teachers = [point for point in self.points if point.method == "teacher"]
        reference = best_of(teachers) if teachers else None
        if reference is None:
            return {}
        each = {p.name: diversity.loss(p, reference, self.floor, self.judge.chance) for p in self.points}
        return {name: loss for name, loss in each.items() if loss}

    @property
    def losable(self) -> str:
        """What a point may lose and be marked for, in words; obedience only where classes or captions were asked for."""
        measured = {diversity.MEASURES[name] for p in self.points for name in p.metrics if name in diversity.MEASURES}
        return (
            f"{diversity.DIVERSITY} or {diversity.OBEDIENCE}"
            if diversity.OBEDIENCE in measured
            else diversity.DIVERSITY
        )

    def to_csv(self) -> str:
        """A row for each point with all its columns, in the order given; `frontier` is 1 for those not dominated."""
        front = self.non_dominated()
        rows = [
            {**point.row(), "times": " ".join(map(str, point.times)), "frontier": int(point in front)}
            for point in self.points
        ]
        out = io.StringIO()
        writer = csv.DictWriter(out, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return out.getvalue()

    def to_json(self) -> dict[str, Any]:
        """What artifacts/frontier.json holds: schema, about, floor, judge, points, recommended {name, reason, warnings,
        crossfit if there is one} or None."""
        return {
            "schema": SCHEMA,
            "about": self.about,
            "floor": self.floor.to_json(),
            "judge": vars(self.judge),
            "points": [point.to_json() for point in self.points],
            "recommended": self.recommended and _named(self.recommended),
        }

    @classmethod
    def from_json(cls, value: dict[str, Any], path: Path | str = "this", again: str = "measure again") -> "Frontier":
        """The inverse of `to_json`, exact to the last bit; for anything else a UserError that names `path` and ends with
        `again`."""
        try:
            if value["schema"] != SCHEMA:
                raise ValueError(f"schema {value['schema']}, this version reads {SCHEMA}")
            points = tuple(Point.from_json(row) for row in value["points"])
            floor, judge = Floor.from_json(value["floor"]), Skill(**value["judge"])
            chosen = value["recommended"] and _recommendation(value["recommended"], points)
            return cls(points, floor, value["about"]["data"], judge, chosen, value["about"].get("drawn", ""))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{path} is not a frontier of this version ({error}); {again}") from error

    @classmethod
    def read(cls, path: Path, again: str) -> "Frontier":
        """From a sealed file; a UserError that ends with `again` if it is missing, damaged or of another version."""
        return cls.from_json(disk.read_sealed(path, SCHEMA, again), path, again)

    def _lost(self) -> list[str]:
        marked = [loss for loss in self.losses().values() if loss.point.best]
        if not marked:
            return []
        worst = min(marked, key=lambda loss: loss.kept / loss.quality)
        return [f"~ has lost more of the teacher's {self.losable} than of its quality; most of all {worst}"]

    def _flattered(self) -> list[str]:
        """By how much the best of several tries are flattered, as the noise that did not choose them shows it."""
        chosen = [point for point in self.points if point.best and point.crossfit and point.crossfit.value != point.fd]
        if not chosen:
            return []
        worst = max(chosen, key=lambda point: point.crossfit.value - point.fd)
        mean = sum(point.crossfit.value - point.fd for point in chosen) / len(chosen)
        return [
            f"best of several tries: where another is within two errors ({len(chosen)} points), fd on the noise that did not "
            f"choose is fd {mean:+.2g} in the mean, most of all of {worst.name}, {worst.crossfit.plus_minus()} for "
            f"{worst.metrics['fd'].plus_minus()} (fd_crossfit in frontier.csv)"
        ]

    def _apart(self) -> list[str]:
        """Of which points the trainings lie further apart than the samples' error says."""
        wide = [
            point for point in by_calls(self.points) if point.best and point.spread and point.spread.se > point.fd_se
        ]
        if not wide:
            return []
        each = ", ".join(
            f"{point.name} {point.spread.plus_minus()} of {len(point.trainings)} where +- is {point.fd_se:.2g}"
            for point in wide
        )
        return [f"trainings lie further apart than the error over samples, mean and standard deviation of fd: {each}"]

    def _weights(self) -> str:
        return " and ".join(sorted({point.weights for point in self.points}))

    def _notes(self) -> list[str]:
        first, floor = self.points[0], self.floor
        left = sum(not point.best for point in self.points)
        tried = f"; {left} more points, tried and not the best of their kind, are in frontier.csv" if left else ""
        expected = ", ".join(f"{name} {each.plus_minus()}" for name, each in floor.metrics.items())
        notes = [
            f"* on the frontier: no other point has as low an fd with as few network calls{tried}",
            *self._lost(),
            *self._flattered(),
            *self._apart(),
            f"N = {first.n} samples each, noise seed {first.seed}, {self._weights()} weights, feature network "
            f"{first.features[:12]}; +- is one standard error over the samples drawn, not over trainings",
            f"floor, what a perfect sampler is to expect of {floor.n[0]} samples against {floor.n[1]} real images: "
            f"{expected}; from {_compared(floor)}",
        ]
        if self.drawn:
            notes.append(f"reference: {self.drawn}; these are what is called real images here")
        return [line for note in notes for line in textwrap.wrap(note, table.WIDTH, break_on_hyphens=False)]


def _named(chosen: Recommendation) -> dict[str, Any]:
    crossfit = {"crossfit": vars(chosen.crossfit)} if chosen.crossfit else {}
    return {"name": chosen.point.name, "reason": chosen.reason, "warnings": list(chosen.warnings), **crossfit}


def _recommendation(named: dict[str, Any], points: tuple[Point, ...]) -> Recommendation:
    """The inverse of `_named`."""
    point = next((point for point in points if point.name == named["name"]), None)
    if point is None:
        raise ValueError(f"it recommends {named['name']!r}, none of its points")
    crossfit = Estimate(**named["crossfit"]) if "crossfit" in named else None
    return Recommendation(point, named["reason"], tuple(named["warnings"]), crossfit)


def _compared(floor: Floor) -> str:
    captions = ", captions of those that are asked for" if "caption_accuracy" in floor.metrics else ""
    if floor.real == "held-out":
        return f"{floor.compared[0]} held-out images, which bits and Gamma are of too{captions}"
    return f"halves of the images trained on, which bits and Gamma are of too: nothing is held out{captions}"


def _check_shared(points: list[Point], key: str) -> None:
    first, *others = points or [None]
    for point in others:
        if getattr(point, key) != getattr(first, key):
            raise UserError(
                f"{first.name} and {point.name} differ in {key} ({getattr(first, key)} and {getattr(point, key)}) "
                "and cannot be compared; evaluate them alike"
            )
