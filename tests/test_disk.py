import contextlib
import errno
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from diffcore.core import disk
from diffcore.core.errors import UserError
from tasks import locks
from tasks.tracking.client import alone

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
        with pytest.raises(UserError) as told:
            disk.read_sealed(path, 3, "run it again")
        assert re.fullmatch(rf"{re.escape(str(path))} .*; run it again", str(told.value))


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, '{"a": ' * 100_000, b"\xff", "nul"])
def test_what_is_no_json_is_a_value_error_also_where_it_has_no_end(text):
    with pytest.raises(ValueError, match=r"."):
        disk.parse_json(text)


def test_whoever_reads_json_reads_it_so():
    """The reader of Python raises something else for brackets without end, which nobody thinks of."""
    here = Path(disk.__file__).parents[2]
    others = [
        f"{path.name}: {line.strip()}"
        for room in ("diffcore", "tasks", "flows", "console")
        for path in sorted((here / room).rglob("*.py"))
        for line in path.read_text().splitlines()
        if "json.load" in line and "json.loads(json.dumps(" not in line
    ]
    by_mlflow = 'sampler_model.py: recipe = from_json(json.loads(config["recipe"]))'
    assert others == ["disk.py: return json.loads(text)", by_mlflow]


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
    with pytest.raises(UserError, match=message):
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
@pytest.mark.parametrize("exchanges", [True, False], ids=["exchange", "two renames"])
def test_all_that_is_written_is_safe_on_the_disk_before_it_gets_its_name_and_so_is_the_name(
    write, exchanges, tmp_path, monkeypatch
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
    exchange = disk._exchanged
    if not exchanges:
        exchange = lambda one, other: False  # noqa: E731
    monkeypatch.setattr(disk, "_exchanged", lambda old, new: exchange(old, new) and (events.append("-> made") or True))
    new = "/.made.PID.tmp"
    inside = {new} if write is write_file else {new, f"{new}/a", f"{new}/in", f"{new}/in/b"}
    for word in ("new", "newer"):  # the second in the place of the first
        events.clear()
        write(tmp_path, word)
        named = events.index("-> made")
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


def test_what_a_dead_writer_with_this_very_process_id_left_is_cleared_away_too(tmp_path):
    """Ids are given again: in a container each run is often process 1."""
    for name in ("tmp", "old"):
        (tmp_path / f".made.{os.getpid()}.{name}").mkdir()
    (tmp_path / "made").mkdir()
    write_folder(tmp_path, "new")
    assert {p.name for p in tmp_path.iterdir()} == {"made"}


def test_names_with_points_are_no_patterns_and_a_number_that_is_no_process_is_left_alone(tmp_path):
    others = [f".xyjson.{DEAD}.tmp", f".x.json.{10**30}.tmp"]
    for name in others:
        (tmp_path / name).write_text("another's")
    disk.write_json(tmp_path / "x.json", 1)
    assert {p.name for p in tmp_path.iterdir()} == {"x.json", *others}


@pytest.mark.parametrize("exchange", [True, False], ids=["exchange", "two renames"])
@pytest.mark.parametrize("there", [True, False], ids=["a link", "a broken link"])
def test_a_link_in_the_place_of_a_folder_is_replaced_and_what_it_points_to_is_not_touched(
    exchange, there, tmp_path, monkeypatch
):
    if not exchange:
        monkeypatch.setattr(disk, "_exchanged", lambda one, other: False)
    if there:
        (tmp_path / "far").mkdir()
        (tmp_path / "far/kept").write_text("kept")
    (tmp_path / "root").mkdir()
    (tmp_path / "root/made").symlink_to(tmp_path / "far")
    write_folder(tmp_path / "root", "new")
    assert [p.name for p in (tmp_path / "root").iterdir()] == ["made"]
    assert not (tmp_path / "root/made").is_symlink()
    assert not there or tree(tmp_path / "far") == {"kept": b"kept"}


def test_a_broken_link_in_a_place_is_something_that_stood_there(tmp_path):
    """What had stepped aside does not take the place of it."""
    (tmp_path / "made").symlink_to(tmp_path / "nowhere")
    (tmp_path / f".made.{DEAD}.old").write_text("old")
    disk.clear(tmp_path / "made")
    assert (tmp_path / "made").is_symlink()


class Kernel:
    """Answers every call with an errno; without renameat2 where the code is None."""

    def __init__(self, code: int | None):
        if code is not None:
            self.renameat2 = lambda *arguments: self.refuse(code)

    def refuse(self, code: int) -> int:
        disk.ctypes.set_errno(code)
        return -1


@pytest.mark.parametrize("code", [None, errno.ENOSYS, errno.EINVAL, errno.ENOTSUP])
def test_a_kernel_that_cannot_exchange_names_is_asked_for_two_renames(code, tmp_path, monkeypatch):
    write_folder(tmp_path, "old")
    monkeypatch.setattr(disk.ctypes, "CDLL", lambda *arguments, **options: Kernel(code))
    write_folder(tmp_path, "new")
    assert (tmp_path / "made/a").read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["made"]


def test_a_machine_whose_library_cannot_be_opened_is_asked_for_two_renames(tmp_path, monkeypatch):
    def refuse(*arguments, **options):
        raise OSError("no such library")

    write_folder(tmp_path, "old")
    monkeypatch.setattr(disk.ctypes, "CDLL", refuse)
    write_folder(tmp_path, "new")
    assert (tmp_path / "made/a").read_text() == "new"


def test_any_other_refusal_of_the_exchange_is_an_error_and_the_old_folder_stays(tmp_path, monkeypatch):
    write_folder(tmp_path, "old")
    monkeypatch.setattr(disk.ctypes, "CDLL", lambda *arguments, **options: Kernel(errno.EACCES))
    with pytest.raises(PermissionError) as told:
        write_folder(tmp_path, "new")
    assert told.value.filename == str(tmp_path / "made")
    assert (tmp_path / "made/a").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["made"]


def new_file(root: Path, word: str) -> None:
    disk.write(root / "made", word * 5, new=True)


def new_folder(root: Path, word: str) -> None:
    with disk.folder(root / "made", new=True) as folder:
        (folder / "a").write_text(word)


def put_new(root: Path, word: str) -> None:
    with disk.beside(root / "made") as room:
        (room / "made").write_text(word)
        disk.put(room / "made", root / "made", new=True)


NEW = {"file": new_file, "folder": new_folder, "put": put_new}


@pytest.mark.parametrize("code", ["able", None, errno.ENOSYS, errno.EINVAL])
@pytest.mark.parametrize("there", ["a file", "a folder", "an empty folder", "a broken link"])
@pytest.mark.parametrize("write", NEW.values(), ids=NEW)
def test_what_must_be_new_takes_a_free_name_and_never_another_s(write, there, code, tmp_path, monkeypatch):
    """Also where the kernel cannot refuse by itself, and where no look came before."""
    if code != "able":
        monkeypatch.setattr(disk.ctypes, "CDLL", lambda *arguments, **options: Kernel(code))
    write(tmp_path, "mine")
    assert [path.name for path in tmp_path.iterdir()] == ["made"]
    (root := tmp_path / "taken").mkdir()
    if there == "a file":
        (root / "made").write_text("another's")
    elif there == "a broken link":
        (root / "made").symlink_to("nowhere")
    else:
        (root / "made").mkdir()
        if there == "a folder":
            (root / "made/x").write_text("another's")
    before = None if (root / "made").is_symlink() else tree(root)
    with pytest.raises(UserError, match="made exists and is not replaced; name another target, or move it away"):
        write(root, "mine")
    assert os.readlink(root / "made") == "nowhere" if before is None else tree(root) == before
    assert [path.name for path in root.iterdir()] == ["made"]


@pytest.mark.parametrize("write", NEW.values(), ids=NEW)
def test_killed_at_any_line_there_is_all_of_what_is_new_or_nothing(write, tmp_path):
    whole, root = plant({}, tmp_path / "whole"), plant({}, tmp_path / "root")
    write(whole, "new")
    states_seen = states(root, lambda: write(root, "new"))
    assert len(states_seen) > 3
    assert all(made(state) in ({}, tree(whole)) for state in states_seen)


@writers
def test_what_the_system_refuses_names_the_file_that_was_asked_for(write, tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space") as told:
        write(tmp_path, "new")
    assert str(tmp_path / "made") in told.value.__notes__


TABLE = "a,b\n1,ä\n"


def test_a_table_comes_back_and_sha256sum_knows_its_digest(tmp_path):
    disk.write_summed(tmp_path / "x.csv", TABLE)
    assert disk.read_summed(tmp_path / "x.csv", "run it again") == TABLE
    said, name = (tmp_path / "x.csv.sha256").read_text().split("  ")
    assert (said, name) == (disk.sha256(tmp_path / "x.csv"), "x.csv\n")


SPOILED = {
    "another byte": lambda path, digest: path.write_text(TABLE + "2,3\n"),
    "another digest": lambda path, digest: digest.write_text("0" * 64 + "  x.csv\n"),
    "another name": lambda path, digest: digest.write_text(digest.read_text().replace("x.csv", "y.csv")),
    "more digests": lambda path, digest: digest.write_text(digest.read_text() * 2),
    "no table": lambda path, digest: path.unlink(),
    "no digest": lambda path, digest: digest.unlink(),
}


@pytest.mark.parametrize("spoil", SPOILED.values(), ids=SPOILED)
def test_a_table_that_is_not_what_was_written_is_refused_with_the_remedy(spoil, tmp_path):
    path, digest = tmp_path / "x.csv", tmp_path / "x.csv.sha256"
    disk.write_summed(path, TABLE)
    spoil(path, digest)
    with pytest.raises(UserError, match=r"x\.csv.* (missing|changed).*; run it again$"):
        disk.read_summed(path, "run it again")


@pytest.mark.parametrize("name", ["x.csv", "x.csv.sha256"])
def test_a_folder_in_the_place_of_a_table_is_the_machine_s_fault_not_a_missing_table(name, tmp_path):
    disk.write_summed(tmp_path / "x.csv", TABLE)
    (tmp_path / name).unlink()
    (tmp_path / name).mkdir()
    with pytest.raises(IsADirectoryError) as told:
        disk.read_summed(tmp_path / "x.csv", "run it again")
    assert told.value.filename == str(tmp_path / name)


@pytest.mark.parametrize("error", [None, KeyboardInterrupt])
def test_the_room_beside_a_file_vanishes_and_what_was_put_from_it_stays(error, tmp_path, monkeypatch):
    events, sync = [], os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda number: sync(number) or events.append(Path(os.readlink(f"/proc/self/fd/{number}")).name)
    )
    monkeypatch.setattr(os, "replace", lambda old, new, move=os.replace: move(old, new) or events.append("->"))
    (tmp_path / "x.db").write_text("old")
    with contextlib.suppress(KeyboardInterrupt), disk.beside(tmp_path / "x.db") as room:
        assert room.parent == tmp_path
        (room / "new").write_text("new")
        disk.put(room / "new", tmp_path / "x.db")
        if error:
            raise error
    assert tree(tmp_path) == {"x.db": b"new"}
    assert events == ["new", "->", tmp_path.name]  # its bytes before its name, and then the name


def test_no_number_that_json_lacks_is_written_and_keys_keep_their_order(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        disk.write_json(tmp_path / "x.json", [float("inf")])
    disk.write_json(tmp_path / "deep/er/x.json", {"b": 1, "a": 2})
    assert (tmp_path / "deep/er/x.json").read_text() == '{\n "b": 1,\n "a": 2\n}\n'
    assert disk.digest({"b": 1, "a": 2}) == disk.digest({"a": 2, "b": 1}) != disk.digest({"a": 1, "b": 2})


def test_a_file_to_lock_is_opened_where_linux_lets_nobody_create_what_another_user_made(tmp_path, monkeypatch):
    """fs.protected_regular: O_CREAT on a file that is there is refused in a sticky folder, though anybody may open it."""
    real = os.open

    def sticky(path, flags, *mode):
        if flags & os.O_CREAT and Path(path).exists():
            raise PermissionError(13, "Permission denied")
        return real(path, flags, *mode)

    monkeypatch.setattr(os, "open", sticky)
    before = os.umask(0)
    try:
        made = disk.lock_file(tmp_path / "lock")
    finally:
        os.umask(before)
    again = disk.lock_file(tmp_path / "lock")
    assert os.fstat(made).st_ino == os.fstat(again).st_ino
    assert os.fstat(made).st_mode & 0o777 == 0o666
    for descriptor in (made, again):
        os.close(descriptor)
    monkeypatch.chdir(tmp_path)
    for holding in (lambda: alone("sqlite:///mlflow.db"), lambda: locks.hold(tmp_path / "a", print, "")):
        for _ in range(2):
            with holding():
                pass
