"""EDM2's U-Net (Karras et al. 2024, arXiv 2312.02696, figure 21), whose layers keep the magnitudes of what they are given.

Each row of weights has unit magnitude as it is used, whatever it is as it is kept (their eq. 47). Their training also puts
the kept ones back after every update (eq. 66), which changes no output; here they grow, as any scale-free weights do under
AdamW, and learn the slower.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffcore.core.shapes import PerSample, Sample
from diffcore.nets.published.levels import Place, UNet, attended, box, heads, plan, resampled

EPS = 1e-4
SILU = 0.596
"""The root of the mean square of silu of unit noise (eq. 81)."""


@dataclass(frozen=True)
class EDM2Config:
    """By the names of what EDM2's class is made with. label_balance, concat_balance, res_balance, attn_balance: the second
    one's part in a sum or a concatenation. clip_act: the largest activation, None for any."""

    img_resolution: int
    img_channels: int
    label_dim: int
    model_channels: int = 192
    channel_mult: tuple[int, ...] = (1, 2, 3, 4)
    channel_mult_noise: int | None = None
    channel_mult_emb: int | None = None
    num_blocks: int = 3
    attn_resolutions: tuple[int, ...] = (16, 8)
    label_balance: float = 0.5
    concat_balance: float = 0.5
    resample_filter: tuple[int, ...] = (1, 1)
    channels_per_head: int = 64
    dropout: float = 0.0
    res_balance: float = 0.3
    attn_balance: float = 0.3
    clip_act: float | None = 256.0


def unit(x: Tensor, *axes: int) -> Tensor:
    """x over its root mean square along these axes."""
    exact = torch.promote_types(x.dtype, torch.float32)
    count = math.prod(x.shape[axis] for axis in axes)
    size = torch.linalg.vector_norm(x, dim=axes, keepdim=True, dtype=exact) / math.sqrt(count)
    return x / (size + EPS).to(x.dtype)


def silu(x: Tensor) -> Tensor:
    """Of unit noise, again of unit magnitude (eq. 81)."""
    return F.silu(x) / SILU


def mixed(a: Tensor, b: Tensor, share: float) -> Tensor:
    """The sum of two independent maps of unit magnitude, of which b has this share, of unit magnitude (eq. 88)."""
    return torch.lerp(a, b, share) / math.hypot(1 - share, share)


def beside(a: Tensor, b: Tensor, share: float) -> Tensor:
    """Both along the channels, whatever their numbers with b's share of the magnitude, which is that of both (eq. 103)."""
    whole = math.sqrt(a.shape[1] + b.shape[1]) / math.hypot(1 - share, share)
    of_a, of_b = ((1 - share) / math.sqrt(a.shape[1]), share / math.sqrt(b.shape[1]))
    return torch.cat([whole * of_a * a, whole * of_b * b], 1)


class Fourier(nn.Module):
    """Cosines of a time, of unit magnitude (eq. 75), [b, channels]."""

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("freqs", torch.empty(channels))
        self.register_buffer("phases", torch.empty(channels))

    def forward(self, told: PerSample) -> Tensor:
        told = told.to(torch.promote_types(told.dtype, torch.float32))
        return math.sqrt(2) * (told[:, None] * self.freqs.to(told.dtype) + self.phases.to(told.dtype)).cos()


