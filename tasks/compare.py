"""`distill compare`: two samplings from the same noises, and whether one is better beyond error."""

import json

from diffcore.core import threads
from diffcore.core.errors import UserError
from diffcore.data import read
from diffcore.data.manifest import Manifest
from diffcore.metrics import features
from diffcore.metrics.comparison import Comparison
from diffcore.metrics.comparison import compare as held_against
from diffcore.metrics.metric import Subject
from diffcore.metrics.reference import Reference
from tasks import named, paths
from tasks.named import Named
from tasks.params import Params
from tasks.progress import log
from tasks.sample import Drawable, open_named, usual_inputs


def compare(
    params: Params,
    words: tuple[str, str],
    images: int | None = None,
    seed: int | None = None,
    steps: int | None = None,
    as_json: bool = False,
) -> None:
    """Prints distances of both, their paired difference and a verdict; as JSON and nothing else, if that is asked for.

    images, seed: None for those of `evaluate`. steps: of a checkpoint that is valid at any time.
    """
    both = [named.find(word) for word in words]
    check_comparable(*both)
    threads.use(params.compute.threads)
    images = images or params.evaluate.images
    seed = params.evaluate.seed if seed is None else seed
    takers = [each for each in both if each.sampling is None and each.card.grid is None]
    if steps is not None and not takers:
        raise UserError(f"{words[0]} and {words[1]} have steps of their own; leave --steps out")
    drawables = [open_named(each, params, steps if each in takers else None) for each in both]
    network = features.load(paths.FEATURES).to(params.compute.device)
    real = read.open_images(paths.DATA, params.compute.memory_bytes)
    reference = Reference.of(real, network)

    def subject(each: Drawable) -> Subject:
        inputs = usual_inputs(each.checkpoint, params, images, seed)
        return Subject(each.draw(params, images, seed, inputs), reference, network, seed)

    outcome = held_against(words, *map(subject, drawables))
    aliases = {each.word: str(each.registered) for each in both if each.registered}
    if as_json:
        about = {"images": images, "seed": seed, "real_images": reference.count, "features": network.digest}
        about |= {"aliases": aliases} if aliases else {}
        log(json.dumps(outcome.to_json() | about, indent=1, allow_nan=False))
        return
    for alias, version in aliases.items():
        log(f"{alias} is {version}")
    log(
        f"{images} samples each from noise seed {seed}, {reference.count} real images, feature network {network.digest[:12]}"
    )
    log("\n".join(["", *table(outcome), "", outcome.verdict()]))


def check_comparable(first: Named, second: Named) -> None:
    """A UserError for checkpoints of images of two shapes or of two data sets, or of others than lie in this folder."""
    one, other = first.card, second.card
    if one.image != other.image:
        raise UserError(
            f"{first.word} makes images of shape {one.image} and {second.word} of {other.image}; they cannot be compared"
        )
    here = Manifest.read(paths.DATA, verify=False).digest
    for each, card in ((first, one), (second, other)):
        if card.data != here:
            raise UserError(
                f"{each.word} was trained on other images ({card.data[:12]}) than {paths.DATA} holds ({here[:12]}); "
                "compare it where its own images are"
            )


def table(outcome: Comparison) -> list[str]:
    """A line for the headings, one for each distance, and the RMSE between the two."""
    first, second = outcome.names
    rows = [["", first, second, f"{second} - {first}"]]
    for name, each in outcome.distances.items():
        difference = each.difference.plus_minus()
        sign = "" if difference.startswith("-") else "+"
        rows.append([name, each.first.plus_minus(), each.second.plus_minus(), sign + difference])
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths)) for row in rows]
    return [*lines, f"RMSE between the two, noise by noise: {outcome.rmse.plus_minus()}"]
