import contextlib
import dataclasses
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from diffcore.core import disk
from diffcore.core.errors import Mistake
from diffcore.training.resume import Resume
from tests import test_fit
from tests.test_methods import CASES

JOB = "f" * 64
FACTS = {"curve": [{"step": 1, "loss": 0.5}], "since": [[0.1, 0.2]], "seconds": 1.5, "calls": 7.0}


def saved(root: Path, steps=(3, 5), job: str = JOB) -> tuple[Resume, list[str]]:
    """A job with states, and what it will have said."""
    said = []
    resume = Resume(root, "x", job, said.append)
    for step in steps:
        resume.save(step, {"net/weight": torch.full((2, 3), float(step))}, FACTS)
    return resume, said


def states(resume: Resume) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in resume.folder.glob("step-*"))


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def damages() -> list:
    """(name, what is done to a state)."""

    def cut(path):
        path.write_bytes(path.read_bytes()[:20])

    def elsewhere(path):  # a whole state, of another job
        other, _ = saved(path.parent.parent / "other", (5,), "a" * 64)
        shutil.rmtree(path.parent)
        shutil.copytree(other.folder / "step-000000005", path.parent)

    def unsealed(path):
        if path.suffix == ".json":
            disk.write_json(path, {"schema": 2, "step": 5, "sha256": "0", "facts": FACTS})
        else:
            path.write_bytes(b"not the file its seal knows")

    found = {
        "cut": cut,
        "empty": lambda path: path.write_bytes(b""),
        "removed": Path.unlink,
        "of another job": elsewhere,
    }
    found |= {"rewritten": unsealed, "a folder": lambda path: (path.unlink(), path.mkdir())}
    return [
        pytest.param(name, work, id=f"{name} {word}")
        for name in ("state.json", "state.safetensors")
        for word, work in found.items()
    ]


@pytest.mark.parametrize(("file", "damage"), damages())
def test_a_damaged_state_gives_way_to_the_older_good_one_and_says_so_in_one_line(file, damage, tmp_path):
    resume, said = saved(tmp_path)
    damage(resume.folder / "step-000000005" / file)
    step, tensors, facts = resume.load()
    assert (step, facts) == (3, FACTS)
    assert torch.equal(tensors["net/weight"], torch.full((2, 3), 3.0))
    assert len(said) == 1
    assert re.fullmatch(r"x: .*step-000000005.*; goes on from step-000000003", said[0])


@pytest.mark.parametrize("file", ["state.json", "state.safetensors"])
def test_no_byte_of_a_state_changes_unnoticed(file, tmp_path):
    resume, said = saved(tmp_path, (5,))
    newest = resume.folder / "step-000000005"
    kept, places = shutil.copytree(newest, tmp_path / "kept"), range(0, (newest / file).stat().st_size, 5)
    for at in places:
        flip(newest / file, at)
        assert resume.load() is None
        shutil.copytree(kept, newest)
    assert len(said) == len(places)


def test_where_no_state_is_whole_the_job_starts_from_nothing_and_says_so(tmp_path):
    resume, said = saved(tmp_path)
    for path in resume.folder.glob("step-*/state.json"):
        flip(path, 30)
    assert resume.load() is None
    assert [line.rpartition("; ")[2] for line in said] == ["goes on from step-000000003", "starts from nothing"]


def test_a_damaged_state_does_not_count_as_one_of_the_two_that_are_kept(tmp_path):
    resume, _ = saved(tmp_path)
    flip(resume.folder / "step-000000005/state.json", 30)
    resume.load()
    for step in (4, 6):
        resume.save(step, {"net/weight": torch.zeros(1)}, FACTS)
    assert states(resume) == [4, 6]


def test_good_states_are_read_without_a_word(tmp_path):
    resume, said = saved(tmp_path)
    assert resume.load()[0] == 5
    assert said == []
    assert states(resume) == [3, 5]


def test_what_a_killed_holder_left_half_saved_is_cleared_by_the_next(tmp_path):
    resume, _ = saved(tmp_path)
    (resume.folder / f".step-000000007.{2**22 + 7}.tmp").mkdir()
    with resume.lock():
        assert sorted(path.name for path in resume.folder.iterdir()) == ["lock", "step-000000003", "step-000000005"]


class Killed(BaseException):
    pass


def killed_at(step: int):
    def on_event(event):
        if event.step == step:
            raise Killed

    return on_event


OFTEN = dataclasses.replace(test_fit.COMPUTE, save_seconds=1e-9)


@pytest.mark.slow
@CASES
def test_killed_again_and_again_after_every_step_any_method_ends_with_the_same_bytes(name, config, tmp_path):
    """Each process is killed before it saves its second step, so that every saved state is gone on from."""
    whole, resume = test_fit.run(test_fit.job(config)), Resume(tmp_path, "x", JOB)
    for step in range(2, 7):
        with pytest.raises(Killed):
            test_fit.run(test_fit.job(config), resume, OFTEN, on_event=killed_at(step))
        assert states(resume)[-1] == step - 1
    assert test_fit.same(whole, test_fit.run(test_fit.job(config), resume, OFTEN))


