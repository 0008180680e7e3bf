"""What a network is told besides a sample and a time: named tensors, checked before it is called.

class_labels  int64 [b]            the class of each sample; the index after the last one stands for none
guidance      float [b]            the weight g of uncond + g (cond - uncond), which the network embeds
end_timestep  float [b]            what it is told of the time where its one hop lands; like its timestep, if it lands nowhere
text          float [b, l, d]      embeddings of a text, one for each token
text_mask     bool [b, l]          which of them are there; without a mask all are
pooled        float [b, p]         one embedding of the whole text
size          float [b, 6]         height and width of the original, top and left of the crop, height and width wanted
image         float [b, c, h, w]   what to condition on beside the sample, as further channels
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diffcore.core.errors import UserError

EMBEDDINGS = ("text", "pooled", "image")
"""What a network multiplies with its weights, so that it is wanted in the dtype of the sample."""


SIZE = "size"


def whole(sides: Sequence[int]) -> Tensor:
    """The `size` [6] of images of this height and width that were neither resized nor cut."""
    height, width = sides
    return torch.tensor([height, width, 0, 0, height, width], dtype=torch.float32)


MAKERS = {
    "text": "data.captions and text.encoder",
    "text_mask": "data.captions and text.encoder",
    "pooled": "data.captions and text.encoder",
    "image": "data.image_condition",
}
"""What params.yaml sets so that the data say an input; nothing makes the others of an image yet."""


@dataclass(frozen=True)
class Input:
    """shape: of one sample, None for a length that is free. dtype: torch.float32 stands for any floating point. rows: of an
    index, how many there are, that of none included where the network has one."""

    shape: tuple[int | None, ...]
    dtype: torch.dtype
    required: bool = True
    rows: int | None = None

    def fits(self, tensor: Tensor, batch: int) -> bool:
        """Whether it is such an input of so many samples."""
        is_dtype = tensor.is_floating_point() if self.dtype.is_floating_point else tensor.dtype == self.dtype
        shape = (batch, *self.shape)
        same = len(shape) == tensor.ndim and all(size in (None, own) for size, own in zip(shape, tensor.shape))
        return is_dtype and same

    def describe(self, batch: int) -> str:
        """`float [4, any, 16]`."""
        return _describe(self.dtype, (batch, *self.shape))


def check(network: str, wanted: Mapping[str, Input], inputs: Mapping[str, Tensor], batch: int) -> None:
    """A UserError that names the network and the first input that is missing, that it does not take, or that has another
    shape or dtype than it takes."""
    for name in inputs:
        if name not in wanted:
            raise UserError(f"{network} takes no {name}, {_only(wanted)}; leave {name} out")
    for name, kind in wanted.items():
        if name not in inputs:
            if kind.required:
                raise UserError(f"{network} needs {name}, {kind.describe(batch)}; give it in every call")
        elif not kind.fits(inputs[name], batch):
            tensor = inputs[name]
            raise UserError(
                f"{network}: {name} is {_describe(tensor.dtype, tuple(tensor.shape))} and must be {kind.describe(batch)}"
            )
    if {"text", "text_mask"} <= inputs.keys() and inputs["text"].shape[1] != inputs["text_mask"].shape[1]:
        lengths = inputs["text"].shape[1], inputs["text_mask"].shape[1]
        raise UserError(
            f"{network}: text has {lengths[0]} tokens and text_mask {lengths[1]}; give one flag for each token"
        )


def blank(names: Iterable[str], shapes: Mapping[str, Sequence[int]], count: int) -> dict[str, Tensor]:
    """Of such inputs, of these shapes of one, zeros for `count` samples, all of whose words are there."""
    return {
        name: torch.ones(count, *shapes[name], dtype=torch.bool)
        if name.endswith("_mask")
        else torch.zeros(count, *shapes[name])
        for name in names
    }


def _only(wanted: Mapping[str, Input]) -> str:
    return f"only {', '.join(wanted)}" if wanted else "only a sample and a time"


def _describe(dtype: torch.dtype, shape: tuple[int | None, ...]) -> str:
    word = "float" if dtype.is_floating_point else str(dtype).removeprefix("torch.")
    return f"{word} [{', '.join('any' if size is None else str(size) for size in shape)}]"
