"""The tool that says whether two runs gave the same notices one that did not."""

import json
from pathlib import Path

import pytest

from bench import compare_runs

POINTS = [
    {"name": "a", "nfe": 4, "fd": 1.5, "bits": None, "times": [1.0, 0.5, 0.0], "ms_per_image": 3.0, "best": True},
    {"name": "b", "nfe": 2, "fd": 2.5, "bits": 3.0, "times": [1.0, 0.0], "ms_per_image": 4.0, "best": False},
]


def run(folder: Path, points: list[dict] = POINTS, weights: bytes = b"w", floor: float = 0.2) -> Path:
    (folder / "checkpoints/pd/unet").mkdir(parents=True)
    (folder / "checkpoints/pd/unet/net.safetensors").write_bytes(weights)
    (folder / "frontier.json").write_text(json.dumps({"floor": {"fd": floor, "real": "halves"}, "points": points}))
    return folder


def told(tmp_path: Path, capsys, *more: str, **other) -> tuple[int, str]:
    run(tmp_path / "one")
    run(tmp_path / "other", **other)
    code = compare_runs.main([str(tmp_path / "one"), str(tmp_path / "other"), *more])
    return code, capsys.readouterr().out


def but(place: int, **changes) -> list[dict]:
    return [{**point, **(changes if number == place else {})} for number, point in enumerate(POINTS)]


@pytest.mark.parametrize(
    "other", [{}, {"points": but(0, name="another", ms_per_image=9.0)}, {"points": but(1, sampler="ddim")}]
)
def test_names_and_milliseconds_are_not_compared(tmp_path, capsys, other):
    assert told(tmp_path, capsys, **other) == (0, "the same: 1 files of weights, 2 points\n")


@pytest.mark.parametrize(
    ("other", "line"),
    [
        ({"weights": b"v"}, "pd/unet/net.safetensors: "),
        ({"floor": 0.25}, "the floor: fd 0.2 before, 0.25 after"),
        ({"points": but(1, fd=2.5000001)}, "b: fd 2.5 before, 2.5000001 after"),
        ({"points": but(1, times=[1.0, 0.1])}, "b: times.1 0.0 before, 0.1 after"),
        ({"points": but(1, bits=None)}, "b: bits 3.0 before, nan after"),
        ({"points": but(0, bits=3.0)}, "a: bits nan before, 3.0 after"),
        ({"points": POINTS[:1]}, "point 2: b is on one side only"),
        ({"points": POINTS[::-1]}, "b: nfe 4 before, 2 after"),
    ],
)
def test_anything_else_is_told(tmp_path, capsys, other, line):
    code, words = told(tmp_path, capsys, **other)
    assert code == 1
    assert any(each.startswith(line) for each in words.splitlines())


def test_numbers_may_differ_by_as_much_as_is_said(tmp_path, capsys):
    assert told(tmp_path, capsys, "--within", "1e-6", points=but(1, fd=2.5000001))[0] == 0