KILLED = """
import os, signal, sys
from pathlib import Path
from diffcore.training.resume import Resume
from tests import test_fit, test_resume
name, config = next(case for case in test_resume.CASES.args[1] if case[0] == sys.argv[2])
die = lambda event: event.step == 4 and os.kill(os.getpid(), signal.SIGKILL)
test_fit.run(test_fit.job(config), Resume(Path(sys.argv[1]), "x", "f" * 64), test_resume.OFTEN, on_event=die)
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["progressive", "distribution_matching"])
def test_really_killed_a_method_ends_with_the_same_bytes(name, tmp_path):
    config = next(case[1] for case in CASES.args[1] if case[0] == name)
    root = Path(disk.__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), name], cwd=root, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    resume = Resume(tmp_path, "x", JOB)
    assert states(resume) == [2, 3]
    assert test_fit.same(test_fit.run(test_fit.job(config)), test_fit.run(test_fit.job(config), resume))


def test_states_of_jobs_whose_names_begin_alike_are_left_alone(tmp_path):
    others = [saved(tmp_path / "r", job=f"{k}" * 64)[0] for k in range(1, 4)]
    alike = [dataclasses.replace(other, name="x-y") for other in others]
    for each in alike:
        each.save(1, {"net/weight": torch.zeros(1)}, FACTS)
    for job in "456":
        saved(tmp_path / "r", job=job * 64)
    assert all(states(each) == [1] for each in alike)
    assert sum(other.folder.exists() for other in others) < len(others)


def test_of_the_jobs_of_a_name_the_newest_three_are_kept_and_the_own_one_whatever_its_age(tmp_path):
    own, *others = (saved(tmp_path / "r", (1,), f"{k}" * 64)[0] for k in range(3))
    for age, each in enumerate((own, *others)):
        os.utime(each.folder, (10**9 + age, 10**9 + age))
    late = [saved(tmp_path / "r", (1,), f"{k}" * 64)[0] for k in (3, 4)]
    assert [each.folder.exists() for each in (own, *others, *late)] == [False, False, True, True, True]
    for age, each in enumerate((others[1], *late)):
        os.utime(each.folder, (3 * 10**9 + age, 3 * 10**9 + age))  # all of them newer than the one that saves
    saved(tmp_path / "r", (1,), "9" * 64)
    assert states(saved(tmp_path / "r", (), "9" * 64)[0]) == [1]


def test_views_and_every_kind_of_number_come_back(tmp_path):
    resume, _ = saved(tmp_path, ())
    tensors = {
        "turned": torch.arange(6.0).reshape(2, 3).t(),
        "half": torch.ones(2, dtype=torch.bfloat16),
        "whole": torch.arange(3),
        "double": torch.tensor(0.1, dtype=torch.float64),
    }
    resume.save(12, tensors, FACTS)
    step, found, facts = resume.load()
    assert (step, facts, found.keys()) == (12, FACTS, tensors.keys())
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


def test_a_state_of_another_schema_is_said_and_not_used(tmp_path, monkeypatch):
    resume, said = saved(tmp_path, (5,))
    monkeypatch.setattr("diffcore.training.resume.SCHEMA", 9)
    assert resume.load() is None
    assert len(said) == 1


def test_who_holds_a_job_is_waited_for_and_then_named(tmp_path):
    resume, _ = saved(tmp_path, ())
    other = dataclasses.replace(resume, fingerprint="e" * 64)
    with (
        resume.lock(),
        other.lock(),  # of another job, and free
        pytest.raises(Mistake, match="x: another process is training this very job"),
        resume.lock(0.0),
    ):
        pass
    with resume.lock(0.0):
        assert (resume.folder / "lock").exists()


class Clock:
    """Seconds that pass by sleeping alone; the job is free after some."""

    def __init__(self, free_after: float):
        self.now, self.free_after, self.slept = 100.0, free_after, []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds

    def locked(self, file) -> bool:
        return self.now >= 100 + self.free_after


@pytest.mark.parametrize(
    ("patience", "free_after", "got"),
    [((), 50.0, True), ((), 70.0, False), ((5.0,), 3.0, True), ((5.0,), 7.0, False), ((0.0,), 3.0, False)],
)
def test_a_job_that_another_holds_is_waited_for_a_minute_or_as_long_as_is_said(
    patience, free_after, got, tmp_path, monkeypatch
):
    """A training that was told to end may still be saving when the next is started."""
    clock = Clock(free_after)
    monkeypatch.setattr("diffcore.training.resume.time", clock)
    monkeypatch.setattr("diffcore.training.resume._locked", clock.locked)
    entered = False
    with contextlib.suppress(Mistake), saved(tmp_path, ())[0].lock(*patience):
        entered = True
    assert entered == got
    assert clock.now - 100 == pytest.approx(free_after if got else (*patience, 60.0)[0], abs=0.3)
    assert all(0 < seconds <= 1 for seconds in clock.slept)
