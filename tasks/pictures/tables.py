"""The table of a training's curve: points of its loss, and of a watched training looks at what it draws."""

import csv
import io

Row = dict[str, float]

LOSS, LOOK = "loss", "fd"
"""The column that a point has, and the one that a look has."""


def points(text: str) -> list[Row]:
    """The rows that have a loss, without what looks saw."""
    rows = [row for row in _rows(text) if row[LOSS]]
    seen = _of_looks(text)
    return [{key: float(value) for key, value in row.items() if key not in seen} for row in rows]


def looks(text: str) -> list[Row]:
    """The rows of looks: the update, the images until then and what was seen; none of a training that was not watched."""
    seen = ("step", "images", *_of_looks(text))
    return [{key: float(row[key]) for key in seen if row[key]} for row in _rows(text) if row.get(LOOK)]


def means(rows: list[Row], most: int) -> list[Row]:
    """At most so many rows: each the mean of as many neighbours, at the step of the last of them."""
    width = -(-len(rows) // most) or 1
    cells = [rows[first : first + width] for first in range(0, len(rows), width)]
    return [
        {key: sum(row[key] for row in cell) / len(cell) for key in cell[0]} | {"step": cell[-1]["step"]}
        for cell in cells
    ]


def _rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def _of_looks(text: str) -> tuple[str, ...]:
    """The columns from the first one of looks on."""
    columns = tuple(next(csv.reader(io.StringIO(text)), ()))
    return columns[columns.index(LOOK) :] if LOOK in columns else ()
