"""The report as one HTML document. What comes from names, labels or files is escaped where it enters."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from diffcore.metrics.estimate import Estimate
from diffcore.metrics.frontier import Frontier
from diffcore.metrics.point import Point, best_of, by_calls
from tasks.pictures.page.ancestry import ancestry
from tasks.pictures.page.content import REAL, SIGN, Line, Report, data, metrics, values, words, written
from tasks.pictures.page.strips import MOST, height, strips

HERE = Path(__file__).parent
SHORT = 12
"""Characters of a digest that are shown; the whole one is in the panel of its point."""

MARK = "<!-- sha256 of all above: "
NONE = '<span class="none">-</span>'


def html_of(report: Report) -> str:
    """The page. The same report gives the same text; it holds no date, and no seconds but those in `lines` and points."""
    pictures, count = strips(report.samples, _always(report.frontier))
    tall = max(map(height, report.samples.values()))
    drawn = data(report)
    text = Template((HERE / "page.html").read_text()).substitute(
        style=(HERE / "page.css").read_text() + f".strip img {{ height: {tall}px; }}",
        script=(HERE / "page.js").read_text(),
        data=_inline(drawn),
        title=escape(f"{report.frontier.recommended.point.name}: the frontier"),
        recommendation=_recommendation(report, pictures),
        chooser=_chooser(report.frontier),
        losable=report.frontier.losable,
        table=_table(report.frontier),
        samples=_samples(report, pictures, count),
        trainings=_trainings(drawn),
        ancestry=ancestry(report.lines),
        cost=_cost(report.lines),
        origin=_origin(report),
    )
    return text + _seal(text)


def is_whole(html: str) -> bool:
    """Whether a page is as `html_of` gave it."""
    text, mark, _ = html.rpartition(MARK)
    return bool(mark) and html == text + _seal(text)


def _seal(text: str) -> str:
    return f"{MARK}{hashlib.sha256(text.encode()).hexdigest()} -->\n"


def _inline(value: Any) -> str:
    """JSON that stands inside a script element, where only `</` and `<!--` could end it."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    return text.replace("<", "\\u003c")


def _always(frontier: Frontier) -> list[str]:
    """Points whose samples are shown whatever room there is."""
    front = [point.name for point in frontier.non_dominated()]
    return [frontier.recommended.point.name, *front, _best_teacher(frontier).name, REAL]


def _best_teacher(frontier: Frontier) -> Point:
    return best_of([point for point in frontier.points if point.method == "teacher"] or frontier.points)


def _recommendation(report: Report, pictures: Mapping[str, str]) -> str:
    chosen = report.frontier.recommended
    point = chosen.point
    warnings = "".join(f"<li>{escape(_sentence(warning))}</li>" for warning in chosen.warnings)
    numbers = [("network calls", f"{point.nfe:.4g}", "for one image")]
    numbers += [
        (words(name).label, written(name, each), _beside(name, report.frontier))
        for name, each in values(point).items()
        if words(name).core
    ]
    tiles = "".join(
        f'<div class="number"><dt>{escape(label)}</dt><dd>{escape(value)}</dd><dd class="beside">{escape(beside)}</dd></div>'
        for label, value, beside in numbers
    )
    rows = [
        (point.name, "recommended"),
        (_best_teacher(report.frontier).name, "the teacher's best"),
        (REAL, "images of the data"),
    ]
    return "".join(
        [
            f'<p class="eyebrow">Recommended</p><h1>{escape(point.name)}</h1>',
            f'<p class="reason">{escape(_sentence(chosen.reason))}</p>',
            f'<ul class="warnings" aria-label="Warnings">{warnings}</ul>' if warnings else "",
            f'<dl class="numbers">{tiles}</dl>',
            *(_strip(name, name + (f", {note}" if note else ""), pictures) for name, note in dict(rows).items()),
            f"<p class='commands'><code>{escape(f'distill promote {point.name}')}</code> "
            f"<code>{escape(f'distill sample {point.name} --out grid.png')}</code> "
            f"<code>{escape(f'distill export {point.checkpoint} FOLDER')}</code></p>",
        ]
    )


