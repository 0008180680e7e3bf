"""Files that speak of images: StyleGAN's and EDM's dataset.json of their classes, Hugging Face's metadata.csv and .jsonl of
classes and captions.

Each speaks for the images beside it and below, named relative to it; no path is ever made of such a name. What could be
meant in two ways is refused, with the key that says which.
"""

import csv
import io
import json
import posixpath
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffcore.core import disk
from diffcore.core.errors import UserError
from diffcore.data.tars import MOST_CLASSES, few, printable

DATASET = "dataset.json"
METADATA = ("metadata.csv", "metadata.jsonl")
UNREAD = "metadata.parquet"
NAME = "file_name"
LABEL_WORDS = {"label", "labels", "class", "classes", "category", "categories", "target", "targets", "cls"}

Label = int | str | None


@dataclass(frozen=True)
class Annotations:
    """What the files of one folder say.

    files: which they are. labels: by the image's path below the folder; None where it has none. note: what a user should
    hear. silent: they say nothing of classes, so that folders may.
    """

    files: tuple[str, ...]
    labels: dict[str, Label]
    note: str
    silent: bool = False


def read(root: Path, others: Iterable[tuple[str, ...]], column: str | None) -> Annotations | None:
    """What the annotations among `others` (paths below `root`) say; None if there are none.

    column: of the metadata, the one that holds the labels; None for the only one that is called so. Raises UserError for what
    cannot be read, and for what can be read in two ways.
    """
    names = ["/".join(parts) for parts in others if parts[-1] in (DATASET, *METADATA, UNREAD)]
    datasets = [name for name in names if name.endswith(DATASET)] if column is None else []
    metadata = [name for name in names if not name.endswith(DATASET)]
    if datasets and metadata:
        raise _unclear(f"{datasets[0]} and {metadata[0]} both say what the images are", "remove one of them")
    if column is not None and not metadata:
        raise UserError(
            f"data.labels: {column!r} is a column of metadata.csv or metadata.jsonl, and there is none; say folders or none"
        )
    if datasets:
        return _datasets(root, datasets)
    return _metadata(root, metadata, column) if metadata else None


@dataclass(frozen=True)
class Captions:
    """What the files of one folder say in words.

    files: which they are. values: by the image's path below the folder, as they stand there. note: what a user should hear.
    """

    files: tuple[str, ...]
    values: dict[str, Any]
    note: str


def read_captions(root: Path, others: Iterable[tuple[str, ...]], column: str) -> Captions:
    """The captions in this column of the metadata among `others` (paths below `root`). Raises UserError for none."""
    names = ["/".join(parts) for parts in others if parts[-1] in (*METADATA, UNREAD)]
    if not names:
        fault = f"{column!r} is a column of metadata.csv or metadata.jsonl, and there is none"
        raise UserError(f"data.captions: {fault}: write one with the columns {NAME} and {column}, or set it to null")
    unread = next((name for name in names if name.endswith(UNREAD)), None)
    if unread is not None:
        raise UserError(f"data.captions: {printable(unread)} is not read: save it as metadata.csv")
    tables, files = _tables(root, names), _few(names)
    others = [key for key in _columns(tables) if key != NAME]
    if not any(tables.values()):
        raise UserError(f"data.captions: {files} has no rows: write one for each image, or set data.captions to null")
    if column not in others:
        raise UserError(f"data.captions: {files} has no column {column!r}; it has {few(others, 12) or 'no other'}")
    values: dict[str, Any] = {}
    for name, rows in tables.items():
        for image, row in _images(name, rows):
            path, value = _path(name, image), row.get(column)
            if path in values and values[path] != value:  # what is no number is unlike itself
                raise UserError(f"data.captions: {printable(path)} has two captions in {files}: mend it")
            values[path] = value
    return Captions(tuple(names), values, f"captions are the column {printable(column)} of {files}")


def _unclear(fault: str, remedy: str) -> UserError:
    return UserError(f"data.source: {fault}: {remedy}, or set data.labels to folders or to none")


