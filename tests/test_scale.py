"""The stages in two processes each: the outputs are those of one, any of them may be killed, and the next start goes on."""

import csv
import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from tests.test_pipeline import call, environment, make

pytestmark = pytest.mark.slow
TWO = ("compute.processes=2", "compute.threads=1")


def stage(folder: Path, *words: str) -> list[str]:
    done = call(folder, "./stage", *words)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    return done.stdout.splitlines()


def change(folder: Path, old: str, new: str) -> None:
    text = (folder / "params.yaml").read_text()
    assert old in text
    (folder / "params.yaml").write_text(text.replace(old, new))


@pytest.fixture
def sharded(tmp_path) -> Path:
    folder = make(tmp_path / "two", *TWO)
    stage(folder, "shard")
    return folder


def points(folder: Path) -> dict:
    content = json.loads((folder / "artifacts/points/teacher/points.json").read_text())["value"]
    return {**content, "points": [{**point, "ms_per_image": 0} for point in content["points"]]}


def test_two_processes_measure_and_estimate_what_one_does_bit_for_bit(sharded):
    """Each line is told once, and the card says how many trained."""
    for words in (["features"], ["train", "teacher"]):
        lines = stage(sharded, *words)
        assert len(lines) == len(set(lines))
    card = json.loads((sharded / "artifacts/checkpoints/teacher/card.json").read_text())
    assert card["compute"]["processes"] == 2
    outputs = {}
    for count in (2, 1):
        change(sharded, "processes: 2", f"processes: {count}")
        stage(sharded, "gamma")
        stage(sharded, "search")
        stage(sharded, "measure", "teacher")
        gamma = (sharded / "artifacts/gamma.json").read_bytes()
        samples = (sharded / "artifacts/points/teacher/points.safetensors").read_bytes()
        outputs[count] = gamma, samples, points(sharded)
    assert outputs[1] == outputs[2]


def ranks(process: psutil.Process) -> dict[str, psutil.Process]:
    """The processes that a stage has started, by their numbers."""
    return {child.environ()["RANK"]: child for child in process.children(recursive=True)}


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("rank", ["0", "1"])
def test_the_death_of_any_process_ends_all_and_the_next_start_goes_on(rank, strategy, sharded):
    change(sharded, "strategy: ddp", f"strategy: {strategy}")
    started = subprocess.Popen(
        ["./stage", "train", "teacher"],
        cwd=sharded,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not list(sharded.glob(".resume/teacher-*/step-*")):
        assert started.poll() is None, started.communicate()
        time.sleep(0.05)
    processes = ranks(psutil.Process(started.pid))
    os.kill(processes[rank].pid, signal.SIGKILL)
    output, errors = started.communicate()
    assert started.returncode == 128 + signal.SIGKILL, output + errors
    assert f"process {rank} was ended by SIGKILL, and the others with it" in output
    assert "Traceback" not in errors
    assert not any(each.is_running() and each.status() != psutil.STATUS_ZOMBIE for each in processes.values())
    assert not (sharded / "artifacts/checkpoints/teacher").exists()
    lines = stage(sharded, "train", "teacher")
    assert re.match(r"teacher: goes on after \d+ of 60 updates", lines[0])
    with open(sharded / "artifacts/curves/teacher.csv", newline="") as file:
        assert int(list(csv.DictReader(file))[-1]["step"]) == 60


def test_the_two_parts_of_a_batch_come_to_the_same_bits_in_one_process_or_two(tmp_path, monkeypatch):
    """What the run gives the stage decides, and without a word of it the number of processors."""
    folder = make(tmp_path / "parts", "teachers.teacher.cores=2", "teachers.teacher.iterations=10")
    stage(folder, "shard")
    cards = {}
    for count in (1, 2):
        monkeypatch.setenv("DISTILL_PROCESSES", str(count))
        stage(folder, "train", "teacher")
        cards[count] = json.loads((folder / "artifacts/checkpoints/teacher/card.json").read_text())
        assert cards[count]["compute"]["processes"] == count
    assert cards[1]["files"] == cards[2]["files"]
