"""SanaTransformer2DModel: Sana (Xie et al. 2024, arXiv 2410.10629) and Sana-Sprint (Chen et al. 2025, arXiv 2503.09641)."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from diffcore.core.shapes import PerSample
from diffcore.nets.architectures import Architecture
from diffcore.nets.inputs import Input


class Sana(Architecture):
    """Sana is told times of 0 to 1000, times the `timestep_scale` of its config. Sprint, which embeds the guidance weight
    times `guidance_embeds_scale`, is told 0 to 1 as it is: its pipeline asks for no other scale."""

    formats = ("SanaTransformer2DModel",)

    @property
    def time_scale(self) -> int:
        return 1 if self.config["guidance_embeds"] else 1000

    @property
    def conditions(self) -> dict[str, Input]:
        conditions = {
            "text": Input((None, self.config["caption_channels"]), torch.float32),
            "text_mask": Input((None,), torch.bool, required=False),
        }
        return {**conditions, "guidance": Input((), torch.float32)} if self.config["guidance_embeds"] else conditions

    @property
    def is_consistency_student(self) -> bool:
        return bool(self.config["guidance_embeds"])

    def call(self, net: nn.Module, x: Tensor, timestep: PerSample, inputs: Mapping[str, Tensor]) -> Tensor:
        guidance = inputs.get("guidance")
        is_sprint = guidance is not None
        return net(
            x,
            encoder_hidden_states=inputs["text"],
            encoder_attention_mask=inputs.get("text_mask"),
            guidance=guidance * self.config["guidance_embeds_scale"] if is_sprint else None,
            timestep=timestep if is_sprint else timestep * self.config["timestep_scale"],
        ).sample
