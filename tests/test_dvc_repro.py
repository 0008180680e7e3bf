"""DVC ends as our own commands do: what the machine refused is one line and 2, a stage's 2 is 2, the rest is DVC's."""

import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from flows import stages
from flows.running import Ended

CONFIG = "[core]\n    no_scm = true\n    analytics = false\n    site_cache_dir = .site\n"


def repro(folder: Path, *words: str, prepare=None) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "tasks.dvc_repro", *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, preexec_fn=prepare)


def project(folder: Path, command: str) -> Path:
    (folder / ".dvc").mkdir()
    (folder / ".dvc/config").write_text(CONFIG)
    (folder / "dvc.yaml").write_text(f"stages:\n  one:\n    cmd: {command}\n    outs: [out]\n")
    return folder


def small_files_only():
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


def test_what_the_machine_refuses_dvc_is_one_line(tmp_path):
    done = repro(project(tmp_path, "mkdir out && touch out/made"), prepare=small_files_only)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert line.endswith("and run the same command again")
    shutil.rmtree(tmp_path / ".dvc/cache", ignore_errors=True)
    (tmp_path / ".dvc/cache").write_text("")
    done = repro(tmp_path)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "a file is where a folder should be; move it away" in line
    assert stages.cause(Ended(2, tuple(done.stderr.splitlines()))) == (2, line.removeprefix("error: "))


@pytest.mark.parametrize(("command", "code"), [("exit 2", 2), ("exit 1", 255), ("echo 1 > out", 0)])
def test_a_stage_s_own_refusal_is_dvc_s_too(tmp_path, command, code):
    done = repro(project(tmp_path, command), "--single-item", "one")
    assert done.returncode == code
    assert ("exited with 2" in done.stderr) == (code == 2)


def test_a_fault_of_dvc_s_is_told_by_dvc(tmp_path):
    (tmp_path / "dvc.yaml").write_text("stages: 3\n")
    done = repro(tmp_path)
    assert done.returncode == 253
    assert "not inside of a DVC repository" in done.stderr


@pytest.mark.parametrize("damage", [b"", b"\xfa\xfb", "half", "another stage's"])
def test_a_damaged_note_of_dvc_s_on_an_earlier_run_is_removed_and_its_stage_runs_again(tmp_path, damage):
    (tmp_path / "in").write_text("3\n")
    project(tmp_path, "cp in out")
    with open(tmp_path / "dvc.yaml", "a") as graph:
        graph.write("    deps: [in]\n")
    assert repro(tmp_path).returncode == 0
    (note,) = (tmp_path / ".dvc/cache/runs").glob("??/*/*")
    whole = note.read_bytes()
    note.chmod(0o644)
    changed = {"half": whole[: len(whole) // 2], "another stage's": whole.replace(b"path: out", b"path: it")}
    note.write_bytes(changed.get(damage, damage))
    for name in ("out", "dvc.lock"):
        (tmp_path / name).unlink()
    done = repro(tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out").read_text() == "3\n"
    assert note.read_bytes() == whole
