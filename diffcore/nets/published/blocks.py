"""The block that DDPM++, NCSN++ and ADM share in EDM's code (Karras et al. 2022, arXiv 2206.00364, appendix F.2 and table 7):
a residual block with an attention of its own, and convolutions that resample."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffcore.nets.published.levels import Place, attended, box, heads, resampled

GROUPS, LEAST = 32, 4
"""Groups of a norm, and channels that each has at least."""

CHANNELS_OF_HEAD = 64


class Conv(nn.Module):
    """A convolution of maps that are resampled before it, or `after` it; kernel 0: only that."""

    def __init__(
        self, taken: int, made: int, kernel: int, how: str = "keep", taps: Sequence[int] = (1, 1), after: bool = False
    ):
        super().__init__()
        self.kernel, self.how, self.after = kernel, how, after
        self.weight = nn.Parameter(torch.empty(made, taken, kernel, kernel)) if kernel else None
        self.bias = nn.Parameter(torch.empty(made)) if kernel else None
        self.register_buffer("resample_filter", None if how == "keep" else box(taps))

    def forward(self, x: Tensor) -> Tensor:
        if self.after:  # what it needs beyond the border is padded once, for both
            pad = self.kernel // 2 + (self.resample_filter.shape[-1] - 1) // 2
            return resampled(F.conv2d(x, self.weight, padding=pad), self.resample_filter, self.how, 0) + self._bias()
        x = resampled(x, self.resample_filter, self.how)
        return F.conv2d(x, self.weight, self.bias, padding=self.kernel // 2) if self.kernel else x

    def _bias(self) -> Tensor:
        return self.bias[:, None, None]


def norm(channels: int, eps: float) -> nn.GroupNorm:
    return nn.GroupNorm(min(GROUPS, channels // LEAST), channels, eps)


@dataclass(frozen=True)
class Style:
    """embedding: its width. heads: of an attention, None for one of each CHANNELS_OF_HEAD. scale: of what a residual comes
    to. eps: of norms. taps: of the filter. projected: whether what is resampled beside the block is multiplied too. scales:
    whether the embedding scales and shifts after the second norm; else it is added before."""

    embedding: int
    dropout: float
    heads: int | None = None
    scale: float = 1.0
    eps: float = 1e-5
    taps: tuple[int, ...] = (1, 1)
    projected: bool = False
    scales: bool = True


class Block(nn.Module):
    """Norm, convolution, embedding, norm, convolution, around a skip; then an attention around another, where it attends."""

    def __init__(self, place: Place, style: Style):
        super().__init__()
        made, how = place.made, place.resample
        self.style = style
        self.norm0 = norm(place.taken, style.eps)
        self.conv0 = Conv(place.taken, made, 3, how, style.taps)
        self.affine = nn.Linear(style.embedding, 2 * made if style.scales else made)
        self.norm1, self.dropout = norm(made, style.eps), nn.Dropout(style.dropout)
        self.conv1 = Conv(made, made, 3)
        wider = place.taken != made
        self.skip = (
            Conv(place.taken, made, int(wider or style.projected), how, style.taps) if wider or how != "keep" else None
        )
        self.heads = (style.heads or made // CHANNELS_OF_HEAD) if place.attends else 0
        if self.heads:
            self.norm2, self.qkv, self.proj = norm(made, style.eps), Conv(made, 3 * made, 1), Conv(made, made, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        beside = x if self.skip is None else self.skip(x)
        h = self.conv0(F.silu(self.norm0(x)))
        h = self.conv1(self.dropout(F.silu(self._told(h, self.affine(embedding)[:, :, None, None]))))
        x = (beside + h) * self.style.scale
        if not self.heads:
            return x
        q, k, v = heads(self.qkv(self.norm2(x)), self.heads).unbind(3)
        return (x + self.proj(attended(q, k, v, x))) * self.style.scale

    def _told(self, h: Tensor, said: Tensor) -> Tensor:
        if not self.style.scales:
            return self.norm1(h + said)
        scale, shift = said.chunk(2, 1)
        return self.norm1(h) * (1 + scale) + shift


class Unused(nn.Module):
    """Weights of a layer that only their training called: kept by their name, and trained no further."""

    def __init__(self, *shape: int):
        super().__init__()
        self.register_buffer("weight", torch.empty(*shape))
