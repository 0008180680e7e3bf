"""The state of a training run on disk, apart from its result.

Keyed by the fingerprint of everything the run depends on, so that another job never resumes from it. What a folder's states
were made for lies beside them in `about.json`: where a job begins anew though there is a state of another, it is said what
is other. Tensors lie in safetensors (no pickle), verified by sha256 when read, and all else in a sealed JSON file; the newest
two states are kept, and the older one serves if the newer is damaged.
"""

import contextlib
import fcntl
import json
import math
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from diffcore.core import disk, processes
from diffcore.core.errors import UserError

SCHEMA = 3
FILE = "state.safetensors"
ABOUT = "about.json"
KEPT_STATES = 2
KEPT_JOBS = 3
SHOWN = 5
STATE = re.compile(r"step-\d{9,}")


@dataclass(frozen=True)
class Resume:
    """States of one job under `root/NAME-FINGERPRINT/`.

    about: all that the job's result depends on, as JSON; the fingerprint is its digest. log: gets a line for each state that
    cannot serve, and for one of another job where there is none of this one.
    """

    root: Path
    name: str
    about: Mapping[str, Any]
    log: Callable[[str], None] = lambda line: None

    @property
    def fingerprint(self) -> str:
        return disk.digest(self.about)

    @property
    def folder(self) -> Path:
        return Path(self.root) / f"{self.name}-{self.fingerprint[:16]}"

    @contextlib.contextmanager
    def lock(self, patience: float = 60.0) -> Iterator[None]:
        """Holds the job, once for all processes that train together; another run of it waits up to `patience` seconds, then
        gets a UserError."""
        if not processes.is_main():
            yield
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        deadline = time.monotonic() + patience
        with open(self.folder / "lock", "w") as file:
            while not _locked(file):
                if time.monotonic() > deadline:
                    raise UserError(f"{self.name}: another process is training this very job; wait for it or end it")
                time.sleep(0.1)
            for left in self.folder.glob(".step-*"):  # of a holder that was killed as it saved
                shutil.rmtree(left)
            yield

    def save(
        self,
        step: int,
        tensors: dict[str, Tensor],
        facts: dict[str, Any],
        sharded: Callable[[Mapping[str, Tensor], Path], None] | None = None,
    ) -> None:
        """Writes the state after `step` updates; only then removes the ones before the last two.

        sharded: what writes the tensors where each process has a part of them; all call it with the same folder.
        """
        if not processes.is_main():
            if sharded:
                sharded(tensors, Path(processes.from_main(None)))
                processes.wait()
            return
        disk.write_sealed(self.folder / ABOUT, {"schema": SCHEMA, "about": self.about})
        with disk.folder(self.folder / f"step-{step:09d}") as folder:
            if sharded:
                processes.from_main(str(folder))
                sharded(tensors, folder)
                processes.wait()
            else:
                _write(tensors, folder)
            about = {"schema": SCHEMA, "job": self.fingerprint, "step": step, "facts": facts, "sharded": bool(sharded)}
            files = {path.name: disk.sha256(path) for path in sorted(folder.glob("*.safetensors"))}
            disk.write_sealed(folder / "state.json", {**about, "files": files})
        for old in _states(self.folder)[KEPT_STATES:]:
            shutil.rmtree(old)
        self.prune()

    def load(self) -> "State | None":
        """The newest undamaged state, or None. Damaged ones are logged and removed. The main process looks for all."""
        own = self._newest() if processes.is_main() else None
        about = processes.from_main(own and {**vars(own), "folder": str(own.folder)})
        return about and State(**{**about, "folder": Path(about["folder"])})

    def _newest(self) -> "State | None":
        states = _states(self.folder)
        for state, older in zip(states, [*states[1:], None]):
            try:
                return self._read(state, f"goes on from {older.name}" if older else "starts from nothing")
            except UserError as damage:
                self.log(f"{self.name}: {damage}")
                shutil.rmtree(state, ignore_errors=True)  # it would count as one of the two that are kept
        self._tell_of_others()
        return None

    def _read(self, folder: Path, instead: str) -> "State":
        try:
            about = disk.read_sealed(folder / "state.json", SCHEMA, instead)
            if about["job"] != self.fingerprint:
                raise UserError(f"{folder} is of another job; {instead}")
            for name, digest in about["files"].items():
                if disk.sha256(folder / name) != digest:
                    raise UserError(f"{folder / name} is damaged; {instead}")
            return State(folder, about["step"], about["facts"], about["sharded"])
        except OSError as error:
            raise UserError(f"{error.filename or folder} cannot be read ({error.strerror}); {instead}") from None

    def _tell_of_others(self) -> None:
        """One line of the state that was made for what is most like this job: its user may have meant to go on from it."""
        others = [job for job in self._jobs() if job != self.folder and _states(job)]
        unlike = {job: differences(_about(job), self.about) for job in others}
        if not unlike:
            return
        job = min(unlike, key=lambda each: len(unlike[each]) or math.inf)
        updates = int(_states(job)[0].name.removeprefix("step-"))
        self.log(
            f"{self.name}: a saved state of {updates} updates is there and is not used: {_summary(unlike[job])}; "
            f"go back to go on from it, or remove {job}"
        )

    def _jobs(self) -> list[Path]:
        """The folders of all jobs of this name, the newest first; whatever else lies there is not ours to remove."""
        own = re.compile(re.escape(self.name) + "-[0-9a-f]{16}")
        jobs = [path for path in Path(self.root).glob("*") if own.fullmatch(path.name) and path.is_dir()]
        return sorted(jobs, key=lambda path: path.stat().st_mtime, reverse=True)

    def prune(self) -> None:
        """Removes all jobs of this name but the newest few and this one."""
        for old in self._jobs()[KEPT_JOBS:]:
            if old != self.folder:
                shutil.rmtree(old, ignore_errors=True)


