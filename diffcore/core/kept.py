"""Results of a long stage that a kill shall not cost: each kept as soon as it is there, apart from what the stage writes.

A result is keyed by the digest of all that it depends on, so that another job never takes it. Numbers lie in a sealed JSON
file, tensors beside it in safetensors, verified by sha256 when read; what is damaged is told and worked out again.
"""

import hashlib
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffcore.core import disk
from diffcore.core.errors import UserError

SCHEMA = 1
AGAIN = "it is worked out again"

Tensors = dict[str, Tensor]


def write(numbers: Path, value: dict[str, Any], tensors: Tensors | None = None) -> None:
    """Writes `value`, JSON, to `numbers`, sealed, and `tensors` beside it, with their sha256 under the seal."""
    from safetensors.torch import save

    content = save({name: tensor.contiguous() for name, tensor in (tensors or {}).items()})
    disk.write(_beside(numbers), content)
    disk.write_sealed(numbers, {"schema": SCHEMA, "value": value, "sha256": hashlib.sha256(content).hexdigest()})


def read(numbers: Path, remedy: str) -> tuple[dict[str, Any], Tensors]:
    """The inverse of `write`; a UserError that ends in `remedy` for what is missing or damaged."""
    from safetensors.torch import load

    sealed = disk.read_sealed(numbers, SCHEMA, remedy)
    beside = _beside(numbers)
    content = beside.read_bytes() if beside.exists() else b""
    if hashlib.sha256(content).hexdigest() != sealed["sha256"]:
        raise UserError(f"{beside} is not what was kept; {remedy}")
    return sealed["value"], load(content)


def _beside(numbers: Path) -> Path:
    return numbers.with_suffix(".safetensors")


@dataclass(frozen=True)
class Kept:
    """The results under `folder`, which is theirs alone. on_damage: hears of each that cannot be used."""

    folder: Path
    on_damage: Callable[[str], None] = lambda line: None

    def save(self, about: Any, value: dict[str, Any], tensors: Tensors | None = None) -> None:
        """Keeps `value`, JSON, and `tensors` as what came of `about`, JSON that names everything they depend on."""
        write(self._file(about), value, tensors)

    def load(self, about: Any) -> tuple[dict[str, Any], Tensors] | None:
        """What was kept of `about`; None if nothing was, or it is damaged."""
        numbers = self._file(about)
        if not numbers.exists():
            return None
        try:
            return read(numbers, AGAIN)
        except UserError as error:
            self.on_damage(str(error))
            return None

    def clear_but(self, abouts: Iterable[Any]) -> None:
        """Removes all of them but what came of `abouts`."""
        wanted = {self._file(about).stem for about in abouts}
        for path in self.folder.glob("*"):
            if path.stem not in wanted:
                path.unlink(missing_ok=True)

    def clear(self) -> None:
        """Removes all of them: the stage has finished."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _file(self, about: Any) -> Path:
        key = disk.digest({"about": about, "torch": torch.__version__})
        return self.folder / f"{key[:32]}.json"
