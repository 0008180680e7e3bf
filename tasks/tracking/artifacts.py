"""What the stages left, read and verified: what MLflow shows is a view of it."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from diffcore.checkpoints import verify
from diffcore.checkpoints.card import Card
from diffcore.core import disk
from diffcore.core.errors import UserError
from diffcore.metrics import recommendation
from diffcore.metrics.frontier import Frontier
from diffcore.metrics.point import Point, best_of
from diffcore.search import gamma_file
from tasks import paths
from tasks.pictures import page, tables

TEACHER = "teacher"
CHALLENGER, BEST, FASTEST = "challenger", "best_quality", "fastest"
ALIASES = {
    CHALLENGER: "the recommended point",
    BEST: "the lowest fd of all",
    FASTEST: "the fewest network calls within publish.tolerance, whatever became of the diversity",
}
"""Aliases of the registered model that publishing moves, and what each is."""

CURVE_ROWS = 100  # of each training curve; the whole csv lies beside them. A thousand metrics take SQLite half a second


@dataclass(frozen=True)
class Artifacts:
    """What the stages left: the frontier, the cards of its checkpoints, and params.yaml."""

    folder: Path
    frontier: Frontier
    cards: dict[str, Card]
    parameters: dict[str, Any]

    @property
    def frontier_files(self) -> tuple[Path, ...]:
        """The files that the run "frontier" shows."""
        names = ("frontier.json", "frontier.csv", "frontier.png", "samples/all.png", "report.html")
        return tuple(self.folder / name for name in names)

    def samples(self, point: Point) -> Path:
        return self.folder / "samples" / f"{point.name}.png"

    def checkpoint(self, point: Point) -> Path:
        return self.folder / "checkpoints" / point.checkpoint

    @property
    def recommended(self) -> Point:
        return self.frontier.recommended.point

    @cached_property
    def picks(self) -> dict[str, Point]:
        """The point of each alias; one point may have several."""
        points, tolerance = self.frontier.points, self.parameters["publish"]["tolerance"]
        fastest = recommendation.fastest(points, self.frontier.floor, tolerance)
        return {CHALLENGER: self.recommended, BEST: best_of(points), FASTEST: fastest}

    @cached_property
    def _picked(self) -> frozenset[str]:
        return frozenset(pick.name for pick in self.picks.values())

    def is_picked(self, point: Point) -> bool:
        return point.name in self._picked


def read(folder: Path, parameters: dict[str, Any]) -> Artifacts:
    """What lies in `folder`. Raises UserError naming what is missing, damaged or of another run."""
    frontier = Frontier.read(folder / "frontier.json", paths.again("frontier"))
    points = frontier.points
    cards = {name: verify(folder / "checkpoints" / name) for name in sorted({point.checkpoint for point in points})}
    artifacts = Artifacts(folder, frontier, cards, parameters)
    for point in points:
        if cards[point.checkpoint].digest != point.checkpoint_digest:
            raise UserError(
                f"{artifacts.checkpoint(point)} is not the network that was measured; "
                f"{paths.again(paths.measure(point.checkpoint))}"
            )
    for needed in (*artifacts.frontier_files, *map(artifacts.samples, points)):
        if not needed.exists():
            raise UserError(f"{needed} is missing; run the stage `frontier` again")
    if any(point.sampler == "analytic" for point in points):
        _check_gamma(artifacts)
    _check_rows(folder / "frontier.csv", points)
    if not page.is_whole((folder / "report.html").read_text(errors="replace")):
        raise _damaged(folder / "report.html")
    for picture in (folder / "frontier.png", folder / "samples/all.png", *map(artifacts.samples, points)):
        _check_picture(picture)
    return artifacts


def _damaged(path: Path) -> UserError:
    return UserError(f"{path} is damaged; run the stage that makes it again")


def _check_gamma(artifacts: Artifacts) -> None:
    """Whether what analytic samplers are shipped with is whole, and was estimated from this teacher."""
    teacher = artifacts.cards.get(TEACHER)
    gamma_file.read(artifacts.folder / "gamma.json", teacher and teacher.digest, paths.again("gamma"))


def _check_rows(path: Path, points: Sequence[Point]) -> None:
    """Whether a table for spreadsheets says of each point what frontier.json says."""
    with open(path, newline="", errors="replace") as file:
        rows = list(csv.DictReader(file))
    if len(rows) != len(points) or any(_differ(row, point) for row, point in zip(rows, points, strict=True)):
        raise _damaged(path)


def _differ(row: dict[str, str], point: Point) -> bool:
    wanted = {key: " ".join(map(str, value)) if key == "times" else value for key, value in point.row().items()}
    wanted = {key: "" if value is None else str(value) for key, value in wanted.items()}
    return any(row[key] != wanted[key] for key in row.keys() & wanted.keys())


def _check_picture(path: Path) -> None:
    from PIL import Image

    try:
        with Image.open(path) as picture:
            picture.verify()  # the checksum of every part of a PNG
    except (OSError, SyntaxError, ValueError):
        raise _damaged(path) from None


def thinned(path: Path) -> list[dict[str, float]]:
    """A curve as at most CURVE_ROWS rows: each the mean of as many neighbours, at the step of the last of them."""
    text = disk.read_summed(path, paths.again(paths.train(path.stem)))
    return tables.means(tables.points(text), CURVE_ROWS)


def looks(path: Path) -> list[dict[str, float]]:
    """At most CURVE_ROWS of the looks at a watched training, the last one among them; none where it was not watched."""
    rows = tables.looks(disk.read_summed(path, paths.again(paths.train(path.stem))))
    width = -(-len(rows) // CURVE_ROWS) or 1
    return rows[::-1][::width][::-1]


def cost_of(path: Path, name: str) -> dict[str, Any]:
    """What the training of `name` took: seconds, iterations, images and network calls."""
    return disk.read_sealed(path, None, paths.again(paths.train(name)))
