"""The network itself: three parts that can be run alone, `down`, `mid` and `up`."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffcore.core.shapes import Sample
from diffcore.nets.conditioned import GUIDANCE_FEATURES, Conditioned
from diffcore.nets.unet.blocks import Down, Mid, TimeEmbedding, Up
from diffcore.nets.unet.config import ATTENTION_DOWN, ATTENTION_UP, UNetConfig, config_json


class UNet(Conditioned):
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
        self.end_embedding = nn.Linear(config.embedding, config.embedding, bias=False) if config.end_embeds else None
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

    def says(self, x: Sample, embedding: Tensor) -> Tensor:
        skips = self.down(x, embedding)
        return self.out(self.up(self.mid(skips[-1], embedding), skips, embedding))

    def sees(self, x: Sample, embedding: Tensor) -> list[Tensor]:
        """The end of each level on the way down, then the coarsest."""
        skips = self.down(x, embedding)
        count = self.config.layers_per_block
        ends = [skips[min((count + 1) * (level + 1) - 1, len(skips) - 1)] for level in range(len(self.down_blocks))]
        return [*ends, self.mid(skips[-1], embedding)]

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
        return config_json(self.config)
