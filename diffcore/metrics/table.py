"""Points as a table for a terminal."""

from collections.abc import Collection

from diffcore.metrics import order
from diffcore.metrics.point import Point

WIDTH = 110
"""Columns of the printed table."""

_NAME = 1
"""The column of names."""


def lines(points: list[Point], front: Collection[Point], lost: Collection[str] = ()) -> list[str]:
    """A line for the headings and one for each point, `*` before those of the front, `~` before those whose names are in
    `lost`; at most WIDTH wide.

    Of the metrics, those that are meant for it and that any of the points has; the precision where one is not float32.
    """
    metrics = [name for name in order.COLUMNS if name not in order.CSV_ONLY and any(name in p.metrics for p in points)]
    headings = ["", "name", "calls", *metrics, "ms/image"]
    marks = ["*" * (point in front) + "~" * (point.name in lost) for point in points]
    rows = [headings, *(_row(point, mark, metrics) for point, mark in zip(points, marks))]
    if any(point.precision != "float32" for point in points):
        rows = [[*row, last] for row, last in zip(rows, ["precision", *(point.precision for point in points)])]
    return _aligned(rows)


def _row(point: Point, mark: str, metrics: list[str]) -> list[str]:
    numbers = [point.metrics[name].plus_minus() if name in point.metrics else "-" for name in metrics]
    return [mark, point.name, f"{point.nfe:.4g}", *numbers, f"{point.ms_per_image:.3g}"]


def _aligned(rows: list[list[str]]) -> list[str]:
    """Columns two blanks apart, names to the left and numbers to the right; a name that does not fit loses its middle."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows)]
    widths[_NAME] = min(widths[_NAME], WIDTH - 2 * (len(widths) - 1) - sum(widths) + widths[_NAME])
    return ["  ".join(_cell(row, k, width) for k, width in enumerate(widths)).rstrip() for row in rows]


def _cell(row: list[str], column: int, width: int) -> str:
    return _shortened(row[column], width).ljust(width) if column == _NAME else row[column].rjust(width)


def _shortened(name: str, width: int) -> str:
    if len(name) <= width:
        return name
    head = (width - 2) // 2
    return f"{name[:head]}..{name[len(name) - (width - 2 - head) :]}"
