"""The stage `measure`: one checkpoint by every sampling that is for it, as points of the frontier.

Each checkpoint is measured by itself, so that several are at once where there are slots, and a new one measures nothing but
its own points. What all share: the real images, the noise, the classes, and the teacher's samples that fidelity compares
with, which the teacher's own measuring writes apart.
"""

import dataclasses
import functools
import itertools
import json
import operator
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from diffcore import checkpoints
from diffcore.checkpoints.encoded import embeddings_of
from diffcore.core import disk, precision, processes, rng, threads
from diffcore.core.errors import UserError
from diffcore.core.kept import Kept, Tensors
from diffcore.core.shapes import Sample, batches
from diffcore.data import feed, prompts, read
from diffcore.data.embeddings import Embeddings
from diffcore.data.manifest import Manifest
from diffcore.denoisers.bfloat16 import BFloat16
from diffcore.denoisers.condition import CLASS, Condition
from diffcore.denoisers.meter import Meter
from diffcore.metrics import features, halvings, judges, likelihood, measured, measures, statistics
from diffcore.metrics.courts import Courts
from diffcore.metrics.drawing import CHECKED, Drawing, held_against
from diffcore.metrics.estimate import Estimate
from diffcore.metrics.floor import Floor
from diffcore.metrics.judge import Court
from diffcore.metrics.judge_file import JudgeFile
from diffcore.metrics.measures.caption_accuracy import caption_accuracy
from diffcore.metrics.metric import Subject, Unseen
from diffcore.metrics.point import Point
from diffcore.metrics.reference import Reference, look
from diffcore.noise import trajectory
from diffcore.noise.trajectory import TRAJECTORIES, Trajectory
from diffcore.sampling.headroom import Headroom, largest
from diffcore.sampling.recipe import Recipe
from diffcore.sampling.sampler import Sampler
from diffcore.sampling.solvers.analytic import Analytic
from diffcore.search import fitted, gamma
from tasks import graph, paths, prompted
from tasks.params import ROOT, Params
from tasks.progress import Progress, log
from tasks.rules import samplings_of
from tasks.sections import OWN, Sampling

SHOWN = 16
"""Samples of each point in its grid, and in a row of the contact sheet: the first ones, never chosen."""


UNSEEN = 4
"""How many times fewer samples are drawn for captions that were not trained on."""

