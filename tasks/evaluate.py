"""The stage `evaluate`: every way to sample, measured alike, as points of the frontier."""

import dataclasses
import json
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from diffcore import checkpoints as checkpoint
from diffcore.core import disk, threads
from diffcore.core import rng as draw
from diffcore.core.errors import Mistake
from diffcore.core.kept import Kept
from diffcore.core.shapes import Sample
from diffcore.data import feed, read
from diffcore.denoisers.denoiser import Condition
from diffcore.denoisers.meter import Meter, Metered
from diffcore.metrics import features, floor, likelihood, measures
from diffcore.metrics.frontier import Frontier
from diffcore.metrics.metric import Subject
from diffcore.metrics.point import Point, with_best
from diffcore.metrics.reference import Reference, look
from diffcore.noise import trajectory
from diffcore.noise.trajectory import TRAJECTORIES, Trajectory
from diffcore.sampling.recipe import Recipe
from diffcore.sampling.sampler import Sampler
from diffcore.sampling.solvers.analytic import Analytic
from diffcore.search import gamma
from tasks import graph, paths, pictures
from tasks.params import OWN, ROOT, Params, Way, ways_of
from tasks.progress import Progress, say

SHOWN = 16
"""Samples of each point in its grid, and in a row of the contact sheet: the first ones, never chosen."""


