"""Stable Diffusion 3 (Esser et al. 2024, arXiv 2403.03206)."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from diffcore.texts.layouts import Layout
from diffcore.texts.model import Loaded


class StableDiffusion3(Layout):
    """Two CLIPs side by side, widened by zeros to the T5 whose tokens follow them; what both pool side by side. `text.length`
    is that of the T5's tokens."""

    formats = ("StableDiffusion3Pipeline",)
    places = tuple((f"text_encoder{number}", f"tokenizer{number}") for number in ("", "_2", "_3"))
    usual = 256
    counted = 2

    def encode(self, encoders: Sequence[Loaded], captions: Sequence[str], length: int) -> dict[str, Tensor]:
        first, second = (each.outputs(captions, encoders[0].model.usual) for each in encoders[:2])
        last = encoders[2].outputs(captions, length).last
        beside = torch.cat([first.before, second.before], 2)
        widened = functional.pad(beside, (0, last.shape[2] - beside.shape[2]))
        return {
            "text": torch.cat([widened, last], 1),
            "pooled": torch.cat([first.pooled, second.pooled], 1),
        }
