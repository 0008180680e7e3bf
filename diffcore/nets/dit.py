"""A small diffusion transformer (Peebles & Xie 2023, arXiv 2212.09748), with adaLN-zero blocks.

Patches of an image are tokens with sine and cosine positions; the embedding of time, class and guidance weight scales, shifts
and gates every block (their section 3.2 and figure 3). Positions are worked out for the image at hand, so the weights take
images of any size that divides into patches. The words of a text are further tokens before those of the image (their
"in-context conditioning"), which the others attend to where its mask says that they are there.

The time embedding is slow: its phases go from SLOWEST to `max_phase` radians over the whole range of timesteps, where the
paper's go to 1000, so that `continuous` can take derivatives by time.

No class of diffusers computes this: its DiTTransformer2DModel embeds the time in every block anew.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffcore.core.errors import UserError
from diffcore.core.rng import generator
from diffcore.core.shapes import IMAGE, PerSample, Sample
from diffcore.denoisers.reading import NUM_TIMESTEPS
from diffcore.nets import family
from diffcore.nets.conditioned import GUIDANCE_FEATURES, Conditioned
from diffcore.nets.files import CONFIG, fill

FORMAT = "DiT"
FEATURES = 64
"""Sines and cosines of a time."""

SLOWEST = 0.1
"""Radians of the slowest of them over all timesteps."""

TEXT = ("text", "text_mask")
"""What a network that is told a text is told, by name."""

RATIO = 4
"""Numbers in a block's middle for each of its width."""

LARGEST_PATCH = 64


@dataclass(frozen=True)
class DiTConfig:
    """The content of config.json. patch: side of a patch in pixels. span: how far the times reach that it is told.
    class_embeds: rows of the table, one more than there are classes; None for no table. text_features: numbers in a word's
    embedding; None for a network that is told no text. image_channels: of the image that it is told, None for none."""

    in_channels: int
    out_channels: int
    patch: int
    width: int
    depth: int
    heads: int
    max_phase: float
    span: int | float = NUM_TIMESTEPS
    dropout: float = 0.0
    class_embeds: int | None = None
    guidance_embeds: bool = False
    text_features: int | None = None
    image_channels: int | None = None
    end_embeds: bool = False


LATER = {"text_features": None, "image_channels": None, "end_embeds": False}
"""Settings that older configs lack, and new ones at this default: so equal networks keep equal bytes."""


class TimeEmbedding(nn.Module):
    """timestep [b] -> [b, e]: sines and cosines, two linear layers."""

    def __init__(self, width: int, max_phase: float, span: int | float):
        super().__init__()
        self.max_phase, self.span = max_phase, span
        self.linear_1, self.linear_2 = nn.Linear(FEATURES, width), nn.Linear(width, width)

    def forward(self, timestep: PerSample) -> Tensor:
        return self.linear_2(self.hidden(timestep))

    def hidden(self, timestep: PerSample) -> Tensor:
        """What comes before the last layer, [b, e]."""
        used = sinusoids(timestep, self.max_phase, self.span).to(self.linear_1.weight.dtype)
        return F.silu(self.linear_1(used))


def sinusoids(timestep: PerSample, max_phase: float, span: int | float = NUM_TIMESTEPS) -> Tensor:
    """(sin, cos) of phases, a geometric series from max_phase to SLOWEST at timestep `span`; [b, FEATURES], float32."""
    half = FEATURES // 2
    falling = torch.arange(half, dtype=torch.float32, device=timestep.device) / (half - 1)
    rates = max_phase / span * torch.exp(math.log(SLOWEST / max_phase) * falling)
    phase = timestep.float()[:, None] * rates
    return torch.cat([phase.sin(), phase.cos()], 1)


def positions(height: int, width: int, channels: int, device: torch.device | str = "cpu") -> Tensor:
    """Of each patch of a grid, row by row, the sines and cosines of its column and then of its row, at the frequencies
    10000^(-4k/channels); [height * width, channels], float32. channels: a multiple of 4."""
    count = channels // 4
    rates = 10000 ** (-torch.arange(count, dtype=torch.float32, device=device) / count)
    rows, columns = (torch.arange(n, dtype=torch.float32, device=device)[:, None] * rates for n in (height, width))
    rows, columns = (torch.cat([phase.sin(), phase.cos()], 1) for phase in (rows, columns))
    grid = (height, width, 2 * count)
    return torch.cat([columns[None].expand(grid), rows[:, None].expand(grid)], 2).flatten(0, 1)


