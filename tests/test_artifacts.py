"""Whatever happens to an artifact between two stages, the stage that reads it says so in one line."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from diffcore import checkpoints
from diffcore.core import disk
from diffcore.core.errors import UserError
from diffcore.data.read import load_resident
from diffcore.metrics import bootstrap, features
from diffcore.search import gamma
from tasks import frontier as frontiers
from tasks import measure, params, paths, report, search
from tasks.tracking.artifacts import cost_of, thinned
from tests.test_measure import make, measure_all


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, params.Params]:
    """A project up to its report."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bootstrap, "RESAMPLES", 10)
        found = make(folder, patch, 0, False)
        for name in ("teacher", *found.distill):
            disk.write_summed(paths.CURVES / f"{name}.csv", "step,images,loss,grad_norm,lr\n1,4,0.5,1.0,0.001\n")
            disk.write_sealed(paths.COST / f"{name}.json", {"seconds": 1.0, "iterations": 1})
        measure_all(found)
        disk.write_sealed(paths.PUBLISHED, {"tracking_uri": "http://127.0.0.1:1", "ui": "#"})
    return folder, found


def readers() -> dict[str, Callable[[params.Params, Path], object]]:
    """By the beginning of a path under artifacts/: a stage's way to read it."""
    return {
        "data": lambda found, path: load_resident(paths.DATA),
        "features": lambda found, path: features.load(paths.FEATURES),
        "checkpoints": lambda found, path: checkpoints.load(paths.ARTIFACTS.joinpath(*path.parts[1:3])),
        "curves": lambda found, path: [frontiers.curves(), thinned(Path(str(path).removesuffix(".sha256")))],
        "cost": lambda found, path: [frontiers.costs(), cost_of(path, path.stem)],
        "gamma.json": lambda found, path: search.find(found),
        "trajectory.json": lambda found, path: measure.Bench(found, "v"),
        "points": lambda found, path: frontiers.merge(found),
        "reference": lambda found, path: measure.Bench(found, "v"),
        "frontier.json": lambda found, path: report.report(),
        "published.json": lambda found, path: report.report(),
    }


PICTURES = {".png"}
DERIVED = {"frontier.csv", "quality.json", "report.html"}
"""For people and for DVC; what they say is in frontier.json."""


def files() -> list[Path]:
    found = [path for path in sorted(paths.ARTIFACTS.rglob("*")) if path.is_file()]
    return [path for path in found if path.suffix not in PICTURES and path.name not in DERIVED]


def told(read: Callable[[params.Params, Path], object], found: params.Params, path: Path) -> str:
    with pytest.raises(UserError) as caught:
        read(found, path)
    return str(caught.value)


def changed(content: bytes) -> bytes:
    """One digit made another, or else one bit: as a hand or a disk would. Not the last of a long number, which says the same
    with another one there."""
    digits = [place for place, byte in enumerate(content) if chr(byte).isdigit()]
    places = digits[len(digits) // 2 :] or [len(content) // 2]
    flipped = (content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :] for place in places)
    return next(other for other in flipped if not says_the_same(content, other))


def says_the_same(content: bytes, other: bytes) -> bool:
    try:
        return json.loads(content) == json.loads(other)
    except ValueError:
        return False


DAMAGES = {
    "changed": changed,
    "cut": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "garbage": lambda content: b"\xff\x00garbage",
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", readers())
def test_every_damage_of_every_file_is_named_in_one_line(kind, project, capsys):
    read = readers()[kind]
    mine = [path for path in files() if path.parts[1] == kind]
    assert mine
    for path in mine:
        read(project, path)  # whole, it is taken
        whole = path.read_bytes()
        for damage in DAMAGES.values():
            path.write_bytes(damage(whole))
            line = told(read, project, path)
            assert re.search(re.escape(str(path.with_suffix("").name.partition(".")[0])), line), line
            assert "\n" not in line
        if path == paths.PUBLISHED:  # a report needs no receipt
            continue
        path.unlink()
        assert "missing" in (line := told(read, project, path)) or "holds no" in line or "is not" in line
        path.write_bytes(whole)


def test_every_file_that_a_stage_reads_has_a_reader_here(project):
    assert {path.parts[1] for path in files()} == set(readers())


def resealed(path: Path, change: Callable[[dict], None]) -> None:
    value = json.loads(path.read_text())
    value.pop("seal")
    change(value)
    disk.write_sealed(path, value)


@pytest.mark.parametrize("path", [paths.GAMMA, paths.TRAJECTORY, paths.FRONTIER])
def test_another_schema_is_named(path, project):
    resealed(path, lambda value: value.update(schema=1000))
    read = readers()[path.name]
    assert "has schema 1000, this version reads" in told(read, project, path)


def test_gamma_of_another_teacher_is_refused_by_all_who_read_it(project):
    shutil.rmtree(paths.CHECKPOINTS / "teacher")
    shutil.copytree(paths.CHECKPOINTS / "v", paths.CHECKPOINTS / "teacher")
    for name in ("teacher", "v"):
        with pytest.raises(UserError, match=r"gamma\.json was estimated from checkpoint \w{12}, and the one here is"):
            measure.Bench(project, name)


def test_times_searched_with_another_gamma_are_refused(project):
    resealed(paths.GAMMA, lambda value: value.update(edges=0.125))
    with pytest.raises(
        UserError, match=r"trajectory\.json was made from another gamma\.json; run the stage `search` again"
    ):
        measure.Bench(project, "v")


def test_a_model_that_is_served_knows_its_gamma(project):
    digest = checkpoints.read_card(paths.CHECKPOINTS / "teacher").digest
    assert gamma.read(paths.GAMMA, digest, "x") == gamma.read(paths.GAMMA, None, "x")
    with pytest.raises(UserError, match="and the one here is 000000000000; publish it again"):
        gamma.read(paths.GAMMA, "0" * 64, "publish it again")


def test_a_checkpoint_that_was_not_measured_is_not_reported_as_the_recommended_one(project, capsys):
    report.report()
    found = json.loads(paths.FRONTIER.read_text())
    point = next(point for point in found["points"] if point["name"] == found["recommended"]["name"])
    assert f"the checkpoint is {paths.CHECKPOINTS / point['checkpoint']}" in capsys.readouterr().out
    folder, other = paths.CHECKPOINTS / point["checkpoint"], {"teacher": "v"}.get(point["checkpoint"], "teacher")
    shutil.rmtree(folder)
    shutil.copytree(paths.CHECKPOINTS / other, folder)
    measured, here = point["checkpoint_digest"][:12], checkpoints.read_card(folder).digest[:12]
    with pytest.raises(UserError, match=f"is {here}, not the {measured} that was measured.*distill run"):
        report.report()
    assert "the checkpoint is" not in capsys.readouterr().out
