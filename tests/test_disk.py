import contextlib
import errno
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from diffcore import disk
from diffcore.mistake import Mistake

DEAD = 2**22 + 7
"""A process id that Linux never gives."""

Tree = dict[str, bytes | None]
"""By path: the bytes of a file, None for a folder."""


def tree(root: Path) -> Tree:
    return {str(p.relative_to(root)): None if p.is_dir() else p.read_bytes() for p in sorted(root.rglob("*"))}


def plant(found: Tree, root: Path) -> Path:
    """The tree as files, its writer being dead."""
    root.mkdir()
    for name, content in found.items():
        path = root / name.replace(f".{os.getpid()}.", f".{DEAD}.")
        path.mkdir() if content is None else path.write_bytes(content)
    return root


def states(root: Path, work: Callable[[], None]) -> list[Tree]:
    """All that a kill could leave under `root`: what lay there before each line that disk.py ran, and at the end."""
    seen: list[Tree] = []

    def trace(frame, event, argument):
        if frame.f_code.co_filename != disk.__file__:
            return None
        if (now := tree(root)) not in seen:
            seen.append(now)
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return [*seen, tree(root)]


def write_file(root: Path, word: str) -> None:
    disk.write(root / "made", word * 5)


def write_folder(root: Path, word: str) -> None:
    with disk.folder(root / "made") as new:
        (new / "a").write_text(word)
        (new / "in").mkdir()
        disk.write_json(new / "in/b", [word])


WRITERS = {"file": write_file, "folder": write_folder}
writers = pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)


def made(found: Tree) -> Tree:
    return {name: content for name, content in found.items() if name.split("/")[0] == "made"}


@pytest.fixture
def cannot_exchange(monkeypatch):
    monkeypatch.setattr(disk, "_exchanged", lambda one, other: False)


@writers
@pytest.mark.parametrize("first", [True, False], ids=["for the first time", "again"])
def test_killed_at_any_line_a_reader_finds_the_old_or_the_new_and_the_next_write_leaves_nothing_over(
    write, first, tmp_path
):
    old, new, root = plant({}, tmp_path / "old"), plant({}, tmp_path / "new"), plant({}, tmp_path / "root")
    write(old, "old"), write(new, "new")
    if not first:
        write(root, "old")
    found = states(root, lambda: write(root, "new"))
    assert len(found) > 3
    for number, state in enumerate(found):
        assert made(state) in (tree(new), {} if first else tree(old))
        again = plant(state, tmp_path / f"{number}")
        write(again, "new")
        assert tree(again) == tree(new)


def test_where_names_cannot_be_exchanged_the_next_writer_puts_the_old_folder_back(tmp_path, cannot_exchange):
    old, new, root = plant({}, tmp_path / "old"), plant({}, tmp_path / "new"), plant({}, tmp_path / "root")
    write_folder(old, "old"), write_folder(new, "new"), write_folder(root, "old")
    found = states(root, lambda: write_folder(root, "new"))
    assert {} in map(made, found)  # the window that the exchange has not
    for number, state in enumerate(found):
        failed, again = plant(state, tmp_path / f"failed {number}"), plant(state, tmp_path / f"{number}")
        with pytest.raises(ZeroDivisionError), disk.folder(failed / "made"):
            raise ZeroDivisionError
        assert tree(failed) in (tree(old), tree(new))
        write_folder(again, "new")
        assert tree(again) == tree(new)


def test_only_what_dead_writers_of_the_same_name_left_is_cleared_away(tmp_path):
    others = [".made.notes.tmp", f".made2.{DEAD}.tmp", f"made.{DEAD}.tmp", f".made.{os.getppid()}.tmp", ".made.tmp"]
    for name in (*others, f".made.{DEAD}.tmp", f".made.{DEAD}.old"):
        (tmp_path / name).mkdir()
    write_folder(tmp_path, "new")
    assert {p.name for p in tmp_path.iterdir()} == {*others, "made"}


class Refusing:
    """A primitive whose `number`-th call is refused."""

    def __init__(self, real: Callable, number: int, code: int):
        self.real, self.left, self.code = real, number, code

    def __call__(self, *arguments, **more):
        self.left -= 1
        if self.left == 0:
            raise OSError(self.code, os.strerror(self.code), str(arguments[0]))
        return self.real(*arguments, **more)


PRIMITIVES = {
    "open": (disk, "open", open),
    "exchange": (disk, "_exchanged", disk._exchanged),
    "sync folder": (disk, "_sync_folder", disk._sync_folder),
    **{name: (os, name, getattr(os, name)) for name in ("fsync", "replace", "rename", "mkdir", "listdir")},
}


@writers
@pytest.mark.parametrize("exchange", [True, False], ids=["exchange", "two renames"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES])
@pytest.mark.parametrize("primitive", PRIMITIVES)
def test_what_the_machine_refuses_leaves_the_old_or_the_new_whole_and_nothing_over(
    write, exchange, code, primitive, tmp_path, monkeypatch
):
    old, new, root = (plant({}, tmp_path / word) for word in ("old", "new", "root"))
    write(old, "old"), write(new, "new"), write(root, "old")
    where, name, real = PRIMITIVES[primitive]
    for number in range(1, 30):
        refusing = Refusing(real, number, code)
        with monkeypatch.context() as patch, contextlib.suppress(OSError):
            if not exchange:
                patch.setattr(disk, "_exchanged", lambda one, other: False)
            patch.setattr(where, name, refusing, raising=False)
            write(root, "new")
        assert tree(root) in (tree(old), tree(new))
        if refusing.left > 0:  # it was never called so often
            break
        write(root, "old")
    assert tree(root) == tree(new)


