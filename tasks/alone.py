"""One command at a time in a folder: a lock that the kernel frees when its holder ends, however it ends."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from diffcore.core.errors import UserError
from tasks import dvc_files

LOCK = Path(".dvc/tmp/flow.lock")
"""The same as a flow's, so that a flow and `run` keep out of each other's way."""


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Holds the folder during the block; a UserError says who is at work if somebody is."""
    if not LOCK.parent.parent.is_dir():
        raise UserError("this folder is not a DVC workspace: it has no .dvc folder; start in the project's root")
    LOCK.parent.mkdir(exist_ok=True)
    with open(LOCK, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another run is at work in this folder: {_holder()}; wait for it or end it") from None
        yield


def _holder() -> str:
    """As the kernel lists it (Linux); one that ended and left the lock to its children is no longer there."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        inode = os.stat(LOCK).st_ino
        for line in Path("/proc/locks").read_text().splitlines():
            fields = line.split()
            if fields[1] == "FLOCK" and fields[5].rpartition(":")[2] == f"{inode}":
                return dvc_files.who(int(fields[4]))
    return "process unknown"
