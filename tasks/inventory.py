"""What a command has put into a folder, written down there, so that it replaces that and nothing else.

A path's print is the sha256 of its file, or `-> TARGET` for a link. The inventory names the prints that may lie at each path:
before anything is replaced the old and the new ones, afterwards the new ones alone. So whatever instant it is killed at, the
next time it knows its own files from those of others. Names that begin with `.distill-workspace` are its own.
"""

import contextlib
import fcntl
import hashlib
import os
import shutil
import stat
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from diffcore.core import disk
from diffcore.core.errors import UserError

NAME = ".distill-workspace"
"""The inventory's file. The temporary names beside it begin with the same word."""

NOTE = "Made by `distill workspace`, which replaces what is listed here as long as it is as it was left."
SHOWN = 3
"""Files that a refusal names."""

Prints = dict[str, list[str]]


@dataclass(frozen=True)
class File:
    """What shall lie at a path: the bytes of a file, or where a link leads."""

    content: bytes = b""
    executable: bool = False
    link: str | None = None

    @property
    def print(self) -> str:
        return hashlib.sha256(self.content).hexdigest() if self.link is None else f"-> {self.link}"


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Makes the folder if need be and keeps other commands out of it; a UserError while one is at work there."""
    if not folder.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise UserError(f"another command is making {folder} at this moment; wait for it") from None
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def scratch(folder: Path) -> Iterator[Path]:
    """A folder inside for the length of the block, whose name is the inventory's own."""
    path = folder / f"{NAME}.scratch"
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def check(folder: Path, wanted: dict[str, File], free: Collection[str] = ()) -> Prints:
    """The prints of what was put there before. UserError for a folder that is not empty and has no inventory, and for
    files of others where one of ours lies or shall lie; of the paths `free`, those of others stay instead and leave
    `wanted`."""
    old = _read(folder)
    if old is None:
        if entries := sorted(entry for entry in os.listdir(folder) if not entry.startswith((NAME, f".{NAME}."))):
            raise UserError(
                f"{folder} holds {_some(entries)} and was not made by this command (or by an older one, which kept no list "
                "of its files): move it away or name another folder"
            )
        old = {}
    strange = sorted(path for path, prints in _either(old, wanted).items() if not _is_one_of(folder, path, prints))
    for path in {*free} & {*strange}:
        strange.remove(path)
        old.pop(path, None)
        wanted.pop(path, None)
    if strange:
        raise UserError(
            f"{folder}: {_some(strange)} {'is' if len(strange) == 1 else 'are'} not as this command left it; keep what is "
            "yours under another name, or remove it, and ask again"
        )
    return old


def put(folder: Path, wanted: Mapping[str, File], old: Prints, last: str) -> None:
    """Writes all of `wanted` and removes what was put there before and is wanted no more.

    The file `last` goes first and comes last: while it is missing nothing can be started in a folder that is half old.
    """
    _clear(folder)
    prints = {path: file.print for path, file in wanted.items()}
    gone = [path for path in old if path not in wanted]
    stale = [path for path in wanted if _print(folder / path) != prints[path]]
    _write(folder, _either(old, wanted))
    if stale or gone:
        (folder / last).unlink(missing_ok=True)
        stale = [path for path in stale if path != last] + [last]
    for path in gone:
        _remove(folder / path)
    for path in stale:
        _place(folder, path, wanted[path])
    _write(folder, _either({}, wanted))


def _either(old: Prints, wanted: Mapping[str, File]) -> Prints:
    """The prints that may lie at each path: of what was put there, and of what shall be."""
    new = {path: [file.print] for path, file in wanted.items()}
    return {path: sorted({*old.get(path, []), *new.get(path, [])}) for path in sorted({*old, *new})}


def _clear(folder: Path) -> None:
    """Removes what a killed command left under the inventory's own names."""
    for left in (*folder.glob(f"{NAME}.*"), *folder.glob(f".{NAME}.*")):
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left)
        else:
            left.unlink()


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # its folder holds something else
        path.parent.rmdir()


def _place(folder: Path, path: str, file: File) -> None:
    temporary, target = folder / f"{NAME}.new", folder / path
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary.unlink(missing_ok=True)
    if file.link is not None:
        temporary.symlink_to(file.link)
    else:
        with open(temporary, "xb") as opened:
            opened.write(file.content)
        temporary.chmod(0o755 if file.executable else 0o644)
    os.replace(temporary, target)


def _is_one_of(folder: Path, path: str, prints: list[str]) -> bool:
    """Whether nothing lies at the path, or what bears one of the prints. What is reached through a link is not there."""
    above = [folder / parent for parent in PurePosixPath(path).parents if parent.name]
    if any(os.path.lexists(parent) and (parent.is_symlink() or not parent.is_dir()) for parent in above):
        return False
    return not os.path.lexists(folder / path) or _print(folder / path) in prints


def _print(path: Path) -> str | None:
    if path.is_symlink():
        return f"-> {os.readlink(path)}"
    return disk.sha256(path) if path.is_file() else None


def _read(folder: Path) -> Prints | None:
    path = folder / NAME
    if not os.path.lexists(path):
        return None
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            raise ValueError
        files = disk.parse_json(path.read_bytes())["files"]
        if all(_inside(name) and all(isinstance(print, str) for print in prints) for name, prints in files.items()):
            return files
        raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(
            f"{path} is damaged, so what in this folder is whose cannot be told: move the folder away or name another"
        ) from None


def _inside(name: str) -> bool:
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts


def _write(folder: Path, prints: Prints) -> None:
    disk.write_json(folder / NAME, {"note": NOTE, "files": prints})


def _some(paths: list[str]) -> str:
    more = len(paths) - SHOWN
    return ", ".join(paths[:SHOWN]) + (f" and {more} more" if more > 0 else "")
