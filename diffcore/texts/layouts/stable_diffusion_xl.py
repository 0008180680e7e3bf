"""Stable Diffusion XL (Podell et al. 2023, arXiv 2307.01952)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from diffcore.texts.layouts import Layout
from diffcore.texts.model import Loaded


class StableDiffusionXL(Layout):
    """Two CLIPs: their last layers but one side by side, and what the second one pools. Without a prompt it is told zeros,
    unless force_zeros_for_empty_prompt is off."""

    formats = (
        "StableDiffusionXLPipeline",
        "StableDiffusionXLImg2ImgPipeline",
        "StableDiffusionXLInpaintPipeline",
    )
    reads = ("force_zeros_for_empty_prompt",)
    places = (("text_encoder", "tokenizer"), ("text_encoder_2", "tokenizer_2"))

    def encode(self, encoders: Sequence[Loaded], captions: Sequence[str], length: int) -> dict[str, Tensor]:
        first, second = (each.outputs(captions, length) for each in encoders)
        return {"text": torch.cat([first.before, second.before], 2), "pooled": second.pooled}

    def nothing(self, encoders: Sequence[Loaded], length: int) -> dict[str, Tensor]:
        empty = super().nothing(encoders, length)
        if not self.settings.get("force_zeros_for_empty_prompt", True):
            return empty
        return {name: torch.zeros_like(tensor) for name, tensor in empty.items()}
