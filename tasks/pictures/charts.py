"""The frontier and the training curves, drawn by matplotlib. The same content gives the same bytes."""

import io
import itertools
import math
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diffcore.core import disk
from diffcore.metrics.estimate import Estimate
from diffcore.metrics.frontier import Frontier
from diffcore.metrics.point import Point
from tasks.pictures import tables

# Okabe and Ito's palette, which people with any common colour blindness can tell apart: strong colours for students,
# calm ones for the teacher's samplers. Markers differ too, so that no line depends on its colour alone.
STUDENT = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#000000")
TEACHER = ("#5B6770", "#56B4E9", "#8C7AA9", "#A8A06B", "#9AA5AD", "#3F7F93")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "h")
INK, FAINT, WARNING = "#22282D", "#8A949B", "#B3261E"
SIGN = r" $\pm$ "  # of a standard error
ASIDE = 1.1  # times its network calls: where the whisker over trainings of a point stands
MARGIN = 8  # pixels between a legend and the picture's edge


def by_curve(points: Iterable[Point]) -> dict[str, list[Point]]:
    """The points of each curve, by rising network calls; a curve has one point for each number of calls.

    Of several tries for one point of a curve only the best is shown. Where two checkpoints have the same number of calls
    on one curve (two students of one method), the checkpoint's name splits it.
    """
    best = [point for point in points if point.best]
    groups: dict[str, list[Point]] = {}
    for name, alike in _grouped(best, lambda p: p.curve).items():
        split = len({p.nfe for p in alike}) < len(alike)
        groups |= _grouped(alike, lambda p: f"{p.curve} {p.checkpoint}") if split else {name: alike}
    return {name: sorted(group, key=lambda p: p.nfe) for name, group in groups.items()}


def frontier(frontier: Frontier, path: Path) -> None:
    """The frontier and its recommended point as a 1200 x 800 PNG: Frechet distance against network calls, both logarithmic.

    Bars are one standard error either side; of a line that was trained several times a thick pale bar beside them is one
    standard deviation over trainings about their mean. Students have filled markers and thick lines, the teacher's samplers
    open ones and thin dashes; the grey steps are the best that so many calls can buy.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, NullLocator

    figure = Figure(figsize=(12, 8), dpi=100, facecolor="white")
    axes = figure.add_axes((0.075, 0.13, 0.63, 0.74))
    groups = by_curve(frontier.points)
    axes.set(
        xscale="log", yscale="log", xlabel="network calls for one image", ylabel="Frechet distance (lower is better)"
    )
    _frame(axes)
    low, high = _span([p.nfe for p in frontier.points], 1.35)
    axes.set_xlim(low, high)
    _y_axis(axes, [*_bars(frontier.points), frontier.floor.fd])
    ticks = [2**k for k in range(16) if low <= 2**k <= high]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticklabels([str(tick) for tick in ticks])
    _front(axes, frontier.non_dominated(), high)
    _floor(axes, frontier.floor.metrics["fd"])
    for (name, group), style in zip(groups.items(), _styles(groups)):
        _line(axes, name, group, style)
    _trainings(axes, groups)
    _lost(axes, frontier)
    _recommended(axes, frontier)
    _legend(axes)
    _captions(figure, frontier)
    _save(figure, path)


def curves(csvs: Mapping[str, str], path: Path, seconds: Mapping[str, Mapping[int, float]] | None = None) -> None:
    """Training losses against images seen, one line for each csv's text (columns step, images, loss), 1200 x 800.

    The pale line is the loss as logged, the strong one its running mean over a fortieth of the run. What has columns but no
    rows, a teacher that was trained elsewhere, has no line. Where trainings were watched, what they draw has axes of its own
    below: Frechet distance with its standard error against updates and, where `seconds` says them by name and update,
    against the seconds of training until then.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 8), dpi=100, facecolor="white")
    looks = {name: rows for name, text in csvs.items() if (rows := tables.looks(text))}
    axes = figure.add_axes((0.085, 0.52, 0.74, 0.34) if looks else (0.085, 0.09, 0.74, 0.77))
    axes.set(xlabel="images seen", ylabel="loss", xscale="log", yscale="log")
    _plain_ticks(axes.yaxis)
    _frame(axes)
    for k, (name, text) in enumerate(csvs.items()):
        images, loss = _columns(text)
        if not len(loss):
            continue
        colour = _colour(k)
        axes.plot(images, loss, color=colour, alpha=0.18, linewidth=0.8)
        axes.plot(
            images,
            _running_mean(loss),
            color=colour,
            linewidth=2,
            linestyle=_dashes(k),
            label=name,
        )
    if axes.lines:
        _legend(axes)
    if looks:
        _distances(figure, looks, list(csvs), seconds or {})
    figure.text(0.085, 0.94, "Training losses", fontsize=18, fontweight="bold", color=INK)
    note = "Each student has its own target: a lower curve is not a better student. The frontier compares them."
    figure.text(0.085, 0.902, note, fontsize=12, color=FAINT)
    _save(figure, path)