def _sentence(text: str) -> str:
    """With its full stop, and the sign that a terminal may not have."""
    return text.replace("+-", SIGN) + ("" if text.endswith(".") else ".")


def _beside(name: str, frontier: Frontier) -> str:
    """What a number is held against: the teacher's best point's."""
    teacher = values(_best_teacher(frontier))
    floor = frontier.floor.metrics
    if name in floor:
        return f"a perfect sampler: {written(name, floor[name])}"
    return f"the teacher's best: {written(name, teacher[name])}" if name in teacher else ""


def _strip(name: str, label: str, pictures: Mapping[str, str], hidden: str = "") -> str:
    """A row of samples with its label; nothing where there was no room for it."""
    if name not in pictures:
        return ""
    return (
        f'<figure class="strip"{hidden}><figcaption>{escape(label)}</figcaption>'
        f'<div class="scroll"><img alt="{escape(f"samples of {name}")}" src="{pictures[name]}"></div></figure>'
    )


def _chooser(frontier: Frontier) -> str:
    options = "".join(
        f'<option value="{escape(name)}">{escape(words(name).label)}</option>' for name in metrics(frontier)
    )
    return f'<select id="metric">{options}</select>'


def _table(frontier: Frontier) -> str:
    """A row for each point by rising calls; what was tried and was not the best of its kind, and further metrics, are
    marked, and the script hides them until they are wanted."""
    names = metrics(frontier)
    front = {point.name for point in frontier.non_dominated()}
    losses = frontier.losses()
    heads = [("point", "", ""), ("calls", "", "network calls for one image")]
    heads += [(words(name).label, "" if words(name).core else "more", words(name).what) for name in names]
    head = "".join(
        f'<th scope="col" class="{kind}" title="{escape(what)}"><button type="button">{escape(label)}</button></th>'
        for label, kind, what in heads
    )
    rows = "".join(_row(point, names, _marks(point, frontier, front, losses)) for point in by_calls(frontier.points))
    return f'<table id="points"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'


def _marks(point: Point, frontier: Frontier, front: set[str], losses: Mapping[str, Any]) -> str:
    marks = []
    if point.name == frontier.recommended.point.name:
        marks.append('<b class="mark chosen" title="recommended">recommended</b>')
    if point.name in front:
        marks.append('<b class="mark" title="on the frontier: none is as good with as few calls">*</b>')
    if point.name in losses:
        marks.append(f'<b class="mark lost" title="{escape(_sentence(str(losses[point.name])))}">~</b>')
    return " ".join(marks)


def _row(point: Point, names: Sequence[str], marks: str) -> str:
    numbers = values(point)
    link = f'<a href="#point={escape(point.name)}">{escape(point.name)}</a>'
    cells = [f'<th scope="row" data-value="{escape(point.name)}">{link} {marks}</th>']
    cells.append(f'<td data-value="{point.nfe!r}">{point.nfe:.4g}</td>')
    cells += [_cell(name, numbers.get(name)) for name in names]
    return f'<tr class="{"" if point.best else "try"}">{"".join(cells)}</tr>'


def _cell(name: str, estimate: Estimate | None) -> str:
    kind = "" if words(name).core else ' class="more"'
    if estimate is None:
        return f'<td data-value=""{kind}>{NONE}</td>'
    return f'<td data-value="{estimate.value!r}"{kind}>{escape(written(name, estimate))}</td>'


def _samples(report: Report, pictures: Mapping[str, str], count: int) -> str:
    """A row for each point by falling network calls, the real images last."""
    frontier = report.frontier
    front = {point.name for point in frontier.non_dominated()} | {frontier.recommended.point.name}
    rows = []
    for point in reversed(by_calls(frontier.points)):
        kind = "front" if point.name in front else "best" if point.best else "try"
        label = f"{point.name}, fd {written('fd', point.metrics['fd'])}"
        rows.append(_strip(point.name, label, pictures, f' data-kind="{kind}" data-name="{escape(point.name)}"'))
    own = "drawn images" if frontier.drawn else "real images"
    rows.append(_strip(REAL, own, pictures, f' data-kind="front" data-name="{REAL}"'))
    left = len(frontier.points) + 1 - len(pictures)
    notes = f"Each column is one noise throughout, except for the {own}; {count} of each point's first {MOST}."
    if left:
        notes += f" There was no room for {left} points: artifacts/samples has a picture of each."
    return f'<p class="note">{notes}</p>{"".join(rows)}'


