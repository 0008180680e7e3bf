"""The stage `frontier`: the points of all checkpoints, merged, recommended and drawn. Nothing is measured here."""

import dataclasses
from pathlib import Path
from typing import Any

from diffcore.core import disk
from diffcore.core.errors import UserError
from diffcore.metrics import measured
from diffcore.metrics.features import Skill
from diffcore.metrics.floor import Floor
from diffcore.metrics.frontier import Frontier
from diffcore.metrics.point import with_best
from tasks import paths, pictures
from tasks.params import ROOT, Params
from tasks.progress import say


def merge(params: Params) -> None:
    """Writes the frontier of all checkpoints of params.yaml, its pictures, and which point is recommended."""
    frontier, shown = _read([*params.teachers, *params.distill])
    with disk.folder(paths.SAMPLES) as folder:
        for point in frontier.points:
            pictures.grid(shown[point.name].numpy(), folder / f"{point.name}.png")
        best = [point.name for point in frontier.points if point.best]
        pictures.contact_sheet([(name, shown[name].numpy()) for name in (*best, measured.REAL)], folder / "all.png")
    frontier = dataclasses.replace(frontier, recommended=frontier.recommend(params.publish.tolerance))
    disk.write_sealed(paths.FRONTIER, frontier.to_json())
    disk.write(paths.FRONTIER.with_suffix(".csv"), frontier.to_csv())
    pictures.frontier(frontier, paths.FRONTIER.with_suffix(".png"))
    pictures.curves(curves(), paths.ARTIFACTS / "curves.png")
    say(f"frontier: {len(frontier.points)} points of {len(params.teachers) + len(params.distill)} checkpoints")


def _read(names: list[str]) -> tuple[Frontier, dict[str, Any]]:
    """The frontier, and by point its first samples; a UserError if two checkpoints were measured with different things."""
    tables, every, shown = {}, [], {}
    for name in names:
        tables[name], found, images = measured.read(paths.POINTS / name, paths.again(paths.measure(name)))
        every += found
        shown |= images
    first = tables[ROOT]
    for name, table in tables.items():
        shared = set(table["about"]) - ({"teacher"} if "floor" in table else set())  # a teacher is compared with itself
        if differ := sorted(key for key in shared if table["about"][key] != first["about"][key]):
            again = paths.again(paths.measure(name))
            raise UserError(
                f"{paths.POINTS / name} was measured with another {differ[0]} than {paths.POINTS / ROOT}; {again}"
            )
    floor, judge = Floor.from_json(first["floor"]), Skill(**first["judge"])
    return Frontier(tuple(with_best(every)), floor, first["about"]["data"], judge), shown


def curves() -> dict[str, Path]:
    """The training curves by checkpoint, each checked."""
    found = {path.stem: path for path in sorted(file.with_suffix("") for file in paths.CURVES.glob("*.csv.sha256"))}
    for name, path in found.items():
        disk.read_summed(path, paths.again(paths.train(name)))
    return found
