"""Which images of a source are taken: with or without labels and captions, what is held out and left out, and how many."""

import fnmatch
import functools
import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from diffcore.core.errors import UserError
from diffcore.core.rng import generator
from diffcore.data import captioning, sources
from diffcore.data.cache import Cache
from diffcore.data.config import Config
from diffcore.data.folders import NONE
from diffcore.data.sources import Entry, Source
from diffcore.data.tars import few

FEW_LETTERS = 60  # of a caption in a message


def find(
    config: Config,
    cache: Cache | None = None,
    tell: Callable[[str], None] = lambda line: None,
    drawn: Path | None = None,
) -> Source:
    """Looks up what `config.source` names, without decoding it. Raises UserError when there is nothing to read.

    cache: for a source that is remote. tell: hears how far a long look-up is. drawn: the folder of what a teacher drew.
    """
    kind, place = sources.parse(config.source)
    source = kind(cache, tell, config.captions, drawn).find(place, config.labels, config.split)
    if config.labels == NONE:
        source = _unlabelled(source)
    if config.captions is not None:
        source = captioning.written(source, config.captions)
    if config.split is not None and config.split.share:
        source = _drawn(source, config.split.share)
    if config.unseen is not None:  # after the draw, which then holds out the same images
        source = _unseen(source, config.unseen)
    return _finished(source, config.limit, dealt=kind.dealt)


def _finished(source: Source, limit: int | None, dealt: bool) -> Source:
    if not source.entries:
        raise UserError("data.split leaves no image to train on")
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
        raise UserError(f"data.split.holdout: no image of {source.images} is held out by a share of {share}; raise it")
    return replace(source, entries=kept, held=replace(source, entries=held, notes=[], others=[]))


def _lot(name: str) -> float:
    return int.from_bytes(hashlib.sha256(f"holdout/{name}".encode()).digest()[:8], "big") / 2**64


def _rows_of(entry: Entry, rows: list[int]) -> list[Entry]:
    if not rows or len(rows) == entry.images:
        return [entry] * bool(rows)
    captions = entry.captions and [entry.captions[row] for row in rows]
    return [replace(entry, images=len(rows), read=functools.partial(_read_rows, entry.read, rows), captions=captions)]


def _read_rows(read: Callable[[], tuple[Sequence[Any], Any]], rows: list[int]) -> tuple[list[Any], list[int | None]]:
    pictures, labels = read()
    return [pictures[row] for row in rows], [labels[row] for row in rows]


def _first(entries: list[Entry], limit: int | None) -> list[Entry]:
    if limit is None:
        return entries
    kept = []
    for entry in entries:
        kept.append(replace(entry, images=min(entry.images, limit), captions=entry.captions and entry.captions[:limit]))
        limit -= kept[-1].images
        if not limit:
            break
    return kept


def _unseen(source: Source, patterns: Sequence[str]) -> Source:
    # without the images whose captions match one of the patterns, of those held out too
    parts = [source] + [source.held] * (source.held is not None)
    texts = sorted({text for part in parts for entry in part.entries for text in entry.captions or ()})
    out = set().union(*(_matching(texts, pattern) for pattern in patterns))
    left = [_without(part, out) for part in parts]
    if not all(part.entries for part in left):
        which = "of those held out" if left[0].entries else "over"
        raise UserError(f"data.unseen leaves no image {which}: name fewer captions")
    images = sum(part.images for part in parts) - sum(part.images for part in left)
    notes = [*source.notes, f"left out by data.unseen: {images} images of {len(out)} captions"]
    return replace(left[0], held=left[1] if len(left) > 1 else None, notes=notes)


def _matching(texts: Sequence[str], pattern: str) -> list[str]:
    matching = [text for text in texts if fnmatch.fnmatchcase(text, pattern)]
    if not matching:
        example = few(text[:FEW_LETTERS] for text in texts)
        raise UserError(f"data.unseen: no caption matches {pattern!r}; there are {len(texts)} ({example})")
    return matching


def _without(source: Source, out: set[str]) -> Source:
    entries: list[Entry] = []
    for entry in source.entries:
        captions = entry.captions
        entries += _rows_of(entry, [row for row in range(entry.images) if captions is None or captions[row] not in out])
    return replace(source, entries=entries, unseen=tuple(sorted(out)))
