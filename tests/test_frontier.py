"""The frontier: brute force for who is dominated, the rule for what to ship, and files that lose nothing."""

import csv
import dataclasses
import io
import json
import math

import pytest
import torch

from diffcore.core.errors import UserError
from diffcore.metrics import diversity, recommendation
from diffcore.metrics.bootstrap import RESAMPLES
from diffcore.metrics.estimate import Estimate, columns
from diffcore.metrics.floor import Floor
from diffcore.metrics.frontier import Frontier
from diffcore.metrics.measures import METRICS
from diffcore.metrics.point import GIVEN, HONEST, Point, with_best
from diffcore.metrics.skill import Skill
from diffcore.metrics.table import WIDTH
from tests.conftest import estimates, seeded

MEASURES = {"fd": 0.321, "fd_se": 0.045, "kid": 0.0011, "kid_se": 0.0004, "fd_pixels": 0.31, "fd_pixels_se": 0.02}
FLOOR = Floor(estimates(MEASURES), n=(1000, 1797), compared=(898, 899), real="halves")
JUDGE = Skill("classes", 10, 0.97, 0.11)


def point(name: str, nfe: float | int, fd: float, **changes) -> Point:
    numbers = {
        **{"fd": fd, "fd_se": fd / 20, "kid": fd / 300, "kid_se": fd / 4000},
        **{"fd_pixels": fd / 3, "fd_pixels_se": fd / 50, "rmse_teacher": 0.1234, "rmse_teacher_se": 0.0056},
        **{key: changes.pop(key) for key in list(changes) if key.removesuffix("_se") in METRICS},
    }
    fields = {
        "name": name,
        "curve": "progressive",
        "best": True,
        "method": "progressive",
        "checkpoint": name,
        "sampler": "ddim",
        "trajectory": "own",
        "recipe": '{"sampler": "ddim"}',
        "nfe": nfe,
        "metrics": estimates(numbers),
        "ms_per_image": 0.1 / 3 * nfe,
        "n": 1000,
        "seed": 3,
        "weights": "ema",
        "features": "0123456789abcdef" * 4,
        "checkpoint_digest": "fedcba9876543210" * 4,
        "times": (1.0, 1 / 3, 0.0),
    }
    return Point(**{**fields, **changes})


def teacher(nfe: int, fd: float, **changes) -> Point:
    alone = {"rmse_teacher": None, "rmse_teacher_se": None} if nfe == 64 else {}
    fields = {"method": "teacher", "checkpoint": "teacher", "trajectory": "uniform", **alone, **changes}
    return point(f"teacher-ddim-uniform-{nfe}", nfe, fd, **fields)


def frontier(*points: Point) -> Frontier:
    return Frontier(points, FLOOR, "d" * 64, JUDGE)


# the numbers of a real run on digits (fd of DDIM, of progressive rounds and of a consistency student)
DIGITS = frontier(
    *(teacher(nfe, fd) for nfe, fd in [(64, 1.0), (8, 1.49), (4, 2.68), (2, 9.51), (1, 52.4)]),
    *(point(f"pd{nfe}", nfe, fd) for nfe, fd in [(8, 1.15), (4, 1.36), (2, 1.66), (1, 2.29)]),
    *(point(f"cd-{nfe}", nfe, fd, method="consistency") for nfe, fd in [(1, 1.91), (2, 1.65), (4, 1.55)]),
)


def names(points) -> list[str]:
    return [each.name for each in points]


# --- dominance


@pytest.mark.parametrize("seed", range(20))
def test_dominance_is_brute_force(seed):
    # few values, so that there are many ties in one, the other and both
    nfe = torch.randint(1, 6, (25,), generator=seeded(seed)).tolist()
    fd = (torch.randint(1, 8, (25,), generator=seeded(100 + seed)) / 4).tolist()
    points = [point(f"p{k}", calls, distance) for k, (calls, distance) in enumerate(zip(nfe, fd))]
    want = set()
    for one in points:
        beaten = False
        for other in points:
            fewer_or_as_many, as_good = other.nfe <= one.nfe, other.fd <= one.fd
            same = other.nfe == one.nfe and other.fd == one.fd
            beaten |= fewer_or_as_many and as_good and not same
        if not beaten:
            want.add(one.name)
    found = frontier(*points).non_dominated()
    assert set(names(found)) == want
    assert [(p.nfe, -p.fd) for p in found] == sorted((p.nfe, -p.fd) for p in found)


def test_equal_points_stay_and_do_not_dominate_each_other():
    twins = point("a", 2, 1.0), point("b", 2, 1.0)
    assert names(frontier(*twins, point("worse", 2, 1.1), point("slower", 3, 1.0)).non_dominated()) == ["a", "b"]
    assert not twins[0].dominates(twins[1])


def test_the_digits_frontier():
    assert names(DIGITS.non_dominated()) == ["cd-1", "cd-2", "pd4", "pd8", "teacher-ddim-uniform-64"]


# --- what to ship


def test_recommends_the_fewest_calls_within_tolerance_of_the_teacher():
    for tolerance, name in [(2.0, "cd-1"), (1.9, "cd-2"), (1.5, "pd4"), (1.2, "pd8"), (1.1, "teacher-ddim-uniform-64")]:
        assert DIGITS.recommend(tolerance).point.name == name


