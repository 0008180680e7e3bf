"""A zip as EDM's and EDM2's dataset tools write it: images, and classes in its dataset.json."""

import functools
import io
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diffcore.core.errors import UserError
from diffcore.data import annotations, folders, patterns, tars
from diffcore.data.sources import Entry, Kind, Source
from diffcore.data.split import Split
from diffcore.data.tars import few, printable

MOST_BYTES = 1 << 30  # of one member
DAMAGE = (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, OSError, ValueError)
"""What zipfile makes of a file that is none, is encrypted or is compressed in a way it does not know."""


class Zip(Kind):
    """PATH may begin with `~`. Nothing is unpacked to the disk, and no name in it is used as a path."""

    place = "PATH"
    dealt = True

    def find(self, place: str, labels: str | None, split: Split | None) -> Source:
        path = Path(place).expanduser()
        names = _names(path, place)
        images = sorted(name for name in names if _is_image(name))
        others = [tuple(name.split("/")) for name in names if name not in images and name != annotations.DATASET]
        if not images:
            raise UserError(f"data.source: no images in {printable(place)}: {folders.kinds(others) or 'it is empty'}")
        _check_pixels(path, place, images)
        given, note = _labels(path, place) if annotations.DATASET in names else (None, "no dataset.json, so no labels")
        labels = _chosen(images, given, place)
        entries = [_entry(path, name, label, self.captions_of([label], None)) for name, label in zip(images, labels)]
        return Source(entries, None, others=others, files=[path], notes=[f"{printable(place)}: {note}"] * bool(note))


def _names(path: Path, place: str) -> list[str]:
    if not path.is_file():
        raise UserError(f"data.source: there is no file {printable(place)}")
    try:
        names = [info.filename for info in _archive(path, patterns.stamp(path)).infolist() if not info.is_dir()]
    except DAMAGE as error:
        raise UserError(f"data.source: {printable(place)} cannot be read as a zip ({error}): fetch it again") from None
    twice = next((name for name, after in zip(sorted(names), sorted(names)[1:]) if name == after), None)
    if twice is not None:
        raise UserError(f"data.source: {printable(place)} holds {printable(twice)} twice: write it anew")
    return names


def _is_image(name: str) -> bool:
    base = name.rpartition("/")[2]
    return not base.startswith(".") and folders.extension(base) in (*tars.formats(), "npy")


def _check_pixels(path: Path, place: str, images: list[str]) -> None:
    first = next((name for name in images if folders.extension(name) == "npy"), None)
    if first is None:
        return
    try:
        _pixels(_content(path, first))
    except DAMAGE as error:
        fault = f"{printable(first)} in {printable(place)} holds no pixels ({error})"
        raise UserError(
            f"data.source: {fault}: latents are not trained on; take the zip of images they were made of"
        ) from None


def _labels(path: Path, place: str) -> tuple[dict[str, int] | None, str]:
    name = f"{annotations.DATASET} of {printable(place)}"
    try:
        text = _content(path, annotations.DATASET).decode("utf-8-sig")
    except DAMAGE as error:
        raise UserError(f"data.source: {name} cannot be read ({error})") from None
    labels = dict(annotations.dataset_labels(text, name))
    return labels or None, "" if labels else "its dataset.json has no labels"


def _chosen(images: list[str], labels: dict[str, int] | None, place: str) -> list[int | None]:
    if labels is None:
        return [None] * len(images)
    missing = [name for name in images if name not in labels]
    if missing:
        fault = f"{len(missing)} of {len(images)} images have no label in its dataset.json ({few(missing)})"
        raise UserError(f"data.source: {printable(place)}: {fault}: label all, or set data.labels to none")
    return [labels[name] for name in images]


def _entry(path: Path, name: str, label: int | None, captions: Sequence[Any] | None) -> Entry:
    return Entry(printable(name), 1, functools.partial(_read, path, name, label), captions=captions)


def _read(path: Path, name: str, label: int | None) -> tuple[list[Any], list[int | None]]:
    content = _content(path, name)
    picture = _pixels(content) if folders.extension(name) == "npy" else tars.decode(content, "any")
    return [picture], [label]


def _pixels(content: bytes) -> np.ndarray:
    # EDM2 writes raw pixels as [c, h, w]
    shape, dtype, _ = tars.npy_header(io.BytesIO(content), len(content))
    if dtype != np.uint8 or len(shape) not in (2, 3) or (len(shape) == 3 and shape[0] not in (1, 3, 4)):
        raise ValueError(f"it is {dtype} {list(shape)}, and pixels are uint8 [c, h, w]")
    pixels = tars.array(content).reshape(-1, *shape[-2:])
    return np.ascontiguousarray(pixels.transpose(1, 2, 0))


def _content(path: Path, name: str) -> bytes:
    archive = _archive(path, patterns.stamp(path))
    size = archive.getinfo(name).file_size
    if size > MOST_BYTES:
        raise ValueError(f"it has {size} bytes; at most {MOST_BYTES} are read")
    return archive.read(name)  # which checks its CRC-32


@functools.lru_cache(4)
def _archive(path: Path, stamp: tuple[int, int]) -> zipfile.ZipFile:
    # one for all threads, which zipfile allows; anew for a file that was changed
    return zipfile.ZipFile(path)
