"""A teacher that somebody else trained: a folder that diffusers wrote, read as what it is.

Its scheduler says what it was trained on and how it is fed and read (`schedulers`). Nothing is approximated: what has no
exact counterpart here is refused. A checkpoint of this pipeline's own is taken as its card says.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from diffcore import nets
from diffcore.checkpoints.folder import check_finite, load
from diffcore.checkpoints.schedulers import SCHEDULER, Process, process, read_settings
from diffcore.core import disk
from diffcore.core.errors import UserError
from diffcore.data.embeddings import of_pipeline
from diffcore.denoisers.condition import CLASS, GUIDANCE
from diffcore.denoisers.network import NetDenoiser
from diffcore.nets import unet
from diffcore.nets.diffusers_model import DiffusersModel

LATENT = ("vae", "vqvae", "movq", "vqmodel")
"""Folders of a pipeline whose network works on what an encoder makes of images."""


@dataclass(frozen=True)
class Adopted:
    """files: sha256 of each file that was read. image: [c, h, w] that the network was made for, h and w 0 where its config
    does not say. classes: names by label, None where the folder does not tell them. sampling: what its scheduler does to the
    believed x_0, in a recipe's words; empty for nothing. settings: of its scheduler in diffusers, None for a checkpoint of
    ours. encoder: digest of the text encoders and tokenizers by whose embeddings it is told texts, None where none lie
    there. latent: the folder of what makes its samples of images, None for a network of images."""

    denoiser: NetDenoiser
    files: dict[str, str]
    image: tuple[int, int, int]
    classes: Sequence[str] | None = None
    sampling: dict[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] | None = None
    encoder: str | None = None
    latent: str | None = None

    @property
    def required(self) -> tuple[str, ...]:
        """What it must be told beside a class, by name."""
        net, names = self.denoiser.net, self.denoiser.nothing.names
        return tuple(each for each in names if not isinstance(net, DiffusersModel) or net.inputs[each].required)

    @property
    def skips(self) -> int | None:
        """How many skips its U-Net has, None for a network that is not our own, whose parts cannot be run alone."""
        return self.denoiser.net.config.skips if isinstance(self.denoiser.net, unet.UNet) else None

    def check(self, image: Sequence[int], classes: Sequence[str] | None) -> None:
        """A UserError if it is not a network for such images, [c, h, w], of these classes (names, or None)."""
        channels, *sides = self.image
        if channels != image[0] or (any(sides) and sides != list(image[1:])):
            raise UserError(self._of_other_images(image))
        content = self.denoiser.net.config_json()  # other networks halve nothing, or what they can
        levels = len(content.get("block_out_channels", [0])) if content["_class_name"] == unet.FORMAT else 1
        if any(side % 2 ** (levels - 1) for side in image[1:]):
            raise UserError(
                f"images of {image[1]} x {image[2]} cannot be halved {levels - 1} times as the teacher does; set data.size"
            )
        count = self.denoiser.classes
        if count is not None and count != len(classes or ()):
            raise UserError(
                f"the teacher's class table has {count + 1} rows, and the data have {len(classes or ())} classes; it needs "
                "a row for each and one more, the last, for no class"
            )
        if self.classes is not None and list(self.classes) != list(classes or ()):
            raise UserError(f"the teacher's classes are {_few(self.classes)} and the data's are {_few(classes or ())}")

    def check_told(self, name: str, folder: str, conditional: bool, inputs: Sequence[str]) -> None:
        """A UserError where the line `name` of `teachers`, which takes it from `folder`, says otherwise what it is told."""
        if self.settings is not None and self.denoiser.takes_guidance:  # nobody says for which weights it was trained
            raise UserError(
                f"teachers.{name}.from: its network takes the weight of guidance as an input, and here a teacher is guided "
                "by two calls; take one without that input, such as the network that it was distilled from"
            )
        knows, names = self.denoiser.classes is not None, self.denoiser.nothing.names
        if knows != conditional:
            raise UserError(
                f"teachers.{name}.conditional is {str(conditional).lower()}, but the teacher in {folder} knows "
                f"{'' if knows else 'no '}classes; set it to {str(knows).lower()}"
            )
        if not set(self.required) <= set(inputs) <= set(names):
            raise UserError(
                f"teachers.{name}.inputs is [{', '.join(inputs)}], but the teacher in {folder} is told "
                f"{', '.join(names) or 'no texts'}; set it to [{', '.join(names)}]"
            )

    def check_encoder(self, name: str, folder: str, encoder: Mapping[str, Any], whose: str) -> None:
        """A UserError where it is told the embeddings of another encoder than the one of this content, which `whose` has."""
        if self.encoder not in (None, encoder["digest"], encoder.get("pipeline")):
            raise UserError(
                f"teachers.{name} is told the embeddings of another encoder than those in {whose}; set text.encoder, and "
                f"text.length, to those that it was trained with, such as folder:{folder}"
            )

    def _of_other_images(self, image: Sequence[int]) -> str:
        own = " x ".join(str(size) if size else "?" for size in self.image)
        data = " x ".join(map(str, image))
        if self.latent:
            return (
                f"the teacher works on latents of {own}, which the encoder in {self.latent}/ makes of images, and the data "
                f"are images of {data}, of which none are made here yet; take a teacher of pixels"
            )
        return (
            f"the teacher is for images of {own} and the data are {data} (channels x height x width); set data.size and "
            "data.channels to what it was trained with"
        )


def read(folder: Path, sides: Sequence[int] | None = None) -> Adopted:
    """The denoiser in `folder`: a pipeline of diffusers (unet/ or transformer/, and scheduler/), with or without what makes
    embeddings of texts and latents of images; or a checkpoint of this pipeline's own.

    sides: height and width of the samples, by which some flows are shifted, where its config.json does not say them. A
    UserError says what cannot be read as it is. Nothing pickled is opened.
    """
    folder = Path(folder).expanduser()
    if folder.is_file():
        raise UserError(
            f"{folder} is a file, and a teacher is a folder in diffusers' format; `distill read` lists what is in a pickle "
            "and writes its tensors"
        )
    if (folder / "card.json").is_file():
        return _own(folder)
    part = part_of(folder)
    settings = read_settings(folder)
    content = _network(folder / part)
    net = nets.open_folder(folder / part).eval().requires_grad_(False)
    check_finite(net.state_dict(), f"{folder}/{part}", "fetch it again, or take another teacher")
    image = _image(content)
    if isinstance(net, DiffusersModel):  # whose config may count channels of tokens, and those of an image beside
        image = (net.architecture.channels[0], *image[1:])
    patches = _patches(net, image[1:] if any(image[1:]) else sides or (0,))
    own = process(settings, folder, getattr(net, "time_scale", 1000), patches)
    denoiser = _denoiser(net, own, content)
    paths = [folder / SCHEDULER, folder / part / nets.CONFIG, *sorted((folder / part).glob("*.safetensors*"))]
    files = {str(p.relative_to(folder)): disk.sha256(p) for p in paths}
    latent = next((part for part in LATENT if (folder / part).is_dir()), None)
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
        or checkpoint.guidance is not None
    ):
        raise UserError(
            f"{folder} is a student by {card.method}, which cannot teach at every time; give the teacher it comes from"
        )
    sampling = card.parameters.get("sampling", {}) if card.method == "adopted" else {}
    return Adopted(
        checkpoint.denoiser, dict(card.files), tuple(card.image), card.classes, sampling, encoder=card.encoder
    )


def part_of(folder: Path) -> str:
    """The folder of a pipeline's network."""
    return "transformer" if (folder / "transformer").is_dir() and not (folder / "unet").is_dir() else "unet"


def _network(folder: Path) -> dict[str, Any]:
    """The content of its config.json; a UserError for a U-Net of ours or its like that is told time or class otherwise."""
    content = nets.read_config(folder)
    if content["_class_name"] == unet.FORMAT:
        supported = {"time_embedding_type": "positional", "class_embed_type": None}
        for key, default in supported.items():
            if (value := content.get(key, default)) != default:
                raise UserError(f"{folder}: {key} {value!r} is not known here, only {default!r}; train one with that")
    return content


def _denoiser(net: nn.Module, own: Process, content: Mapping[str, Any]) -> NetDenoiser:
    """The last row of its table of classes is for none; all else that it is told must always be known."""
    if not isinstance(net, DiffusersModel):
        table = content.get("num_class_embeds")
        return NetDenoiser(net, own.schedule, own.reading, classes=table and table - 1)
    nothing = {name: None for name in net.inputs if name not in (CLASS, GUIDANCE)}
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


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "") or "none"
