"""What the U-Net is built of, each under the names of diffusers' parameters."""

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffcore.core.shapes import PerSample
from diffcore.nets.unet.config import MAX_PERIOD, UNetConfig


class TimeEmbedding(nn.Module):
    """timestep [b] -> [b, e]: sinusoids, two linear layers.

    A sinusoid whose column of weights is exactly zero takes no part, so no gradient moves that column: the fast frequencies
    that `build` switched off stay off, and a checkpoint of diffusers, which has no such column, trains all of its own.
    """

    def __init__(self, features: int, config: UNetConfig):
        super().__init__()
        self.features, self.shift, self.flip = features, config.freq_shift, config.flip_sin_to_cos
        self.linear_1 = nn.Linear(features, config.embedding)
        self.linear_2 = nn.Linear(config.embedding, config.embedding)

    def forward(self, timestep: PerSample) -> Tensor:
        return self.linear_2(self.hidden(timestep))

    def hidden(self, timestep: PerSample) -> Tensor:
        """What comes before the last layer, [b, e]."""
        weight = self.linear_1.weight
        used = sinusoids(timestep, self.features, self.shift, self.flip) * (weight != 0).any(0)
        return F.silu(self.linear_1(used.to(weight.dtype)))


def frequencies(features: int, shift: int | float, device: torch.device | str = "cpu") -> Tensor:
    """w_k = 10000^(-k / (n - shift)), k < n = features // 2, in radians per unit of the timestep; [n], float32."""
    half = features // 2
    exponents = -math.log(MAX_PERIOD) * torch.arange(half, dtype=torch.float32, device=device)
    return torch.exp(exponents / (half - shift))


def sinusoids(timestep: PerSample, features: int, shift: int | float, flip: bool) -> Tensor:
    """(sin, cos) of timestep * w_k, or (cos, sin) if `flip`; [b, features], float32 (Vaswani et al. 2017, 1706.03762)."""
    phase = timestep.float()[:, None] * frequencies(features, shift, timestep.device)
    parts = (phase.cos(), phase.sin()) if flip else (phase.sin(), phase.cos())
    return F.pad(torch.cat(parts, 1), (0, features % 2))


class Resnet(nn.Module):
    """A residual block: norm, act, conv, time, norm, act, conv; a 1x1 convolution beside it where the width changes."""

    def __init__(self, config: UNetConfig, width: int, out_width: int, scale_factor: int | float = 1):
        super().__init__()
        groups, eps = config.norm_num_groups, config.norm_eps
        self.scale_shift, self.scale_factor = config.resnet_time_scale_shift == "scale_shift", scale_factor
        self.norm1 = nn.GroupNorm(groups, width, eps)
        self.conv1 = nn.Conv2d(width, out_width, 3, padding=1)
        self.time_emb_proj = nn.Linear(config.embedding, out_width * (2 if self.scale_shift else 1))
        self.norm2 = nn.GroupNorm(groups, out_width, eps)
        self.dropout = nn.Dropout(config.dropout)
        self.conv2 = nn.Conv2d(out_width, out_width, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(width, out_width, 1) if width != out_width else None

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(self.dropout(F.silu(self._timed(h, self.time_emb_proj(embedding)[:, :, None, None]))))
        h = h + (x if self.conv_shortcut is None else self.conv_shortcut(x))
        return h if self.scale_factor == 1 else h / self.scale_factor

    def _timed(self, h: Tensor, time: Tensor) -> Tensor:
        if not self.scale_shift:
            return self.norm2(h + time)
        scale, shift = time.chunk(2, 1)
        return torch.addcmul(shift, self.norm2(h), 1 + scale)


class Attention(nn.Module):
    """Self-attention over the pixels, added to its input."""

    def __init__(self, config: UNetConfig, width: int, groups: int | None, scale_factor: int | float = 1):
        super().__init__()
        size = config.attention_head_dim or width
        self.heads, self.scale_factor = width // size, scale_factor
        inner = self.heads * size
        self.group_norm = None if groups is None else nn.GroupNorm(groups, width, config.norm_eps)
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, inner) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(inner, width)])

    def forward(self, x: Tensor) -> Tensor:
        normed = x if self.group_norm is None else self.group_norm(x)
        pixels = normed.flatten(2).transpose(1, 2)
        split = (self._heads(to(pixels)) for to in (self.to_q, self.to_k, self.to_v))
        mixed = F.scaled_dot_product_attention(*split).transpose(1, 2).flatten(2)
        h = self.to_out[0](mixed).transpose(1, 2).unflatten(2, x.shape[2:]) + x
        return h if self.scale_factor == 1 else h / self.scale_factor

    def _heads(self, pixels: Tensor) -> Tensor:
        return pixels.unflatten(2, (self.heads, -1)).transpose(1, 2)


