"""The user's images: where they lie, what is a class, and how each becomes a uint8 array of the one shape asked for.

A source is a list of entries that can be read in any order, so that reading runs in several threads and still gives the
same bytes each time. No member of a tar is unpacked to the disk, no pickle is read, no command is run.
"""

import collections
import contextlib
import functools
import glob
import hashlib
import io
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from diffcore.core.draw import generator
from diffcore.core.mistake import Mistake
from diffcore.data import folders, tars
from diffcore.data.folders import NONE, Parts, Picture
from diffcore.data.tars import printable

Filter = Literal["lanczos", "bicubic", "bilinear", "box"]

FULL = 65535  # white, where 16 bits are used
MOST_PIXELS = 1 << 27  # of a resized picture before it is cut: a picture much longer than wide would fill the memory
MOST_BYTES = 1 << 30  # of an image file


@dataclass(frozen=True)
class Split:
    """Which images are trained on, and which are held out: written apart, and never trained on.

    train: names of folders (train/, ...) at the top of a folder source; None for all that are not held out.
    holdout: such names, or the share of the images to hold out. A share is drawn by the images' names, so that one that is
    held out stays so when others are added.
    """

    train: list[str] | None = None
    holdout: list[str] | float | None = None

    def __post_init__(self):
        if self.train is None and self.holdout is None:
            raise ValueError("say train, holdout or both; leave split null to train on all")
        if self.train == [] or self.holdout == []:
            raise ValueError("train and holdout must name at least one folder of a split; leave the key out for none")
        if isinstance(self.holdout, float | int) and not 0 < self.holdout < 1:
            raise ValueError(f"holdout must be names of split folders or a share between 0 and 1, not {self.holdout}")
        both = sorted({name.lower() for name in self.train or ()} & {name.lower() for name in self.names})
        if both:
            raise ValueError(f"the split {both[0]} is both trained on and held out; name it once")

    @property
    def names(self) -> list[str]:
        """Of the folders that are held out."""
        return self.holdout if isinstance(self.holdout, list) else []

    @property
    def share(self) -> float:
        """Of the images that are held out, 0 where folders are named."""
        return 0.0 if self.holdout is None or isinstance(self.holdout, list) else self.holdout


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
    labels: "folders", "none", or the column of a metadata.csv or .jsonl that holds them; None for what the source itself
        says (dataset.json, metadata, else folders).
    split: what is held out; None to train on all.
    tolerance: the share of images that may be unreadable; these are left out, counted and named.
    bits: of 16-bit images, how many are used: 12 where white is 4095. None for all 16, which is refused if none of the
        images is as bright as half of that.
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
    labels: str | None = None
    split: Split | None = None
    tolerance: float = 0.01
    bits: int | None = None

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
        if not 0 <= self.tolerance < 1:
            raise ValueError(f"tolerance must be a share, at least 0 and below 1, not {self.tolerance}")
        if self.labels == "":
            raise ValueError(
                f"labels must be {folders.FOLDERS}, {NONE} or the name of a column; null for what there is"
            )
        if self.bits is not None and not 9 <= self.bits <= 16:
            raise ValueError(f"bits must be 9 to 16, not {self.bits}")
        if kind != "folder" and self.labels not in (None, NONE):
            raise ValueError(f"labels may be null or none for {kind}; {self.labels!r} is for a folder of images")
        if kind != "folder" and self.split is not None and (self.split.train or self.split.names):
            raise ValueError(f"split names folders, and {kind} has none; say a share, as in holdout: 0.1")


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing that can be read by itself: a picture, or a block of `images` pictures.

    read: () -> (pictures, labels): each picture a PIL image or a uint8 array [h, w, c]; each label an int or None.
        Raises if the bytes are not what they should be.
    split: the folder train/, test/, ... that it lies in.
    """

    name: str
    images: int
    read: Callable[[], tuple[Sequence[Any], Sequence[int | None]]]
    split: str | None = None


@dataclass(frozen=True)
class Source:
    """What a source holds.

    entries: in the source's own order; a folder's, which would come class by class, are dealt once in a fixed random
        order, so that every shard, and the first N images too, are a fair sample of the whole.
    classes: their names by label, or None where the source has no names for them (or no labels).
    splits: images in each of `train`, `test`, ... where the folder is divided so, else None.
    others: files of other kinds that lie among a folder's images. files: those that are read.
    notes: how the source was understood, where that could surprise. held: what is held out.
    """

    entries: list[Entry]
    classes: list[str] | None
    splits: dict[str, int] | None = None
    others: list[Parts] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    held: "Source | None" = None

    @property
    def ignored(self) -> int:
        """Files of other kinds."""
        return len(self.others)

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
    bits: int | None = None


class Fitted(NamedTuple):
    """A picture in the form of its data set.

    pixels: uint8 [h, w, c]. enlarged: whether it was smaller. peak: its brightest value of 0 .. 65535, where it had 16 bits.
    """

    pixels: np.ndarray
    enlarged: bool
    peak: int | None = None


def find(config: Config) -> Source:
    """Looks up what `config.source` names, without decoding it. Raises Mistake when there is nothing to read."""
    kind, _, place = config.source.partition(":")
    source = {"digits": _digits, "folder": _folder, "shards": _shards}[kind](place, config)
    if config.labels == NONE:
        source = _unlabelled(source)
    if config.split is not None and config.split.share:
        source = _drawn(source, config.split.share)
    return _finished(source, config.limit, dealt=kind == "folder")


def form(config: Config, source: Source) -> Form:
    """The shape that all images will have: as configured, else as the first image that can be read."""
    reasons = []
    for entry in source.entries:
        try:
            first = entry.read()[0][0]
        except Exception as error:  # it is quarantined, with its reason, when its turn comes
            reasons = reasons or [f"{entry.name}: {reason(error)}"]
            continue
        height, width = (config.size, config.size) if config.size else _extent(first)
        shape = (config.channels or (1 if _grey(first) else 3), height, width)
        return Form(shape, config.size, config.channels is not None, config.filter, config.bits)
    raise Mistake(f"data.source {config.source}: none of its {source.images} images can be read ({'; '.join(reasons)})")


def reason(error: Exception) -> str:
    """Why an image cannot be read, in one line that is the same each time and on each machine."""
    said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    said = re.sub(r"<[^<>]* at 0x[0-9a-fA-F]+>", "", said)  # an object's address
    return printable(" ".join(f"{type(error).__name__}: {said}".split()))


def fit(picture: Any, form: Form, name: str) -> Fitted:
    """One picture as uint8 [h, w, c] of `form`.

    The shorter side is resampled to `size` with the filter (the longer one to the nearest whole pixel), then the middle
    is cut out, at the floor of half the surplus. Raises Mistake if the picture differs from the first one in something
    that the configuration leaves open, ValueError if it cannot be brought into the form.
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
            return Fitted(picture, False)
        picture = Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture)
    peak = _peak(picture)
    picture = _flat(picture, _white(form.bits, peak, picture, name)).convert("L" if channels == 1 else "RGB")
    if form.size is not None:
        picture = _square(picture, form.size, form.filter)
    enlarged = form.size is not None and min(extent) < form.size
    return Fitted(np.asarray(picture).reshape(height, width, channels), enlarged, peak)


