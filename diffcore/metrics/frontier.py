"""Quality against network calls: every way to sample as a point, which of them count, and which one to ship."""

import csv
import dataclasses
import io
import math
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from diffcore.core.errors import Mistake
from diffcore.metrics.features import Skill
from diffcore.metrics.quality import RESAMPLES, Floor

SCHEMA = 3
WIDTH = 110
"""Columns of the printed table."""

FAR = 3.0
"""Times the floor beyond which a distance is far from it."""

SHARED = ("n", "seed", "features", "weights")
"""What all points of a frontier have in common; numbers that differ in one of these are not comparable."""

GIVEN = "given"
"""The kind of weights of a network that was trained elsewhere: what became of them there is not known."""


@dataclass(frozen=True)
class Point:
    """One way to sample, and what it was found to be worth.

    way: what the curve it lies on is called. best: whether it is the best of what was tried for that curve with as many steps
    (several grids, a sweep of scales); only these are shown. recipe: the sampler with its options and what is done to the
    network, as JSON (diffcore.sampling.recipe). nfe: network calls for each sample, as they were counted; parts of a network
    count as their share. fd, kid, fd_pixels: see diffcore/metrics/quality.py, `*_se` their standard errors.
    rmse_teacher: against the teacher's samples from the same noise, None where there is nothing to compare. n, seed:
    how many samples, from which noise. accuracy: the share of samples in which the feature network sees the class
    asked for, None without classes. bits: per dimension of real images, of samplers that have a likelihood. weights: which
    of the checkpoint's. features: digest of the feature network. times: the trajectory's.
    """

    name: str
    way: str
    best: bool
    method: str
    checkpoint: str
    sampler: str
    trajectory: str
    recipe: str
    nfe: float | int
    fd: float
    fd_se: float
    kid: float
    kid_se: float
    fd_pixels: float
    fd_pixels_se: float
    rmse_teacher: float | None
    rmse_teacher_se: float | None
    accuracy: float | None
    accuracy_se: float | None
    bits: float | None
    bits_se: float | None
    ms_per_image: float
    n: int
    seed: int
    weights: str
    features: str
    checkpoint_digest: str
    times: tuple[float, ...]

    def __post_init__(self):
        numbers = {key: value for key, value in vars(self).items() if isinstance(value, int | float)}
        for key, value in numbers.items():
            if not math.isfinite(value):
                raise ValueError(f"point {self.name}: {key} is {value}; a number that is not finite cannot be compared")
        if self.nfe <= 0:
            raise ValueError(f"point {self.name}: nfe must be positive, got {self.nfe}")

    def dominates(self, other: "Point") -> bool:
        """No worse in network calls and in fd, and better in one of them."""
        no_worse = self.nfe <= other.nfe and self.fd <= other.fd
        return no_worse and (self.nfe < other.nfe or self.fd < other.fd)


def with_best(points: Iterable[Point]) -> list[Point]:
    """The points with `best` set: of those of one curve and checkpoint that cost equally many network calls, the one with
    the lowest fd. Tries of different cost are points of their own.

    Choosing by the number that is then reported flatters it: of five equal tries whose errors are independent by 1.16 of
    them in the mean, of tries whose errors have correlation r (they share their noise) by sqrt(1 - r) as much.
    """
    points = list(points)
    tries: dict[tuple[str, str, float], list[Point]] = {}
    for point in points:
        tries.setdefault((point.checkpoint, point.way, round(point.nfe, 6)), []).append(point)
    best = {min(group, key=lambda p: (p.fd, p.nfe, p.name)).name for group in tries.values()}
    return [dataclasses.replace(point, best=point.name in best) for point in points]


