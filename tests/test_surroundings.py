"""Odd surroundings are one line, or work: the script `stage`, the command line, and what accelerate finds."""

import contextlib
import ctypes
import importlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from diffcore.core import parent
from diffcore.core.errors import UserError
from diffcore.core.parent import die_with_parent
from diffcore.training import learner, loop
from tasks import command, params, progress, sections, signals, surroundings, train

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


def test_no_variable_hides_the_folder_s_own_code_from_a_stage(project):
    """With PYTHONSAFEPATH `python -m tasks` does not look into the current folder, and would run what is installed."""
    (project / ".venv/bin/python").write_text("#!/bin/sh\necho ${PYTHONSAFEPATH-unset}\n")
    assert stage(project, PYTHONSAFEPATH="1") == (0, "unset\n", "")


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
    (project / ".venv").symlink_to("/nowhere")  # as in a workspace whose project was moved
    code, out, err = stage(project, PATH=path)
    assert (code, out) == (2, "")
    assert err.startswith("error: .venv leads to nothing; ")
    (project / ".venv").unlink()
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
    monkeypatch.setattr(parent, "die_with_parent", lambda: None)


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


@pytest.mark.parametrize("then", [RecursionError(), ImportError("numpy is half there"), UserError("no")])
def test_ctrl_c_that_a_library_swallows_is_quiet_all_the_same(monkeypatch, capsys, then):
    """What the library then stumbles over is no fault of anybody's."""

    def read():
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        raise then

    monkeypatch.setattr(params, "read", read)
    monkeypatch.setattr(signal, "default_int_handler", signal.getsignal(signal.SIGINT))
    assert main(capsys, "check") == (130, "")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_where_ctrl_c_is_ignored_it_stays_so(monkeypatch):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        seen = []
        monkeypatch.setattr(params, "read", lambda: seen.append(signal.getsignal(signal.SIGINT)) or UserError)
        with contextlib.suppress(AttributeError):
            command.main(["check"])
        assert seen == [signal.getsignal(signal.SIGINT)] == [signal.SIG_IGN]
    finally:
        signal.signal(signal.SIGINT, before)


def test_every_fault_is_a_line_of_its_own(monkeypatch, capsys):
    def read():
        raise UserError("one\ntwo")

    monkeypatch.setattr(params, "read", read)
    assert main(capsys, "check") == (2, "error: one\nerror: two\n")


def test_a_reader_that_goes_away_is_no_fault():
    read, write = os.pipe()
    os.close(read)
    code = "import sys; from tasks import command; sys.stdout.write('x'); sys.exit(command.end(0))"
    buffered = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, cwd=ROOT, env=buffered, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_reader_that_goes_away_ends_no_work_and_a_disk_that_is_full_does(monkeypatch):
    """`./stage run | head` trains to the end."""

    def output(error: Exception) -> SimpleNamespace:
        def write(_: str) -> None:
            raise error

        return SimpleNamespace(write=write, flush=lambda: None)

    monkeypatch.setattr(sys, "stdout", output(BrokenPipeError()))
    progress.log("loss 0.31")
    progress.Progress("teacher", "it")(2, 2)
    monkeypatch.setattr(sys, "stdout", output(OSError(28, "full")))
    with pytest.raises(OSError, match="full") as caught:
        progress.log("loss 0.31")
    assert caught.value.__notes__ == ["the standard output"]


