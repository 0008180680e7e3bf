"""The training stages: the teacher, and each student."""

import csv
import dataclasses
import io
from collections.abc import Callable, Sequence
from typing import Any

from diffcore import checkpoints, methods, nets
from diffcore.checkpoints.roles import roles
from diffcore.core import disk, processes, rng
from diffcore.core.errors import UserError
from diffcore.data import feed
from diffcore.data.manifest import Manifest
from diffcore.denoisers.denoiser import Denoiser
from diffcore.denoisers.network import NetDenoiser
from diffcore.noise.trajectory import Trajectory
from diffcore.training import config, loop
from diffcore.training.resume import Resume
from tasks import graph, paths, signals
from tasks.params import Params
from tasks.progress import Progress, log
from tasks.sections import Distill, Teacher


def train(params: Params, name: str) -> None:
    """Trains the line `name` of `teachers` or `distill`."""
    line = params.line(name)
    (_student if isinstance(line, Distill) else _root)(params, line)


def _root(params: Params, line: Teacher) -> None:
    """Trains a new network from the images alone."""
    manifest = Manifest.read(paths.DATA)
    classes = manifest.classes if line.conditional else None
    net = line.network.build(manifest.shape, _count(manifest), rng.seed(params.seed, line.name))
    student = NetDenoiser(net, line.schedule, line.parameterization, classes=classes and len(classes))
    job = Job(line.method, line.fit, student, classes=classes)
    _train(line.name, job, params.raw["teachers"][line.name], params)


def _student(params: Params, line: Distill) -> None:
    """Trains a student, which begins with the weights of `init` and learns from `teacher`."""
    name, lines = line.name, params.lines
    parent = checkpoints.load(paths.CHECKPOINTS / line.init)
    weights, shape = lines.guidance(name), params.shape(name)
    new = shape and _new(params, line, shape)
    student, teacher = roles(parent, weights, line.parameterization, line.dropout, new)
    taught = parent.card
    if line.teacher != line.init:
        checkpoint = checkpoints.load(paths.CHECKPOINTS / line.teacher)
        teacher = roles(checkpoint, weights)[1]
        taught = checkpoint.card
        log(f"{name}: starts as {line.init} and learns from {line.teacher}")
    if taught.schedule != parent.card.schedule:  # of adopted ones, which params.yaml says nothing of
        raise UserError(
            f"{line.teacher} has another schedule than {line.init}; name a teacher that comes from the same"
        )
    _tell(name, student, line.method.grid)
    job = Job(line.method, line.fit, student, teacher, weights, parent.card, taught=taught)
    _train(name, job, params.raw["distill"][name], params)


def _count(manifest: Manifest) -> int | None:
    return manifest.classes and len(manifest.classes)


def _new(params: Params, line: Distill, shape: nets.Shape) -> Any:
    """The student's own network: what fits of `init`'s weights, new ones elsewhere."""
    manifest, old = Manifest.read(paths.DATA), checkpoints.load(paths.CHECKPOINTS / line.init).denoiser.net
    net = shape.build(manifest.shape, _count(manifest), rng.seed(params.seed, line.name))
    taken = nets.take(net, old)
    log(f"{line.name}: {taken} of {len(net.state_dict())} tensors start as those of {line.init}, the others are new")
    return net


def _tell(name: str, student: NetDenoiser, grid: Trajectory | None) -> None:
    """Warns of settings that are allowed and seldom wanted."""
    if student.parameterization == "eps":
        log(
            f"{name}: an eps network hardly learns few steps; begin with a student of parameterization v, see docs/teacher.md"
        )
    places = [time * student.num_timesteps for time in grid.times] if grid else []
    if any(abs(place - round(place)) > 1e-6 for place in places):
        log(
            f"{name}: {grid.steps} steps do not divide {student.num_timesteps} noise levels; diffusers would sample at "
            "other times"
        )


@dataclasses.dataclass(frozen=True)
class Job:
    """What is trained, by which method. weights: the range of guidance weights. parent: the card of the checkpoint it starts
    from; taught: of the one it learns from."""

    method: methods.Method
    fit: config.Training
    student: NetDenoiser
    teacher: Denoiser | None = None
    weights: checkpoints.Guidance | None = None
    parent: checkpoints.Card | None = None
    classes: Sequence[str] | None = None
    taught: checkpoints.Card | None = None

    def conditioning(self) -> dict[str, Any]:
        """The card's fields of classes and guidance."""
        classes = self.parent.classes if self.parent else self.classes
        return {"classes": classes and list(classes), "guidance": self.weights and dataclasses.asdict(self.weights)}


def _train(name: str, job: Job, parameters: dict[str, Any], params: Params) -> None:
    manifest, seed, method = Manifest.read(paths.DATA), rng.seed(params.seed, name), job.method
    about = {
        "name": name,
        "method": methods.word(method),
        "solver": method.sampler,
        "weights": "ema",
        "parent": job.parent.digest if job.parent else None,
        "teacher": job.taught.digest if job.taught else None,
        "data": manifest.digest,
        "parameters": {**parameters, "flip": params.data.flip},
        "seed": params.seed,
        "code": graph.code_digest("distill" if job.parent else "teachers", methods.word(method)),
        "torch": config.torch_version(),
        "compute": loop.provenance(params.compute),
        **job.conditioning(),
    }
    key = {**about, "compute": {name: value for name, value in about["compute"].items() if name != "processes"}}
    resume, stop = Resume(paths.RESUME, name, key, log), signals.StopFlag()
    with resume.lock():
        memory, device = params.compute.memory_bytes, params.compute.device
        batches = feed.feed(paths.DATA, job.fit.batch, seed, params.data.flip, memory, device)
        weights = (job.weights.low, job.weights.high) if job.weights else None
        work = loop.Job(method, job.fit, batches, seed, guidance=weights)
        progress = Progress(name, "it")
        fitted = loop.fit(
            work,
            job.student,
            job.teacher,
            params.compute,
            resume,
            lambda event: progress(event.step, job.fit.iterations, f"loss {event.loss:.4f}"),
            stop,
            lambda step: log(f"{name}: goes on after {step} of {job.fit.iterations} updates"),
        )
    if not processes.is_main():
        return
    images = job.fit.iterations * job.fit.batch
    cost = {"iterations": job.fit.iterations, "images": images, "network_calls": fitted.calls}
    result = job.student.with_network(fitted.net)
    result.grid = method.grid
    card = checkpoints.save(paths.CHECKPOINTS / name, result, tuple(manifest.shape), {**about, "cost": cost})
    disk.write_summed(paths.CURVES / f"{name}.csv", _csv(fitted.curve))
    disk.write_sealed(paths.COST / f"{name}.json", {"seconds": round(fitted.seconds, 1), **cost})
    log(f"{name}: {images} images in {fitted.seconds:.0f} s; checkpoint {card.digest[:12]}")


def _csv(curve: list[loop.Event]) -> str:
    text = io.StringIO()
    events = [dataclasses.asdict(event) for event in curve]
    kept = [key for key in events[0] if events[0][key] is not None]  # a method without a critic has no loss of it
    rows = csv.DictWriter(text, kept, lineterminator="\n", extrasaction="ignore")
    rows.writeheader()
    rows.writerows(events)
    return text.getvalue()


def until_stopped(stage: Callable[..., None], *arguments: Any) -> int:
    """Runs a training stage; 143 if SIGTERM ended it, with its state saved."""
    try:
        stage(*arguments)
    except loop.Stopped as stopped:
        log(f"{stopped}; the state is saved and the same command goes on from there")
        return signals.TERMINATED
    return 0
