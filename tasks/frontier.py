"""The stage `frontier`: the points of all checkpoints, merged, recommended and drawn. Nothing is measured here."""

import dataclasses
from typing import Any

from diffcore.core import disk
from diffcore.core.errors import UserError
from diffcore.core.kept import Tensors
from diffcore.metrics import measured, recommendation
from diffcore.metrics.crossfit import with_crossfit
from diffcore.metrics.estimate import Scored, columns
from diffcore.metrics.floor import Floor
from diffcore.metrics.frontier import Frontier
from diffcore.metrics.point import Point, best_of, with_best
from diffcore.metrics.skill import Skill
from tasks import paths
from tasks.params import ROOT, Params
from tasks.pictures import charts, grids, page, tables
from tasks.progress import log


def merge(params: Params) -> None:
    """Writes the frontier of all checkpoints of params.yaml, its pictures, and which point is recommended."""
    frontier, samples = _read([*params.teachers, *params.distill])
    with disk.folder(paths.SAMPLES) as folder:
        for point in frontier.points:
            grids.grid(samples[point.name].numpy(), folder / f"{point.name}.png")
        best = [point.name for point in frontier.points if point.best]
        grids.contact_sheet([(name, samples[name].numpy()) for name in (*best, measured.REAL)], folder / "all.png")
    frontier = dataclasses.replace(frontier, recommended=frontier.recommend(params.publish.tolerance))
    disk.write_sealed(paths.FRONTIER, frontier.to_json())
    disk.write(paths.FRONTIER.with_suffix(".csv"), frontier.to_csv())
    disk.write_json(paths.QUALITY, quality(frontier))
    charts.frontier(frontier, paths.FRONTIER.with_suffix(".png"))
    csvs, spent = curves(), costs()
    charts.curves(csvs, paths.ARTIFACTS / "curves.png", {name: looked(name, csv, spent) for name, csv in csvs.items()})
    disk.write(paths.REPORT, page.html_of(_report(params, frontier, samples, csvs, spent)))
    lines = len(params.teachers) + len(params.distill)
    log(f"frontier: {len(frontier.points)} points of {lines} checkpoints; `distill report` prints them")


def _report(
    params: Params, frontier: Frontier, samples: Tensors, csvs: dict[str, str], spent: dict[str, dict[str, Any]]
) -> page.Report:
    bar = recommendation.bar(frontier.points, frontier.floor, params.publish.tolerance)
    pictures = {name: images.numpy() for name, images in samples.items()}
    return page.Report(frontier, bar, pictures, _lines(params, frontier, spent), csvs)


def _lines(params: Params, frontier: Frontier, spent: dict[str, dict[str, Any]]) -> list[page.Line]:
    """All lines of params.yaml, with what their trainings took."""
    methods = {point.checkpoint: point.method for point in frontier.points}
    above: dict[str, tuple[str | None, str | None]] = dict.fromkeys(params.teachers, (None, None))
    above |= {name: (line.init, line.teacher) for name, line in params.distill.items()}
    return [page.Line(name, methods[name], *above[name], spent.get(name, {})) for name in above]


def costs() -> dict[str, dict[str, Any]]:
    """What each training took, by checkpoint, each checked; of one that was not trained here there is none."""
    files = sorted(paths.COST.glob("*.json"))
    return {file.stem: disk.read_sealed(file, None, paths.again(paths.train(file.stem))) for file in files}


def quality(frontier: Frontier) -> dict[str, Any]:
    """What `dvc metrics` shows and compares: the recommended point, the floor, each checkpoint's point of least fd."""
    checkpoints = dict.fromkeys(point.checkpoint for point in frontier.points)
    best = {name: best_of(point for point in frontier.points if point.checkpoint == name) for name in checkpoints}
    chosen, crossfit = frontier.recommended.point, frontier.recommended.crossfit
    honest = columns({"fd_crossfit": crossfit}) if crossfit else {}
    return {
        "recommended": {"name": chosen.name, "nfe": chosen.nfe, **_fd(chosen), **honest},
        "floor": _fd(frontier.floor),
        "checkpoints": {name: _fd(point) for name, point in best.items()},  # no more: DVC gives each number a column
    }


def _fd(scored: Scored) -> dict[str, float]:
    return {"fd": scored.fd, "fd_se": scored.fd_se}


def _read(names: list[str]) -> tuple[Frontier, Tensors]:
    """The frontier, and by point its first samples; a UserError if two checkpoints were measured with different things."""
    tables: dict[str, dict[str, Any]] = {}
    points: list[Point] = []
    samples: Tensors = {}
    for name in names:
        tables[name], own_points, own_samples = measured.read(paths.POINTS / name, paths.again(paths.measure(name)))
        points += own_points
        samples |= own_samples
    first = tables[ROOT]
    for name, table in tables.items():
        shared = set(table["about"]) - ({"teacher"} if "floor" in table else set())  # a teacher is compared with itself
        if differ := sorted(key for key in shared if table["about"][key] != first["about"][key]):
            again = paths.again(paths.measure(name))
            raise UserError(
                f"{paths.POINTS / name} was measured with another {differ[0]} than {paths.POINTS / ROOT}; {again}"
            )
    floor = Floor.from_json(first["floor"])
    judge = Skill(**first["judge"])
    about = first["about"]
    whole = tuple(with_crossfit(with_best(points)))
    return Frontier(whole, floor, about["data"], judge, drawn=about.get("drawn", "")), samples


def curves() -> dict[str, str]:
    """The text of each training curve by checkpoint, checked."""
    csvs = {path.stem: path for path in sorted(file.with_suffix("") for file in paths.CURVES.glob("*.csv.sha256"))}
    texts = {name: disk.read_summed(path, paths.again(paths.train(name))) for name, path in csvs.items()}
    if empty := [name for name, text in texts.items() if not text.strip()]:
        raise UserError(f"{csvs[empty[0]]} is empty; {paths.again(paths.train(empty[0]))}")
    return texts


def looked(name: str, csv: str, spent: dict[str, dict[str, Any]]) -> dict[int, float]:
    """By update, the seconds of training until each look at the line `name`; empty where nobody looked."""
    if not tables.looks(csv):
        return {}
    if name not in spent:
        raise UserError(f"{paths.COST / name}.json is missing; {paths.again(paths.train(name))}")
    return {step: seconds for step, seconds in spent[name].get("looks", [])}
