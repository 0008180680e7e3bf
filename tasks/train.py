"""The training stages: the teacher, and each student."""

import csv
import dataclasses
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from diffcore import checkpoints, methods, nets
from diffcore.checkpoints.encoded import embeddings_for, embeddings_of
from diffcore.checkpoints.roles import roles
from diffcore.core import disk, processes, rng
from diffcore.core.errors import UserError
from diffcore.data import embeddings, feed, read
from diffcore.data.embeddings import Embeddings, Joined
from diffcore.data.manifest import Manifest
from diffcore.data.text_feed import TextFeed
from diffcore.denoisers.denoiser import Denoiser
from diffcore.denoisers.network import NetDenoiser
from diffcore.nets.module import UserModule
from diffcore.noise.trajectory import Trajectory
from diffcore.training import config, loop
from diffcore.training.resume import Resume
from diffcore.watching import begin as watching
from diffcore.watching.config import Watch
from diffcore.watching.look import COLUMNS
from diffcore.watching.watcher import Watcher
from tasks import graph, paths, recording, signals
from tasks.lines import SEEDS
from tasks.params import Params
from tasks.progress import Progress, log
from tasks.sections import Distill, Teacher

FEATURES = "watch.features"
"""The job by which the feature network of watched trainings is kept; no line of params.yaml can be called so."""


def train(params: Params, name: str) -> None:
    """Trains the line `name` of `teachers` or `distill`."""
    line = params.line(name)
    (_student if isinstance(line, Distill) else _root)(params, line)


def _root(params: Params, line: Teacher) -> None:
    """Trains a new network from the images alone."""
    manifest = Manifest.read(paths.DATA)
    classes = manifest.classes if line.conditional else None
    texts = embeddings_for(line.network.inputs, paths.TEXT, manifest)
    nothing = {name: texts.nothing[name] for name in line.network.inputs}

    def begun(number: int) -> NetDenoiser:
        span, seed = line.reading.span(line.schedule), _seed(params, line.name, number)
        net = line.network.build(manifest.shape, _count(manifest), seed, span, _shapes(texts))
        return NetDenoiser(net, line.schedule, line.reading, classes=classes and len(classes), nothing=nothing)

    job = Job(line.method, line.fit, begun(0), classes=classes, watch=line.watch, texts=texts)
    others = [dataclasses.replace(job, student=begun(k), number=k) for k in range(1, line.seeds)]
    _train(line.name, job, _about(params.raw["teachers"][line.name]), params, others)


def _student(params: Params, line: Distill) -> None:
    """Trains a student, which begins with the weights of `init` and learns from `teacher`."""
    name, lines = line.name, params.lines
    parent = checkpoints.load(paths.CHECKPOINTS / line.init)
    weights, shape = lines.guidance(name), params.shape(name)

    def begun(number: int) -> tuple[NetDenoiser, Denoiser]:
        new = shape and _new(params, line, shape, number)
        return roles(parent, weights, line.parameterization, line.dropout, new, line.method.two_times)

    student, teacher = begun(0)
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
    manifest = Manifest.read(paths.DATA, verify=False)  # `_trained` compares every digest
    texts = embeddings_of(parent.card, paths.TEXT, manifest)
    alone = texts and not line.method.needs_images
    job = Job(
        line.method, line.fit, student, teacher, weights, parent.card, taught=taught, watch=line.watch, texts=texts,
        prompts=embeddings.read_prompts(paths.PROMPTS, texts) if alone else None,
    )  # fmt: skip
    if job.prompts:
        log(f"{name}: trains on {sum(texts.counts)} captions and {sum(job.prompts.counts)} prompts without images")
    others = [dataclasses.replace(job, student=begun(k)[0], number=k) for k in range(1, line.seeds)]
    _train(name, job, _about(params.raw["distill"][name]), params, others)


def _about(line: dict[str, Any]) -> dict[str, Any]:
    """What a card says of a line: all but how often it is trained, which changes no training."""
    return {key: value for key, value in line.items() if key != SEEDS}


def _own_code(net: Any) -> dict[str, str]:
    """Of a class of the user's own the digest of its file: a state that was saved by other code is none of this job."""
    return {"module": net.source or ""} if isinstance(net, UserModule) else {}


