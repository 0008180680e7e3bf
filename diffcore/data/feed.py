"""Training batches. Batch `step` is a pure function of (data, seed, step): to resume needs no state, only the step.

Both feeds give the same batches bit for bit, so what is trained does not depend on how much memory a machine has. The
order of an epoch: the shards in an order drawn for (seed, epoch), in groups of GROUP; the images of each group in an order
drawn for (seed, epoch, group). Up to GROUP shards that is a plain permutation of all images; beyond, a machine needs to
hold only the shards of a few groups. Epochs follow each other without a seam, so that a batch may lie in two of them.
"""

import functools
import itertools
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from diffcore.core.rng import generator
from diffcore.core.shapes import CLASS, IMAGE, Sample
from diffcore.core.transfer import to_device
from diffcore.data.embeddings import Embeddings, Table
from diffcore.data.manifest import Manifest
from diffcore.data.opened import Opened, open_shard
from diffcore.data.read import Images, channels_first, load_resident

GROUP = 8  # shards that are mixed with each other; part of the order, so no setting of a machine

Inputs = dict[str, Tensor]
"""What is known of a batch, by the name of a network's input: class_labels int64 [b], and embeddings of its captions."""

Batch = tuple[Tensor, Inputs]


def to_float(pixels: Tensor) -> Sample:
    """uint8 0 .. 255 -> float32 -1 .. 1, black to white."""
    return pixels.float() / 127.5 - 1


