"""The stage `features`: the small network in whose features quality is measured, trained on the same data."""

from diffcore import features, shards, threads
from tasks import paths
from tasks.params import Params
from tasks.progress import Progress, say


def train(params: Params) -> None:
    threads.use(params.compute.threads)
    images, shown = shards.load_resident(paths.DATA), Progress("features", "it")
    network = features.train(
        images.pixels,
        images.labels,
        params.features,
        lambda step, loss: shown(step, params.features.iterations, f"loss {loss:.3f}"),
    )
    features.save(network, paths.FEATURES)
    card = network.card
    say(f"features: {card.task} accuracy {card.accuracy:.3f} on held-out images; network {network.digest[:12]}")
