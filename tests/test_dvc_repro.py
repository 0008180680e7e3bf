"""DVC ends as our own commands do: what the machine refused is one line and 2, a stage's 2 is 2, the rest is DVC's."""

import errno
import itertools
import json
import logging
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tasks import dvc_files, dvc_repro, stages
from tasks.running import Ended

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


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(b"", marks=pytest.mark.slow),
        pytest.param(b"\xfa\xfb", marks=pytest.mark.slow),
        "half",
        pytest.param("another stage's", marks=pytest.mark.slow),
    ],
)
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


def record(error: BaseException | None, name: str = "dvc.repo", level: int = logging.ERROR) -> logging.LogRecord:
    return logging.LogRecord(name, level, "", 0, "", (), (type(error), error, None) if error else None)


def chained(*errors: Exception) -> Exception:
    for above, below in itertools.pairwise(errors):
        above.__cause__ = below
    return errors[0]


def test_the_codes_of_failed_stages_are_heard_in_whatever_caused_an_error():
    listener = dvc_repro._Listener()
    for code in (2, -9):
        words = f"failed to run: ./stage x, exited with {code}"
        error = chained(RuntimeError("failed to reproduce"), ValueError("other"), RuntimeError(words))
        assert listener.filter(record(error))
    assert listener.codes == {2, -9}
    assert listener.filter(record(None))
    assert listener.filter(record(RuntimeError("y, exited with 3"), level=logging.INFO))
    assert listener.filter(record(RuntimeError("exited with 4, they say")))
    assert (listener.codes, listener.line) == ({2, -9}, None)


def test_the_first_of_the_machine_s_refusals_is_dvc_s_last_word():
    full, other = OSError(errno.ENOSPC, "full", "a"), OSError(errno.EROFS, "read-only", "b")
    listener = dvc_repro._Listener()
    assert not listener.filter(record(chained(RuntimeError("it failed"), full)))
    assert not listener.filter(record(other))
    assert listener.filter(record(RuntimeError("unlike these")))
    with pytest.raises(dvc_repro._Refused, match=r"^a: no space left on the disk"):
        listener.filter(record(RuntimeError("failed"), "dvc.cli"))


def answers(monkeypatch, *codes: int, heard: frozenset = frozenset(), removed: int = 0) -> tuple[int, list]:
    """(the exit code where DVC ends with these, what DVC was asked)."""
    import dvc.cli

    asked, left = [], list(codes)

    class Listener(dvc_repro._Listener):
        def __init__(self):
            super().__init__()
            self.codes = set(heard)

    monkeypatch.setattr(dvc.cli, "main", lambda words: asked.append(words) or left.pop(0))
    monkeypatch.setattr(dvc_repro, "_Listener", Listener)
    monkeypatch.setattr(dvc_repro, "_removed", lambda: removed)
    return dvc_repro.main(["--single-item", "one"]), asked


@pytest.mark.parametrize(
    ("codes", "heard", "removed", "wanted"),
    [
        ([0], set(), 1, 0),
        ([255], {2}, 0, 2),
        ([255], {2}, 1, 2),  # a stage failed: no note of DVC's did
        ([255], {2, 1}, 0, 255),
        ([255], {1}, 1, 255),
        ([255], set(), 0, 255),
        ([255, 0], set(), 1, 0),
        ([255, 253], set(), 3, 253),
    ],
)
def test_dvc_is_asked_again_only_where_a_damaged_note_was_in_its_way(monkeypatch, codes, heard, removed, wanted):
    code, asked = answers(monkeypatch, *codes, heard=frozenset(heard), removed=removed)
    assert code == wanted
    assert asked == [["--wait-for-lock", "repro", "--single-item", "one"]] * len(codes)


def test_notes_are_told_whole_as_dvc_names_them(tmp_path, monkeypatch, capsys):
    from dvc.utils import dict_sha256

    monkeypatch.chdir(tmp_path)
    named = {"cmd": "x", "outs": [{"path": "a", "md5": "0", "hash": "md5"}]}
    note = {**named, "outs": [{**named["outs"][0], "size": 7, "nfiles": 2}]}
    name = dict_sha256(named)
    good = dvc_files.RUNS / "ab" / ("ab" * 32) / name
    for path, content in ((good, note), (good.with_name("0" * 64), note), (good.with_name("1" * 64), [1])):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    alone = dvc_files.RUNS / "cd" / ("cd" * 32) / "x"
    alone.parent.mkdir(parents=True)
    alone.write_bytes(b"\x00")
    assert dvc_repro._removed() == 3
    assert [path for path in dvc_files.RUNS.rglob("*") if path.is_file()] == [good]
    assert not alone.parent.exists()  # over an empty folder DVC falls
    assert capsys.readouterr().out.startswith("3 damaged of DVC's notes on earlier runs (")
    assert dvc_repro._removed() == 0
