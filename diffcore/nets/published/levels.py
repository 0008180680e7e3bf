"""What the U-Nets of EDM and EDM2 have in common: places of blocks on their way down and up, and the names of these.

A level is called by its side in pixels: `32x32_block0` is the first block where maps are 32 x 32.
"""

import abc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from diffcore.core.shapes import PerSample, Sample

POSITIONS = 10000
"""How much slower the slowest sine of a time is than the fastest."""


@dataclass(frozen=True)
class Place:
    """Of one block. side: of the maps that it makes. word: what it does there, `conv`, `down`, `block`, `in` or `up`; the
    name of its weights is made of both and of `number`, where there are several. taken, made: channels."""

    side: int
    word: str
    taken: int
    made: int
    number: int | None = None
    attends: bool = False

    @property
    def name(self) -> str:
        return f"{self.side}x{self.side}_{self.word}{'' if self.number is None else self.number}"

    @property
    def resample(self) -> str:
        """What becomes of its maps' sides: `up`, `down` or `keep`."""
        return self.word if self.word in ("up", "down") else "keep"

    @property
    def joins(self) -> bool:
        """Whether it takes a map of the way down as well."""
        return self.word == "block"


@dataclass(frozen=True)
class Plan:
    """sides: of each level, the largest first. widths: channels there. taken, first: channels of the input, and those that it
    has before the first block. blocks: of each level on the way down, one more on the way up. attention: sides at which
    blocks attend."""

    sides: tuple[int, ...]
    widths: tuple[int, ...]
    taken: int
    first: int
    blocks: int
    attention: tuple[int, ...]

    def down(self) -> list[Place]:
        places, width = [Place(self.sides[0], "conv", self.taken, self.first)], self.first
        for side, wide in zip(self.sides, self.widths, strict=True):
            if side != self.sides[0]:
                places.append(Place(side, "down", width, width))
            for number in range(self.blocks):
                places.append(Place(side, "block", width, wide, number, side in self.attention))
                width = wide
        return places

    def up(self, attends: Callable[[int, int], bool]) -> list[Place]:
        """attends: whether the block of this side and number does."""
        kept, width, places = [place.made for place in self.down()], self.widths[-1], []
        for side, wide in zip(reversed(self.sides), reversed(self.widths), strict=True):
            if side == self.sides[-1]:
                places += [Place(side, "in", width, width, 0, True), Place(side, "in", width, width, 1)]
            else:
                places.append(Place(side, "up", width, width))
            for number in range(self.blocks + 1):
                places.append(Place(side, "block", width + kept.pop(), wide, number, attends(side, number)))
                width = wide
        return places


def plan(config: Any, taken: int, first: int | None = None) -> Plan:
    """Of a network with such settings, whose images are halved at each level but the first. first: channels before the first
    block, None for those of the first level."""
    widths = tuple(config.model_channels * each for each in config.channel_mult)
    sides = tuple(config.img_resolution >> level for level in range(len(widths)))
    return Plan(sides, widths, taken, first or widths[0], config.num_blocks, tuple(config.attn_resolutions))


class UNet(nn.Module, abc.ABC):
    """(x, what it is told of the time, classes [b, label_dim]) -> [b, c, h, w]. Its weights mean nothing until they are
    loaded.

    names: of its class where it was written. Config: its settings, a frozen dataclass.
    """

    names: tuple[str, ...]
    Config: type
    descent: list[Place]
    enc: nn.ModuleDict

    @abc.abstractmethod
    def embed(self, told: PerSample, classes: Tensor | None) -> Tensor:
        """What every block is told, [b, e]."""

    def lowered(self, x: Sample, embedding: Tensor) -> list[Tensor]:
        """The map of each place on the way down."""
        maps = [self.enc[self.descent[0].name](x)]
        for place in self.descent[1:]:
            maps.append(self.enc[place.name](maps[-1], embedding))
        return maps

    @abc.abstractmethod
    def raised(self, maps: list[Tensor], embedding: Tensor) -> Tensor:
        """The output, of the maps of the way down."""

    def forward(self, x: Sample, told: PerSample, classes: Tensor | None = None) -> Tensor:
        embedding = self.embed(told, classes)
        return self.raised(self.lowered(x, embedding), embedding)

    def features(self, x: Sample, told: PerSample, classes: Tensor | None = None) -> list[Tensor]:
        """The last map of each level on the way down, [b, width, side, side] each."""
        maps = self.lowered(x, self.embed(told, classes))
        return list({place.side: each for place, each in zip(self.descent, maps, strict=True)}.values())


def sines(told: PerSample, channels: int, intervals: int) -> tuple[Tensor, Tensor]:
    """Sines and cosines of a time at `channels` / 2 frequencies, POSITIONS^(-k / intervals), [b, channels / 2] each, in
    float32 or more. The frequencies are those of float32, with which the networks were trained."""
    told = told.to(torch.promote_types(told.dtype, torch.float32))
    rates = (1 / POSITIONS) ** (torch.arange(channels // 2, dtype=torch.float32, device=told.device) / intervals)
    phase = told[:, None] * rates.to(told.dtype)
    return phase.sin(), phase.cos()


def box(taps: Sequence[int]) -> Tensor:
    """The filter of these taps along both sides, whose sum is 1, [1, 1, k, k]."""
    row = torch.tensor(list(taps), dtype=torch.float32)
    return (row[:, None] * row / row.sum() ** 2)[None, None]


def resampled(x: Tensor, filter: Tensor | None, how: str, pad: int | None = None) -> Tensor:
    """Maps of twice or half the side, each channel filtered by [1, 1, k, k]; as they are where `how` is `keep`."""
    if how == "keep":
        return x
    each = filter.to(x.dtype).expand(x.shape[1], -1, -1, -1)
    pad = (filter.shape[-1] - 1) // 2 if pad is None else pad
    if how == "down":
        return nn.functional.conv2d(x, each, stride=2, padding=pad, groups=x.shape[1])
    return nn.functional.conv_transpose2d(x, 4 * each, stride=2, padding=pad, groups=x.shape[1])


def heads(x: Tensor, count: int) -> Tensor:
    """[b, count 3 c, h, w] -> [b, count, c, 3, h w]: queries, keys and values lie beside each other."""
    return x.flatten(2).unflatten(1, (count, -1, 3))


def attended(q: Tensor, k: Tensor, v: Tensor, like: Tensor) -> Tensor:
    """Every pixel's look at all the others; q, k, v: [b, heads, c, h w], the answer like `like`, [b, heads c, h, w]."""
    q, k, v = (each.transpose(2, 3) for each in (q, k, v))
    return nn.functional.scaled_dot_product_attention(q, k, v).transpose(2, 3).reshape(like.shape)