def test_the_reason_holds_the_numbers_and_their_errors():
    reason = DIGITS.recommend(1.5).reason
    for words in ["pd4, 4 network calls, fd 1.360+-0.068", "1.5 times the teacher's best", "fd 1.000+-0.050", "fd 1.5"]:
        assert words in reason
    assert "1 network call," in DIGITS.recommend(50.0).reason


def test_parts_of_network_calls_are_told_as_such_wherever_they_are_told():
    """A cache makes 2.125 calls of 4."""
    cached = point("cached", 2.125, 1.2)
    for found in (frontier(teacher(8, 1.0), cached), frontier(teacher(8, 1.0), cached, point("plain", 4, 1.3))):
        assert found.recommend(1.5).reason.startswith("cached, 2.125 network calls, fd ")
        assert any(" 2.125 " in line for line in found.table().splitlines() if "cached" in line)
    (far,) = [line for line in warned(teacher(8, 90.0), point("cached", 2.125, 30.0)) if line.startswith("no sampling")]
    assert "cached, 2.125 network calls, fd" in far


def test_each_number_of_the_floor_is_told_as_its_own():
    numbers = {"fd": 1.23, "fd_se": 0.11, "kid": 0.0456, "kid_se": 0.0012, "fd_pixels": 7.8, "fd_pixels_se": 0.23}
    floor = Floor(estimates(numbers), n=(50, 60), compared=(30, 31), real="halves")
    notes = " ".join(dataclasses.replace(DIGITS, floor=floor).table().split())
    assert "of 50 samples against 60 real images" in notes
    assert "fd 1.23+-0.11, kid 0.0456+-0.0012, fd_pixels 7.80+-0.23; from halves" in notes
    assert "nothing is held out" in notes
    assert "captions" not in notes
    captioned = dataclasses.replace(floor, metrics=floor.metrics | {"caption_accuracy": Estimate(0.986, 0.004)})
    notes = " ".join(dataclasses.replace(DIGITS, floor=captioned).table().split())
    assert "caption_accuracy 0.9860+-0.0040; from" in notes
    assert "nothing is held out, captions of those that are asked for" in notes


def test_the_bar_itself_is_within():
    points = teacher(8, 2.0), point("exactly", 4, 3.0), point("beyond", 2, math.nextafter(3.0, 4.0))
    assert frontier(*points).recommend(1.5).point.name == "exactly"


def test_a_teacher_below_the_floor_was_lucky_and_the_floor_is_the_bar():
    """The floor is 0.321: the teacher's lucky 0.1 does not rule out what is within 1.5 times of perfect, 0.4815."""
    found = frontier(teacher(64, 0.1), point("near", 1, 0.48), point("far", 1, 0.483)).recommend(1.5)
    assert found.point.name == "near"
    assert "within 1.5 times the floor of fd 0.321+-0.045, which the teacher's best (teacher-ddim" in found.reason
    assert "is below by chance alone; that allows fd 0.482; a close call" in found.reason
    assert frontier(teacher(64, 0.1), point("far", 1, 0.483)).recommend(1.5).point.nfe == 64
    above = frontier(teacher(64, 0.33), point("near", 1, 0.49)).recommend(1.5)  # the teacher's 0.33 is the bar then
    assert above.point.name == "near"
    assert "within 1.5 times the teacher's best" in above.reason


@pytest.mark.parametrize("tolerance", [1.1, 1.5, 4.0])
@pytest.mark.parametrize("best", [0.05, 0.1, 0.25, 0.3, 0.32, 0.33, 0.5])
def test_the_bar_is_the_tolerance_times_the_teacher_or_the_floor_whichever_is_higher(best, tolerance):
    """The floor is 0.321; a teacher just below it, whose bar would be above the floor, is below it all the same."""
    bar = tolerance * max(best, 0.321)
    enough, short = point("enough", 2, bar * (1 - 1e-9)), point("short", 1, bar * (1 + 1e-9))
    found = frontier(teacher(64, best), enough, short).recommend(tolerance)
    assert found.point.name == "enough"
    assert ("the floor of fd" in found.reason) == (best < 0.321)


@pytest.mark.parametrize("change", [{"n": 999}, {"seed": 4}, {"features": "f" * 64}])
@pytest.mark.parametrize("weights", ["ema", GIVEN])
def test_what_was_measured_otherwise_is_refused_beside_the_rest(weights, change):
    frontier(teacher(64, 0.3), teacher(8, 0.5, weights=GIVEN))
    with pytest.raises(UserError, match=next(iter(change))):
        frontier(teacher(64, 0.3), teacher(8, 0.5, weights=weights, **change))


def test_a_way_to_sample_the_teacher_may_be_recommended():
    points = teacher(64, 1.0), teacher(8, 1.1), point("pd4", 4, 5.0)
    assert frontier(*points).recommend(1.2).point.name == "teacher-ddim-uniform-8"


def test_the_teachers_best_is_the_bar_wherever_it_lies():
    # ancestral sampling with few calls beats the 64 steps here, and sets the bar
    points = teacher(64, 2.0), teacher(8, 1.0), point("pd4", 4, 1.9)
    assert frontier(*points).recommend(1.5).point.name == "teacher-ddim-uniform-8"


