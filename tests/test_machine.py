"""Faults of the machine and of DVC's own files: one line each, and what was there before is there again."""

import contextlib
import errno
import fcntl
import io
import json
import os
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from dvc import fs
from dvc.schema import COMPILED_LOCKFILE_SCHEMA
from ruamel.yaml import YAML

from diffcore.core import disk
from diffcore.core.errors import UserError
from tasks import alone, command, dvc_files, faults, paths, progress, verbs
from tests.test_disk import DEAD

ROOT = Path(__file__).parent.parent
HERE = {"pid": os.getpid(), "cmd": " ".join(["x", *psutil.Process().cmdline()[1:]])}


@pytest.fixture(autouse=True)
def workspace(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".dvc/tmp").mkdir(parents=True)
    return tmp_path


def lockfile(*names: str) -> str:
    deps = (
        "    deps:\n    - path: a b\n      hash: md5\n      md5: 0123456789abcdef0123456789abcdef.dir\n      size: 12\n"
    )
    one = "  {}:\n    cmd: ./stage\n" + deps + "    params:\n      params.yaml:\n        data.limit: [1, 2]\n"
    return "schema: '2.0'\nstages:\n" + "".join(one.format(name) for name in names)


WHOLE, MORE = lockfile("shard"), lockfile("shard", "distill@cd")


def dvc_reads(text: str) -> bool:
    try:
        COMPILED_LOCKFILE_SCHEMA(YAML(typ="safe").load(text))
    except Exception:
        return False
    return True


def test_wherever_dvc_lock_is_cut_dvc_can_read_what_is_there_afterwards(workspace, capsys):
    dvc_files.LOCK.write_text(WHOLE)
    dvc_files.keep()
    put_back = 0
    for length in range(0, len(MORE), 5):
        dvc_files.LOCK.write_text(MORE[:length])
        dvc_files.mend()
        found = dvc_files.LOCK.read_text()
        assert dvc_reads(found)
        assert found in (WHOLE, MORE[:length])
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == (found == WHOLE and MORE[:length] != WHOLE)
        put_back += len(lines)
    assert 0 < put_back < len(MORE)


def test_a_damaged_dvc_lock_without_a_copy_gives_way_to_the_run_cache(workspace, capsys):
    dvc_files.LOCK.write_bytes(b"")
    dvc_files.mend()
    assert not dvc_files.LOCK.exists()
    assert "dvc.lock was damaged" in capsys.readouterr().out
    assert dvc_files.DAMAGED.read_bytes() == b""


@pytest.mark.parametrize("torn", ["", "schema: '2.0'\nstages: [", MORE[: MORE.index("./stage")]])
def test_a_damaged_copy_of_a_damaged_dvc_lock_is_not_put_in_its_place(torn, workspace, capsys):
    dvc_files.KEPT.write_text(torn)
    dvc_files.LOCK.write_text(MORE[:99])
    dvc_files.mend()
    assert not dvc_files.LOCK.exists()
    assert "it is made anew" in capsys.readouterr().out


def test_a_damaged_dvc_lock_is_never_kept_and_a_good_one_always(workspace):
    torn = ["", "schema: '2.0'\nstages: [", MORE[: MORE.index("./stage")]]
    for text, kept in ((WHOLE, WHOLE), (torn[0], WHOLE), (MORE, MORE), (torn[1], MORE), (torn[2], MORE)):
        dvc_files.LOCK.write_text(text)
        dvc_files.keep()
        assert dvc_files.KEPT.read_text() == kept


def test_what_dvc_is_writing_at_this_moment_is_left_alone(workspace):
    dvc_files.LOCK.write_bytes(b"")
    dvc_files.HOLDERS.write_bytes(b"")
    with open(".dvc/tmp/lock", "w") as one, open(".dvc/tmp/rwlock.lock", "w") as other:
        for file in (one, other):
            fcntl.flock(file, fcntl.LOCK_EX)
        dvc_files.mend()
        assert dvc_files.LOCK.read_bytes() == dvc_files.HOLDERS.read_bytes() == b""
    dvc_files.mend()
    assert json.loads(dvc_files.HOLDERS.read_text()) == {"write": {}, "read": {}}


def test_where_nothing_can_be_written_nothing_is_mended_and_nothing_fails(workspace, monkeypatch):
    dvc_files.LOCK.write_bytes(b"")

    def refuse(path, mode):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(dvc_files, "open", refuse, raising=False)
    dvc_files.mend()
    dvc_files.keep()
    assert dvc_files.LOCK.read_bytes() == b""