def _colour(k: int) -> str:
    """Of the k-th line."""
    return (*STUDENT, *TEACHER)[k % 12]


def _dashes(k: int) -> str:
    return ("-", "--")[k // 12 % 2]


def _distances(
    figure: Any,
    looks: dict[str, list[tables.Row]],
    names: Sequence[str],
    seconds: Mapping[str, Mapping[int, float]],
) -> None:
    """Against updates and, where they are there for every look of a line, against seconds too."""
    timed = {
        name: [{**row, "seconds": seconds[name][int(row["step"])]} for row in rows]
        for name, rows in looks.items()
        if all(seconds.get(name, {}).get(int(row["step"]), 0.0) > 0 for row in rows)
    }
    left = figure.add_axes((0.085, 0.08, 0.33 if timed else 0.74, 0.34))
    _looks(left, looks, names, "step", "updates")
    left.set_ylabel("Frechet distance of samples")
    if timed:
        right = figure.add_axes((0.495, 0.08, 0.33, 0.34))
        _looks(right, timed, names, "seconds", "seconds of training, looks left out")
        right.set_ylim(left.get_ylim())
        _legend(right)
    else:
        _legend(left)


def _looks(axes: Any, looks: dict[str, list[tables.Row]], names: Sequence[str], key: str, label: str) -> None:
    """The distance of what watched trainings draw, in the colours of their losses, with a band of one standard error. key: of
    a row, the place on the horizontal axis."""
    axes.set(xlabel=label, xscale="log", yscale="log")
    _plain_ticks(axes.xaxis)
    _frame(axes)
    for name, rows in looks.items():
        k = names.index(name)
        step, fd, error = np.array([(row[key], row["fd"], row["fd_se"]) for row in rows]).T
        # as of the frontier's bars: a band that reaches zero would end nowhere on a logarithmic axis
        low = np.maximum(fd - error, fd / 10)
        axes.fill_between(step, low, fd + error, color=_colour(k), alpha=0.12, linewidth=0)
        axes.plot(step, fd, color=_colour(k), linestyle=_dashes(k), marker="o", markersize=4, linewidth=2, label=name)
    _y_axis(axes, [row["fd"] for rows in looks.values() for row in rows])


def _grouped(points: Iterable[Point], name: Callable[[Point], str]) -> dict[str, list[Point]]:
    groups: dict[str, list[Point]] = {}
    for point in points:
        groups.setdefault(name(point), []).append(point)
    return groups


def _frame(axes: Any) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(FAINT)
    axes.tick_params(colors=INK, labelsize=12, which="both")
    axes.xaxis.label.set(size=13, color=INK)
    axes.yaxis.label.set(size=13, color=INK)
    axes.grid(True, which="major", color="#E6E9EB", linewidth=0.9)
    axes.set_axisbelow(True)


def _legend(axes: Any) -> None:
    """Right of the axes, each label in as many lines as it needs to end within the picture."""
    legend = axes.legend(
        loc="upper left", bbox_to_anchor=(1.015, 1.0), frameon=False, fontsize=11, labelspacing=0.75, labelcolor=INK
    )
    axes.figure.draw_without_rendering()  # which puts the labels in their places
    right = axes.figure.bbox.width - MARGIN
    for text in legend.get_texts():
        label, box = text.get_text(), text.get_window_extent()
        letters = int(len(label) * min(1, (right - box.x0) / box.width)) + 1
        while letters > 4 and text.get_window_extent().x1 > right:
            letters -= 1
            text.set_text(textwrap.fill(label, letters))


def _bars(points: Iterable[Point]) -> list[float]:
    return [
        end
        for p in points
        for each in (p.metrics["fd"], *([p.spread] if p.spread else []))
        for end in (each.value, each.value + each.se, each.value - each.se)
    ]


def _span(values: list[float], factor: float) -> tuple[float, float]:
    """Limits of a logarithmic axis with room at both ends; values that are not positive have no place on one."""
    positive = [value for value in values if value > 0] or [1.0]
    return min(positive) / factor, max(positive) * factor


def _y_axis(axes: Any, values: list[float]) -> None:
    axes.set_ylim(*_span(values, 1.5))
    _plain_ticks(axes.yaxis)


def _plain_ticks(axis: Any) -> None:
    """0.1 0.2 0.5 1 2 5 along a logarithmic axis instead of powers of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5), numticks=20))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _styles(groups: dict[str, list[Point]]) -> list[dict[str, Any]]:
    """Colour and marker of each curve, by its place in the table, so that they stay the same from picture to picture."""
    styles, counts = [], {True: 0, False: 0}
    for k, group in enumerate(groups.values()):
        teacher = group[0].method == "teacher"
        palette = TEACHER if teacher else STUDENT
        colour = palette[counts[teacher] % len(palette)]
        counts[teacher] += 1
        look = (
            {"linewidth": 1.5, "linestyle": (0, (4, 2)), "markerfacecolor": "white"} if teacher else {"linewidth": 2.6}
        )
        styles.append(
            {"color": colour, "marker": MARKERS[k % len(MARKERS)], "markersize": 8, "zorder": 3 if teacher else 4}
            | look
        )
    return styles


def colours(points: Iterable[Point]) -> dict[str, str]:
    """By curve, that of the picture."""
    groups = by_curve(points)
    return {name: style["color"] for name, style in zip(groups, _styles(groups))}


def _line(axes: Any, name: str, group: list[Point], style: dict[str, Any]) -> None:
    x, y, bars = zip(*((p.nfe, p.fd, p.fd_se) for p in group))
    # a bar that reaches zero would end nowhere on a logarithmic axis: it is drawn down to a thousandth of its value
    below = [min(bar, value * 0.999) if value > 0 else 0.0 for value, bar in zip(y, bars)]
    axes.errorbar(x, y, yerr=(below, bars), label=name, capsize=3.5, elinewidth=1.3, markeredgewidth=1.5, **style)


def _trainings(axes: Any, groups: dict[str, list[Point]]) -> None:
    """How far trainings lie apart: a whisker of its own, right of the one over samples."""
    label = "mean and deviation over trainings"
    for group, style in zip(groups.values(), _styles(groups)):
        for point in group:
            if point.spread is None:
                continue
            mean, deviation, x = point.spread.value, point.spread.se, point.nfe * ASIDE
            low = max(mean - deviation, mean / 1000)
            axes.vlines(x, low, mean + deviation, color=style["color"], linewidth=5, alpha=0.45, zorder=2)
            axes.plot(x, mean, "_", color=style["color"], markersize=13, markeredgewidth=2, zorder=5)
            label = _labelled(axes, label)


def _labelled(axes: Any, label: str) -> str:
    """Names the whiskers in the legend, once."""
    if label:
        axes.plot([], [], linestyle="", marker="|", markersize=14, markeredgewidth=5, color=FAINT, label=label)
    return ""


def _front(axes: Any, best: Iterable[Point], right: float) -> None:
    x, y = zip(*((p.nfe, p.fd) for p in best))
    label = "frontier: best within so many calls"
    axes.plot(
        [*x, right],
        [*y, y[-1]],
        drawstyle="steps-post",
        color="#C9CFD3",
        linewidth=6,
        zorder=1,
        label=label,
        solid_joinstyle="miter",
    )


def _floor(axes: Any, floor: Estimate) -> None:
    fd, error = floor.value, floor.se
    if fd <= 0:  # an unbiased or lucky floor has no place on a logarithmic axis; the footer still names it
        return
    axes.axhspan(max(fd - error, fd / 1000), fd + error, color=FAINT, alpha=0.15, linewidth=0)
    axes.axhline(
        fd, color=INK, linestyle=(0, (6, 3)), linewidth=1.2, label=f"a perfect sampler: {floor.plus_minus(SIGN)}"
    )


def _recommended(axes: Any, frontier: Frontier) -> None:
    point = frontier.recommended.point
    axes.plot(
        point.nfe,
        point.fd,
        "o",
        markersize=21,
        markerfacecolor="none",
        markeredgecolor=INK,
        markeredgewidth=2,
        zorder=6,
    )
    calls = "1 network call" if point.nfe == 1 else f"{point.nfe:.4g} network calls"
    text = f"recommended: {point.name}\n{calls}, distance {point.metrics['fd'].plus_minus(SIGN)}"
    axes.annotate(
        text,
        (point.nfe, point.fd),
        _empty_place(axes, frontier),
        textcoords="axes fraction",
        ha="center",
        va="center",
        fontsize=12.5,
        color=INK,
        linespacing=1.5,
        bbox={"boxstyle": "round,pad=0.5", "facecolor": "white", "edgecolor": INK, "linewidth": 1.2},
        arrowprops={"arrowstyle": "-", "color": INK, "linewidth": 1.1, "shrinkB": 11},
        zorder=7,
    )


def _empty_place(axes: Any, frontier: Frontier) -> tuple[float, float]:
    """The centre, in fractions of the axes, from which the recommended point's label covers least and its leader crosses
    least and is shortest."""
    half = np.array([0.25, 0.075])  # of the label, with some air
    ink = [_fractions(axes, [(p.nfe, p.fd) for p in group]) for group in by_curve(frontier.points).values()]
    floor = _fractions(axes, [(x, frontier.floor.fd) for x in axes.get_xlim()])
    dots = np.concatenate([_dotted(line) for line in (*ink, floor)])
    (tip,) = _fractions(axes, [(frontier.recommended.point.nfe, frontier.recommended.point.fd)])

    places = np.stack(np.meshgrid(np.linspace(0.26, 0.74, 25), np.linspace(0.09, 0.91, 42)), axis=-1).reshape(-1, 2)
    covered = np.all(np.abs(dots - places[:, None]) < half, axis=2).sum(axis=1)
    length = np.linalg.norm(places - tip, axis=1)

    def price(place: int) -> float:
        leader = _dotted(np.stack([tip + 0.15 * (places[place] - tip), places[place]]))
        near = np.linalg.norm(dots[:, None] - leader, axis=2).min(axis=1) < 0.012
        return float(covered[place] + 0.2 * near.sum() + 3 * length[place])

    best = places[_cheapest(covered + 3 * length, price)]
    return float(best[0]), float(best[1])


def _cheapest(least: np.ndarray, price: Callable[[int], float]) -> int:
    """The number of the lowest price, the first of equal ones; least: below each price, so that few have to be worked out."""
    best = (math.inf, 0)
    for number in np.argsort(least, kind="stable").tolist():
        if least[number] > best[0]:
            break
        best = min(best, (price(number), number))
    return best[1]


def _fractions(axes: Any, points: list[tuple[float, float]]) -> np.ndarray:
    """[n, 2]: where points (network calls, fd) lie in the axes, 0 to 1."""
    (left, right), (low, high) = np.log(axes.get_xlim()), np.log(axes.get_ylim())
    x = [(np.log(nfe) - left) / (right - left) for nfe, _ in points]
    y = [(np.log(fd) - low) / (high - low) if fd > 0 else 0.0 for _, fd in points]
    return np.stack([x, y], axis=1)


def _dotted(line: np.ndarray) -> np.ndarray:
    """A polyline [n, 2] as dots, 40 for each of its pieces."""
    along = np.linspace(0, 1, 40)[:, None]
    return np.concatenate([line[:1], *(a + along * (b - a) for a, b in itertools.pairwise(line))])


def _lost(axes: Any, frontier: Frontier) -> None:
    """A tilde above each point that has lost more of the teacher's diversity or obedience than of its quality."""
    marked = [loss.point for loss in frontier.losses().values() if loss.point.best]
    style = {"textcoords": "offset points", "ha": "center", "fontsize": 16, "fontweight": "bold", "color": WARNING}
    for point in marked:
        axes.annotate("~", (point.nfe, point.fd), (0, 7), **style)
    if marked:
        axes.plot(
            [], [], linestyle="", marker=r"$\sim$", markersize=10, color=WARNING, label=f"{frontier.losable} lost"
        )


def _captions(figure: Any, frontier: Frontier) -> None:
    about = frontier.about
    left = 0.075
    figure.text(left, 0.94, "Quality against network calls", fontsize=18, fontweight="bold", color=INK)
    _warn(figure, frontier.recommended.warnings)
    what = "what its teacher drew" if frontier.drawn else "the real images"
    subtitle = f"Frechet distance to {what} in the features of a small network trained on the same data (not FID)"
    figure.text(left, 0.902, subtitle, fontsize=12, color=FAINT)
    footer = (
        f"N = {about['n']} images for each point, the same noise (seed {about['seed']}) throughout, {about['weights']} "
        f"weights; feature network {about['features'][:12]}, data {about['data'][:12]}.\n"
        f"Bars: one standard error over the samples (slopes; pairs by {about['resamples']} resamples), not over trainings. "
        f"A perfect sampler: from {_compared(frontier)}."
    )
    figure.text(left, 0.022, footer, fontsize=10, color=FAINT, linespacing=1.5)


def _compared(frontier: Frontier) -> str:
    floor = frontier.floor
    if floor.real == "held-out":
        return f"{floor.compared[0]} held-out images"
    return f"halves of the {floor.n[1]} {'drawn' if frontier.drawn else 'real'} images"


def _warn(figure: Any, warnings: Sequence[str]) -> None:
    """The first warning under the title, as much of it as there is room for."""
    if warnings:
        more = f" ({len(warnings) - 1} more)" if len(warnings) > 1 else ""
        text = textwrap.shorten(f"Warning: {warnings[0]}", 140 - len(more), placeholder=" ...")
        figure.text(0.075, 0.875, f"{text}{more}", fontsize=11, color=WARNING)


def _columns(text: str) -> tuple[np.ndarray, np.ndarray]:
    images, loss = np.array([(row["images"], row["loss"]) for row in tables.points(text)]).reshape(-1, 2).T
    return images, loss


def _running_mean(values: np.ndarray) -> np.ndarray:
    """The mean of the values within half a window on either side, as many as there are at the ends."""
    half = max(1, len(values) // 80)
    total = np.concatenate([[0.0], np.cumsum(values)])
    first = np.maximum(np.arange(len(values)) - half, 0)
    last = np.minimum(np.arange(len(values)) + half + 1, len(values))
    return (total[last] - total[first]) / (last - first)


def _save(figure: Any, path: Path) -> None:
    content = io.BytesIO()
    figure.savefig(content, format="png", metadata={"Software": None})
    disk.write(Path(path), content.getvalue())