class Conv(nn.Module):
    """A convolution or, of kernel 0, a matrix, with rows of unit magnitude and no bias (eq. 47)."""

    def __init__(self, taken: int, made: int, kernel: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(made, taken, *(kernel, kernel)[: 2 * bool(kernel)]))

    def forward(self, x: Tensor, gain: Tensor | float = 1.0) -> Tensor:
        rows = unit(self.weight, *range(1, self.weight.ndim)) * (gain / math.sqrt(self.weight[0].numel()))
        rows = rows.to(x.dtype)
        return F.linear(x, rows) if rows.ndim == 2 else F.conv2d(x, rows, padding=rows.shape[-1] // 2)


class Block(nn.Module):
    """A residual branch with the embedding as its gain, and attention. falling: on the way down, where the main branch is
    brought to unit magnitude, pixel by pixel."""

    def __init__(self, place: Place, config: EDM2Config, embedding: int, falling: bool):
        super().__init__()
        taken, made = place.taken, place.made
        self.config, self.falling, self.how = config, falling, place.resample
        self.emb_gain = nn.Parameter(torch.empty(()))
        self.conv_res0 = Conv(made if falling else taken, made, 3)
        self.emb_linear = Conv(embedding, made, 0)
        self.conv_res1, self.dropout = Conv(made, made, 3), nn.Dropout(config.dropout)
        self.conv_skip = Conv(taken, made, 1) if taken != made else None
        self.heads = made // config.channels_per_head if place.attends else 0
        if self.heads:
            self.attn_qkv, self.attn_proj = Conv(made, 3 * made, 1), Conv(made, made, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        x = resampled(x, box(self.config.resample_filter).to(x.device), self.how)
        if self.falling:
            x = unit(self._skipped(x), 1)
        gain = self.emb_linear(embedding, self.emb_gain)[:, :, None, None] + 1
        branch = self.conv_res1(self.dropout(silu(self.conv_res0(silu(x)) * gain)))
        x = mixed(x if self.falling else self._skipped(x), branch, self.config.res_balance)
        if self.heads:
            q, k, v = unit(heads(self.attn_qkv(x), self.heads), 2).unbind(3)
            x = mixed(x, self.attn_proj(attended(q, k, v, x)), self.config.attn_balance)
        return x if self.config.clip_act is None else x.clamp(-self.config.clip_act, self.config.clip_act)

    def _skipped(self, x: Tensor) -> Tensor:
        return x if self.conv_skip is None else self.conv_skip(x)


class EDM2UNet(UNet):
    """One more channel of the image is 1 everywhere, in the place of biases."""

    names = ("EDM2UNet",)
    Config = EDM2Config

    def __init__(self, config: EDM2Config):
        super().__init__()
        self.config = config
        levels = plan(config, config.img_channels + 1)
        widths = levels.widths
        self.descent, self.ascent = levels.down(), levels.up(lambda side, k: side in config.attn_resolutions)
        noise = widths[0] if config.channel_mult_noise is None else config.model_channels * config.channel_mult_noise
        embedding = max(widths) if config.channel_mult_emb is None else config.model_channels * config.channel_mult_emb
        self.out_gain = nn.Parameter(torch.empty(()))
        self.emb_fourier, self.emb_noise = Fourier(noise), Conv(noise, embedding, 0)
        self.emb_label = Conv(config.label_dim, embedding, 0) if config.label_dim else None
        first, *others = self.descent
        self.enc = nn.ModuleDict({first.name: Conv(first.taken, first.made, 3)})
        self.enc.update({place.name: Block(place, config, embedding, True) for place in others})
        self.dec = nn.ModuleDict({place.name: Block(place, config, embedding, False) for place in self.ascent})
        self.out_conv = Conv(widths[0], config.img_channels, 3)

    def embed(self, told: PerSample, classes: Tensor | None) -> Tensor:
        embedding = self.emb_noise(self.emb_fourier(told).to(self.emb_noise.weight.dtype))
        if self.emb_label is not None:
            labels = self.emb_label(classes * math.sqrt(self.config.label_dim))
            embedding = mixed(embedding, labels, self.config.label_balance)
        return silu(embedding)

    def lowered(self, x: Sample, embedding: Tensor) -> list[Tensor]:
        return super().lowered(torch.cat([x, torch.ones_like(x[:, :1])], 1), embedding)

    def raised(self, maps: list[Tensor], embedding: Tensor) -> Tensor:
        maps = list(maps)
        h = maps[-1]
        for place in self.ascent:
            h = beside(h, maps.pop(), self.config.concat_balance) if place.joins else h
            h = self.dec[place.name](h, embedding)
        return self.out_conv(h, self.out_gain)
