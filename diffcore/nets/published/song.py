"""DDPM++ and NCSN++ (Song et al. 2021, arXiv 2011.13456) as EDM trains them (Karras et al. 2022, arXiv 2206.00364, table 7).

encoder_type `residual`: the image, filtered and convolved, is added on the way down, and what that comes to goes on beside;
`skip`: the image itself. decoder_type `skip`: each level says an image, and these are added.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffcore.core.shapes import PerSample, Sample
from diffcore.nets.published.blocks import Block, Conv, Style, Unused, norm
from diffcore.nets.published.levels import UNet, plan, sines

EPS = 1e-6
HALF = math.sqrt(0.5)


@dataclass(frozen=True)
class SongConfig:
    """By the names of what EDM's class is made with. augment_dim: numbers that told of an augmentation in training, zero
    since. label_dropout: of their training; here a method says when a class is left out."""

    img_resolution: int
    in_channels: int
    out_channels: int
    label_dim: int = 0
    augment_dim: int = 0
    model_channels: int = 128
    channel_mult: tuple[int, ...] = (1, 2, 2, 2)
    channel_mult_emb: int = 4
    num_blocks: int = 4
    attn_resolutions: tuple[int, ...] = (16,)
    dropout: float = 0.1
    label_dropout: float = 0.0
    embedding_type: str = "positional"
    channel_mult_noise: int = 1
    encoder_type: str = "standard"
    decoder_type: str = "standard"
    resample_filter: tuple[int, ...] = (1, 1)

    def __post_init__(self):
        words = {
            "embedding_type": ("positional", "fourier"),
            "encoder_type": ("standard", "skip", "residual"),
            "decoder_type": ("standard", "skip"),
        }
        for key, known in words.items():
            if getattr(self, key) not in known:
                raise ValueError(f"{key} {getattr(self, key)!r} is not one of {', '.join(known)}")


class Positional(nn.Module):
    """Sines and cosines of a time, [b, channels]."""

    def __init__(self, channels: int):
        super().__init__()
        self.channels = channels

    def forward(self, told: PerSample) -> Tensor:
        return torch.cat(sines(told, self.channels, self.channels // 2 - 1), 1)


class Fourier(nn.Module):
    """Sines and cosines of a time at frequencies that were drawn once, [b, channels]."""

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("freqs", torch.empty(channels // 2))

    def forward(self, told: PerSample) -> Tensor:
        told = told.to(torch.promote_types(told.dtype, torch.float32))
        phase = told[:, None] * (2 * math.pi * self.freqs.to(told.dtype))
        return torch.cat([phase.sin(), phase.cos()], 1)


class SongUNet(UNet):
    """Its attention has one head, and every residual is scaled by sqrt(1/2)."""

    names = ("SongUNet",)
    Config = SongConfig

    def __init__(self, config: SongConfig):
        super().__init__()
        self.config, width = config, config.model_channels
        levels = plan(config, config.in_channels, width)
        self.descent = levels.down()
        self.ascent = levels.up(lambda side, k: k == config.num_blocks and side in config.attn_resolutions)
        self._embeddings(width * config.channel_mult_noise, width * config.channel_mult_emb)
        style = Style(
            width * config.channel_mult_emb, config.dropout, 1, HALF, EPS, config.resample_filter, True, False
        )
        first, *others = self.descent
        self.enc = nn.ModuleDict({first.name: Conv(first.taken, first.made, 3)})
        self.enc.update({place.name: Block(place, style) for place in others})
        self.dec = nn.ModuleDict({place.name: Block(place, style) for place in self.ascent})
        self._beside()
        self._ends()

    def _embeddings(self, noise: int, embedding: int) -> None:
        self.map_noise = (Positional if self.config.embedding_type == "positional" else Fourier)(noise)
        self.map_label = nn.Linear(self.config.label_dim, noise) if self.config.label_dim else None
        self.map_augment = Unused(noise, self.config.augment_dim) if self.config.augment_dim else None
        self.map_layer0, self.map_layer1 = nn.Linear(noise, embedding), nn.Linear(embedding, embedding)

    def _beside(self) -> None:
        """What of the image goes down beside the blocks."""
        kind, taps, width = self.config.encoder_type, self.config.resample_filter, self.config.in_channels
        for place in self.descent:
            if place.word == "down" and kind == "skip":
                self.enc[f"{place.side}x{place.side}_aux_down"] = Conv(width, width, 0, "down", taps)
                self.enc[f"{place.side}x{place.side}_aux_skip"] = Conv(width, place.made, 1)
            elif place.word == "down" and kind == "residual":
                residual = Conv(width, place.made, 3, "down", taps, after=True)
                self.enc[f"{place.side}x{place.side}_aux_residual"], width = residual, place.made

    def _ends(self) -> None:
        """What says the image: of the largest side, or of each."""
        config, widths = self.config, {place.side: place.made for place in self.ascent}
        self.said = list(widths) if config.decoder_type == "skip" else [max(widths)]
        for side in self.said:
            if side != self.said[0]:
                channels = config.out_channels
                self.dec[f"{side}x{side}_aux_up"] = Conv(channels, channels, 0, "up", config.resample_filter)
            self.dec[f"{side}x{side}_aux_norm"] = norm(widths[side], EPS)
            self.dec[f"{side}x{side}_aux_conv"] = Conv(widths[side], config.out_channels, 3)

    def embed(self, told: PerSample, classes: Tensor | None) -> Tensor:
        embedding = self.map_noise(told).to(self.map_layer0.weight.dtype)
        if self.map_label is not None:
            embedding = embedding + self.map_label(classes * math.sqrt(self.config.label_dim))
        return F.silu(self.map_layer1(F.silu(self.map_layer0(embedding))))

    def lowered(self, x: Sample, embedding: Tensor) -> list[Tensor]:
        h = self.enc[self.descent[0].name](x)
        maps, beside = [h], x
        for place in self.descent[1:]:
            h = self.enc[place.name](h, embedding)
            if place.word == "down":
                h, beside = self._joined(f"{place.side}x{place.side}_aux", h, beside)
            maps.append(h)
        return maps

    def _joined(self, name: str, h: Tensor, beside: Tensor) -> tuple[Tensor, Tensor]:
        if self.config.encoder_type == "residual":
            h = (h + self.enc[f"{name}_residual"](beside)) * HALF
            return h, h
        if self.config.encoder_type == "skip":
            beside = self.enc[f"{name}_down"](beside)
            return h + self.enc[f"{name}_skip"](beside), beside
        return h, beside

    def raised(self, maps: list[Tensor], embedding: Tensor) -> Tensor:
        maps = list(maps)
        h, said = maps[-1], None
        for here, after in zip(self.ascent, [*self.ascent[1:], None], strict=True):
            h = self.dec[here.name](torch.cat([h, maps.pop()], 1) if here.joins else h, embedding)
            if (after is None or after.side != here.side) and here.side in self.said:
                said = self._image(f"{here.side}x{here.side}_aux", h, said)
        return said

    def _image(self, name: str, h: Tensor, said: Tensor | None) -> Tensor:
        own = self.dec[f"{name}_conv"](F.silu(self.dec[f"{name}_norm"](h)))
        return own if said is None else own + self.dec[f"{name}_up"](said)
