"""A teacher that somebody else trained: a folder that diffusers wrote, read as what it is.

Its scheduler says what it was trained on and how it is fed and read (`schedulers`). Nothing is approximated: what has no
exact counterpart here is refused. A checkpoint of this pipeline's own is taken as its card says.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from diffcore import nets
from diffcore.checkpoints import from_file
from diffcore.checkpoints.adopted import SILENT, Adopted, Stated
from diffcore.checkpoints.folder import check_finite, load
from diffcore.checkpoints.schedulers import SCHEDULER, Process, process, read_settings
from diffcore.core import disk
from diffcore.core.errors import UserError
from diffcore.data.embeddings import of_pipeline
from diffcore.denoisers.condition import CLASS, GUIDANCE
from diffcore.denoisers.network import NetDenoiser
from diffcore.nets import unet
from diffcore.nets.diffusers_model import DiffusersModel
from diffcore.nets.files import PARTS
from diffcore.nets.inputs import SIZE, whole

LATENT = ("vae", "vqvae", "movq", "vqmodel")
"""Folders of a pipeline whose network works on what an encoder makes of images."""


def read(folder: Path, sides: Sequence[int] | None = None, stated: Stated = SILENT) -> Adopted:
    """The denoiser in `folder`: a pipeline of diffusers (unet/ or transformer/, and scheduler/), with or without what makes
    embeddings of texts and latents of images; a checkpoint of this pipeline's own; or what was published otherwise, a file or
    a folder that `from_file` reads.

    sides: height and width of the samples, by which some flows are shifted, where its config.json does not say them. stated:
    what params.yaml says of a network that lies there alone. A UserError says what cannot be read as it is. No code of a
    pickle is run.
    """
    folder = Path(folder).expanduser()
    bare = from_file.bare(folder, stated)
    if bare is not None and bare.is_published:
        return from_file.read(bare)
    if bare is not None:
        with from_file.as_pipeline(bare, stated) as room:
            return replace(_pipeline(room, sides, stated), files=bare.files, settings=None)
    if stated != SILENT:
        raise UserError(f"{folder} says by itself what its network is and was trained on; leave config and trained out")
    return _own(folder) if (folder / "card.json").is_file() else _pipeline(folder, sides)


def _pipeline(folder: Path, sides: Sequence[int] | None, stated: Stated = SILENT) -> Adopted:
    part = part_of(folder)
    settings = None if stated.reading else read_settings(folder)
    content = _network(folder / part)
    x0_eps = stated.reading is not None and stated.reading.parameterization == "x0_eps"
    net = nets.open_folder(folder / part, x0_eps).eval().requires_grad_(False)
    check_finite(net.state_dict(), f"{folder}/{part}", "fetch it again, or take another teacher")
    image = _image(content)
    if isinstance(net, DiffusersModel):  # whose config may count channels of tokens, and those of an image beside
        image = (net.architecture.channels[0], *image[1:])
    patches = _patches(net, image[1:] if any(image[1:]) else sides or (0,))
    if settings is None:
        own = Process(stated.schedule, stated.reading, {})
    else:
        own = process(settings, folder, getattr(net, "time_scale", 1000), patches)
    latent = next((part for part in LATENT if (folder / part).is_dir()), None)
    size = image[1:] if any(image[1:]) else sides
    denoiser = _denoiser(net, own, content, None if latent or not size else whole(size))
    scheduler = [] if settings is None else [folder / SCHEDULER]
    paths = [*scheduler, folder / part / nets.CONFIG, *sorted((folder / part).glob("*.safetensors*"))]
    files = {str(p.relative_to(folder)): disk.sha256(p) for p in paths}
    return Adopted(denoiser, files, image, None, own.sampling, settings, of_pipeline(folder), latent)


def _own(folder: Path) -> Adopted:
    content = nets.read_config(folder / "unet")
    if content["_class_name"] in nets.MODULE.formats:  # a card is sealed by whoever wrote it
        raise UserError(
            f"{folder} names the class {content.get('module')} as its network, and only a class that params.yaml names is "
            "imported; go on in the workspace that trained it, or train one here with `network: {module: ...}`"
        )
    checkpoint = load(folder)
    card = checkpoint.card
    if (
        checkpoint.denoiser.grid is not None
        or card.solver == "multistep_consistency"
        or (checkpoint.guidance is not None and card.method != "adopted")
    ):
        raise UserError(
            f"{folder} is a student by {card.method}, which cannot teach at every time; give the teacher it comes from"
        )
    sampling = card.parameters.get("sampling", {}) if card.method == "adopted" else {}
    return Adopted(
        checkpoint.denoiser,
        dict(card.files),
        tuple(card.image),
        card.classes,
        sampling,
        encoder=card.encoder,
        is_ours=True,
        guidance=checkpoint.guidance,
    )


def part_of(folder: Path) -> str:
    """The folder of a pipeline's network."""
    return next((part for part in PARTS if (folder / part).is_dir()), PARTS[0])


def _network(folder: Path) -> dict[str, Any]:
    """The content of its config.json; a UserError for a U-Net of ours or its like that is told time or class otherwise."""
    content = nets.read_config(folder)
    if content["_class_name"] == unet.FORMAT:
        supported = {"time_embedding_type": "positional", "class_embed_type": None}
        for key, default in supported.items():
            if (value := content.get(key, default)) != default:
                raise UserError(f"{folder}: {key} {value!r} is not known here, only {default!r}; train one with that")
    return content


def _denoiser(net: nn.Module, own: Process, content: Mapping[str, Any], size: Tensor | None) -> NetDenoiser:
    """The last row of its table of classes is for none; all else that it is told must always be known, but the size of its
    images, which is the same of all."""
    if not isinstance(net, DiffusersModel):
        table = content.get("num_class_embeds") or content.get("class_embeds")
        guided = getattr(net, "guidance_embedding", None) is not None
        return NetDenoiser(net, own.schedule, own.reading, classes=table and table - 1, takes_guidance=guided)
    nothing = {name: size if name == SIZE else None for name in net.inputs if name not in (CLASS, GUIDANCE)}
    if CLASS in net.inputs and nothing:
        raise UserError(
            f"a {content['_class_name']} that is told {', '.join(nothing)} is told by {CLASS} how noisy its image is, "
            "and none of them stands for none; take a teacher without"
        )
    classes = net.inputs[CLASS].rows - 1 if CLASS in net.inputs else None
    return NetDenoiser(
        net, own.schedule, own.reading, None, classes, takes_guidance=GUIDANCE in net.inputs, nothing=nothing
    )


def _patches(net: nn.Module, sides: Sequence[int]) -> int | None:
    """How many patches a network sees of samples with these sides; None where they are not known."""
    if not isinstance(net, DiffusersModel) or not all(sides):
        return None
    return math.prod(side // net.architecture.sides for side in sides)


def _image(content: dict[str, Any]) -> tuple[int, int, int]:
    size = content.get("sample_size") or 0
    if not (type(size) is int or (isinstance(size, list) and [type(side) for side in size] == [int, int])):
        raise UserError(f"{nets.CONFIG}: sample_size must be a side in pixels or [height, width], got {size!r}")
    return content.get("in_channels", 3), *((size, size) if isinstance(size, int) else size)
