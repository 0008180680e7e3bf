"""Captions of the images of a source."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from diffcore.core.errors import UserError
from diffcore.data import captions
from diffcore.data.sources import Entry, Source
from diffcore.data.tars import few, printable

Texts = tuple[str, ...] | None


def written(source: Source, named: str) -> Source:
    """The source with a text for each image, what is held out too. named: data.captions.

    Raises UserError for what is no text, and where images have none.
    """
    shared: dict[str, str] = {}  # one text in memory for all images that have it
    parts = [source] + [source.held] * (source.held is not None)
    parts = [_with_texts(part, named, source.classes, shared) for part in parts]
    _check_all([entry for part in parts for entry in part.entries], named)
    return replace(parts[0], held=parts[1] if len(parts) > 1 else None)


def _with_texts(source: Source, named: str, classes: Sequence[str] | None, shared: dict[str, str]) -> Source:
    entries = []
    for entry in source.entries:
        texts = _texts(entry, named, classes)
        entries.append(replace(entry, captions=texts and tuple(shared.setdefault(each, each) for each in texts)))
    return replace(source, entries=entries)


def _texts(entry: Entry, named: str, classes: Sequence[str] | None) -> Texts:
    if entry.captions is None:
        return None
    values: Iterable[Any] = entry.captions
    if captions.is_template(named):
        values = (value if value is None else named.replace(captions.CLASS, _name(value, classes)) for value in values)
    return tuple(captions.text(value, name) for value, name in zip(values, _names(entry), strict=True))


def _name(label: int, classes: Sequence[str] | None) -> str:
    return classes[label] if classes else str(label)


def _names(entry: Entry) -> list[str]:
    return [entry.name] if entry.images == 1 else [f"{entry.name}/{row}" for row in range(entry.images)]


def _check_all(entries: Sequence[Entry], named: str) -> None:
    without = (name for entry in entries for name, each in zip(_names(entry), entry.captions or ()) if not each)
    missing, total = list(without), sum(entry.images for entry in entries)
    if not missing:
        return
    what, remedy = f"caption in {printable(named)}", "give each one, or set data.captions to null for none"
    if captions.is_template(named):
        what, remedy = "class", "label all, or set data.captions to null for none"
    raise UserError(f"data.captions: {len(missing)} of {total} images have no {what} ({few(missing)}): {remedy}")
