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
from typing import Any

from diffcore.core import disk
from diffcore.core.errors import UserError
from tasks.strict_yaml import load_yaml

POLL_SECONDS = 0.3
TRAINED = ("teachers", "distill")
"""The stages that train, which are sections of params.yaml."""

MOST = "DISTILL_PROCESSES"
"""How many processes a stage may have without a GPU, for a slot each, as its environment says."""


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
    """The places in which the stages of a run may be at the same time.

    parts: in how many parts the batches of a stage are, by its name; it takes as many slots as divide that.
    """

    def __init__(self, slots: Sequence[Slot], parts: Mapping[str, int] | None = None):
        self.all, self._parts = tuple(slots), dict(parts or {})

    def width(self, stage: str) -> int:
        """How many slots a stage takes."""
        return dividing(self._parts.get(stage, 1), len(self.all))

    @contextlib.contextmanager
    def taken(
        self, stage: str, log: Callable[[str], None], give_up: Callable[[], None]
    ) -> Iterator[tuple[dict[str, str], list[int]]]:
        """The first free slots of a stage, for the length of the block: its environment there, and the descriptors that
        hold them.

        `give_up` is called while waiting and ends it by raising.
        """
        width = self.width(stage)
        environment, descriptors = self._free(width) or self._wait(width, log, give_up)
        try:
            yield {MOST: f"{width}", **environment}, descriptors
        finally:
            _close(descriptors)

    def _wait(self, width: int, log, give_up) -> tuple[dict[str, str], list[int]]:
        several = f"all {len(self.all)} slots are taken" if width == 1 else f"{width} slots are needed and not free"
        log(f"waiting: {'the slot is taken' if len(self.all) == 1 else several}")
        while True:
            give_up()
            time.sleep(POLL_SECONDS)
            if free := self._free(width):
                return free

    def _free(self, width: int) -> tuple[dict[str, str], list[int]] | None:
        """All of so many slots, or none."""
        environment: dict[str, str] = {}
        held: list[int] = []
        for slot in self.all:
            if (descriptors := _take_all((slot.lock, *slot.further))) is not None:
                environment, held, width = {**slot.environment, **environment}, held + descriptors, width - 1
            if not width:
                return environment, held
        _close(held)
        return None


def dividing(parts: int, most: int) -> int:
    """The largest number up to `most` into which so many parts divide."""
    return max(number for number in range(1, min(parts, most) + 1) if parts % number == 0)


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


def here(workspace: Path, without_gpu: int) -> Slots:
    """The slots of this host: those of its GPUs, shared by all that run on it, or without any so many in the workspace."""
    devices = on_gpus(workspace)
    return Slots(devices) if devices else without_gpus(workspace, without_gpu)


def on_gpus(workspace: Path) -> tuple[Slot, ...]:
    """One for each GPU of this host, or for each `compute.processes` of them; none without a GPU."""
    if not (devices := gpus()):
        return ()
    processes = processes_of(workspace)
    if processes > len(devices):
        raise UserError(f"compute.processes is {processes} and there are {len(devices)} GPUs here; lower it")
    firsts = range(0, len(devices) - processes + 1, processes)
    return tuple(_of_gpus(devices[first : first + processes]) for first in firsts)


def without_gpus(workspace: Path, count: int) -> Slots:
    """So many in the workspace; a training whose batches are in parts takes several."""
    if count < 1:
        raise UserError(f"slots must be at least 1, got {count}")
    slots = [Slot(workspace / ".dvc" / "tmp" / f"slot-{index}.lock", {}) for index in range(count)]
    return Slots(slots, parts_of(workspace))


def _of_gpus(names: Sequence[str]) -> Slot:
    place = Path(tempfile.gettempdir())
    lock, *further = (place / f"distill-{name}.lock" for name in names)
    return Slot(lock, {"CUDA_VISIBLE_DEVICES": ",".join(names)}, tuple(further))


def processes_of(workspace: Path) -> int:
    """How many processes, each with a GPU of its own, a stage of this workspace has in a slot: `auto` is one."""
    number = _section(_read(workspace), "compute").get("processes")
    return number if isinstance(number, int) and number > 0 else 1


def parts_of(workspace: Path) -> dict[str, int]:
    """The stages of this workspace whose batches are in parts that several processes can share, and how many parts; none
    where their number is set."""
    parameters = _read(workspace)
    if _section(parameters, "compute").get("processes", "auto") != "auto":
        return {}
    lines = {f"{kind}@{name}": line for kind in TRAINED for name, line in _section(parameters, kind).items()}
    parts = {stage: line.get("cores") for stage, line in lines.items() if isinstance(line, dict)}
    return {stage: number for stage, number in parts.items() if isinstance(number, int) and number > 1}


def _read(workspace: Path) -> Any:
    path = workspace / "params.yaml"
    return load_yaml(path) if path.exists() else None


def _section(parameters: Any, name: str) -> dict[str, Any]:
    """Empty where it is not there: what is wrong with the parameters is said elsewhere."""
    section = parameters.get(name) if isinstance(parameters, dict) else None
    return section if isinstance(section, dict) else {}


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
