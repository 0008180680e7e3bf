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
from diffcore.core.errors import UserError
from diffcore.training.resume import SCHEMA, Resume
from tests import test_fit
from tests.test_methods import CASES

JOB = {"job": "f"}
FACTS = {"curve": [{"step": 1, "loss": 0.5}], "since": [[0.1, 0.2]], "seconds": 1.5, "calls": 7.0}


def saved(root: Path, steps=(3, 5), job: str = "f") -> tuple[Resume, list[str]]:
    """A job with states, and what it will have said."""
    said = []
    resume = Resume(root, "x", {"job": job}, said.append)
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
        other, _ = saved(path.parent.parent / "other", (5,), "a")
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
    state = resume.load()
    step, tensors, facts = state.step, state.tensors(), state.facts
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
    assert resume.load().step == 5
    assert said == []
    assert states(resume) == [3, 5]


def test_what_a_killed_holder_left_half_saved_is_cleared_by_the_next(tmp_path):
    resume, _ = saved(tmp_path)
    (resume.folder / f".step-000000007.{2**22 + 7}.tmp").mkdir()
    with resume.lock():
        assert sorted(path.name for path in resume.folder.iterdir()) == [
            "about.json",
            "lock",
            "step-000000003",
            "step-000000005",
        ]


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
test_fit.run(test_fit.job(config), Resume(Path(sys.argv[1]), "x", {"job": "f"}), test_resume.OFTEN, on_event=die)
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
    others = [saved(tmp_path / "r", job=f"{k}")[0] for k in range(1, 4)]
    alike = [dataclasses.replace(other, name="x-y") for other in others]
    for each in alike:
        each.save(1, {"net/weight": torch.zeros(1)}, FACTS)
    for job in "456":
        saved(tmp_path / "r", job=job)
    assert all(states(each) == [1] for each in alike)
    assert sum(other.folder.exists() for other in others) < len(others)


def test_of_the_jobs_of_a_name_the_newest_three_are_kept_and_the_own_one_whatever_its_age(tmp_path):
    own, *others = (saved(tmp_path / "r", (1,), f"{k}")[0] for k in range(3))
    for age, each in enumerate((own, *others)):
        os.utime(each.folder, (10**9 + age, 10**9 + age))
    late = [saved(tmp_path / "r", (1,), f"{k}")[0] for k in (3, 4)]
    assert [each.folder.exists() for each in (own, *others, *late)] == [False, False, True, True, True]
    for age, each in enumerate((others[1], *late)):
        os.utime(each.folder, (3 * 10**9 + age, 3 * 10**9 + age))  # all of them newer than the one that saves
    saved(tmp_path / "r", (1,), "9")
    assert states(saved(tmp_path / "r", (), "9")[0]) == [1]


