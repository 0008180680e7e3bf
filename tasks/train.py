"""The training stages: the teacher, and each student."""

import csv
import io
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from diffcore import checkpoint, disk, draw, feed, fit, methods
from diffcore.denoiser import NetDenoiser
from diffcore.mistake import Mistake
from diffcore.nets import unet
from diffcore.resume import Resume
from diffcore.schedule import Cosine
from diffcore.shards import Manifest
from tasks import graph, lifeline, paths
from tasks.params import ROOT, Distill, Params
from tasks.progress import Progress, say


def teacher(params: Params) -> None:
    """Trains the teacher from nothing: a v network on the cosine schedule at continuous times."""
    manifest = Manifest.read(paths.DATA)
    seed = draw.seed(params.seed, ROOT)
    net = unet.build(params.network.config(manifest.shape), seed, params.network.max_phase)
    student = NetDenoiser(net, Cosine(), "v")
    method = methods.load("denoising")
    parameters = {"fit": params.raw["teacher"], "network": params.raw["network"]}
    _train(ROOT, method, method.Config(), params.teacher, student, None, parameters, params)


def distill(params: Params, name: str) -> None:
    """Trains one student, which begins as a copy of its teacher."""
    line = student_of(params, name)
    parent = checkpoint.load(paths.CHECKPOINTS / line.teacher)
    started = NetDenoiser(parent.denoiser.net, parent.denoiser.schedule, parent.denoiser.head)
    _train(name, line.method, line.config, line.fit, started, parent, params.raw["distill"][name], params)


def student_of(params: Params, name: str) -> Distill:
    """The line of `distill` with this name."""
    if name not in params.distill:
        raise Mistake(f"distill.{name} is not in params.yaml; known: {', '.join(params.distill)}")
    return params.distill[name]


def _train(
    name: str,
    method: Any,
    method_config: Any,
    config: fit.Config,
    student: NetDenoiser,
    parent: checkpoint.Checkpoint | None,
    parameters: dict[str, Any],
    params: Params,
) -> None:
    manifest, seed = Manifest.read(paths.DATA), draw.seed(params.seed, name)
    about = {
        "name": name,
        "method": methods.word(method),
        "solver": method.SOLVER,
        "weights": "ema",
        "parent": parent.card.digest if parent else None,
        "data": manifest.digest,
        "parameters": {**parameters, "flip": params.data.flip},
        "seed": params.seed,
        "code": graph.code_digest(ROOT if parent is None else "distill", methods.word(method)),
        "torch": fit.torch_version(),
    }
    resume, stop = Resume(paths.RESUME, name, disk.digest(about)), lifeline.StopFlag()
    with resume.lock():
        memory = int(params.compute.memory_gb * 2**30)
        batches = feed.feed(paths.DATA, config.batch, seed, params.data.flip, memory, params.compute.device)
        job = fit.Job(method, method_config, config, batches, seed)
        shown = Progress(name, "it")
        fitted = fit.fit(
            job,
            student,
            parent.denoiser if parent else None,
            params.compute,
            resume,
            lambda event: shown(event.step, config.iterations, f"loss {event.loss:.4f}"),
            stop,
        )
    images = config.iterations * config.batch
    cost = {
        "iterations": config.iterations,
        "images": images,
        "network_calls": images * method.network_calls(method_config),
    }
    result = NetDenoiser(fitted.net, student.schedule, student.head, method.grid(method_config))
    card = checkpoint.save(paths.CHECKPOINTS / name, result, tuple(manifest.shape), {**about, "cost": cost})
    disk.write(paths.CURVES / f"{name}.csv", _csv(fitted.curve))
    disk.write_json(paths.COST / f"{name}.json", {"seconds": round(fitted.seconds, 1), **cost})
    say(f"{name}: {images} images in {fitted.seconds:.0f} s; checkpoint {card.digest[:12]}")


def _csv(curve: list[fit.Event]) -> str:
    text = io.StringIO()
    rows = csv.DictWriter(text, [*asdict(curve[0])], lineterminator="\n")
    rows.writeheader()
    rows.writerows(asdict(event) for event in curve)
    return text.getvalue()


def until_stopped(stage: Callable[..., None], *arguments: Any) -> int:
    """Runs a training stage; 143 if SIGTERM ended it, with its state saved."""
    try:
        stage(*arguments)
    except fit.Stopped as stopped:
        say(f"{stopped}; the state is saved and the same command goes on from there")
        return lifeline.TERMINATED
    return 0