# parts


def _finished(source: Source, limit: int | None, dealt: bool) -> Source:
    if not source.entries:
        raise Mistake("data.split leaves no image to train on")
    entries = source.entries
    if dealt:
        order = torch.randperm(len(entries), generator=generator("deal")).tolist()
        entries = [entries[i] for i in order]
    counts = {name: sum(e.images for e in entries if e.split == name) for name in sorted(_splits(entries))}
    held = source.held and _finished(source.held, limit, dealt)
    return replace(source, entries=_first(entries, limit), splits=counts or None, held=held)


def _splits(entries: Iterable[Entry]) -> set[str]:
    return {entry.split for entry in entries if entry.split is not None}


def _unlabelled(source: Source) -> Source:
    entries = [replace(entry, read=functools.partial(_read_unlabelled, entry.read)) for entry in source.entries]
    return replace(source, entries=entries, classes=None)


def _read_unlabelled(read: Callable[[], tuple[Sequence[Any], Any]]) -> tuple[Sequence[Any], Sequence[None]]:
    pictures, _ = read()
    return pictures, [None] * len(pictures)


def _drawn(source: Source, share: float) -> Source:
    # holds out each image whose name falls below the share
    kept: list[Entry] = []
    held: list[Entry] = []
    for entry in source.entries:
        names = [entry.name] if entry.images == 1 else [f"{entry.name}/{row}" for row in range(entry.images)]
        out = [_lot(name) < share for name in names]
        kept += _rows_of(entry, [row for row, is_out in enumerate(out) if not is_out])
        held += _rows_of(entry, [row for row, is_out in enumerate(out) if is_out])
    if not held:
        raise Mistake(f"data.split.holdout: no image of {source.images} is held out by a share of {share}; raise it")
    return replace(source, entries=kept, held=replace(source, entries=held, notes=[], others=[]))


