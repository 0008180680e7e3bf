"""The tool that says whether two runs gave the same notices one that did not."""

import json
from pathlib import Path

import pytest

from bench import compare_runs

POINTS = [
    {
        "name": "a",
        "nfe": 4,
        "fd": 1.5,
        "fd_se": 0.1,
        "bits": None,
        "times": [1.0, 0.5, 0.0],
        "ms_per_image": 3.0,
        "best": True,
    },
    {
        "name": "b",
        "nfe": 2,
        "fd": 2.5,
        "fd_se": 0.2,
        "bits": 3.0,
        "bits_se": 0.5,
        "times": [1.0, 0.0],
        "ms_per_image": 4.0,
        "best": False,
    },
]


def nested(row: dict) -> dict:
    """A point or a floor as schema 4 has it."""
    metrics = {name: {"value": row[name], "se": row.get(f"{name}_se", 0.0)} for name in ("fd", "bits") if row.get(name)}
    others = {key: value for key, value in row.items() if key.removesuffix("_se") not in ("fd", "bits")}
    return others | {"metrics": metrics}


def run(folder: Path, points: list[dict] = POINTS, weights: bytes = b"w", floor: float = 0.2, schema: int = 3) -> Path:
    (folder / "checkpoints/pd/unet").mkdir(parents=True)
    (folder / "checkpoints/pd/unet/net.safetensors").write_bytes(weights)
    shape = nested if schema == 4 else dict
    table = {"floor": shape({"fd": floor, "fd_se": 0.1, "real": "halves"}), "points": [*map(shape, points)]}
    (folder / "frontier.json").write_text(json.dumps(table))
    return folder


@pytest.fixture(params=[(3, 3), (3, 4), (4, 4)], ids=["old and old", "old and new", "new and new"])
def told(request, tmp_path, capsys):
    """Compares a run with another one, of these schemas: the exit code and what is printed."""

    def compare(*more: str, **other) -> tuple[int, str]:
        old, new = request.param
        run(tmp_path / "one", schema=old)
        run(tmp_path / "other", schema=new, **other)
        code = compare_runs.main([str(tmp_path / "one"), str(tmp_path / "other"), *more])
        return code, capsys.readouterr().out

    return compare


def but(place: int, **changes) -> list[dict]:
    return [{**point, **(changes if number == place else {})} for number, point in enumerate(POINTS)]


@pytest.mark.parametrize(
    "other",
    [
        {},
        {"points": but(0, ms_per_image=9.0)},
        {"points": POINTS[::-1]},
        {"points": but(1, sampler="ddim")},
        {"points": but(1, trajectory="least_cost")},
    ],
)
def test_milliseconds_and_the_order_of_points_are_not_compared(told, other):
    assert told(**other) == (0, "the same: 1 files of weights, 2 points\n")


@pytest.mark.parametrize(
    ("other", "line"),
    [
        ({"weights": b"v"}, "pd/unet/net.safetensors: "),
        ({"floor": 0.25}, "the floor: fd 0.2 before, 0.25 after"),
        ({"points": but(1, fd=2.5000001)}, "b: fd 2.5 before, 2.5000001 after"),
        ({"points": but(1, times=[1.0, 0.1])}, "b: times.1 0.0 before, 0.1 after"),
        ({"points": but(1, bits=None)}, "b: bits 3.0 before, nan after"),
        ({"points": but(0, bits=3.0)}, "a: bits nan before, 3.0 after"),
        ({"points": POINTS[:1]}, "b: in one only"),
        ({"points": but(0, name="another")}, "a: in one only"),
        ({"points": but(0, name="another")}, "another: in other only"),
        ({"points": [POINTS[1] | {"name": "new"}, *but(0, fd=1.25)]}, "a: fd 1.5 before, 1.25 after"),
    ],
)
def test_anything_else_is_told(told, tmp_path, other, line):
    code, words = told(**other)
    assert code == 1
    assert any(each.replace(f"{tmp_path}/", "").startswith(line) for each in words.splitlines())


def test_a_point_more_in_between_changes_nothing_of_the_others(told):
    code, words = told(points=[POINTS[0], POINTS[1] | {"name": "new"}, POINTS[1]])
    assert code == 1
    assert len(words.splitlines()) == 1


def test_a_folder_without_a_frontier_is_named(tmp_path, capsys):
    run(tmp_path / "one")
    with pytest.raises(SystemExit) as ended:
        compare_runs.main([str(tmp_path / "one"), str(tmp_path)])
    assert ended.value.code == 2
    assert f"{tmp_path} holds no frontier.json" in capsys.readouterr().err


def test_numbers_may_differ_by_as_much_as_is_said(told):
    assert told("--within", "1e-6", points=but(1, fd=2.5000001))[0] == 0
