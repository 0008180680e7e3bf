"""8-bit images as feature networks take them: their channels and their size."""

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

from diffcore.core.errors import UserError


def with_channels(images: Tensor, count: int) -> Tensor:
    """Images [b, c, h, w] with `count` channels, grey ones as as many equal channels; a UserError for what is not so."""
    if images.shape[1] not in (1, count):
        kinds = "neither grey nor RGB" if count == 3 else f"not of {count}"
        raise UserError(f"evaluate.judges: images of {images.shape[1]} channels are {kinds}; take the judge out")
    return images.expand(-1, count, -1, -1)


def bicubic(x: Tensor, side: int) -> Tensor:
    """Images [b, c, h, w] at side x side, bicubic with antialias as Pillow does it; values may leave their range a little."""
    return F.interpolate(x, (side, side), mode="bicubic", antialias=True)


def central_square(images: Tensor) -> Tensor:
    """The middle of images [b, c, h, w] as high and wide as their shorter side; an odd pixel is left out behind."""
    height, width = images.shape[2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return images[:, :, top : top + side, left : left + side]


def normalised(x: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(x - mean) / std of images [b, c, h, w], each of its channel."""
    return (x - x.new_tensor(mean).view(1, -1, 1, 1)) / x.new_tensor(std).view(1, -1, 1, 1)
