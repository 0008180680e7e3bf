"""NumPy's archives of arrays: images in `images`, `x` or `arr_0`, labels in `labels`, `y` or `arr_1`. No pickle is read."""

import functools
import io
import os
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from diffcore.core.errors import UserError
from diffcore.data import patterns, tars
from diffcore.data.sources import Entry, Kind, Source
from diffcore.data.split import Split
from diffcore.data.tars import MOST_CLASSES, printable

IMAGES, LABELS = ("images", "x", "arr_0"), ("labels", "y", "arr_1")
BLOCK = 64  # images of an entry
CHANNELS = (1, 3, 4)
DAMAGE = (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, OSError, ValueError, KeyError, struct.error)


class Npz(Kind):
    """PATTERN is a path with `*`, `{a,b}` or `{000..012}`. Images come in the order of the files."""

    place = "PATTERN"
    caption_names = (".+", "an array of texts")

    def find(self, place: str, labels: str | None, split: Split | None) -> Source:
        entries, notes = [], []
        paths = patterns.paths(place, "npz file")
        for path in paths:
            try:
                images, given = _look(path)
                texts = _texts(path, self.caption_name, images.shape[0]) if self.caption_name else None
                captions = self.captions_of(given or [None] * images.shape[0], texts)
            except DAMAGE as error:
                raise UserError(f"data.source: {printable(str(path))} cannot be read as npz ({error})") from None
            if images.channels_first:
                notes.append(f"{printable(path.name)} has channels first: read as [n, c, h, w]")
            for start in range(0, images.shape[0], BLOCK):
                stop = min(start + BLOCK, images.shape[0])
                read = functools.partial(_read, images, start, stop, given[start:stop] if given else None)
                block = captions and captions[start:stop]
                entries.append(Entry(printable(f"{path.name}/{start}"), stop - start, read, captions=block))
        return Source(entries, None, files=paths, notes=notes)


@dataclass(frozen=True)
class Array:
    """An array of uint8 in an archive. start: where its values begin in the file; None where it is compressed."""

    path: Path
    member: str
    shape: tuple[int, ...]
    header: int
    start: int | None

    @property
    def channels_first(self) -> bool:
        return len(self.shape) == 4 and self.shape[3] not in CHANNELS

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Its rows start .. stop - 1."""
        one = int(np.prod(self.shape[1:]))
        if self.start is None:
            values = _whole(self.path, patterns.stamp(self.path), self.member)[
                self.header + start * one : self.header + stop * one
            ]
        else:
            with open(self.path, "rb") as file:
                file.seek(self.start + start * one)
                values = file.read((stop - start) * one)
        return np.frombuffer(values, np.uint8).reshape(stop - start, *self.shape[1:])


def _read(images: Array, start: int, stop: int, labels: list[int] | None) -> tuple[list[Any], list[int | None]]:
    pixels = images.rows(start, stop)
    pixels = pixels[..., None] if pixels.ndim == 3 else pixels
    pixels = np.ascontiguousarray(pixels.transpose(0, 2, 3, 1)) if images.channels_first else pixels
    return list(pixels), labels or [None] * len(pixels)


def _look(path: Path) -> tuple[Array, list[int] | None]:
    with zipfile.ZipFile(path) as archive:
        names = [name.removesuffix(".npy") for name in archive.namelist()]
        image, label = (next((name for name in wanted if name in names), None) for wanted in (IMAGES, LABELS))
        if image is None:
            raise ValueError(f"none of its arrays is {', '.join(IMAGES)}; it has {', '.join(map(printable, names))}")
        images = _array(archive, path, f"{image}.npy")
        labels = _numbers(archive.read(f"{label}.npy"), label, images.shape[0]) if label else None
    return images, labels


def _array(archive: zipfile.ZipFile, path: Path, member: str) -> Array:
    info = archive.getinfo(member)
    with archive.open(info) as file:
        head = file.read(min(info.file_size, 65536))
    shape, dtype, header = tars.npy_header(io.BytesIO(head), info.file_size)
    images = len(shape) == 3 or (len(shape) == 4 and (shape[3] in CHANNELS or shape[1] in CHANNELS))
    if dtype != np.uint8 or not np.prod(shape) or not images:
        raise ValueError(
            f"{member} is {dtype} {list(shape)}, and images are uint8 [n, h, w, c], [n, c, h, w] or [n, h, w]"
        )
    start = _place(path, info) + header if info.compress_type == zipfile.ZIP_STORED else None
    return Array(path, member, shape, header, start)


def _place(path: Path, info: zipfile.ZipInfo) -> int:
    # where a member's bytes begin: behind its local header, 30 bytes and two texts
    with open(path, "rb") as file:
        file.seek(info.header_offset + 26)
        start = info.header_offset + 30 + sum(struct.unpack("<HH", file.read(4)))
    if start + info.file_size > os.path.getsize(path):
        raise ValueError("it ends early")
    return start


def _numbers(content: bytes, name: str, count: int) -> list[int]:
    values = tars.array(content)
    if values.shape not in ((count,), (count, 1)):
        raise ValueError(f"{name} is {list(values.shape)}, and there are {count} images")
    if len(values) and not 0 <= values.min() <= values.max() < MOST_CLASSES:
        raise ValueError(f"{name} is not in 0 .. {MOST_CLASSES - 1}")
    return [int(value) for value in values.reshape(-1)]


def _texts(path: Path, name: str, count: int) -> list[Any]:
    with zipfile.ZipFile(path) as archive:
        if f"{name}.npy" not in archive.namelist():
            names = (name.removesuffix(".npy") for name in archive.namelist())
            raise UserError(
                f"data.captions: {printable(str(path))} has no array {name!r}; it has {tars.few(names, 12)}"
            )
        values = tars.array(archive.read(f"{name}.npy"), tars.TEXTS)
    if values.shape not in ((count,), (count, 1)):
        raise ValueError(f"{name} is {list(values.shape)}, and there are {count} images")
    return values.reshape(-1).tolist()


@functools.lru_cache(1)
def _whole(path: Path, stamp: tuple[int, int], member: str) -> bytes:
    # a compressed array can be read from its beginning only
    with zipfile.ZipFile(path) as archive:
        return archive.read(member)
