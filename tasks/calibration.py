"""`python -m tasks.calibration FILE SLOTS NAME ...`: what an update and a network call of each line cost here, as JSON.

Each kind of work runs for about a second on random images, in forks of this process: as many copies at once as there are
slots, for busy cores slow each other. No data and no checkpoint is needed. Seconds are CPU seconds over `compute.threads`, so
that what else the machine does counts little; on a GPU they are those of the clock.
"""

import json
import multiprocessing
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from diffcore import checkpoints
from diffcore.checkpoints import from_diffusers
from diffcore.checkpoints.roles import roles
from diffcore.core import allocator, disk, rng, threads
from diffcore.core.errors import MISTAKE, UserError
from diffcore.core.precision import exact
from diffcore.data.feed import to_float
from diffcore.data.manifest import Manifest
from diffcore.data.read import Images
from diffcore.denoisers.denoiser import Denoiser
from diffcore.denoisers.network import NetDenoiser
from diffcore.metrics import features, judges, measures, statistics
from diffcore.metrics.judge import Judge
from diffcore.metrics.judge_trial import trial
from diffcore.metrics.metric import Subject
from diffcore.metrics.reference import Reference
from diffcore.nets import memory
from diffcore.nets.inputs import blank
from diffcore.noise.trajectory import uniform
from diffcore.sampling.recipe import Recipe
from diffcore.sampling.sampler import Sampler
from diffcore.sampling.solvers import SOLVERS
from diffcore.training import learner, loop
from diffcore.training.resume import Resume
from diffcore.watching.begin import FOLDER as NETWORK
from tasks import look_trial, measure, params, paths, places, train
from tasks.params import Params
from tasks.plan import TRYING
from tasks.planned_data import PlannedData, planned_data
from tasks.sections import Adopted, Distill

ENOUGH_SECONDS = 1.0
FEWEST = 2
"""Updates that are timed."""

STEPS = 4
"""Network calls for each sample that is drawn to time one."""

MOST_IMAGES = 2000
"""Samples and real images on which the metrics are timed."""


@dataclass(frozen=True)
class Noise:
    """A feed of random images, of which is known what is known of the data's."""

    data: PlannedData
    size: int

    @property
    def images(self) -> int:
        return self.data.images

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.data.shape

    @property
    def classes(self) -> tuple[str, ...] | None:
        return self.data.classes

    def batch(self, step: int, rows: slice = slice(None)) -> Any:
        count = len(range(self.size)[rows])
        x0 = rng.draw(rng.noises(self.shape, 0, range(1)).expand(count, *self.shape), "calibration", step).noise
        return x0.clamp(-1, 1), self.data.known(count, step)


class Networks:
    """The checkpoints of all lines with new weights, in a temporary folder, each made where it is asked for first."""

    def __init__(self, parameters: Params, data: PlannedData, folder: Path):
        self.params, self.data, self.folder = parameters, data, folder

    def checkpoint(self, name: str) -> checkpoints.Checkpoint:
        """That of a line, as it would begin."""
        if not (self.folder / name).exists():
            denoiser = self._root(name) if name in self.params.teachers else self._student(name)[0]
            self.save(self.folder / name, name, denoiser)
        return checkpoints.load(self.folder / name)

    def roles(self, name: str) -> tuple[NetDenoiser, Denoiser | None]:
        """The student of a line, and who teaches it."""
        return (self._root(name), None) if name in self.params.teachers else self._student(name)

    def _root(self, name: str) -> NetDenoiser:
        line = self.params.teachers[name]
        if isinstance(line, Adopted):
            model = from_diffusers.read(Path(line.folder), self.data.shape[1:], line.stated)
            return model.with_weights(name, line.folder, line.guidance).denoiser
        classes = len(self.data.classes) if line.conditional else None
        span = line.reading.span(line.schedule)
        net = line.network.build(self.data.shape, classes, 0, span, self.data.inputs)
        nothing = {name: part[0] for name, part in blank(line.network.inputs, self.data.inputs, 1).items()}
        return NetDenoiser(net, line.schedule, line.reading, classes=classes, nothing=nothing)

    def _student(self, name: str) -> tuple[NetDenoiser, Denoiser]:
        line, weights = self.params.distill[name], self.params.lines.guidance(name)
        shape, init = self.params.shape(name), self.checkpoint(line.init)
        own = init.denoiser
        span = own.reading.span(own.schedule)
        data, classes = self.data, self.data.classes and len(self.data.classes)
        new = shape and shape.build(data.shape, classes, 0, span, data.inputs)
        student, teacher = roles(init, weights, line.parameterization, line.dropout, new, line.method.two_times)
        if line.teacher != line.init:
            teacher = roles(self.checkpoint(line.teacher), weights)[1]
        student.grid = line.method.grid
        return student, teacher

    def save(self, folder: Path, name: str, denoiser: NetDenoiser) -> None:
        """As a checkpoint of that line."""
        weights = self.params.lines.guidance(name)
        weights = weights and vars(weights)
        about = dict.fromkeys(("parent", "teacher")) | {"name": name, "weights": "ema", "torch": "", "code": ""}
        about |= {"method": "calibration", "solver": "ddim", "data": "", "parameters": {}, "seed": 0, "cost": {}}
        classes = list(self.data.classes) if denoiser.classes else None
        checkpoints.save(folder, denoiser, self.data.shape, about | {"classes": classes, "guidance": weights})