def _shapes(texts: Embeddings | None) -> dict[str, tuple[int, ...]]:
    """Of what the data say of an image beside its class."""
    return {name: kind.shape for name, kind in texts.inputs.items()} if texts else {}


def _count(manifest: Manifest) -> int | None:
    return manifest.classes and len(manifest.classes)


def _new(params: Params, line: Distill, shape: nets.Shape, number: int) -> Any:
    """The student's own network: what fits of `init`'s weights, new ones elsewhere."""
    manifest, old = Manifest.read(paths.DATA), checkpoints.load(paths.CHECKPOINTS / line.init).denoiser
    span, seed = old.reading.span(old.schedule), _seed(params, line.name, number)
    net = shape.build(
        manifest.shape, _count(manifest), seed, span, _shapes(embeddings_for(shape.inputs, paths.TEXT, manifest))
    )
    taken = nets.take(net, old.net)
    whole = len(net.state_dict())
    log(
        f"{paths.label(line.name, number)}: {taken} of {whole} tensors start as those of {line.init}, the others are new"
    )
    return net


def _tell(name: str, student: NetDenoiser, grid: Trajectory | None) -> None:
    """Warns of settings that are allowed and seldom wanted."""
    if student.reading.parameterization == "eps":
        log(
            f"{name}: an eps network hardly learns few steps; begin with a student of parameterization v, see docs/teacher.md"
        )
    # a scheduler of a rectified flow is given a student's own times
    is_counted = grid is not None and student.reading.time not in ("time", "flow")
    places = [time * student.reading.num_timesteps for time in grid.times] if is_counted else []
    if any(abs(place - round(place)) > 1e-6 for place in places):
        log(
            f"{name}: {grid.steps} steps do not divide {student.reading.num_timesteps} noise levels; diffusers would sample "
            "at other times"
        )


@dataclasses.dataclass(frozen=True)
class Job:
    """What is trained, by which method. weights: the range of guidance weights. parent: the card of the checkpoint it starts
    from; taught: of the one it learns from. watch: how it is looked at. number: which of the line's trainings this is. texts:
    embeddings of the data's captions, None for a network that is told none. prompts: of texts without images, on which it
    trains too, None for none."""

    method: methods.Method
    fit: config.Training
    student: NetDenoiser
    teacher: Denoiser | None = None
    weights: checkpoints.Guidance | None = None
    parent: checkpoints.Card | None = None
    classes: Sequence[str] | None = None
    taught: checkpoints.Card | None = None
    watch: Watch | None = None
    number: int = 0
    texts: Embeddings | None = None
    prompts: Embeddings | None = None

    @property
    def range(self) -> tuple[float, float] | None:
        """Of the guidance weights."""
        return (self.weights.low, self.weights.high) if self.weights else None

    def conditioning(self) -> dict[str, Any]:
        """The card's fields of classes, guidance and texts."""
        classes = self.parent.classes if self.parent else self.classes
        guidance = self.weights and dataclasses.asdict(self.weights)
        encoder = {"encoder": self.texts.encoder["digest"]} if self.texts else {}
        prompts = {"prompts": self.prompts.data} if self.prompts else {}
        return {"classes": classes and list(classes), "guidance": guidance, **encoder, **prompts}

    @property
    def digests(self) -> dict[str, str]:
        """Of the embeddings that it is told."""
        told = {"texts": self.texts, "embedded prompts": self.prompts}
        return {name: each.digest for name, each in told.items() if each}

    def feed(self, seed: int, shape: tuple[int, ...], params: Params) -> feed.Feed:
        """Of the images, or of texts alone where there are prompts without images."""
        memory, device = params.compute.memory_bytes, params.compute.device
        if self.prompts:
            return TextFeed(Joined(self.texts, self.prompts), shape, self.fit.batch, seed, memory, device)
        return feed.feed(paths.DATA, self.fit.batch, seed, params.data.flip, memory, device, self.texts)


