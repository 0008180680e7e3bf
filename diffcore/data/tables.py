"""Columns of images and labels in Arrow's tables, as Hugging Face's datasets have them.

Pictures are decoded by Pillow as all others are, from the bytes in the table: no path that a row names is opened, and no
Python of a table is run.
"""

import contextlib
import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from diffcore.core import disk
from diffcore.core.errors import UserError
from diffcore.data import annotations, tars
from diffcore.data.folders import NONE
from diffcore.data.sources import Entry, Source
from diffcore.data.split import Split, divide
from diffcore.data.tars import MOST_CLASSES, few, printable

Row = TypeVar("Row")
"""Where a row lies, as a kind of file needs it."""

IMAGE_WORDS = ("image", "img")
"""Which of several columns of images is taken."""


CAPTION_NAMES = (".+", "a column of texts")
"""What `data.captions` may name of a table."""


@dataclass(frozen=True)
class Columns:
    """image: the column of images. label, caption: those of labels and captions, or None. names: of its classes by label,
    where a table says."""

    image: str
    label: str | None
    names: tuple[str, ...] | None = None
    caption: str | None = None


def library(name: str) -> Any:
    """A module of pyarrow. Raises UserError naming the extra that is missing."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(
            "data.source: arrow and parquet need pyarrow, which is not installed: pip install 'distill[arrow]'"
        ) from None


def columns(schema: Any, labels: str | None, place: str, caption: str | None = None) -> Columns:
    """Which columns of a table are read. labels: data.labels. caption: the name of that of captions. Raises UserError where
    that is not clear."""
    types = library("pyarrow").types
    images = [field.name for field in schema if _is_image(field.type, types)]
    named = [name for name in images if name.lower() in IMAGE_WORDS] if len(images) > 1 else images
    if len(named) != 1:
        has = ", ".join(map(printable, images or schema.names))
        fault = (
            f"several columns of images ({has}), and none is called image" if images else f"none of images, of {has}"
        )
        raise UserError(f"data.source: {place} has {fault}: write it with one of bytes or of Hugging Face's Image")
    others = [field.name for field in schema if field.name != named[0] and _is_label(field.type, types)]
    label = None
    if labels != NONE:
        label = annotations.column_of_labels(others, labels, place)
    caption = caption and _of_texts(schema, caption, place, types)
    return Columns(named[0], label, _class_names(schema, label), caption)


def check(names: Sequence[str], chosen: Columns, path: Path) -> None:
    """Raises UserError where a file of several has not the columns that were chosen by the first."""
    for column in filter(None, (chosen.image, chosen.label, chosen.caption)):
        if names.count(column) != 1:
            raise UserError(f"data.source: {path} has no column {printable(column)}, as the first file has")


def source(
    rows: Sequence[Row],
    values: Sequence[tuple[Any, Any]],
    entry: Callable[[Row, str, int | None], Entry],
    captions_of: Callable[[Sequence[int | None], Sequence[Any] | None], Sequence[Any] | None],
    chosen: Columns,
    place: str,
    split: Split | None,
    files: list[Path],
) -> Source:
    """What tables hold. values: of the columns of labels and captions, for each row; entry: makes one of a row, the column of
    its image and its label; captions_of: as of a kind of source. Raises UserError for no rows and for what is no label."""
    if not rows:
        raise UserError(f"data.source: {printable(place)} has no rows")
    labels, classes = numbered([label for label, _ in values], chosen, printable(place))
    entries = [
        replace(entry(row, chosen.image, label), captions=captions_of([label], [text] if chosen.caption else None))
        for row, label, (_, text) in zip(rows, labels, values)
    ]
    kept, out, notes = divide(entries, split, place)
    held = Source(out, classes) if out else None
    return Source(kept, classes, files=files, notes=notes, held=held)


def picture(value: Any) -> Any:
    """The picture in one cell. Raises ValueError for none, and what Pillow raises."""
    content = value.get("bytes") if isinstance(value, dict) else value
    if content is None:
        path = value.get("path") if isinstance(value, dict) else None
        raise ValueError("its bytes are not in the table, only a path" if path else "there is no image in this row")
    return tars.decode(content, "any")


def numbered(values: Sequence[Any], chosen: Columns, place: str) -> tuple[list[int | None], list[str] | None]:
    """The labels of all rows as whole numbers, and the names of the classes. Raises UserError for what is no label."""
    if chosen.label is None:
        return [None] * len(values), None
    if any(isinstance(value, str) for value in values):
        names = sorted({value for value in values if value is not None})
        number = {None: None} | {name: label for label, name in enumerate(names)}
        return [number[value] for value in values], [printable(name) for name in names]
    most = min(len(chosen.names), MOST_CLASSES) if chosen.names else MOST_CLASSES
    for row, value in enumerate(values):
        if value is not None and not 0 <= value < most:
            fault = f"row {row} has {printable(chosen.label)} {value}, not in 0 .. {most - 1}"
            raise UserError(f"data.source: {place}: {fault}: mend it, or set data.labels to none")
    return list(values), [printable(name) for name in chosen.names] if chosen.names else None


def _of_texts(schema: Any, column: str, place: str, types: Any) -> str:
    if column not in schema.names:
        raise UserError(f"data.captions: {place} has no column {column!r}; it has {few(schema.names, 12)}")
    if _is_image(schema.field(column).type, types):
        raise UserError(f"data.captions: {printable(column)} of {place} is a column of bytes: name one of texts")
    return column


def _is_image(kind: Any, types: Any) -> bool:
    if types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and _is_binary(kind.field("bytes").type, types)
    return _is_binary(kind, types)


def _is_binary(kind: Any, types: Any) -> bool:
    return types.is_binary(kind) or types.is_large_binary(kind)


def _is_label(kind: Any, types: Any) -> bool:
    return types.is_integer(kind) or types.is_string(kind) or types.is_large_string(kind)


def _class_names(schema: Any, label: str | None) -> tuple[str, ...] | None:
    # what Hugging Face's datasets write into the metadata of a table: {"info": {"features": {NAME: {"names": [...]}}}}
    content = (schema.metadata or {}).get(b"huggingface", b"{}")
    with contextlib.suppress(ValueError, KeyError, TypeError):
        names = disk.parse_json(content)["info"]["features"][label]["names"]
        if names and all(type(name) is str for name in names):
            return tuple(names)
    return None
