"""Finished files of a writer that may be killed, with what was done up to each: the next writer goes on from there."""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffcore.core import disk
from diffcore.core.errors import UserError

SCHEMA = 1
LEDGER, LOCK = "ledger.json", "lock"


@dataclass(frozen=True)
class Unfinished:
    """Where a writer keeps what it has finished until all is done. code: digest of what writes, so that no other goes on."""

    folder: Path
    code: str = ""

    @contextlib.contextmanager
    def open(
        self,
        signature: dict[str, Any],
        files: Sequence[Path],
        tell: Callable[[str], None],
        versions: dict[str, str] | None = None,
    ) -> Iterator["Ledger"]:
        """The ledger of the job with this `signature`, of these source `files`; removed when the block ends without an error.

        versions: digests of source files that are not on this machine. One of anything else is cleared away, and `tell` hears
        why. Raises UserError if another process is at work on it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / LOCK, "w") as lock:
            _hold(lock, self.folder)
            ledger = Ledger(
                self.folder,
                {"asked": disk.digest([signature, self.code]), "source": _stamp(files, versions or {})},
                tell,
            )
            yield ledger
            ledger.clear()
        shutil.rmtree(self.folder, ignore_errors=True)


@dataclass(frozen=True)
class Ledger:
    """What is finished in `folder`: files, and beside them `ledger.json`, which is written after each."""

    folder: Path
    job: dict[str, str]
    tell: Callable[[str], None]

    def below(self, name: str) -> "Ledger":
        """One of its own for a part of the work."""
        (self.folder / name).mkdir(exist_ok=True)
        return Ledger(self.folder / name, self.job, self.tell)

    def save(self, state: dict[str, Any]) -> None:
        """state: `shards`, each with its name, bytes and sha256, and all else that is needed to go on after them."""
        _sync(self.folder / state["shards"][-1]["name"])
        disk.write_sealed(self.folder / LEDGER, {"schema": SCHEMA, "job": self.job, **state})

    def load(self) -> dict[str, Any] | None:
        """The last state saved, every file verified; None if there is none, or if it is of no use any more."""
        if not (self.folder / LEDGER).exists():
            return None
        fault = "the work done before is damaged"
        with contextlib.suppress(UserError, OSError):
            state = disk.read_sealed(self.folder / LEDGER, SCHEMA, "")
            fault = self._fault(state)
            if fault is None:
                return state
        self.tell(f"starts anew: {fault}")
        self.clear()
        return None

    def _fault(self, state: dict[str, Any]) -> str | None:
        if state["job"]["asked"] != self.job["asked"]:
            return "the configuration or the code is not that of the work done before"
        if state["job"]["source"] != self.job["source"]:
            return "the source has changed since the work done before"
        whole = all(disk.sha256(self.folder / shard["name"]) == shard["sha256"] for shard in state["shards"])
        return None if whole else "the work done before is damaged"

    def link(self, names: Sequence[str], folder: Path) -> None:
        """Puts the finished files into `folder`, without a copy where the file system allows that."""
        for name in names:
            try:
                os.link(self.folder / name, folder / name)
            except OSError:  # another file system, or one without links
                shutil.copyfile(self.folder / name, folder / name)

    def clear(self) -> None:
        """Removes what is kept."""
        (self.folder / LEDGER).unlink(missing_ok=True)
        for path in self.folder.iterdir():
            if path.is_file() and path.name != LOCK:
                path.unlink(missing_ok=True)


def _stamp(files: Sequence[Path], versions: dict[str, str]) -> str:
    # names, sizes and times: what can be looked up without reading the files
    return disk.digest([[os.fsencode(path).hex(), *_status(path)] for path in files] + sorted(versions.items()))


def _status(path: Path) -> list[int]:
    try:
        status = os.stat(path)
    except OSError:
        return []
    return [status.st_size, status.st_mtime_ns]


def _hold(lock: Any, folder: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(f"{folder}: another process is at work on the same files; wait for it or end it") from None


def _sync(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())
