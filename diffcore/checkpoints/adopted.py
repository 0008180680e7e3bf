"""A network from elsewhere that becomes a teacher, whatever it was read of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from diffcore.checkpoints.card import TEACHER, Guidance
from diffcore.core.errors import UserError
from diffcore.denoisers.network import NetDenoiser
from diffcore.denoisers.reading import Reading
from diffcore.nets import published, unet
from diffcore.nets.conditioned import Conditioned
from diffcore.nets.diffusers_model import DiffusersModel
from diffcore.nets.inputs import MAKERS, SIZE
from diffcore.noise.schedule import Schedule


@dataclass(frozen=True)
class Stated:
    """What a person says of a network where its files do not: the path of its config.json, the noise that it was trained on
    and how it is fed and read, both or neither."""

    config: str | None = None
    schedule: Schedule | None = None
    reading: Reading | None = None

    def check(self) -> None:
        """A UserError for a network that says eps where there is nothing but noise."""
        says = self.reading and self.reading.parameterization
        if says in ("eps", "score") and float(self.schedule.alpha(torch.ones(1))) == 0:
            raise UserError(f"a network that says {says} has no image at t = 1 of a schedule that ends in pure noise")


SILENT = Stated()

SOME = Guidance(1.0, 5.0)
"""An example, of weights that are in use."""


@dataclass(frozen=True)
class Adopted:
    """files: sha256 of each file that was read. image: [c, h, w] that the network was made for, h and w 0 where its config
    does not say. classes: names by label, None where the folder does not tell them. sampling: what its scheduler does to the
    believed x_0, in a recipe's words; empty for nothing. settings: of its scheduler in diffusers, None for a checkpoint of
    ours and for a network alone. encoder: digest of the text encoders and tokenizers by whose embeddings it is told texts,
    None where none lie there. latent: the folder of what makes its samples of images, None for a network of images. is_ours:
    whether it is a checkpoint of this pipeline's own. guidance: the weights that its
    network is told, None for one that takes none, and where nobody has said them."""

    denoiser: NetDenoiser
    files: dict[str, str]
    image: tuple[int, int, int]
    classes: Sequence[str] | None = None
    sampling: dict[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] | None = None
    encoder: str | None = None
    latent: str | None = None
    is_ours: bool = False
    guidance: Guidance | None = None

    @property
    def inputs(self) -> tuple[str, ...]:
        """What it may be told beside a class, by name; not the size of its images, which is the same of all."""
        return tuple(name for name in self.denoiser.nothing.names if name not in self._settled)

    @property
    def required(self) -> tuple[str, ...]:
        """What of this it must be told."""
        net = self.denoiser.net
        return tuple(name for name in self.inputs if not isinstance(net, DiffusersModel) or net.inputs[name].required)

    @property
    def _settled(self) -> dict[str, Tensor]:
        """What it is told of every image, by name."""
        return {name: part for name, part in self.denoiser.nothing.parts().items() if name == SIZE and part is not None}

    def told(self, nothing: Mapping[str, Tensor]) -> NetDenoiser:
        """Its denoiser where this stands for nothing, by name, and which is told no more than that and what is settled."""
        return self.denoiser.with_nothing({**self._settled, **nothing})

    @property
    def skips(self) -> int | None:
        """How many skips its U-Net has, None for a network that is not our own, whose parts cannot be run alone."""
        return self.denoiser.net.config.skips if isinstance(self.denoiser.net, unet.UNet) else None

    @property
    def takes_end(self) -> bool:
        """Whether its students can be told where a hop lands."""
        return isinstance(self.denoiser.net, Conditioned)

    def check(self, image: Sequence[int], classes: Sequence[str] | None) -> None:
        """A UserError if it is not a network for such images, [c, h, w], of these classes (names, or None)."""
        channels, *sides = self.image
        if self.latent or channels != image[0] or (any(sides) and sides != list(image[1:])):
            raise UserError(self._of_other_images(image))
        content = self.denoiser.net.config_json()  # other networks halve nothing, or what they can
        levels = len(content.get("block_out_channels", [0])) if content["_class_name"] == unet.FORMAT else 1
        if any(side % 2 ** (levels - 1) for side in image[1:]):
            raise UserError(
                f"images of {image[1]} x {image[2]} cannot be halved {levels - 1} times as the teacher does; set data.size"
            )
        count = self.denoiser.classes
        if count is not None and count != len(classes or ()):
            raise UserError(self._of_other_classes(count, len(classes or ())))
        if self.classes is not None and list(self.classes) != list(classes or ()):
            raise UserError(f"the teacher's classes are {_few(self.classes)} and the data's are {_few(classes or ())}")

    def check_told(self, name: str, folder: str, conditional: bool, inputs: Sequence[str]) -> None:
        """A UserError where the line `name` of `teachers`, which takes it from `folder`, says otherwise what it is told."""
        knows, names = self.denoiser.classes is not None, self.inputs
        if knows != conditional:
            raise UserError(
                f"teachers.{name}.conditional is {str(conditional).lower()}, but the teacher in {folder} knows "
                f"{'' if knows else 'no '}classes; set it to {str(knows).lower()}"
            )
        needed = self.required
        if unsaid := [each for each in needed if each not in MAKERS and isinstance(self.denoiser.net, DiffusersModel)]:
            raise UserError(
                f"teachers.{name}.from: the network in {folder} is told {unsaid[0]}, which no data say yet; take a teacher "
                "that is not"
            )
        if not set(needed) <= set(inputs) <= set(names):
            free = [each for each in names if each not in needed]
            also = f", and may be told {', '.join(free)}" if free else ""
            raise UserError(
                f"teachers.{name}.inputs is [{', '.join(inputs)}], but the teacher in {folder} is told "
                f"{', '.join(needed) or 'no texts'}{also}; set it to [{', '.join(needed)}]"
            )

    def check_shapes(self, name: str, folder: str, shapes: Mapping[str, Sequence[int]]) -> None:
        """A UserError where it is told something of another shape than these, by name, which the data have of an image."""
        if not isinstance(self.denoiser.net, DiffusersModel):
            return
        for each, shape in shapes.items():
            own = self.denoiser.net.inputs[each].shape
            if len(own) != len(shape) or any(size not in (None, data) for size, data in zip(own, shape)):
                sizes, data = (
                    ", ".join("any" if size is None else f"{size}" for size in sizes) for sizes in (own, shape)
                )
                raise UserError(
                    f"teachers.{name}: the network in {folder} is told {each} of [{sizes}], and the data have [{data}]; set "
                    f"{MAKERS[each]} to what it was trained with"
                )

    def with_weights(self, name: str, folder: str, weights: tuple[float, float] | None) -> "Adopted":
        """The same, whose network is told weights of guidance from the lowest to the highest of these, or always a single
        one, as the line `name` of `teachers` says; itself where its network takes none. A UserError where the line says
        otherwise than `folder`, and for a student."""
        if self.denoiser.takes_guidance:
            return self._with_weights(name, folder, weights)
        if weights is not None:
            raise UserError(
                f"teachers.{name}.guidance: the network in {folder} takes no weight of guidance as an input; leave it out, "
                "and guide it by two calls: `guidance` in evaluate and distill"
            )
        return self

    def _with_weights(self, name: str, folder: str, weights: tuple[float, float] | None) -> "Adopted":
        net = self.denoiser.net
        if not isinstance(net, DiffusersModel) or net.architecture.is_consistency_student:
            raise UserError(
                f"teachers.{name}.from: the network in {folder} takes the weight of guidance as an input, as a student that "
                "was trained for few steps does, and is no teacher at every time; take the one that it was distilled from"
            )
        if weights is None:
            raise UserError(f"teachers.{name}.guidance: missing: {self._weights_to_write(folder)}")
        own = Guidance(*weights)
        for weight in weights if self.guidance else ():
            try:
                self.guidance.check(weight, TEACHER)
            except UserError as error:
                raise UserError(f"teachers.{name}.guidance: {error}") from None
        return replace(self, denoiser=self.denoiser.with_guidance(None if own.is_input else own.low), guidance=own)

    def _weights_to_write(self, folder: str) -> str:
        own = self.guidance or SOME
        unsaid = "" if self.guidance else ", and no file says for which weights it was trained"
        span = f"[{own.low:g}, {own.high:g}], or a single one" if own.is_input else f"{own.low:g}"
        return f"the network in {folder} takes the weight of guidance as an input{unsaid}; write them, such as {span}"

    def check_encoder(self, name: str, folder: str, encoder: Mapping[str, Any], whose: str) -> None:
        """A UserError where it is told the embeddings of another encoder than the one of this content, which `whose` has."""
        if self.encoder not in (None, encoder["digest"], encoder.get("pipeline")):
            raise UserError(
                f"teachers.{name} is told the embeddings of another encoder than those in {whose}; set text.encoder, and "
                f"text.length, to those that it was trained with, such as folder:{folder}"
            )

    def _of_other_classes(self, own: int, data: int) -> str:
        if isinstance(self.denoiser.net, published.Published):
            return f"the teacher tells {own} classes apart, and the data have {data} classes; take the data it was trained on"
        return (
            f"the teacher's class table has {own + 1} rows, and the data have {data} classes; it needs a row for each and "
            "one more, the last, for no class"
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


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "") or "none"
