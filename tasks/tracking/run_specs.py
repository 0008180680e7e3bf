"""Runs: one for each curve of the frontier, for each training curve, for the frontier and for its floor.

Each carries the digest of what it shows; what MLflow already has is found by it.
"""

import re
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffcore.checkpoints import verify
from diffcore.checkpoints.card import Card
from diffcore.core import disk
from diffcore.metrics.estimate import columns
from diffcore.metrics.point import Point
from tasks import paths
from tasks.pictures import charts, grids
from tasks.tracking.artifacts import Artifacts, cost_of, looks, thinned
from tasks.tracking.client import Experiment, every, logged
from tasks.tracking.models import carries, with_weights, without_weights

VALUE = 500  # characters of a parameter's or tag's value that MLflow's older stores take


@dataclass(frozen=True)
class RunSpec:
    """A run to be: `content` is all that it shows, and `fill` logs it into the active run."""

    kind: str
    name: str
    content: Any
    fill: Callable[[str], None]

    @property
    def digest(self) -> str:
        return disk.digest([self.kind, self.name, self.content])


def enter(experiment: Experiment, specs: list[RunSpec]) -> dict[str, str]:
    """The run of each spec, by the spec's digest: the one that is there, or a new one. All others are not current."""
    existing = list(every(lambda token: experiment.client.search_runs([experiment.id], page_token=token)))
    finished = {run.data.tags.get("digest"): run for run in reversed(existing) if run.info.status == "FINISHED"}
    runs = {}
    for spec in specs:
        run = finished.get(spec.digest)
        runs[spec.digest] = run.info.run_id if run else _new_run(experiment, spec)
        if run and run.data.tags["current"] == "false":  # an earlier frontier is back
            _mark(experiment, run, "true")
    for run in existing:
        if run.info.run_id not in runs.values() and run.data.tags.get("current") == "true":
            _mark(experiment, run, "false")
    return runs


def _new_run(experiment: Experiment, spec: RunSpec) -> str:
    import mlflow

    tags = {"kind": spec.kind, "digest": spec.digest, "current": "true"}
    with mlflow.start_run(experiment_id=experiment.id, run_name=spec.name, tags=tags) as run:
        spec.fill(run.info.run_id)
    return run.info.run_id


def _mark(experiment: Experiment, run: Any, current: str) -> None:
    if run.info.status == "RUNNING":  # its publisher was killed: the lock says that no other is at work
        experiment.client.set_terminated(run.info.run_id, "KILLED")
    experiment.client.set_tag(run.info.run_id, "current", current)
    for model in logged(experiment, f"source_run_id = '{run.info.run_id}'"):
        experiment.client.set_logged_model_tags(model.model_id, {"current": current})


def curve_specs(experiment: Experiment, artifacts: Artifacts) -> list[RunSpec]:
    """A spec for each curve: its points, what they were measured with, their cards and grids."""
    about = artifacts.frontier.about
    specs = []
    for name, points in charts.by_curve(artifacts.frontier.points).items():
        cards = {point.checkpoint: artifacts.cards[point.checkpoint] for point in points}
        images = {point.name: disk.sha256(artifacts.samples(point)) for point in points}
        card_fields = {name: card.to_json() for name, card in cards.items()}
        content = {
            "points": [point.to_json() for point in points],
            "about": about,
            "cards": card_fields,
            "images": images,
        }
        specs.append(
            RunSpec(
                "curve",
                name,
                content,
                lambda run, points=points, cards=cards: _fill_curve(experiment, artifacts, points, cards, run),
            )
        )
    return specs


def students_early(specs: list[RunSpec]) -> list[RunSpec]:
    """The teacher's first curve, by which all are measured, the students' curves, and the teacher's others."""
    first, *others = specs
    return [first, *sorted(others, key=lambda spec: spec.content["points"][0]["method"] == "teacher")]


def _fill_curve(
    experiment: Experiment, artifacts: Artifacts, points: list[Point], cards: dict[str, Card], run: str
) -> None:
    metrics = []
    for point in points:
        model = with_weights(artifacts, point) if carries(artifacts, point) else without_weights(experiment, point, run)
        metrics += _metrics(_numbers(point), round(point.nfe), model)
    about = {f"evaluate/{key}": value for key, value in artifacts.frontier.about.items()}
    trained = {f"{name}/{key}": value for name, card in cards.items() for key, value in _flat(card.parameters).items()}
    tags = {"method": points[0].method, **{f"digest {name}": card.digest for name, card in cards.items()}}
    _log(experiment, run, metrics, about | trained, tags)
    _log_images(experiment, artifacts, points, run)


def _numbers(point: Point) -> dict[str, float]:
    """What a point has of each metric, what an image took and its network calls; fd as it is cross-fitted and over trainings
    where there are such."""
    honest = {"fd_crossfit": point.crossfit} if point.crossfit else {}
    spread = {"fd_trainings": point.spread.value, "fd_trainings_sd": point.spread.se} if point.spread else {}
    return {**columns(point.metrics | honest), **spread, "ms_per_image": point.ms_per_image, "nfe": point.nfe}