SHARED = ("images", "seed", "batch", "likelihood")
"""Keys of `evaluate` that every point depends on."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """One point to measure. way: what its curve is called; of several tries at as many steps the best counts."""

    name: str
    way: str
    checkpoint: str
    method: str
    trajectory: str
    recipe: Recipe
    times: Trajectory

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "recipe": self.recipe.to_json(), "times": list(self.times.times)}


class Bench:
    """What all points are measured with: the same images, noise, classes and network."""

    def __init__(self, params: Params):
        self.params, self.config = params, params.evaluate
        memory = params.compute.memory_bytes
        self.real, self.network = read.open_images(paths.DATA, memory), features.load(paths.FEATURES)
        self.held_out = read.open_images(paths.HOLDOUT, memory) if paths.HOLDOUT.exists() else None
        self.reference = Reference.of(self.real, self.network, self._looking("real images"))
        held_out = None if self.held_out is None else look(self.held_out, self.network)
        self.floor = floor.floor(self.reference, self.config.images, self.config.seed, held_out)
        self.opened = {name: self._open(name) for name in (ROOT, *params.distill)}
        told = gamma.read(paths.GAMMA, self.opened[ROOT].card.digest, paths.again("gamma"))
        self.gamma = gamma.Gamma.from_json(told)
        _check_searched(told, {name: opened.card.digest for name, opened in self.opened.items()})
        self.labels = draw.labels_like(self.real.labels, self.config.images, self.config.seed)
        self.teacher: Sample | None = None
        self.warm: set[tuple[Any, ...]] = set()

    def _looking(self, what: str) -> Callable[[int, int], None]:
        shown = Progress("evaluate", "images")
        return lambda done, total: shown(done, total, f"{what} looked at")

    def _open(self, name: str) -> checkpoint.Checkpoint:
        return checkpoint.load(paths.CHECKPOINTS / name).to(self.params.compute.device)

    def about(self, plan: Plan) -> dict[str, Any]:
        """All that the numbers of a point depend on but the code, and what the first one adds: what it is compared with."""
        config = {key: value for key, value in self.params.raw["evaluate"].items() if key in SHARED}
        of = {"checkpoint": self.opened[plan.checkpoint].card.digest, "gamma": disk.digest(self.gamma.to_json())}
        return {"plan": plan.to_json(), "config": config, "real": self.reference.digest, **of}

    def sampler(self, plan: Plan) -> Sampler:
        """A Mistake if its checkpoint cannot be sampled so."""
        return plan.recipe.sampler(self.opened[plan.checkpoint], plan.times, self.gamma)

    def measure(self, plan: Plan) -> tuple[Sample, Point]:
        config, opened, meter = self.config, self.opened[plan.checkpoint], Meter()
        sampler, condition = self.sampler(plan), plan.recipe.condition(opened, self.labels)
        drawn = Sampler(Metered(sampler.denoiser, meter), sampler.solver, sampler.trajectory)
        self._warm_up(plan, sampler, condition)
        started = time.perf_counter()
        samples = drawn.draw(opened.shape, config.images, config.seed, config.batch, condition)
        seconds = time.perf_counter() - started
        return samples, Point(
            name=plan.name,
            way=plan.way,
            best=True,
            method=plan.method,
            checkpoint=plan.checkpoint,
            sampler=plan.recipe.to_json()["sampler"],
            trajectory=plan.trajectory,
            recipe=json.dumps(plan.recipe.to_json(), sort_keys=True),
            nfe=meter.spent / config.images,
            metrics=measures.measure(self._subject(plan, samples, sampler, condition)),
            ms_per_image=1000 * seconds / config.images,
            n=config.images,
            seed=config.seed,
            weights=opened.card.weights,
            features=self.network.digest,
            checkpoint_digest=opened.card.digest,
            times=plan.times.times,
        )

    def _warm_up(self, plan: Plan, sampler: Sampler, condition: Condition | None) -> None:
        """Two network calls in each size that the batches will have, so that the clock sees nothing done for the first time.

        Once for a checkpoint and what is done to its network. A cache is made anew for each point, and counts its share then.
        """
        recipe, (count, batch) = plan.recipe, (self.config.images, self.config.batch)
        kind = plan.checkpoint, recipe.skip, recipe.guidance is None
        if recipe.deepcache or kind not in self.warm:
            for few in {min(batch, count), count % batch} - {0}:
                sampler.warm_up(self.opened[plan.checkpoint].shape, few, condition)
        self.warm.add(kind)

    def noted(self, plan: Plan) -> str:
        """What a limit on the last noise did, where the recipe has one."""
        solver = plan.recipe.solver
        if not isinstance(solver, Analytic) or solver.last is None:
            return ""
        lowered = solver.knowing(self.gamma).lowered(self.opened[plan.checkpoint].denoiser.schedule, plan.times)
        return f"  last {solver.last:g} {'lowers the noise of one step' if lowered else 'lowers nothing'}"

    def _subject(self, plan: Plan, samples: Sample, sampler: Sampler, condition: Condition | None) -> Subject:
        """The way to sample as the metrics see it."""
        return Subject(
            samples,
            self.reference,
            self.network,
            self.config.seed,
            teacher=self.teacher,
            classes=self.labels if condition else None,
            real_classes=self.real.labels,
            model=self._model(plan, sampler),
        )

    def _model(self, plan: Plan, sampler: Sampler) -> likelihood.Model | None:
        """The sampler as a model of real images, of those held out of all training where there are such.

        A cache is none: it remembers from step to step what a likelihood asks for anew.
        """
        asked, real = self.config.likelihood, self.real if self.held_out is None else self.held_out
        count = min(asked.images, len(real))
        if not count or plan.recipe.deepcache:
            return None
        chosen = draw.some(count, len(real), asked.seed, "likelihood")
        images, labels = feed.to_float(real.take(chosen)), None if real.labels is None else real.labels[chosen]
        condition = plan.recipe.condition(self.opened[plan.checkpoint], labels)
        return likelihood.Model(sampler, images, asked.seed, asked.probes, self.config.batch, condition)


class Measured:
    """The points that are measured already, of this run or of one that was killed."""

    def __init__(self, bench: Bench, plans: list[Plan]):
        compute = bench.params.compute
        shared = {"code": graph.code_digest("evaluate"), "threads": compute.threads, "device": str(compute.device)}
        self.kept = Kept(paths.RESUME / "evaluate.points", lambda words: say(f"evaluate: {words}"))
        self.bench, self.shared = bench, {**shared, "first": bench.about(plans[0])}
        found = [self.kept.load(self._job(each)) for each in plans]
        self.found = {each.name: one for each, one in zip(plans, found) if one is not None}
        if self.found:
            say(f"evaluate: goes on after {len(self.found)} of {len(plans)} points")

    def point(self, plan: Plan) -> tuple[Point, np.ndarray]:
        """The point, and its first samples, uint8 [SHOWN, h, w, c]. The first point's samples are what others are compared
        with."""
        if plan.name in self.found:
            value, tensors = self.found[plan.name]
            point = Point.from_json(value)
        else:
            samples, point = self.bench.measure(plan)
            tensors = {"shown": feed.to_uint8(samples[:SHOWN]).permute(0, 2, 3, 1)}
            tensors |= {"samples": samples} if self.bench.teacher is None else {}
            self.kept.save(self._job(plan), point.to_json(), tensors)
        if self.bench.teacher is None:
            self.bench.teacher = tensors["samples"]
        return point, tensors["shown"].numpy()

    def _job(self, plan: Plan) -> dict[str, Any]:
        return {**self.bench.about(plan), **self.shared}


def evaluate(params: Params) -> None:
    threads.use(params.compute.threads)
    bench = Bench(params)
    plans = list(plan(params, bench.opened))
    if twice := sorted(name for name, count in Counter(each.name for each in plans).items() if count > 1):
        raise Mistake(f"evaluate names {twice[0]!r} twice; leave one of the two ways to sample out")
    for each in plans:
        bench.sampler(each)  # what cannot be sampled is known before anything is
    measured, points, rows = Measured(bench, plans), [], []
    with disk.folder(paths.SAMPLES) as folder:
        for number, each in enumerate(plans):
            point, shown = measured.point(each)
            points.append(point)
            rows.append(shown)
            pictures.grid(shown, folder / f"{each.name}.png")
            if each.name not in measured.found:
                told = f"fd {point.fd:8.3f} +- {point.fd_se:.3f}  {point.ms_per_image:.3g} ms/image{bench.noted(each)}"
                say(f"evaluate   {number + 1:>3}/{len(plans)}  {each.name:<36} {told}")
        points = with_best(points)
        labelled = [(point.name, shown) for point, shown in zip(points, rows) if point.best]
        real = bench.real.take(range(min(SHOWN, len(bench.real)))).permute(0, 2, 3, 1).numpy()
        pictures.contact_sheet([*labelled, ("real", real)], folder / "all.png")
    frontier = Frontier(tuple(points), bench.floor, bench.opened[ROOT].card.data, bench.network.card.skill)
    frontier = dataclasses.replace(frontier, recommended=frontier.recommend(params.publish.tolerance))
    disk.write_sealed(paths.FRONTIER, frontier.to_json())
    disk.write(paths.FRONTIER.with_suffix(".csv"), frontier.to_csv())
    pictures.frontier(frontier, paths.FRONTIER.with_suffix(".png"))
    pictures.curves(curves(), paths.ARTIFACTS / "curves.png")
    measured.kept.clear()


def curves() -> dict[str, Path]:
    """The training curves by checkpoint, each checked."""
    found = {path.stem: path for path in sorted(file.with_suffix("") for file in paths.CURVES.glob("*.csv.sha256"))}
    for name, path in found.items():
        disk.read_summed(path, paths.again(paths.stage(name)))
    return found


def plan(params: Params, opened: dict[str, checkpoint.Checkpoint]) -> Iterator[Plan]:
    """All points, the teacher's first way first: its first point is what fidelity compares with."""
    ways = params.evaluate
    for way in ways.teacher:
        yield from _points(ROOT, opened[ROOT], way)
    for name in params.distill:
        usual = name not in ways.students and opened[name].denoiser.grid is not None
        for _, way in ways_of(name, ways, params.distill):
            yield from _points(name, opened[name], way, usual)