def test_views_and_every_kind_of_number_come_back(tmp_path):
    resume, _ = saved(tmp_path, ())
    tensors = {
        "turned": torch.arange(6.0).reshape(2, 3).t(),
        "half": torch.ones(2, dtype=torch.bfloat16),
        "whole": torch.arange(3),
        "double": torch.tensor(0.1, dtype=torch.float64),
    }
    resume.save(12, tensors, FACTS)
    state = resume.load()
    step, found, facts = state.step, state.tensors(), state.facts
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
    other = dataclasses.replace(resume, about={"job": "e"})
    with (
        resume.lock(),
        other.lock(),  # of another job, and free
        pytest.raises(UserError, match="x: another process is training this very job"),
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
    with contextlib.suppress(UserError), saved(tmp_path, ())[0].lock(*patience):
        entered = True
    assert entered == got
    assert clock.now - 100 == pytest.approx(free_after if got else (*patience, 60.0)[0], abs=0.3)
    assert all(0 < seconds <= 1 for seconds in clock.slept)


# --- states of other jobs

MADE = {
    "name": "x",
    "code": "c0de" * 16,
    "torch": "2.9.1",
    "data": "da7a" * 16,
    "parent": None,
    "parameters": {"fit": {"lr": 0.1, "clip": None}, "flip": False},
    "seed": 5,
    "compute": {"device": "cpu", "precision": "float32", "dice": "cpu", "processes": 1},
}
"""What a saved state was made for."""

CHANGES = {
    "code": ({"code": "ab" * 32}, "code c0dec0dec0de, now abababababab"),
    "torch": ({"torch": "2.10.0"}, "torch 2.9.1, now 2.10.0"),
    "data": ({"data": "f" * 64}, "data da7ada7ada7a, now ffffffffffff"),
    "parent": ({"parent": "f" * 64}, "parent null, now ffffffffffff"),
    "seed": ({"seed": 6}, "seed 5, now 6"),
    "parameters": (
        {"parameters": {"fit": {"lr": 0.2, "clip": None}, "flip": False}},
        "parameters.fit.lr 0.1, now 0.2",
    ),
    "one more key": (
        {"parameters": {"fit": {"lr": 0.1, "clip": None, "warmup": 3}, "flip": False}},
        "parameters.fit.warmup unset, now 3",
    ),
    "device": ({"compute": {**MADE["compute"], "device": "cuda"}}, "device cpu, now cuda"),
    "precision": ({"compute": {**MADE["compute"], "precision": "bf16"}}, "precision float32, now bf16"),
    "dice": ({"compute": {**MADE["compute"], "dice": "cuda"}}, "dice cpu, now cuda"),
    "processes": ({"compute": {**MADE["compute"], "processes": 2}}, "processes 1, now 2"),
}


def job(root: Path, about: dict, steps=(), name: str = "x") -> tuple[Resume, list[str]]:
    """A job with states, and what it will have said."""
    said = []
    resume = Resume(root, name, about, said.append)
    for step in steps:
        resume.save(step, {"net/weight": torch.zeros(1)}, FACTS)
    return resume, said


def line(updates: int, what: str, other: Resume) -> str:
    return (
        f"x: a saved state of {updates} updates is there and is not used: {what}; "
        f"go back to go on from it, or remove {other.folder}"
    )


@pytest.mark.parametrize("part", CHANGES)
def test_a_state_made_for_something_else_is_not_used_and_one_line_says_what_is_other(part, tmp_path):
    """Each part alone. The state itself stays: who goes back goes on from it."""
    change, what = CHANGES[part]
    other, _ = job(tmp_path, MADE, (3, 5))
    own, said = job(tmp_path, {**MADE, **change})
    assert own.load() is None
    assert said == [line(5, what, other)]
    again, silent = job(tmp_path, MADE)
    assert again.load().step == 5
    assert silent == []


def test_what_states_were_made_for_lies_beside_them_and_is_written_again_with_each(tmp_path):
    own, _ = job(tmp_path, MADE, (3,))
    path = own.folder / "about.json"
    assert disk.read_sealed(path, SCHEMA, "x") == {"schema": SCHEMA, "about": MADE}
    path.write_text("{")
    own.save(5, {"net/weight": torch.zeros(1)}, FACTS)
    assert disk.read_sealed(path, SCHEMA, "x")["about"] == MADE


def test_where_a_job_has_a_state_of_its_own_no_other_is_told_of(tmp_path):
    job(tmp_path, {**MADE, "seed": 6}, (5,))
    own, said = job(tmp_path, MADE, (3,))
    assert own.load().step == 3
    assert said == []


def test_of_several_others_the_one_most_alike_is_told_of_and_of_those_the_newest(tmp_path):
    far, near, nearer_in_time = (
        job(tmp_path, {**MADE, **change}, (updates,))[0]
        for updates, change in enumerate(({"seed": 6, "torch": "3"}, {"seed": 7}, {"seed": 8}), 1)
    )
    for age, each in enumerate((near, nearer_in_time, far)):
        os.utime(each.folder, (10**9 + age, 10**9 + age))
    own, said = job(tmp_path, MADE)
    assert own.load() is None
    assert said == [line(3, "seed 8, now 5", nearer_in_time)]


def test_many_differences_and_long_values_are_one_short_line(tmp_path):
    other, _ = job(tmp_path, {**MADE, "classes": [f"class {k}\n" for k in range(1000)]}, (3,))
    own, said = job(tmp_path, {"name": "x", "classes": None})
    assert own.load() is None
    assert said[0].startswith("x: a saved state of 3 updates is there and is not used: code c0dec0dec0de, now unset; ")
    assert "; 8 more; go back to go on from it, or remove " in said[0]
    assert len(said[0].splitlines()) == 1
    own, said = job(tmp_path, {**MADE, "classes": None})
    assert own.load() is None
    assert said == [line(3, 'classes ["class 0\\n", "class 1\\n", "class 2\\n..., now null', other)]


@pytest.mark.parametrize("how", ["missing", "torn", "changed", "its own"])
def test_a_state_of_which_nothing_tells_what_it_was_made_for_is_said_to_be_so(how, tmp_path):
    """One of an older version has no such file; one whose folder was renamed says that it is this very job's."""
    other, _ = job(tmp_path, {**MADE, "seed": 6}, (3,))
    path = other.folder / "about.json"
    if how == "missing":
        path.unlink()
    elif how == "its own":
        disk.write_sealed(path, {"schema": 2, "about": MADE})
    else:
        path.write_text(path.read_text().replace("6", "7")[: 20 if how == "torn" else None])
    own, said = job(tmp_path, MADE)
    assert own.load() is None
    assert said == [line(3, "nothing tells what it was made for", other)]
    second, _ = job(tmp_path, {**MADE, "seed": 9}, (4,))
    assert own.load() is None
    assert said[1:] == [line(4, "seed 9, now 5", second)]


def test_only_folders_of_this_name_with_a_state_are_told_of(tmp_path):
    with job(tmp_path, {**MADE, "seed": 6})[0].lock():  # begun, and nothing saved
        job(tmp_path, {**MADE, "seed": 7}, (3,), name="x-y")
        (tmp_path / "x-notes").mkdir()
        own, said = job(tmp_path, MADE)
        assert own.load() is None
        assert said == []


def test_nothing_is_removed_that_is_not_a_job_s_or_a_state(tmp_path):
    """A folder of somebody's, though its name is as long as a job's, and one beside the states."""
    others = [tmp_path / "x-notes-by-myself", tmp_path / "x-ABCDEF0123456789"]
    own, said = job(tmp_path, MADE)
    own.folder.mkdir()
    for folder in (*others, own.folder / "step-by-step"):
        folder.mkdir()
        (folder / "about.txt").write_text("mine")
        os.utime(folder, (1, 1))
    for step in (1, 2, 3):
        own.save(step, {"net/weight": torch.zeros(1)}, FACTS)
    for seed in (6, 7, 8):
        job(tmp_path, {**MADE, "seed": seed}, (1,))
        os.utime(own.folder)
    assert own.load().step == 3
    assert said == []
    assert all((folder / "about.txt").exists() for folder in (*others, own.folder / "step-by-step"))
    assert sorted(path.name for path in own.folder.glob("step-0*")) == ["step-000000002", "step-000000003"]
