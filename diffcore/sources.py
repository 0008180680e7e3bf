"""The user's images: where they lie, what is a class, and how each becomes a uint8 array of the one shape asked for.

A source is a list of entries that can be read in any order, so that reading runs in several threads and still gives the
same bytes each time. No member of a tar is unpacked to the disk, no pickle is read, no command is run.
"""

import contextlib
import functools
import glob
import io
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from diffcore import tars
from diffcore.draw import generator
from diffcore.mistake import Mistake

Filter = Literal["lanczos", "bicubic", "bilinear", "box"]

SPLITS = {"train", "training", "test", "testing", "val", "valid", "validation", "dev"}


@dataclass(frozen=True)
class Config:
    """The section `data` of params.yaml.

    source: "digits" (scikit-learn's 1797 real 8x8 images), "folder:PATH" or "shards:PATTERN" (tars in webdataset's
        layout, named by a path with `*`, `{a,b}` or `{000..012}`). PATH may begin with `~`.
    size: the side of the square that pictures are resized and cropped to, in pixels; None keeps them as they are.
    channels: 1 or 3; None takes the first picture's. Grey is ITU-R 601 luma; transparency is laid on white.
    filter: of the resampling, by Pillow's names. The shorter side becomes `size`, then the middle is cut out.
    flip: mirror left and right at random in training. The shards do not depend on it.
    limit: the most images to take: the first so many, after a folder's have been dealt (see `Source`).
    license: of the images, written down in the manifest.
    members: "block" stores many images in one member of a tar, "image" one losslessly encoded image in each; "auto"
        takes blocks up to 64x64x3 bytes an image, where reading blocks is about a hundred times faster.
    """

    source: str
    size: int | None = None
    channels: Literal[1, 3] | None = None
    filter: Filter = "lanczos"
    crop: Literal["center"] = "center"
    flip: bool = False
    limit: int | None = None
    license: str | None = None
    members: Literal["auto", "block", "image"] = "auto"

    def __post_init__(self):
        kind, _, place = self.source.partition(":")
        if self.source != "digits" and (kind not in ("folder", "shards") or not place):
            raise ValueError(f"source must be digits, folder:PATH or shards:PATTERN, not {self.source!r}")
        if "pipe:" in place:
            raise ValueError("source names a pipe:, which would run a command; only files are read")
        if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", place):
            raise ValueError(f"source must be on this machine's disks; fetch {place} first")
        for name in ("size", "limit"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing that can be read by itself: a picture, or a block of `images` pictures.

    read: () -> (pictures, labels): each picture a PIL image or a uint8 array [h, w, c]; each label an int or None.
        Raises if the bytes are not what they should be.
    """

    name: str
    images: int
    read: Callable[[], tuple[Sequence[Any], Sequence[int | None]]]


@dataclass(frozen=True)
class Source:
    """What a source holds.

    entries: in the source's own order; a folder's, which would come class by class, are dealt once in a fixed random
        order, so that every shard, and the first N images too, are a fair sample of the whole.
    classes: their names by label, or None where the source has no names for them (or no labels).
    splits: images in each of `train`, `test`, ... where the folder is divided so, else None.
    ignored: files of other kinds that lie among a folder's images.
    """

    entries: list[Entry]
    classes: list[str] | None
    splits: dict[str, int] | None = None
    ignored: int = 0

    @property
    def images(self) -> int:
        """How many images there are to read, good or bad."""
        return sum(entry.images for entry in self.entries)


@dataclass(frozen=True)
class Form:
    """The one shape [c, h, w] of all images of a data set, and what the user left to the first image to decide."""

    shape: tuple[int, int, int]
    size: int | None
    channels_stated: bool
    filter: Filter


def find(config: Config) -> Source:
    """Looks up what `config.source` names, without decoding it. Raises Mistake when there is nothing to read."""
    kind, _, place = config.source.partition(":")
    source = {"digits": _digits, "folder": _folder, "shards": _shards}[kind](place)
    return replace(source, entries=_first(source.entries, config.limit))


def form(config: Config, source: Source) -> Form:
    """The shape that all images will have: as configured, else as the first image that can be read."""
    for entry in source.entries:
        try:
            first = entry.read()[0][0]
        except Exception:  # it is quarantined, with its reason, when its turn comes
            continue
        height, width = (config.size, config.size) if config.size else _extent(first)
        shape = (config.channels or (1 if _grey(first) else 3), height, width)
        return Form(shape, config.size, config.channels is not None, config.filter)
    raise Mistake(f"data.source {config.source}: none of its {source.images} images can be read")


def fit(picture: Any, form: Form, name: str) -> tuple[np.ndarray, bool]:
    """One picture as uint8 [h, w, c] of `form`, and whether it had to be enlarged for that.

    The shorter side is resampled to `size` with the filter (the longer one to the nearest whole pixel), then the middle
    is cut out, at the floor of half the surplus. Raises Mistake if the picture differs from the first one in something
    that the configuration leaves open.
    """
    from PIL import Image

    channels, height, width = form.shape
    if not form.channels_stated and _grey(picture) != (channels == 1):
        raise Mistake(f"{name} is {_colour(picture)} and the first image is not: set data.channels to 1 or 3")
    extent = _extent(picture)
    if form.size is None and extent != (height, width):
        found, first = f"{extent[1]}x{extent[0]}", f"{width}x{height}"
        raise Mistake(f"{name} is {found} and the first image {first}: set data.size to the side you want")
    if isinstance(picture, np.ndarray):
        if picture.shape == (height, width, channels):
            return picture, False
        picture = Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture)
    picture = _flat(picture).convert("L" if channels == 1 else "RGB")
    if form.size is not None:
        picture = _square(picture, form.size, form.filter)
    return np.asarray(picture).reshape(height, width, channels), form.size is not None and min(extent) < form.size


# digits


def _digits(_: str) -> Source:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    # 17 levels to 256, invertible: level = round(pixel * 16 / 255)
    pixels = ((bunch.images.astype(np.int64) * 255 + 8) // 16).astype(np.uint8)[..., None]
    labels = [int(label) for label in bunch.target]
    return Source([Entry("digits", len(pixels), lambda: (list(pixels), labels))], [str(digit) for digit in range(10)])


# folder


def _folder(place: str) -> Source:
    root = Path(place).expanduser()
    if not root.is_dir():
        raise Mistake(f"data.source: there is no folder {place}")
    files, ignored = _walk(root)
    if not files:
        found = f"only {ignored} other files" if ignored else "it is empty"
        raise Mistake(f"data.source: no images in {place} ({found}); known are {', '.join(tars.EXTENSIONS)}")
    split = _is_split(files)
    names = [parts[split] if len(parts) > split + 1 else None for parts in files]
    classes = sorted({name for name in names if name is not None})
    labels = {None: None} | {name: label for label, name in enumerate(classes)}
    if classes and None in names:
        stray = "/".join(files[names.index(None)])
        raise Mistake(f"data.source: {place} has class folders ({classes[0]}, ...) and also {stray}: give it one too")
    entries = [
        Entry("/".join(parts), 1, functools.partial(_read_file, root.joinpath(*parts), labels[name]))
        for parts, name in zip(files, names)
    ]
    dealt = torch.randperm(len(entries), generator=generator("deal")).tolist()
    return Source([entries[i] for i in dealt], classes or None, _split_counts(files) if split else None, ignored)


def _walk(root: Path) -> tuple[list[tuple[str, ...]], int]:
    # relative paths of the images, in order; links to folders are followed, each folder once
    files, ignored, seen = [], 0, set()
    for here, folders, names in os.walk(root, followlinks=True):
        status = os.stat(here)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        parts = Path(here).relative_to(root).parts
        images = [n for n in names if not n.startswith(".") and n.rpartition(".")[2].lower() in tars.EXTENSIONS]
        files += [(*parts, name) for name in images]
        ignored += len(names) - len(images)
    return sorted(files), ignored


def _is_split(files: list[tuple[str, ...]]) -> int:
    # 1 if the first level is train/, test/, ...: then all of it is read, and the classes are one level below
    return int(all(len(parts) > 1 and parts[0].lower() in SPLITS for parts in files))


def _split_counts(files: list[tuple[str, ...]]) -> dict[str, int]:
    names = [parts[0] for parts in files]
    return {name: names.count(name) for name in sorted(set(names))}


def _read_file(path: Path, label: int | None) -> tuple[list[Any], list[int | None]]:
    return [tars.decode(path.read_bytes(), "any")], [label]


# shards


def _shards(pattern: str) -> Source:
    entries = []
    for path in _expand(pattern):
        with open(path, "rb") as file:
            for key, parts in tars.members(file, str(path)):
                entries.append(_entry(path, key, parts, file))
    if not entries:
        raise Mistake(f"data.source: the shards {pattern} hold no images")
    return Source(entries, None)


def _entry(path: Path, key: str, parts: dict[str, tuple[int, int]], file: io.BufferedIOBase) -> Entry:
    images = [extension for extension in parts if extension in tars.TAR_IMAGES]
    if len(images) != 1:
        found = ", ".join(parts)
        raise Mistake(f"{path}: sample {key!r} must have one part of {', '.join(tars.TAR_IMAGES)}; it has {found}")
    count = 1
    if images == ["npy"]:
        file.seek(parts["npy"][0])
        with contextlib.suppress(ValueError):  # a damaged block counts as one image, and is quarantined when read
            shape = tars.npy_header(file)[0]
            count = shape[0] if len(shape) == 4 else 1
    return Entry(f"{path.name}/{key}", count, functools.partial(_read_sample, path, parts))


def _read_sample(path: Path, parts: dict[str, tuple[int, int]]) -> tuple[Sequence[Any], Sequence[int | None]]:
    contents = {}
    with open(path, "rb") as file:
        for extension, (offset, size) in parts.items():
            file.seek(offset)
            contents[extension] = file.read(size)
    pictures = tars.pictures_of(contents)
    return pictures, tars.labels_of(contents, len(pictures))


def _expand(pattern: str) -> list[Path]:
    paths = []
    for name in _braces(os.path.expanduser(pattern)):
        found = sorted(glob.glob(name, recursive=True)) if glob.has_magic(name) else [name]
        missing = [path for path in found if not os.path.isfile(path)]
        if missing or not found:
            raise Mistake(f"data.source: there is no shard {(missing or [name])[0]}")
        paths += [Path(path) for path in found]
    return paths


def _braces(pattern: str) -> Iterator[str]:
    # {a,b} and {000..012}, as a shell expands them
    match = re.search(r"\{([^{}]*)\}", pattern)
    if match is None:
        yield pattern
        return
    span = re.fullmatch(r"(\d+)\.\.(\d+)", match[1])
    words = match[1].split(",")
    if span:
        width = len(span[1]) if span[1].startswith("0") else 0
        words = [str(number).zfill(width) for number in range(int(span[1]), int(span[2]) + 1)]
    for word in words:
        yield from _braces(pattern[: match.start()] + word + pattern[match.end() :])


def _first(entries: list[Entry], limit: int | None) -> list[Entry]:
    if limit is None:
        return entries
    kept = []
    for entry in entries:
        kept.append(replace(entry, images=min(entry.images, limit)))
        limit -= kept[-1].images
        if not limit:
            break
    return kept


# pictures


def _extent(picture: Any) -> tuple[int, int]:
    return picture.shape[:2] if isinstance(picture, np.ndarray) else (picture.height, picture.width)


def _grey(picture: Any) -> bool:
    if isinstance(picture, np.ndarray):
        return picture.shape[-1] == 1
    return picture.mode in ("1", "L", "LA", "La") or picture.mode.startswith("I;16")


def _colour(picture: Any) -> str:
    return "grey" if _grey(picture) else "in colour"


def _flat(picture: Any) -> Any:
    # 8 bits, nothing transparent
    from PIL import Image

    if picture.mode.startswith("I;16"):  # Pillow's own conversion would clip at 255
        deep = np.asarray(picture).astype(np.uint32)
        return Image.fromarray(((deep * 255 + 32767) // 65535).astype(np.uint8))
    if picture.has_transparency_data:
        paper = Image.new("RGBA", picture.size, "white")
        paper.alpha_composite(picture.convert("RGBA"))
        return paper.convert("RGB")
    return picture


def _square(picture: Any, size: int, filter: Filter) -> Any:
    from PIL import Image

    short = min(picture.size)
    width, height = (max(size, round(side * size / short)) for side in picture.size)
    if (width, height) != picture.size:
        picture = picture.resize((width, height), Image.Resampling[filter.upper()])
    left, top = (width - size) // 2, (height - size) // 2
    return picture.crop((left, top, left + size, top + size))
