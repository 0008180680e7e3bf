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
from tasks.strict_yaml import load_yaml

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
    """A place for one stage at a time: its lock, what a stage finds there in its environment, and further locks to hold."""

    lock: Path
    environment: Mapping[str, str]
    further: tuple[Path, ...] = ()


class Slots:
    """The places in which the stages of a run may be at the same time."""

    def __init__(self, slots: Sequence[Slot]):
        self.all = tuple(slots)

    @contextlib.contextmanager
    def one(self, log: Callable[[str], None], give_up: Callable[[], None]) -> Iterator[tuple[Slot, list[int]]]:
        """The first free slot and the descriptors that hold it, for the length of the block.

        `give_up` is called while waiting and ends it by raising.
        """
        slot, descriptors = self._free() or self._wait(log, give_up)
        try:
            yield slot, descriptors
        finally:
            _close(descriptors)

    def _wait(self, log, give_up) -> tuple[Slot, list[int]]:
        log(f"waiting: {'the slot is' if len(self.all) == 1 else f'all {len(self.all)} slots are'} taken")
        while True:
            give_up()
            time.sleep(POLL_SECONDS)
            if free := self._free():
                return free

    def _free(self) -> tuple[Slot, list[int]] | None:
        for slot in self.all:
            if (descriptors := _take_all((slot.lock, *slot.further))) is not None:
                return slot, descriptors
        return None


def _take_all(paths: Sequence[Path]) -> list[int] | None:
    """All of the locks, or none."""
    descriptors: list[int] = []
    for path in paths:
        if (descriptor := take(path)) is None:
            _close(descriptors)
            return None
        descriptors.append(descriptor)
    return descriptors


def _close(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def here(folder: Path, without_gpu: int, processes: int = 1) -> Slots:
    """The slots on the GPUs of this host; where there are none, so many in `folder`."""
    if without_gpu < 1:
        raise UserError(f"slots must be at least 1, got {without_gpu}")
    return on_gpus(processes) or in_folder(folder, without_gpu)


def on_gpus(processes: int) -> Slots | None:
    """One slot for each GPU of this host, or for each `processes` of them, shared by all that run on it; None without any."""
    devices = gpus()
    if not devices:
        return None
    if processes > len(devices):
        raise UserError(f"compute.processes is {processes} and there are {len(devices)} GPUs here; lower it")
    firsts = range(0, len(devices) - processes + 1, processes)
    return Slots([_of_gpus(devices[first : first + processes]) for first in firsts])


def in_folder(folder: Path, count: int) -> Slots:
    """Slots of those who work in one folder."""
    return Slots([Slot(folder / f"slot-{index}.lock", {}) for index in range(count)])


def _of_gpus(names: Sequence[str]) -> Slot:
    place = Path(tempfile.gettempdir())
    lock, *further = (place / f"distill-{name}.lock" for name in names)
    return Slot(lock, {"CUDA_VISIBLE_DEVICES": ",".join(names)}, tuple(further))


def processes_of(workspace: Path) -> int:
    """How many processes, each with a GPU of its own, a stage of this workspace has in a slot: `auto` is one."""
    path = workspace / "params.yaml"
    compute = load_yaml(path).get("compute") if path.exists() else None
    number = compute.get("processes") if isinstance(compute, dict) else None
    return number if isinstance(number, int) and number > 0 else 1


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