def _points(name: str, opened: checkpoint.Checkpoint, way: Way, usual: bool = False) -> Iterator[Plan]:
    grid, method = opened.denoiser.grid, "teacher" if name == ROOT else opened.card.method
    for steps in sorted(way.steps, reverse=True) or [grid.steps]:
        for kind in way.trajectories:
            for recipe in (recipe.on(opened) for recipe in way.recipes()):
                words = [name, way.sampler, *_told(recipe), *([] if kind == OWN else [kind, steps])]
                times = grid if kind == OWN else _times(name, kind, steps, opened)
                curve = " ".join([method, *([] if usual else _curve(way, recipe))])
                yield Plan("-".join(map(str, words)).replace("_", "-"), curve, name, method, kind, recipe, times)


def _told(recipe: Recipe) -> list[str]:
    """What a recipe has beside its sampler's word, for a name."""
    found = recipe.to_json()
    words = [
        f"{key}{value:g}" if isinstance(value, float) else f"{key}{value}"
        for key, value in found.get("options", {}).items()
    ]
    if recipe.deepcache:
        cache = recipe.deepcache
        crowded = f"c{cache.center:g}p{cache.power:g}" if cache.spread == "quadratic" else ""
        words.append(f"cache{cache.interval}b{cache.branch}{crowded}")
    if recipe.skip:
        words.append(f"skip{recipe.skip.bottom:g}to{recipe.skip.top:g}")
    if recipe.clip is not None:
        words.append(f"clip{recipe.clip:g}" if recipe.clip else "unclipped")
    if recipe.threshold:
        words.append(f"threshold{recipe.threshold.quantile:g}to{recipe.threshold.max:g}")
    if recipe.guidance is not None:
        words.append(f"g{recipe.guidance:g}")
    if recipe.negative is not None:  # a class's name, which may hold anything
        words.append("not-" + re.sub(r"\W+", "-", str(recipe.negative)))
    return words


