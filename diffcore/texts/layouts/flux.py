"""Flux (Black Forest Labs 2024)."""

from collections.abc import Sequence

from torch import Tensor

from diffcore.texts.layouts import Layout
from diffcore.texts.model import Loaded


class Flux(Layout):
    """A T5 at all tokens, padding too, and what a CLIP pools."""

    formats = ("FluxPipeline",)
    places = (("text_encoder", "tokenizer"), ("text_encoder_2", "tokenizer_2"))
    usual = 512
    counted = 1

    def encode(self, encoders: Sequence[Loaded], captions: Sequence[str], length: int) -> dict[str, Tensor]:
        pooled = encoders[0].outputs(captions, encoders[0].model.usual).pooled
        return {"text": encoders[1].outputs(captions, length).last, "pooled": pooled}
