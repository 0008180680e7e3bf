"""Chosen on one half of the noise and scored on the other: by hand, unbiased where the best is not, and as it is reported."""

import csv
import dataclasses
import importlib.util
import io
import json
import math
import sys
from pathlib import Path

import pytest
import torch

from diffcore.metrics import crossfit
from diffcore.metrics.crossfit import with_crossfit
from diffcore.metrics.estimate import Estimate
from diffcore.metrics.frechet import Moments, frechet
from diffcore.metrics.frontier import Frontier
from diffcore.metrics.point import Point, best_of, with_best
from tests import test_frontier
from tests.conftest import seeded

BIAS = 0.5
"""By how much half as many samples raise a distance."""


def point(name: str, even: float, odd: float, se: float = 0.1, **changes) -> Point:
    """A try of one curve whose fd is the mean of what its halves say without their bias."""
    fd = (even + odd) / 2
    fields = {"fd_se": se, "checkpoint": "cd", "halves": (even + BIAS, odd + BIAS), **changes}
    return test_frontier.point(name, fields.pop("nfe", 8), fd, **fields)


def best(*points: Point) -> Point:
    return next(each for each in with_crossfit(with_best(points)) if each.best)


def test_each_half_is_scored_by_the_one_that_did_not_choose():
    """Even noises choose a, of which the odd say 1.3; odd ones choose b, of which the even say 1.2."""
    a, b, c = point("a", 1.0, 1.3), point("b", 1.2, 1.0, se=0.2), point("c", 1.25, 1.25)
    choice = crossfit.of([a, b, c], best_of, [a, b, c])
    assert [each.name for each in choice.picks] == ["a", "b"]
    assert choice.fd.value == pytest.approx((1.3 + 1.2) / 2, rel=1e-12)
    # each score has sqrt(2) times the error of all noises; what they have in common is in the differences -0.3, 0.2, 0
    common = 0.36 * (0.3**2 + 0.2**2 - 0.1**2 / 3) / 2 / 2
    assert choice.fd.se == pytest.approx(math.sqrt(2 * 0.1**2 + 2 * 0.2**2 + 2 * common) / 2, rel=1e-12)
    chosen = best(a, b, c)
    assert (chosen.name, chosen.fd, chosen.crossfit) == ("b", pytest.approx(1.1), choice.fd)


def test_halves_that_say_their_own_error_are_taken_by_it():
    a, b = (dataclasses.replace(point(name, 1.0, 1.0), halves_se=0.2) for name in "ab")
    assert crossfit.of([a, b], best_of, [a, b]).fd.se == pytest.approx(math.sqrt(2 * 0.2**2) / 2, rel=1e-12)


def test_where_both_halves_choose_alike_it_is_fd_with_its_own_error():
    a, b = point("a", 1.0, 1.04), point("b", 1.06, 1.1)
    assert best(a, b).name == "a"
    assert best(a, b).crossfit.value == pytest.approx(1.02, rel=1e-12)
    assert best(a, b).crossfit.se == pytest.approx(0.1, rel=1e-12)


def test_the_bias_of_fewer_samples_is_that_of_all_rivals_together():
    """Halves 0.5 and 0.7 above fd: 0.6 is taken out of either's."""
    a = point("a", 1.0, 1.0)
    b = dataclasses.replace(point("b", 1.02, 1.02), halves=(1.72, 1.72))
    assert best(a, b).crossfit.value == pytest.approx(1.0 + 0.5 - 0.6, rel=1e-12)


def test_where_no_other_could_have_been_chosen_it_is_fd_itself():
    alone = point("a", 1.0, 1.2)
    assert best(alone).crossfit == alone.metrics["fd"]
    far = point("far", 1.1 + 0.29, 1.1 + 0.29)  # two errors of the difference are 0.283
    assert best(alone, far).crossfit == alone.metrics["fd"]
    near = point("near", 1.1 + 0.27, 0.9 + 0.27)
    assert best(alone, near).crossfit != alone.metrics["fd"]


def test_only_the_best_has_it_and_points_without_halves_have_none():
    a, b = point("a", 1.0, 1.3), point("b", 1.2, 1.0)
    assert [each.crossfit is None for each in with_crossfit(with_best([a, b]))] == [True, False]
    old = dataclasses.replace(a, halves=None)
    assert best(old, b).crossfit is None
    assert with_crossfit([]) == []


