"""Locks that the kernel frees when their holder ends, however it ends; and the slots of this host, built on them."""

import contextlib
import fcntl
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from diffcore.core import disk
from diffcore.core.errors import UserError

POLL_SECONDS = 0.3


def take(path: Path, kind: int = fcntl.LOCK_EX) -> int | None:
    """A descriptor that holds the lock, or None while somebody else does. Closing it, in all who inherited it, frees it.

    kind: LOCK_SH for one that others of the kind may hold beside.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = disk.lock_file(path)
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


@contextlib.contextmanager
def hold(path: Path, log: Callable[[str], None], waiting: str, kind: int = fcntl.LOCK_EX) -> Iterator[int]:
    """Holds the lock during the block; says `waiting` once if it has to wait. Gives the descriptor."""
    descriptor = take(path, kind)
    if descriptor is None:
        log(waiting)
    while descriptor is None:
        time.sleep(POLL_SECONDS)
        descriptor = take(path, kind)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@dataclass(frozen=True)
class Slot:
    """A place for one stage at a time: its lock, and what a stage in it finds in its environment."""

    lock: Path
    environment: Mapping[str, str]


class Slots:
    """The places in which the stages of a run may be at the same time."""

    def __init__(self, slots: Sequence[Slot]):
        self.all = tuple(slots)

    @contextlib.contextmanager
    def one(self, log: Callable[[str], None], give_up: Callable[[], None]) -> Iterator[tuple[Slot, int]]:
        """The first free slot and the descriptor that holds it, for the length of the block.

        `give_up` is called while waiting and ends it by raising.
        """
        slot, descriptor = self._free() or self._wait(log, give_up)
        try:
            yield slot, descriptor
        finally:
            os.close(descriptor)

    def _wait(self, log, give_up) -> tuple[Slot, int]:
        log(f"waiting: {'the slot is' if len(self.all) == 1 else f'all {len(self.all)} slots are'} taken")
        while True:
            give_up()
            time.sleep(POLL_SECONDS)
            if free := self._free():
                return free

    def _free(self) -> tuple[Slot, int] | None:
        for slot in self.all:
            if (descriptor := take(slot.lock)) is not None:
                return slot, descriptor
        return None


def here(folder: Path, without_gpu: int) -> Slots:
    """One slot for each GPU of this host, shared by all that run on it; without a GPU so many slots in `folder`."""
    if without_gpu < 1:
        raise UserError(f"slots must be at least 1, got {without_gpu}")
    if devices := gpus():
        place = Path(tempfile.gettempdir())
        return Slots([Slot(place / f"distill-{name}.lock", {"CUDA_VISIBLE_DEVICES": name}) for name in devices])
    return Slots([Slot(folder / f"slot-{index}.lock", {}) for index in range(without_gpu)])


def gpus() -> list[str]:
    """The UUIDs of the NVIDIA devices, parts of a divided GPU (MIG) in the place of the whole. Empty without any.

    CUDA_VISIBLE_DEVICES narrows the choice and keeps its order, as CUDA reads it.
    """
    if shutil.which("nvidia-smi") is None:
        return []
    listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return visible(listing.stdout, os.environ.get("CUDA_VISIBLE_DEVICES")) if listing.returncode == 0 else []


def visible(listing: str, wanted: str | None) -> list[str]:
    """Reads `nvidia-smi -L`; `wanted` is the value of CUDA_VISIBLE_DEVICES: indices or beginnings of UUIDs."""
    whole = re.findall(r"^GPU \d+:.*\(UUID: (GPU-[^)]+)\)", listing, re.MULTILINE)
    devices = []
    for block in re.split(r"^(?=GPU \d+:)", listing, flags=re.MULTILINE):
        devices += re.findall(r"\(UUID: (MIG-[^)]+)\)", block) or re.findall(r"\(UUID: (GPU-[^)]+)\)", block)
    if wanted is None:
        return devices
    chosen = []
    for word in filter(None, (part.strip() for part in wanted.split(","))):
        matches = whole[int(word) : int(word) + 1] if word.isdigit() else [d for d in devices if d.startswith(word)]
        if len(matches) != 1:  # CUDA ignores this entry and all after it
            break
        chosen += matches
    return chosen
