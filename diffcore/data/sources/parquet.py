"""Parquet files with a column of images, as Hugging Face's hub has them; `train-*`, `test-*`, ... are splits."""

import functools
import re
from pathlib import Path
from typing import Any

from diffcore.core.errors import UserError
from diffcore.data import patterns, tables
from diffcore.data.folders import SPLITS
from diffcore.data.sources import Entry, Kind, Source
from diffcore.data.split import Split
from diffcore.data.tars import printable


class Parquet(Kind):
    """PATTERN is a path with `*`, `{a,b}` or `{000..012}`. Rows come in the order of the files, which is cheap to read."""

    place = "PATTERN"
    label_columns = True
    named_splits = True
    caption_names = tables.CAPTION_NAMES

    def find(self, place: str, labels: str | None, split: Split | None) -> Source:
        paths = patterns.paths(place, "parquet file")
        chosen: tables.Columns | None = None
        rows: list[tuple[Path, int, int]] = []
        values: list[tuple[Any, Any]] = []
        for path in paths:
            file = _opened(path)
            chosen = chosen or tables.columns(file.schema_arrow, labels, printable(place), self.caption_name)
            tables.check(file.schema_arrow.names, chosen, path)
            values += zip(_values(file, chosen.label, path), _values(file, chosen.caption, path))
            sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
            rows += [(path, group, row) for group, size in enumerate(sizes) for row in range(size)]
        return tables.source(rows, values, _entry, self.captions_of, chosen, place, split, paths)


def _entry(row: tuple[Path, int, int], image: str, label: int | None) -> Entry:
    path, group, number = row
    read = functools.partial(_read_row, path, group, number, image, label)
    return Entry(printable(f"{path.name}/{group}/{number}"), 1, read, _split(path))


def _split(path: Path) -> str | None:
    word = re.split(r"[-_.]", path.name)[0]
    return word if word.lower() in SPLITS else None


def _values(file: Any, column: str | None, path: Path) -> list[Any]:
    if column is None:
        return [None] * file.metadata.num_rows
    try:
        return file.read(columns=[column]).column(0).to_pylist()
    except (OSError, ValueError, tables.library("pyarrow").ArrowException) as error:
        raise _unreadable(path, error) from None


def _read_row(path: Path, group: int, row: int, image: str, label: int | None) -> tuple[list[Any], list[int | None]]:
    return [tables.picture(_group(path, patterns.stamp(path), group, image)[row].as_py())], [label]


@functools.lru_cache(4)
def _group(path: Path, stamp: tuple[int, int], group: int, image: str) -> Any:
    # rows are read in order, so that each group is read once
    return _opened(path).read_row_group(group, columns=[image]).column(0)


def _opened(path: Path) -> Any:
    pyarrow, parquet = tables.library("pyarrow"), tables.library("pyarrow.parquet")
    try:
        return parquet.ParquetFile(path)
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> UserError:
    return UserError(f"data.source: {path} cannot be read as parquet ({' '.join(f'{error}'.split())})")