def test_among_equally_many_calls_the_lowest_distance_wins():
    points = teacher(64, 1.0), point("good", 2, 1.3), point("better", 2, 1.2), point("best", 4, 1.1)
    assert frontier(*points).recommend(1.5).point.name == "better"


def test_a_close_call_is_called_one():
    assert "close call" in frontier(teacher(64, 1.0), point("near", 1, 1.45)).recommend(1.5).reason
    # margin 0.15, error hypot(0.0675, 0.075) = 0.101: one and a half of them
    assert "close call" in frontier(teacher(64, 1.0), point("doubtful", 1, 1.35)).recommend(1.5).reason
    assert "close call" not in frontier(teacher(64, 1.0), point("far", 1, 0.9)).recommend(1.5).reason
    # margin 0.3, error hypot(0.06, 0.075) = 0.096: three of them
    assert "close call" not in frontier(teacher(64, 1.0), point("mid", 1, 1.2)).recommend(1.5).reason


def test_when_none_qualifies_it_is_the_best_and_says_so():
    given = point("elsewhere", 64, 0.4)
    found = DIGITS.recommend(1.5, reference=given)
    assert found.point.name == "teacher-ddim-uniform-64"
    assert "no point is within 1.5 times the reference (elsewhere, 64 network calls, fd 0.400+-0.020)" in found.reason
    assert DIGITS.recommend(10.0, reference=given).point.name == "cd-1"


def test_recommend_needs_a_teacher_and_a_tolerance():
    with pytest.raises(UserError, match="evaluate the teacher too"):
        frontier(point("pd1", 1, 2.0)).recommend(1.5)
    for tolerance in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="tolerance must be positive"):
            DIGITS.recommend(tolerance)


# --- what speaks against any


def warned(*points: Point, judge: Skill = JUDGE, **floor: float) -> tuple[str, ...]:
    whole = Frontier(points, dataclasses.replace(FLOOR, metrics=estimates(MEASURES | floor)), "d" * 64, judge)
    found = whole.recommend(1.5)
    assert dataclasses.replace(whole, recommended=found).to_json()["recommended"]["warnings"] == list(found.warnings)
    return found.warnings


def test_a_good_frontier_warns_of_nothing():
    assert warned(teacher(64, 0.9), point("pd4", 4, 0.95)) == ()
    assert warned(teacher(64, 0.3), point("pd4", 4, 28.0)) == ()  # a poor student that nobody recommends


def test_it_warns_when_the_best_is_far_above_the_floor():
    """As found: 38.2 was recommended without a word where the floor was 0.59 and the teacher's best 28.3."""
    best, poor = warned(teacher(64, 28.3), point("pd1", 1, 38.2), fd=0.59)
    assert best.startswith(
        "no sampling comes near the real images: the best, teacher-ddim-uniform-64, 64 network calls"
    )
    assert "is 48 times the floor of 0.590+-0.045" in best
    assert poor.startswith("the teacher is poor")


def test_it_warns_of_a_poor_teacher_whatever_its_students_are():
    (warning,) = warned(teacher(64, 28.3), point("ect", 1, 0.4))
    assert "its best, teacher-ddim-uniform-64, 64 network calls, fd 28.3+-1.4, is 88.2 times the floor" in warning


def test_far_is_three_floors_and_two_standard_errors():
    assert warned(teacher(64, 3 * 0.321), point("a", 1, 5.0)) == ()
    assert len(warned(teacher(64, 3.1 * 0.321), point("a", 1, 5.0))) == 2
    assert warned(teacher(64, 3.1 * 0.321, fd_se=0.36), point("a", 1, 5.0)) == ()
    assert len(warned(teacher(64, 3.1 * 0.321, fd_se=0.30), point("a", 1, 5.0))) == 2


def test_it_warns_when_the_feature_network_is_near_chance():
    (warning,) = warned(teacher(64, 0.3), judge=dataclasses.replace(JUDGE, accuracy=0.133))
    assert "the feature network tells its 10 classes apart hardly better than chance (accuracy 0.133" in warning


# --- the best of several tries


def best(*points: Point) -> set[str]:
    return {each.name for each in with_best(points) if each.best}


def test_the_best_is_of_one_way_one_checkpoint_and_one_cost():
    tries = point("uniform", 8, 2.0), point("karras", 8, 1.5), point("uniform_logsnr", 8, 1.7)
    tries = [dataclasses.replace(each, checkpoint="cd") for each in tries]
    assert best(*tries) == {"karras"}
    for other in ({"curve": "other"}, {"checkpoint": "cd2"}, {"nfe": 4}, {"nfe": 11.05}):
        assert best(*tries, dataclasses.replace(tries[0], name="apart", **other)) == {"karras", "apart"}
    rounded = dataclasses.replace(tries[0], name="same", nfe=8 + 1e-12)
    assert best(*tries, rounded) == {"karras"}


def test_caches_of_different_cost_are_not_ranked_against_each_other():
    """Both took 32 steps; the dearer one is closer, and the cheaper one stays on its curve."""
    times = tuple(k / 32 for k in range(32, -1, -1))
    caches = point("interval2", 22.1, 0.38, times=times), point("interval4", 16.4, 0.58, times=times)
    assert best(*(dataclasses.replace(each, checkpoint="teacher") for each in caches)) == {"interval2", "interval4"}