@dataclasses.dataclass(frozen=True)
class Trained:
    """What came of one training: the checkpoint's network and all that its card says, the curve as a table, what it took."""

    result: NetDenoiser
    image: tuple[int, ...]
    about: dict[str, Any]
    curve: str
    cost: dict[str, float]

    def save(self, folder: Path, beside: Callable[[Path], None] = lambda folder: None) -> checkpoints.Card:
        """As a checkpoint."""
        return checkpoints.save(folder, self.result, self.image, self.about, beside)


def _seed(params: Params, name: str, number: int) -> int:
    """Of a line's training of this number; of the first one as if there were no others."""
    return rng.seed(params.seed, name, *([number] if number else []))


def _train(name: str, job: Job, parameters: dict[str, Any], params: Params, others: Sequence[Job] = ()) -> None:
    """Trains a line once for the job and once for each of the others, each with saved states of its own, and writes the
    checkpoint when all are done: a training that is finished goes on from its last state without an update."""
    stop = signals.StopFlag()
    trained = [_trained(name, each, parameters, params, stop) for each in (job, *others)]
    if not processes.is_main():
        return
    first, *more = trained
    card = first.save(paths.CHECKPOINTS / name, lambda folder: _save_others(more, folder / paths.SEEDS))
    disk.write_summed(paths.CURVES / f"{name}.csv", first.curve)
    disk.write_sealed(paths.COST / f"{name}.json", _cost([first.cost, *(each.cost for each in more)]))
    spent = f"{first.cost['images']} images in {first.cost['seconds']:.0f} s"
    log(f"{name}: {spent}; checkpoint {card.digest[:12]}{f', and {len(more)} more trainings' if more else ''}")


def _save_others(trained: Sequence[Trained], folder: Path) -> None:
    """The further trainings of a line, each a checkpoint with its curve beside it."""
    for number, each in enumerate(trained, start=1):
        each.save(folder / str(number))
        disk.write_summed(folder / str(number) / "curve.csv", each.curve)


def _cost(costs: Sequence[dict[str, float]]) -> dict[str, Any]:
    """The sums over a line's trainings, the looks at the first one, and where there are several each by itself."""
    if len(costs) == 1:
        return costs[0]
    sums = {
        key: sum(each[key] for each in costs) for key, of_first in costs[0].items() if not isinstance(of_first, list)
    }
    looks = {key: costs[0][key] for key in costs[0] if key not in sums}  # those in the curve of the line
    return {**sums, **looks, "seconds": round(sums["seconds"], 1), "seeds": list(costs)}


def _trained(name: str, job: Job, parameters: dict[str, Any], params: Params, stop: signals.StopFlag) -> Trained | None:
    """One training, of which the main process has the outcome."""
    manifest, seed, method = Manifest.read(paths.DATA), _seed(params, name, job.number), job.method
    label, number = paths.label(name, job.number), {"training": job.number} if job.number else {}
    about = {
        "name": name,
        "method": methods.word(method),
        "solver": method.sampler,
        "weights": "ema",
        "parent": job.parent.digest if job.parent else None,
        "teacher": job.taught.digest if job.taught else None,
        "data": manifest.digest,
        "parameters": {**parameters, "flip": params.data.flip, **number},
        "seed": params.seed,
        "code": graph.code_digest("distill" if job.parent else "teachers", methods.word(method)),
        "torch": config.torch_version(),
        "compute": loop.provenance(params.compute),
        **job.conditioning(),
    }
    record = recording.Record(label, job.fit.iterations, job.fit.batch)
    watcher, network = _watched(name, job, params, manifest, record) if job.watch else (None, {})
    computed = {name: value for name, value in about["compute"].items() if name != "processes"}
    key = {**about, "compute": computed, **job.digests, **network, **_own_code(job.student.net)}
    resume = Resume(paths.RESUME, label, key, log)
    with resume.lock(), record.kept(resume.fingerprint, bool(job.watch)):
        batches = job.feed(seed, tuple(manifest.shape), params)
        work = loop.Job(method, job.fit, batches, seed, guidance=job.range, watcher=watcher)
        progress = Progress(label, "it")

        def note(event: loop.Event) -> None:
            progress(event.step, job.fit.iterations, f"loss {event.loss:.4f}")
            record.point(event)

        def go_on(step: int) -> None:
            log(f"{label}: goes on after {step} of {job.fit.iterations} updates")
            record.go_on(step)

        fitted = loop.fit(
            work,
            job.student,
            job.teacher,
            params.compute,
            resume,
            note,
            stop,
            go_on,
        )
    if not processes.is_main():
        return None
    updates = fitted.curve[-1].step
    images = updates * job.fit.batch
    cost = {"iterations": updates, "images": images, "network_calls": fitted.calls}
    if watcher:
        cost |= {"watch_calls": watcher.calls}
        about["watch"] = {**network, **watcher.summary()}
    result = job.student.with_network(fitted.net)
    result.grid = method.grid
    seconds = {"seconds": round(fitted.seconds, 1)}
    if watcher:
        seconds["watch_seconds"] = round(watcher.seconds, 1)
        # not in the curve, whose bytes are equal for equal jobs
        seconds["looks"] = [[look.step, round(look.seconds, 2)] for look in watcher.looks]
    curve = _csv(fitted.curve, _looks(watcher, fitted.curve))
    return Trained(result, tuple(manifest.shape), {**about, "cost": cost}, curve, {**seconds, **cost})


