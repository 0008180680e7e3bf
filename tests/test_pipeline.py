"""The whole graph on real digits, at the size of the smoke preset and below: runs, does nothing twice, survives kill -9."""

import contextlib
import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tasks import strict_yaml

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.slow

SMALLER = [
    "features.iterations=20",
    "teachers.teacher.iterations=60",
    "distill.pd4.iterations=10",
    "distill.pd2.iterations=10",
    "distill.pd1.iterations=10",
    "distill.cd.iterations=10",
    "distill.dm1.iterations=4",
    "evaluate.images=60",
    "compute.save_seconds=0.3",
]


def make(folder: Path, *changes: str) -> Path:
    command = [sys.executable, "-m", "tasks", "workspace", str(folder), "--preset", "smoke"]
    subprocess.run(
        command + [word for change in (*SMALLER, *changes) for word in ("--set", change)], cwd=ROOT, check=True
    )
    return folder


def environment() -> dict[str, str]:
    # whatever tracking server this machine has is not for tests
    return {key: value for key, value in os.environ.items() if key not in ("MLFLOW_TRACKING_URI", "VIRTUAL_ENV")}


def call(folder: Path, *words: str) -> subprocess.CompletedProcess:
    return subprocess.run(words, cwd=folder, env=environment(), capture_output=True, text=True)


def dvc(folder: Path, *words: str) -> str:
    done = call(folder, sys.executable, "-m", "dvc", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def ran(output: str) -> list[str]:
    return re.findall(r"Running stage '(.+)'", output)


def digests(folder: Path) -> dict[str, str]:
    cards = sorted(folder.glob("artifacts/checkpoints/*/card.json"))
    return {card.parent.name: json.loads(card.read_text())["digest"] for card in cards}


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, str]:
    """A workspace whose pipeline has run, and what it printed."""
    folder = make(tmp_path_factory.mktemp("pipeline") / "first")
    done = call(folder, "./stage", "run")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, done.stdout


@pytest.fixture
def copy(finished, tmp_path) -> Path:
    """A copy of the finished workspace to break."""
    return shutil.copytree(finished[0], tmp_path / "copy", symlinks=True)


def test_everything_the_readme_promises_is_there(finished):
    folder, output = finished
    rows = list(csv.DictReader((folder / "artifacts/frontier.csv").read_text().splitlines()))
    named = {"name", "method", "sampler", "trajectory", "nfe"}
    assert named | {"fd", "fd_se", "kid", "kid_se", "fd_pixels", "ms_per_image"} <= set(rows[0])
    assert {row["checkpoint"] for row in rows} == {"teacher", "pd4", "pd2", "pd1", "cd", "dm1"} == set(digests(folder))
    assert all(float(row["fd"]) > 0 and float(row["fd_se"]) > 0 for row in rows)
    for made in ("frontier.png", "frontier.json", "curves.png", "samples/all.png", "published.json", "gamma.json"):
        assert (folder / "artifacts" / made).stat().st_size > 100
    assert "recommended: " in output
    assert "artifacts/frontier.png" in output
    assert "floor" in output


def test_the_cards_tell_the_chain(finished):
    cards = {
        name: json.loads((finished[0] / f"artifacts/checkpoints/{name}/card.json").read_text())
        for name in digests(finished[0])
    }
    for child, parent in (("pd4", "teacher"), ("pd2", "pd4"), ("pd1", "pd2"), ("cd", "teacher"), ("dm1", "cd")):
        assert cards[child]["parent"] == cards[parent]["digest"]
    # a student that only jumps to images teaches nobody: who starts as it learns from the one above
    assert cards["dm1"]["teacher"] == cards["cd"]["teacher"] == cards["teacher"]["digest"]
    assert cards["teacher"]["parent"] is None
    assert [len(cards[name]["grid"]) - 1 for name in ("pd4", "pd2", "pd1")] == [4, 2, 1]
    assert len({card["data"] for card in cards.values()}) == 1


def test_the_second_run_does_nothing(finished):
    output = dvc(finished[0], "repro")
    assert ran(output) == []
    assert "up to date" in output


