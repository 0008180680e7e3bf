"""The network itself: three parts that can be run alone, `down`, `mid` and `up`."""

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffcore.core.errors import UserError
from diffcore.core.shapes import PerSample, Sample
from diffcore.nets.unet.blocks import GUIDANCE_FEATURES, Down, Mid, TimeEmbedding, Up, guidance_features
from diffcore.nets.unet.config import ATTENTION_DOWN, ATTENTION_UP, UNetConfig, config_json


class UNet(nn.Module):
    """(x, timestep) -> [b, c, h, w]; [b, 2c, h, w] for the parameterization `x0_eps`. Its weights mean nothing until `build`
    or `load_state_dict` sets them.

    A forward pass is embed, down, mid, up, out. A wrapper that scales skips acts between down and up; one that caches the
    deep part keeps what `up(..., until=k)` gives and goes on with `up(kept, down(x, embedding, k), embedding)`.
    """

    def __init__(self, config: UNetConfig):
        super().__init__()
        self.config = config
        # torch's layers draw a start, soon overwritten, from the global generator: it is put back as it was
        with torch.random.fork_rng(devices=[]):
            self._layers(config)

    def _layers(self, config: UNetConfig) -> None:
        widths, last = config.block_out_channels, len(config.block_out_channels) - 1
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.time_embedding = TimeEmbedding(widths[0], config)
        classes = config.num_class_embeds
        self.class_embedding = None if classes is None else nn.Embedding(classes, config.embedding)
        self.guidance_embedding = nn.Linear(GUIDANCE_FEATURES, config.embedding) if config.guidance_embeds else None
        down, up = [], []
        for level, (kind, width) in enumerate(zip(config.down_block_types, widths)):
            down.append(Down(config, kind == ATTENTION_DOWN, widths[max(level - 1, 0)], width, level < last))
        for place, kind in enumerate(config.up_block_types):
            level = last - place
            above = widths[min(level + 1, last)]
            up.append(Up(config, kind == ATTENTION_UP, above, widths[level], widths[max(level - 1, 0)], level > 0))
        self.down_blocks = nn.ModuleList(down)
        self.mid_block = None if config.mid_block_type is None else Mid(config, widths[-1])
        self.up_blocks = nn.ModuleList(up)
        self.conv_norm_out = nn.GroupNorm(config.norm_num_groups, widths[0], config.norm_eps)
        self.conv_out = nn.Conv2d(widths[0], config.out_channels, 3, padding=1)

    def forward(
        self, x: Sample, timestep: PerSample, class_labels: Tensor | None = None, guidance: PerSample | None = None
    ) -> Tensor:
        """x: [b, c, h, w]; timestep: [b], c = T t - 1 with T = 1024, float; class_labels: [b], int, where there is a table;
        guidance: [b], where the weight is an input."""
        embedding = self.embed(timestep, class_labels, guidance)
        skips = self.down(x, embedding)
        return self.out(self.up(self.mid(skips[-1], embedding), skips, embedding))

    def features(
        self, x: Sample, timestep: PerSample, class_labels: Tensor | None = None, guidance: PerSample | None = None
    ) -> list[Tensor]:
        """What the network sees: the end of each level on the way down, then the coarsest, [b, c_l, h_l, w_l] each."""
        embedding = self.embed(timestep, class_labels, guidance)
        skips = self.down(x, embedding)
        count = self.config.layers_per_block
        ends = [skips[min((count + 1) * (level + 1) - 1, len(skips) - 1)] for level in range(len(self.down_blocks))]
        return [*ends, self.mid(skips[-1], embedding)]

    def embed(
        self, timestep: PerSample, class_labels: Tensor | None = None, guidance: PerSample | None = None
    ) -> Tensor:
        """The activated embedding of time, class and guidance that every residual block projects, [b, e]."""
        if (class_labels is None) != (self.class_embedding is None):
            raise UserError(_CLASS_GIVEN if self.class_embedding is None else _CLASS_MISSING)
        if (guidance is None) != (self.guidance_embedding is None):
            raise UserError(_GUIDANCE_GIVEN if self.guidance_embedding is None else _GUIDANCE_MISSING)
        with torch.autocast(timestep.device.type, enabled=False):  # in bfloat16 neighbouring times would be one
            embedding = self.time_embedding(timestep)
            if self.class_embedding is not None:
                embedding = embedding + self.class_embedding(class_labels)
            if self.guidance_embedding is not None:
                embedding = embedding + self.guidance_embedding(guidance_features(guidance).to(embedding.dtype))
            return F.silu(embedding)

    def down(self, x: Sample, embedding: Tensor, count: int | None = None) -> list[Tensor]:
        """The skips, from the finest; only the first `count` of them, and no more work than they take."""
        if self.config.center_input_sample:
            x = 2 * x - 1
        skips = [self.conv_in(x)]
        for block in self.down_blocks:
            for step in block.steps():
                if len(skips) == count:
                    return skips
                skips.append(step(skips[-1], embedding))
        return skips

    def mid(self, h: Tensor, embedding: Tensor) -> Tensor:
        """The coarsest level."""
        return h if self.mid_block is None else self.mid_block(h, embedding)

    def up(self, h: Tensor, skips: list[Tensor], embedding: Tensor, until: int = 0) -> Tensor:
        """The last len(skips) steps of the way up, each of which takes the last skip left; stops at `until` left."""
        steps = [step for block in self.up_blocks for step in block.steps()][-len(skips) :]
        for step, skip in zip(steps[: len(skips) - until], reversed(skips)):
            h = step(h, skip, embedding)
        return h

    def out(self, h: Tensor) -> Sample:
        """What the network says, from the end of the way up."""
        return self.conv_out(F.silu(self.conv_norm_out(h)))

    def config_json(self) -> dict[str, Any]:
        """The content of config.json."""
        return config_json(self.config)

    def with_dropout(self, dropout: float) -> "UNet":
        """A network of the same weights with this dropout in training."""
        net = UNet(replace(self.config, dropout=dropout))
        net.load_state_dict(self.state_dict())
        return net


_CLASS_GIVEN = "this network knows no classes: leave class_labels out"
_CLASS_MISSING = "this network is conditioned on classes: give class_labels, an index for each sample"
_GUIDANCE_GIVEN = "this network has no input for a guidance weight: leave guidance out"
_GUIDANCE_MISSING = "this network has an input for the guidance weight: give guidance, a number for each sample"
