import csv
import json
import random

import pytest

from diffcore.frontier import WIDTH, Frontier, Point, plus_minus
from diffcore.mistake import Mistake
from diffcore.quality import Floor

FLOOR = Floor(0.3, 0.1, 0.001, 0.002, 0.2, 0.01, (500, 500))


def point(
    name: str, nfe: float = 4, fd: float = 1.0, fd_se: float = 0.01, method: str = "progressive", **more
) -> Point:
    fields = {
        "checkpoint": name, "sampler": "ddim", "trajectory": "even", "kid": 0.1, "kid_se": 0.01, "fd_pixels": 0.5,
        "fd_pixels_se": 0.02, "rmse_teacher": 0.2, "rmse_teacher_se": 0.003, "ms_per_image": 1.5, "n": 1000, "seed": 0,
        "weights": "ema", "features": "f" * 64, "checkpoint_digest": "c" * 64, "times": (1.0, 0.0),
    }  # fmt: skip
    return Point(name=name, method=method, nfe=nfe, fd=fd, fd_se=fd_se, **{**fields, **more})


def frontier(*points: Point) -> Frontier:
    return Frontier(points, FLOOR, "d" * 64)


TEACHER = point("teacher", 64, 1.0, method="teacher", rmse_teacher=None, rmse_teacher_se=None)


def test_dominance_is_that_of_brute_force():
    dice = random.Random(0)
    for _ in range(50):
        points = [point(f"p{i}", dice.choice([1, 2, 4, 8]), dice.choice([1.0, 2.0, 3.0, 4.0])) for i in range(12)]
        brute = {
            p.name for p in points
            if not any((q.nfe < p.nfe and q.fd <= p.fd) or (q.nfe <= p.nfe and q.fd < p.fd) for q in points)
        }  # fmt: skip
        assert {p.name for p in frontier(*points).non_dominated()} == brute


def test_the_fewest_calls_within_the_tolerance_are_recommended():
    table = frontier(TEACHER, point("a", 1, 2.3), point("b", 2, 1.4), point("c", 4, 1.2))
    assert table.recommend(1.5).point.name == "b"
    assert table.recommend(3.0).point.name == "a"
    assert table.recommend(1.0).point.name == "teacher"
    reason = table.recommend(1.5).reason
    for word in ("b", "2 network calls", "1.400+-0.010", "1.5 times", "64 network calls"):
        assert word in reason


def test_a_close_call_is_called_one():
    table = frontier(point("teacher", 64, 1.0, 0.2, method="teacher"), point("b", 2, 1.4, 0.2))
    assert "a close call" in table.recommend(1.5).reason
    assert "a close call" not in frontier(TEACHER, point("b", 2, 1.1)).recommend(1.5).reason


def test_if_nothing_qualifies_the_best_is_named_and_it_says_so():
    reference = point("other", 64, 0.1, method="teacher")
    chosen = frontier(TEACHER, point("a", 1, 2.3)).recommend(1.5, reference)
    assert chosen.point == TEACHER
    assert "no point is within" in chosen.reason


def test_without_a_teacher_nothing_can_be_recommended():
    with pytest.raises(Mistake, match="evaluate the teacher too"):
        frontier(point("a")).recommend(1.5)


def test_json_gives_the_same_frontier_back():
    table = frontier(TEACHER, point("a", 1, 2.3, kid=1 / 3))
    value = json.loads(json.dumps(table.to_json(table.recommend(1.5))))
    assert Frontier.from_json(value) == table
    assert value["recommended"]["name"] == "teacher"
    for wrong in ({}, {**value, "schema": 9}, {**value, "points": [{"name": "x"}]}):
        with pytest.raises(Mistake, match="run the stage `evaluate` again"):
            Frontier.from_json(wrong)


def test_csv_has_a_row_for_each_point_with_exact_numbers():
    rows = list(csv.DictReader(frontier(TEACHER, point("a", 1, 1 / 3)).to_csv().splitlines()))
    assert [row["name"] for row in rows] == ["teacher", "a"]
    assert float(rows[1]["fd"]) == 1 / 3
    assert [row["frontier"] for row in rows] == ["0", "1"]


def test_the_table_fits_a_terminal_and_tells_how_its_numbers_came_about():
    table = frontier(TEACHER, point("a-name-that-is-far-too-long-for-any-terminal-" * 3, 1, 2.3)).table()
    lines = table.splitlines()
    assert max(map(len, lines)) <= WIDTH
    assert lines[1].startswith("*")
    for word in ("1.000+-0.010", "N = 1000", "seed 0", "ema", "ffffffffffff", "500 real images", "0.30+-0.10"):
        assert word in table


def test_points_measured_differently_do_not_go_together():
    with pytest.raises(Mistake, match=r"differ in n \(1000 and 500\)"):
        frontier(TEACHER, point("a", n=500))
    with pytest.raises(Mistake, match="differ in features"):
        frontier(TEACHER, point("a", features="0" * 64))
    with pytest.raises(Mistake, match="two points are called 'a'"):
        frontier(point("a"), point("a"))
    with pytest.raises(Mistake, match="at least one point"):
        frontier()


def test_a_number_that_is_not_finite_is_no_point():
    with pytest.raises(ValueError, match="fd is nan"):
        point("a", fd=float("nan"))
    with pytest.raises(ValueError, match="nfe must be positive"):
        point("a", nfe=0)


@pytest.mark.parametrize(
    ("value", "se", "text"), [(2.2949, 0.11, "2.29+-0.11"), (104.2, 0.17, "104.20+-0.17"), (0.5, 0.0, "0.5000+-0.0000")]
)
def test_numbers_are_shown_to_the_second_digit_of_their_error(value, se, text):
    assert plus_minus(value, se) == text
