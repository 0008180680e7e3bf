"""A process that is killed, or whose disk fails, at a chosen event: the k-th write, rename, fsync or SQL statement.

Works from inside, by Python's audit events, so that it strikes always at the same place however fast the machine is. What
native code writes (safetensors) is not seen; limits of the kernel (RLIMIT_FSIZE) and kills at random instants reach that.
"""

import builtins
import errno
import io
import os
import re
import signal
import sqlite3
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
NAMED = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate")
MAKING = ("open", "write", "fsync", "os.mkdir", "os.link", "os.symlink", "os.rename")
"""Events that a full disk refuses; it lets files be removed."""


@dataclass(frozen=True)
class Strike:
    """at: which event of those that `where` (a regular expression) finds in "KIND PATH"; None only writes the events down.

    action: `kill`, or the name of an errno (ENOSPC, EROFS, EACCES, EIO), with which this event and all later ones fail.
    """

    at: int | None
    action: str = "kill"
    where: str = ""

    def install(self, root: Path, log: Path) -> None:
        """Watches this process from now on, for files below `root`; every event becomes a line of `log`."""
        _Watch(self, str(root), os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)).install()


class _Watch:
    def __init__(self, strike: Strike, root: str, log: int):
        self.strike, self.root, self.log, self.count, self.busy = strike, root, log, 0, False
        self.where = re.compile(strike.where)
        self.write, self.open, self.fsync, self.connect = os.write, builtins.open, os.fsync, sqlite3.connect

    def install(self) -> None:
        builtins.open = io.open = self._opened
        os.fsync = self._synced
        sqlite3.connect = sqlite3.dbapi2.connect = self._connected
        sys.addaudithook(self._audit)

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.busy:
            return
        if event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITING:
            self._happens("open", arguments[0])
        elif event in NAMED:
            self._happens(event, arguments[1 if event == "os.rename" else 0])

    def _happens(self, kind: str, path: Any, before: Callable[[], None] = lambda: None) -> None:
        if self.busy or isinstance(path, int):
            return
        self.busy = True
        try:
            place = os.path.abspath(os.fsdecode(path))
            if place.startswith(self.root) and self.where.search(line := f"{kind} {os.path.relpath(place, self.root)}"):
                self.count += 1
                self.write(self.log, f"{line}\n".encode())
                if self.strike.at is not None and self.count >= self.strike.at:
                    self._act(kind, place, before)
        finally:
            self.busy = False

    def _act(self, kind: str, place: str, before: Callable[[], None]) -> None:
        if self.strike.action == "kill":
            before()
            os.kill(os.getpid(), signal.SIGKILL)
        elif kind in MAKING or self.strike.action != "ENOSPC":
            before()
            number = getattr(errno, self.strike.action)
            raise OSError(number, os.strerror(number), place)

    def _synced(self, descriptor: Any) -> None:
        number = descriptor if isinstance(descriptor, int) else descriptor.fileno()
        self._happens("fsync", os.readlink(f"/proc/self/fd/{number}"))
        self.fsync(descriptor)

    def _connected(self, database: Any, *arguments: Any, **options: Any) -> sqlite3.Connection:
        connection = self.connect(database, *arguments, **options)
        connection.set_trace_callback(lambda text: self._happens(f"sql {text.split()[0]}", database))
        return connection

    def _opened(self, file: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        stream = self.open(file, mode, *arguments, **options)
        if not isinstance(file, int) and set(mode) & set("wax+"):
            write = stream.write

            def torn(data: Any) -> int:
                def half() -> None:  # what a death in the middle leaves
                    write(data[: len(data) // 2])
                    stream.flush()

                self._happens("write", file, half)
                return write(data)

            stream.write = torn
        return stream
