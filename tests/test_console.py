"""The command `distill`: whose code it runs, what it explains without running any, and what a shell completes."""

import inspect
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from console import start
from console.verbs import app
from flows import services
from tasks import command, verbs

ROOT = Path(__file__).parent.parent

SCRIPT = "import sys; sys.path[:] = filter(None, sys.path); from console.start import main; sys.exit(main())"
"""What pip writes into bin/: the folder in which it is called is not on Python's path."""


def distill(folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess:
    """The console command as it is installed, given in `folder`."""
    run = [sys.executable, "-c", SCRIPT, *words]
    known = {key: value for key, value in os.environ.items() if not key.startswith(("DISTILL", "PYTHON"))}
    surroundings = {**known, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(run, cwd=folder, env=surroundings, capture_output=True, text=True)


def said(done: subprocess.CompletedProcess) -> tuple[int, str, str]:
    return done.returncode, done.stdout, done.stderr


TELLS = """import os, sys
print("own", __package__, sys.argv[1:], os.getcwd(), os.environ["DISTILL_PYTHON"] == sys.executable)
sys.exit(7)
"""


@pytest.fixture
def workspace(tmp_path) -> Path:
    """What a project's root and a workspace have in common, with a command line that only tells how it was called."""
    for mark in start.MARKS:
        (tmp_path / mark).parent.mkdir(exist_ok=True)
        (tmp_path / mark).touch()
    (tmp_path / "tasks/__init__.py").touch()
    (tmp_path / "tasks/__main__.py").write_text(TELLS)
    return tmp_path


def test_a_workspace_runs_its_own_code_and_not_what_is_installed(workspace):
    told = f"own tasks ['distill', 'a b', '--x'] {workspace} True\n"
    assert said(distill(workspace, "distill", "a b", "--x")) == (7, told, "")
    assert said(distill(workspace, "distill", "a b", "--x", PYTHONSAFEPATH="1")) == (7, told, "")


@pytest.mark.slow
def test_the_copy_of_a_workspace_shows_what_is_changed_in_it(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "tasks", "workspace", str(tmp_path / "w"), "--preset", "smoke"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    before = distill(tmp_path / "w", "check")
    assert (before.returncode, before.stderr) == (0, "")
    assert before.stdout.endswith("all sections are in order\n")
    copied = tmp_path / "w/tasks/verbs.py"
    copied.write_text(copied.read_text().replace("all sections are in order", "this copy was changed"))
    after = distill(tmp_path / "w", "check")
    assert said(after) == (0, before.stdout.replace("all sections are in order", "this copy was changed"), "")


def test_the_root_runs_all_that_is_under_the_roof_from_its_own_code(workspace):
    (workspace / "console").mkdir()
    (workspace / "console/__init__.py").touch()
    (workspace / "console/__main__.py").write_text(TELLS)
    assert said(distill(workspace, "up")) == (7, f"own console ['up'] {workspace} True\n", "")


def test_another_interpreter_named_for_the_stages_stays(workspace):
    assert distill(workspace, "run", DISTILL_PYTHON="/other/python").stdout.endswith(f" {workspace} False\n")


@pytest.mark.parametrize("verb", start.SERVICES)
def test_the_servers_are_the_projects_and_no_workspace_has_any(workspace, verb):
    line = f"error: this is a workspace, and the servers are the project's: call `distill {verb}` there\n"
    assert said(distill(workspace, verb)) == (2, "", line)


@pytest.mark.slow
@pytest.mark.parametrize("mark", start.MARKS)
def test_no_code_is_run_of_a_folder_that_is_no_project(workspace, mark):
    """Whatever else it holds: many a folder has a dvc.yaml, or a folder `tasks`."""
    (workspace / mark).unlink()
    for module in ("json.py", "typer.py", "console.py", "diffcore/core.py"):
        (workspace / module).write_text(TELLS)
    line = f"error: there is no pipeline in this folder (no {mark}); cd to the project or to a workspace\n"
    for words in (["check"], ["train", "pd4"], ["up"], ["workspace", "w"]):
        assert said(distill(workspace, *words)) == (2, "", line)
    assert distill(workspace, "chekc").stderr.startswith("error: there is no verb 'chekc', did you mean check? ")


def test_below_a_project_its_root_is_named(workspace):
    (workspace / "more/more").mkdir(parents=True)
    line = f"error: there is no pipeline in this folder (no dvc.yaml); cd {workspace}\n"
    assert said(distill(workspace / "more/more", "run")) == (2, "", line)


def test_in_a_folder_that_was_removed_it_is_one_line(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    tmp_path.rmdir()
    monkeypatch.setattr(sys, "argv", ["distill", "run"])
    assert start.main() == 2
    assert capsys.readouterr().err.startswith("error: there is no pipeline in this folder (no dvc.yaml); cd to the ")


def test_help_lists_every_verb_and_runs_no_code_of_the_folder(workspace):
    for module in ("typer.py", "console.py"):
        (workspace / module).write_text(TELLS)
    done = distill(workspace, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    listed = done.stdout.partition("Commands:")[2].splitlines()[1:]
    assert [line.split()[0] for line in listed] == [each.callback.__name__ for each in app.registered_commands]
    assert not [line for line in listed if line.endswith("...")]  # each is told whole
    assert distill(workspace, "check", "-h").stdout.startswith("Usage: distill check ")


def test_all_that_the_stages_know_is_under_the_roof_with_the_servers():
    known = [each.callback.__name__ for each in verbs.app.registered_commands]
    assert [each.callback.__name__ for each in app.registered_commands] == [*known, *start.SERVICES]


def test_every_verb_says_what_it_does():
    for each in app.registered_commands:
        assert inspect.getdoc(each.callback), each


HEAVY = (
    "torch",
    "numpy",
    "accelerate",
    "mlflow",
    "prefect",
    "dvc",
    "pydantic",
    "ruamel",
    "matplotlib",
    "psutil",
    "rich",
    "flows",
)


def test_help_imports_nothing_that_takes_long():
    code = "import sys; from console.start import main; code = main(); print(code, *sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, "--help"], cwd=ROOT, capture_output=True, text=True)
    code, *found = done.stdout.splitlines()[-1].split()
    assert code == "0", done.stderr
    assert "console.verbs" in found
    assert not {name.partition(".")[0] for name in found} & set(HEAVY)


def test_surroundings_are_checked_before_the_words_are_read(tmp_path):
    (tmp_path / "typing.py").write_text("raise ZeroDivisionError")
    (tmp_path / "difflib.py").write_text("raise ZeroDivisionError")
    path = os.pathsep.join([str(ROOT), str(tmp_path)])
    done = subprocess.run(
        [sys.executable, "-c", "from console.start import main; raise SystemExit(main())", "check"],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: PYTHONPATH: {tmp_path}/difflib.py hides Python's own difflib; ")


# ------------------------------------------------------------------------------- the servers


def test_the_servers_get_their_ports_and_outlive_who_started_them(monkeypatch, tmp_path):
    """`make` may end before them, and what is half started must be taken back."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("diffcore.core.parent.die_with_parent", lambda: pytest.fail("it would end with its starter"))
    seen = []
    for verb in start.SERVICES:
        monkeypatch.setattr(services, verb, lambda *words, verb=verb: seen.append((verb, *words)))
    assert [command.main(words, start.ask) for words in (["up"], ["down"], ["status"])] == [0, 0, 1]
    assert seen == [("up", tmp_path, 4200, 5000, "127.0.0.1"), ("down", tmp_path), ("status", tmp_path)]


def test_a_full_disk_under_the_servers_is_one_line_too(monkeypatch, capsys):
    def full(*_):
        raise OSError(28, "No space left on device", ".services/worker.json")

    monkeypatch.setattr(services, "up", full)
    assert command.main(["up"], start.ask) == 2
    assert capsys.readouterr().err.startswith("error: .services/worker.json: no space left on the disk; ")


@pytest.mark.parametrize("port", ["x", "", "4.5"])
def test_a_port_that_is_no_number_is_one_line(capsys, port):
    assert command.main(["up", "--mlflow-port", port], start.ask) == 2
    line = capsys.readouterr().err
    assert line.startswith("error: invalid value for '--mlflow-port': ")
    assert len(line.splitlines()) == 1


def test_a_reader_that_goes_away_while_the_servers_are_told_of_is_no_fault(monkeypatch):
    def gone(*_, **__):
        raise BrokenPipeError

    monkeypatch.setattr("builtins.print", gone)
    services.log("worker          down")


# ------------------------------------------------------------------------------- a shell's completion

BASH = """
source "$1"
shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
_distill_completion "$1"
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture
def installed(tmp_path) -> Path:
    """A folder with the script `distill`, as pip makes it."""
    script = tmp_path / "bin/distill"
    script.parent.mkdir()
    script.write_text(f"#!{sys.executable}\nimport sys\nfrom console.start import main\nsys.exit(main())\n")
    script.chmod(0o755)
    return script


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_bash_completes_verbs_options_presets_and_the_names_of_students(installed, tmp_path):
    surroundings = {**os.environ, "PATH": f"{installed.parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    surroundings["HOME"] = str(tmp_path)
    shown = subprocess.run(
        [installed, "--install-completion", "bash"], env=surroundings, cwd=tmp_path, capture_output=True, text=True
    )
    if shown.returncode:  # without an argument where a shell was found
        shown = subprocess.run(
            ["bash", "--norc", "-c", "distill --install-completion; true"],
            env=surroundings, cwd=tmp_path, capture_output=True, text=True,
        )  # fmt: skip
    written = tmp_path / ".bash_completions/distill.sh"
    assert written.is_file(), shown
    (tmp_path / "ask.sh").write_text(BASH)

    def completed(*words: str, folder: Path = ROOT) -> list[str]:
        call = ["bash", "--norc", str(tmp_path / "ask.sh"), str(written), "distill", *words]
        done = subprocess.run(call, env=surroundings, cwd=folder, capture_output=True, text=True)
        assert done.stderr == ""
        return done.stdout.split()

    names = [each.callback.__name__ for each in app.registered_commands]
    assert completed("") == names
    assert completed("sh") == ["shard"]
    assert (
        completed("train", "")
        == completed("measure", "")
        == ["teacher", "pd16", "pd8", "pd4", "pd2", "pd1", "cd", "dm1"]
    )
    assert completed("train", "pd1") == ["pd16", "pd1"]
    assert completed("workspace", "f", "--preset", "sm") == ["smoke"]
    assert completed("workspace", "--p") == ["--preset"]
    assert completed("up", "--m") == ["--mlflow-port"]
    assert completed("train", "", folder=tmp_path) == []


@pytest.mark.parametrize("text", [None, "", "[", "distill: 3", "distill: [a", "- distill", b"\xff", "a: *b"])
def test_where_params_yaml_cannot_be_read_no_name_is_offered(monkeypatch, tmp_path, text):
    monkeypatch.chdir(tmp_path)
    if text is not None:
        Path("params.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    assert verbs._lines("") == []


def test_the_command_is_installed_under_the_projects_name():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {project["name"]: "console.start:main"}
    assert project["name"] == verbs.NAME
    assert f"_{verbs.NAME.upper()}_COMPLETE" == start.COMPLETING
    assert isinstance(app, typer.Typer)


def test_make_calls_it():
    lines = [line.strip() for line in (ROOT / "Makefile").read_text().splitlines()]
    for verb in ("run", *start.SERVICES):
        assert lines[lines.index(f"{verb}: $(READY)") + 1] == f"@$(BIN)/distill {verb}"
