"""What samples are asked to be: what is known of images of the data, drawn from them."""

from torch import Tensor

from diffcore.core.rng import places_like
from diffcore.core.shapes import CLASS
from diffcore.data.embeddings import Embeddings
from diffcore.data.feed import Inputs
from diffcore.data.read import Images, StreamedImages


def like(images: Images | StreamedImages, embeddings: Embeddings | None, count: int, seed: int) -> Inputs:
    """For each of `count` samples the class and the caption of an image, as frequent as in the data: those of sample i depend
    on (seed, i) and the data alone. By the name of a network's input, [count, ...]; empty where nothing is known."""
    return known(images, embeddings, places_like(len(images), count, seed))


def known(images: Images | StreamedImages, embeddings: Embeddings | None, places: Tensor) -> Inputs:
    """What is known of the images of these numbers, int64 [k]; by the name of a network's input, [k, ...]."""
    inputs = embeddings.take(places) if embeddings else {}
    return inputs if images.labels is None else inputs | {CLASS: images.labels.cpu()[places]}