TORN = [
    "",
    "garbage",
    "[]",
    '{"write": 3}',
    '{"write": {"x": {"pid": 1}}}',
    '{"read": {"x": [7]}}',
    "\x00" * 20,
    "[" * 100_000,
]


@pytest.mark.parametrize("content", TORN)
def test_a_damaged_rwlock_is_made_anew(content, workspace, capsys):
    dvc_files.HOLDERS.write_text(content)
    dvc_files.mend()
    assert json.loads(dvc_files.HOLDERS.read_text()) == {"write": {}, "read": {}}
    dvc_files.wait_for_others(0)


def test_only_the_living_stay_in_rwlock(workspace):
    other = {"pid": os.getppid(), "cmd": "dvc repro a stage that this process does not run"}  # the number lives again
    dead = {"pid": DEAD, "cmd": "dvc repro"}
    held = {"write": {"a": HERE, "b": dead, "c": other}, "read": {"d": [dead, HERE, other]}}
    dvc_files.HOLDERS.write_text(json.dumps(held))
    dvc_files.mend()
    assert json.loads(dvc_files.HOLDERS.read_text()) == {"write": {"a": HERE}, "read": {"d": [HERE]}}


def test_one_born_after_rwlock_was_written_is_not_the_one_in_it(workspace):
    dvc_files.HOLDERS.write_text(json.dumps({"write": {"a": HERE}, "read": {}}))
    long_ago = psutil.Process().create_time() - 100
    os.utime(dvc_files.HOLDERS, (long_ago, long_ago))
    dvc_files.mend()
    assert json.loads(dvc_files.HOLDERS.read_text())["write"] == {}


def test_who_is_at_work_is_told_in_one_line(workspace):
    dvc_files.HOLDERS.write_text(json.dumps({"write": {"a": HERE}, "read": {}}))
    told = (
        rf"^DVC is at work in this folder: process {os.getpid()} \(.*python.*\), since \d+-\d+-\d+ [\d:]+; wait for it"
    )
    with pytest.raises(UserError, match=told):
        dvc_files.wait_for_others(0)


def test_two_runs_in_one_folder_keep_apart_and_the_second_says_who_is_there(workspace):
    with alone.alone():
        told = rf"^another run is at work in this folder: process {os.getpid()} \(.*python.*\), since .*; wait for it"
        with pytest.raises(UserError, match=told), alone.alone():
            pass
    with alone.alone():
        pass


def test_outside_a_workspace_there_is_no_run(workspace):
    (workspace / ".dvc/tmp").rmdir()
    (workspace / ".dvc").rmdir()
    with pytest.raises(UserError, match="is not a DVC workspace"), alone.alone():
        pass


def cached(content: bytes) -> str:
    import hashlib

    md5 = hashlib.md5(content).hexdigest()
    disk.write(dvc_files.CACHE / md5[:2] / md5[2:], content)
    return md5


def knows_student() -> None:
    """DVC has made artifacts/checkpoints/cd and its curve, and taken them away again."""
    parts = [{"md5": cached(word.encode()), "relpath": word} for word in ("card.json", "unet/weights")]
    listing = json.dumps(parts).encode()
    name = cached(listing)
    os.rename(dvc_files.CACHE / name[:2] / name[2:], dvc_files.CACHE / name[:2] / f"{name[2:]}.dir")
    outs = [("artifacts/checkpoints/cd", f"{name}.dir"), ("artifacts/curves/cd.csv", cached(b"curve"))]
    lines = "".join(f"    - path: {path}\n      md5: '{md5}'\n" for path, md5 in [*outs, ("artifacts/gone", "0" * 32)])
    dvc_files.LOCK.write_text(f"schema: '2.0'\nstages:\n  distill@cd:\n    cmd: ./stage\n    outs:\n{lines}")


def fails(error: Exception | None, options=("train", "cd")) -> int:
    with pytest.MonkeyPatch.context() as patch:

        def stage(*given):
            if error is not None:
                raise error

        patch.setattr(verbs, f"_{options[0]}", stage)
        return command.main(list(options))


@pytest.mark.parametrize("error", [UserError("it diverged"), OSError(errno.ENOSPC, "full", "x"), ZeroDivisionError()])
def test_a_stage_that_fails_leaves_the_last_good_run_s_result(error, workspace, capsys):
    knows_student()
    with contextlib.suppress(ZeroDivisionError):
        assert fails(error) == 2
    assert (paths.CHECKPOINTS / "cd/unet/weights").read_text() == "unet/weights"
    assert (paths.CURVES / "cd.csv").read_bytes() == b"curve"
    said = capsys.readouterr().out
    assert "distill@cd: artifacts/checkpoints/cd, artifacts/curves/cd.csv of the last good run are back" in said


