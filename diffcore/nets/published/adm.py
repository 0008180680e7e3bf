"""ADM (Dhariwal & Nichol 2021, arXiv 2105.05233) as EDM trains it (Karras et al. 2022, arXiv 2206.00364, table 7)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffcore.core.shapes import PerSample
from diffcore.nets.published.blocks import Block, Conv, Style, Unused, norm
from diffcore.nets.published.levels import UNet, plan, sines

EPS = 1e-5


@dataclass(frozen=True)
class ADMConfig:
    """By the names of what EDM's class is made with; see that of `song`."""

    img_resolution: int
    in_channels: int
    out_channels: int
    label_dim: int = 0
    augment_dim: int = 0
    model_channels: int = 192
    channel_mult: tuple[int, ...] = (1, 2, 3, 4)
    channel_mult_emb: int = 4
    num_blocks: int = 3
    attn_resolutions: tuple[int, ...] = (32, 16, 8)
    dropout: float = 0.1
    label_dropout: float = 0.0


class DhariwalUNet(UNet):
    """The embedding scales and shifts; each 64 channels have a head of attention."""

    names = ("DhariwalUNet",)
    Config = ADMConfig

    def __init__(self, config: ADMConfig):
        super().__init__()
        self.config, width = config, config.model_channels
        levels = plan(config, config.in_channels)
        self.descent, self.ascent = levels.down(), levels.up(lambda side, k: side in config.attn_resolutions)
        embedding = width * config.channel_mult_emb
        self.map_augment = Unused(width, config.augment_dim) if config.augment_dim else None
        self.map_layer0, self.map_layer1 = nn.Linear(width, embedding), nn.Linear(embedding, embedding)
        self.map_label = nn.Linear(config.label_dim, embedding, bias=False) if config.label_dim else None
        style = Style(embedding, config.dropout, eps=EPS)
        first, *others = self.descent
        self.enc = nn.ModuleDict({first.name: Conv(first.taken, first.made, 3)})
        self.enc.update({place.name: Block(place, style) for place in others})
        self.dec = nn.ModuleDict({place.name: Block(place, style) for place in self.ascent})
        self.out_norm = norm(levels.widths[0], EPS)
        self.out_conv = Conv(levels.widths[0], config.out_channels, 3)

    def embed(self, told: PerSample, classes: Tensor | None) -> Tensor:
        sine, cosine = sines(told, self.config.model_channels, self.config.model_channels // 2)
        features = torch.cat([cosine, sine], 1).to(self.map_layer0.weight.dtype)
        embedding = self.map_layer1(F.silu(self.map_layer0(features)))
        if self.map_label is not None:
            embedding = embedding + self.map_label(classes)
        return F.silu(embedding)

    def raised(self, maps: list[Tensor], embedding: Tensor) -> Tensor:
        maps = list(maps)
        h = maps[-1]
        for place in self.ascent:
            h = self.dec[place.name](torch.cat([h, maps.pop()], 1) if place.joins else h, embedding)
        return self.out_conv(F.silu(self.out_norm(h)))