def test_a_full_disk_keeps_no_part_of_what_did_not_fit(tmp_path, monkeypatch):
    class Full:
        def __init__(self, path, mode):
            self.file = open(path, mode)  # noqa: SIM115

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def write(self, content):
            self.file.write(content[:3])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(disk, "open", Full, raising=False)
    with pytest.raises(OSError, match="No space left"):
        disk.write(tmp_path / "made", "content")
    assert tree(tmp_path) == {}


VALUE = {"schema": 3, "numbers": [0.1, 1e300, None, True], "by": {1: "a", "b": {"c": "ä"}}}


def test_what_is_sealed_is_read_as_json_gives_it(tmp_path):
    disk.write_sealed(tmp_path / "x.json", VALUE)
    assert disk.read_sealed(tmp_path / "x.json", 3, "again") == {**VALUE, "by": {"1": "a", "b": {"c": "ä"}}}


def test_a_sealed_file_names_every_change_of_a_byte_and_every_cut_in_one_line(tmp_path):
    path = tmp_path / "x.json"
    disk.write_sealed(path, VALUE)
    whole = path.read_bytes()
    flipped = [
        bytes(b ^ (1 << bit) if k == at else b for k, b in enumerate(whole))
        for at in range(len(whole))
        for bit in (0, 3, 6)
    ]
    cuts = [whole[:length] for length in range(len(whole) - 1)]
    for content in (*flipped, *cuts, b"[1]", b"null", b"[" * 100_000, b"\xff"):
        path.write_bytes(content)
        with contextlib.suppress(ValueError, RecursionError):
            if json.loads(content) == json.loads(whole):  # a blank between two words says nothing
                disk.read_sealed(path, 3, "run it again")
                continue
        with pytest.raises(Mistake) as told:
            disk.read_sealed(path, 3, "run it again")
        assert re.fullmatch(rf"{re.escape(str(path))} .*; run it again", str(told.value))


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda path: path.unlink(), "x.json is missing; run it again"),
        (lambda path: path.write_text('{"schema": 3}'), "x.json has no seal: another version wrote it"),
        (
            lambda path: disk.write_sealed(path, {"schema": 2}),
            "x.json has schema 2, this version reads 3; run it again",
        ),
        (lambda path: disk.write_sealed(path, {}), "x.json has schema None, this version reads 3; run it again"),
    ],
)
def test_a_sealed_file_that_is_not_the_one_asked_for_is_refused(break_it, message, tmp_path):
    disk.write_sealed(tmp_path / "x.json", VALUE)
    break_it(tmp_path / "x.json")
    with pytest.raises(Mistake, match=message):
        disk.read_sealed(tmp_path / "x.json", 3, "run it again")


def test_nothing_that_is_no_number_is_sealed(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        disk.write_sealed(tmp_path / "x.json", {"schema": 1, "value": float("nan")})
    assert tree(tmp_path) == {}


def test_who_has_the_old_file_open_reads_it_to_its_end(tmp_path):
    """Another file takes its name; its own bytes are never written over."""
    disk.write(tmp_path / "made", "the old content")
    with open(tmp_path / "made") as reader:
        disk.write(tmp_path / "made", "new")
        assert reader.read() == "the old content"
    assert (tmp_path / "made").read_text() == "new"


@writers
def test_all_that_is_written_is_safe_on_the_disk_before_it_gets_its_name_and_so_is_the_name(
    write, tmp_path, monkeypatch
):
    events, sync = [], os.fsync

    def where(descriptor: int) -> str:
        return os.readlink(f"/proc/self/fd/{descriptor}").replace(str(tmp_path), "").replace(str(os.getpid()), "PID")

    monkeypatch.setattr(os, "fsync", lambda descriptor: sync(descriptor) or events.append(where(descriptor)))
    for name in ("rename", "replace"):
        move = getattr(os, name)
        monkeypatch.setattr(
            os, name, lambda old, new, move=move: move(old, new) or events.append(f"-> {Path(new).name}")
        )
    write(tmp_path, "new")
    named = events.index("-> made")
    new = "/.made.PID.tmp"
    inside = {new} if write is write_file else {new, f"{new}/a", f"{new}/in", f"{new}/in/b"}
    assert inside <= set(events[:named])
    assert events[named + 1 :] == [""]


def test_what_another_user_s_living_process_is_writing_is_left_alone(tmp_path, monkeypatch):
    def kill(pid: int, signal: int) -> None:
        raise PermissionError(errno.EPERM, "not yours")

    mine = tmp_path / ".made.4711.tmp"
    mine.write_text("half")
    monkeypatch.setattr(os, "kill", kill)
    disk.write(tmp_path / "made", "whole")
    assert mine.read_text() == "half"