SHARED = ("images", "seed", "batch", "precision", "likelihood")
"""Keys of `evaluate` that every point depends on."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """One point to measure. curve: its legend label; of several points of a curve at as many steps the best counts."""

    name: str
    curve: str
    checkpoint: str
    method: str
    trajectory: str
    recipe: Recipe
    times: Trajectory

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "recipe": self.recipe.to_json(), "times": list(self.times.times)}


class Bench:
    """What all points of one checkpoint are measured with: the same images, noise, classes and network."""

    def __init__(self, params: Params, name: str):
        self.params, self.config, self.name = params, params.evaluate, name
        memory = params.compute.memory_bytes
        self.real = read.open_images(paths.DATA, memory)
        self.network = features.load(paths.FEATURES).to(params.compute.device)
        self.held_out = read.open_images(paths.HOLDOUT, memory) if paths.HOLDOUT.exists() else None
        held_out = None if self.held_out is None else look(self.held_out, self.network)
        self.reference = Reference.of(self.real, self.network, self._looking("real images"), held_out)
        self.courts = courts(params, f"measure {name}")
        self.judges = [self._court(*each) for each in params.evaluate.judge_files.items()]
        self.opened = self._open(name)
        self.others = [self._open_training(number) for number in range(1, params.trainings(name))]
        self.is_root = name in params.teachers
        root = None if self.is_root else checkpoints.read_card(paths.CHECKPOINTS / ROOT).digest
        content = gamma.read(paths.GAMMA, self.opened.card.digest if name == ROOT else root, paths.again("gamma"))
        self.gamma, self.least_cost = gamma.Gamma.from_json(content), _least_cost(content)
        manifest = Manifest.read(paths.DATA, verify=False)
        self.texts, self.drawn_by = embeddings_of(self.opened.card, paths.TEXT, manifest), manifest.drawn_by
        self.places = rng.places_like(len(self.real), self.config.images, self.config.seed)
        self.prompts = prompts.known(self.real, self.texts, self.places)
        self.captions = _captions(self.places) if self.texts and manifest.captions else None
        self.teacher: Sample | None = None if root is None else _reference(root)
        self.warm: set[tuple[Any, ...]] = set()
        self._negatives: dict[Any, dict[str, Any] | None] = {}
        self.drawing: Drawing | None = None  # decided at the first point
        self.batch: int | None = None if self.config.batch == "auto" else self.config.batch
        self.headroom = Headroom(on_less=self._warn)

    def _warn(self, most: int) -> None:
        log(f"measure {self.name}: the memory of the GPU is not enough for more than {most} samples at once")

    def _looking(self, images: str) -> Callable[[int, int], None]:
        progress = Progress(f"measure {self.name}", "images")
        return lambda done, total: progress(done, total, f"{images} looked at")

    def _open(self, name: str) -> checkpoints.Checkpoint:
        return checkpoints.load(paths.CHECKPOINTS / name).to(self.params.compute.device)

    def _open_training(self, number: int) -> checkpoints.Checkpoint:
        """A further training of the line."""
        folder = paths.training(self.name, number)
        if not folder.is_dir():
            raise UserError(f"{folder} is missing; {paths.again(paths.train(self.name))}")
        return checkpoints.load(folder).to(self.params.compute.device)

    def _court(self, name: str, file: JudgeFile) -> Court:
        judge = judges.load(name, file).to(self.params.compute.device)
        log(f"measure {self.name}: judged by {judge} too")
        if file.reference is not None:
            return Court.against_file(judge, statistics.read(Path(file.reference)), self.real.shape)
        return self.courts.court(judge, self.real, self._looking(f"real images by {name}"))

    @property
    def judged(self) -> str:
        """By which judges, in words that no other weights, preprocessing or reference share."""
        return "; ".join(map(str, self.judges))

    def floor(self) -> Floor:
        """What a perfect sampler is to expect: of captions, what the real images score that were asked for."""
        reference = self.reference
        distances = halvings.floor(reference, self.config.images, self.config.seed, reference.held_out)
        if self.captions is None:
            return distances
        accuracy = caption_accuracy(feed.to_float(self.real.take(self.places)), self.captions, self.network)
        more = {} if accuracy is None else {"caption_accuracy": accuracy}
        return dataclasses.replace(distances, metrics=distances.metrics | more)

    @functools.cached_property
    def gamma_digest(self) -> str:
        """What tells this Gamma from another; asked for of every point."""
        return disk.digest(self.gamma.to_json())

    @functools.cached_property
    def fitted(self) -> dict[int, Trajectory]:
        """Times fitted to the teacher's own path, by number of steps, with classes drawn as the samples' are."""
        config, own = self.config.fitted, self.opened
        teacher = own if self.name == ROOT else self._open(ROOT)
        known = prompts.like(self.real, self.texts, config.images, config.seed) if teacher.denoiser.is_told else {}
        condition = Condition(known) if known else None
        hop_errors = fitted.hop_errors(own.denoiser, teacher.denoiser, config, own.shape, condition=condition)
        times = fitted.fit(hop_errors, config.late)
        example = ", ".join(f"{t:.3g}" for t in times[min(4, config.points)].times)
        log(f"measure {self.name}: times fitted to the teacher's path; with {min(4, config.points)} steps: {example}")
        return times

    def times(self, kind: str, steps: int) -> Trajectory:
        """The trajectory of this kind with so many steps; a UserError where there is none."""
        if kind in TRAJECTORIES:
            return TRAJECTORIES[kind](steps, self.opened.denoiser.schedule)
        if kind == "fitted":
            if steps not in self.fitted:
                raise UserError(f"no fitted trajectory of {steps} steps; raise evaluate.fitted.points to {steps}")
            return self.fitted[steps]
        nodes = self.least_cost["nodes"]
        if str(steps) not in nodes:
            raise UserError(f"no least_cost trajectory of {steps} steps; raise search.most to at least {steps}")
        return trajectory.nodes(nodes[str(steps)], self.least_cost["about"]["steps"])

    def about(self, plan: Plan) -> dict[str, Any]:
        """All that the numbers of a point depend on but the code, and what it is compared with."""
        config = {key: value for key, value in self.params.raw["evaluate"].items() if key in SHARED}
        of = {"checkpoint": self.opened.card.digest, "gamma": self.gamma_digest}
        of |= {"judges": self.judged} if self.judged else {}
        of |= {"texts": self.texts.digest} if self.texts else {}
        of |= {"trainings": [each.card.digest for each in self.others]} if self.others else {}
        return {"plan": plan.to_json(), "config": config, "real": self.reference.digest, **of}

    def sampler(self, plan: Plan) -> Sampler:
        """A UserError if its checkpoint cannot be sampled so."""
        return plan.recipe.sampler(self.opened, plan.times, self.gamma)

    def _condition(self, plan: Plan, inputs: feed.Inputs) -> Condition | None:
        """What the network is told of samples of which this is known."""
        if plan.recipe.negative not in self._negatives:
            self._negatives[plan.recipe.negative] = prompted.away(plan.recipe, self.opened, self.params)
        return plan.recipe.condition(self.opened, inputs, self._negatives[plan.recipe.negative])

    @precision.exact()
    def measure(self, plan: Plan) -> tuple[Sample, Point]:
        config, opened, meter = self.config, self.opened, Meter()
        sampler, condition = self.sampler(plan), self._condition(plan, self.prompts)
        self._decide(sampler, condition)
        drawn = _in(self.drawing.precision, sampler)
        self._warm_up(plan, drawn, condition)
        started = time.perf_counter()
        samples = drawn.draw(opened.shape, config.images, config.seed, self.batch, condition, meter, self.headroom)
        seconds = time.perf_counter() - started
        subject = self._subject(samples, condition, self._model(plan, sampler), self._unseen(plan, drawn))
        drawn_here = sum(map(len, processes.share(batches(range(config.images), self.batch))))
        return samples, Point(
            name=plan.name,
            curve=plan.curve,
            best=True,
            method=plan.method,
            checkpoint=plan.checkpoint,
            sampler=plan.recipe.to_json()["sampler"],
            trajectory=plan.trajectory,
            recipe=json.dumps(plan.recipe.to_json(), sort_keys=True),
            nfe=processes.total(meter.settle()) / config.images,
            metrics=measures.measure(subject) | self._of_judges(subject),
            ms_per_image=1000 * seconds / max(1, drawn_here),
            n=config.images,
            seed=config.seed,
            weights=opened.card.weights,
            features=self.network.digest,
            checkpoint_digest=opened.card.digest,
            times=plan.times.times,
            precision=self.drawing.precision,
            check=self.drawing.check,
            judges=self.judged,
            halves=subject.halves,
            halves_se=subject.halves and subject.halves_se,
            trainings=self._of_trainings(plan, condition, subject),
        )

    def _of_trainings(self, plan: Plan, condition: Condition | None, first: Subject) -> tuple[float, ...] | None:
        """The Frechet distance of each training of the line, sampled alike from the same noise; None of a single one."""
        config, distances = self.config, [first.frechet.value]
        for other in self.others:
            drawn = _in(self.drawing.precision, plan.recipe.sampler(other, plan.times, self.gamma))
            samples = drawn.draw(other.shape, config.images, config.seed, self.batch, condition, headroom=self.headroom)
            distances.append(self._subject(samples, condition).fd)
        return tuple(distances) if self.others else None

    def _of_judges(self, subject: Subject) -> dict[str, Estimate]:
        estimates = (court.measure(subject.samples) for court in self.judges)
        return functools.reduce(operator.or_, estimates, {})

    def _decide(self, sampler: Sampler, condition: Condition | None) -> None:
        """At the first point: how many samples are drawn at once, and in which precision."""
        shape, images, device = self.opened.shape, self.config.images, self.params.compute.device
        if self.batch is None:
            fits = largest(lambda count: sampler.warm_up(shape, count, condition), images, device)
            self.batch = processes.from_main(fits)
            log(f"measure {self.name}: {self.batch} samples are drawn at once")
        if self.drawing is None:
            self.drawing = Drawing(**processes.from_main(vars(self._drawing(sampler, condition))))
            if self.drawing.check:
                log(f"measure {self.name}: samples are drawn in {self.drawing.precision}: {self.drawing.check}")

    def _drawing(self, sampler: Sampler, condition: Condition | None) -> Drawing:
        asked, images = self.config.precision, self.config.images
        if asked == "float32" or (asked == "auto" and not precision.has_bf16(self.params.compute.device)):
            return Drawing()
        if self.opened.denoiser.reading.parameterization == "eps":
            return Drawing(check="a network that says eps computes in float32")
        if asked == "bf16":
            return Drawing("bf16")
        count = min(CHECKED, images)
        few = condition and condition[:count]

        def scores(rounded: bool) -> dict[str, Estimate]:
            drawn = _in("bf16" if rounded else "float32", sampler)
            samples = drawn.draw(self.opened.shape, count, self.config.seed, self.batch, few, headroom=self.headroom)
            return measures.measure(self._subject(samples, few))

        return held_against(scores, count, images)

    def _warm_up(self, plan: Plan, sampler: Sampler, condition: Condition | None) -> None:
        """Two network calls in each size that the batches will have, so that the clock sees nothing done for the first time.

        Once for what is done to the network. A cache is made anew for each point, and counts its share then.
        """
        recipe, (count, batch) = plan.recipe, (self.config.images, self.batch)
        kind = recipe.skip, recipe.guidance is None
        if recipe.deepcache or kind not in self.warm:
            for few in {min(batch, count), count % batch} - {0}:
                self.headroom.split(range(few), lambda rows: [sampler.warm_up(self.opened.shape, len(rows), condition)])
        self.warm.add(kind)

    def noted(self, plan: Plan) -> str:
        """What a limit on the last noise did, where the recipe has one."""
        solver = plan.recipe.solver
        if not isinstance(solver, Analytic) or solver.last is None:
            return ""
        lowered = solver.with_gamma(self.gamma).lowered(self.opened.denoiser.schedule, plan.times)
        return f"  last {solver.last:g} {'lowers the noise of one step' if lowered else 'lowers nothing'}"

    def _unseen(self, plan: Plan, drawn: Sampler) -> Unseen | None:
        """A quarter as many samples, of each caption of `data.unseen` in turn, from the first noises; None without such."""
        if self.texts is None or not self.texts.unseen:
            return None
        count, captions = max(2, self.config.images // UNSEEN), self.texts.unseen
        rows = [i % len(captions) for i in range(count)]
        known = {name: part[rows] for name, part in self.texts.unseen_inputs().items()}
        condition = self._condition(plan, known)
        samples = drawn.draw(self.opened.shape, count, self.config.seed, self.batch, condition, headroom=self.headroom)
        return Unseen(samples, [captions[row] for row in rows])

    def _subject(
        self,
        samples: Sample,
        condition: Condition | None,
        model: likelihood.Model | None = None,
        unseen: Unseen | None = None,
    ) -> Subject:
        """Samples as the metrics see them, all of a point or the first of them."""
        count = len(samples)
        teacher = self.teacher if self.name == ROOT or not self.is_root else None  # one column, one teacher
        return Subject(
            samples,
            self.reference,
            self.network,
            self.config.seed,
            teacher=None if teacher is None else teacher[:count],
            classes=condition.class_labels[:count] if condition and CLASS in condition.inputs else None,
            real_classes=self.real.labels,
            model=model,
            captions=self.captions and self.captions[:count],
            unseen=unseen,
        )

    @functools.cached_property
    def _held_out_texts(self) -> Embeddings | None:
        return embeddings_of(self.opened.card, paths.TEXT_HOLDOUT, Manifest.read(paths.HOLDOUT, verify=False))

    def _model(self, plan: Plan, sampler: Sampler) -> likelihood.Model | None:
        """The sampler as a model of real images, of those held out of all training where there are such; in float32.

        A cache is none: it remembers from step to step what a likelihood asks for anew.
        """
        config = self.config.likelihood
        real = self.real if self.held_out is None else self.held_out
        count = min(config.images, len(real))
        if not count or plan.recipe.deepcache:
            return None
        chosen = rng.some(count, len(real), config.seed, "likelihood")
        images = feed.to_float(real.take(chosen))
        texts = self.texts if real is self.real else self._held_out_texts
        condition = self._condition(plan, prompts.known(real, texts, chosen))
        return likelihood.Model(sampler, images, config.seed, config.probes, self.config.usual_batch, condition)


class Measured:
    """The points that are measured already, of this run, of one that was killed, or of one before with other samplings beside
    them: a point is measured once."""

    def __init__(self, bench: Bench, plans: list[Plan]):
        compute, at = bench.params.compute, bench.name
        self.shared = {"code": graph.code_digest("measure"), "threads": compute.threads, "device": compute.device.type}
        self.shared["first"] = bench.about(plans[0]) if bench.teacher is None else measured.digest_of(bench.teacher)
        self.kept = Kept(paths.RESUME / f"measure-{at}.points", lambda line: log(f"measure {at}: {line}"))
        self.bench, self.plans = bench, plans
        self.saved = self._load() if processes.is_main() else {}
        self.names = processes.from_main(sorted(self.saved))
        """Of the points that the main process has."""
        if (drawing := processes.from_main(self._drawing())) is not None:
            bench.drawing = Drawing(**drawing)
        if self.saved:
            log(f"measure {at}: {len(self.saved)} of {len(plans)} points are measured already")

    def _load(self) -> dict[str, tuple[dict[str, Any], Tensors]]:
        loaded = [self.kept.load(self._job(each)) for each in self.plans]
        return {each.name: entry for each, entry in zip(self.plans, loaded) if entry is not None}

    def _drawing(self) -> dict[str, str] | None:
        """How the points were drawn that are measured already: so are the others."""
        points = (Point.from_json(value) for value, _ in self.saved.values())
        return next(({"precision": point.precision, "check": point.check} for point in points), None)

    def point(self, plan: Plan) -> tuple[Point, Any] | None:
        """The point, and its first samples, uint8 [SHOWN, h, w, c]; None in another process than the main one, which does
        its share. The first point's samples are what the teacher's others are compared with."""
        if plan.name in self.names:
            kept = self.saved.get(plan.name)
        else:
            samples, point = self.bench.measure(plan)
            tensors = {"shown": feed.to_uint8(samples[:SHOWN]).permute(0, 2, 3, 1)}
            tensors |= {"samples": samples} if self.bench.teacher is None else {}
            kept = point.to_json(), tensors
            if processes.is_main():
                self.kept.save(self._job(plan), *kept)
        if self.bench.teacher is None:
            (self.bench.teacher,) = processes.dealt([None], lambda _: kept[1]["samples"])
        return (Point.from_json(kept[0]), kept[1]["shown"]) if kept else None

    def keep(self) -> None:
        """Forgets kept points that are not among the plans."""
        if processes.is_main():
            self.kept.clear_but(self._job(each) for each in self.plans)

    def _job(self, plan: Plan) -> dict[str, Any]:
        return {**self.bench.about(plan), **self.shared}


def courts(params: Params, who: str) -> Courts:
    """What judges saw of the images of the training, kept for all that measures them. who: in the words of the log."""
    compute = params.compute
    about = {
        "images": Manifest.read(paths.DATA, verify=False).digest,
        "code": graph.code_digest("measure"),
        "device": compute.device.type,
        "threads": compute.threads,
    }
    return Courts(Kept(paths.RESUME / "judges.courts", lambda line: log(f"{who}: {line}")), about)


def measure(params: Params, name: str) -> None:
    """Measures the checkpoint `name` and writes its points; the teacher's come with what all points share."""
    threads.use(params.compute.threads)
    bench = Bench(params, name)
    plans = list(plan(bench))
    if twice := sorted(name for name, count in Counter(each.name for each in plans).items() if count > 1):
        raise UserError(f"evaluate names {twice[0]!r} twice; leave one of the two samplings out")
    for each in plans:
        bench.sampler(each)  # what cannot be sampled is known before anything is
    ready = Measured(bench, plans)
    points: list[Point] = []
    samples: Tensors = {}
    for number, each in enumerate(plans):
        if (outcome := ready.point(each)) is None:
            continue
        point, samples[each.name] = outcome
        points.append(point)
        if each.name not in ready.saved:
            quality = f"fd {point.fd:8.3f} +- {point.fd_se:.3f}  {point.ms_per_image:.3g} ms/image{bench.noted(each)}"
            log(f"measure    {number + 1:>3}/{len(plans)}  {each.name:<36} {quality}")
    _write(bench, points, samples)
    ready.keep()
    bench.courts.keep(court.judge for court in bench.judges)


