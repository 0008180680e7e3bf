"""A folder that `save_to_disk` of Hugging Face's datasets wrote: tables in Arrow's format, with splits or without."""

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from diffcore.core import disk
from diffcore.core.errors import UserError
from diffcore.data import patterns, tables
from diffcore.data.sources import Entry, Kind, Source
from diffcore.data.split import Split
from diffcore.data.tars import printable

END = b"\xff\xff\xff\xff\0\0\0\0"
"""What a stream of Arrow ends with."""


class Arrow(Kind):
    """PATH may begin with `~`."""

    place = "PATH"
    label_columns = True
    named_splits = True
    dealt = True
    caption_names = tables.CAPTION_NAMES

    def find(self, place: str, labels: str | None, split: Split | None) -> Source:
        parts = list(_parts(Path(place).expanduser(), printable(place)))
        chosen = tables.columns(_table(parts[0][1]).schema, labels, printable(place), self.caption_name)
        rows: list[tuple[str | None, Path, int]] = []
        values: list[tuple[Any, Any]] = []
        for name, path in parts:
            table = _table(path)
            tables.check(table.schema.names, chosen, path)
            rows += [(name, path, row) for row in range(table.num_rows)]
            values += zip(_values(table, chosen.label), _values(table, chosen.caption))
        return tables.source(rows, values, _entry, self.captions_of, chosen, place, split, [path for _, path in parts])


def _values(table: Any, column: str | None) -> list[Any]:
    return table.column(column).to_pylist() if column else [None] * table.num_rows


def _entry(row: tuple[str | None, Path, int], image: str, label: int | None) -> Entry:
    split, path, number = row
    name = f"{split}/{path.name}/{number}" if split else f"{path.name}/{number}"
    return Entry(printable(name), 1, functools.partial(_read_row, path, number, image, label), split)


def _read_row(path: Path, row: int, image: str, label: int | None) -> tuple[list[Any], list[int | None]]:
    return [tables.picture(_table(path).column(image)[row].as_py())], [label]


def _parts(root: Path, place: str) -> Iterator[tuple[str | None, Path]]:
    # (split, file) of every table
    try:
        splits = _json(root / "dataset_dict.json")["splits"] if (root / "dataset_dict.json").is_file() else [None]
        for split in splits:
            folder = root / _plain(split) if split is not None else root
            state = _json(folder / "state.json")
            if state.get("_indices_files") or state.get("_indices_data_files"):
                raise ValueError("its rows are chosen by a table of indices: save it with flatten_indices()")
            for file in state["_data_files"]:
                yield split, folder / _plain(file["filename"])
    except FileNotFoundError as error:
        what = "no folder of save_to_disk, which has a state.json or a dataset_dict.json"
        raise UserError(f"data.source: {place} is {what} ({printable(str(error.filename))} is missing)") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"data.source: {place} cannot be read as what save_to_disk writes ({error})") from None


def _json(path: Path) -> Any:
    return disk.parse_json(path.read_bytes())


def _plain(name: Any) -> str:
    if type(name) is not str or Path(name).name != name or name == "..":
        raise ValueError(f"{name!r} is no name of a file beside it")
    return name


def _table(path: Path) -> Any:
    pyarrow = tables.library("pyarrow")
    try:
        return _mapped(path, patterns.stamp(path))
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise UserError(f"data.source: {path} cannot be read as a table ({' '.join(f'{error}'.split())})") from None


@functools.lru_cache(64)
def _mapped(path: Path, stamp: tuple[int, int]) -> Any:
    # not read, but mapped into memory
    with open(path, "rb") as file:
        file.seek(max(0, stamp[0] - len(END)))
        if file.read() != END:
            raise ValueError("it ends early")
    return tables.library("pyarrow.ipc").open_stream(tables.library("pyarrow").memory_map(str(path))).read_all()
