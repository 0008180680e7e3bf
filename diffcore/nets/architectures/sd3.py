"""SD3Transformer2DModel: Stable Diffusion 3 and 3.5 (Esser et al. 2024, arXiv 2403.03206)."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from diffcore.core.shapes import PerSample
from diffcore.nets.architectures import Architecture
from diffcore.nets.inputs import Input


class SD3(Architecture):
    """It attends to all of the text's tokens, empty ones too, as it was trained to: it takes no mask."""

    formats = ("SD3Transformer2DModel",)

    @property
    def conditions(self) -> dict[str, Input]:
        return {
            "text": Input((None, self.config["joint_attention_dim"]), torch.float32),
            "pooled": Input((self.config["pooled_projection_dim"],), torch.float32),
        }

    @property
    def largest(self) -> int:
        return self.config["pos_embed_max_size"] * self.config["patch_size"]

    def call(self, net: nn.Module, x: Tensor, timestep: PerSample, inputs: Mapping[str, Tensor]) -> Tensor:
        return net(
            hidden_states=x,
            timestep=timestep,
            encoder_hidden_states=inputs["text"],
            pooled_projections=inputs["pooled"],
        ).sample
