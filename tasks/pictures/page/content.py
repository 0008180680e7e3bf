"""What the report tells of, and the part of it that the page's own script draws."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from diffcore.metrics import order
from diffcore.metrics.estimate import Estimate
from diffcore.metrics.frontier import Frontier
from diffcore.metrics.point import Point, by_calls
from tasks.pictures import tables
from tasks.pictures.charts import MARKERS, by_curve

CALLS, TIME = "nfe", "ms_per_image"
SIGN = " ± "
REAL = "real"
"""Among the samples the real images, as in diffcore.metrics.measured, whose import would take as long as torch's."""

CURVE_ROWS = 120
"""Of each training curve that are drawn: more cannot be told apart on a screen."""


@dataclass(frozen=True)
class Line:
    """One line of params.yaml, trained: what it starts from and who teaches it (None for nothing), by which method, and what
    the training took: `seconds`, `iterations`, `images`, `network_calls` as far as they were counted."""

    name: str
    method: str
    init: str | None
    teacher: str | None
    cost: Mapping[str, Any]


@dataclass(frozen=True)
class Report:
    """frontier: with its recommended point. bar: the largest fd that is near enough to be shipped. samples: by point, and as
    `real` of the data, uint8 [n, h, w, c] from the same noises. lines: all of params.yaml. curves: by line, the text of its
    training curve's table."""

    frontier: Frontier
    bar: Estimate
    samples: Mapping[str, np.ndarray]
    lines: Sequence[Line]
    curves: Mapping[str, str]


@dataclass(frozen=True)
class Words:
    """How a metric is called on the page. better: which way, None where no way is. kind: of its axis. core: whether the table
    shows it from the start."""

    label: str
    better: Literal["lower", "higher"] | None = None
    kind: Literal["log", "linear"] = "linear"
    core: bool = False
    what: str = ""


WORDS = {
    "fd": Words(
        "Fréchet distance", "lower", "log", True, "between Gaussians fitted to samples and to real images, in features"
    ),
    "kid": Words("kernel distance (KID)", "lower", "log", True, "unbiased; 0 in the mean for a perfect sampler"),
    "recall": Words("recall", "higher", core=True, what="share of the real images that a sample is near to"),
    "coverage": Words("coverage", "higher", core=True, what="share of the real images that have a sample within reach"),
    TIME: Words("ms per image", "lower", "log", True, "on the machine that measured it, in batches"),
    "rmse_teacher": Words("distance from the teacher", "lower", what="RMSE to the teacher's sample of the same noise"),
    "improved_precision": Words("precision", "higher", what="share of the samples within reach of a real image"),
    "density": Words("density", "higher", what="real images that have a sample within reach, over the samples"),
    "memorised": Words("copies", "lower", what="share of the samples that copy a training image; 0.01 is none"),
    "fd_infinity": Words(
        "Fréchet distance, N to infinity", "lower", "log", what="extrapolated to infinitely many samples"
    ),
    "fd_pixels": Words("Fréchet distance on pixels", "lower", "log", what="at most 8x8 pixels"),
    "swd": Words("sliced Wasserstein distance", "lower", "log", what="along fixed directions in features"),
    "accuracy": Words("accuracy", "higher", core=True, what="how often the class is the one that was asked for"),
    "caption_accuracy": Words(
        "caption accuracy", "higher", core=True, what="how often the image, measured again, is what its caption said"
    ),
    "caption_accuracy_unseen": Words(
        "caption accuracy, unseen captions",
        "higher",
        core=True,
        what="the same of captions that nothing was trained on",
    ),
    "bits": Words("bits per dimension", "lower", what="of real images"),
}
"""Metrics without an entry are shown by their own names."""


def words(name: str) -> Words:
    return WORDS.get(name, Words(name))


def metrics(frontier: Frontier) -> list[str]:
    """The metrics that any point has, and the time, those first that the table shows from the start."""
    measured = {name for point in frontier.points for name in point.metrics}
    names = [name for name in order.COLUMNS if name in measured]
    names += sorted(measured.difference(names))
    names.append(TIME)
    return sorted(names, key=lambda name: not words(name).core)


