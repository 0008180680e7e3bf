"""Which point to ship: the fewest network calls that are good enough, and what speaks against it."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from diffcore.core.errors import UserError
from diffcore.metrics import crossfit, diversity
from diffcore.metrics.estimate import Estimate
from diffcore.metrics.floor import Floor
from diffcore.metrics.point import Point, best_of, by_calls
from diffcore.metrics.skill import Skill

FAR = 3.0
"""Times the floor beyond which a distance is far from it."""


@dataclass(frozen=True)
class Recommendation:
    """The point to ship, a sentence with the numbers that speak for it, and sentences on what speaks against any.

    crossfit: the fd of what the rule chooses by one half of the noise, on the other half; None where the points have no
    distances of halves.
    """

    point: Point
    reason: str
    warnings: tuple[str, ...] = ()
    crossfit: Estimate | None = None


@dataclass(frozen=True)
class _Bar:
    """The largest fd that is good enough, and where it comes from."""

    fd: Estimate
    description: str
    reference: Point

    def doubt(self, chosen: Point) -> str:
        """A clause for a margin that chance could have made; the two errors are taken as independent."""
        margin, error = self.fd.value - chosen.fd, math.hypot(chosen.fd_se, self.fd.se)
        if chosen == self.reference or margin >= 2 * error:
            return ""
        return f"; a close call, the margin of {margin:.2g} is less than two of its standard errors of {error:.2g}"


def recommend(
    points: Sequence[Point], floor: Floor, judge: Skill, tolerance: float, reference: Point | None = None
) -> Recommendation:
    """The fewest network calls whose fd is at most `tolerance` times `reference`'s, or the floor if that is more.

    Nothing is nearer to the real images than a perfect sampler but by luck, and the best of many samplings is a lucky one.
    Without a reference it is the teacher's best fd, over all samplings of the teacher; those may be recommended too.
    Among equally many calls the lowest fd wins. A point that has lost more of the reference's diversity or obedience than of
    its quality (`diversity.loss`) is passed over where another within that distance has not; the reason names it. If no point
    qualifies it is the one with the best fd, and the reason says so.
    """
    if not tolerance > 0:
        raise ValueError(f"tolerance must be positive, got {tolerance}")
    rule = _Rule(floor, tolerance, reference, judge.chance)
    chosen, reason = rule.apply(points)
    bar = rule.bar(points)
    alike = [point for point in points if point.fd <= bar.fd.value] or [chosen]
    choice = crossfit.of(points, lambda view: rule.apply(view)[0], alike)
    warnings = tuple(_warnings(points, floor, judge, diversity.loss(chosen, bar.reference, floor, judge.chance)))
    return Recommendation(
        chosen, f"{reason}.{_honest(choice, chosen)}{_trained(chosen)}", warnings, choice and choice.fd
    )


@dataclass(frozen=True)
class _Rule:
    """How a point is chosen; see `recommend`."""

    floor: Floor
    tolerance: float
    reference: Point | None
    chance: float

    def bar(self, points: Sequence[Point]) -> _Bar:
        whose = "the teacher's best" if self.reference is None else "the reference"
        return _bar(self.floor, self.tolerance, self.reference or _best_teacher(points), whose)

    def apply(self, points: Sequence[Point]) -> tuple[Point, str]:
        """The point, and the reason."""
        bar = self.bar(points)
        within = [p for p in by_calls(points) if p.fd <= bar.fd.value]
        losses = {p.name: loss for p in points if (loss := diversity.loss(p, bar.reference, self.floor, self.chance))}
        if not within:
            chosen = best_of(points)
            return chosen, f"{_describe(chosen)}: the best fd there is, for no point is within {bar.description}"
        chosen = next((p for p in within if p.name not in losses), within[0])
        passed = "".join(f"; {losses[p.name]}, so it is passed over" for p in within[: within.index(chosen)][:1])
        return (
            chosen,
            f"{_describe(chosen)}: the fewest network calls within {bar.description}{bar.doubt(chosen)}{passed}",
        )


def _honest(choice: crossfit.Choice | None, chosen: Point) -> str:
    """What is chosen by half of the noise, and what it is worth on the other half."""
    if choice is None:
        return ""
    others = list(dict.fromkeys(pick.name for pick in choice.picks if pick.name != chosen.name))
    fd = f"fd {choice.fd.plus_minus()} on the noise that did not choose"
    if not others:
        return f" Either half of the noise alone chooses it too: {fd}."
    if chosen in choice.picks:
        return f" A close choice, one half of the noise alone chooses {others[0]} instead: {fd}."
    who = f"either half of the noise alone chooses {others[0]}"
    if len(others) == 2:
        who = f"the halves of the noise choose {others[0]} and {others[1]}"
    return f" A close choice, {who} instead: {fd}."


def _trained(point: Point) -> str:
    """How far trainings of the point's line lie apart."""
    if point.spread is None:
        return ""
    mean, deviation = point.spread.value, point.spread.se
    return f" Over {len(point.trainings)} trainings its fd is {mean:.3g} in the mean with standard deviation {deviation:.2g}."