def _watched(
    name: str, job: Job, params: Params, manifest: Manifest, record: recording.Record
) -> tuple[Watcher, dict[str, str]]:
    """Who looks at the training, and by which network, as the key of saved states and the card name it."""
    seed, label = _seed(params, name, job.number), paths.label(name, job.number)
    watcher, digest = watching.begin(
        job.watch,
        watching.Watched(job.method, job.student, job.fit.iterations, seed, job.range, job.texts),
        lambda: read.open_images(paths.DATA, params.compute.memory_bytes),
        params.features,
        looked_by(params, manifest),
        params.compute,
        lambda line: log(f"{label}: {line}"),
        record.look,
    )
    return watcher, {"features": digest}


def looked_by(params: Params, manifest: Manifest) -> Resume:
    """Where the feature network of all watched trainings lies, keyed by all that it depends on."""
    key = {
        "data": manifest.digest,
        "features": dataclasses.asdict(params.features),
        "code": graph.code_digest("features"),
        "torch": config.torch_version(),
    }
    return Resume(paths.RESUME, FEATURES, key, log)


Rows = dict[int, dict[str, Any]]
"""By update, what a row of a curve's table says of it."""


def _looks(watcher: Watcher | None, curve: Sequence[loop.Event]) -> Rows:
    """What the looks at a training saw; of one with a critic also its loss over the student's at the last point before."""
    looks: Rows = {}
    for look in watcher.looks if watcher else ():
        before = [event for event in curve if event.step <= look.step]
        ratio = {"critic_ratio": _ratio(before[-1])} if before and curve[0].critic_loss is not None else {}
        looks[look.step] = {**look.columns(), **ratio}
    return looks


def _ratio(event: loop.Event) -> float | None:
    return event.critic_loss / event.loss if event.loss else None


def _csv(curve: list[loop.Event], looks: Rows | None = None) -> str:
    """A row for each point of the curve; of a watched training the looks stand in the row of their update, or in one of their
    own between two points."""
    text = io.StringIO()
    points = {event.step: dataclasses.asdict(event) for event in curve}
    first = points[curve[0].step]
    kept = [key for key in first if first[key] is not None]  # a method without a critic has no loss of it
    if looks:
        kept += [*COLUMNS, *(["critic_ratio"] if "critic_loss" in kept else [])]
    each = first["images"] // first["step"]
    rows = csv.DictWriter(text, kept, lineterminator="\n", extrasaction="ignore")
    rows.writeheader()
    for step in sorted({**points, **(looks or {})}):
        rows.writerow({"step": step, "images": step * each, **points.get(step, {}), **(looks or {}).get(step, {})})
    return text.getvalue()


def until_stopped(stage: Callable[..., None], *arguments: Any) -> int:
    """Runs a training stage; 143 if SIGTERM ended it, with its state saved."""
    try:
        stage(*arguments)
    except loop.Stopped as stopped:
        log(f"{stopped}; the state is saved and the same command goes on from there")
        return signals.TERMINATED
    return 0
