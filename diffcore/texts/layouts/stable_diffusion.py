"""Stable Diffusion 1 and 2 (Rombach et al. 2022, arXiv 2112.10752)."""

from collections.abc import Sequence

from torch import Tensor

from diffcore.texts.layouts import Layout
from diffcore.texts.model import Loaded


class StableDiffusion(Layout):
    """One CLIP: the last layer at all tokens, padding too."""

    formats = ("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline")

    def encode(self, encoders: Sequence[Loaded], captions: Sequence[str], length: int) -> dict[str, Tensor]:
        masked = bool(encoders[0].model.config.get("use_attention_mask"))
        return {"text": encoders[0].outputs(captions, length, masked=masked).last}
