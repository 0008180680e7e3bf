"""AuraFlowTransformer2DModel: AuraFlow, a flow-matching transformer with a text of one encoder."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from diffcore.core.shapes import PerSample
from diffcore.nets.architectures import Architecture
from diffcore.nets.inputs import Input


class AuraFlow(Architecture):
    """It is told times of 0 to 1, and attends to all of the text's tokens: it takes no mask, and its pipeline has zeros for
    those that are not there."""

    formats = ("AuraFlowTransformer2DModel",)
    time_scale = 1

    @property
    def conditions(self) -> dict[str, Input]:
        return {"text": Input((None, self.config["joint_attention_dim"]), torch.float32)}

    @property
    def largest(self) -> int:
        """Its positions are a square of learned ones, of which the middle is taken."""
        return math.isqrt(self.config["pos_embed_max_size"]) * self.config["patch_size"]

    def call(self, net: nn.Module, x: Tensor, timestep: PerSample, inputs: Mapping[str, Tensor]) -> Tensor:
        return net(x, encoder_hidden_states=inputs["text"], timestep=timestep).sample
