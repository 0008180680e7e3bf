"""The state of a training run on disk, apart from its result.

Keyed by the fingerprint of everything the run depends on, so that another job never resumes from it. Tensors lie in
safetensors (no pickle), verified by sha256 when read, and all else in a sealed JSON file; the newest two states are kept, and
the older one serves if the newer is damaged.
"""

import contextlib
import fcntl
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from diffcore.core import disk
from diffcore.core.errors import Mistake

SCHEMA = 2
KEPT_STATES = 2
KEPT_JOBS = 3


@dataclass(frozen=True)
class Resume:
    """States of one job under `root/NAME-FINGERPRINT/`. say: told in one line of each state that cannot serve."""

    root: Path
    name: str
    fingerprint: str
    say: Callable[[str], None] = lambda line: None

    @property
    def folder(self) -> Path:
        return Path(self.root) / f"{self.name}-{self.fingerprint[:16]}"

    @contextlib.contextmanager
    def lock(self, patience: float = 60.0) -> Iterator[None]:
        """Holds the job; another process with the same job waits up to `patience` seconds, then gets a Mistake."""
        self.folder.mkdir(parents=True, exist_ok=True)
        deadline = time.monotonic() + patience
        with open(self.folder / "lock", "w") as file:
            while not _locked(file):
                if time.monotonic() > deadline:
                    raise Mistake(f"{self.name}: another process is training this very job; wait for it or end it")
                time.sleep(0.1)
            for left in self.folder.glob(".step-*"):  # of a holder that was killed as it saved
                shutil.rmtree(left)
            yield

    def save(self, step: int, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Writes the state after `step` updates; only then removes the ones before the last two."""
        from safetensors.torch import save_file

        with disk.folder(self.folder / f"step-{step:09d}") as folder:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "state.safetensors")
            about = {"schema": SCHEMA, "job": self.fingerprint, "step": step, "facts": facts}
            digest = disk.sha256(folder / "state.safetensors")
            disk.write_sealed(folder / "state.json", {**about, "sha256": digest})
        for old in self._states()[KEPT_STATES:]:
            shutil.rmtree(old)
        self._prune_jobs()

    def load(self) -> tuple[int, dict[str, Tensor], dict[str, Any]] | None:
        """(step, tensors, facts) of the newest undamaged state, None if there is none. Damaged ones are said, and removed."""
        states = self._states()
        for state, older in zip(states, [*states[1:], None]):
            try:
                return self._read(state, f"goes on from {older.name}" if older else "starts from nothing")
            except Mistake as damage:
                self.say(f"{self.name}: {damage}")
                shutil.rmtree(state, ignore_errors=True)  # it would count as one of the two that are kept
        return None

    def _read(self, state: Path, instead: str) -> tuple[int, dict[str, Tensor], dict[str, Any]]:
        from safetensors.torch import load_file

        tensors = state / "state.safetensors"
        try:
            about = disk.read_sealed(state / "state.json", SCHEMA, instead)
            if about["job"] != self.fingerprint:
                raise Mistake(f"{state} is of another job; {instead}")
            if disk.sha256(tensors) != about["sha256"]:
                raise Mistake(f"{tensors} is damaged; {instead}")
            return about["step"], load_file(tensors), about["facts"]
        except OSError as error:
            raise Mistake(f"{error.filename or state} cannot be read ({error.strerror}); {instead}") from None

    def _states(self) -> list[Path]:
        return sorted(self.folder.glob("step-*"), reverse=True)

    def _prune_jobs(self) -> None:
        jobs = [path for path in Path(self.root).glob(f"{self.name}-*") if len(path.name) == len(self.folder.name)]
        for old in sorted(jobs, key=lambda path: path.stat().st_mtime, reverse=True)[KEPT_JOBS:]:
            if old != self.folder:
                shutil.rmtree(old, ignore_errors=True)


def _locked(file) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