@pytest.mark.usefixtures("without_shape_checks")
@pytest.mark.parametrize("shared", [0.0, 0.8])
def test_of_equal_tries_it_is_unbiased_and_covered_where_fd_is_flattered(shared):
    """Five tries worth 1, errors 0.1 of which a share is common: the best fd is 1.163 sqrt(1 - r) errors too low."""
    sets, tries, se = 1500, 5, 0.1
    common = torch.randn(sets, 1, 2, generator=seeded(1), dtype=torch.float64)
    own = torch.randn(sets, tries, 2, generator=seeded(2), dtype=torch.float64)
    halves = 1 + math.sqrt(2) * se * (math.sqrt(shared) * common + math.sqrt(1 - shared) * own)
    template = [point(f"p{k}", 1.0, 1.0, se=se) for k in range(tries)]
    naive, honest = [], []
    for rows in halves.tolist():
        points = [
            dataclasses.replace(each, metrics={"fd": Estimate(sum(row) / 2, se)}, halves=tuple(x + BIAS for x in row))
            for each, row in zip(template, rows)
        ]
        naive.append(best_of(points).fd - 1)
        choice = crossfit.of(points, best_of, points).fd
        honest.append((choice.value - 1, choice.se))
    apart, errors = torch.tensor(honest).T
    noise = 0.12 / math.sqrt(sets)  # of a mean over the sets
    assert sum(naive) / sets == pytest.approx(-1.163 * se * math.sqrt(1 - shared), abs=4 * noise)
    assert apart.mean().item() == pytest.approx(0, abs=4 * noise)
    covered = (apart.abs() <= 1.96 * errors).double().mean().item()
    assert 0.93 <= covered <= 0.97  # the standard error over the sets is 0.006
    if not shared:  # the least of five is above -1.96 where all of them are
        inside = sum(abs(each) <= 1.96 * se for each in naive) / sets
        assert inside == pytest.approx(0.975**tries, abs=0.025)


# --- as it is reported


def frontier(*points: Point) -> Frontier:
    whole = test_frontier.frontier(*with_crossfit(with_best(points)))
    return dataclasses.replace(whole, recommended=whole.recommend(1.5))


def teacher(even: float = 1.0, odd: float = 1.0) -> Point:
    return point("teacher", even, odd, se=0.02, nfe=64, method="teacher", checkpoint="teacher")


def test_the_recommendation_says_what_the_other_half_of_the_noise_says():
    """Both halves take the student of one call, of which they say 1.3 and 1.4."""
    chosen = frontier(teacher(), point("pd1", 1.3, 1.4, nfe=1), point("pd2", 1.1, 1.1, nfe=2)).recommended
    assert chosen.point.name == "pd1"
    assert chosen.reason.endswith(
        f" Either half of the noise alone chooses it too: fd {chosen.crossfit.plus_minus()} on the noise that did not choose."
    )
    assert chosen.crossfit.value == pytest.approx(1.35)


def test_a_recommendation_on_which_the_halves_differ_is_told_as_such():
    """Odd noises find pd1 too far, 1.6 of 1.5, and choose pd2, of which the even ones say 1.2."""
    chosen = frontier(teacher(), point("pd1", 1.3, 1.6, nfe=1), point("pd2", 1.2, 1.0, nfe=2)).recommended
    assert chosen.point.name == "pd1"
    assert chosen.crossfit.value == pytest.approx((1.6 + 1.2) / 2)
    assert " A close choice, one half of the noise alone chooses pd2 instead: fd 1.4" in chosen.reason


def test_where_neither_half_chooses_it_that_is_said():
    """Each half has a lucky teacher of 0.8, whose bar is 1.2: both refuse pd1's 1.3, which the bar of all, 1.5, allows."""
    lucky = dataclasses.replace(teacher(1.2, 0.8), name="teacher-too")
    chosen = frontier(
        teacher(0.8, 1.2), lucky, point("pd1", 1.3, 1.3, nfe=1), point("pd2", 1.1, 1.1, nfe=2)
    ).recommended
    assert chosen.point.name == "pd1"
    assert " A close choice, either half of the noise alone chooses pd2 instead: fd 1.1" in chosen.reason
    students = point("pd1", 1.3, 1.3, nfe=1), point("pd2", 1.1, 1.4, nfe=2), point("pd4", 1.15, 1.15, nfe=4)
    chosen = frontier(teacher(0.8, 1.2), lucky, *students).recommended
    assert chosen.point.name == "pd1"
    assert " A close choice, the halves of the noise choose pd2 and pd4 instead: fd 1.2" in chosen.reason


def test_the_bar_of_a_half_is_its_own():
    """Of even noises the teacher's best is 0.9, its bar 1.35: they refuse pd1's 1.4, which the bar of all, 1.5, allows."""
    chosen = frontier(teacher(0.9, 1.1), point("pd1", 1.4, 1.4, nfe=1), point("pd2", 1.2, 1.2, nfe=2)).recommended
    assert chosen.point.name == "pd1"
    assert "one half of the noise alone chooses pd2 instead" in chosen.reason
    assert chosen.crossfit.value == pytest.approx((1.2 + 1.4) / 2)