def test_what_stands_is_not_replaced_and_a_stage_that_ends_well_puts_nothing_back(workspace):
    knows_student()
    assert fails(None) == 0
    assert not paths.CHECKPOINTS.exists()
    disk.write(paths.CURVES / "cd.csv", "new")
    assert fails(UserError("no")) == 2
    assert (paths.CURVES / "cd.csv").read_text() == "new"


def test_a_damaged_cache_puts_nothing_back(workspace):
    knows_student()
    for path in dvc_files.CACHE.glob("*/*"):
        path.write_bytes(path.read_bytes() + b" ")
    assert fails(UserError("no")) == 2
    assert not (paths.CHECKPOINTS / "cd").exists()
    assert not (paths.CURVES / "cd.csv").exists()


def machine_faults() -> list:
    from safetensors import SafetensorError

    found = [
        pytest.param(OSError(code, os.strerror(code), "the/file"), id=errno.errorcode[code]) for code in faults.REMEDIES
    ]
    full = 'Error while serializing: I/O error: Os { code: 28, kind: StorageFull, message: "No space left on device" }'

    class OutOfMemoryError(RuntimeError):  # torch's
        pass

    more = [MemoryError(), OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), SafetensorError(full)]
    more += [RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")]
    more += [sqlite3.OperationalError("database or disk is full")]
    return found + more


@pytest.mark.parametrize("error", machine_faults())
@pytest.mark.parametrize(
    "options", [("shard",), ("run",), ("check",), ("report",), ("workspace", "x")], ids=lambda o: o[0]
)
def test_the_machine_s_faults_are_one_line_and_exit_code_2(error, options, workspace, capsys):
    assert fails(error, options) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert lines[0].endswith(", and run the same command again")
    assert "the/file" in lines[0] or not getattr(error, "filename", None)


def test_what_was_raised_from_a_fault_of_the_machine_is_one():
    outer = RuntimeError("the library gave up")
    outer.__cause__ = OSError(errno.ENOSPC, "full", "a.db")
    assert faults.describe(outer).startswith("a.db: no space left on the disk; free some")


def noted(error: Exception, *notes: str) -> Exception:
    for note in notes:
        error.add_note(note)
    return error


def named(name: str, text: str) -> Exception:
    """An error of a library's class with this name."""
    return type(name, (Exception,), {})(text)


TOLD = [
    (OSError(errno.ENOSPC, "", "a", None, "b c"), "a to b c: no space left on the disk"),
    (OSError(errno.EDQUOT, "", "a"), "a: the disk quota is used up"),
    (OSError(errno.EROFS, "", "a"), "a: the file system is read-only"),
    (OSError(errno.EACCES, "", "a"), "a: permission denied"),
    (OSError(errno.EPERM, "", "a"), "a: not permitted; give this user"),
    (OSError(errno.ENFILE, "", "a"), "a: too many open files on this machine"),
    (OSError(errno.ENOMEM, "", "a"), "a: out of memory; end other programs"),
    (OSError(errno.ENODEV, "", "a"), "a: no such device"),
    (OSError(errno.ENXIO, "", "a"), "a: no such device"),
    (OSError(errno.EFBIG, "", "a"), "a: the file is too large for this file system"),
    (OSError(errno.ESTALE, "", "a"), "a: the network file system lost it; mount it again"),
    (OSError(errno.ENAMETOOLONG, "", "a"), "a: the name is too long"),
    (OSError(errno.ELOOP, "", "a"), "a: the links lead in a circle"),
    (OSError(errno.EMFILE, "", "a"), "a: too many open files; raise the limit (ulimit -n)"),
    (OSError(errno.ENOTDIR, "", "a"), "a: a file is where a folder should be; move it away, and"),
    (
        OSError(errno.EISDIR, "", "a b"),
        "a b: a folder is where a file should be; move it away (`mv 'a b' 'a b.moved'`), and",
    ),
    (OSError(errno.EISDIR, "", "a", None, "b"), "a to b: a folder is where a file should be; move it away, and"),
    (noted(OSError(errno.EIO, "x"), "the standard output"), "the standard output: the disk fails"),
    (OSError(errno.EIO, "words"), "[Errno 5] words: the disk fails"),
    (named("SafetensorError", "I/O error: Permission denied (os error 13)"), "permission denied; give this user"),
    (named("SafetensorError", "no number"), None),
    (named("OtherError", "(os error 13)"), None),
    (sqlite3.OperationalError("attempt to write a readonly database"), "the file system is read-only"),
    (sqlite3.OperationalError("disk I/O error"), "the disk fails to read or write it"),
    (sqlite3.OperationalError("no such table: runs"), None),
    (named("MlflowException", "(sqlite3.OperationalError) database or disk is full"), "no space left on the disk"),
    (ValueError("database or disk is full"), None),
    (MemoryError(), "memory: out of memory; end other programs"),
    (
        RuntimeError("Not enough memory: 9 bytes\nand more"),
        "Not enough memory: 9 bytes: out of memory; end other programs",
    ),
    (RuntimeError("CUDA error: out of memory\nmore"), "CUDA error: out of memory: out of memory; end other programs"),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "can't allocate memory: out of memory; end other"),
    (RuntimeError("std::bad_alloc"), "std::bad_alloc: out of memory; end other programs"),
    (ValueError("out of memory"), None),
]