@dataclass(frozen=True)
class Clock:
    """Seconds of work: of the CPU, over the threads, or where there is a GPU of the clock."""

    parameters: Params

    def __call__(self) -> float:
        if self.parameters.compute.device.type != "cpu":
            return time.perf_counter()
        return time.process_time() / self.parameters.compute.threads


def training(parameters: Params, networks: Networks, name: str, width: int) -> dict[str, float]:
    """One update of a line in one of `width` processes, its network calls, and the bytes of its state and checkpoint; of a
    watched line also what `look_trial.cost` says of its looks."""
    if width > 1:
        learner.import_wrapping()
    line, clock = parameters.line(name), Clock(parameters)
    threads.use(parameters.compute.threads)
    student, teacher = networks.roles(name)
    part = replace(line.fit, batch=max(1, line.fit.batch // width), cores=1, iterations=10**6)
    weights = parameters.lines.guidance(name) if isinstance(line, Distill) else None
    feed = Noise(networks.data.of(student), part.batch)
    watcher, images = None, None
    if line.watch:
        images = _images(networks.data, min(networks.data.images, MOST_IMAGES))
        watcher = look_trial.watcher(parameters, name, student, networks.data, images)
    job = loop.Job(line.method, part, feed, 0, guidance=weights and (weights.low, weights.high), watcher=watcher)
    work = loop.Loop(job, student, teacher, replace(parameters.compute, processes=1))
    work.update()
    before, began, updates = work.calls(), clock(), 0
    while updates < FEWEST or clock() - began < ENOUGH_SECONDS:
        work.update()
        updates += 1
    seconds, calls = (clock() - began) / updates, (work.calls() - before) / updates * width
    looks = look_trial.cost(watcher, work.ema, images, clock) if watcher else {}
    return {"seconds": seconds, "calls": calls, "state": _saved(work, student, networks, name), **looks}


def _saved(work: loop.Loop, student: NetDenoiser, networks: Networks, name: str) -> int:
    """Bytes of the state of a training, once it was saved and the result written, which take memory of their own."""
    with TemporaryDirectory() as room:
        work.save(Resume(Path(room), name, {"job": name}, lambda line: None))
        networks.save(Path(room) / name, name, student.with_network(work.result()))
        return sum(file.stat().st_size for file in Path(room).rglob("step-*/*"))


@exact()
def drawing(parameters: Params, networks: Networks, name: str) -> dict[str, float]:
    """Seconds of one network call for one sample, the noise and the solver included."""
    threads.use(parameters.compute.threads)
    checkpoint, clock = networks.checkpoint(name).to(parameters.compute.device), Clock(parameters)
    count = min(parameters.evaluate.images, parameters.evaluate.usual_batch)
    denoiser = checkpoint.denoiser
    denoiser.grid = None
    sampler = Sampler(denoiser, SOLVERS["ddim"](), uniform(STEPS))
    recipe = Recipe(SOLVERS["ddim"](), guidance=checkpoint.guidance and checkpoint.guidance.low)
    known = networks.data.of(denoiser).known(count)
    condition = recipe.condition(checkpoint, known, {name: part[:1] for name, part in known.items()})
    sampler.warm_up(checkpoint.shape, count, condition)
    began, rounds = clock(), 0
    while rounds < 1 or clock() - began < ENOUGH_SECONDS:
        sampler.draw(checkpoint.shape, count, rounds, count, condition)
        rounds += 1
    return {"seconds": (clock() - began) / (rounds * count * STEPS)}


def judging(parameters: Params, data: PlannedData) -> dict[str, float]:
    """Seconds of an update of the feature network, of what its training takes beside them, of looking at the real images
    once, and of all metrics of a point that ask no network but this one; and the bytes up to the end of its training."""
    threads.use(parameters.compute.threads)
    clock, count = Clock(parameters), min(data.images, MOST_IMAGES)
    images, seconds = _images(data, count), []
    for iterations in (1, 2, 22):  # the first does what is done only once
        began = clock()
        network = features.train(images, replace(parameters.features, iterations=iterations))
        seconds.append(clock() - began)
    trained, began = memory.most(parameters.compute.device), clock()
    reference = Reference.of(images, network)
    looked = (clock() - began) * data.images / count
    n = min(parameters.evaluate.images, MOST_IMAGES)
    samples = to_float(images.take(np.arange(n) % count))
    began = clock()
    measures.measure(Subject(samples, reference, network, 0, teacher=samples))
    update = max(0.0, seconds[2] - seconds[1]) / 20
    return {
        "update": update,
        "rest": max(0.0, seconds[1] - 2 * update),
        "look": looked,
        "metrics": (clock() - began) * parameters.evaluate.images / n,
        "trained_bytes": trained,
    }


def _images(data: PlannedData, count: int) -> Images:
    """Random ones."""
    pixels = rng.draw(rng.noises(data.shape, 0, range(1)).expand(count, *data.shape), "calibration").noise
    labels = rng.some(count, count, 0) % len(data.classes) if data.classes else None
    return Images((pixels.clamp(-1, 1) * 127.5 + 127.5).byte(), labels, data.classes)


def judged(parameters: Params, data: PlannedData) -> dict[str, float]:
    """Of all judges together: seconds of looking at a sample (`image`), of all else that a point takes (`point`), of what a
    stage does once (`once`) and of the real images (`look`), and bytes of what is then kept (`kept`), both 0 of judges that
    have it from an earlier run; and `more` bytes of features that were not tried."""
    threads.use(parameters.compute.threads)
    device, clock, trials = parameters.compute.device, Clock(parameters), []
    total = dict.fromkeys(("image", "point", "once", "look", "kept", "more"), 0.0)
    for name, file in parameters.evaluate.judge_files.items():
        judge = judges.load(name, file).to(device)
        real = None if file.reference is None else statistics.read(Path(file.reference))
        each = trial(judge, data.shape, parameters.evaluate.images, data.images, real, clock)
        trials.append((judge, each))  # a stage has all of them
        new = real is None and not _is_kept(parameters, judge)
        own = {"look": new * each.image * data.images, "kept": new * each.kept}
        own |= {"more": each.more if device.type == "cpu" else 0}  # features lie in the machine's memory
        own |= {key: getattr(each, key) for key in ("image", "point", "once")}
        total = {key: value + own[key] for key, value in total.items()}
    return total


def _is_kept(parameters: Params, judge: Judge) -> bool:
    """Whether what the judge saw of the real images is kept."""
    sharded = (paths.DATA / "manifest.json").exists()
    return sharded and measure.courts(parameters, "plan").has(judge)


def _has_network(parameters: Params) -> bool:
    """Whether the feature network by which watched trainings are looked at is kept."""
    if not (paths.DATA / "manifest.json").exists():
        return False
    store = train.looked_by(parameters, Manifest.read(paths.DATA, verify=False))
    return (store.folder / NETWORK).exists()


def measured(parameters: Params, work: Callable[[], dict[str, float]], copies: int) -> dict[str, float]:
    """What `work` gives and, as `bytes`, the memory that it took: the GPU's where there is one, else that of a process."""
    device = parameters.compute.device
    if device.type == "cpu":
        return forked(work, copies)
    outcome: dict[str, float] = {}
    return {"bytes": memory.peak(device, lambda: outcome.update(work())), **outcome}


def forked(work: Callable[[], dict[str, float]], copies: int) -> dict[str, float]:
    """The means over copies that run at once, each in a fork, and the most bytes that one of them took.

    A fork has not touched the files of all libraries that a process of its own has: those count as here, in all that is
    called bytes.
    """
    allocator.give_back()
    libraries = _resident_files()
    context = multiprocessing.get_context("fork")
    ends = [context.Pipe(duplex=False) for _ in range(copies)]

    def run(end: Any) -> None:
        outcome = work()
        outcome["bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        untouched = max(0, libraries - _resident_files())
        end.send({key: value + untouched if key.endswith("bytes") else value for key, value in outcome.items()})

    forks = [context.Process(target=run, args=(send,)) for _, send in ends]
    for fork in forks:
        fork.start()
    for _, send in ends:
        send.close()
    try:
        outcomes = [receive.recv() for receive, _ in ends]
    except EOFError:
        raise UserError(
            "an update was ended while it was tried, as where memory is short; set accumulate or a smaller batch"
        ) from None
    finally:
        for fork in forks:
            fork.join()
    mean = {key: sum(each[key] for each in outcomes) / copies for key in outcomes[0]}
    return {**mean, "bytes": max(each["bytes"] for each in outcomes)}


def _resident_files() -> int:
    """Bytes of files, mostly libraries, that lie in this process's memory."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["RssFile"].split()[0]) * 1024


def kind_of(parameters: Params, name: str) -> str:
    """Lines of one kind cost the same an update: they differ in numbers that no network's call depends on."""
    line = parameters.raw["teachers" if name in parameters.teachers else "distill"][name]
    free = {"iterations", "lr", "warmup", "ema", "decay", "weight_decay", "init", "teacher", "steps"}
    shape = parameters.shape(name) or parameters.lines.root_name(name)
    return disk.digest([{key: value for key, value in line.items() if key not in free}, repr(shape)])


def calibrate(parameters: Params, slots: int, names: list[str]) -> dict[str, Any]:
    """What the lines of these names cost: {lines: {name: {seconds, calls, state, bytes, width, checkpoint, call,
    call_bytes, of watched ones also read, once, look_calls}}, judging: {...}, judges: {...}, None without judges,
    has_network: whether that of watched trainings is kept, base: bytes of a process that only begins}."""
    threads.use(1)  # a fork of a process whose own threads have computed waits for them for ever
    data, lines = planned_data(parameters), {}
    # first, while nothing lies in this process's memory that its forks would be said to take
    base = measured(parameters, dict, 1)["bytes"]
    _trying("the feature network and the metrics")
    by_own = measured(parameters, lambda: judging(parameters, data), slots)
    by_others = None
    if parameters.evaluate.judges:
        _trying(f"the judges {', '.join(parameters.evaluate.judges)}")
        by_others = measured(parameters, lambda: judged(parameters, data), slots)
    trained: dict[str, dict[str, float]] = {}
    drawn: dict[str, dict[str, float]] = {}
    with TemporaryDirectory() as room:
        networks = Networks(parameters, data, Path(room))
        for name in names:
            kind, net = kind_of(parameters, name), disk.digest([networks.checkpoint(name).denoiser.net.config_json()])
            width = 0 if isinstance(parameters.line(name), Adopted) else min(slots, places.processes(parameters, name))
            if width and kind not in trained:
                _trying(f"updates of {name}")
                trained[kind] = measured(
                    parameters, lambda n=name, w=width: training(parameters, networks, n, w), slots
                )
            if net not in drawn:
                _trying(f"network calls of {name}")
                drawn[net] = measured(parameters, lambda n=name: drawing(parameters, networks, n), slots)
            size = sum(file.stat().st_size for file in (Path(room) / name).rglob("*") if file.is_file())
            none = {"seconds": 0.0, "calls": 0.0, "state": 0, "bytes": 0}
            call = {"call": drawn[net]["seconds"], "call_bytes": drawn[net]["bytes"]}
            lines[name] = {**(trained[kind] if width else none), "width": max(1, width), "checkpoint": size, **call}
            if width and parameters.line(name).watch:
                student = networks.roles(name)[0]
                lines[name]["look_calls"] = look_trial.samples(parameters, name, student, data).calls
    own = {"judging": by_own, "judges": by_others, "has_network": _has_network(parameters)}
    return {"lines": lines, **own, "base": base}


def _trying(what: str) -> None:
    print(f"{TRYING}{what}", file=sys.stderr, flush=True)


def main(words: list[str]) -> int:
    """words: a params.yaml, the slots, and the lines that count; prints the outcome as JSON. The exit code."""
    started = time.process_time()
    allocator.keep()  # as every command does
    try:
        outcome = calibrate(params.read(Path(words[0])), int(words[1]), words[2:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return MISTAKE
    print(json.dumps({**outcome, "start": started}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
