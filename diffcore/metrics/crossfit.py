"""What a choice is worth on the noise that did not make it.

The best of several numbers is flattered by being chosen by them. Here each half of the noise chooses by its own distances,
and what it chose is scored on the other half; the mean of both scores is the cross-fitted distance (sample splitting, Cox
1975, doi 10.1093/biomet/62.2.441; with the halves exchanged, Chernozhukov et al. 2018, arXiv 1608.00060, section 3).
"""

import dataclasses
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from diffcore.metrics.estimate import Estimate
from diffcore.metrics.point import Point, best_of, tries

RIVAL = 2.0
"""Standard errors of the difference within which of the chosen point another one could have been chosen by chance."""

COMMON = 0.36
"""m^2 / K + (1 - 1 / K) (m / (K - 1))^2 of K = 3, where m = 0.846; less of every other number."""


@dataclass(frozen=True)
class Choice:
    """What the even and what the odd noises choose, and their distance on the noises that did not choose them."""

    picks: tuple[Point, Point]
    fd: Estimate


def of(points: Sequence[Point], choose: Callable[[Sequence[Point]], Point], alike: Sequence[Point]) -> Choice | None:
    """Cross-fitted `choose`, whose distance compares with `fd`; None where a point has no distances of halves.

    points: all that it chooses from. alike: those that are as near as what it chooses from all noises: half as many samples
    raise the distances of all of them by about as much, and the mean of that is taken out. Of one point alone, half of its
    own luck would stay in.

    The standard error is that of the mean of the two scores, each of half the samples. They are correlated though their
    noises are not, for halves that agree choose a lucky one on both: `_common`. `bench/coverage.py` shows what the interval
    covers.
    """
    if any(point.halves is None for point in points):
        return None
    bias = sum(sum(point.halves) / 2 - point.fd for point in alike) / len(alike)
    even, odd = ([_on(point, half, bias) for point in points] for half in (0, 1))
    picks = [[view.name for view in half].index(choose(half).name) for half in (even, odd)]
    scores = odd[picks[0]].metrics["fd"], even[picks[1]].metrics["fd"]
    variance = sum(each.se**2 for each in scores) / 4 + _common(alike) / 2
    return Choice(
        (points[picks[0]], points[picks[1]]), Estimate(sum(each.value for each in scores) / 2, math.sqrt(variance))
    )


def _common(alike: Sequence[Point]) -> float:
    """The covariance of the two scores, at most.

    Of K points that are worth the same, with errors of variance s^2 in each half beside what is common to all, both halves
    choose one alike with probability 1/K; the scores are then m s low on either, else m s / (K - 1) high, where m is the
    mean of the largest of K normal numbers. COMMON s^2 is the most that comes to, at K = 3.
    """
    if len(alike) < 2:
        return 0.0
    apart = [(point.halves[0] - point.halves[1]) / math.sqrt(2) for point in alike]
    return COMMON * statistics.variance(apart)


def _on(point: Point, half: int, bias: float) -> Point:
    """The point as half of its samples show it."""
    se = math.sqrt(2) * point.fd_se if point.halves_se is None else point.halves_se
    seen = Estimate(point.halves[half] - bias, se)
    return dataclasses.replace(point, metrics={**point.metrics, "fd": seen})


def with_crossfit(points: Sequence[Point]) -> list[Point]:
    """The points with `crossfit` set on those that are the best of several tries, which `best` says: where no other is a
    rival nothing was chosen by chance, and it is `fd` itself."""
    groups = tries(points)
    return [
        dataclasses.replace(point, crossfit=_of_best(point, group) if point.best else None)
        for point, group in zip(points, groups)
    ]


def _of_best(best: Point, group: Sequence[Point]) -> Estimate | None:
    rivals = [point for point in group if _is_rival(point, best)]
    if len(rivals) == 1:
        return best.metrics["fd"]
    choice = of(group, best_of, rivals)
    return choice and choice.fd


def _is_rival(point: Point, best: Point) -> bool:
    return point.fd - best.fd <= RIVAL * math.hypot(point.fd_se, best.fd_se)
