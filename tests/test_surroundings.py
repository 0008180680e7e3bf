"""Odd surroundings are one line, or work: the script `stage`, the command line, and what accelerate finds."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from diffcore import fit
from diffcore.mistake import Mistake
from tasks import __main__ as command
from tasks import params, surroundings

ROOT = Path(__file__).parent.parent


@pytest.fixture
def project(tmp_path) -> Path:
    """A folder with `stage` and an interpreter that only says how it was called."""
    shutil.copy(ROOT / "stage", tmp_path / "stage")
    return with_python(tmp_path, ".venv/bin/python")


def with_python(folder: Path, place: str) -> Path:
    python = folder / place
    python.parent.mkdir(parents=True, exist_ok=True)
    python.write_text(f"#!/bin/sh\necho {place} in $PWD: $# words, $*\n")
    python.chmod(0o755)
    return folder


def stage(folder: Path, at: str = "./stage", **environment: str) -> tuple[int, str, str]:
    done = subprocess.run([at, "check", "a b"], cwd=folder, env=environment, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


def test_a_stage_is_run_by_the_projects_own_python(project):
    said = f".venv/bin/python in {project}: 4 words, -m tasks check a b\n"
    assert stage(project) == stage(project, PATH="") == stage(project, PATH="/nowhere") == (0, said, "")
    assert stage(project, DISTILL_PYTHON="") == (0, said, "")
    assert stage(project.parent, f"{project.name}/stage", CDPATH="/tmp") == (0, said, "")
    assert stage(Path("/"), str(project / "stage")) == (0, said, "")


def test_another_interpreter_is_named_by_distill_python(project):
    other = with_python(project, "other/python")
    assert stage(project, DISTILL_PYTHON=str(other / "other/python"))[1].startswith("other/python in ")
    assert stage(project, DISTILL_PYTHON="python", PATH=str(other / "other"))[1].startswith("other/python in ")


@pytest.mark.parametrize("python", ["/nowhere/python", "no-such-command", "/tmp", "stage.txt", "-x", "a b"])
def test_an_interpreter_that_is_not_there_is_named_and_nothing_else_run(project, python):
    (project / "stage.txt").write_text("no program")
    code, out, err = stage(project, DISTILL_PYTHON=python, PATH="/usr/bin:/bin")
    assert (code, out) == (2, "")
    assert err == (
        f"error: DISTILL_PYTHON is {python}, which is no command; name a Python, or unset it to take .venv/bin/python\n"
    )


def test_an_environment_that_is_gone_is_named_and_no_other_python_taken(project):
    path = str(with_python(project, "other/python") / "other")
    (project / ".venv/bin/python").unlink()
    (project / ".venv/bin/python").symlink_to("/nowhere/python")
    assert stage(project, PATH=path)[::2] == (
        2,
        "error: .venv leads to nothing; make the environment again (make setup), or name a Python in DISTILL_PYTHON\n",
    )
    shutil.rmtree(project / ".venv")
    assert stage(project, PATH=path)[1].startswith("other/python in ")
    assert stage(project, PATH="")[::2] == (
        2,
        "error: there is neither .venv here nor python on the PATH; run make setup\n",
    )


# ------------------------------------------------------------------------------- the command line


def main(capsys, *words: str) -> tuple[int, str]:
    code = command.main(list(words))
    return code, capsys.readouterr().err


@pytest.fixture(autouse=True)
def unattached(monkeypatch):
    from tasks import lifeline

    monkeypatch.setattr(lifeline, "die_with_parent", lambda: None)


@pytest.mark.parametrize("name", ["json.py", "random.py", "logging/__init__.py"])
def test_a_module_that_hides_one_of_pythons_is_named(tmp_path, monkeypatch, capsys, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    monkeypatch.setenv("PYTHONPATH", f"/nowhere{os.pathsep}{tmp_path}")
    word = name.partition("/")[0]
    said = f"PYTHONPATH: {tmp_path / word} hides Python's own {word.removesuffix('.py')}; rename it, or leave {tmp_path} out"
    assert main(capsys, "check") == (2, f"error: {said}\n")


def test_other_modules_on_the_path_are_nobodys_business(tmp_path, monkeypatch):
    for name in ("own.py", "json.txt", "json/notes.md", "tasks/__init__.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    surroundings.check()


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            ModuleNotFoundError("No module named 'torch'", name="torch"),
            "has no torch; run make setup, or name a Python",
        ),
        (
            ImportError("cannot import name 'x'\nfrom 'yaml'", path="/a.py"),
            "cannot import name 'x' from 'yaml' (/a.py); ",
        ),
    ],
)
def test_a_package_that_is_missing_is_one_line(monkeypatch, capsys, error, words):
    def read():
        raise error

    monkeypatch.setattr(params, "read", read)
    code, said = main(capsys, "check")
    assert code == 2
    assert words in said
    assert len(said.splitlines()) == 1


def test_ctrl_c_is_quiet_while_modules_are_imported_and_later(monkeypatch, capsys):
    def stopped(*_):
        raise KeyboardInterrupt

    for place, name in ((surroundings, "check"), (params, "read")):
        with monkeypatch.context() as patch:
            patch.setattr(place, name, stopped)
            assert main(capsys, "check") == (130, "")


def test_every_fault_is_a_line_of_its_own(monkeypatch, capsys):
    def read():
        raise Mistake("one\ntwo")

    monkeypatch.setattr(params, "read", read)
    assert main(capsys, "check") == (2, "error: one\nerror: two\n")


def test_a_reader_that_goes_away_is_no_fault():
    read, write = os.pipe()
    os.close(read)
    code = "import sys; from tasks import __main__ as command; sys.stdout.write('x'); sys.exit(command._end(0))"
    buffered = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, cwd=ROOT, env=buffered, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


def test_without_any_output_it_ends_as_well(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    assert command._end(3) == 3


# ------------------------------------------------------------------------------- accelerate


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("LOCAL_RANK", "x"),
        ("LOCAL_RANK", "0"),  # and nothing else that belongs to it
        ("ACCELERATE_USE_CPU", "garbage"),
        ("ACCELERATE_DYNAMO_BACKEND", "garbage"),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "x"),
        ("ACCELERATE_USE_DEEPSPEED", "true"),
        ("ACCELERATE_DEBUG_MODE", "garbage"),
    ],
)
def test_garbage_for_accelerate_is_one_line(monkeypatch, name, value):
    from accelerate.state import AcceleratorState, GradientState, PartialState

    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    monkeypatch.setenv(name, value)
    with pytest.raises(Mistake) as caught:
        fit.accelerator()
    assert str(caught.value).startswith("accelerate cannot start here: ")
    assert len(str(caught.value).splitlines()) == 1
    monkeypatch.delenv(name)
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    assert fit.accelerator().device == torch.device("cuda" if torch.cuda.is_available() else "cpu")