def test_one_number_reruns_only_what_depends_on_it(finished, copy):
    text = (copy / "params.yaml").read_text()
    changed = re.sub(r"(pd2:.*?lr: )[0-9.]+", r"\g<1>0.0015", text, count=1, flags=re.DOTALL)
    assert changed != text
    (copy / "params.yaml").write_text(changed)
    before = digests(copy)
    measured = ["measure@pd2", "measure@pd1"]
    assert sorted(ran(dvc(copy, "repro"))) == sorted(["distill@pd2", "distill@pd1", *measured, "frontier", "publish"])
    after = digests(copy)
    assert {name for name in before if before[name] != after[name]} == {"pd2", "pd1"}


def test_another_tolerance_runs_nothing_but_the_frontier_and_publish(finished, copy):
    edit(copy, "tolerance: 1.5", "tolerance: 2.5")
    assert ran(dvc(copy, "repro")) == ["frontier", "publish"]


def test_a_new_student_is_trained_and_measured_alone(finished, copy):
    raw = strict_yaml.load_yaml(copy / "params.yaml")
    raw["distill"]["pd8"] = {**raw["distill"]["pd4"], "steps": 8, "iterations": 3}
    strict_yaml.dump_yaml(json.loads(json.dumps(raw)), copy / "params.yaml")
    before = (copy / "artifacts/frontier.csv").read_text().splitlines()
    assert ran(dvc(copy, "repro")) == ["distill@pd8", "measure@pd8", "frontier", "publish"]
    after = (copy / "artifacts/frontier.csv").read_text().splitlines()
    shared = [row.rpartition(",")[0] for row in before[1:]]
    assert shared == [row.rpartition(",")[0] for row in after[1:] if not row.startswith("pd8")]


PATIENCE = 300.0
SAVED = ".resume/teacher-*/step-*/state.json"


@pytest.mark.parametrize("victim", ["teacher", "dvc", "everything"])
def test_kill_9_in_the_middle_of_a_stage_loses_nothing(finished, tmp_path, victim):
    """The same command again completes, resumes the stage where it was, and ends with the same bytes."""
    folder = make(tmp_path / "killed")
    run = subprocess.Popen(
        ["./stage", "run"], cwd=folder, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        start_new_session=True,
    )  # fmt: skip
    wait_for(lambda: any(int(state.parent.name.removeprefix("step-")) > 1 for state in folder.glob(SAVED)), run)
    members = processes(run.pid)
    assert {"run", "dvc", "teacher"} <= set(members)
    for name in members if victim == "everything" else [victim]:
        with contextlib.suppress(ProcessLookupError):  # with the first of them others end
            os.kill(members[name], signal.SIGKILL)
    run.wait(PATIENCE)  # what does not need the teacher finishes first
    run.stdout.close()
    assert "teacher" not in digests(folder)
    again = call(folder, "./stage", "run")
    assert again.returncode == 0, again.stdout + again.stderr
    assert "teachers@teacher" in ran(again.stdout)
    first = re.search(r"teacher: goes on after (\d+) of 60 updates", again.stdout)
    assert int(first[1]) > 1
    assert digests(folder) == digests(finished[0])
    assert (folder / "artifacts/frontier.csv").exists()


