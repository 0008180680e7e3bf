"""What each of diffusers' networks is called with, one file for each. Adding a file adds the network.

The names of the inputs are those of `diffcore.nets.inputs`, one word for one thing, whatever diffusers calls it in this
network or that. Each call is the one that the network's own pipeline in diffusers makes.
"""

import abc
import functools
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from diffcore.core import classes
from diffcore.core.errors import UserError
from diffcore.core.shapes import PerSample, Sample
from diffcore.nets.inputs import Input, check


@dataclass(frozen=True)
class Architecture(abc.ABC):
    """A network of diffusers by its config alone: what it takes, and how it is called.

    config: config.json, with the defaults of diffusers where that has no word. formats: its class names. time_scale: T of the
    timestep T t that it is told: most are told 0 to 1000, some 0 to 1. supported: settings, and the values of each with which
    the network takes no more than is named here. packed: how many numbers of a channel its pipeline makes one channel of.
    apart: modules that it calls outside of the block they belong to.
    """

    config: Mapping[str, Any]

    formats: ClassVar[tuple[str, ...]]
    time_scale: ClassVar[int] = 1000
    supported: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    packed: ClassVar[int] = 1
    apart: ClassVar[tuple[str, ...]] = ()

    @property
    @abc.abstractmethod
    def conditions(self) -> dict[str, Input]:
        """What it takes besides a sample, a time and an image."""

    @abc.abstractmethod
    def call(self, net: nn.Module, x: Tensor, timestep: PerSample, inputs: Mapping[str, Tensor]) -> Tensor:
        """The network's output [b, c or 2 c, ...]. x: the sample and, behind its channels, the image. inputs: checked."""

    @property
    def name(self) -> str:
        return self.config["_class_name"]

    @property
    def channels(self) -> tuple[int, int]:
        """Those of a sample, and those of the image that is put behind them: what the network takes more than it makes.

        Twice as many as it takes are a mean and a learned variance (Nichol & Dhariwal 2021, arXiv 2102.09672). A UserError
        for any other number.
        """
        taken, output = self.config["in_channels"], self.config["out_channels"]
        output = taken if output is None else output
        if taken % self.packed or output % self.packed:
            raise UserError(
                f"{self.name} makes {output} channels of {taken}, and each must be a multiple of {self.packed}"
            )
        taken, output = taken // self.packed, output // self.packed
        if output in (taken, 2 * taken):
            return taken, 0
        if output < taken:
            return output, taken - output
        raise UserError(f"{self.name} makes {output} channels of {taken}; it must keep their number, or double it")

    @property
    def is_consistency_student(self) -> bool:
        """Whether a network that embeds the guidance weight was distilled so that it jumps to images: it knows no velocities
        that it could teach."""
        return False

    @property
    def sides(self) -> int:
        """Height and width are multiples of it."""
        return self.config.get("patch_size", 1)

    @property
    def largest(self) -> int | None:
        """The longest side that it has positions for; None where they are worked out for any."""
        return None

    @property
    def axes(self) -> int:
        """How many a sample has beside its channels."""
        return 2

    @property
    def inputs(self) -> dict[str, Input]:
        """All that it takes besides a sample and a time."""
        if not (channels := self.channels[1]):
            return self.conditions
        return {**self.conditions, "image": Input((channels, *[None] * self.axes), torch.float32)}

    def check_config(self) -> None:
        """A UserError for a setting with which the network would be told what has no name here, and for odd channels."""
        if self.config.get("time_embedding_type") == "fourier":
            raise UserError(f"a Fourier {self.name} is told the noise scale sigma, not a time; give one with a time")
        for key, values in self.supported.items():
            if (value := self.config.get(key)) not in values:
                raise UserError(
                    f"nothing here says what a {self.name} with {key} {value!r} is told; give one with "
                    f"{key} {' or '.join(repr(other) for other in values)}"
                )
        _ = self.inputs

    def check(self, x: Sample, inputs: Mapping[str, Tensor]) -> None:
        """A UserError for a sample or an input that the network does not take."""
        channels, axes, sides = self.channels[0], self.axes, self.sides
        if x.ndim != 1 + 1 + axes or x.shape[1] != channels or any(side % sides for side in x.shape[2:]):
            whole = f"[{channels}{', any' * axes}]" + (f" with sides that {sides} divides" if sides > 1 else "")
            raise UserError(f"{self.name}: a sample is {list(x.shape[1:])} and must be {whole}")
        if (largest := self.largest) is not None and max(x.shape[2:]) > largest:
            raise UserError(
                f"{self.name}: a sample is {list(x.shape[1:])}, and its positions end at sides of {largest}"
            )
        check(self.name, self.inputs, inputs, len(x))
        if "image" in inputs and inputs["image"].shape[2:] != x.shape[2:]:
            raise UserError(
                f"{self.name}: image is {list(inputs['image'].shape[1:])} and the sample {list(x.shape[1:])}; "
                "give it the height and width of the sample"
            )


@functools.cache
def registry() -> dict[str, type[Architecture]]:
    """All of them, by the name of the class in diffusers."""
    kinds = classes.of_package(sys.modules[__name__], Architecture)
    return {name: kind for kind in kinds for name in kind.formats}
