"""Tars in webdataset's layout, on this machine's disks or remote."""

import contextlib
import functools
import io
import itertools
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from diffcore.core import disk
from diffcore.core.errors import UserError
from diffcore.data import captions, patterns, remote, tars
from diffcore.data.cache import Remote
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
Captions = Sequence[Any] | None
"""Of the images of a sample, as `Entry.captions`."""


class Shards(Kind):
    """PATTERN is a path or an http(s) or s3 address with `*`, `{a,b}` or `{000..012}`."""

    place = "PATTERN"
    remote = True
    caption_names = (r"txt|json(\.[^.]+)+", "txt or json.KEY")

    def find(self, place: str, labels: str | None, split: Split | None) -> Source:
        entries, files, versions, unread = [], [], {}, 0
        for file, samples, texts in self._remote(place) if remote.is_remote(place) else self._local(place):
            entries += [_entry(file, sample, of) for sample, of in zip(samples, texts, strict=True)]
            unread += sum(not parts.keys().isdisjoint(tars.TAR_CAPTIONS) for _, parts, _ in samples)
            if isinstance(file, Remote):
                versions[str(file)] = file.sha256
            else:
                files.append(file)
        if not entries:
            raise UserError(f"data.source: the shards {remote.public(place)} hold no images")
        notes = []
        if self.captions is None and unread:
            notes.append(
                f"{unread} of {len(entries)} samples have captions, which are not read: data.captions: txt reads them"
            )
        return Source(entries, None, files=files, versions=versions, notes=notes)

    def _local(self, pattern: str) -> Iterator[tuple[Path, list[Sample], list[Captions]]]:
        for path in patterns.paths(pattern, "shard"):
            with open(path, "rb") as file:
                samples = _samples(file, str(path))
                yield path, samples, self._captions(file, str(path), samples)

    def _captions(self, file: BinaryIO, name: str, samples: list[Sample]) -> list[Captions]:
        if self.captions is None:
            return [None] * len(samples)
        if captions.is_template(self.captions):
            return [_labels(file, sample) for sample in samples]
        return [_texts(file, sample, self.captions, name) for sample in samples]

    def _remote(self, pattern: str) -> Iterator[tuple[Remote, list[Sample], list[Captions]]]:
        if self.cache is None:
            raise ValueError("remote shards need a cache")
        look_up, total, told = self._look_up, 0, time.monotonic()
        for number, (file, samples, texts) in enumerate(in_order(look_up, _addresses(pattern), FETCHES), 1):
            total += file.bytes
            if time.monotonic() - told > SECONDS_BETWEEN:
                told = time.monotonic()
                self.tell(f"{number} remote shards looked up, {total / 2**30:.3g} GB, up to {file}")
            yield file, samples, texts
        self.tell(f"{number} remote shards, {total / 2**30:.3g} GB")

    def _look_up(self, url: str) -> tuple[Remote, list[Sample], list[Captions]]:
        file, samples = self.cache.look_up(url, functools.partial(_samples, name=remote.public(url)))
        samples = [
            (key, {word: (offset, size) for word, (offset, size) in parts.items()}, n) for key, parts, n in samples
        ]
        if self.captions is None:
            return file, samples, [None] * len(samples)
        with file.open() as opened:
            return file, samples, self._captions(opened, str(file), samples)


def _samples(file: BinaryIO, name: str) -> list[Sample]:
    return [(key, parts, _count(key, parts, file, name)) for key, parts in tars.members(file, name)]


def _count(key: str, parts: Parts, file: BinaryIO, name: str) -> int:
    images = [extension for extension in parts if extension in tars.TAR_IMAGES]
    if len(images) != 1:
        known, extensions = ", ".join(tars.TAR_IMAGES), ", ".join(parts)
        raise UserError(f"{name}: sample {key!r} must have one part of {known}; it has {extensions}")
    shape = _shape(file, parts) if images == ["npy"] else None  # a damaged block counts as one image
    return max(shape[0], 1) if shape is not None and len(shape) == 4 else 1


def _shape(file: BinaryIO, parts: Parts) -> tuple[int, ...] | None:
    # of the block in a sample; None if it is damaged, and will be quarantined when it is read
    file.seek(parts["npy"][0])
    with contextlib.suppress(ValueError):
        return tars.npy_header(file, parts["npy"][1])[0]
    return None


def _labels(file: BinaryIO, sample: Sample) -> Captions:
    _, parts, count = sample
    with contextlib.suppress(ValueError):  # where it has none that can be read, it is quarantined when read
        return tars.labels_of({word: _content(file, parts[word]) for word in parts if word in tars.TAR_LABELS}, count)
    return None


def _texts(file: BinaryIO, sample: Sample, named: str, name: str) -> Captions:
    key, parts, count = sample
    word, *keys = named.split(".")
    if "npy" in parts and _shape(file, parts) is None:
        return None
    try:
        if word == "txt" and "captions.json" in parts:  # as shards of ours have them
            return captions.decode(_content(file, parts["captions.json"]), count)
        if word not in parts:
            return [None] * count
        content = _content(file, parts[word])
        value: Any = disk.parse_json(content) if keys else content
    except ValueError as error:
        raise UserError(
            f"data.captions: {named} of {printable(f'{name}/{key}')} cannot be read ({error}): mend it"
        ) from None
    for each in keys:
        value = value.get(each) if isinstance(value, dict) else None
    return [value] * count


def _content(file: BinaryIO, place: tuple[int, int]) -> bytes:
    file.seek(place[0])
    return file.read(place[1])


def _entry(file: Path | Remote, sample: Sample, captions: Captions) -> Entry:
    key, parts, count = sample
    return Entry(
        printable(f"{file.name}/{key}"), count, functools.partial(_read_sample, file, parts), captions=captions
    )


def _read_sample(file: Path | Remote, parts: Parts) -> tuple[Sequence[Any], Sequence[int | None]]:
    contents = {}
    with _opened(file) as opened:
        for extension, place in parts.items():
            if extension not in tars.TAR_CAPTIONS:
                contents[extension] = _content(opened, place)
    pictures = tars.pictures_of(contents)
    return pictures, tars.labels_of(contents, len(pictures))


def _opened(file: Path | Remote) -> io.BufferedIOBase:
    return file.open() if isinstance(file, Remote) else open(file, "rb")


def _addresses(pattern: str) -> Iterator[str]:
    return patterns.each_once(itertools.chain.from_iterable(map(remote.expand, patterns.braces(pattern))), pattern)
