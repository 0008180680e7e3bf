"""How much memory a training takes at the very least, and how much this machine has.

The estimates are lower bounds, so that what they find too much is too much: of a training the weights, gradients, AdamW's
two moments and the averages, of a batch the images, their noise and what the residual blocks keep for the way back.
"""

import math
import os
from collections.abc import Iterator, Sequence

import torch

from diffcore.nets.unet import Shape

FLOAT = 4
"""Bytes."""


def of_machine() -> int:
    """Bytes in which one process, or one for each GPU, can compute: those of all GPUs, or of the machine if that is more."""
    own = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    return max(own, sum(torch.cuda.get_device_properties(gpu).total_memory for gpu in gpus))


def residual_blocks(shape: Shape) -> Iterator[tuple[int, int, int]]:
    """(level, channels in, channels out) of each residual block of the default U-Net; level l works on h w / 4^l pixels."""
    widths, count, last = shape.channels, shape.layers, len(shape.channels) - 1
    for level, width in enumerate(widths):
        yield from [(level, widths[max(level - 1, 0)], width), *[(level, width, width)] * (count - 1)]
    yield from [(last, widths[-1], widths[-1])] * 2
    for level in range(last, -1, -1):
        width = widths[level]
        skips = [width] * count + [widths[max(level - 1, 0)]]
        inputs = [widths[min(level + 1, last)]] + [width] * count
        yield from ((level, h + skip, width) for h, skip in zip(inputs, skips))


def parameters(shape: Shape, channels: int) -> int:
    """How many numbers the default U-Net for images of so many channels learns, without its tables of classes."""
    widths, embedding = shape.channels, 4 * shape.channels[0]
    ends = 9 * channels * widths[0] * (3 if shape.head == "both" else 2) + 3 * widths[0]
    ends += channels * (2 if shape.head == "both" else 1)
    time = embedding * (widths[0] + embedding + 2)
    halving = sum(9 * width * width + width for width in (*widths[:-1], *widths[1:]))
    blocks = sum(_block(width, out, embedding) for _, width, out in residual_blocks(shape))
    return ends + time + halving + blocks + _attentions(shape)


def _block(width: int, out: int, embedding: int) -> int:
    beside = (width + 1) * out if width != out else 0
    return 2 * width + 2 * out + (9 * width + 9 * out + 2) * out + 2 * (embedding + 1) * out + beside


def _attentions(shape: Shape) -> int:
    if not shape.attention:
        return 0
    size = min(8, *shape.channels)
    inner = {width: width // size * size for width in shape.channels}
    each = {width: 3 * width + 3 * inner[width] + 4 * width * inner[width] for width in shape.channels}
    return each[shape.channels[-1]] + sum((2 * shape.layers + 1) * each[width] for width in shape.channels[1:])


def kept(shape: Shape, image: Sequence[int]) -> int:
    """Numbers that the residual blocks keep of one image [c, h, w] for the way back: three of each width in and out."""
    pixels = math.prod(image[1:])
    return sum(3 * (width + out) * max(1, pixels >> 2 * level) for level, width, out in residual_blocks(shape))


def of_weights(shape: Shape, channels: int, copies: int) -> int:
    """Bytes of a training's networks: `copies` beside gradients and two moments, all in float32."""
    return FLOAT * (3 + copies) * parameters(shape, channels)


def of_batch(shape: Shape | None, image: Sequence[int], batch: int, part: int, bytes_each: int = FLOAT) -> int:
    """Bytes of a training step: all its images and their noise, and what is kept of `part` of them at a time.

    shape: None for a network that is not known. bytes_each: of a kept number; 2 in bfloat16.
    """
    return 2 * FLOAT * batch * math.prod(image) + bytes_each * part * (kept(shape, image) if shape else 0)


def words(count: int) -> str:
    """Bytes as people say them: 3.2 TB."""
    units = ("bytes", "kB", "MB", "GB", "TB", "PB")
    power = min(max(0, len(str(count)) - 1) // 3, len(units) - 1)
    return f"{count / 1000**power:.3g} {units[power]}"
