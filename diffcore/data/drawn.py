"""Images that a teacher drew, as a folder that the source `teacher` reads.

    000000.npz ...   `images` uint8 [n, h, w, c], `labels` int64 [n] and `captions`, texts [n], where there are such
    drawn.json       sealed: what data.source asked for, the names of classes, who drew, the digest of every file

Where the images come from elsewhere the folder says so, in the same bytes each time.
"""

import io
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from diffcore.core import disk
from diffcore.core.errors import UserError

SCHEMA = 1
ABOUT = "drawn.json"
IMAGES, LABELS, CAPTIONS = "images", "labels", "captions"
AGAIN = "run the stage `draw` again"


@dataclass(frozen=True)
class Drawn:
    """source: data.source. classes: names by label, None for none. captions: whether the images have some. by: who drew
    them, and how. files: sha256 by name."""

    source: str
    classes: list[str] | None
    captions: bool
    by: dict[str, Any]
    files: dict[str, str]


def write(folder: Path, drawn: Drawn) -> None:
    """Says what the files in `folder` are."""
    disk.write_sealed(folder / ABOUT, {"schema": SCHEMA, **asdict(drawn)})


def write_none(folder: Path) -> None:
    """Says that nobody drew anything."""
    disk.write_sealed(folder / ABOUT, {"schema": SCHEMA, "source": None})


def is_none(folder: Path) -> bool:
    """Whether `folder` is what `write_none` leaves."""
    path = folder / ABOUT
    try:
        return disk.read_sealed(path, SCHEMA, AGAIN)["source"] is None and [path] == list(folder.iterdir())
    except (UserError, OSError, KeyError):
        return False


def content_of(images: np.ndarray, labels: np.ndarray | None, captions: list[str] | None) -> bytes:
    """A file of images, uint8 [n, h, w, c], and what is known of each: the same bytes for the same arrays."""
    arrays = {IMAGES: images}
    arrays |= {} if labels is None else {LABELS: labels}
    arrays |= {} if captions is None else {CAPTIONS: np.array(captions)}
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def read(folder: Path, source: str) -> Drawn:
    """What was drawn for `source`, every file whole; a UserError for anything else."""
    content = disk.read_sealed(folder / ABOUT, SCHEMA, AGAIN)
    if content["source"] != source:
        raise UserError(
            f"{folder} holds what {content['source'] or 'nobody'} drew, and data.source is {source}; {AGAIN}"
        )
    drawn = Drawn(**{name: content[name] for name in Drawn.__dataclass_fields__})
    for name, digest in drawn.files.items():
        path = folder / name
        if not path.is_file() or disk.sha256(path) != digest:
            raise UserError(f"{path} is missing or was changed since it was drawn; {AGAIN}")
    return drawn