def wait_for(condition, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert process.poll() is None, "the pipeline ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)


def processes(root: int) -> dict[str, int]:
    """The process and those below it: pids by the last word of the command line, which tells them apart."""
    pids = {}
    for process in (top := psutil.Process(root), *top.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            words = process.cmdline()
            dvc = words[1:3] == ["-m", "tasks.dvc_repro"] and words[-1] == "teachers@teacher"
            pids["dvc" if dvc else words[-1] if words else ""] = process.pid
    return pids


def spoil(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.unlink()  # it may be a link into the cache
    path.write_bytes(content)


def cut(path: Path) -> None:
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[: len(content) // 2])


BROKEN = {
    "a shard whose digest is wrong": (
        ["features"],
        lambda folder: spoil(next(folder.glob("artifacts/data/*.tar"))),
        r"\.tar is .*not what the manifest says: run the shard stage again",
    ),
    "an unreadable shard": (
        ["train", "teacher"],
        lambda folder: cut(next(folder.glob("artifacts/data/*.tar"))),
        r"\.tar is .*not what the manifest says: run the shard stage again",
    ),
    "a missing shard": (
        ["train", "teacher"],
        lambda folder: next(folder.glob("artifacts/data/*.tar")).unlink(),
        r"\.tar is missing.*: run the shard stage again",
    ),
    "a missing parent": (
        ["train", "pd2"],
        lambda folder: shutil.rmtree(folder / "artifacts/checkpoints/pd4"),
        r"checkpoints/pd4 is not a checkpoint: it has no card\.json",
    ),
    "a checkpoint with a bad card": (
        ["train", "pd2"],
        lambda folder: spoil(folder / "artifacts/checkpoints/pd4/card.json"),
        r"checkpoints/pd4/card\.json",
    ),
    "damaged weights": (
        ["gamma"],
        lambda folder: spoil(folder / "artifacts/checkpoints/teacher/unet/diffusion_pytorch_model.safetensors"),
        r"is damaged: its sha256 does not fit the card",
    ),
    "a student that is not there": (
        ["train", "pd3"],
        lambda folder: None,
        r"params\.yaml has no line 'pd3' in teachers or distill",
    ),
    "a round that does not halve its teacher": (
        ["check"],
        lambda folder: edit(folder, "steps: 2", "steps: 3"),
        r"distill\.pd2: steps 3 needs a teacher of 6 steps or one valid at any time, but its teacher has 4",
    ),
    "an unknown key": (
        ["run"],
        lambda folder: edit(folder, "max_phase:", "max_fase:"),
        r"network\.max_fase: unknown key; did you mean 'max_phase'\?",
    ),
}


def edit(folder: Path, old: str, new: str) -> None:
    text = (folder / "params.yaml").read_text()
    assert old in text
    (folder / "params.yaml").write_text(text.replace(old, new, 1))


@pytest.mark.parametrize("case", BROKEN)
def test_bad_input_is_named_in_one_line_with_exit_code_2(copy, case):
    words, break_it, message = BROKEN[case]
    break_it(copy)
    done = call(copy, "./stage", *words)
    assert done.returncode == 2, done.stderr
    lines = done.stderr.strip().splitlines()
    assert all(line.startswith("error: ") for line in lines), lines
    assert any(re.search(message, line) for line in lines), lines
    assert "Traceback" not in done.stdout + done.stderr


def test_a_method_is_one_file_and_one_line(copy):
    """A new file in diffcore/methods/ and a line in params.yaml make a stage; it trains and is evaluated."""
    source = (copy / "diffcore/methods/denoising.py").read_text()
    (copy / "diffcore/methods/again.py").write_text(source.replace("The teacher's own objective", "The same once more"))
    line = (
        "more:",
        "  method: again",
        "  init: teacher",
        "  teacher: teacher",
        "  iterations: 5",
        "  batch: 16",
        "  lr: 1.0e-4",
        "  ema: 0.9",
    )
    edit(copy, "distill:\n", "\n  ".join(("distill:", *line)) + "\n")
    assert ran(dvc(copy, "repro"))[0] == "distill@more"
    assert "more-ddim-uniform-8" in (copy / "artifacts/frontier.csv").read_text()


def test_a_flat_folder_of_pictures_runs_to_the_end(tmp_path):
    """Images without labels: nothing but rotations to learn features from, no classes to ask for, and bits all the same."""
    from PIL import Image
    from sklearn.datasets import load_digits

    (tmp_path / "flat").mkdir()
    for number, digit in enumerate(load_digits().images[:300]):
        Image.fromarray((digit * 15).astype("uint8")).save(tmp_path / f"flat/{number:03d}.png")
    folder = make(tmp_path / "unlabelled", f"data.source=folder:{tmp_path / 'flat'}")
    done = call(folder, "./stage", "run")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = list(csv.DictReader((folder / "artifacts/frontier.csv").read_text().splitlines()))
    assert any(row["bits"] for row in rows)
    assert not any(row["accuracy"] for row in rows)
    assert "features: rotations" in done.stdout
    assert "recommended: " in done.stdout


def test_the_readmes_example_runs_word_for_word(finished, monkeypatch):
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[1]
    done = call(finished[0], sys.executable, "-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