def values(point: Point) -> dict[str, Estimate]:
    """What was measured of a point, the time without an error among it."""
    return {**point.metrics, TIME: Estimate(point.ms_per_image, 0.0)}


def written(name: str, estimate: Estimate) -> str:
    """`0.27 ± 0.12`; what has no error as three digits."""
    return f"{estimate.value:.3g}" if not estimate.se else estimate.plus_minus(SIGN)


def data(report: Report) -> dict[str, Any]:
    """What the page's script draws: points, curves of the frontier, metrics, floor, bar, what may be lost, trainings."""
    frontier = report.frontier
    front = {point.name for point in frontier.non_dominated()}
    losses = frontier.losses()
    return {
        "points": [
            _point(point, point.name in front, str(losses.get(point.name) or "")) for point in by_calls(frontier.points)
        ],
        "curves": _curves(frontier),
        "metrics": [
            {"key": name, "label": words(name).label, "better": words(name).better, "kind": words(name).kind}
            for name in metrics(frontier)
        ],
        "floor": {name: [each.value, each.se] for name, each in frontier.floor.metrics.items()},
        "bar": {"fd": report.bar.value},
        "recommended": frontier.recommended.point.name,
        "losable": frontier.losable,
        "trainings": [training for line in report.lines if (training := _training(line, report.curves))],
    }


def _point(point: Point, on_front: bool, lost: str) -> dict[str, Any]:
    return {
        "name": point.name,
        "checkpoint": point.checkpoint,
        "best": point.best,
        "front": on_front,
        "lost": lost,
        "nfe": point.nfe,
        "values": {name: [each.value, each.se, written(name, each)] for name, each in values(point).items()},
        "facts": _facts(point),
    }


def _facts(point: Point) -> list[list[str]]:
    """What made the point, for the panel that opens on a click: name and text of each."""
    facts = {
        "checkpoint": f"{point.checkpoint} ({point.checkpoint_digest[:12]}), {point.weights} weights",
        "method": point.method,
        "recipe": point.recipe,
        "trajectory": f"{point.trajectory}: {' '.join(f'{time:.4g}' for time in point.times)}",
        "drawn": f"{point.n} samples from noise seed {point.seed}, {point.precision}"
        + (f"; {point.check}" if point.check else ""),
        "judges": point.judges,
    }
    return [[name, text] for name, text in facts.items() if text]


def _curves(frontier: Frontier) -> list[dict[str, Any]]:
    """By curve its points with the tries that were not the best; look: place in the palette of its kind, and marker."""
    groups = by_curve(frontier.points)
    counts = {True: 0, False: 0}
    curves = []
    for number, (name, points) in enumerate(groups.items()):
        teacher = points[0].method == "teacher"
        curves.append(
            {
                "name": name,
                "teacher": teacher,
                "colour": counts[teacher],
                "marker": MARKERS[number % len(MARKERS)],
                "points": [point.name for point in points],
                "tries": [
                    point.name
                    for point in frontier.points
                    if not point.best and any(_alike(point, other) for other in points)
                ],
            }
        )
        counts[teacher] += 1
    return curves


def _alike(point: Point, other: Point) -> bool:
    return (point.curve, point.checkpoint) == (other.curve, other.checkpoint)


def _training(line: Line, curves: Mapping[str, str]) -> dict[str, Any] | None:
    """Loss against images, thinned, and what looks saw; None of a line that was not trained here."""
    text = curves.get(line.name, "")
    rows = tables.means(tables.points(text), CURVE_ROWS) if text.strip() else []
    if not rows:
        return None
    looks = [[row["step"], row["fd"], row["fd_se"]] for row in tables.looks(text)]
    return {"name": line.name, "loss": [[row["images"], _short(row["loss"])] for row in rows], "looks": looks}


def _short(value: float) -> float:
    return float(f"{value:.4g}")
