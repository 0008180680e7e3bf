"""The default U-Net as a person chooses it, and how large that is."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from diffcore.core.errors import UserError
from diffcore.denoisers.reading import NUM_TIMESTEPS
from diffcore.nets import family
from diffcore.nets.unet.config import UNetConfig, default_config
from diffcore.nets.unet.init import build
from diffcore.nets.unet.model import UNet


@dataclass(frozen=True)
class Shape(family.Shape):
    """What a person chooses of the default U-Net.

    channels: of each level, from the finest. layers: residual blocks per level on the way down. attention: on every level
    but the finest. groups: of the group norms. max_phase: radians, see `build`. conditional, parameterization: of any family.
    """

    channels: tuple[int, ...]
    layers: int
    attention: bool
    groups: int
    dropout: float
    max_phase: float
    conditional: bool = False
    parameterization: Literal["v", "x0", "eps", "x0_eps", "flow"] = "v"

    def __post_init__(self):
        if self.parameterization == "eps":
            raise ValueError(family.NO_EPS)
        if not self.channels or min(*self.channels, self.layers, self.groups) < 1:
            raise ValueError("channels, layers and groups must be at least 1")
        if any(channels % self.groups for channels in self.channels):
            raise ValueError(f"every one of channels {list(self.channels)} must divide into {self.groups} groups")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")
        if self.max_phase <= 0:
            raise ValueError(f"max_phase must be positive, got {self.max_phase}")

    @property
    def skips(self) -> int:
        """How many skips its networks have, whatever the images: see `UNetConfig.skips`."""
        return len(self.channels) * (self.layers + 1)

    @property
    def sizes(self) -> tuple[str, ...]:
        return ("channels", "layers")

    def config(self, image: tuple[int, ...] | list[int], classes: int | None = None) -> UNetConfig:
        """The network for images of shape [c, h, w] of so many classes; one more stands for no class."""
        if self.conditional and not classes:
            raise UserError(family.NO_CLASSES)
        table = classes + 1 if self.conditional else None
        config = default_config(
            tuple(image), self.channels, self.layers, self.attention, self.groups, table, self.dropout
        )
        return replace(config, out_channels=2 * config.in_channels) if self.parameterization == "x0_eps" else config

    def build(
        self,
        image: Sequence[int],
        classes: int | None,
        seed: int,
        span: int | float = NUM_TIMESTEPS,
        inputs: family.Inputs = family.NO_INPUTS,
    ) -> UNet:
        return build(self.config(image, classes), seed, self.max_phase, span)

    def parameters(self, channels: int) -> int:
        """Without its tables of classes."""
        return parameters(self, channels)

    def kept(self, image: Sequence[int]) -> int:
        """What the residual blocks keep: three numbers of each width in and out."""
        return kept(self, image)


def residual_blocks(shape: Shape) -> Iterator[tuple[int, int, int]]:
    """(level, channels in, channels out) of each residual block of the default U-Net; level l works on h w / 4^l pixels."""
    widths, count, last = shape.channels, shape.layers, len(shape.channels) - 1
    for level, width in enumerate(widths):
        yield from [(level, widths[max(level - 1, 0)], width), *[(level, width, width)] * (count - 1)]
    yield from [(last, widths[-1], widths[-1])] * 2
    for level in range(last, -1, -1):
        width = widths[level]
        skips = [width] * count + [widths[max(level - 1, 0)]]
        inputs = [widths[min(level + 1, last)]] + [width] * count
        yield from ((level, h + skip, width) for h, skip in zip(inputs, skips))


def parameters(shape: Shape, channels: int) -> int:
    """How many numbers the default U-Net for images of so many channels learns, without its tables of classes."""
    widths, embedding = shape.channels, 4 * shape.channels[0]
    ends = 9 * channels * widths[0] * (3 if shape.parameterization == "x0_eps" else 2) + 3 * widths[0]
    ends += channels * (2 if shape.parameterization == "x0_eps" else 1)
    time = embedding * (widths[0] + embedding + 2)
    halving = sum(9 * width * width + width for width in (*widths[:-1], *widths[1:]))
    blocks = sum(_block(width, out, embedding) for _, width, out in residual_blocks(shape))
    return ends + time + halving + blocks + _attentions(shape)


def _block(width: int, out: int, embedding: int) -> int:
    beside = (width + 1) * out if width != out else 0
    return 2 * width + 2 * out + (9 * width + 9 * out + 2) * out + 2 * (embedding + 1) * out + beside


def _attentions(shape: Shape) -> int:
    if not shape.attention:
        return 0
    size = min(8, *shape.channels)
    inner = {width: width // size * size for width in shape.channels}
    each = {width: 3 * width + 3 * inner[width] + 4 * width * inner[width] for width in shape.channels}
    return each[shape.channels[-1]] + sum((2 * shape.layers + 1) * each[width] for width in shape.channels[1:])


def kept(shape: Shape, image: Sequence[int]) -> int:
    """Numbers that the residual blocks keep of one image [c, h, w] for the way back: three of each width in and out."""
    pixels = math.prod(image[1:])
    return sum(3 * (width + out) * max(1, pixels >> 2 * level) for level, width, out in residual_blocks(shape))