def patches(x: Sample, side: int) -> Tensor:
    """[b, c, h, w] -> [b, tokens, c side side], row by row."""
    cut = x.unflatten(3, (-1, side)).unflatten(2, (-1, side))  # [b, c, rows, side, columns, side]
    return cut.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def joined(tokens: Tensor, height: int, side: int) -> Sample:
    """The inverse of `patches`. height: in patches."""
    cut = tokens.unflatten(2, (-1, side, side)).unflatten(1, (height, -1))
    return cut.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)


class Attention(nn.Module):
    """Of every token to all that are there."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """mask: bool [b, 1, 1, tokens], None where all are there."""
        q, k, v = self.qkv(tokens).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return self.out(F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention, then two layers, each around a skip: normed without weights, scaled and shifted by the embedding, and gated
    by it. The gates are zero at first, so a new block is the identity."""

    def __init__(self, config: DiTConfig):
        super().__init__()
        width = config.width
        self.modulation = nn.Linear(width, 6 * width)
        self.attention = Attention(width, config.heads)
        self.linear_1, self.linear_2 = nn.Linear(width, RATIO * width), nn.Linear(RATIO * width, width)
        self.attention_dropout, self.linear_dropout = nn.Dropout(config.dropout), nn.Dropout(config.dropout)

    def forward(self, tokens: Tensor, embedding: Tensor, mask: Tensor | None) -> Tensor:
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = self.modulation(embedding)[:, None].chunk(6, 2)
        mixed = self.attention(modulated(tokens, shift_1, scale_1), mask)
        tokens = tokens + gate_1 * self.attention_dropout(mixed)
        hidden = F.gelu(self.linear_1(modulated(tokens, shift_2, scale_2)), approximate="tanh")
        return tokens + gate_2 * self.linear_dropout(self.linear_2(hidden))


