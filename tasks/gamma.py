"""The stage `gamma`: the Monte-Carlo estimate of Gamma and of the covariance of x_0, at every time of the grid."""

import dataclasses
import math
from typing import Any

from diffcore import checkpoints
from diffcore.checkpoints.encoded import embeddings_of
from diffcore.core import disk, processes, threads
from diffcore.core.kept import Kept
from diffcore.data import feed, prompts, read
from diffcore.data.manifest import Manifest
from diffcore.search import gamma
from diffcore.search.gamma import Begun
from tasks import graph, paths
from tasks.params import ROOT, Params
from tasks.progress import Progress, log


def estimate(params: Params) -> None:
    """By both estimators, from the teacher and `gamma.images` of the images, whose classes and captions it is told as
    far as it takes such; of images held out of all training where there are any. A teacher that takes the weight of guidance
    is told the lowest that it was trained for."""
    threads.use(params.compute.threads)
    teacher = checkpoints.load(paths.CHECKPOINTS / ROOT).to(params.compute.device)
    folder = paths.HOLDOUT if paths.HOLDOUT.exists() else paths.DATA
    images = read.open_images(folder, params.compute.memory_bytes)
    manifest = Manifest.read(folder, verify=False)
    own = paths.TEXT_HOLDOUT if paths.HOLDOUT.exists() else paths.TEXT
    texts = embeddings_of(teacher.card, own, manifest)
    chosen = gamma.pick(len(images), params.gamma)
    kept = Kept(paths.RESUME / "gamma.sums", lambda line: log(f"gamma: {line}"))
    job = _job(params, teacher, manifest.digest)
    weight = teacher.guidance and teacher.guidance.low
    denoiser = teacher.denoiser if weight is None else teacher.denoiser.with_guidance(weight)
    estimates = gamma.estimate(
        denoiser,
        feed.to_float(images.take(chosen)),
        params.gamma,
        Progress("gamma", "calls"),
        inputs=prompts.known(images, texts, chosen) if teacher.denoiser.is_told else {},
        begun=_begun(kept, job, params.gamma),
        keep=lambda begun: _keep(kept, job, begun),
        seconds=params.compute.save_seconds,
    )
    if not processes.is_main():
        return
    about = {"checkpoint": ROOT, "checkpoint_digest": teacher.card.digest, "data": teacher.card.data}
    content = {"schema": gamma.SCHEMA, "about": about, "edges": _edges(images), **estimates.to_json()}
    disk.write_sealed(paths.GAMMA, content)
    kept.clear()
    told = "" if weight is None else f"with a guidance weight of {weight:g}, "
    log(f"gamma: {told}{estimates.images} images at {estimates.steps} times; {estimates.describe()}")


def _job(params: Params, teacher: checkpoints.Checkpoint, data: str) -> dict[str, Any]:
    """All that the sums depend on."""
    where = {"threads": params.compute.threads, "device": params.compute.device.type}
    inputs = {"checkpoint": teacher.card.digest, "data": data, "code": graph.code_digest("gamma")}
    return {"gamma": dataclasses.asdict(params.gamma), **inputs, **where}


def _begun(kept: Kept, job: dict[str, Any], config: gamma.Config) -> Begun | None:
    """What the main process has of the sums."""
    saved = kept.load(job) if processes.is_main() else None
    pairs = processes.from_main(saved and saved[0]["pairs"])
    if pairs is None:
        return None
    log(f"gamma: goes on after {pairs} of {config.images * config.steps} calls")
    sums = saved[1] if saved else gamma.nothing(config.steps)
    processes.spread([sums["total"], sums["square"]])
    return Begun(pairs, sums["total"], sums["square"])


def _keep(kept: Kept, job: dict[str, Any], begun: Begun) -> None:
    if processes.is_main():
        kept.save(job, {"pairs": begun.pairs}, {"total": begun.total, "square": begun.square})


def _edges(images: read.Images | read.StreamedImages) -> float:
    """The share of values at either end of their range: what the search knows of the bound's decoder."""
    at_ends = sum(int(((block == 0) | (block == 255)).sum()) for block in images.blocks(1024))
    return at_ends / (len(images) * math.prod(images.shape))
