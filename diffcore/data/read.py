"""Images from shards: one by one, all in memory, or looked up in a data set larger than memory; and their captions."""

import collections
import functools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diffcore.core.errors import UserError
from diffcore.data.manifest import Manifest
from diffcore.data.opened import Opened, open_shard

Indices = Tensor | np.ndarray | Sequence[int]


@dataclass(frozen=True)
class Images:
    """A whole data set in memory.

    pixels: uint8 [n, c, h, w]; labels: int64 [n] or None; classes: names by label or None; counts: images in each shard,
    which the order of training goes by; empty means one.
    """

    pixels: Tensor
    labels: Tensor | None
    classes: tuple[str, ...] | None
    counts: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one image, [c, h, w]."""
        return tuple(self.pixels.shape[1:])

    def take(self, indices: Indices) -> Tensor:
        """The images of these numbers, in any order and with repetitions: uint8 [k, c, h, w]. Raises IndexError."""
        return self.pixels[_checked(indices, len(self))]

    def blocks(self, size: int) -> Iterator[Tensor]:
        """All images in order, `size` at a time: uint8 [size, c, h, w], the last block maybe shorter."""
        return iter(self.pixels.split(size))


def load_resident(folder: Path, workers: int = 2) -> Images:
    """The whole data set as uint8, every shard checked against its digest; Raises UserError as `open_shard` does."""
    manifest = Manifest.read(folder, verify=False)  # each shard's digest is checked as it is read
    pixels = torch.empty(manifest.images, *manifest.shape, dtype=torch.uint8)
    labels = torch.empty(manifest.images, dtype=torch.int64)
    counts = tuple(shard.images for shard in manifest.shards)
    start = 0
    with ThreadPoolExecutor(workers) as pool:
        for index, count in enumerate(counts):
            opened = open_shard(folder, manifest, index)
            pixels[start : start + count] = channels_first(opened.pixels(np.arange(count), pool))
            if opened.labels is not None:
                labels[start : start + count] = torch.from_numpy(opened.labels)
            start += count
    if start != manifest.images:
        raise UserError(
            f"{folder} holds {start} images, the manifest says {manifest.images}: run the shard stage again"
        )
    return Images(pixels, None if manifest.classes is None else labels, manifest.classes, counts)


def captions(folder: Path) -> Iterator[list[str]]:
    """The captions of each shard in turn, one for each image in its order. Raises UserError as `open_shard` does, and for
    data without captions."""
    manifest = Manifest.read(folder, verify=False)
    if not manifest.captions:
        raise UserError(f"{folder} has no captions: set data.captions and run the shard stage again")
    for index in range(len(manifest.shards)):
        yield open_shard(folder, manifest, index).captions


def open_images(folder: Path, memory_bytes: int, workers: int = 2) -> "Images | StreamedImages":
    """The data set in `folder`, to be looked up image by image: in memory if the decoded images fit into `memory_bytes`.

    Otherwise shards are read when they are asked for, and those read last are kept up to `memory_bytes` (at least one).
    Both give the same values, and check every shard against its digest as it is read. Raises UserError as `open_shard` does.
    """
    manifest = Manifest.read(folder, verify=False)
    if manifest.images * manifest.image_bytes <= memory_bytes:
        return load_resident(folder, workers)
    return StreamedImages(folder, manifest, memory_bytes, workers)


class StreamedImages:
    """What `Images` is, for a data set larger than memory; made by `open_images`.

    classes: names by label or None; shape: of one image, [c, h, w]; counts: images in each shard.
    """

    def __init__(self, folder: Path, manifest: Manifest, memory_bytes: int, workers: int = 2):
        self.classes, self.shape = manifest.classes, manifest.shape
        self.counts = tuple(shard.images for shard in manifest.shards)
        self._folder, self._manifest = Path(folder), manifest
        self._memory_bytes, self._workers = memory_bytes, workers
        self._starts = np.concatenate([[0], np.cumsum(self.counts)])
        self._opened: collections.OrderedDict[int, Opened] = collections.OrderedDict()  # the last asked for comes last

    def __len__(self) -> int:
        return int(self._starts[-1])

    @functools.cached_property
    def labels(self) -> Tensor | None:
        """int64 [n] or None. The first look reads every shard."""
        if self.classes is None:
            return None
        return torch.cat([torch.from_numpy(self._shard(index).labels) for index in range(len(self.counts))])

    def take(self, indices: Indices) -> Tensor:
        """The images of these numbers, in any order and with repetitions: uint8 [k, c, h, w]. Raises IndexError."""
        wanted = _checked(indices, len(self)).numpy()
        where = np.searchsorted(self._starts, wanted, side="right") - 1
        pixels = np.empty((len(wanted), *self.shape[1:], self.shape[0]), dtype=np.uint8)
        with ThreadPoolExecutor(self._workers) as pool:
            for index in np.unique(where):
                here = np.flatnonzero(where == index)
                pixels[here] = self._shard(int(index)).pixels(wanted[here] - self._starts[index], pool)
        return channels_first(pixels).contiguous()

    def blocks(self, size: int) -> Iterator[Tensor]:
        """All images in order, `size` at a time: uint8 [size, c, h, w], the last block maybe shorter."""
        for start in range(0, len(self), size):
            yield self.take(range(start, min(start + size, len(self))))

    def _shard(self, index: int) -> Opened:
        if index not in self._opened:
            room = self._memory_bytes - self._manifest.shards[index].bytes
            while self._opened and sum(self._manifest.shards[held].bytes for held in self._opened) > room:
                self._opened.popitem(last=False)
            self._opened[index] = open_shard(self._folder, self._manifest, index)
        self._opened.move_to_end(index)
        return self._opened[index]


def _checked(indices: Indices, count: int) -> Tensor:
    indices = torch.as_tensor(indices, dtype=torch.int64).cpu()
    if len(indices) and not 0 <= int(indices.min()) <= int(indices.max()) < count:
        raise IndexError(
            f"images are numbered 0 .. {count - 1}; asked for {int(indices.min())} .. {int(indices.max())}"
        )
    return indices


def channels_first(pixels: np.ndarray) -> Tensor:
    """uint8 [n, h, w, c] -> [n, c, h, w], the same memory seen otherwise."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)
