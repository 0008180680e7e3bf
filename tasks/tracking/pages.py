"""Runs: one for each way to sample, for each training curve, for the frontier and for its floor.

Each carries the digest of what it shows; what MLflow already has is found by it.
"""

import re
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from diffcore.checkpoints import verify
from diffcore.checkpoints.card import Card
from diffcore.core import disk
from diffcore.metrics.estimate import columns
from diffcore.metrics.point import Point
from tasks import paths, pictures
from tasks.tracking.client import Book, every, logged
from tasks.tracking.files import Files, cost_of, thinned
from tasks.tracking.models import carries, with_weights, without_weights

VALUE = 500  # characters of a parameter's or tag's value that MLflow's older stores take


@dataclass(frozen=True)
class Page:
    """A run to be: `content` is all that it shows, and `fill` logs it into the active run."""

    kind: str
    name: str
    content: Any
    fill: Callable[[str], None]

    @property
    def digest(self) -> str:
        return disk.digest([self.kind, self.name, self.content])


def enter(book: Book, pages: list[Page]) -> dict[str, str]:
    """The run of each page, by the page's digest: the one that is there, or a new one. All others are not current."""
    known = list(every(lambda token: book.client.search_runs([book.experiment], page_token=token)))
    finished = {run.data.tags.get("digest"): run for run in reversed(known) if run.info.status == "FINISHED"}
    runs = {}
    for page in pages:
        run = finished.get(page.digest)
        runs[page.digest] = run.info.run_id if run else _new_run(book, page)
        if run and run.data.tags["current"] == "false":  # an earlier frontier is back
            _mark(book, run, "true")
    for run in known:
        if run.info.run_id not in runs.values() and run.data.tags.get("current") == "true":
            _mark(book, run, "false")
    return runs


def _new_run(book: Book, page: Page) -> str:
    import mlflow

    tags = {"kind": page.kind, "digest": page.digest, "current": "true"}
    with mlflow.start_run(experiment_id=book.experiment, run_name=page.name, tags=tags) as run:
        page.fill(run.info.run_id)
    return run.info.run_id


def _mark(book: Book, run: Any, current: str) -> None:
    if run.info.status == "RUNNING":  # its publisher was killed: the lock says that no other is at work
        book.client.set_terminated(run.info.run_id, "KILLED")
    book.client.set_tag(run.info.run_id, "current", current)
    for found in logged(book, f"source_run_id = '{run.info.run_id}'"):
        book.client.set_logged_model_tags(found.model_id, {"current": current})


def way_pages(book: Book, files: Files) -> list[Page]:
    """A page for each way to sample: its points, what they were measured with, their cards and grids."""
    about = files.frontier.about
    pages = []
    for name, points in pictures.ways(files.frontier.points).items():
        cards = {point.checkpoint: files.cards[point.checkpoint] for point in points}
        images = {point.name: disk.sha256(files.samples(point)) for point in points}
        shown = {name: asdict(card) for name, card in cards.items()}
        content = {"points": [point.to_json() for point in points], "about": about, "cards": shown, "images": images}
        pages.append(
            Page(
                "way", name, content, lambda run, points=points, cards=cards: _fill_way(book, files, points, cards, run)
            )
        )
    return pages


def students_early(pages: list[Page]) -> list[Page]:
    """The teacher's first way, by which all are measured, the students' ways, and the teacher's others."""
    first, *others = pages
    return [first, *sorted(others, key=lambda page: page.content["points"][0]["method"] == "teacher")]


def _fill_way(book: Book, files: Files, points: list[Point], cards: dict[str, Card], run: str) -> None:
    metrics = []
    for point in points:
        model = with_weights(files, point) if carries(files, point) else without_weights(book, point, run)
        metrics += _metrics(_numbers(point), round(point.nfe), model)
    about = {f"evaluate/{key}": value for key, value in files.frontier.about.items()}
    trained = {f"{name}/{key}": value for name, card in cards.items() for key, value in _flat(card.parameters).items()}
    tags = {"method": points[0].method, **{f"digest {name}": card.digest for name, card in cards.items()}}
    _log(book, run, metrics, about | trained, tags)
    _log_images(book, files, points, run)