# --- files


def test_json_round_trip_is_exact():
    odd = point("odd", 2.5, 0.1 + 0.2, kid=-1e-17, times=(1.0, 1 / 7, 0.0), weights="given")
    whole = frontier(*DIGITS.points, odd)
    whole = dataclasses.replace(whole, recommended=whole.recommend(1.5))
    again = Frontier.from_json(json.loads(json.dumps(whole.to_json())))
    assert again == whole
    assert [type(p.nfe) for p in again.points] == [type(p.nfe) for p in whole.points]


def test_json_holds_what_others_read():
    chosen = DIGITS.recommend(1.5)
    value = dataclasses.replace(DIGITS, recommended=chosen).to_json()
    assert list(value) == ["schema", "about", "floor", "judge", "points", "recommended"]
    assert value["about"] == {
        "n": 1000,
        "seed": 3,
        "features": DIGITS.points[0].features,
        "weights": "ema",
        "data": "d" * 64,
        "resamples": RESAMPLES,
    }
    assert value["points"][0]["metrics"]["fd"] == {"value": 1.0, "se": 0.05}
    metrics = {name: {"value": MEASURES[name], "se": MEASURES[f"{name}_se"]} for name in ("fd", "kid", "fd_pixels")}
    assert value["floor"] == {"metrics": metrics, "n": [1000, 1797], "compared": [898, 899], "real": "halves"}
    assert value["judge"] == {"task": "classes", "outputs": 10, "accuracy": 0.97, "chance": 0.11}
    assert value["recommended"] == {"name": "pd4", "reason": chosen.reason, "warnings": list(chosen.warnings)}
    assert value["points"][0]["times"] == [1.0, 1 / 3, 0.0]
    assert DIGITS.to_json()["recommended"] is None


ODD = [
    {},
    {"fd": 1.0},
    {"fd": {"value": math.nan, "se": 0.1}},
    {"fd": {"value": 1.0, "se": -0.1}},
    {"kid": {"value": 1.0, "se": 0.1}},
    {"fd": {"value": 1.0, "se": 0.1}, "unheard": {"value": 1.0, "se": 0.1}},
]
"""Metrics that no point has."""


def test_json_of_another_kind_is_a_mistake():
    value = DIGITS.to_json()
    for broken in [
        {},
        {**value, "schema": 3},
        {**value, "judge": {"accuracy": 0.9}},
        {**value, "points": [{"name": "x"}]},
        {key: value[key] for key in ("schema", "about", "floor")},
        {**value, "points": [{**value["points"][0], "extra": 1}]},
        *({**value, "points": [{**value["points"][0], "metrics": metrics}]} for metrics in ODD),
        {**value, "floor": {"fd": 1.0, "n": [1, 2]}},
        {**value, "recommended": {"name": "none of them", "reason": "", "warnings": []}},
    ]:
        with pytest.raises(UserError, match="not a frontier of this version"):
            Frontier.from_json(broken)


def test_csv_holds_every_field_to_the_last_digit():
    rows = list(csv.DictReader(io.StringIO(DIGITS.to_csv())))
    assert len(rows) == len(DIGITS.points)
    wanted = [
        "name",
        "method",
        "sampler",
        "trajectory",
        "nfe",
        "fd",
        "fd_se",
        "kid",
        "kid_se",
        "fd_pixels",
        "ms_per_image",
    ]
    assert set(wanted) <= rows[0].keys()
    for row, each in zip(rows, DIGITS.points):
        assert list(row) == [*each.row(), "frontier"]
        for key, value in vars(each).items():
            if key == "times":
                assert tuple(map(float, row["times"].split())) == value
            elif key == "metrics":
                assert {name: str(number) for name, number in columns(value).items()}.items() <= row.items()
                assert {name for name in METRICS if row[name]} == value.keys()
            elif key in HONEST:  # of which these points have none: tests/test_crossfit.py, tests/test_seeds.py
                assert row["fd_even"] == row["fd_odd"] == row["fd_crossfit"] == row["fd_trainings"] == ""
            elif isinstance(value, float):
                assert float(row[key]) == value
            else:
                assert row[key] == str(value)
    assert [row["name"] for row in rows if row["frontier"] == "1"] == names(
        p for p in DIGITS.points if p in DIGITS.non_dominated()
    )


# --- the table


