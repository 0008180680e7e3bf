"""Who starts from whom and who teaches whom, as a drawing of boxes and lines."""

from collections.abc import Sequence
from html import escape

from tasks.pictures.page.content import Line

LETTER, HIGH, GAP, APART, PAD = 7.3, 46, 56, 14, 10
"""Pixels: a letter's width in the page's font for code, a box's height, between columns, between rows, and around all."""

LONGEST = 26
"""Letters of a name that are drawn; the whole name is the box's title."""

Place = tuple[float, float]


def ancestry(lines: Sequence[Line]) -> str:
    """An SVG: a column for each generation, whole lines from `init`, dashed ones from a teacher that is another."""
    depth = _depths(lines)
    columns: list[list[Line]] = [[] for _ in range(max(depth.values()) + 1)]
    for line in _by_family(lines):
        columns[depth[line.name]].append(line)
    wide = [max(_width(line) for line in column) for column in columns]
    left = [PAD + sum(wide[:k]) + GAP * k for k in range(len(columns))]
    rows = _rows(lines, depth)
    place = {line.name: (left[depth[line.name]], PAD + rows[line.name] * (HIGH + APART)) for line in lines}
    width = left[-1] + wide[-1] + PAD
    height = PAD * 2 + (max(rows.values()) + 1) * (HIGH + APART) - APART
    size = {line.name: wide[depth[line.name]] for line in lines}
    parts = [_links(line, place, size) for line in lines] + [_box(line, place[line.name], size) for line in lines]
    label = "Who starts from whom: " + "; ".join(_sentence(line) for line in lines)
    return (
        f'<svg class="ancestry" role="img" aria-label="{escape(label)}" viewBox="0 0 {width:.0f} {height:.0f}" '
        f'width="{width:.0f}" height="{height:.0f}">{"".join(parts)}</svg>'
    )


def _depths(lines: Sequence[Line]) -> dict[str, int]:
    """How many starts each is away from one that begins from nothing."""
    init = {line.name: line.init for line in lines}
    depths = {}
    for name in init:
        above, count = init[name], 0
        while above is not None:
            above, count = init[above], count + 1
        depths[name] = count
    return depths


def _by_family(lines: Sequence[Line]) -> list[Line]:
    """Each line, and at once all that comes from it."""
    order: list[Line] = []

    def add(line: Line) -> None:
        order.append(line)
        for child in lines:
            if child.init == line.name:
                add(child)

    for root in (line for line in lines if line.init is None):
        add(root)
    return order


def _rows(lines: Sequence[Line], depth: dict[str, int]) -> dict[str, int]:
    """The first that starts from a line stands in its row, each other one in a row of its own below."""
    rows: dict[str, int] = {}
    last, before = -1, -1
    for line in _by_family(lines):
        if depth[line.name] <= before or last < 0:
            last += 1
        rows[line.name] = last
        before = depth[line.name]
    return rows


def _width(line: Line) -> float:
    return 20 + LETTER * max(len(_short(line.name)), len(_short(line.method)))


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def _box(line: Line, place: Place, size: dict[str, float]) -> str:
    x, y = place
    return (
        f'<g><title>{escape(_sentence(line))}</title><rect x="{x:.1f}" y="{y:.1f}" width="{size[line.name]:.1f}" '
        f'height="{HIGH}" rx="6"/><text x="{x + 10:.1f}" y="{y + 19:.1f}" class="name">{escape(_short(line.name))}</text>'
        f'<text x="{x + 10:.1f}" y="{y + 36:.1f}">{escape(_short(line.method))}</text></g>'
    )


def _links(line: Line, place: dict[str, Place], size: dict[str, float]) -> str:
    if line.init is None:
        return ""
    parts = [_link(line.init, line.name, "init", place, size)]
    if line.teacher not in (None, line.init):
        parts.append(_link(line.teacher, line.name, "teacher", place, size))
    return "".join(parts)


def _link(above: str, name: str, kind: str, place: dict[str, Place], size: dict[str, float]) -> str:
    shift = 8 if kind == "teacher" else 0
    x1, y1 = place[above][0] + size[above], place[above][1] + HIGH / 2 + shift
    x2, y2 = place[name][0], place[name][1] + HIGH / 2 + shift
    bend = GAP / 2
    return (
        f'<path class="{kind}" d="M{x1:.1f} {y1:.1f}C{x1 + bend:.1f} {y1:.1f} {x2 - bend:.1f} {y2:.1f} '
        f'{x2:.1f} {y2:.1f}"/>'
    )


def _sentence(line: Line) -> str:
    if line.init is None:
        return f"{line.name} begins from nothing ({line.method})"
    taught = "" if line.teacher in (None, line.init) else f", taught by {line.teacher}"
    return f"{line.name} starts from {line.init}{taught} ({line.method})"