def _numbers(point: Point) -> dict[str, float]:
    """What a point has of each metric, what an image took and its network calls."""
    return {**columns(point.metrics), "ms_per_image": point.ms_per_image, "nfe": point.nfe}


def _log_images(book: Book, files: Files, points: list[Point], run: str) -> None:
    """The grids by step, and at step 0, where the UI's slider starts, all of the way's points one below the other."""
    from PIL import Image

    rows = [(point.name, pictures.tiles(files.samples(point))) for point in reversed(points)]
    with tempfile.TemporaryDirectory() as folder:
        sheet = Path(folder) / "sheet.png"
        pictures.contact_sheet(rows, sheet)
        for step, path in [(0, sheet), *((round(point.nfe), files.samples(point)) for point in points)]:
            with Image.open(path) as picture:
                book.client.log_image(run, picture.convert("RGB"), key="samples", step=step)


def frontier_page(book: Book, files: Files) -> Page:
    """The whole table: its files and pictures, the recommendation and every parameter."""
    chosen = files.frontier.recommended

    def fill(run: str) -> None:
        floor = {f"floor_{key}": value for key, value in columns(files.frontier.floor.metrics).items()}
        tags = {"recommended": chosen.point.name, "reason": chosen.reason}
        _log(book, run, _metrics(floor, 0), _flat(files.parameters), tags)
        for path in files.shown:
            book.client.log_artifact(run, str(path))

    content = {"parameters": files.parameters, "files": {path.name: disk.sha256(path) for path in files.shown}}
    return Page("frontier", "frontier", content, fill)


def floor_page(book: Book, files: Files) -> Page:
    """The real-against-real floor as a way of its own: a level line under the others in every chart."""
    floor = columns(files.frontier.floor.metrics)
    steps = sorted({round(point.nfe) for point in files.frontier.points})
    content = {"floor": floor, "steps": steps, "about": files.frontier.about}

    def fill(run: str) -> None:
        _log(book, run, [metric for step in steps for metric in _metrics(floor, step)], {}, {})

    return Page("floor", "real against real", content, fill)


def train_pages(book: Book, files: Files) -> list[Page]:
    """A page for each training curve."""
    pages = []
    for path in sorted((files.folder / "curves").glob("*.csv")):
        name = path.stem
        card = verify(files.folder / "checkpoints" / name)
        disk.read_summed(path, paths.again(paths.train(name)))
        cost = cost_of(files.folder / "cost" / f"{name}.json", name)
        content = {"curve": disk.sha256(path), "digest": card.digest, "cost": cost}
        pages.append(Page("train", f"train {name}", content, _train_filler(book, path, card, cost)))
    return pages


def _train_filler(book: Book, path: Path, card: Card, cost: dict[str, Any]) -> Callable[[str], None]:
    def fill(run: str) -> None:
        rows = thinned(path)
        metrics = [metric for row in rows for metric in _metrics(_curve_values(row), int(row["step"]))]
        tags = {"method": card.method, "parent": card.parent or "none", "data": card.data}
        tags |= {f"digest {path.stem}": card.digest}
        spent = {f"cost.{key}": value for key, value in cost.items()}  # one number each: as a metric, an empty chart
        _log(book, run, metrics, _flat(card.parameters) | {"seed": card.seed} | spent, tags)
        book.client.log_artifact(run, str(path))

    return fill


def _curve_values(row: dict[str, float]) -> dict[str, float]:
    return {f"train_{key}": row[key] for key in ("loss", "grad_norm", "lr")}


def _metrics(values: dict[str, float], step: int, model: str | None = None) -> list[Any]:
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    return [Metric(key, float(value), now, step, model_id=model) for key, value in values.items()]


def _log(book: Book, run: str, metrics: list[Any], params: dict[str, Any], tags: dict[str, str]) -> None:
    from mlflow.entities import Param, RunTag

    book.client.log_batch(
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