def to_uint8(x: Sample) -> Tensor:
    """The inverse of `to_float`, to the nearest level; what lies beyond -1 .. 1 shows as black or white."""
    return ((x.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


@runtime_checkable
class Feed(Protocol):
    """Where training batches come from.

    images: how many there are. shape: [c, h, w], or that of whatever else the samples are. classes: names by label, or None
    without labels.
    """

    images: int
    shape: tuple[int, ...]
    classes: tuple[str, ...] | None

    def batch(self, step: int, rows: slice = slice(None)) -> Batch:
        """The global batch of training step `step`, or those `rows` of it that one of several processes wants.

        x0: float32 [b, c, h, w] in [-1, 1]; and what is known of each: empty where nothing is.
        """
        ...


def feed(
    folder: Path,
    batch_size: int,
    seed: int,
    flip: bool,
    memory_bytes: int,
    device: torch.device | str = "cpu",
    embeddings: Embeddings | None = None,
) -> "ResidentFeed | StreamFeed":
    """The feed for the shards in `folder`: resident if the decoded images and their embeddings fit into `memory_bytes`, else
    streamed. embeddings: of their captions, None for none.

    Raises UserError if the shards are not what their manifest says.
    """
    manifest = Manifest.read(folder, verify=False)  # each shard's digest is checked as it is read
    if manifest.images * manifest.image_bytes + (embeddings.bytes if embeddings else 0) <= memory_bytes:
        table = embeddings and embeddings.whole()
        return ResidentFeed(load_resident(folder), batch_size, seed, flip, device, table)
    return StreamFeed(folder, manifest, batch_size, seed, flip, device, embeddings=embeddings)


@dataclass(frozen=True)
class Place:
    """Where images lie: `rows[i]` of shard `shards[i]`; `group` are all shards they were drawn from."""

    group: tuple[int, ...]
    shards: np.ndarray
    rows: np.ndarray


class Order:
    """The endless sequence of images that (counts, seed) stand for, readable at any position.

    counts: images in each shard.
    """

    def __init__(self, counts: Sequence[int], seed: int):
        self.counts = tuple(counts)
        self.seed = seed
        self.images = sum(self.counts)
        if self.images < 1:
            raise ValueError("there are no images to train on")
        self._groups = functools.lru_cache(4)(self._draw_groups)
        self._images = functools.lru_cache(4)(self._draw_images)

    def at(self, start: int, stop: int) -> list[Place]:
        """The images at positions start .. stop - 1, as a few runs within one group each. O(one group)."""
        places = []
        while start < stop:
            epoch, offset = divmod(start, self.images)
            starts, _ = self._groups(epoch)
            number = int(np.searchsorted(starts, offset, side="right")) - 1
            first = offset - int(starts[number])
            length = min(stop - start, int(starts[number + 1]) - offset)
            places.append(self._place(epoch, number, slice(first, first + length)))
            start += length
        return places

    def after(self, position: int) -> tuple[int, ...]:
        """The shards of the group that follows the one at `position`: what to read ahead."""
        epoch, offset = divmod(position, self.images)
        starts, groups = self._groups(epoch)
        number = int(np.searchsorted(starts, offset, side="right"))
        return groups[number] if number < len(groups) else self._groups(epoch + 1)[1][0]

    def _draw_groups(self, epoch: int) -> tuple[np.ndarray, list[tuple[int, ...]]]:
        shards = torch.randperm(len(self.counts), generator=generator(self.seed, "shards", epoch)).tolist()
        groups = [tuple(shards[i : i + GROUP]) for i in range(0, len(shards), GROUP)]
        sizes = [sum(self.counts[shard] for shard in group) for group in groups]
        return np.array([0, *itertools.accumulate(sizes)]), groups

    def _draw_images(self, epoch: int, number: int) -> np.ndarray:
        starts, _ = self._groups(epoch)
        size = int(starts[number + 1] - starts[number])
        return torch.randperm(size, generator=generator(self.seed, "images", epoch, number)).numpy()

    def _place(self, epoch: int, number: int, span: slice) -> Place:
        group = self._groups(epoch)[1][number]
        index = self._images(epoch, number)[span]
        ends = np.cumsum([self.counts[shard] for shard in group])
        which = np.searchsorted(ends, index, side="right")
        rows = index - np.concatenate([[0], ends])[which]
        return Place(group, np.array(group)[which], rows)


class ResidentFeed:
    """A Feed whose images all lie on `device`, as uint8, and so do their embeddings."""

    def __init__(
        self,
        images: Images,
        batch_size: int,
        seed: int,
        flip: bool,
        device: torch.device | str = "cpu",
        embeddings: Table | None = None,
    ):
        self.images = len(images)
        self.shape = tuple(images.pixels.shape[1:])
        self.classes = images.classes
        self._pixels = images.pixels.to(device)
        self._labels = None if images.labels is None else images.labels.to(device)
        self._embeddings = embeddings and embeddings.to(device)
        counts = images.counts or (len(images),)
        self._starts = np.concatenate([[0], np.cumsum(counts)])
        self._order = Order(counts, seed)
        self._batch_size = _positive(batch_size)
        self._flip = flip

    def batch(self, step: int, rows: slice = slice(None)) -> Batch:
        """See Feed."""
        places = self._order.at(step * self._batch_size, (step + 1) * self._batch_size)
        index = np.concatenate([self._starts[place.shards] + place.rows for place in places])[rows]
        where = to_device(torch.from_numpy(index), self._pixels.device)
        x0 = to_float(self._pixels[where])
        inputs = self._embeddings.take(where) if self._embeddings else {}
        if self._flip:
            flips = _flips(self._order.seed, step, self._batch_size)[rows]
            x0, inputs = _mirrored(x0, flips), _turned(inputs, flips)
        return x0, inputs | _classes(None if self._labels is None else self._labels[where])


class StreamFeed:
    """A Feed for data larger than memory: holds where the images of the group in use lie, and looks at the next ahead.

    One thread prepares the batch after the one asked for and sends it to the device, one opens shards, `workers` decode.
    Every shard is checked against its digest when it is opened, and each image against a checksum when it is read. Errors
    come out of `batch`. Close it, or use it in a `with`, to end its threads.
    """

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        batch_size: int,
        seed: int,
        flip: bool,
        device: torch.device | str = "cpu",
        workers: int = 2,
        embeddings: Embeddings | None = None,
    ):
        self.images = manifest.images
        self.shape = manifest.shape
        self.classes = manifest.classes
        self._folder, self._manifest, self._device = Path(folder), manifest, device
        self._embeddings = embeddings  # touched by the preparing thread alone
        self._order = Order([shard.images for shard in manifest.shards], seed)
        self._batch_size = _positive(batch_size)
        self._flip = flip
        self._opened: dict[int, Future[Opened]] = {}  # touched by the preparing thread alone
        self._ahead: tuple[object, Future] | None = None
        self._preparing = ThreadPoolExecutor(1, "prepare")
        self._reading = ThreadPoolExecutor(1, "read")
        self._decoding = ThreadPoolExecutor(workers, "decode")

    def __enter__(self) -> "StreamFeed":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the threads; what they have begun is finished first."""
        for pool in (self._preparing, self._reading, self._decoding):
            pool.shutdown(cancel_futures=True)

    def batch(self, step: int, rows: slice = slice(None)) -> Batch:
        """See Feed."""
        key = (step, rows.start, rows.stop, rows.step)
        if self._ahead is not None and self._ahead[0] == key:
            future = self._ahead[1]
        else:
            future = self._preparing.submit(self._prepare, step, rows)
        self._ahead = ((step + 1, *key[1:]), self._preparing.submit(self._prepare, step + 1, rows))
        pixels, inputs = future.result()
        x0 = to_float(pixels)
        if self._flip:
            flips = _flips(self._order.seed, step, self._batch_size)[rows]
            x0, inputs = _mirrored(x0, flips), _turned(inputs, flips)
        return x0, inputs

    def _prepare(self, step: int, rows: slice) -> Batch:
        # uint8 [b, c, h, w] and what is known of them, on the device or on their way
        start, stop = step * self._batch_size, (step + 1) * self._batch_size
        places = self._order.at(start, stop)
        self._hold([shard for place in places for shard in place.group], self._order.after(stop - 1))
        shards = np.concatenate([place.shards for place in places])[rows]
        index = np.concatenate([place.rows for place in places])[rows]
        pixels = np.empty((len(index), *self.shape[1:], self.shape[0]), dtype=np.uint8)
        labels = np.empty(len(index), dtype=np.int64)
        for shard in np.unique(shards):
            here = np.flatnonzero(shards == shard)
            opened = self._opened[int(shard)].result()
            pixels[here] = opened.pixels(index[here], self._decoding)
            if opened.labels is not None:
                labels[here] = opened.labels[index[here]]
        whole = to_device(channels_first(pixels).contiguous(), self._device)
        inputs = self._embeddings.at(shards, index) if self._embeddings else {}
        inputs |= _classes(None if self.classes is None else torch.from_numpy(labels))
        return whole, {name: to_device(part, self._device) for name, part in inputs.items()}

    def _hold(self, now: Sequence[int], soon: Sequence[int]) -> None:
        wanted = dict.fromkeys((*now, *soon))  # in the order in which they will be needed
        for shard in set(self._opened) - set(wanted):
            self._opened.pop(shard).cancel()
        for shard in wanted:
            if shard not in self._opened:
                self._opened[shard] = self._reading.submit(open_shard, self._folder, self._manifest, shard)


def _classes(labels: Tensor | None) -> Inputs:
    return {} if labels is None else {CLASS: labels}


def _positive(batch_size: int) -> int:
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}")
    return batch_size


def _flips(seed: int, step: int, batch_size: int) -> Tensor:
    return torch.rand(batch_size, generator=generator(seed, "flip", step)) < 0.5


def _turned(inputs: Inputs, flips: Tensor) -> Inputs:
    """The copy of an image is mirrored with it."""
    return inputs | {name: _mirrored(part, flips) for name, part in inputs.items() if name == IMAGE}


def _mirrored(x0: Sample, flips: Tensor) -> Sample:
    return torch.where(to_device(flips, x0.device).reshape(-1, 1, 1, 1), x0.flip(-1), x0)