def _datasets(root: Path, names: list[str]) -> Annotations:
    labels: dict[str, Label] = {}
    for name in names:
        for image, label in dataset_labels(text(root, name), name):
            _put(labels, name, image, label)
    files = _few(names)
    if not labels:
        return Annotations(tuple(names), {}, f"{files} says that the images have no labels, so they have none")
    return Annotations(tuple(names), labels, f"classes are those of {files}, not folders")


def dataset_labels(text: str, name: str) -> Iterator[tuple[str, int]]:
    """(image, label) of all that a dataset.json labels; none where its `labels` is null. Raises UserError."""
    content = _json(text, name)
    if not isinstance(content, dict) or "labels" not in content:
        raise _unclear(f"{name} has no `labels`, so it is not StyleGAN's", "remove it")
    labels = content["labels"]
    pairs = isinstance(labels, list) and all(isinstance(p, list) and len(p) == 2 and type(p[0]) is str for p in labels)
    if labels is not None and not pairs:
        raise _unclear(f"the `labels` of {name} are no pairs [name, label]", "mend it")
    for image, label in labels or []:
        if type(label) is not int:
            raise _unclear(f"{name}: the label of {printable(image)} is {_excerpt(label)}, no whole number", "mend it")
        yield image, label


def _metadata(root: Path, names: list[str], column: str | None) -> Annotations:
    unread = [name for name in names if name.endswith(UNREAD)]
    if unread:
        raise _unclear(f"{unread[0]} is not read", "save it as metadata.csv")
    tables = _tables(root, names)
    columns, files = _columns(tables), _few(names)
    if NAME not in columns:
        return Annotations(tuple(names), {}, f"{files} has no column {NAME}, so nothing is read from it", silent=True)
    chosen = _chosen(columns, column, files)
    if chosen is None:
        having = ", ".join(printable(each) for each in columns)
        return Annotations(tuple(names), {}, f"{files} has no column of labels (it has {having})", silent=True)
    return Annotations(tuple(names), _labels(tables, chosen), f"classes are the column {printable(chosen)} of {files}")


def _tables(root: Path, names: list[str]) -> dict[str, list[dict[str, Any]]]:
    return {name: list(rows(text(root, name), name)) for name in names}


def _columns(tables: dict[str, list[dict[str, Any]]]) -> list[str]:
    return list(dict.fromkeys(key for rows in tables.values() for row in rows for key in row))