def _in(word: str, sampler: Sampler) -> Sampler:
    """The sampler in this precision."""
    return dataclasses.replace(sampler, denoiser=BFloat16(sampler.denoiser)) if word == "bf16" else sampler


def _write(bench: Bench, points: list[Point], samples: Tensors) -> None:
    value: dict[str, Any] = {"about": _about(bench)}
    real_floor = bench.floor() if bench.is_root else None
    if not processes.is_main():
        return
    if bench.is_root:
        value |= {"floor": real_floor.to_json(), "judge": dataclasses.asdict(bench.network.card.skill)}
        samples = samples | {measured.REAL: bench.real.take(range(min(SHOWN, len(bench.real)))).permute(0, 2, 3, 1)}
        checkpoint = bench.opened.card.digest
        measured.write_reference(paths.REFERENCE / bench.name, checkpoint, points[0].name, bench.teacher)
    measured.write(paths.POINTS / bench.name, value, points, samples)


def _captions(places: Any) -> list[str]:
    """Of the images at these places, int64 [k]."""
    every = list(itertools.chain.from_iterable(read.captions(paths.DATA)))
    return [every[place] for place in places]


def _reference(checkpoint: str) -> Sample:
    return measured.read_reference(paths.REFERENCE / ROOT, checkpoint, paths.again(paths.measure(ROOT)))


