"""What a network may be told of an image by a copy of it that lost something: its input `image`, in [-1, 1].

downscale:F   the mean of each F x F block, as large as the image: what super-resolution begins with
grey          its luma (ITU-R 601), one channel: what colours begin with
"""

from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from diffcore.core.errors import UserError
from diffcore.core.shapes import Sample
from diffcore.data.feed import to_float
from diffcore.data.manifest import Manifest
from diffcore.data.read import StreamedImages

LUMA = (0.299, 0.587, 0.114)


def spoiled(word: str, images: Sample) -> Tensor:
    """What is left of images [n, c, h, w]: [n, c, h, w], or [n, 1, h, w] of `grey`. A UserError for images of which there is
    no such copy."""
    channels, height, width = images.shape[1:]
    kind, _, factor = word.partition(":")
    if kind == "grey":
        if channels != len(LUMA):
            raise UserError(f"data.image_condition: grey is made of three channels, and the images have {channels}")
        return torch.einsum("nchw,c->nhw", images, images.new_tensor(LUMA))[:, None]
    side = int(factor)
    if height % side or width % side:
        sides = f"{height} x {width}"
        raise UserError(f"data.image_condition: {word} needs sides that divide by {side}, and the images are {sides}")
    small = F.avg_pool2d(images, side)
    return small.repeat_interleave(side, 2).repeat_interleave(side, 3)


def of_shards(word: str, folder: Path, manifest: Manifest, done: int = 0) -> Iterator[Tensor]:
    """Of each shard in turn, after those that are done, the copies of its images."""
    images, start = StreamedImages(folder, manifest, 0), sum(shard.images for shard in manifest.shards[:done])
    for shard in manifest.shards[done:]:
        yield spoiled(word, to_float(images.take(range(start, start + shard.images))))
        start += shard.images