def test_the_table_is_sorted_marked_and_complete():
    lines = DIGITS.table().splitlines()
    rows = lines[1 : 1 + len(DIGITS.points)]
    assert [line[1:].split()[0] for line in rows] == names(sorted(DIGITS.points, key=lambda p: (p.nfe, p.fd)))
    assert {line[1:].split()[0] for line in rows if line.startswith("*")} == set(names(DIGITS.non_dominated()))
    by_name = {each.name: each for each in DIGITS.points}
    for line in rows:
        each = by_name[line[1:].split()[0]]
        for key in ("fd", "kid"):
            assert each.metrics[key].plus_minus() in line.split()
        told = each.metrics["rmse_teacher"].plus_minus() if "rmse_teacher" in each.metrics else "-"
        assert told in line.split()
    notes = " ".join(lines[1 + len(rows) :])
    for words in ["N = 1000", "noise seed 3", "ema weights", "feature network 0123456789ab", "not over trainings"]:
        assert words in notes
    assert (
        "floor, what a perfect sampler is to expect of 1000 samples against 1797 real images: fd 0.321+-0.045" in notes
    )
    assert "kid 0.00110+-0.00040" in notes
    assert "from halves of the images trained on, which bits and Gamma are of too: nothing is held out" in notes
    held = dataclasses.replace(FLOOR, compared=(300, 1797), real="held-out")
    told = dataclasses.replace(DIGITS, floor=held).table().replace("\n", " ")
    assert "from 300 held-out images, which bits and Gamma are of too" in told


def test_every_cell_of_the_table_by_hand():
    """The best of each curve alone; a rare column where one that is shown has it, and `-` for those that have not."""
    rare = {"accuracy": 0.9, "accuracy_se": 0.01, "bits": 3.25, "bits_se": 0.02}
    shown = [
        point("jump", 1, 1.5, ms_per_image=12.345, accuracy=0.75, accuracy_se=0.02, rmse_teacher=0.5),
        point("worse", 2.125, 2.5, ms_per_image=0.5, rmse_teacher=None, rmse_teacher_se=None),
        teacher(64, 1.0, ms_per_image=1234.5),
    ]
    tried = [point(f"tried{k}", 1, 1.75 + k, best=False, **rare) for k in range(3)]
    lines = frontier(*shown[::-1], *tried).table().splitlines()
    assert [line.split() for line in lines[:4]] == [
        ["name", "calls", "fd", "kid", "rmse_teacher", "accuracy", "ms/image"],
        ["*", "jump", "1", "1.500+-0.075", "0.00500+-0.00038", "0.5000+-0.0056", "0.750+-0.020", "12.3"],
        ["worse", "2.125", "2.50+-0.12", "0.00833+-0.00063", "-", "-", "0.5"],
        ["*", "teacher-ddim-uniform-64", "64", "1.000+-0.050", "0.00333+-0.00025", "-", "-", "1.23e+03"],
    ]
    assert lines[4] == ""
    assert "; 3 more points, tried and not the best of their kind, are in frontier.csv" in " ".join(lines[5:])
    assert "tried" not in frontier(*shown).table()
    for key, heading in (("accuracy", "accuracy"), ("bits", "bits")):
        told = point("told", 3, 1.2, **{key: 0.5, f"{key}_se": 0.125})
        head, *rows = frontier(teacher(64, 1.0), told).table().splitlines()[:3]
        assert head.split()[-2] == heading
        assert [row.split()[-2] for row in rows] == ["0.50+-0.12", "-"]
        assert not {"accuracy", "bits"} - {heading} & set(head.split())


def test_of_equal_tries_the_cheapest_then_the_first_by_name_is_the_best_whatever_their_order():
    tries = [point(name, nfe, 1.0, checkpoint="one") for name, nfe in (("b", 8), ("a", 8), ("c", 8 - 1e-9))]
    for some in (tries, tries[::-1]):
        assert best(*some) == {"c"}
        assert best(*(each for each in some if each.name != "c")) == {"a"}


def test_a_reference_that_is_recommended_is_no_close_call_with_itself():
    assert "close call" not in frontier(teacher(64, 1.0), point("far", 1, 9.0)).recommend(1.0).reason
    assert "close call" in frontier(teacher(64, 1.0), point("near", 1, 1.0)).recommend(1.0).reason


def test_the_table_fits_a_terminal():
    long = point("students/of-a-very-long-name-that-nobody-wants-to-type-twice-in-one-day-or-ever", 1, 123.456)
    lines = frontier(*DIGITS.points, long).table().splitlines()
    assert max(map(len, lines)) <= WIDTH
    assert any("students/of" in line and "or-ever" in line for line in lines)


def test_columns_are_aligned():
    lines = DIGITS.table().splitlines()[: 1 + len(DIGITS.points)]
    assert len({len(line) for line in lines}) == 1
    ends = lines[0].index("calls") + len("calls")
    assert all(line[ends - 1] != " " and line[ends] == " " for line in lines)


@pytest.mark.parametrize(
    ("value", "se", "text"),
    [
        (52.3712, 0.814, "52.37+-0.81"),
        (0.5646, 0.1307, "0.56+-0.13"),
        (52.31, 2.04, "52.3+-2.0"),
        (1234.5, 123.0, "1234+-123"),
        (2.2912, 0.1149, "2.29+-0.11"),
        (1234.5, 67.8, "1234+-68"),
        (-0.00123, 0.000456, "-0.00123+-0.00046"),
        (0.5, 0.0, "0.5000+-0.0000"),
        (1.0, 1e-9, "1.000000+-0.000000"),
    ],
)
def test_a_number_ends_where_its_error_begins(value, se, text):
    assert Estimate(value, se).plus_minus() == text
    assert Estimate(value, se).plus_minus(" of ") == text.replace("+-", " of ")


# --- what may not be compared


