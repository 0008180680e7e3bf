"""The stage `evaluate`: every way to sample, measured alike, as points of the frontier."""

import dataclasses
import json
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from diffcore import (
    checkpoint,
    disk,
    draw,
    features,
    feed,
    gamma,
    likelihood,
    quality,
    shards,
    threads,
    trajectory,
)
from diffcore.frontier import Frontier, Point, with_best
from diffcore.meter import Meter, Metered
from diffcore.mistake import Mistake
from diffcore.recipe import Recipe
from diffcore.sampler import Sampler
from diffcore.shapes import Sample
from diffcore.trajectory import TRAJECTORIES, Trajectory
from tasks import paths, pictures
from tasks.params import OWN, ROOT, Params, Way, ways_of
from tasks.progress import say

SHOWN = 16
"""Samples of each point in its grid, and in a row of the contact sheet: the first ones, never chosen."""


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


class Bench:
    """What all points are measured with: the same images, noise, classes and network."""

    def __init__(self, params: Params):
        self.params, self.config = params, params.evaluate
        self.real, self.network = shards.load_resident(paths.DATA), features.load(paths.FEATURES)
        say(f"evaluate: looking at {len(self.real)} real images")
        self.reference = quality.Reference.of(self.real.pixels, self.network)
        self.floor = quality.floor(self.reference, self.config.images, self.config.seed)
        self.opened = {name: self._open(name) for name in (ROOT, *params.distill)}
        told = gamma.read(paths.GAMMA, self.opened[ROOT].card.digest, paths.again("gamma"))
        self.gamma = gamma.Gamma.from_json(told)
        _check_searched(told, {name: opened.card.digest for name, opened in self.opened.items()})
        self.labels = draw.labels_like(self.real.labels, self.config.images, self.config.seed)
        self.teacher: Sample | None = None

    def _open(self, name: str) -> checkpoint.Checkpoint:
        return checkpoint.load(paths.CHECKPOINTS / name).to(self.params.compute.device)

    def measure(self, plan: Plan) -> tuple[Sample, Point]:
        config, opened, meter = self.config, self.opened[plan.checkpoint], Meter()
        sampler = plan.recipe.sampler(opened, plan.times, self.gamma)
        condition = plan.recipe.condition(opened, self.labels)
        drawn = Sampler(Metered(sampler.denoiser, meter), sampler.solver, sampler.trajectory)
        few = min(config.batch, config.images)  # warm up before the clock
        sampler.draw(opened.shape, few, config.seed, few, condition and condition[:few])
        started = time.perf_counter()
        samples = drawn.draw(opened.shape, config.images, config.seed, config.batch, condition)
        seconds = time.perf_counter() - started
        self.teacher = samples if self.teacher is None else self.teacher
        compared = None if samples is self.teacher else quality.fidelity(samples, self.teacher)
        accuracy = self._accuracy(samples) if condition else None
        bits = self._bits(plan, opened, sampler)
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
            rmse_teacher=compared and compared.rmse,
            rmse_teacher_se=compared and compared.se,
            accuracy=accuracy and accuracy.mean,
            accuracy_se=accuracy and accuracy.se,
            bits=bits and bits.mean,
            bits_se=bits and bits.se,
            ms_per_image=1000 * seconds / config.images,
            seed=config.seed,
            weights=opened.card.weights,
            features=self.network.digest,
            checkpoint_digest=opened.card.digest,
            times=plan.times.times,
            **dataclasses.asdict(quality.measure(samples, self.reference, self.network, config.seed)),
        )

    def _accuracy(self, samples: Sample) -> quality.Share | None:
        """None where the data have one class, of which the feature network learned nothing."""
        if self.network.card.task != "classes":
            return None
        return quality.accuracy(samples, self.labels, self.real.labels, self.network)

    def _bits(self, plan: Plan, opened: checkpoint.Checkpoint, sampler: Sampler) -> likelihood.Bits | None:
        """Bits per dimension of real images, where a way to sample is a model of the data with a likelihood.

        A cache has none: it remembers from step to step what a likelihood asks for anew.
        """
        asked = self.config.likelihood
        count = min(asked.images, len(self.real))
        if not count or plan.recipe.deepcache:
            return None
        chosen = draw.some(count, len(self.real), asked.seed, "likelihood")
        images = feed.to_float(self.real.pixels[chosen])
        labels = None if self.real.labels is None else self.real.labels[chosen]
        condition = plan.recipe.condition(opened, labels)
        return likelihood.of(sampler, images, asked.seed, asked.probes, self.config.batch, condition)


def evaluate(params: Params) -> None:
    threads.use(params.compute.threads)
    bench = Bench(params)
    plans = list(plan(params, bench.opened))
    if twice := sorted(name for name, count in Counter(each.name for each in plans).items() if count > 1):
        raise Mistake(f"evaluate names {twice[0]!r} twice; leave one of the two ways to sample out")
    points, rows = [], []
    with disk.folder(paths.SAMPLES) as folder:
        for number, each in enumerate(plans):
            samples, point = bench.measure(each)
            points.append(point)
            shown = feed.to_uint8(samples[:SHOWN]).permute(0, 2, 3, 1).numpy()
            rows.append(shown)
            pictures.grid(shown, folder / f"{each.name}.png")
            fd = f"fd {point.fd:8.3f} +- {point.fd_se:.3f}"
            say(f"evaluate   {number + 1:>3}/{len(plans)}  {each.name:<36} {fd}  {point.ms_per_image:.3g} ms/image")
        points = with_best(points)
        labelled = [(point.name, shown) for point, shown in zip(points, rows) if point.best]
        real = bench.real.pixels[:SHOWN].permute(0, 2, 3, 1).numpy()
        pictures.contact_sheet([*labelled, ("real", real)], folder / "all.png")
    frontier = Frontier(tuple(points), bench.floor, bench.opened[ROOT].card.data)
    value = frontier.to_json(frontier.recommend(params.publish.tolerance))
    disk.write_sealed(paths.FRONTIER, value)
    disk.write(paths.FRONTIER.with_suffix(".csv"), frontier.to_csv())
    pictures.frontier(value, paths.FRONTIER.with_suffix(".png"))
    pictures.curves(curves(), paths.ARTIFACTS / "curves.png")


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
            for recipe in way.recipes():
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
