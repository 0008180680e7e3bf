"""Tars in webdataset's layout, on this machine's disks or remote."""

import contextlib
import functools
import io
import itertools
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from diffcore.core.errors import UserError
from diffcore.data import patterns, remote, tars
from diffcore.data.cache import Cache, Remote
from diffcore.data.sources import Entry, Kind, Source
from diffcore.data.split import Split
from diffcore.data.tars import printable
from diffcore.data.workers import in_order

FETCHES = 4  # remote shards that are fetched at a time
SECONDS_BETWEEN = 10.0  # of two lines that tell how far that is

Parts = dict[str, tuple[int, int]]
"""By extension, where a part of a sample lies in its tar: (offset, bytes)."""
Sample = tuple[str, Parts, int]
"""Key, parts, images."""


class Shards(Kind):
    """PATTERN is a path or an http(s) or s3 address with `*`, `{a,b}` or `{000..012}`."""

    place = "PATTERN"
    remote = True

    def find(self, place: str, labels: str | None, split: Split | None) -> Source:
        entries, files, versions = [], [], {}
        for file, samples in self._remote(place) if remote.is_remote(place) else _local(place):
            entries += [_entry(file, sample) for sample in samples]
            if isinstance(file, Remote):
                versions[str(file)] = file.sha256
            else:
                files.append(file)
        if not entries:
            raise UserError(f"data.source: the shards {remote.public(place)} hold no images")
        return Source(entries, None, files=files, versions=versions)

    def _remote(self, pattern: str) -> Iterator[tuple[Remote, list[Sample]]]:
        if self.cache is None:
            raise ValueError("remote shards need a cache")
        look_up, total, told = functools.partial(_look_up, self.cache), 0, time.monotonic()
        for number, (file, samples) in enumerate(in_order(look_up, _addresses(pattern), FETCHES), 1):
            total += file.bytes
            if time.monotonic() - told > SECONDS_BETWEEN:
                told = time.monotonic()
                self.tell(f"{number} remote shards looked up, {total / 2**30:.3g} GB, up to {file}")
            yield file, samples
        self.tell(f"{number} remote shards, {total / 2**30:.3g} GB")


def _local(pattern: str) -> Iterator[tuple[Path, list[Sample]]]:
    for path in patterns.paths(pattern, "shard"):
        with open(path, "rb") as file:
            yield path, _samples(file, str(path))


def _look_up(cache: Cache, url: str) -> tuple[Remote, list[Sample]]:
    file, samples = cache.look_up(url, functools.partial(_samples, name=remote.public(url)))
    return file, [
        (key, {word: (offset, size) for word, (offset, size) in parts.items()}, n) for key, parts, n in samples
    ]


def _samples(file: BinaryIO, name: str) -> list[Sample]:
    return [(key, parts, _count(key, parts, file, name)) for key, parts in tars.members(file, name)]


def _count(key: str, parts: Parts, file: BinaryIO, name: str) -> int:
    images = [extension for extension in parts if extension in tars.TAR_IMAGES]
    if len(images) != 1:
        known, extensions = ", ".join(tars.TAR_IMAGES), ", ".join(parts)
        raise UserError(f"{name}: sample {key!r} must have one part of {known}; it has {extensions}")
    if images == ["npy"]:
        file.seek(parts["npy"][0])
        with contextlib.suppress(ValueError):  # a damaged block counts as one image, and is quarantined when read
            shape = tars.npy_header(file, parts["npy"][1])[0]
            return max(shape[0], 1) if len(shape) == 4 else 1
    return 1


def _entry(file: Path | Remote, sample: Sample) -> Entry:
    key, parts, count = sample
    return Entry(printable(f"{file.name}/{key}"), count, functools.partial(_read_sample, file, parts))


def _read_sample(file: Path | Remote, parts: Parts) -> tuple[Sequence[Any], Sequence[int | None]]:
    contents = {}
    with _opened(file) as opened:
        for extension, (offset, size) in parts.items():
            opened.seek(offset)
            contents[extension] = opened.read(size)
    pictures = tars.pictures_of(contents)
    return pictures, tars.labels_of(contents, len(pictures))


def _opened(file: Path | Remote) -> io.BufferedIOBase:
    return file.open() if isinstance(file, Remote) else open(file, "rb")


def _addresses(pattern: str) -> Iterator[str]:
    return patterns.each_once(itertools.chain.from_iterable(map(remote.expand, patterns.braces(pattern))), pattern)
