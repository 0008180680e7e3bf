"""The stage `features`: the small network in whose features quality is measured, trained on the same data."""

from diffcore.core import threads
from diffcore.data import read
from diffcore.metrics import features
from tasks import paths
from tasks.params import Params
from tasks.progress import Progress, say


def train(params: Params) -> None:
    threads.use(params.compute.threads)
    images = read.open_images(paths.DATA, params.compute.memory_bytes)
    shown = Progress("features", "it")
    network = features.train(
        images,
        params.features,
        lambda step, loss: shown(step, params.features.iterations, f"loss {loss:.3f}"),
    )
    features.save(network, paths.FEATURES)
    card = network.card
    say(f"features: {card.task} accuracy {card.accuracy:.3f} on held-out images; network {network.digest[:12]}")
    if card.skill.warning:
        say(f"features: warning: {card.skill.warning}")
