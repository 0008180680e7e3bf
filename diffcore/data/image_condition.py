"""What a network may be told of an image by a copy of it that lost something: its input `image`, in [-1, 1].

downscale:F   the mean of each F x F block, as large as the image: what super-resolution begins with
grey          its luma (ITU-R 601), one channel: what colours begin with
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from diffcore.core.errors import UserError
from diffcore.core.shapes import Sample
from diffcore.data import fitting, folders, pixels, tars
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
    return _enlarged(F.avg_pool2d(images, side), side)


def _enlarged(images: Tensor, side: int) -> Tensor:
    return images.repeat_interleave(side, 2).repeat_interleave(side, 3)


def of_shards(word: str, folder: Path, manifest: Manifest, done: int = 0) -> Iterator[Tensor]:
    """Of each shard in turn, after those that are done, the copies of its images."""
    images, start = StreamedImages(folder, manifest, 0), sum(shard.images for shard in manifest.shards[:done])
    for shard in manifest.shards[done:]:
        yield spoiled(word, to_float(images.take(range(start, start + shard.images))))
        start += shard.images


def files(place: Path) -> list[Path]:
    """The image at this place, or all images of a folder by their names. A UserError for none."""
    place = place.expanduser()
    if not place.is_dir():
        return [place]
    paths = sorted(path for path in place.iterdir() if folders.extension(path.name) in tars.formats())
    if not paths:
        raise UserError(f"--condition: there is no image in {place}; name a file, or a folder of some")
    return paths


def of_files(word: str, paths: Sequence[Path], shape: Sequence[int]) -> Tensor:
    """What a network of images [c, h, w] is told of these, [k, c, h, w]: of one that is as large the copy, as `spoiled` makes
    it; one as small as the block means of `downscale:F` is such a copy already. A UserError for any other size, and for
    a file that cannot be read."""
    return torch.cat([_of_file(word, path, shape) for path in paths])


def _of_file(word: str, path: Path, shape: Sequence[int]) -> Tensor:
    channels, *sides = shape
    image = to_float(torch.from_numpy(_pixels(path, channels)).permute(2, 0, 1)[None])
    own, factor = list(image.shape[2:]), int(word.partition(":")[2] or 1)
    if own == sides:
        return spoiled(word, image)
    small = [side // factor for side in sides]
    if own == small:
        return _enlarged(image, factor)
    also = f", or {small[1]} x {small[0]} of a copy" if factor > 1 else ""
    raise UserError(
        f"--condition: {path} is {own[1]} x {own[0]} and must be {sides[1]} x {sides[0]}{also}; bring it to that size"
    )


def _pixels(path: Path, channels: int) -> np.ndarray:
    """uint8 [h, w, channels]."""
    try:
        with pixels.no_bombs():
            picture = tars.decode(path.read_bytes(), "any")
        form = fitting.Form((channels, picture.height, picture.width), None, True, "lanczos")
        return np.array(fitting.fit(picture, form, path.name).pixels)
    except UserError:
        raise
    except Exception as error:  # whatever a decoder makes of damaged bytes
        raise UserError(f"--condition: {path} cannot be read ({fitting.reason(error)}); give another image") from None
