"""A folder of images: which files those are, which split each belongs to, and of what class it is."""

import collections
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from diffcore.core.errors import UserError
from diffcore.data import annotations, tars
from diffcore.data.tars import few, printable

SPLITS = {"train", "training", "test", "testing", "val", "valid", "validation", "dev"}
OTHER_IMAGES = {
    *(
        "heic",
        "heif",
        "hif",
        "avif",
        "jxl",
        "jp2",
        "j2k",
        "jpx",
        "jfif",
        "svg",
        "psd",
        "eps",
        "exr",
        "hdr",
        "tga",
        "ico",
        "pcx",
    ),
    *("ppm", "pgm", "pbm", "pnm", "dds", "dcm", "cr2", "cr3", "nef", "arw", "dng", "orf", "raf", "rw2", "apng"),
}
"""What images are called that are not read, or not by every Pillow: their owner should hear of it."""

FOLDERS, NONE = "folders", "none"
"""What data.labels may say besides a column: take the folders' names, or no labels."""

Parts = tuple[str, ...]


@dataclass(frozen=True)
class Picture:
    """An image file: its path below the folder, its split and its class; None where there are none.

    there: False for one that only an annotation speaks of. caption: as an annotation has it.
    """

    parts: Parts
    split: str | None
    label: int | None
    there: bool = True
    caption: Any = None

    @property
    def name(self) -> str:
        return printable("/".join(self.parts))


@dataclass(frozen=True)
class Contents:
    """All that a folder holds.

    pictures: in the order of their paths. classes: their names by label; None where there are none. others: files that are no
    images to us, and hidden folders. notes: how it was understood, where that could surprise.
    """

    pictures: list[Picture]
    classes: list[str] | None
    others: list[Parts]
    notes: list[str]
    files: list[Path]


def read(
    root: Path, place: str, labels: str | None, named: Iterable[str] = (), captions: str | None = None
) -> Contents:
    """What lies below `root`, without opening an image.

    place: what the user calls it. labels: data.labels. named: folders that are splits besides SPLITS, in small letters.
    captions: the column of the metadata that has them; None for none.
    Raises UserError if there are no images or if it is not clear what they are.
    """
    walk = _walk(root, place)
    marks = annotations.read(root, walk.others, _column(labels)) if labels not in (FOLDERS, NONE) else None
    if not walk.images:
        raise UserError(f"data.source: no images in {place} ({_instead(walk)}); known are {', '.join(tars.formats())}")
    depth, split = _levels(walk.images, SPLITS | set(named), labels == FOLDERS)
    splits = [parts[split] if split is not None else None for parts in walk.images]
    notes = _notes(place, walk, depth, split)
    used = set()
    if marks is not None:
        notes.append(marks.note)
        used = {tuple(name.split("/")) for name in marks.files}
    if marks is not None and not marks.silent:
        pictures, classes = _annotated(walk.images, splits, marks)
    elif labels == NONE:
        pictures, classes = [Picture(parts, of, None) for parts, of in zip(walk.images, splits)], None
    else:
        pictures, classes = _by_folder(walk.images, splits, depth, place)
        notes += _without_images(walk, depth) + _inner_splits(walk.images, depth) if classes else []
    if captions is not None:
        words = annotations.read_captions(root, walk.others, captions)
        notes.append(words.note)
        used |= {tuple(name.split("/")) for name in words.files}
        pictures = _captioned(pictures, words.values)
    files = [root.joinpath(*parts) for parts in (*walk.images, *sorted(used))]
    return Contents(pictures, classes, [parts for parts in walk.others if parts not in used], notes, files)


def splits_of(pictures: Iterable[Picture]) -> set[str]:
    """The names of the splits that there are."""
    return {picture.split for picture in pictures if picture.split is not None}


def _column(labels: str | None) -> str | None:
    return None if labels in (None, FOLDERS, NONE) else labels


@dataclass(frozen=True)
class _Walk:
    images: list[Parts]
    others: list[Parts]
    folders: list[Parts]


def _walk(root: Path, place: str) -> _Walk:
    # links to folders are followed, each folder once
    def failed(error: OSError) -> None:
        raise UserError(f"data.source: {printable(str(error.filename))} cannot be read ({error.strerror})")

    images, others, below, seen = [], [], [], set()
    for here, folders, names in os.walk(root, onerror=failed, followlinks=True):
        status = os.stat(here)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        parts = Path(here).relative_to(root).parts
        others += [(*parts, name, "") for name in folders if name.startswith(".")]
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        below += [(*parts, name) for name in folders]
        for name in names:
            (images if _is_image(name) else others).append((*parts, name))
    return _Walk(sorted(images), sorted(others), sorted(below))


def _is_image(name: str) -> bool:
    return not name.startswith(".") and extension(name) in tars.formats()


def extension(name: str) -> str:
    """What follows the last point of a file's name, in small letters."""
    return name.rpartition(".")[2].lower() if "." in name else ""


def _instead(walk: _Walk) -> str:
    return f"only {kinds(walk.others)}" if walk.others else "it is empty"


