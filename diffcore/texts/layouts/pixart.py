"""PixArt-alpha (Chen et al. 2023, arXiv 2310.00426) and PixArt-sigma (Chen et al. 2024, arXiv 2403.04692)."""

from collections.abc import Sequence

from torch import Tensor

from diffcore.texts.layouts import Layout
from diffcore.texts.model import Loaded


class PixArtAlpha(Layout):
    """One T5, told which tokens are there; captions in lower case, not cleaned of what web pages leave in them."""

    formats = ("PixArtAlphaPipeline",)
    usual = 120

    def prepared(self, caption: str) -> str:
        return caption.lower().strip()

    def encode(self, encoders: Sequence[Loaded], captions: Sequence[str], length: int) -> dict[str, Tensor]:
        outputs = encoders[0].outputs(captions, length, masked=True)
        return {"text": outputs.last, "text_mask": outputs.mask}


class PixArtSigma(PixArtAlpha):
    """The same with longer captions."""

    formats = ("PixArtSigmaPipeline",)
    usual = 300
