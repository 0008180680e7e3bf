"""What was measured of one checkpoint, on disk: its points with their first samples, and samples that fidelity compares with.

Each is a folder of its own: numbers in a sealed JSON file, tensors beside it, see diffcore.core.kept.
"""

import hashlib
from pathlib import Path
from typing import Any

from diffcore.core import disk, kept
from diffcore.core.errors import UserError
from diffcore.core.kept import Tensors
from diffcore.core.shapes import Sample
from diffcore.metrics.point import Point

TABLE, SAMPLES = "points.json", "samples.json"

REAL = "real"
"""Beside the points' first samples: the first real images. No point is called so, for a name begins with a checkpoint's."""


def write(folder: Path, value: dict[str, Any], points: list[Point], first_samples: Tensors) -> None:
    """Writes the points of a checkpoint, `value` beside them, and by point its first samples, uint8 [n, h, w, c]."""
    with disk.folder(folder) as new:
        kept.write(new / TABLE, {**value, "points": [point.to_json() for point in points]}, first_samples)


def read(folder: Path, remedy: str) -> tuple[dict[str, Any], list[Point], Tensors]:
    """The inverse of `write`; a UserError that ends in `remedy` for what is missing or damaged."""
    value, first_samples = kept.read(folder / TABLE, remedy)
    return value, [Point.from_json(row) for row in value.pop("points")], first_samples


def write_reference(folder: Path, checkpoint: str, point: str, samples: Sample) -> None:
    """Writes the samples of a teacher that fidelity compares with: whose they are, by digest, and of which point."""
    with disk.folder(folder) as new:
        kept.write(new / SAMPLES, {"checkpoint": checkpoint, "point": point}, {"samples": samples})


def read_reference(folder: Path, checkpoint: str, remedy: str) -> Sample:
    """Samples that fidelity compares with; a UserError if they are not those of the checkpoint of this digest."""
    about, tensors = kept.read(folder / SAMPLES, remedy)
    if about["checkpoint"] != checkpoint:
        raise UserError(f"{folder} holds samples of another checkpoint; {remedy}")
    return tensors["samples"]


def digest_of(samples: Sample) -> str:
    """Of samples that fidelity compares with."""
    return hashlib.sha256(samples.contiguous().numpy().tobytes()).hexdigest()