def _lot(name: str) -> float:
    return int.from_bytes(hashlib.sha256(f"holdout/{name}".encode()).digest()[:8], "big") / 2**64


def _rows_of(entry: Entry, rows: list[int]) -> list[Entry]:
    if not rows or len(rows) == entry.images:
        return [entry] * bool(rows)
    return [replace(entry, images=len(rows), read=functools.partial(_read_rows, entry.read, rows))]


def _read_rows(read: Callable[[], tuple[Sequence[Any], Any]], rows: list[int]) -> tuple[list[Any], list[int | None]]:
    pictures, labels = read()
    return [pictures[row] for row in rows], [labels[row] for row in rows]


# digits


def _digits(_: str, config: Config) -> Source:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    # 17 levels to 256, invertible: level = round(pixel * 16 / 255)
    pixels = ((bunch.images.astype(np.int64) * 255 + 8) // 16).astype(np.uint8)[..., None]
    labels = [int(label) for label in bunch.target]
    return Source([Entry("digits", len(pixels), lambda: (list(pixels), labels))], [str(digit) for digit in range(10)])


# folder


def _folder(place: str, config: Config) -> Source:
    root, split = _root(place), config.split
    named = [name.lower() for name in ((split.train or []) + split.names if split else [])]
    found = folders.read(root, printable(place), config.labels, named)
    sizes = {name: sum(p.split == name for p in found.pictures) for name in sorted(folders.splits_of(found.pictures))}
    trained, held = _chosen(sizes, split, place) if split else (list(sizes), [])
    kept = [_picture_entry(root, picture) for picture in found.pictures if picture.split in (*trained, None)]
    out = [_picture_entry(root, picture) for picture in found.pictures if picture.split in held]
    notes = found.notes + _split_notes(sizes, split, trained, held)
    source = Source(kept, found.classes, others=found.others, files=found.files, notes=notes)
    return replace(source, held=Source(out, found.classes) if out else None)


def _root(place: str) -> Path:
    try:
        root = Path(place).expanduser()
        is_folder, is_there = root.is_dir(), root.exists()
    except (OSError, RuntimeError, ValueError) as error:
        said = getattr(error, "strerror", None) or error
        raise Mistake(f"data.source: {printable(place)} cannot be read ({said})") from None
    if is_folder:
        return root
    if is_there:
        raise Mistake(f"data.source: {printable(place)} is no folder; unpack it if it is an archive")
    raise Mistake(f"data.source: there is no folder {printable(place)}")


def _chosen(sizes: dict[str, int], split: Split, place: str) -> tuple[list[str], list[str]]:
    # the folders to train on and to hold out, by the names that they have
    by_name = {name.lower(): name for name in sizes}
    for name in (*(split.train or ()), *split.names):
        if name.lower() not in by_name:
            known = f"has {', '.join(map(printable, sizes))}" if sizes else "is not divided into train/, test/, ..."
            raise Mistake(f"data.split: there is no split {name!r}; {printable(place)} {known}")
    held = [by_name[name.lower()] for name in split.names]
    if split.train is not None:
        return [by_name[name.lower()] for name in split.train], held
    return [name for name in sizes if name not in held], held


def _split_notes(sizes: dict[str, int], split: Split | None, trained: list[str], held: list[str]) -> list[str]:
    shown = {name: f"{printable(name)}/ ({count} images)" for name, count in sizes.items()}
    if split is None and len(sizes) > 1:
        other = next((name for name in sizes if not name.lower().startswith("train")), min(sizes))
        remedy = f"data.split: {{holdout: [{printable(other)}]}} holds one out"
        return [f"trains on all splits, {' and '.join(shown.values())}; {remedy}"]
    left = [shown[name] for name in sizes if name not in (*trained, *held)]
    return [f"{' and '.join(left)}: neither trained on nor held out, as data.split says"] if left else []


def _picture_entry(root: Path, picture: Picture) -> Entry:
    read = functools.partial(_read_file, root.joinpath(*picture.parts), picture.label) if picture.there else _absent
    return Entry(picture.name, 1, read, picture.split)


def _absent() -> tuple[list[Any], list[int | None]]:
    raise FileNotFoundError("a label is given for it, and it is not there")


def _read_file(path: Path, label: int | None) -> tuple[list[Any], list[int | None]]:
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("it is no regular file")  # reading a fifo would wait for ever
    if status.st_size > MOST_BYTES:
        raise ValueError(f"it has {status.st_size} bytes; at most {MOST_BYTES} are read")
    return [tars.decode(path.read_bytes(), "any")], [label]


# shards


def _shards(pattern: str, config: Config) -> Source:
    entries, paths = [], _expand(pattern)
    for path in paths:
        with open(path, "rb") as file:
            for key, parts in tars.members(file, str(path)):
                entries.append(_entry(path, key, parts, file))
    if not entries:
        raise Mistake(f"data.source: the shards {pattern} hold no images")
    return Source(entries, None, files=paths)


def _entry(path: Path, key: str, parts: dict[str, tuple[int, int]], file: io.BufferedIOBase) -> Entry:
    images = [extension for extension in parts if extension in tars.TAR_IMAGES]
    if len(images) != 1:
        found = ", ".join(parts)
        raise Mistake(f"{path}: sample {key!r} must have one part of {', '.join(tars.TAR_IMAGES)}; it has {found}")
    count = 1
    if images == ["npy"]:
        file.seek(parts["npy"][0])
        with contextlib.suppress(ValueError):  # a damaged block counts as one image, and is quarantined when read
            shape = tars.npy_header(file, parts["npy"][1])[0]
            count = max(shape[0], 1) if len(shape) == 4 else 1
    return Entry(printable(f"{path.name}/{key}"), count, functools.partial(_read_sample, path, parts))


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
            raise Mistake(f"data.source: there is no shard {printable((missing or [name])[0])}")
        paths += [Path(path) for path in found]
    twice = next((path for path, count in collections.Counter(paths).items() if count > 1), None)
    if twice is not None:
        raise Mistake(f"data.source: {printable(str(twice))} is named twice by {pattern}")
    return paths


def _braces(pattern: str) -> Iterator[str]:
    # {a,b} and {000..012}, as a shell expands them
    match = re.search(r"\{([^{}]*)\}", pattern)
    if match is None:
        yield pattern
        return
    span = re.fullmatch(r"(\d{1,18})\.\.(\d{1,18})", match[1])
    words: Iterable[str] = match[1].split(",")
    if span:
        padded = any(len(number) > 1 and number.startswith("0") for number in span.groups())
        width = max(map(len, span.groups())) if padded else 0
        words = (str(number).zfill(width) for number in _span(int(span[1]), int(span[2])))
    for word in words:
        yield from _braces(pattern[: match.start()] + word + pattern[match.end() :])


def _span(first: int, last: int) -> range:
    return range(first, last + 1) if first <= last else range(first, last - 1, -1)


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


def _peak(picture: Any) -> int | None:
    # of 16 bits in colour Pillow has kept the upper 8
    if picture.mode.startswith("I;16"):
        return int(np.asarray(picture).max())
    return 257 * max(high for _, high in picture.convert("RGB").getextrema()) if picture.info.get(tars.DEEP) else None


def _white(bits: int | None, peak: int | None, picture: Any, name: str) -> int:
    # the value of white in a picture of 16 bits
    white = (1 << (bits or 16)) - 1
    if peak is not None and peak > white:
        raise Mistake(f"{name} is as bright as {peak}, and white is {white} by data.bits {bits}: raise data.bits")
    if peak is not None and white < FULL and not picture.mode.startswith("I;16"):
        raise Mistake(
            f"{name} is in colour, where 16 bits are read by the upper 8: set data.bits to 16 or save it with 8"
        )
    return white


def _flat(picture: Any, white: int = FULL) -> Any:
    # 8 bits, nothing transparent
    from PIL import Image

    if picture.mode.startswith("I;16"):  # Pillow's own conversion would clip at 255
        deep = np.asarray(picture).astype(np.uint32)
        return Image.fromarray(((deep * 255 + white // 2) // white).astype(np.uint8))
    if picture.has_transparency_data:
        paper = Image.new("RGBA", picture.size, "white")
        paper.alpha_composite(picture.convert("RGBA"))
        return paper.convert("RGB")
    return picture


def _square(picture: Any, size: int, filter: Filter) -> Any:
    from PIL import Image

    short = min(picture.size)
    width, height = (max(size, round(side * size / short)) for side in picture.size)
    if width * height > MOST_PIXELS:
        raise ValueError(f"it is {picture.width}x{picture.height}, too long for its width")
    if (width, height) != picture.size:
        picture = picture.resize((width, height), Image.Resampling[filter.upper()])
    left, top = (width - size) // 2, (height - size) // 2
    return picture.crop((left, top, left + size, top + size))
