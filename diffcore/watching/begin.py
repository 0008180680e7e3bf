"""From what a line of params.yaml says to who looks at its training."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from diffcore.core import processes, rng, threads
from diffcore.core.rng import places_like
from diffcore.core.shapes import CLASS
from diffcore.data.embeddings import Embeddings
from diffcore.data.read import Images, StreamedImages
from diffcore.denoisers.network import NetDenoiser
from diffcore.methods import Method
from diffcore.metrics import features
from diffcore.training.config import Compute
from diffcore.training.resume import Resume
from diffcore.watching import gauge
from diffcore.watching.config import Watch
from diffcore.watching.gauge import Gauge
from diffcore.watching.samples import FixedSamples
from diffcore.watching.watcher import Shown, Watcher, nowhere

FOLDER = "network"


@dataclass(frozen=True)
class Watched:
    """A training that is to be looked at: see `loop.Job`. weights: the range of guidance weights, None for none. texts:
    embeddings of the data's captions, None for a student that is told none."""

    method: Method
    student: NetDenoiser
    iterations: int
    seed: int
    weights: tuple[float, float] | None
    texts: Embeddings | None = None


def begin(
    config: Watch,
    training: Watched,
    images: Callable[[], Images | StreamedImages],
    network: features.Config,
    store: Resume,
    compute: Compute,
    log: Callable[[str], None],
    show: Shown = nowhere,
) -> tuple[Watcher, str]:
    """Who looks at it, and the digest of the feature network by which it looks; all processes call it.

    images: opens the data. network: how the feature network is trained, once for all trainings that share `store`, a job's
    place that is keyed by all that the network depends on. log, show: see `Watcher`. The samples are for the classes of the
    data, as frequent as there, and for the weight in the middle of the range, where the student takes weights.
    """
    threads.use(compute.threads)
    own, digest, places, labels = None, None, None, None
    with store.lock(processes.PATIENCE.total_seconds()):
        if processes.is_main():
            with processes.alone():
                data = images()
                seen = gauge.network(lambda: data, network, store.folder / FOLDER, log)
                own, digest = Gauge.of(data, seen.to(compute.device)), seen.digest
                store.prune()
            if training.student.inputs:
                places = places_like(len(data), config.images, _seed(training)).tolist()
                labels = None if data.labels is None else data.labels.cpu()[places].tolist()
    digest, places, labels = processes.from_main([digest, places, labels])
    samples = FixedSamples(
        training.method,
        training.student,
        _shape(own),
        config.images,
        _seed(training),
        config.steps,
        _known(training, places, labels),
        sum(training.weights) / 2 if training.weights and training.student.takes_guidance else None,
    )
    return Watcher(config, training.iterations, samples, own, log, show), digest


def _known(training: Watched, places: list[int] | None, labels: list[int] | None) -> dict[str, Tensor]:
    """What is known of the images at these places, as far as the student can be told."""
    known = training.texts.take(places) if training.texts and places else {}
    known |= {} if labels is None else {CLASS: torch.tensor(labels)}
    return {name: part for name, part in known.items() if name in training.student.inputs}


def _seed(training: Watched) -> int:
    """Of noise that no evaluation draws: the best of many looks is a lucky one by its own noise."""
    return rng.seed(training.seed, "watch")


def _shape(own: Gauge | None) -> tuple[int, ...]:
    """Of an image, in all processes."""
    return tuple(processes.from_main(None if own is None else list(own.network.card.shape)))
