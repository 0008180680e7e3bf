"""How each picture becomes a uint8 array of the one shape asked for."""

import re
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from diffcore.core.errors import UserError
from diffcore.data import tars
from diffcore.data.config import Config, Filter
from diffcore.data.sources import Source
from diffcore.data.tars import printable

FULL = 65535  # white, where 16 bits are used
MOST_PIXELS = 1 << 27  # of a resized picture before it is cut: a picture much longer than wide would fill the memory


@dataclass(frozen=True)
class Form:
    """The one shape [c, h, w] of all images of a data set, and what the user left to the first image to decide."""

    shape: tuple[int, int, int]
    size: int | None
    channels_stated: bool
    filter: Filter
    bits: int | None = None


class Fitted(NamedTuple):
    """A picture in the form of its data set.

    pixels: uint8 [h, w, c]. enlarged: whether it was smaller. peak: its brightest value of 0 .. 65535, where it had 16 bits.
    """

    pixels: np.ndarray
    enlarged: bool
    peak: int | None = None


def form(config: Config, source: Source) -> Form:
    """The shape that all images will have: as configured, else as the first image that can be read."""
    reasons = []
    for entry in source.entries:
        try:
            first = entry.read()[0][0]
        except UserError:
            raise
        except Exception as error:  # it is quarantined, with its reason, when its turn comes
            reasons = reasons or [f"{entry.name}: {reason(error)}"]
            continue
        height, width = (config.size, config.size) if config.size else _extent(first)
        shape = (config.channels or (1 if _grey(first) else 3), height, width)
        return Form(shape, config.size, config.channels is not None, config.filter, config.bits)
    raise UserError(
        f"data.source {config.source}: none of its {source.images} images can be read ({'; '.join(reasons)})"
    )


def reason(error: Exception) -> str:
    """Why an image cannot be read, in one line that is the same each time and on each machine."""
    message = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    message = re.sub(r"<[^<>]* at 0x[0-9a-fA-F]+>", "", message)  # an object's address
    return printable(" ".join(f"{type(error).__name__}: {message}".split()))


def fit(picture: Any, form: Form, name: str) -> Fitted:
    """One picture as uint8 [h, w, c] of `form`.

    The shorter side is resampled to `size` with the filter (the longer one to the nearest whole pixel), then the middle
    is cut out, at the floor of half the surplus. Raises UserError if the picture differs from the first one in something
    that the configuration leaves open, ValueError if it cannot be brought into the form.
    """
    from PIL import Image

    channels, height, width = form.shape
    if not form.channels_stated and _grey(picture) != (channels == 1):
        raise UserError(f"{name} is {_colour(picture)} and the first image is not: set data.channels to 1 or 3")
    extent = _extent(picture)
    if form.size is None and extent != (height, width):
        size, first_size = f"{extent[1]}x{extent[0]}", f"{width}x{height}"
        raise UserError(f"{name} is {size} and the first image {first_size}: set data.size to the side you want")
    if isinstance(picture, np.ndarray):
        if picture.shape == (height, width, channels):
            return Fitted(picture, False)
        picture = Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture)
    peak = _peak(picture)
    picture = _flat(picture, _white(form.bits, peak, picture, name)).convert("L" if channels == 1 else "RGB")
    if form.size is not None:
        picture = _square(picture, form.size, form.filter)
    enlarged = form.size is not None and min(extent) < form.size
    return Fitted(np.asarray(picture).reshape(height, width, channels), enlarged, peak)


def _extent(picture: Any) -> tuple[int, int]:
    return picture.shape[:2] if isinstance(picture, np.ndarray) else (picture.height, picture.width)


def _grey(picture: Any) -> bool:
    if isinstance(picture, np.ndarray):
        return picture.shape[-1] == 1
    return picture.mode in ("1", "L", "LA", "La") or picture.mode.startswith("I;16")


def _colour(picture: Any) -> str:
    return "grey" if _grey(picture) else "in colour"


def _peak(picture: Any) -> int | None:
    # of 16 bits in colour Pillow has kept the upper 8
    if picture.mode.startswith("I;16"):
        return int(np.asarray(picture).max())
    return 257 * max(high for _, high in picture.convert("RGB").getextrema()) if picture.info.get(tars.DEEP) else None


def _white(bits: int | None, peak: int | None, picture: Any, name: str) -> int:
    # the value of white in a picture of 16 bits
    white = (1 << (bits or 16)) - 1
    if peak is not None and peak > white:
        raise UserError(f"{name} is as bright as {peak}, and white is {white} by data.bits {bits}: raise data.bits")
    if peak is not None and white < FULL and not picture.mode.startswith("I;16"):
        raise UserError(
            f"{name} is in colour, where 16 bits are read by the upper 8: set data.bits to 16 or save it with 8"
        )
    return white


def _flat(picture: Any, white: int = FULL) -> Any:
    # 8 bits, nothing transparent
    from PIL import Image

    if picture.mode.startswith("I;16"):  # Pillow's own conversion would clip at 255
        deep = np.asarray(picture).astype(np.uint32)
        return Image.fromarray(((deep * 255 + white // 2) // white).astype(np.uint8))
    if picture.has_transparency_data:
        paper = Image.new("RGBA", picture.size, "white")
        paper.alpha_composite(picture.convert("RGBA"))
        return paper.convert("RGB")
    return picture


def _square(picture: Any, size: int, filter: Filter) -> Any:
    from PIL import Image

    short = min(picture.size)
    width, height = (max(size, round(side * size / short)) for side in picture.size)
    if width * height > MOST_PIXELS:
        raise ValueError(f"it is {picture.width}x{picture.height}, too long for its width")
    if (width, height) != picture.size:
        picture = picture.resize((width, height), Image.Resampling[filter.upper()])
    left, top = (width - size) // 2, (height - size) // 2
    return picture.crop((left, top, left + size, top + size))
