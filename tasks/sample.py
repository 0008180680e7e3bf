"""`distill sample`: images of a checkpoint or of a point of the frontier, the same that measuring draws from that seed."""

import dataclasses
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from diffcore import checkpoints
from diffcore.checkpoints.encoded import embeddings_of
from diffcore.core import disk, precision, threads
from diffcore.core.errors import UserError
from diffcore.core.shapes import CLASS, IMAGE, Sample
from diffcore.data import feed, prompts, read
from diffcore.data.manifest import Manifest
from diffcore.denoisers.bfloat16 import BFloat16
from diffcore.denoisers.condition import TEXT
from diffcore.noise.trajectory import Trajectory
from diffcore.sampling import recipe as recipes
from diffcore.sampling.headroom import Headroom
from diffcore.sampling.recipe import Recipe
from diffcore.sampling.sampler import Sampler
from diffcore.sampling.solvers.analytic import Analytic
from diffcore.search import gamma
from tasks import named, paths, pictured, prompted
from tasks.named import Named
from tasks.params import ROOT, Params
from tasks.pictures import grids
from tasks.progress import log

FORMATS = ("grid", "png", "npz")
BY_SUFFIX = {".png": "grid", ".npz": "npz"}
"""The format of a target without one; a folder of PNGs for any other name."""


@dataclass(frozen=True)
class Drawable:
    """A checkpoint opened with the way that it is sampled. bf16: whether the network is called in bfloat16."""

    name: str
    checkpoint: checkpoints.Checkpoint
    recipe: Recipe
    sampler: Sampler
    bf16: bool = False

    @precision.exact()
    def draw(self, params: Params, count: int, seed: int, inputs: Any) -> Sample:
        """Samples [count, c, h, w] from the noises (seed, i), in batches as the stage `measure` draws them, on the CPU.

        inputs: what is known of them, by the name of a network's input [count, ...].
        """
        sampler = self.sampler
        if self.bf16:
            sampler = dataclasses.replace(sampler, denoiser=BFloat16(sampler.denoiser))
        away = prompted.away(self.recipe, self.checkpoint, params)
        condition = self.recipe.condition(self.checkpoint, inputs, away)
        batch = params.evaluate.usual_batch
        return sampler.draw(self.checkpoint.shape, count, seed, batch, condition, headroom=Headroom())


def open_named(each: Named, params: Params, steps: int | None = None, guidance: float | None = None) -> Drawable:
    """The checkpoint, verified, on this project's device: a point as it was measured, an alias as the registered model
    samples it, a checkpoint by its own sampler.

    A UserError where steps or guidance are asked of a point or an alias, which has its own, or do not fit the checkpoint.
    """
    checkpoint = checkpoints.load(each.folder).to(params.compute.device)
    if each.sampling is None:
        return _by_itself(each, checkpoint, steps, guidance)
    what, name = "an alias" if each.registered else "a point", checkpoint.card.name
    for key, value in (("steps", steps), ("guidance", guidance)):
        if value is not None:
            raise UserError(
                f"{each.word} is {what} and has its own {key}; leave --{key} out, or name the checkpoint {name}"
            )
    recipe = recipes.from_json(disk.parse_json(each.sampling.recipe))
    estimates = _gamma(each) if isinstance(recipe.solver, Analytic) else None
    sampler = recipe.sampler(checkpoint, Trajectory(each.sampling.times), estimates)
    return Drawable(each.word, checkpoint, recipe, sampler, each.sampling.bf16)


def _by_itself(each: Named, checkpoint: checkpoints.Checkpoint, steps: int | None, guidance: float | None) -> Drawable:
    grid = checkpoint.denoiser.grid
    if grid is None and steps is None:
        raise UserError(
            f"{each.word} is valid at any time; say how many steps (--steps K), or name one of its points (`distill report`)"
        )
    recipe = recipes.own_recipe(checkpoint, guidance).on(checkpoint)
    return Drawable(each.word, checkpoint, recipe, recipe.sampler(checkpoint, recipes.own_times(checkpoint, steps)))


def _gamma(each: Named) -> gamma.Gamma:
    """That of the teacher; a UserError if the file is of another one."""
    card = each.card
    if each.registered:
        own = None if card.teacher else card.digest  # a student's file was checked when it was published
        return gamma.Gamma.from_json(gamma.read(each.sampling.gamma, own, paths.again("publish")))
    own = card.digest if card.name == ROOT else checkpoints.read_card(paths.CHECKPOINTS / ROOT).digest
    return gamma.Gamma.from_json(gamma.read(each.sampling.gamma, own, paths.again("gamma")))


def usual_inputs(checkpoint: checkpoints.Checkpoint, params: Params, count: int, seed: int) -> Any:
    """What measuring asks `count` samples to be, by the name of a network's input [count, ...]: as frequent as in the data;
    empty for a network that is told nothing. Where this folder does not hold the images that the checkpoint was trained on,
    each class in turn, and a UserError for one that is told a text."""
    card = checkpoint.card
    if not checkpoint.denoiser.inputs:
        return {}
    if (paths.DATA / "manifest.json").exists() and Manifest.read(paths.DATA, verify=False).digest == card.data:
        texts = embeddings_of(card, paths.TEXT, Manifest.read(paths.DATA, verify=False))
        return prompts.like(read.open_images(paths.DATA, params.compute.memory_bytes), texts, count, seed)
    if card.inputs:
        remedy = "give --condition" if IMAGE in card.inputs else "give --prompt"
        raise UserError(
            f"{card.name} is told {', '.join(card.inputs)}, and the images that it was trained on are not in {paths.DATA}; "
            f"{remedy}"
        )
    log(f"{card.name}: its images are not in {paths.DATA}, so each of its classes is asked for in turn")
    return recipes.classes(checkpoint, count, None)


