"""Tars in webdataset's layout."""

import collections
import contextlib
import functools
import glob
import io
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from diffcore.core.errors import UserError
from diffcore.data import tars
from diffcore.data.sources import Entry, Kind, Source
from diffcore.data.split import Split
from diffcore.data.tars import printable


class Shards(Kind):
    """PATTERN is a path with `*`, `{a,b}` or `{000..012}`."""

    place = "PATTERN"

    def find(self, place: str, labels: str | None, split: Split | None) -> Source:
        entries, paths = [], _expand(place)
        for path in paths:
            with open(path, "rb") as file:
                for key, parts in tars.members(file, str(path)):
                    entries.append(_entry(path, key, parts, file))
        if not entries:
            raise UserError(f"data.source: the shards {place} hold no images")
        return Source(entries, None, files=paths)


def _entry(path: Path, key: str, parts: dict[str, tuple[int, int]], file: io.BufferedIOBase) -> Entry:
    images = [extension for extension in parts if extension in tars.TAR_IMAGES]
    if len(images) != 1:
        extensions = ", ".join(parts)
        raise UserError(
            f"{path}: sample {key!r} must have one part of {', '.join(tars.TAR_IMAGES)}; it has {extensions}"
        )
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
        matches = sorted(glob.glob(name, recursive=True)) if glob.has_magic(name) else [name]
        missing = [path for path in matches if not os.path.isfile(path)]
        if missing or not matches:
            raise UserError(f"data.source: there is no shard {printable((missing or [name])[0])}")
        paths += [Path(path) for path in matches]
    twice = next((path for path, count in collections.Counter(paths).items() if count > 1), None)
    if twice is not None:
        raise UserError(f"data.source: {printable(str(twice))} is named twice by {pattern}")
    return paths


def _braces(pattern: str) -> Iterator[str]:
    # {a,b} and {000..012}, as a shell expands them
    match = re.search(r"\{([^{}]*)\}", pattern)
    if match is None:
        yield pattern
        return
    span = re.fullmatch(r"(\d{1,18})\.\.(\d{1,18})", match[1])
    alternatives: Iterable[str] = match[1].split(",")
    if span:
        padded = any(len(number) > 1 and number.startswith("0") for number in span.groups())
        width = max(map(len, span.groups())) if padded else 0
        alternatives = (str(number).zfill(width) for number in _span(int(span[1]), int(span[2])))
    for alternative in alternatives:
        yield from _braces(pattern[: match.start()] + alternative + pattern[match.end() :])


def _span(first: int, last: int) -> range:
    return range(first, last + 1) if first <= last else range(first, last - 1, -1)