@pytest.mark.parametrize(("error", "line"), TOLD, ids=lambda each: str(each)[:30])
def test_a_fault_of_the_machine_is_told_with_its_thing_and_its_remedy(error, line):
    found = faults.describe(error)
    assert (found is None) == (line is None)
    assert line is None or line in found


def test_what_happened_meanwhile_counts_and_a_circle_of_errors_ends():
    outer, inner = KeyError("x"), OSError(errno.ENOSPC, "full", "a.db")
    outer.__context__ = inner
    assert faults.describe(outer).startswith("a.db: no space left")
    one, other = KeyError("x"), KeyError("y")
    one.__context__, other.__context__ = other, one
    assert faults.describe(one) is None


@pytest.mark.parametrize(
    "error", [KeyError("x"), FileNotFoundError(errno.ENOENT, "no", "x"), RuntimeError("shapes differ")]
)
def test_a_fault_of_our_own_keeps_its_traceback(error, workspace):
    assert faults.describe(error) is None
    with pytest.raises(type(error)):
        fails(error, ("shard",))


def full() -> None:
    """/dev/full refuses every byte, as a full disk does."""
    with open("/dev/full", "wb", 0) as file:
        file.write(b"x")


def write_file(path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: full())
        disk.write(path, "x")


def write_folder(path: Path) -> None:
    with disk.folder(path):
        full()


@pytest.mark.parametrize("write", [write_file, write_folder])
def test_a_disk_that_is_really_full_is_told_with_the_name_of_what_was_written(write, workspace):
    with pytest.raises(OSError, match="No space left") as caught:
        write(workspace / "made")
    line = f"{workspace / 'made'}: no space left on the disk; free some, and run the same command again"
    assert faults.describe(caught.value) == line
    assert [path.name for path in workspace.iterdir()] == [".dvc"]


@pytest.mark.slow
def test_dvc_ends_with_the_run_that_started_it(workspace):
    """Killed by whatever signal: what works on unseen keeps the folder's files and its GPU."""
    (workspace / "sleeper").write_text("#!/bin/sh\necho $$ > pid.new; mv pid.new pid; exec sleep 600\n")
    (workspace / "sleeper").chmod(0o755)
    start = "import sys; from tasks import report; sys.executable = './sleeper'; report._repro()"
    run = subprocess.Popen([sys.executable, "-c", start], env={**os.environ, "PYTHONPATH": str(ROOT)})
    while not (workspace / "pid").exists():
        assert run.poll() is None
        time.sleep(0.05)
    child = psutil.Process(int((workspace / "pid").read_text()))
    run.kill()
    run.wait()
    try:
        assert psutil.wait_procs([child], 120)[1] == []
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()


class Full(io.StringIO):
    """A text file on a full disk: every byte is refused when it is to leave."""

    def flush(self):
        full()

    def fileno(self):
        return os.open(os.devnull, os.O_WRONLY)


@pytest.mark.parametrize("words", [("report",), ("workspace", "made"), ("check",)])
@pytest.mark.parametrize("ends", [("stdout",), ("stdout", "stderr")])
def test_an_output_that_takes_nothing_is_one_line_or_the_exit_code_alone(words, ends, workspace, monkeypatch, capsys):
    monkeypatch.setattr(verbs, f"_{words[0]}", lambda *given: progress.log("done"))
    for end in ends:
        monkeypatch.setattr(sys, end, Full())
    assert command.end(command.main(list(words))) == 2
    line = "error: the standard output: no space left on the disk; free some, and run the same command again\n"
    assert capsys.readouterr().err == (line if ends == ("stdout",) else "")


