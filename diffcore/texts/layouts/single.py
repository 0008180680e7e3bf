"""A folder with one text encoder of transformers, by itself."""

from collections.abc import Sequence

from torch import Tensor

from diffcore.texts.layouts import Layout
from diffcore.texts.model import Loaded


class Single(Layout):
    """CLIP's tokens are all told, the padding too, as pipelines do, with its pooled output; those of any other network with
    a mask of which are there."""

    formats = ()
    places = ((".", "."),)

    def encode(self, encoders: Sequence[Loaded], captions: Sequence[str], length: int) -> dict[str, Tensor]:
        is_clip = encoders[0].model.is_clip
        outputs = encoders[0].outputs(captions, length, masked=not is_clip)
        inputs = {"text": outputs.last} if is_clip else {"text": outputs.last, "text_mask": outputs.mask}
        return inputs if outputs.pooled is None else {**inputs, "pooled": outputs.pooled}
