"""UNet2DConditionModel: the U-Net of Stable Diffusion 1 and 2 and of SDXL, of their inpainting and instruct-pix2pix versions,
and of latent consistency models, which embed the guidance weight."""

from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffcore.core.errors import UserError
from diffcore.core.shapes import PerSample
from diffcore.nets.architectures import Architecture
from diffcore.nets.inputs import Input

SIZE = 6


class UNet2DCondition(Architecture):
    """`size` and `pooled` are those of SDXL (Podell et al. 2023, arXiv 2307.01952, section 2.2)."""

    formats = ("UNet2DConditionModel",)
    supported: ClassVar = {
        "time_embedding_type": ("positional",),
        "class_embed_type": (None,),
        "addition_embed_type": (None, "text", "text_time"),
        "encoder_hid_dim_type": (None, "text_proj"),
        "attention_type": ("default",),
    }

    @property
    def conditions(self) -> dict[str, Input]:
        config = self.config
        conditions = {
            "text": Input((None, self._text_width()), torch.float32),
            "text_mask": Input((None,), torch.bool, required=False),
        }
        if config["num_class_embeds"] is not None:
            conditions["class_labels"] = Input((), torch.int64, rows=config["num_class_embeds"])
        if config["time_cond_proj_dim"] is not None:
            conditions["guidance"] = Input((), torch.float32)
        if config["addition_embed_type"] == "text_time":
            conditions["pooled"] = Input((self._pooled_width(),), torch.float32)
            conditions["size"] = Input((SIZE,), torch.float32)
        return conditions

    @property
    def is_consistency_student(self) -> bool:
        return self.config["time_cond_proj_dim"] is not None

    def call(self, net: nn.Module, x: Tensor, timestep: PerSample, inputs: Mapping[str, Tensor]) -> Tensor:
        guidance, added = inputs.get("guidance"), None
        if "size" in inputs:
            added = {"text_embeds": inputs["pooled"], "time_ids": inputs["size"]}
        return net(
            x,
            timestep,
            encoder_hidden_states=inputs["text"],
            encoder_attention_mask=inputs.get("text_mask"),
            class_labels=inputs.get("class_labels"),
            timestep_cond=None
            if guidance is None
            else embedded(guidance, self.config["time_cond_proj_dim"]).to(x.dtype),
            added_cond_kwargs=added,
        ).sample

    def _text_width(self) -> int:
        if (width := self.config["encoder_hid_dim"]) is not None:
            return width
        widths = self.config["cross_attention_dim"]
        if isinstance(widths, list | tuple):
            if len(set(widths)) > 1:
                raise UserError(
                    f"{self.name} with cross_attention_dim {list(widths)} takes texts of several widths; give one"
                )
            return widths[0]
        return widths

    def _pooled_width(self) -> int:
        whole, each = (self.config[key] for key in ("projection_class_embeddings_input_dim", "addition_time_embed_dim"))
        if (width := whole - SIZE * each) < 1:
            raise UserError(
                f"{self.name}: projection_class_embeddings_input_dim {whole} has no room for {SIZE} numbers of {each} and a "
                "pooled text; mend its config.json"
            )
        return width


def embedded(guidance: PerSample, width: int) -> Tensor:
    """Sines and cosines of 1000 (g - 1), [b, width] float32, as latent consistency models are told it (Luo et al. 2023, arXiv
    2310.04378): frequencies from 1 to 1/10000, and a zero behind an odd width."""
    half = width // 2
    # in float32, as the pipeline has it: phases are thousands of radians
    slope = torch.tensor(10000.0).log() / (half - 1)
    frequencies = torch.exp(torch.arange(half, dtype=torch.float32, device=guidance.device) * -slope)
    phases = 1000 * (guidance.float()[:, None] - 1) * frequencies
    return F.pad(torch.cat([phases.sin(), phases.cos()], 1), (0, width % 2))
