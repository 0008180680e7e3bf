"""The state of a training run on disk, apart from its result.

Keyed by the fingerprint of everything the run depends on, so that another job never resumes from it. Tensors lie in
safetensors (no pickle), verified by sha256 when read; the newest two states are kept, and the older one serves if the newer
is damaged.
"""

import contextlib
import fcntl
import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from diffcore import disk
from diffcore.mistake import Mistake

KEPT_STATES = 2
KEPT_JOBS = 3


@dataclass(frozen=True)
class Resume:
    """States of one job under `root/NAME-FINGERPRINT/`."""

    root: Path
    name: str
    fingerprint: str

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
            yield

    def save(self, step: int, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Writes the state after `step` updates; only then removes the ones before the last two."""
        from safetensors.torch import save_file

        with disk.folder(self.folder / f"step-{step:09d}") as folder:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "state.safetensors")
            digest = disk.sha256(folder / "state.safetensors")
            disk.write_json(folder / "state.json", {"step": step, "sha256": digest, "facts": facts})
        for old in self._states()[KEPT_STATES:]:
            shutil.rmtree(old)
        self._prune_jobs()

    def load(self) -> tuple[int, dict[str, Tensor], dict[str, Any]] | None:
        """(step, tensors, facts) of the newest undamaged state, None if there is none."""
        from safetensors.torch import load_file

        for state in self._states():
            with contextlib.suppress(OSError, ValueError, KeyError):
                about = json.loads((state / "state.json").read_text())
                if disk.sha256(state / "state.safetensors") == about["sha256"]:
                    return about["step"], load_file(state / "state.safetensors"), about["facts"]
        return None

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