@dataclass(frozen=True)
class Recommendation:
    """The point to ship, a sentence with the numbers that speak for it, and sentences on what speaks against any."""

    point: Point
    reason: str
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Frontier:
    """Points measured alike: a Mistake if they differ in n, seed, feature network or kind of weights, but for `given` ones.

    floor: what a perfect sampler is to expect. data: digest of the real images. judge: what the feature network can tell.
    """

    points: tuple[Point, ...]
    floor: Floor
    data: str
    judge: Skill

    def __post_init__(self):
        if not self.points:
            raise Mistake("a frontier needs at least one point; evaluate something first")
        names = [point.name for point in self.points]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise Mistake(f"two points are called {twice[0]!r}; give each way to sample a name of its own")
        for key in SHARED:
            _check_shared([p for p in self.points if key != "weights" or p.weights != GIVEN], key)

    def non_dominated(self) -> tuple[Point, ...]:
        """The points that no other dominates, by rising network calls. Of equal ones all stay."""
        return tuple(p for p in self._sorted() if not any(q.dominates(p) for q in self.points))

    def recommend(self, tolerance: float, reference: Point | None = None) -> Recommendation:
        """The fewest network calls whose fd is at most `tolerance` times `reference`'s, or the floor if that is more.

        Nothing is nearer to the real images than a perfect sampler but by luck, and the best of many ways is a lucky one.
        Without a reference it is the teacher's best fd, over all ways to sample the teacher; those may be recommended too.
        Among equally many calls the lowest fd wins. If no point qualifies it is the one with the best fd, and the reason
        says so.
        """
        if not tolerance > 0:
            raise ValueError(f"tolerance must be positive, got {tolerance}")
        whose = "the teacher's best" if reference is None else "the reference"
        bar = self._bar(tolerance, reference or self._best_teacher(), whose)
        chosen = next((p for p in self._sorted() if p.fd <= bar.fd), None)
        if chosen is None:
            chosen = min(self.points, key=lambda p: (p.fd, p.nfe, p.name))
            reason = f"{_told(chosen)}: the best fd there is, for no point is within {bar.words}."
        else:
            reason = f"{_told(chosen)}: the fewest network calls within {bar.words}{bar.doubt(chosen)}."
        return Recommendation(chosen, reason, tuple(self._warnings()))

    def _bar(self, tolerance: float, reference: Point, whose: str) -> "_Bar":
        floor, told = self.floor, f"{whose} ({_told(reference)})"
        if reference.fd >= floor.fd:
            words = f"{tolerance:g} times {told}, which allows fd {tolerance * reference.fd:.3g}"
            return _Bar(tolerance * reference.fd, tolerance * reference.fd_se, words, reference)
        words = (
            f"{tolerance:g} times the floor of fd {plus_minus(floor.fd, floor.fd_se)}, which {told} is below by chance "
            f"alone; that allows fd {tolerance * floor.fd:.3g}"
        )
        return _Bar(tolerance * floor.fd, tolerance * floor.fd_se, words, reference)

    def _warnings(self) -> Iterator[str]:
        best = min(self.points, key=lambda p: (p.fd, p.nfe, p.name))
        teachers = [point for point in self.points if point.method == "teacher"]
        if self._is_far(best):
            yield f"no way to sample comes near the real images: the best, {_told(best)}, is {self._times(best)}"
        if teachers and self._is_far(teacher := self._best_teacher()):
            yield (
                f"the teacher is poor, which no student learns from it to mend: its best, {_told(teacher)}, is "
                f"{self._times(teacher)}; train it longer, or a larger one"
            )
        if self.judge.warning:
            yield self.judge.warning

    def _is_far(self, point: Point) -> bool:
        """More than FAR times the floor, and not by chance alone: by two standard errors of the difference."""
        above, error = point.fd - self.floor.fd, math.hypot(point.fd_se, self.floor.fd_se)
        return point.fd > FAR * self.floor.fd and above > 2 * error

    def _times(self, point: Point) -> str:
        return f"{point.fd / self.floor.fd:.3g} times the floor of {plus_minus(self.floor.fd, self.floor.fd_se)}"

    def table(self) -> str:
        """For a terminal, at most WIDTH columns: rows by rising network calls and then fd, `*` on the frontier.

        Of what was tried for one curve, the best alone; the rest are in the csv.
        """
        front, shown = self.non_dominated(), [point for point in self._sorted() if point.best]
        columns = [_HEADINGS.index(key) for key in _HEADINGS if key not in _RARE or _any(shown, key)]
        rows = [[row[k] for k in columns] for row in (_HEADINGS, *(_row(point, point in front) for point in shown))]
        return "\n".join([*_aligned(rows), "", *self._notes()]) + "\n"

    def to_csv(self) -> str:
        """A row for each point with all its fields, in the order given; `frontier` is 1 for those not dominated."""
        front = self.non_dominated()
        fields = [field.name for field in dataclasses.fields(Point)]
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow([*fields, "frontier"])
        for point in self.points:
            row = {**vars(point), "times": " ".join(map(str, point.times))}
            writer.writerow([*(row[field] for field in fields), int(point in front)])
        return out.getvalue()

    def to_json(self, recommended: Recommendation | None = None) -> dict[str, Any]:
        """What artifacts/frontier.json holds: schema, about, floor, judge, points, recommended {name, reason, warnings} or
        None."""
        shared = {key: getattr(self.points[0], key) for key in SHARED} | {"weights": self._weights()}
        return {
            "schema": SCHEMA,
            "about": {**shared, "data": self.data, "resamples": RESAMPLES},
            "floor": {**vars(self.floor), "n": list(self.floor.n), "compared": list(self.floor.compared)},
            "judge": vars(self.judge),
            "points": [{**vars(point), "times": list(point.times)} for point in self.points],
            "recommended": recommended and _recommended(recommended),
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Frontier":
        """The inverse of `to_json`, exact to the last bit; a Mistake for anything else."""
        try:
            if value["schema"] != SCHEMA:
                raise ValueError(f"schema {value['schema']}, this version reads {SCHEMA}")
            points = tuple(Point(**{**row, "times": tuple(row["times"])}) for row in value["points"])
            counts = {key: tuple(value["floor"][key]) for key in ("n", "compared")}
            return cls(points, Floor(**value["floor"] | counts), value["about"]["data"], Skill(**value["judge"]))
        except (KeyError, TypeError, ValueError) as error:
            raise Mistake(f"not a frontier of this version ({error}); run the stage `frontier` again") from error

    def _sorted(self) -> list[Point]:
        return sorted(self.points, key=lambda p: (p.nfe, p.fd, p.name))

    def _best_teacher(self) -> Point:
        teachers = [point for point in self.points if point.method == "teacher"]
        if not teachers:
            raise Mistake(
                "no point samples the teacher, so nothing says what quality is enough; evaluate the teacher too"
            )
        return min(teachers, key=lambda p: (p.fd, p.nfe, p.name))

    def _weights(self) -> str:
        return " and ".join(sorted({point.weights for point in self.points}))

    def _notes(self) -> list[str]:
        first, floor = self.points[0], self.floor
        left = sum(not point.best for point in self.points)
        tried = f"; {left} more points, tried and not the best of their kind, are in frontier.csv" if left else ""
        notes = [
            f"* on the frontier: no other point has as low an fd with as few network calls{tried}",
            f"N = {first.n} samples each, noise seed {first.seed}, {self._weights()} weights, feature network "
            f"{first.features[:12]}; +- is one standard error over the samples drawn, not over trainings",
            f"floor, what a perfect sampler is to expect of {floor.n[0]} samples against {floor.n[1]} real images: "
            f"fd {plus_minus(floor.fd, floor.fd_se)}, kid {plus_minus(floor.kid, floor.kid_se)}, "
            f"fd_pixels {plus_minus(floor.fd_pixels, floor.fd_pixels_se)}; from {_compared(floor)}",
        ]
        return [line for note in notes for line in textwrap.wrap(note, WIDTH, break_on_hyphens=False)]


@dataclass(frozen=True)
class _Bar:
    """The largest fd that is good enough, its standard error, and where it comes from."""

    fd: float
    fd_se: float
    words: str
    reference: Point

    def doubt(self, chosen: Point) -> str:
        """A clause for a margin that chance could have made; the two errors are taken as independent."""
        margin, error = self.fd - chosen.fd, math.hypot(chosen.fd_se, self.fd_se)
        if chosen == self.reference or margin >= 2 * error:
            return ""
        return f"; a close call, the margin of {margin:.2g} is less than two of its standard errors of {error:.2g}"


def _recommended(found: Recommendation) -> dict[str, Any]:
    return {"name": found.point.name, "reason": found.reason, "warnings": list(found.warnings)}


def _compared(floor: Floor) -> str:
    if floor.real == "held-out":
        return f"{floor.compared[0]} held-out images, which bits and Gamma are of too"
    return "halves of the images trained on, which bits and Gamma are of too: nothing is held out"


def plus_minus(value: float, se: float) -> str:
    """`2.29+-0.11`: both to the second digit of the standard error, at most 6 decimals."""
    decimals = min(max(1 - math.floor(math.log10(se)), 0), 6) if se > 0 else 4
    return f"{value:.{decimals}f}+-{se:.{decimals}f}"


_HEADINGS = ["", "name", "calls", "fd", "kid", "rmse_teacher", "accuracy", "bits", "ms/image"]
_RARE = ("accuracy", "bits")
"""Columns that are left out where no point has them."""
_NAME = _HEADINGS.index("name")


def _row(point: Point, on_frontier: bool) -> list[str]:
    return [
        "*" if on_frontier else "",
        point.name,
        f"{point.nfe:.4g}",
        plus_minus(point.fd, point.fd_se),
        plus_minus(point.kid, point.kid_se),
        *(_maybe(point, key) for key in ("rmse_teacher", *_RARE)),
        f"{point.ms_per_image:.3g}",
    ]


def _maybe(point: Point, key: str) -> str:
    value = getattr(point, key)
    return "-" if value is None else plus_minus(value, getattr(point, f"{key}_se") or 0.0)


def _any(points: Iterable[Point], key: str) -> bool:
    return any(getattr(point, key) is not None for point in points)


def _aligned(rows: list[list[str]]) -> list[str]:
    """Columns two blanks apart, names to the left and numbers to the right; a name that does not fit loses its middle."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows)]
    widths[_NAME] = min(widths[_NAME], WIDTH - 2 * (len(widths) - 1) - sum(widths) + widths[_NAME])
    return ["  ".join(_cell(row, k, width) for k, width in enumerate(widths)).rstrip() for row in rows]


def _cell(row: list[str], column: int, width: int) -> str:
    return _shortened(row[column], width).ljust(width) if column == _NAME else row[column].rjust(width)


def _shortened(name: str, width: int) -> str:
    if len(name) <= width:
        return name
    head = (width - 2) // 2
    return f"{name[:head]}..{name[len(name) - (width - 2 - head) :]}"


def _told(point: Point) -> str:
    calls = "1 network call" if point.nfe == 1 else f"{point.nfe:.4g} network calls"
    return f"{point.name}, {calls}, fd {plus_minus(point.fd, point.fd_se)}"


def _check_shared(points: list[Point], key: str) -> None:
    first, *others = points or [None]
    for other in others:
        if getattr(other, key) != getattr(first, key):
            raise Mistake(
                f"{first.name} and {other.name} differ in {key} ({getattr(first, key)} and {getattr(other, key)}) "
                "and cannot be compared; evaluate them alike"
            )
