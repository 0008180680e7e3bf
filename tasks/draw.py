"""The stage `draw`: the images of `data.source: teacher:N`, by a teacher that is there already."""

from pathlib import Path

from diffcore.checkpoints import from_diffusers
from diffcore.checkpoints.from_diffusers import Adopted
from diffcore.core import disk, processes, threads
from diffcore.core.errors import UserError
from diffcore.data import prompt_file
from diffcore.data.ledger import Unfinished
from diffcore.sampling import teacher_images
from diffcore.sampling.teacher_images import TeacherImages
from diffcore.texts.encoder import Encoder
from tasks import graph, paths, rules
from tasks.params import Params
from tasks.progress import Progress, log


def draw(params: Params) -> None:
    """Draws the images in files that a kill does not cost, and says who drew them."""
    threads.use(params.compute.threads)
    name = rules.drawing(params.teachers)
    images = _images(params, name)
    sampler = images.sampler  # which refuses what cannot be sampled before anything is
    by = {"name": name, "folder": params.teachers[name].folder}
    progress = Progress("draw", "images")
    if not processes.is_main():
        teacher_images.write(images, params.data.source, None, paths.DRAWN, by, progress)
        return
    signature = {**by, **images.signature, "threads": params.compute.threads}
    unfinished = Unfinished(paths.RESUME / "draw", graph.code_digest("draw"))

    def tell(line: str) -> None:
        log(f"draw: {line}")

    with unfinished.open(signature, [], tell) as kept, disk.folder(paths.DRAWN) as folder:
        teacher_images.write(images, params.data.source, kept, folder, by, progress, tell)
    log(
        f"draw: {images.count} images of {'x'.join(map(str, images.shape))} by {name} ({images.by['teacher'][:12]}), "
        f"{images.sampling.sampler}, {sampler.trajectory.steps} steps, seed {params.seed}"
    )


def _images(params: Params, name: str) -> TeacherImages:
    line, data = params.teachers[name], params.data
    prompts = prompt_file.read(data.captions) if line.inputs else []
    model = from_diffusers.read(Path(line.folder), data.size and (data.size, data.size), line.stated)
    model = model.with_weights(name, line.folder, line.guidance)
    model.check_told(name, line.folder, line.conditional, line.inputs)
    shape, classes = _shape(model, params, line.folder), _classes(model)
    model.check(shape, classes)
    encoder = _encoder(params, prompts[: data.count]) if line.inputs else None
    if encoder is not None:
        model.check_encoder(name, line.folder, encoder.content, "text.encoder")
        if missing := [each for each in line.inputs if each not in encoder.inputs]:
            raise UserError(
                f"teachers.{name} is told {missing[0]}, and text.encoder makes {', '.join(encoder.inputs)}; name another"
            )
    return TeacherImages(
        model, shape, data.sampling, data.count, params.seed, classes, prompts, encoder, line.inputs, params.compute.device
    )  # fmt: skip


def _shape(model: Adopted, params: Params, folder: str) -> tuple[int, int, int]:
    """[c, h, w] of what it draws: what its config says, and data.size where that says nothing."""
    channels, *sides = model.image
    if model.latent:
        raise UserError(
            f"data.source: the teacher in {folder} draws latents, of which {model.latent}/ makes images and nothing here "
            "does yet; take a teacher of pixels"
        )
    if channels not in (1, 3):
        raise UserError(f"data.source: the teacher in {folder} draws {channels} channels; images have 1 or 3")
    if not all(sides) and params.data.size is None:
        raise UserError(f"data.size: the teacher in {folder} does not say for which size it was trained; set it")
    sides = sides if all(sides) else [params.data.size] * 2
    wanted = {"size": (params.data.size, min(sides)), "channels": (params.data.channels, channels)}
    for key, (said, own) in wanted.items():
        if said not in (None, own):
            raise UserError(f"data.{key}: {said}, and the teacher in {folder} draws {own}; leave it null")
    return channels, *sides


def _classes(model: Adopted) -> tuple[str, ...] | None:
    count = model.denoiser.classes
    if count is None:
        return None
    return tuple(map(str, model.classes if model.classes is not None else range(count)))


def _encoder(params: Params, prompts: list[str]) -> Encoder:
    """Of the length that the stage `encode` will take for these prompts."""
    encoder = params.encoder()
    return encoder.of_length(params.text.length, max(encoder.counts(["", *dict.fromkeys(prompts)])))
