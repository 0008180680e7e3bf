"""PixArtTransformer2DModel: PixArt-alpha (Chen et al. 2023, arXiv 2310.00426) and PixArt-sigma (Chen et al. 2024, arXiv
2403.04692)."""

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from diffcore.core.shapes import PerSample
from diffcore.nets.architectures import Architecture
from diffcore.nets.inputs import Input

OF_SIZE = 128
"""The sample_size whose networks are told a size where their config does not say whether they are."""


class PixArt(Architecture):
    """Of `size` it is told the height and width wanted, and their ratio."""

    formats = ("PixArtTransformer2DModel",)
    supported: ClassVar = {"attention_type": ("default",)}

    @property
    def conditions(self) -> dict[str, Input]:
        config = self.config
        captions = config["caption_channels"]
        conditions = {
            "text": Input((None, config["cross_attention_dim"] if captions is None else captions), torch.float32),
            "text_mask": Input((None,), torch.bool, required=False),
        }
        takes_size = config["use_additional_conditions"]
        if config["sample_size"] == OF_SIZE if takes_size is None else takes_size:
            conditions["size"] = Input((6,), torch.float32)
        return conditions

    def call(self, net: nn.Module, x: Tensor, timestep: PerSample, inputs: Mapping[str, Tensor]) -> Tensor:
        added = {"resolution": None, "aspect_ratio": None}
        if "size" in inputs:
            height, width = inputs["size"][:, 4], inputs["size"][:, 5]
            added = {"resolution": inputs["size"][:, 4:], "aspect_ratio": (height / width)[:, None]}
        return net(
            x,
            encoder_hidden_states=inputs["text"],
            encoder_attention_mask=inputs.get("text_mask"),
            timestep=timestep,
            added_cond_kwargs=added,
        ).sample