class Layers(nn.Module):
    """Residual blocks, each with attention after it or none: what a level is made of."""

    def __init__(self, config: UNetConfig, attends: bool, widths: list[tuple[int, int]]):
        super().__init__()
        if attends:
            groups = config.norm_num_groups
            self.attentions = nn.ModuleList(Attention(config, width, groups) for _, width in widths)
        self.resnets = nn.ModuleList(Resnet(config, *pair) for pair in widths)
        self.attends = attends

    def layer(self, number: int, h: Tensor, embedding: Tensor) -> Tensor:
        """One residual block and the attention that belongs to it."""
        h = self.resnets[number](h, embedding)
        return self.attentions[number](h) if self.attends else h


class Down(Layers):
    """A level on the way down."""

    def __init__(self, config: UNetConfig, attends: bool, width: int, out_width: int, halves: bool):
        count = config.layers_per_block
        super().__init__(config, attends, [(width, out_width)] + [(out_width, out_width)] * (count - 1))
        self.downsamplers = nn.ModuleList([Halve(out_width, config.downsample_padding)] if halves else [])

    def steps(self) -> list[Callable[[Tensor, Tensor], Tensor]]:
        """(h, embedding) -> h, each of which makes one skip."""
        layers = [partial(self.layer, number) for number in range(len(self.resnets))]
        return [*layers, *self.downsamplers]


class Up(Layers):
    """A level on the way up. above, width, below: channels of the level it comes from, its own, and the next."""

    def __init__(self, config: UNetConfig, attends: bool, above: int, width: int, below: int, doubles: bool):
        count = config.layers_per_block
        skips = [width] * count + [below]
        inputs = [above] + [width] * count
        super().__init__(config, attends, [(h + skip, width) for h, skip in zip(inputs, skips)])
        self.upsamplers = nn.ModuleList([Double(width)] if doubles else [])

    def steps(self) -> list[Callable[[Tensor, Tensor, Tensor], Tensor]]:
        """(h, skip, embedding) -> h, each of which takes one skip."""
        return [partial(self._step, number) for number in range(len(self.resnets))]

    def _step(self, number: int, h: Tensor, skip: Tensor, embedding: Tensor) -> Tensor:
        h = self.layer(number, torch.cat([h, skip], 1), embedding)
        if self.upsamplers and number + 1 == len(self.resnets):
            h = self.upsamplers[0](h)
        return h


class Mid(nn.Module):
    """The coarsest level: a residual block, attention or none, a residual block."""

    def __init__(self, config: UNetConfig, width: int):
        super().__init__()
        factor, groups = config.mid_block_scale_factor, config.attn_norm_num_groups
        if groups is None and config.resnet_time_scale_shift == "default":
            groups = config.norm_num_groups
        attention = [Attention(config, width, groups, factor)] if config.add_attention else []
        self.attentions = nn.ModuleList(attention)
        self.resnets = nn.ModuleList(Resnet(config, width, width, factor) for _ in range(2))

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        h = self.resnets[0](h, embedding)
        for attention in self.attentions:
            h = attention(h)
        return self.resnets[1](h, embedding)


class Halve(nn.Module):
    """A convolution of stride 2; with padding 0 one row and column of zeros are added at the far edges."""

    def __init__(self, width: int, padding: int):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2, padding=padding)
        self.padding = padding

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        return self.conv(h if self.padding else F.pad(h, (0, 1, 0, 1)))


class Double(nn.Module):
    """The nearest pixel, then a convolution."""

    def __init__(self, width: int):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, h: Tensor) -> Tensor:
        return self.conv(F.interpolate(h, scale_factor=2.0, mode="nearest"))