def test_what_a_killed_dvc_had_half_made_is_removed_and_nothing_else(workspace):
    name = fs.utils.tmp_fname()
    dvc_files.LOCK.write_text(WHOLE + "    outs:\n    - path: made/out\n")
    trial, link, copy = (
        workspace / "made" / name,
        workspace / f"made/.{'-_a' * 7}b.tmp",
        dvc_files.CACHE / "0a" / name,
    )
    kept = [
        workspace / name,
        workspace / "made/.test.tmp",
        workspace / f"made/x.{'x' * 22}.tmp",
        dvc_files.CACHE / "0a/bc",
    ]
    note = dvc_files.RUNS / "0a/0abc" / name
    for path in (trial, copy, note, *kept):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"test")
    (workspace / f"made/.{'d' * 22}.tmp").mkdir()
    link.symlink_to(dvc_files.CACHE / name)
    (dvc_files.RUNS / "0b/0bcd/a folder").mkdir(parents=True)
    with open(dvc_files.HOME / "tmp/lock", "a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        dvc_files.mend()
        assert all(map(os.path.lexists, (trial, link, copy, note, *kept)))
    dvc_files.mend()
    assert not any(map(os.path.lexists, (trial, link, copy, note.parent, dvc_files.RUNS / "0b/0bcd")))
    assert all(path.exists() for path in (*kept, workspace / f"made/.{'d' * 22}.tmp"))


# ------------------------------------------------------------------------------- who is at work


def held(write: dict | None = None, read: dict | None = None) -> None:
    dvc_files.HOLDERS.write_text(json.dumps({"write": write or {}, "read": read or {}}))


def test_a_process_that_nobody_has_waited_for_and_another_user_s_are_told_apart(workspace, monkeypatch):
    """The first is dead, though the kernel still lists it; of the second nothing can be known but that it lives."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    process = psutil.Process(ended.pid)
    while process.status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    held({"a": {"pid": ended.pid, "cmd": ""}})
    dvc_files.mend()
    assert json.loads(dvc_files.HOLDERS.read_text())["write"] == {}
    ended.wait()

    def refuse(self):
        raise psutil.AccessDenied(self.pid)

    monkeypatch.setattr(psutil.Process, "cmdline", refuse)
    other = {"pid": os.getpid(), "cmd": "dvc repro"}
    held({"a": other}, {"b": [other]})
    dvc_files.mend()
    assert json.loads(dvc_files.HOLDERS.read_text()) == {"write": {"a": other}, "read": {"b": [other]}}
    assert dvc_files.who(os.getpid()) == f"process {os.getpid()}"


def test_one_that_only_reads_is_waited_for_too_and_looked_at_again(workspace, monkeypatch):
    held(read={"a": [HERE]})
    with pytest.raises(UserError, match=f"process {os.getpid()} "):
        dvc_files.wait_for_others(0)
    slept = []

    def sleep(seconds: float) -> None:
        assert not slept, "the dead one is waited for"
        slept.append(seconds)
        held(read={"a": [{"pid": DEAD, "cmd": "dvc"}]})  # it has ended, and DVC did not take it out

    monkeypatch.setattr(dvc_files.time, "sleep", sleep)
    dvc_files.wait_for_others(1000)
    assert len(slept) == 1
    assert 0 < slept[0] < 1
    dvc_files.HOLDERS.unlink()
    dvc_files.wait_for_others(0)


def test_others_have_a_quarter_of_a_minute_to_end(workspace, monkeypatch):
    held({"a": HERE})
    clock = iter([0.0, 14.0, 15.0, 15.1])
    monkeypatch.setattr(dvc_files.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(dvc_files.time, "sleep", lambda seconds: None)
    with pytest.raises(UserError, match="DVC is at work in this folder"):
        dvc_files.wait_for_others()
    assert next(clock, None) is None


def test_a_run_begins_where_dvc_has_kept_nothing_yet_and_names_the_holder_of_its_own_lock(workspace, monkeypatch):
    (workspace / ".dvc/tmp").rmdir()
    with alone.alone():
        inode = alone.LOCK.stat().st_ino
    table = "\n".join(
        [
            f"1: POSIX  ADVISORY  WRITE 11 00:2f:{inode} 0 EOF",
            f"2: FLOCK  ADVISORY  WRITE 22 00:2f:{inode + 1} 0 EOF",
            f"3: FLOCK  ADVISORY  WRITE 33 00:2f:{inode} 0 EOF",
            f"4: FLOCK  ADVISORY  WRITE 44 00:2f:{inode} 0 EOF",
        ]
    )
    monkeypatch.setattr(dvc_files, "who", lambda pid: f"number {pid}")
    monkeypatch.setattr(alone.Path, "read_text", lambda self: table)
    assert alone._holder() == "number 33"
    monkeypatch.setattr(alone.Path, "read_text", lambda self: table.replace("3: FLOCK", "3: LEASE").partition("4:")[0])
    assert alone._holder() == "process unknown"
    monkeypatch.setattr(alone.Path, "read_text", lambda self: full())
    assert alone._holder() == "process unknown"


# ------------------------------------------------------------------------------- what a whole dvc.lock is


PART = {"path": "a", "hash": "md5", "md5": "0" * 32, "size": 1, "nfiles": 2}
STAGE = {"cmd": "x", "deps": [PART], "outs": [PART], "params": {"params.yaml": {"seed": 0}}}


def locked(**stage: object) -> bool:
    """Whether a dvc.lock with this stage beside a whole one is whole, too."""
    content = {"schema": "2.0", "stages": {"whole": STAGE, "s": {**STAGE, **stage}}}
    dvc_files.LOCK.write_text(json.dumps(content))
    return dvc_files.read(dvc_files.LOCK) == content["stages"]


def test_every_part_of_a_dvc_lock_is_looked_at(workspace):
    assert locked()
    assert locked(cmd=["a", "b"])
    assert locked(deps=[], params={})
    for wrong in ({"cmd": None}, {"cmd": 3}, {"params": []}, {"params": {"p": None}}, {"deps": {}}, {"outs": None}):
        assert not locked(**wrong), wrong
    for key in ("deps", "outs"):
        assert not locked(**{key: ["a"]})
        assert not locked(**{key: [PART, {"md5": "0"}]})
        for name, value in (("path", 1), ("md5", 5), ("hash", None), ("size", "1"), ("nfiles", "2")):
            assert not locked(**{key: [PART, {**PART, name: value}]}), (key, name)
    for content in ({"stages": {"s": STAGE}}, {"schema": "2.0"}, {"schema": "2.0", "stages": []}, []):
        dvc_files.LOCK.write_text(json.dumps(content))
        assert dvc_files.read(dvc_files.LOCK) is None, content
    dvc_files.LOCK.write_text(json.dumps({"schema": "2.0", "stages": {"s": None}}))
    assert dvc_files.read(dvc_files.LOCK) is None


def test_a_copy_of_dvc_lock_is_written_only_when_it_is_another(workspace):
    dvc_files.LOCK.write_text(WHOLE)
    dvc_files.keep()
    before = dvc_files.KEPT.stat()
    dvc_files.keep()
    after = dvc_files.KEPT.stat()  # not when it was read, which the system notes as it pleases
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert not dvc_files.DAMAGED.exists()


def test_a_damaged_dvc_lock_is_set_aside_for_whoever_wants_to_see_it(workspace):
    dvc_files.LOCK.write_text(WHOLE)
    dvc_files.keep()
    dvc_files.LOCK.write_text("half of")
    dvc_files.mend()
    assert (dvc_files.LOCK.read_text(), dvc_files.DAMAGED.read_text()) == (WHOLE, "half of")


@pytest.mark.parametrize("what", ["a link to nothing", "a folder", "a file"])
def test_whatever_stands_where_an_output_was_stays(what, workspace):
    knows_student()
    path = paths.CURVES / "cd.csv"
    path.parent.mkdir(parents=True)
    if what == "a folder":
        path.mkdir()
    elif what == "a file":
        path.touch()
    else:
        path.symlink_to("nowhere")
    before = path.lstat()
    assert dvc_files.put_back("distill@cd") == [paths.CHECKPOINTS / "cd"]
    assert path.lstat().st_ino == before.st_ino


def test_only_the_failed_stage_s_own_outputs_come_back(workspace):
    knows_student()
    assert dvc_files.put_back("distill@ce") == dvc_files.put_back("teacher") == []
    assert dvc_files.put_back("distill@cd") == [paths.CHECKPOINTS / "cd", paths.CURVES / "cd.csv"]
    assert (paths.CHECKPOINTS / "cd/card.json").read_text() == "card.json"
    dvc_files.LOCK.unlink()
    assert dvc_files.put_back("distill@cd") == []