def modulated(tokens: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Normed over the width, scaled and shifted."""
    return F.layer_norm(tokens, tokens.shape[-1:], eps=1e-6) * (1 + scale) + shift


class DiT(Conditioned):
    """(x, timestep) -> [b, c, h, w]; [b, 2c, h, w] for the parameterization `x0_eps`. Its weights mean nothing until
    `build` or `load_state_dict` sets them."""

    config: DiTConfig

    def __init__(self, config: DiTConfig):
        super().__init__()
        self.config = config
        # torch's layers draw a start, soon overwritten, from the global generator: it is put back as it was
        with torch.random.fork_rng(devices=[]):
            self._layers(config)

    def _layers(self, config: DiTConfig) -> None:
        width, pixels = config.width, config.patch**2
        self.patch_in = nn.Linear((config.in_channels + (config.image_channels or 0)) * pixels, width)
        self.text_in = None if config.text_features is None else nn.Linear(config.text_features, width)
        self.time_embedding = TimeEmbedding(width, config.max_phase, config.span)
        self.class_embedding = None if config.class_embeds is None else nn.Embedding(config.class_embeds, width)
        self.guidance_embedding = nn.Linear(GUIDANCE_FEATURES, width) if config.guidance_embeds else None
        self.end_embedding = nn.Linear(width, width, bias=False) if config.end_embeds else None
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.modulation_out = nn.Linear(width, 2 * width)
        self.patch_out = nn.Linear(width, config.out_channels * pixels)

    def says(
        self,
        x: Sample,
        embedding: Tensor,
        text: Tensor | None = None,
        text_mask: Tensor | None = None,
        image: Tensor | None = None,
    ) -> Tensor:
        """text: [b, l, d] and text_mask: bool [b, l], where it is told a text; image: [b, k, h, w], where it is told one."""
        tokens, mask, words = self._begun(x, text, text_mask, image)
        for block in self.blocks:
            tokens = block(tokens, embedding, mask)
        tokens = tokens[:, words:]
        shift, scale = self.modulation_out(embedding)[:, None].chunk(2, 2)
        out = self.patch_out(modulated(tokens, shift, scale))
        whole = joined(out, x.shape[2] // self.config.patch, self.config.patch)
        return whole.clone()  # of a view FSDP2's hooks on the way back could be lost

    def sees(
        self,
        x: Sample,
        embedding: Tensor,
        text: Tensor | None = None,
        text_mask: Tensor | None = None,
        image: Tensor | None = None,
    ) -> list[Tensor]:
        """The image's tokens after each block as a map, [b, width, h / patch, w / patch] each."""
        tokens, mask, words = self._begun(x, text, text_mask, image)
        maps = []
        for block in self.blocks:
            tokens = block(tokens, embedding, mask)
            maps.append(tokens[:, words:].transpose(1, 2).unflatten(2, (x.shape[2] // self.config.patch, -1)))
        return maps

    def _begun(
        self, x: Sample, text: Tensor | None, mask: Tensor | None, image: Tensor | None
    ) -> tuple[Tensor, Tensor | None, int]:
        """The tokens before the first block, which of them are there, and how many of them are words of the text."""
        if (text is None) != (self.text_in is None):
            raise UserError(_TEXT_GIVEN if self.text_in is None else _TEXT_MISSING)
        if (image is None) != (self.config.image_channels is None):
            raise UserError(_IMAGE_GIVEN if image is not None else _IMAGE_MISSING)
        tokens = self._tokens(x if image is None else torch.cat([x, image.to(x.dtype)], 1))
        if self.text_in is None:
            return tokens, None, 0
        places = positions(1, text.shape[1], self.config.width, x.device)
        words = self.text_in(text.to(self.text_in.weight.dtype))
        whole = torch.cat([words + places.to(torch.promote_types(words.dtype, torch.float32)), tokens], 1)
        if mask is not None:
            mask = F.pad(mask, (0, tokens.shape[1]), value=True)[:, None, None]
        return whole, mask, text.shape[1]

    def _tokens(self, x: Sample) -> Tensor:
        side = self.config.patch
        grid = positions(x.shape[2] // side, x.shape[3] // side, self.config.width, x.device)
        tokens = self.patch_in(patches(x, side))
        return tokens + grid.to(torch.promote_types(tokens.dtype, torch.float32))

    def config_json(self) -> dict[str, Any]:
        settings = asdict(self.config)
        return {"_class_name": FORMAT} | {key: v for key, v in settings.items() if key not in LATER or v != LATER[key]}


def build(config: DiTConfig, seed: int) -> DiT:
    """A new network whose weights come from (seed, name of the parameter) alone.

    As the paper starts them: matrices uniform as Glorot's, what embeds time and class normal with deviation 0.02, and zero
    all biases, what the embedding does to blocks, and the output.
    """
    net = DiT(config)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            _start(parameter, name, generator(seed, "dit", name))
    return net


_TEXT_GIVEN = "this network is told no text: leave text out"
_TEXT_MISSING = "this network is told a text: give text, an embedding for each word of each sample"
_IMAGE_GIVEN = "this network is told no image: leave image out"
_IMAGE_MISSING = "this network is told an image: give image, one of the size of each sample"

ZERO = ("modulation", "modulation_out", "patch_out", "guidance_embedding", "end_embedding")
NARROW = ("time_embedding", "class_embedding")


def _start(parameter: Tensor, name: str, rng: torch.Generator) -> None:
    parts = name.split(".")
    if parts[-1] == "bias" or not set(ZERO).isdisjoint(parts):
        parameter.zero_()
    elif parts[0] in NARROW:
        parameter.normal_(std=0.02, generator=rng)
    else:
        bound = math.sqrt(6 / sum(parameter.shape))
        parameter.uniform_(-bound, bound, generator=rng)


@dataclass(frozen=True)
class Shape(family.Shape):
    """What a person chooses of the transformer.

    patch: side of a patch in pixels, a power of two. width: of a token, a multiple of 4 and of `heads`. depth: number of
    blocks. max_phase: radians of the fastest sine of the time. text: whether it is told the caption, image: a copy of the
    image (`data.image_condition`), as further channels. conditional, parameterization: of any family.
    """

    patch: int
    width: int
    depth: int
    heads: int
    dropout: float = 0.0
    max_phase: float = 12.0
    conditional: bool = False
    parameterization: Literal["v", "x0", "eps", "x0_eps", "flow"] = "v"
    text: bool = False
    image: bool = False

    def __post_init__(self):
        if self.parameterization == "eps":
            raise ValueError(family.NO_EPS)
        if not 1 <= self.patch <= LARGEST_PATCH or self.patch & (self.patch - 1):
            raise ValueError(f"patch must be a power of two of at most {LARGEST_PATCH}, got {self.patch}")
        if min(self.width, self.depth, self.heads) < 1:
            raise ValueError("width, depth and heads must be at least 1")
        if self.width % 4 or self.width % self.heads:
            raise ValueError(f"width {self.width} must divide by 4, for positions, and into {self.heads} heads")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")
        if self.max_phase <= SLOWEST:
            raise ValueError(f"max_phase must be more than {SLOWEST}, got {self.max_phase}")

    @property
    def inputs(self) -> tuple[str, ...]:
        return (TEXT if self.text else ()) + ((IMAGE,) if self.image else ())

    @property
    def sizes(self) -> tuple[str, ...]:
        return ("width", "depth")

    def config(
        self,
        image: Sequence[int],
        classes: int | None = None,
        span: int | float = NUM_TIMESTEPS,
        inputs: family.Inputs = family.NO_INPUTS,
    ) -> DiTConfig:
        """The network for images [c, h, w] of so many classes; one more stands for no class. inputs: of the data."""
        channels, height, width = image
        if height % self.patch or width % self.patch:
            raise UserError(
                f"images of {height} x {width} cannot be cut into patches of {self.patch}; take a smaller patch or resize"
            )
        if self.conditional and not classes:
            raise UserError(family.NO_CLASSES)
        family.check_inputs(self.inputs, inputs)
        return DiTConfig(
            in_channels=channels,
            out_channels=channels * (2 if self.parameterization == "x0_eps" else 1),
            patch=self.patch,
            width=self.width,
            depth=self.depth,
            heads=self.heads,
            max_phase=self.max_phase,
            span=span,
            dropout=self.dropout,
            class_embeds=classes + 1 if self.conditional else None,
            text_features=inputs["text"][-1] if self.text else None,
            image_channels=inputs[IMAGE][0] if self.image else None,
        )

    def build(
        self,
        image: Sequence[int],
        classes: int | None,
        seed: int,
        span: int | float = NUM_TIMESTEPS,
        inputs: family.Inputs = family.NO_INPUTS,
    ) -> DiT:
        return build(self.config(image, classes, span, inputs), seed)

    def parameters(self, channels: int) -> int:
        """Without its table of classes, and what it makes of a text."""
        width, pixels = self.width, channels * self.patch**2
        outputs = pixels * (2 if self.parameterization == "x0_eps" else 1)
        block = 6 * width * (width + 1) + 4 * width * (width + 1) + 2 * RATIO * width * width + (RATIO + 1) * width
        ends = (pixels + 1) * width + (width + 1) * outputs + 2 * width * (width + 1)
        return ends + width * (FEATURES + 1) + width * (width + 1) + self.depth * block

    def kept(self, image: Sequence[int]) -> int:
        """What its blocks keep of each token: four numbers of each width around the attention, whose three inputs come to
        three more, and around the two layers four and twice their middle."""
        tokens = math.prod(image[1:]) // self.patch**2
        return self.depth * tokens * self.width * (11 + 2 * RATIO)


def opened(content: dict[str, Any], weights: Path, x0_eps: bool) -> DiT:
    """The network; a UserError for a config that describes none."""
    settings = {key: value for key, value in content.items() if not key.startswith("_")}
    own = {field.name for field in fields(DiTConfig)}
    expected = own - (LATER.keys() - settings.keys())
    if settings.keys() != expected:
        odd = sorted(settings.keys() ^ expected)[0]
        raise UserError(f"{weights.parent / CONFIG} is of no transformer of ours ({odd}); fetch or write it again")
    net = DiT(DiTConfig(**settings))
    fill(net, weights)
    return net


FAMILY = family.Family(Shape, (FORMAT,), opened, own=(FORMAT,))