def bar(points: Sequence[Point], floor: Floor, tolerance: float) -> Estimate:
    """The largest fd that `recommend` calls near enough without a reference, with its standard error."""
    return _bar(floor, tolerance, _best_teacher(points), "the teacher's best").fd


def fastest(points: Sequence[Point], floor: Floor, tolerance: float) -> Point:
    """The fewest network calls that are near enough, whatever became of the diversity; the best fd if none is near enough."""
    enough = bar(points, floor, tolerance).value
    return next((point for point in by_calls(points) if point.fd <= enough), best_of(points))


def _bar(floor: Floor, tolerance: float, reference: Point, whose: str) -> _Bar:
    label = f"{whose} ({_describe(reference)})"
    if reference.fd >= floor.fd:
        description = f"{tolerance:g} times {label}, which allows fd {tolerance * reference.fd:.3g}"
        return _Bar(Estimate(tolerance * reference.fd, tolerance * reference.fd_se), description, reference)
    description = (
        f"{tolerance:g} times the floor of fd {floor.metrics['fd'].plus_minus()}, which {label} is below by chance "
        f"alone; that allows fd {tolerance * floor.fd:.3g}"
    )
    return _Bar(Estimate(tolerance * floor.fd, tolerance * floor.fd_se), description, reference)


def _warnings(points: Sequence[Point], floor: Floor, judge: Skill, loss: diversity.Loss | None) -> Iterator[str]:
    if loss:
        yield f"{loss}: {diversity.CONSEQUENCE[loss.lost]}"
    best = best_of(points)
    if _is_far(best, floor):
        yield f"no sampling comes near the real images: the best, {_describe(best)}, is {_times(best, floor)}"
    if any(point.method == "teacher" for point in points) and _is_far(teacher := _best_teacher(points), floor):
        yield (
            f"the teacher is poor, which no student learns from it to mend: its best, {_describe(teacher)}, is "
            f"{_times(teacher, floor)}; train it longer, or a larger one"
        )
    if judge.warning:
        yield judge.warning


def _best_teacher(points: Sequence[Point]) -> Point:
    teachers = [point for point in points if point.method == "teacher"]
    if not teachers:
        raise UserError(
            "no point samples the teacher, so nothing says what quality is enough; evaluate the teacher too"
        )
    return best_of(teachers)


def _is_far(point: Point, floor: Floor) -> bool:
    """More than FAR times the floor, and not by chance alone: by two standard errors of the difference."""
    above, error = point.fd - floor.fd, math.hypot(point.fd_se, floor.fd_se)
    return point.fd > FAR * floor.fd and above > 2 * error


def _times(point: Point, floor: Floor) -> str:
    return f"{point.fd / floor.fd:.3g} times the floor of {floor.metrics['fd'].plus_minus()}"


def _describe(point: Point) -> str:
    calls = "1 network call" if point.nfe == 1 else f"{point.nfe:.4g} network calls"
    return f"{point.name}, {calls}, fd {point.metrics['fd'].plus_minus()}"