@pytest.mark.parametrize(("key", "value"), [("n", 500), ("seed", 4), ("features", "f" * 64), ("weights", "raw")])
def test_points_that_were_not_measured_alike_are_refused(key, value):
    with pytest.raises(UserError, match=f"differ in {key}"):
        frontier(point("a", 1, 1.0), point("b", 2, 1.0), point("c", 4, 1.0, **{key: value}))


def test_a_network_from_elsewhere_may_be_compared_with_what_was_trained_here():
    given = point("a", 1, 1.0, weights="given")
    assert frontier(given).points
    found = frontier(given, point("b", 2, 1.0), point("c", 4, 1.0))
    assert found.to_json()["about"]["weights"] == "ema and given"
    with pytest.raises(UserError, match="b and c differ in weights"):
        frontier(given, point("b", 2, 1.0), point("c", 4, 1.0, weights="raw"))


def test_two_points_of_one_name_and_no_point_are_refused():
    with pytest.raises(UserError, match="two points are called 'a'"):
        frontier(point("a", 1, 1.0), point("b", 2, 1.0), point("a", 4, 1.0))
    with pytest.raises(UserError, match="at least one point"):
        frontier()


@pytest.mark.parametrize("change", [{"fd": math.nan}, {"kid_se": math.inf}, {"nfe": 0}, {"rmse_teacher": -math.inf}])
def test_a_point_has_finite_numbers_and_costs_something(change):
    with pytest.raises(ValueError, match=f"point p: {next(iter(change))}"):
        point("p", **{"nfe": 1, "fd": 1.0, **change})


# --- at the edges of the rules


def test_the_error_of_the_bar_grows_with_the_tolerance():
    """1.5 times a number is 1.5 times as uncertain: the teacher's 0.05 becomes 0.075, the floor's 0.045 0.0675."""
    for margin, doubtful in ((0.12, True), (0.16, False)):
        found = frontier(teacher(64, 1.0), point("near", 1, 1.5 - margin, fd_se=0.0)).recommend(1.5)
        assert found.point.name == "near"
        assert ("close call" in found.reason) == doubtful
    for margin, doubtful in ((0.11, True), (0.14, False)):
        found = frontier(teacher(64, 0.1), point("near", 1, 1.5 * 0.321 - margin, fd_se=0.0)).recommend(1.5)
        assert ("close call" in found.reason) == doubtful


def test_the_reference_itself_is_no_close_call():
    assert "close call" not in frontier(teacher(64, 1.0)).recommend(1.01).reason


def test_a_reference_stands_in_for_a_teacher_that_is_not_there():
    found = frontier(point("pd4", 4, 28.0)).recommend(2.0, reference=teacher(64, 20.0))
    assert found.point.name == "pd4"
    assert "within 2 times the reference (teacher-ddim-uniform-64" in found.reason
    assert [warning.split(":")[0] for warning in found.warnings] == ["no sampling comes near the real images"]


def test_far_takes_the_floor_s_own_error_into_account():
    """0.6741 above the floor: two errors of 0.335 are less, with the floor's 0.045 they are more."""
    assert warned(teacher(64, 3.1 * 0.321, fd_se=0.335), point("a", 1, 5.0)) == ()
    assert len(warned(teacher(64, 3.1 * 0.321, fd_se=0.335), point("a", 1, 5.0), fd_se=0.0)) == 2


def test_one_of_equal_tries_is_the_best_the_cheaper_then_the_first_by_name():
    tries = [point(name, nfe, 1.5, checkpoint="cd") for name, nfe in (("b", 8), ("a", 8), ("c", 8))]
    assert best(*tries) == {"a"}
    assert best(*tries, point("z", 8 - 1e-9, 1.5, checkpoint="cd")) == {"z"}
    assert [each.name for each in with_best(tries)] == ["b", "a", "c"]
    chosen = frontier(teacher(64, 9.0), *tries, point("y", 9, 1.4)).recommend(0.2)
    assert chosen.point.name == "a"
    assert (
        frontier(*tries, teacher(2, 1.5)).recommend(0.01).point.nfe == 2
    )  # none qualifies: the best, the cheapest of it


def test_the_table_shows_the_best_of_each_kind_and_rare_measures_where_there_are_any():
    tried = dataclasses.replace(DIGITS.points[1], name="tried", best=False)
    lines = frontier(*DIGITS.points, tried).table().splitlines()
    assert not any(line[1:].split()[:1] == ["tried"] for line in lines)
    assert "1 more points, tried and not the best of their kind, are in frontier.csv" in " ".join(lines)
    assert "tried," in frontier(*DIGITS.points, tried).to_csv()
    assert lines[0].split() == ["name", "calls", "fd", "kid", "rmse_teacher", "ms/image"]
    assert "more points" not in DIGITS.table()
    known = point("known", 2, 3.0, accuracy=0.5, accuracy_se=0.012, bits=1.25, bits_se=0.034, ms_per_image=12.345)
    without = {name: each for name, each in known.metrics.items() if name != "bits"}
    other = dataclasses.replace(known, name="no bits", metrics=without)
    head, *rows = frontier(*DIGITS.points, known, other).table().split("\n")
    assert head.split() == ["name", "calls", "fd", "kid", "rmse_teacher", "accuracy", "bits", "ms/image"]
    (row,) = [row for row in rows if row[1:].split()[:1] == ["known"]]
    assert row.split()[-4:] == ["0.1234+-0.0056", "0.500+-0.012", "1.250+-0.034", "12.3"]
    (row,) = [row for row in rows if "no bits" in row]
    assert row.split()[-2] == "-"