def _curve(way: Way, recipe: Recipe) -> list[str]:
    """What a curve is called: of what is tried, no word, for the best of it is shown."""
    alone = {"deepcache": not isinstance(way.deepcache, list), "skip": not isinstance(way.skip, list)}
    kept = dataclasses.replace(recipe, **{key: None for key, one in alone.items() if not one})
    words = [way.sampler, *_told(kept), *(key for key, one in alone.items() if not one)]
    kinds = way.trajectories
    return words + ([] if kinds == [OWN] else [kinds[0]] if len(kinds) == 1 else ["best grid"])


def _times(name: str, kind: str, steps: int, opened: checkpoint.Checkpoint) -> Trajectory:
    if kind in TRAJECTORIES:
        return TRAJECTORIES[kind](steps, opened.denoiser.schedule)
    found = _searched()
    if kind == "fitted":
        known = found["fitted"].get(name)
        if known is None:
            raise Mistake(f"no times are fitted for {name}; run the stage `search` again")
        if str(steps) not in known:
            raise Mistake(f"no fitted trajectory of {steps} steps for {name}; raise search.fitted.points to {steps}")
        return Trajectory(tuple(known[str(steps)]))
    if str(steps) not in found["nodes"]:
        raise Mistake(f"no searched trajectory of {steps} steps; raise search.most to at least {steps}")
    return trajectory.nodes(found["nodes"][str(steps)], found["about"]["steps"])


def _searched() -> dict[str, Any]:
    return disk.read_sealed(paths.TRAJECTORY, trajectory.SCHEMA, paths.again("search"))


def _check_searched(told: dict[str, Any], digests: Mapping[str, str]) -> None:
    """A Mistake if trajectory.json was not made from this gamma.json, `told`, and from checkpoints with these digests."""
    made = _searched()["from"]
    if made["gamma"] != disk.digest(told):
        raise Mistake(f"{paths.TRAJECTORY} was made from another {paths.GAMMA.name}; {paths.again('search')}")
    for name, digest in made["checkpoints"].items():
        if digests.get(name, digest) != digest:
            raise Mistake(f"{paths.TRAJECTORY} was fitted to another checkpoint {name}; {paths.again('search')}")