def test_without_halves_the_recommendation_says_nothing_of_them():
    whole = test_frontier.DIGITS.recommend(1.5)
    assert whole.crossfit is None
    assert "noise" not in whole.reason


def test_files_hold_it_to_the_last_digit():
    whole = frontier(teacher(), point("a", 1.0, 1.3, se=0.1 / 3), point("b", 1.2, 1.0), point("pd1", 1 / 3, 0.4, nfe=1))
    value = json.loads(json.dumps(whole.to_json()))
    assert Frontier.from_json(value) == whole
    assert value["recommended"]["crossfit"] == vars(whole.recommended.crossfit)
    rows = {row["name"]: row for row in csv.DictReader(io.StringIO(whole.to_csv()))}
    for each in whole.points:
        row = rows[each.name]
        assert (float(row["fd_even"]), float(row["fd_odd"])) == each.halves
        numbers = (each.crossfit.value, each.crossfit.se) if each.crossfit else ("", "")
        assert (row["fd_crossfit"], row["fd_crossfit_se"]) == tuple(map(str, numbers))
    assert rows["a"]["fd_crossfit"] == ""


def test_the_report_says_by_how_much_the_best_of_several_are_flattered():
    whole = frontier(teacher(), point("a", 1.0, 1.3), point("b", 1.2, 1.0))
    words, honest = " ".join(whole.table().split()), whole.points[2].crossfit.plus_minus()
    assert (
        "best of several tries: where another is within two errors (1 points), fd on the noise that did not choose is fd "
        f"+0.15 in the mean, most of all of b, {honest} for 1.10+-0.10 (fd_crossfit in frontier.csv)" in words
    )
    assert "fd_crossfit" not in frontier(teacher(), point("a", 1.0, 1.3)).table()


# --- intervals, by simulation


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location("coverage", Path(__file__).parent.parent / "bench/coverage.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["coverage"] = module  # where dataclasses look for their annotations
    spec.loader.exec_module(module)
    yield module
    del sys.modules["coverage"]


def test_the_halves_of_a_set_are_its_even_and_its_odd_samples(bench):
    world = bench.World(41, 3)
    rows, real = world.samples(0, (1.2, 0.3)), world.reference.whole.features
    drawn = bench.Drawn(rows, world.reference, None, 0)
    assert drawn.halves == tuple(frechet(Moments.of(rows[half::2]), real) for half in (0, 1))
    assert bench.Drawn(rows[:3], world.reference, None, 0).halves is None


@pytest.mark.usefixtures("without_shape_checks")
def test_the_error_of_a_half_is_the_spread_over_fresh_halves(bench):
    """Of a perfect sampler, where it is more than sqrt(2) errors of all samples."""
    world, sets = bench.World(300, 8), 100
    drawn = [
        bench.Drawn(world.samples(seed, bench.PERFECT), world.reference, None, seed, most=20) for seed in range(sets)
    ]
    spread = torch.tensor([each.halves for each in drawn], dtype=torch.float64).std(0).mean().item()
    stated = math.sqrt(sum(each.halves_se**2 for each in drawn) / sets)
    assert 0.85 < stated / spread < 1.25
    assert all(each.halves_se > 1.42 * each.frechet.se for each in drawn)


@pytest.mark.slow
@pytest.mark.usefixtures("without_shape_checks")
def test_stated_intervals_cover_what_they_say(bench):
    """200 sets of 200 samples of 16 features: of a student that differs from the data, and of a perfect sampler."""
    world = bench.World(200, 16)
    for how in (bench.STUDENT, bench.PERFECT):
        names = tuple(name for name in bench.MEASURES if name != "memorised")  # two events in the mean: always covered
        alone = bench.of_metrics(world, how, names)
        assert list(alone) == list(names)
        for each in alone.values():
            assert 0.92 - each.error <= each.covered <= 0.98 + each.error, str(each)
    pairs = bench.of_pairs(world)
    assert list(pairs) == ["fd", "kid"]
    for each in pairs.values():
        assert 0.92 - each.error <= each.covered <= 0.98 + each.error, str(each)


@pytest.mark.slow
@pytest.mark.usefixtures("without_shape_checks")
@pytest.mark.parametrize("how", ["STUDENT", "PERFECT"])
def test_the_interval_of_the_best_of_five_covers_where_it_is_cross_fitted(bench, how):
    """Five tries of independent noises, of which the best by its own fd is covered seldom."""
    covered = bench.of_choice(bench.World(200, 16), getattr(bench, how), mean=400, shared=0.0)
    honest = covered["fd_crossfit"]
    assert 0.92 - 2 * honest.error <= honest.covered <= 0.98 + honest.error, str(honest)
    assert covered["fd"].covered < honest.covered - honest.error, str(covered["fd"])
