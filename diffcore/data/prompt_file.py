"""Prompts alone, texts without images: a line of a .txt each, or a column of a .csv, .jsonl or .parquet."""

import contextlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from diffcore.core.errors import UserError
from diffcore.data import annotations, captions, tables
from diffcore.data.tars import few, printable

FORM = r".*\.(txt|(csv|jsonl|parquet)(:.+)?)"
"""What may be named: a file, and for a table after a colon the column."""

COLUMNS = ("prompt", "caption", "text")
"""Of several columns the one that is called so is taken."""


CAPTIONS = "data.captions"
"""The key that names a file, unless it is said."""


def is_file(named: str | None) -> bool:
    """Whether this names a file of prompts."""
    return named is not None and not captions.is_template(named) and re.fullmatch(FORM, named) is not None


def read(named: str, key: str = CAPTIONS) -> list[str]:
    """The prompts of the file that `key` of params.yaml names, white space folded as in captions; a UserError for none."""
    with _said_of(key):
        return _read(named)


def _read(named: str) -> list[str]:
    name, column = re.fullmatch(r"(.*\.(?:txt|csv|jsonl|parquet))(?::(.+))?", named).groups()
    path = Path(name).expanduser()
    if not path.is_file():
        raise UserError(f"data.captions: there is no file {path}; name one with a prompt on each line")
    values = _lines(path) if path.suffix == ".txt" else _column(path, column)
    prompts = [captions.text(value, f"{path.name}/{number}") for number, value in enumerate(values, 1)]
    if not prompts:
        raise UserError(f"data.captions: {path} holds no prompt; write one on each line")
    if empty := [str(number) for number, prompt in enumerate(prompts, 1) if not prompt]:
        raise UserError(f"data.captions: {path} has nothing in row {few(empty)}; write a prompt, or take the row out")
    return prompts


def _lines(path: Path) -> list[str]:
    return text.split("\n") if (text := _text(path).rstrip()) else []


def _text(path: Path) -> str:
    return annotations.text(path.parent, path.name)


@contextlib.contextmanager
def _said_of(key: str) -> Iterator[None]:
    """What is wrong with a file of annotations or captions is wrong with one that this key names."""
    try:
        yield
    except UserError as error:
        raise UserError(re.sub(r"^data\.(source|captions):", f"{key}:", str(error))) from None


def _column(path: Path, column: str | None) -> Sequence[Any]:
    if path.suffix == ".parquet":
        return _parquet(path, column)
    rows = list(annotations.rows(_text(path), path.name))
    chosen = _chosen(list(dict.fromkeys(key for row in rows for key in row)), column, path)
    return [row.get(chosen) for row in rows]


def _parquet(path: Path, column: str | None) -> Sequence[Any]:
    pyarrow, parquet = tables.library("pyarrow"), tables.library("pyarrow.parquet")
    try:
        file = parquet.ParquetFile(path)
        return file.read(columns=[_chosen(file.schema_arrow.names, column, path)]).column(0).to_pylist()
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise UserError(f"data.captions: {path} cannot be read as parquet ({' '.join(f'{error}'.split())})") from None


def _chosen(names: Sequence[str], column: str | None, path: Path) -> str:
    if column is not None and column in names:
        return column
    likely = [name for name in names if name.lower() in COLUMNS] if len(names) > 1 else list(names)
    if column is None and len(likely) == 1:
        return likely[0]
    fault = f"has no column {column!r}" if column else "does not say which column holds the prompts"
    has = few(map(printable, names), 12) or "none"
    raise UserError(f"data.captions: {path} {fault}; it has {has}: name one, as in {path.name}:COLUMN")