def spread(value: float, se: float = 0.01) -> dict[str, float]:
    return {"recall": value, "recall_se": se}


BROAD, NARROW, POOR = (
    teacher(64, 1.0, **spread(0.93)),
    point("narrow", 1, 1.1, **spread(0.76)),
    point("poor", 1, 1.4, **spread(0.85)),
)


def test_a_point_loses_diversity_where_it_keeps_less_of_it_than_of_the_quality():
    """As measured once: a one-step student of 0.30 with recall 0.76, one of 0.41 with 0.85, a teacher of 0.27 with 0.93."""
    loss = diversity.loss(NARROW, BROAD, FLOOR)
    assert (loss.measure, loss.kept, loss.quality) == ("recall", pytest.approx(0.76 / 0.93), pytest.approx(1 / 1.1))
    assert diversity.loss(POOR, BROAD, FLOOR) is None
    assert diversity.loss(BROAD, BROAD, FLOOR) is None
    assert diversity.loss(point("far", 1, 2.1, **spread(0.1)), BROAD, FLOOR) is None
    assert diversity.loss(point("near", 1, 1.9, **spread(0.1)), BROAD, FLOOR)
    assert diversity.loss(point("as-near", 1, 1.0, **spread(0.925)), BROAD, FLOOR) is None  # by chance
    assert diversity.loss(point("as-near", 1, 1.0, **spread(0.90)), BROAD, FLOOR).kept == pytest.approx(0.90 / 0.93)
    assert diversity.loss(point("wide", 1, 1.0, **spread(0.76, se=0.2)), BROAD, FLOOR) is None
    assert diversity.loss(point("unmeasured", 1, 1.0), BROAD, FLOOR) is None
    assert diversity.loss(NARROW, teacher(64, 1.0, **spread(0.0)), FLOOR) is None


def test_of_several_measures_the_one_of_which_least_is_kept_counts():
    reference = teacher(64, 1.0, **spread(0.93), coverage=0.96, coverage_se=0.01)
    lost = diversity.loss(point("p", 1, 1.0, **spread(0.8), coverage=0.5, coverage_se=0.01), reference, FLOOR)
    assert (lost.measure, lost.kept) == ("coverage", pytest.approx(0.5 / 0.96))


def test_below_the_floor_no_distance_is_lost():
    """Nothing is nearer to the real images than a perfect sampler but by luck: a lucky teacher excuses no student."""
    lucky = teacher(64, 0.1, **spread(0.93))
    assert diversity.loss(point("p", 1, 0.32, **spread(0.80)), lucky, FLOOR).quality == 1.0


def test_a_point_that_lost_diversity_is_passed_over_where_another_is_near_enough():
    kept = point("kept", 4, 1.2, **spread(0.92))
    chosen = frontier(BROAD, NARROW, kept).recommend(1.5)
    assert chosen.point.name == "kept"
    assert (
        "; narrow keeps 0.82 of the diversity of teacher-ddim-uniform-64 (recall 0.760+-0.010 of 0.930+-0.010)"
        in chosen.reason
    )
    assert chosen.reason.endswith("where its fd keeps 0.91, so it is passed over.")
    assert not any("keeps" in warning for warning in chosen.warnings)
    assert frontier(BROAD, kept).recommend(1.5).reason.count("passed over") == 0
    assert (
        frontier(teacher(64, 1.0), NARROW).recommend(1.5).point.name == "narrow"
    )  # of a teacher whose recall was not measured nothing is known


def test_where_all_have_lost_diversity_the_first_is_recommended_with_a_warning():
    narrower = point("narrower", 2, 1.05, **spread(0.7))
    reference = teacher(64, 1.0, **spread(0.93))
    chosen = frontier(teacher(32, 9.0, **spread(0.9)), NARROW, narrower).recommend(1.5, reference)
    assert chosen.point.name == "narrow"
    assert chosen.warnings[0].startswith("narrow keeps 0.82 of the diversity of teacher-ddim-uniform-64 (recall ")
    assert chosen.warnings[0].endswith(": it makes fewer kinds of image than the teacher")


def test_the_table_marks_who_lost_diversity():
    table = frontier(BROAD, NARROW, POOR).table()
    begins = {
        name: line for line in table.splitlines()[1:4] for name in names([BROAD, NARROW, POOR]) if name in line.split()
    }
    assert {name: line[:2].strip() for name, line in begins.items()} == {
        "narrow": "*~",
        "teacher-ddim-uniform-64": "*",
        "poor": "",
    }
    assert "~ has lost more of the teacher's diversity than of its quality; most of all narrow keeps 0.82" in " ".join(
        table.split()
    )
    assert "~" not in frontier(BROAD, POOR).table()


def obeying(value: float, se: float = 0.01) -> dict[str, float]:
    return {"accuracy": value, "accuracy_se": se}


OBEDIENT, WILFUL = teacher(64, 1.0, **obeying(0.96)), point("wilful", 1, 1.1, **obeying(0.62))


