"""The stage `evaluate`: every way to sample, measured alike, as points of the frontier."""

import dataclasses
import json
import time
from collections.abc import Iterator

from diffcore import checkpoint, disk, features, feed, gamma, quality, shards, threads, trajectory
from diffcore.frontier import Frontier, Point
from diffcore.mistake import Mistake
from diffcore.sampler import Sampler
from diffcore.shapes import Sample
from diffcore.solver import Solver
from diffcore.solvers import SOLVERS
from diffcore.solvers.analytic import Analytic
from diffcore.trajectory import Trajectory
from tasks import paths, pictures
from tasks.params import ROOT, Params, Way
from tasks.progress import say

SHOWN = 16
"""Samples of each point in its grid, and in a row of the contact sheet: the first ones, never chosen."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """One point to measure."""

    name: str
    checkpoint: str
    method: str
    solver: str
    trajectory: str
    times: Trajectory


def evaluate(params: Params) -> None:
    threads.use(params.compute.threads)
    images, network = shards.load_resident(paths.DATA), features.load(paths.FEATURES)
    say(f"evaluate: looking at {len(images)} real images")
    reference = quality.Reference.of(images.pixels, network)
    floor = quality.floor(reference, params.evaluate.images, params.evaluate.seed)
    opened = {name: _open(name, params) for name in (ROOT, *params.distill)}
    plans = list(plan(params, opened))
    points, rows, teacher = [], [], None
    with disk.folder(paths.SAMPLES) as folder:
        for number, each in enumerate(plans):
            samples, point = _measure(each, opened[each.checkpoint], params, reference, network, teacher)
            teacher = samples if teacher is None else teacher
            points.append(point)
            shown = feed.to_uint8(samples[:SHOWN]).permute(0, 2, 3, 1).numpy()
            rows.append((each.name, shown))
            pictures.grid(shown, folder / f"{each.name}.png")
            fd = f"fd {point.fd:8.3f} +- {point.fd_se:.3f}"
            say(f"evaluate   {number + 1:>3}/{len(plans)}  {each.name:<32} {fd}  {point.ms_per_image:.3g} ms/image")
        rows.append(("real", images.pixels[:SHOWN].permute(0, 2, 3, 1).numpy()))
        pictures.contact_sheet(rows, folder / "all.png")
    frontier = Frontier(tuple(points), floor, opened[ROOT].card.data)
    chosen = frontier.recommend(params.publish.tolerance)
    value = frontier.to_json(chosen)
    disk.write_json(paths.FRONTIER, value)
    disk.write(paths.FRONTIER.with_suffix(".csv"), frontier.to_csv())
    pictures.frontier(value, paths.FRONTIER.with_suffix(".png"))
    pictures.curves({path.stem: path for path in sorted(paths.CURVES.glob("*.csv"))}, paths.ARTIFACTS / "curves.png")


def plan(params: Params, opened: dict[str, checkpoint.Checkpoint]) -> Iterator[Plan]:
    """All points, the teacher's first way first: its first point is what fidelity compares with."""
    for way in params.evaluate.teacher:
        yield from _ways(ROOT, "teacher", way)
    for name, line in params.distill.items():
        grid = opened[name].denoiser.grid
        if grid is not None:
            yield Plan(f"{name}-{line.method.SOLVER}", name, opened[name].card.method, line.method.SOLVER, "own", grid)
            continue
        for way in params.evaluate.anytime:
            yield from _ways(name, opened[name].card.method, way)


def _ways(name: str, method: str, way: Way) -> Iterator[Plan]:
    for steps in sorted(way.steps, reverse=True):
        point = f"{name}-{way.sampler}-{way.trajectory}-{steps}".replace("_", "-")
        yield Plan(point, name, method, way.sampler, way.trajectory, _times(way.trajectory, steps))


def _times(kind: str, steps: int) -> Trajectory:
    if kind != "searched":
        return {"even": trajectory.even, "quadratic": trajectory.quadratic}[kind](steps)
    found = json.loads(paths.TRAJECTORY.read_text())
    if str(steps) not in found["nodes"]:
        raise Mistake(f"no searched trajectory of {steps} steps; raise search.most to at least {steps}")
    return trajectory.nodes(found["nodes"][str(steps)], found["about"]["steps"])


def _solver(word: str, params: Params) -> Solver:
    if word != "analytic":
        return SOLVERS[word]()
    return Analytic(estimator=params.search.estimator).knowing(
        gamma.Gamma.from_json(json.loads(paths.GAMMA.read_text()))
    )


def _open(name: str, params: Params) -> checkpoint.Checkpoint:
    return checkpoint.load(paths.CHECKPOINTS / name).to(params.compute.device)


def _measure(
    each: Plan,
    opened: checkpoint.Checkpoint,
    params: Params,
    reference: quality.Reference,
    network: features.Features,
    teacher: Sample | None,
) -> tuple[Sample, Point]:
    config = params.evaluate
    sampler = Sampler(opened.denoiser, _solver(each.solver, params), each.times)
    sampler.draw(opened.shape, min(config.batch, config.images), config.seed, config.batch)  # warm up before the clock
    started = time.perf_counter()
    samples = sampler.draw(opened.shape, config.images, config.seed, config.batch)
    seconds = time.perf_counter() - started
    found = quality.measure(samples, reference, network, config.seed)
    fidelity = quality.fidelity(samples, teacher) if teacher is not None else None
    point = Point(
        name=each.name,
        method=each.method,
        checkpoint=each.checkpoint,
        sampler=each.solver,
        trajectory=each.trajectory,
        nfe=sampler.nfe,
        rmse_teacher=fidelity.rmse if fidelity else None,
        rmse_teacher_se=fidelity.se if fidelity else None,
        ms_per_image=1000 * seconds / config.images,
        seed=config.seed,
        weights=opened.card.weights,
        features=network.digest,
        checkpoint_digest=opened.card.digest,
        times=each.times.times,
        **dataclasses.asdict(found),
    )
    return samples, point