def _levels(images: list[Parts], splits: set[str], keep: bool) -> tuple[int, int | None]:
    # (at which level of the paths the classes lie, at which the splits), past folders that only wrap all the others;
    # keep: the last folder of a path is a class, even if it is the only one
    depth, split = _unwrapped(images, 0, splits, keep), None
    if _are_splits(images, depth, splits):
        split, depth = depth, _unwrapped(images, depth + 1, set(), keep)
    return depth, split


def _unwrapped(images: list[Parts], depth: int, splits: set[str], keep: bool) -> int:
    least = 2 if keep else 1
    while (
        all(len(parts) > depth + least for parts in images)
        and len({parts[depth] for parts in images}) == 1
        and not _are_splits(images, depth, splits)
    ):
        depth += 1
    return depth


def _are_splits(images: list[Parts], depth: int, splits: set[str]) -> bool:
    return all(len(parts) > depth + 1 and parts[depth].lower() in splits for parts in images)


def _notes(place: str, walk: _Walk, depth: int, split: int | None) -> list[str]:
    first, notes = walk.images[0], []
    wrapper = "/".join(first[: depth if split is None else split])
    if wrapper:
        notes.append(f"{place} holds only {printable(wrapper)}/, so what is in that was read")
    inner = "/".join(first[split + 1 : depth]) if split is not None else ""
    if inner:
        notes.append(f"each split holds only {printable(inner)}/, so what is in that was read")
    return notes


def _annotated(
    images: list[Parts], splits: list[str | None], marks: annotations.Annotations
) -> tuple[list[Picture], list[str] | None]:
    labels = marks.labels
    file = printable(marks.files[0])
    if not labels:
        return [Picture(parts, of, None) for parts, of in zip(images, splits)], None
    image_labels = [labels.get("/".join(parts)) for parts in images]
    missing = ["/".join(parts) for parts, label in zip(images, image_labels) if label is None]
    if missing and len(missing) < len(images):
        fault = f"{len(missing)} of {len(images)} images have no label in {file} ({few(missing)})"
        raise UserError(f"data.source: {fault}: label all, or set data.labels to folders or to none")
    if missing:
        fault = f"{file} labels none of the images that are there ({few(missing)}; it names {few(labels)})"
        raise UserError(f"data.source: {fault}: mend it, or set data.labels to folders or to none")
    classes = sorted({label for label in labels.values() if isinstance(label, str)}) or None
    number = (
        {name: label for label, name in enumerate(classes)} if classes else {label: label for label in image_labels}
    )
    pictures = [Picture(parts, of, number[label]) for parts, of, label in zip(images, splits, image_labels)]
    absent = sorted(set(labels) - {"/".join(parts) for parts in images})
    pictures += [Picture((name,), None, None, there=False) for name in absent]
    return pictures, classes and [printable(name) for name in classes]


def _captioned(pictures: list[Picture], values: dict[str, Any]) -> list[Picture]:
    # with their captions, and with those that have one and are not there
    absent = sorted(set(values) - {"/".join(picture.parts) for picture in pictures})
    pictures = pictures + [Picture((name,), None, None, there=False) for name in absent]
    return [replace(picture, caption=values.get("/".join(picture.parts))) for picture in pictures]


def _by_folder(
    images: list[Parts], splits: list[str | None], depth: int, place: str
) -> tuple[list[Picture], list[str] | None]:
    names = [parts[depth] if len(parts) > depth + 1 else None for parts in images]
    classes = sorted({name for name in names if name is not None})
    if classes and None in names:
        stray = printable("/".join(images[names.index(None)]))
        fault = f"{place} has class folders ({printable(classes[0])}, ...) and also {stray}"
        raise UserError(f"data.source: {fault}: give it one too, or set data.labels to none")
    labels = {None: None} | {name: label for label, name in enumerate(classes)}
    pictures = [Picture(parts, of, labels[name]) for parts, of, name in zip(images, splits, names)]
    return pictures, [printable(name) for name in classes] or None


def _without_images(walk: _Walk, depth: int) -> list[str]:
    full = {parts[: depth + 1] for parts in walk.images}
    empty = ["/".join(parts) for parts in walk.folders if len(parts) == depth + 1 and parts not in full]
    return [f"no images in {few(empty)}: no class is made of {'it' if len(empty) == 1 else 'these'}"] if empty else []


def _inner_splits(images: list[Parts], depth: int) -> list[str]:
    if not _are_splits(images, depth + 1, SPLITS):
        return []
    names = ", ".join(f"{printable(name)}/" for name in sorted({parts[depth + 1] for parts in images}))
    return [f"{names} within the class folders are read together; data.split needs them at the top"]


def kinds(others: list[Parts]) -> str:
    """Files by what their names end with, the most frequent first: "3 .txt (a.txt, b.txt, ...), 1 .heic (c.heic)"."""
    by_kind = collections.defaultdict(list)
    for parts in others:
        kind = "hidden" if parts[-1] == "" or parts[-1].startswith(".") else f".{extension(parts[-1])}"
        by_kind["without extension" if kind == "." else kind].append("/".join(parts))
    ranked = sorted(by_kind.items(), key=lambda item: (-len(item[1]), item[0]))
    return ", ".join(f"{len(names)} {printable(kind)} ({few(names)})" for kind, names in ranked)