def _images(name: str, rows: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, row in enumerate(rows, 1):
        image = row.get(NAME)
        if not isinstance(image, str) or not image:
            where = "mend it, or write texts without images into a file that data.prompts names"
            raise UserError(f"data.source: row {number} of {name} has no {NAME}: {where}")
        yield image, row


def _chosen(columns: list[str], column: str | None, files: str) -> str | None:
    return column_of_labels([name for name in columns if name != NAME], column, files)


def column_of_labels(others: list[str], column: str | None, files: str) -> str | None:
    """Which of the columns `others` of `files` holds the labels: `column`, else the only one that is called so, else None.

    Raises UserError if there is no such column, or several.
    """
    if column is not None:
        if column not in others:
            having = ", ".join(printable(each) for each in others)
            raise UserError(f"data.labels: {files} has no column {column!r}; it has {having}")
        return column
    likely = [name for name in others if LABEL_WORDS & set(re.split(r"[\W_]+", name.lower()))]
    if len(likely) > 1:
        having = ", ".join(printable(each) for each in likely)
        raise UserError(
            f"data.source: {files} has several columns of labels ({having}): set data.labels to one of them"
        )
    return likely[0] if likely else None


def _labels(tables: dict[str, list[dict[str, Any]]], column: str) -> dict[str, Label]:
    labels: dict[str, Label] = {}
    for name, rows in tables.items():
        for image, row in _images(name, rows):
            _put(labels, name, image, _label(row.get(column), name, image, column))
    if any(name.endswith(".csv") for name in tables):
        labels = _as_numbers(labels)
        for image, label in labels.items():  # what was text until now
            _check_range(_few(list(tables)), image, label)
    kinds = {type(label) for label in labels.values()} - {type(None)}
    if len(kinds) > 1:
        raise UserError(f"data.source: the column {printable(column)} mixes class names and numbers: use one of them")
    return labels


def _label(value: Any, name: str, image: str, column: str) -> Label:
    if type(value) is str:
        return value.strip() or None
    if value is None or type(value) is int:
        return value
    of = f"the {printable(column)} of {printable(image)}"
    raise UserError(f"data.source: {name}: {of} is {_excerpt(value)}, neither a class name nor a whole number: mend it")


def _as_numbers(labels: dict[str, Label]) -> dict[str, Label]:
    # a table of text alone cannot say which it means; 1.0 is what a table with gaps makes of 1
    texts = [label for label in labels.values() if isinstance(label, str)]
    if not all(re.fullmatch(r"-?\d{1,9}(\.0+)?", label, re.ASCII) for label in texts):
        return labels
    return {image: int(label.split(".")[0]) if isinstance(label, str) else label for image, label in labels.items()}


def _put(labels: dict[str, Label], name: str, image: str, label: Label) -> None:
    path = _path(name, image)
    if labels.setdefault(path, label) != label:
        raise UserError(f"data.source: {printable(path)} has two labels, {labels[path]} and {label} in {name}: mend it")
    _check_range(name, path, label)


def _path(name: str, image: str) -> str:
    # below the folder, of an image that the file `name` calls so
    return posixpath.normpath(posixpath.join(posixpath.dirname(name), image.replace("\\", "/")))


def _check_range(name: str, path: str, label: Label) -> None:
    if type(label) is int and not 0 <= label < MOST_CLASSES:
        raise UserError(
            f"data.source: {name}: {printable(path)} has label {label}, not in 0 .. {MOST_CLASSES - 1}: mend it"
        )


def rows(content: str, name: str) -> Iterator[dict[str, Any]]:
    """Those of a table, .csv or .jsonl, of this content. Raises UserError for what is none."""
    yield from _csv_rows(content, name) if name.endswith(".csv") else _json_rows(content, name)


def _csv_rows(text: str, name: str) -> Iterator[dict[str, Any]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = next(reader, [])
        if len(set(header)) < len(header):
            raise UserError(f"data.source: {name} has two columns of one name: mend it")
        for row in filter(None, reader):
            if len(row) != len(header):
                counts = f"{len(row)} fields, the first line {len(header)}"
                raise UserError(f"data.source: line {reader.line_num} of {name} has {counts}: mend it")
            yield dict(zip(header, row))
    except csv.Error as error:
        raise UserError(f"data.source: line {reader.line_num} of {name} is not CSV ({error}): mend it") from None


def _json_rows(text: str, name: str) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            row = _json(line, f"line {number} of {name}")
            if not isinstance(row, dict):
                raise UserError(f"data.source: line {number} of {name} is no JSON object: mend it")
            yield row


def text(root: Path, name: str) -> str:
    """The content of a file, which is in UTF-8. Raises UserError for one that cannot be read."""
    try:
        if not (root / name).is_file():
            raise OSError("it is no regular file")
        return (root / name).read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"data.source: {name} is not UTF-8 (its byte {error.start}): save it as UTF-8") from None
    except OSError as error:
        raise UserError(f"data.source: {name} cannot be read ({error.strerror or error}): mend or remove it") from None


def _json(text: str, place: str) -> Any:
    try:
        return disk.parse_json(text)
    except ValueError as error:
        raise UserError(f"data.source: {place} is not JSON ({error}): mend or remove it") from None


def _excerpt(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 40 else f"{text[:36]} ..."


def _few(names: list[str]) -> str:
    return printable(names[0]) + (f" and {len(names) - 1} more" if len(names) > 1 else "")
