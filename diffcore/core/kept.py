"""Results of a long stage that a kill shall not cost: each kept as soon as it is there, apart from what the stage writes.

A result is keyed by the digest of all that it depends on, so that another job never takes it. Numbers lie in a sealed JSON
file, tensors beside it in safetensors, verified by sha256 when read; what is damaged is told and worked out again.
"""

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffcore.core import disk
from diffcore.core.errors import Mistake

SCHEMA = 1
AGAIN = "it is worked out again"

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Kept:
    """The results under `folder`, which is theirs alone. on_damage: hears of each that cannot be used."""

    folder: Path
    on_damage: Callable[[str], None] = lambda words: None

    def save(self, about: Any, value: dict[str, Any], tensors: Tensors | None = None) -> None:
        """Keeps `value`, JSON, and `tensors` as what came of `about`, JSON that names everything they depend on."""
        from safetensors.torch import save

        content = save({name: tensor.contiguous() for name, tensor in (tensors or {}).items()})
        numbers, beside = self._files(about)
        disk.write(beside, content)
        digest = hashlib.sha256(content).hexdigest()
        disk.write_sealed(numbers, {"schema": SCHEMA, "value": value, "sha256": digest})

    def load(self, about: Any) -> tuple[dict[str, Any], Tensors] | None:
        """What was kept of `about`; None if nothing was, or it is damaged."""
        from safetensors.torch import load

        numbers, beside = self._files(about)
        if not numbers.exists():
            return None
        try:
            found = disk.read_sealed(numbers, SCHEMA, AGAIN)
            content = beside.read_bytes() if beside.exists() else b""
            if hashlib.sha256(content).hexdigest() != found["sha256"]:
                raise Mistake(f"{beside} is not what was kept; {AGAIN}")
        except Mistake as mistake:
            self.on_damage(str(mistake))
            return None
        return found["value"], load(content)

    def clear(self) -> None:
        """Removes all of them: the stage has finished."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _files(self, about: Any) -> tuple[Path, Path]:
        key = disk.digest({"about": about, "torch": torch.__version__})
        return self.folder / f"{key[:32]}.json", self.folder / f"{key[:32]}.safetensors"