def chosen_classes(checkpoint: checkpoints.Checkpoint, words: str, count: int) -> Any:
    """`cat,3`, names or numbers of classes, each in turn, as an input. A UserError for one that the network has not."""
    if not checkpoint.card.classes:
        raise UserError(f"{checkpoint.card.name} knows no classes; leave --classes out")
    numbers = [_number(checkpoint.card, word.strip()) for word in words.split(",")]
    return recipes.classes(checkpoint, count, [numbers[i % len(numbers)] for i in range(count)])


@dataclass(frozen=True)
class Request:
    """What a person asks of all samples; None and nothing: what measuring asks. classes: `cat,3`. prompts: captions. images:
    files, or folders of them, of which copies are told. Of several each in turn."""

    classes: str | None = None
    prompts: Sequence[str] = ()
    images: Sequence[Path] = ()

    def inputs(self, checkpoint: checkpoints.Checkpoint, params: Params, count: int, seed: int) -> Any:
        """What the network is told, by the name of its input [count, ...]; UserErrors for what it cannot be."""
        if self.classes is not None and self.prompts:
            raise UserError("--classes and --prompt both say what the images are to be; give one of them")
        if self.classes is None and not self.prompts and not self.images:
            return usual_inputs(checkpoint, params, count, seed)
        inputs = {} if self.classes is None else chosen_classes(checkpoint, self.classes, count)
        if self.prompts:
            inputs |= _in_turn(prompted.by_texts(checkpoint, params, self.prompts), count)
        if self.images:
            inputs |= _in_turn(pictured.by_images(checkpoint, params, self.images), count)
        options = {CLASS: "--classes", TEXT: "--prompt", IMAGE: "--condition"}
        for name in checkpoint.denoiser.inputs:
            if name not in inputs and name in options:
                raise UserError(
                    f"{checkpoint.card.name} is told {' and '.join(checkpoint.denoiser.inputs)}; give {options[name]} as well"
                )
        return inputs


def _in_turn(inputs: dict[str, Any], count: int) -> dict[str, Any]:
    return {name: part[[i % len(part) for i in range(count)]] for name, part in inputs.items()}


def _number(card: checkpoints.Card, word: str) -> int:
    names = list(map(str, card.classes))
    if word in names:
        return names.index(word)
    if word.isdecimal() and int(word) < len(names):
        return int(word)
    listing = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
    raise UserError(f"{card.name} knows no class {word!r}; there are {listing}, or 0 to {len(names) - 1}")


def format_of(target: Path, form: str | None) -> str:
    """The format of a target: what was asked for, or what its name says. A UserError for one that there is not."""
    if form is not None and form not in FORMATS:
        raise UserError(f"--format {form}: there are {', '.join(FORMATS)}")
    return form or BY_SUFFIX.get(target.suffix, "png")


def sample(
    params: Params,
    word: str,
    target: Path,
    images: int,
    seed: int | None = None,
    steps: int | None = None,
    classes: str | None = None,
    guidance: float | None = None,
    form: str | None = None,
    prompts: Sequence[str] | None = None,
    condition: Sequence[Path] | None = None,
) -> None:
    """Draws images and writes them to `target`, whole or not at all. seed: None for the one that points are measured with."""
    form = format_of(target, form)
    disk.check_free(target, "--out")
    each = named.find(word)
    threads.use(params.compute.threads)
    drawable = open_named(each, params, steps, guidance)
    checkpoint = drawable.checkpoint
    seed = params.evaluate.seed if seed is None else seed
    inputs = Request(classes, prompts or (), condition or ()).inputs(checkpoint, params, images, seed)
    drawn = feed.to_uint8(drawable.draw(params, images, seed, inputs)).permute(0, 2, 3, 1).numpy()
    labels = inputs[CLASS].numpy() if CLASS in inputs and checkpoint.card.classes else None
    texts = [prompts[i % len(prompts)] for i in range(images)] if prompts else None
    WRITERS[form](Drawn(drawn, labels, texts), target)
    log(f"{each.title}: {images} images from noise seed {seed} are in {target} ({form})")


@dataclass(frozen=True)
class Drawn:
    """images: uint8 [n, h, w, c]. labels: the classes that they were to be, int64 [n], None where the network is told none.
    texts: their prompts, None where none were given."""

    images: np.ndarray
    labels: np.ndarray | None
    texts: Sequence[str] | None


def _grid(drawn: Drawn, target: Path) -> None:
    with disk.beside(target) as room:
        grids.grid(drawn.images, room / target.name)
        disk.put(room / target.name, target, new=True)


def _npz(drawn: Drawn, target: Path) -> None:
    """arr_0: the images, arr_1: the classes, `captions`: the prompts, each where there are some."""
    content = io.BytesIO()
    texts = {} if drawn.texts is None else {"captions": np.array(drawn.texts)}
    np.savez(content, drawn.images, *([] if drawn.labels is None else [drawn.labels]), **texts)
    disk.write(target, content.getvalue(), new=True)


def _pngs(drawn: Drawn, target: Path) -> None:
    """000000.png and so on, in a folder."""
    from PIL import Image

    with disk.folder(target, new=True) as new:
        for number, image in enumerate(drawn.images):
            Image.fromarray(image[..., 0] if image.shape[2] == 1 else image).save(new / f"{number:06d}.png")


WRITERS: dict[str, Callable[[Drawn, Path], None]] = {
    "grid": _grid,
    "png": _pngs,
    "npz": _npz,
}