def test_obedience_is_the_accuracy_above_guessing():
    """Of a guess of 0.11 a teacher's 0.96 is 0.85 above; a student of 0.62 keeps 0.51 of that, and 0.65 of the accuracy."""
    loss = diversity.loss(WILFUL, OBEDIENT, FLOOR, JUDGE.chance)
    assert (loss.lost, loss.measure, loss.kept) == ("obedience", "accuracy", pytest.approx(0.51 / 0.85))
    keeps = point("keeps", 1, 1.1, **obeying(0.11 + 0.92 * 0.85))
    assert diversity.loss(keeps, OBEDIENT, FLOOR, JUDGE.chance) is None  # more than of the quality, 0.91
    assert diversity.loss(point("less", 1, 1.1, **obeying(0.11 + 0.90 * 0.85)), OBEDIENT, FLOOR, JUDGE.chance)
    unsure = point("unsure", 1, 1.1, **obeying(0.62, se=0.2))
    assert diversity.loss(unsure, OBEDIENT, FLOOR, JUDGE.chance) is None
    assert diversity.loss(point("guesses", 1, 1.1, **obeying(0.09)), OBEDIENT, FLOOR, 0.11).kept < 0
    guessing = teacher(64, 1.0, **obeying(0.11))
    assert diversity.loss(point("guesses", 1, 1.1, **obeying(0.01)), guessing, FLOOR, 0.11) is None  # nothing to lose
    assert diversity.loss(point("deaf", 1, 1.1), OBEDIENT, FLOOR, JUDGE.chance) is None  # nobody asked it for classes


def test_a_point_that_lost_obedience_is_passed_over_marked_and_named():
    obeys = point("obeys", 4, 1.2, **obeying(0.95))
    whole = frontier(OBEDIENT, WILFUL, obeys)
    chosen = whole.recommend(1.5)
    assert chosen.point.name == "obeys"
    words = "wilful keeps 0.60 of the obedience of teacher-ddim-uniform-64 (accuracy 0.620+-0.010 of 0.960+-0.010)"
    assert f"; {words} where its fd keeps 0.91, so it is passed over." in chosen.reason
    assert list(whole.losses()) == ["wilful"]
    assert (
        f"~ has lost more of the teacher's diversity or obedience than of its quality; most of all {words}"
        in " ".join(whole.table().split())
    )
    alone = frontier(teacher(32, 9.0, **obeying(0.9)), WILFUL).recommend(1.5, OBEDIENT)
    assert alone.point == WILFUL
    assert alone.warnings[0].endswith("its images are what was asked for less often than the teacher's")


def test_of_diversity_and_obedience_the_one_of_which_least_is_kept_is_named():
    reference = teacher(64, 1.0, **spread(0.93), **obeying(0.96))
    both = point("both", 1, 1.0, **spread(0.60), **obeying(0.80))
    assert diversity.loss(both, reference, FLOOR, JUDGE.chance).lost == "diversity"
    both = point("both", 1, 1.0, **spread(0.80), **obeying(0.60))
    assert diversity.loss(both, reference, FLOOR, JUDGE.chance).lost == "obedience"


@pytest.mark.parametrize("measure", ["caption_accuracy", "caption_accuracy_unseen"])
def test_of_captions_all_that_is_right_counts_as_obedience(measure):
    """Though classes are guessed: a student of 0.40 keeps half of a teacher's 0.80."""
    asked, deaf = ({measure: value, f"{measure}_se": 0.01} for value in (0.8, 0.4))
    reference, student = teacher(64, 1.0, **asked), point("deaf", 1, 1.1, **deaf)
    loss = diversity.loss(student, reference, FLOOR, JUDGE.chance)
    assert (loss.lost, loss.measure, loss.kept) == ("obedience", measure, pytest.approx(0.5))
    assert frontier(reference, student).losable == "diversity or obedience"


def test_where_no_class_was_asked_for_nobody_speaks_of_obedience():
    assert frontier(BROAD, NARROW).losable == "diversity"
    assert frontier(BROAD, NARROW, WILFUL).losable == "diversity or obedience"


@pytest.mark.parametrize("best", [0.1, 0.5])
def test_the_fastest_is_the_fewest_calls_that_are_near_enough(best):
    """The floor is 0.321; the bar is 1.5 times that or the teacher's best, whichever is higher."""
    bar = 1.5 * max(best, 0.321)
    three = frontier(teacher(64, best), point("enough", 2, bar * (1 - 1e-9)), point("short", 1, bar * (1 + 1e-9)))
    assert recommendation.bar(three.points, three.floor, 1.5).value == pytest.approx(bar)
    assert recommendation.fastest(three.points, three.floor, 1.5).name == "enough"


def test_the_fastest_may_have_lost_diversity_and_where_none_is_near_enough_it_is_the_best():
    three = frontier(BROAD, NARROW, point("kept", 4, 1.2, **spread(0.92)))
    assert recommendation.fastest(three.points, three.floor, 1.5) == NARROW
    assert three.recommend(1.5).point.name == "kept"
    assert recommendation.fastest(three.points, three.floor, 0.5) == three.recommend(0.5).point == BROAD
