"""The stage `features`: the small network in whose features quality is measured, trained on the same data."""

from diffcore.core import processes, threads
from diffcore.data import read
from diffcore.metrics import features
from tasks import paths
from tasks.params import Params
from tasks.progress import Progress, log


def train(params: Params) -> None:
    threads.use(params.compute.threads)
    images = read.open_images(paths.DATA, params.compute.memory_bytes)
    progress = Progress("features", "it")
    network = features.train(
        images,
        params.features,
        lambda step, loss: progress(step, params.features.iterations, f"loss {loss:.3f}"),
    )
    if not processes.is_main():
        return
    features.save(network, paths.FEATURES)
    card = network.card
    log(f"features: {card.task} accuracy {card.accuracy:.3f} on held-out images; network {network.digest[:12]}")
    if card.skill.warning:
        log(f"features: warning: {card.skill.warning}")