def _about(bench: Bench) -> dict[str, Any]:
    """What points of several checkpoints must have in common to be compared; a teacher's `teacher` are its own samples."""
    about = {
        "data": bench.opened.card.data,
        "real": bench.reference.digest,
        "gamma": bench.gamma_digest,
        "teacher": measured.digest_of(bench.teacher),
    }
    return about | ({"drawn": bench.drawn_by} if bench.drawn_by else {})


def plan(bench: Bench) -> Iterator[Plan]:
    """All points of the checkpoint; of the teacher the first one, of its first sampling, is what fidelity compares with."""
    name, opened, params = bench.name, bench.opened, bench.params
    usual = not bench.is_root and name not in params.evaluate.students and opened.denoiser.grid is not None
    for _, sampling in samplings_of(name, params.evaluate, params.lines):
        yield from _points(bench, sampling, usual)


def _points(bench: Bench, sampling: Sampling, usual: bool) -> Iterator[Plan]:
    name, opened = bench.name, bench.opened
    grid, method = opened.denoiser.grid, "teacher" if bench.is_root else opened.card.method
    for steps in sorted(sampling.steps, reverse=True) or [grid.steps]:
        for kind in sampling.trajectories:
            for recipe in (recipe.on(opened) for recipe in sampling.recipes()):
                parts = [name, sampling.sampler, *recipe.name_parts(), *([] if kind == OWN else [kind, steps])]
                times = grid if kind == OWN else bench.times(kind, steps)
                curve = " ".join([method, *([] if usual else _curve(sampling, recipe))])
                yield Plan("-".join(map(str, parts)).replace("_", "-"), curve, name, method, kind, recipe, times)


def _curve(sampling: Sampling, recipe: Recipe) -> list[str]:
    """Legend label; swept settings are left out because only the best try is shown."""
    alone = {"deepcache": not isinstance(sampling.deepcache, list), "skip": not isinstance(sampling.skip, list)}
    kept = dataclasses.replace(recipe, **{key: None for key, one in alone.items() if not one})
    parts = [sampling.sampler, *kept.name_parts(), *(key for key, one in alone.items() if not one)]
    kinds = sampling.trajectories
    if kinds == [OWN]:
        return parts
    return [*parts, kinds[0] if len(kinds) == 1 else "best grid"]


def _least_cost(content: dict[str, Any]) -> dict[str, Any]:
    """The content of trajectory.json; a UserError if it was made from another gamma.json than the one of this content."""
    trajectories = disk.read_sealed(paths.TRAJECTORY, trajectory.SCHEMA, paths.again("search"))
    if trajectories["from"]["gamma"] != disk.digest(content):
        raise UserError(f"{paths.TRAJECTORY} was made from another {paths.GAMMA.name}; {paths.again('search')}")
    return trajectories