@dataclass(frozen=True)
class State:
    """What was saved after `step` updates, its files verified. is_sharded: whether each process wrote its parts."""

    folder: Path
    step: int
    facts: dict[str, Any]
    is_sharded: bool

    def tensors(self) -> dict[str, Tensor]:
        """All of them, of a state that one process wrote."""
        from safetensors.torch import load_file

        return load_file(self.folder / FILE)

    def copy_into(self, tensors: Mapping[str, Tensor]) -> None:
        """Copies them there by their names, in the main process."""
        if processes.is_main():
            saved = self.tensors()
            for name, tensor in tensors.items():
                tensor.copy_(saved[name])


def _write(tensors: Mapping[str, Tensor], folder: Path) -> None:
    from safetensors.torch import save_file

    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / FILE)


def _states(job: Path) -> list[Path]:
    """A job's states, the newest first."""
    return sorted((path for path in job.glob("step-*") if STATE.fullmatch(path.name)), reverse=True)


def _about(job: Path) -> dict[str, Any]:
    """What the states in a job's folder were made for; empty where that cannot be told."""
    try:
        return disk.read_sealed(job / ABOUT, SCHEMA, "its states are not used")["about"]
    except (UserError, OSError):
        return {}


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """`KEY OLD, now NEW` for every leaf that differs, its key a path with dots; none of what is empty, of which all is
    unknown."""
    before, after = _leaves(old), _leaves(new)
    keys = [key for key in {**before, **after} if before.get(key) != after.get(key)]
    named = {key: key.removeprefix("compute.") for key in keys}
    return [f"{named[key]} {_text(before.get(key))}, now {_text(after.get(key))}" for key in keys] if old else []


def _summary(differences: list[str]) -> str:
    """The first SHOWN of them, and how many more there are."""
    more = [f"{len(differences) - SHOWN} more"] if len(differences) > SHOWN else []
    return "; ".join([*differences[:SHOWN], *more]) or "nothing tells what it was made for"


def _leaves(value: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """JSON texts by their path."""
    leaves = {}
    for key, each in value.items():
        leaves |= _leaves(each, f"{prefix}{key}.") if isinstance(each, Mapping) else {prefix + key: json.dumps(each)}
    return leaves


def _text(leaf: str | None) -> str:
    """In one line and short; of a digest its first letters."""
    if leaf is None:
        return "unset"
    text = leaf.strip('"')
    if re.fullmatch("[0-9a-f]{64}", text):
        return text[:12]
    return text if len(text) <= 40 else f"{text[:37]}..."


def _locked(file) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