def _log_images(experiment: Experiment, artifacts: Artifacts, points: list[Point], run: str) -> None:
    """The grids by step, and at step 0, where the UI's slider starts, all of the curve's points one below the other."""
    from PIL import Image

    rows = [(point.name, grids.tiles(artifacts.samples(point))) for point in reversed(points)]
    with tempfile.TemporaryDirectory() as folder:
        sheet = Path(folder) / "sheet.png"
        grids.contact_sheet(rows, sheet)
        for step, path in [(0, sheet), *((round(point.nfe), artifacts.samples(point)) for point in points)]:
            with Image.open(path) as picture:
                experiment.client.log_image(run, picture.convert("RGB"), key="samples", step=step)


def frontier_spec(experiment: Experiment, artifacts: Artifacts) -> RunSpec:
    """The whole table: its files and pictures, the recommendation and every parameter."""
    chosen = artifacts.frontier.recommended

    def fill(run: str) -> None:
        floor = {f"floor_{key}": value for key, value in columns(artifacts.frontier.floor.metrics).items()}
        tags = {"recommended": chosen.point.name, "reason": chosen.reason}
        if chosen.warnings:
            tags["warnings"] = "; ".join(chosen.warnings)
        _log(experiment, run, _metrics(floor, 0), _flat(artifacts.parameters), tags)
        for path in artifacts.frontier_files:
            experiment.client.log_artifact(run, str(path))

    files = {path.name: disk.sha256(path) for path in artifacts.frontier_files}
    content = {"parameters": artifacts.parameters, "files": files}
    return RunSpec("frontier", "frontier", content, fill)


def floor_spec(experiment: Experiment, artifacts: Artifacts) -> RunSpec:
    """The real-against-real floor as a curve of its own: a level line under the others in every chart."""
    floor = columns(artifacts.frontier.floor.metrics)
    steps = sorted({round(point.nfe) for point in artifacts.frontier.points})
    content = {"floor": floor, "steps": steps, "about": artifacts.frontier.about}

    def fill(run: str) -> None:
        _log(experiment, run, [metric for step in steps for metric in _metrics(floor, step)], {}, {})

    return RunSpec("floor", "real against real", content, fill)


def train_specs(experiment: Experiment, artifacts: Artifacts) -> list[RunSpec]:
    """A spec for each training curve."""
    specs = []
    for path in sorted((artifacts.folder / "curves").glob("*.csv")):
        name = path.stem
        card = verify(artifacts.folder / "checkpoints" / name)
        disk.read_summed(path, paths.again(paths.train(name)))
        cost = cost_of(artifacts.folder / "cost" / f"{name}.json", name)
        content = {"curve": disk.sha256(path), "digest": card.digest, "cost": cost}
        specs.append(RunSpec("train", f"train {name}", content, _train_filler(experiment, path, card, cost)))
    return specs


def _train_filler(experiment: Experiment, path: Path, card: Card, cost: dict[str, Any]) -> Callable[[str], None]:
    def fill(run: str) -> None:
        rows = thinned(path)
        metrics = [metric for row in rows for metric in _metrics(_curve_values(row), int(row["step"]))]
        metrics += [metric for row in looks(path) for metric in _metrics(_look_values(row), int(row["step"]))]
        tags = {"method": card.method, "parent": card.parent or "none", "data": card.data}
        tags |= {f"digest {path.stem}": card.digest}
        sums = {key: value for key, value in cost.items() if key != paths.SEEDS}
        spent = {f"cost.{key}": value for key, value in sums.items()}  # one number each: as a metric, an empty chart
        _log(experiment, run, metrics, _flat(card.parameters) | {"seed": card.seed} | spent, tags)
        experiment.client.log_artifact(run, str(path))

    return fill


def _curve_values(row: dict[str, float]) -> dict[str, float]:
    return {f"train_{key}": row[key] for key in ("loss", "grad_norm", "lr")}


def _look_values(row: dict[str, float]) -> dict[str, float]:
    return {f"watch_{key}": value for key, value in row.items() if key not in ("step", "images")}


def _metrics(values: dict[str, float], step: int, model: str | None = None) -> list[Any]:
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    return [Metric(key, float(value), now, step, model_id=model) for key, value in values.items()]


def _log(experiment: Experiment, run: str, metrics: list[Any], params: dict[str, Any], tags: dict[str, str]) -> None:
    from mlflow.entities import Param, RunTag

    experiment.client.log_batch(
        run,
        metrics=metrics,
        params=[Param(_key(key), str(value)[:VALUE]) for key, value in params.items()],
        tags=[RunTag(_key(key), str(value)[:VALUE]) for key, value in tags.items()],
    )


def _key(key: str) -> str:
    return re.sub(r"[^\w\-. :/]", "_", key)[:250]


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