def test_without_any_output_it_ends_as_well(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    assert command.end(3) == 3


COMMANDS = {
    "draw": ("draw.draw", [], 0),
    "shard": ("shard.shard", [], 0),
    "encode": ("encode.encode", [], 0),
    "features": ("features.train", [], 0),
    "train pd4": ("train.train", ["pd4"], 0),
    "gamma": ("gamma.estimate", [], 0),
    "search": ("search.find", [], 0),
    "measure pd4": ("measure.measure", ["pd4"], 0),
    "frontier": ("frontier.merge", [], 0),
    "publish": ("publish.publish", [], 0),
}


@pytest.fixture
def order(monkeypatch) -> list:
    """What happens, in its order: each part of the command line with what it was given."""
    seen = []

    def note(place: str, answer=None) -> None:
        module, name = place.rsplit(".", 1)
        holder = importlib.import_module(module if module.startswith("diffcore.") else f"tasks.{module}")
        monkeypatch.setattr(holder, name, lambda *given: seen.append((place, *given)) or answer)

    for place in ("surroundings.check", "diffcore.core.parent.die_with_parent", "graph.check", "report.report"):
        note(place)
    for place in (
        "workspace.make",
        "dvc_files.keep",
        "dvc_files.mend",
        *(place for place, _, _ in COMMANDS.values()),
        "adopt.take",
    ):
        note(place)
    note("dvc_files.put_back", [])
    monkeypatch.setattr("tasks.undrawn.write", lambda: False)
    note("report.run", 7)
    note("params.read", PARAMS)
    return seen


PARAMS = SimpleNamespace(
    line=lambda name: SimpleNamespace(fit=SimpleNamespace(cores=1)),
    distill={"pd4": None},
    compute=SimpleNamespace(threads=1, processes=1, strategy="ddp"),
)
BEGINS = [("surroundings.check",), ("diffcore.core.parent.die_with_parent",)]


@pytest.mark.parametrize("words", COMMANDS)
def test_a_stage_keeps_dvc_s_files_and_gets_the_parameters(order, words):
    place, more, code = COMMANDS[words]
    assert command.main(words.split()) == code
    assert order == [*BEGINS, ("dvc_files.keep",), ("params.read",), (place, PARAMS, *more)]


def test_a_teacher_in_a_folder_is_adopted_and_not_trained(order, monkeypatch):
    line = sections.Adopted(name="theirs", folder="there", conditional=False)
    adopted = SimpleNamespace(line=lambda name: line if name == "theirs" else 1 / 0)
    monkeypatch.setattr(params, "read", lambda: adopted)
    assert command.main(["train", "theirs"]) == 0
    assert order[-1] == ("adopt.take", adopted, "theirs")


def test_the_other_commands_check_first_and_hand_on_what_they_were_given(order, capsys):
    wanted = {
        "check": ([("params.read",), ("graph.check",), ("dvc_files.mend",)], 0),
        "run": ([("graph.check",), ("report.run", None)], 7),
        "run --slots 3": ([("graph.check",), ("report.run", 3)], 7),
        "report": ([("report.report",)], 0),
        "workspace w": ([("workspace.make", Path("w"), None, [])], 0),
        "workspace w --preset smoke --set a.b=1 --set c=2": (
            [("workspace.make", Path("w"), "smoke", ["a.b=1", "c=2"])],
            0,
        ),
    }
    for words, (then, code) in wanted.items():
        order.clear()
        assert command.main(words.split()) == code
        assert order == [*BEGINS, *then]
    assert capsys.readouterr().out.splitlines()[0] == "params.yaml: 1 students (pd4); all sections are in order"


@pytest.mark.parametrize("words", ["train teacher", "train pd4"])
def test_a_stopped_training_ends_with_143_and_what_it_had_is_put_back(order, words, monkeypatch):
    """What starts it again goes by the code."""

    def stopped(*_):
        raise loop.Stopped("stopped at step 3")

    monkeypatch.setattr(train, "train", stopped)
    assert command.main(words.split()) == 143
    name = words.split()[1]
    assert order[-2:] == [("dvc_files.put_back", f"{stage}@{name}") for stage in ("teachers", "distill")]


@pytest.mark.parametrize("words", COMMANDS)
@pytest.mark.parametrize(
    ("end", "code"),
    [(UserError("no"), 2), (OSError(28, "full"), 2), (KeyboardInterrupt(), 130), (ZeroDivisionError(), None)],
)
def test_however_a_stage_fails_what_it_had_is_put_back(order, words, end, code, monkeypatch):
    """DVC has deleted it before the stage began."""

    def fail(*_):
        raise end

    monkeypatch.setattr(f"tasks.{COMMANDS[words][0]}", fail)
    if code is None:
        with pytest.raises(ZeroDivisionError):
            command.main(words.split())
    else:
        assert command.main(words.split()) == code
    word, _, name = words.partition(" ")
    last = {"train": "distill", "measure": "measure"}.get(word, word)
    assert order[-1] == ("dvc_files.put_back", f"{last}@{name}" if name else word)
    assert bool(name) == (order[-2] == ("dvc_files.put_back", f"{STAGES.get(word)}@{name}"))


STAGES = {"train": "teachers", "measure": "measure_teachers"}
"""Where the line is one of `teachers`."""

WRONG = {
    "": "missing command; `distill --help`",
    "shart": "there is no verb 'shart', did you mean shard? `distill --help`",
    "zzz": "there is no verb 'zzz'; `distill --help`",
    "it's": "there is no verb 'it's'; `distill --help`",
    "mea sure": "there is no verb 'mea sure', did you mean measure? `distill --help`",
    "dis\n\x1b[31mtill": r"there is no verb 'dis\n\x1b[31mtill'; `distill --help`",
    "train": "missing argument 'name'; `distill train --help`",
    "shard|more": "got unexpected extra argument(s) (more); `distill shard --help`",
    "shard|more\nlines": r"got unexpected extra argument(s) (more\x0alines); `distill shard --help`",
    "workspace": "missing argument 'folder'; `distill workspace --help`",
    "workspace|f|--prest|x": "there is no option --prest, did you mean --preset? `distill workspace --help`",
    "--verbose": "there is no option --verbose; `distill --help`",
    "workspace|f|--set": "option '--set' requires an argument; `distill --help`",
}


@pytest.mark.parametrize("words", WRONG)
def test_wrong_words_are_one_line_with_the_nearest_right_one_and_where_all_are_listed(order, capsys, words):
    code, said = main(capsys, *filter(None, words.split("|")))
    assert (code, said) == (2, f"error: {WRONG[words]} lists what there is\n")
    assert order == [("surroundings.check",)]  # nothing else was begun


def test_what_is_asked_for_in_help_is_told_and_nothing_run(order, capsys):
    for words in (["--help"], ["-h"], ["shard", "--help"], ["workspace", "-h"]):
        assert command.main(words) == 0
        said = capsys.readouterr()
        assert said.out.startswith("Usage: distill ")
        assert said.out.isascii()  # no boxes
        assert "\x1b" not in said.out + said.err
    assert set(order) == {("surroundings.check",)}


def test_a_stage_waits_idly_for_the_others_on_its_cores():
    read = "import os, sys; import tasks.command; print(os.environ['OMP_WAIT_POLICY'])"
    for given, wanted in (({}, "PASSIVE\n"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE\n")):
        done = subprocess.run([sys.executable, "-c", read], cwd=ROOT, env=given, capture_output=True, text=True)
        assert done.stdout == wanted, done.stderr


# ------------------------------------------------------------------------------- ends with its starter


@pytest.mark.parametrize(("parents", "struck"), [((7, 7), False), ((7, 1), True)], ids=["lives", "ended meanwhile"])
def test_the_kernel_is_asked_for_sigterm_at_the_parents_end(monkeypatch, parents, struck):
    """With which a training saves its state, unlike with any other signal; a parent that ended first sends none."""
    asked, sent, left = [], [], list(parents)
    kernel = SimpleNamespace(prctl=lambda *words: asked.append(words))
    monkeypatch.setattr(ctypes, "CDLL", lambda name: kernel)
    monkeypatch.setattr(os, "getppid", lambda: left.pop(0))
    monkeypatch.setattr(os, "kill", lambda *words: sent.append(words))
    die_with_parent()
    assert asked == [(1, signal.SIGTERM)]  # PR_SET_PDEATHSIG
    assert sent == ([(os.getpid(), signal.SIGTERM)] if struck else [])


@pytest.mark.parametrize("error", [OSError, AttributeError])
def test_where_the_kernel_cannot_be_asked_nothing_happens(monkeypatch, error):
    def none(name):
        raise error

    monkeypatch.setattr(ctypes, "CDLL", none)
    monkeypatch.setattr(os, "kill", lambda *words: pytest.fail("killed"))
    assert die_with_parent() is None


def test_sigterm_and_no_other_signal_asks_a_training_to_stop():
    before, others = (
        signal.getsignal(signal.SIGTERM),
        [signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGHUP)],
    )
    try:
        stop = signals.StopFlag()
        assert not stop()
        assert [signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGHUP)] == others
        signal.raise_signal(signal.SIGTERM)
        assert stop()
        assert stop()
    finally:
        signal.signal(signal.SIGTERM, before)


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
    with pytest.raises(UserError) as caught:
        learner.accelerator()
    assert str(caught.value).startswith("accelerate cannot start here: ")
    assert len(str(caught.value).splitlines()) == 1
    monkeypatch.delenv(name)
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    assert learner.accelerator().device == torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("word", ["bf16", "fp16", "no"])
def test_precision_is_the_projects_own_whatever_accelerate_was_set_to(monkeypatch, word):
    """Its config would open autocast within the student's own forward, around what must run in full."""
    from accelerate.state import AcceleratorState, GradientState, PartialState

    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", word)
    try:
        made = learner.accelerator()
        assert (made.mixed_precision, made.native_amp) == ("no", False)
    finally:
        for state in (AcceleratorState, GradientState, PartialState):
            state._reset_state()


@pytest.mark.parametrize("kind", [ValueError, RuntimeError, ImportError, torch.distributed.DistNetworkError])
def test_whatever_accelerate_fails_with_is_one_line(monkeypatch, kind):
    """Where processes cannot meet torch raises a kind of its own."""

    def fails(**_):
        raise kind("the server\n socket has failed")

    monkeypatch.setattr(learner, "Accelerator", fails)
    with pytest.raises(UserError, match=r"cannot start here: the server socket has failed; .*MASTER_PORT"):
        learner.accelerator()