def _trainings(drawn: Mapping[str, Any]) -> str:
    if not drawn["trainings"]:
        return '<p class="note">Nothing was trained here: there are no training curves.</p>'
    return '<div class="chart" id="losses"></div><div class="chart" id="looks" hidden></div>'


COSTS = {"iterations": "updates", "images": "images", "network_calls": "network calls", "seconds": "seconds"}


def _cost(lines: Sequence[Line]) -> str:
    head = "".join(f'<th scope="col">{each}</th>' for each in ("line", "starts from", "teacher", *COSTS.values()))
    rows = "".join(_cost_row(line) for line in lines)
    sums = [_number(_sum(line.cost.get(key) for line in lines)) for key in COSTS]
    total = '<tr class="total"><th scope="row">all</th><td></td><td></td>' + "".join(
        f"<td>{each}</td>" for each in sums
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}{total}</tr></tbody></table>"


def _cost_row(line: Line) -> str:
    above = "".join(f"<td>{escape(each) if each else NONE}</td>" for each in (line.init, line.teacher))
    numbers = "".join(f"<td>{_number(line.cost.get(key))}</td>" for key in COSTS)
    return f'<tr><th scope="row">{escape(line.name)}</th>{above}{numbers}</tr>'


def _number(value: float | None) -> str:
    if value is None:
        return NONE
    return f"{value:,.0f}" if value >= 100 or value == round(value) else f"{value:.1f}"


def _sum(values: Iterable[float | None]) -> float | None:
    numbers = [value for value in values if value is not None]
    return sum(numbers) if numbers else None


def _origin(report: Report) -> str:
    """What stands behind each number, and the digests of what they were made from."""
    frontier, about = report.frontier, report.frontier.about
    judge, floor = frontier.judge, frontier.floor
    real = "held-out real images" if floor.real == "held-out" else "random halves of the real images"
    facts = {
        "samples": f"{about['n']} for each point, from the same noise (seed {about['seed']}) throughout",
        "weights": f"{about['weights']}",
        "standard errors": "over the samples, not over trainings: of fd by how each sample moves it and, by "
        f"{about['resamples']} resamples, how pairs do; of kid by its closed form; of shares by their counts",
        "features": f"of a network trained on the same data, which tells {judge.outputs} {judge.task} apart with accuracy "
        f"{judge.accuracy:.3f} (chance {judge.chance:.3f}): comparable within this table, and no FID",
        "perfect sampler": f"expected of {floor.n[0]} samples against {floor.n[1]} real images, from {real} "
        f"({floor.compared[0]} against {floor.compared[1]})",
        "near enough": f"fd up to {report.bar.value:.3g}: publish.tolerance times the teacher's best, or the floor's",
        "judges": about.get("judges", ""),
        "real images": f"none: {frontier.drawn}; these are what is called real images here" if frontier.drawn else "",
    }
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in facts.items() if text)
    digests = {"data": about["data"], "feature network": about["features"]}
    digests |= {point.checkpoint: point.checkpoint_digest for point in frontier.points}
    marks = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td><code title="{escape(digest)}">{escape(digest[:SHORT])}</code></td></tr>'
        for name, digest in digests.items()
    )
    kinds = "".join(
        f"<dt>{escape(words(name).label)}</dt><dd>{escape(words(name).what)}</dd>"
        for name in metrics(frontier)
        if words(name).what
    )
    return (
        f'<dl class="facts">{rows}</dl><h3>Metrics</h3><dl class="facts">{kinds}</dl>'
        f'<h3>Digests</h3><div class="scroll"><table><tbody>{marks}</tbody></table></div>'
    )
