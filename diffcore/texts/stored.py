"""From shards to the folder of what networks are told by their captions and by copies of their images, never with more than
one shard's in memory."""

import bisect
import contextlib
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffcore.core import disk
from diffcore.core.errors import UserError
from diffcore.core.shapes import IMAGE
from diffcore.data import embeddings, image_condition, read
from diffcore.data.embeddings import Prompts, Table, Unseen
from diffcore.data.ledger import Ledger, Unfinished
from diffcore.data.manifest import HELD_OUT, Manifest
from diffcore.texts.encoder import Encoder, encoded, in_batches, table_of

PROMPTS = "prompts"
"""Where tables of prompts are kept until all are whole, beside those of images."""


@dataclass(frozen=True)
class Survey:
    """What is known of captions before any is encoded. distinct: how many are to be encoded, each shard's by themselves.
    images: of each number of tokens, how many images have a caption so long; none for those that no image has. prompts: how
    many prompts without images are so long."""

    distinct: int
    images: Mapping[int, int]
    prompts: Mapping[int, int] = field(default_factory=dict)

    @property
    def longest(self) -> int:
        """In tokens."""
        return max([*self.images, *self.prompts])

    @property
    def usual(self) -> int:
        """How many tokens at least half of the texts do not exceed."""
        counted = Counter(self.images) + Counter(self.prompts)
        lengths = sorted(counted)
        sums = list(itertools.accumulate(counted[tokens] for tokens in lengths))
        return lengths[bisect.bisect_left(sums, sums[-1] / 2)]

    @property
    def total(self) -> int:
        """Images."""
        return sum(self.images.values())

    def longer(self, length: int) -> int:
        """Images whose caption has more tokens than that."""
        return _longer(self.images, length)

    def longer_prompts(self, length: int) -> int:
        """Prompts with more tokens than that."""
        return _longer(self.prompts, length)


def _longer(counted: Mapping[int, int], length: int) -> int:
    return sum(count for tokens, count in counted.items() if tokens > length)


@dataclass(frozen=True)
class Alone:
    """Prompts without images, and the folder of their embeddings, which appears with that of the images."""

    prompts: Prompts
    folder: Path


@dataclass(frozen=True)
class Stored:
    """What was written: by which encoder, of its length, and of what; None for no texts. digest: that of `told_by`."""

    encoder: Encoder | None
    survey: Survey | None
    digest: str


def write_none(data: Path, folder: Path, alone: Path) -> None:
    """Says in `folder` that the images of `data`, and those held out of it, have no embeddings, in `alone` that prompts have
    none."""
    with disk.folder(folder) as temporary, disk.folder(alone) as beside:
        for shards, target in _folders(data, temporary):
            target.mkdir(exist_ok=True)
            embeddings.write_none(target, Manifest.read(shards, verify=False))
        embeddings.write_none(beside, Prompts(()))


def write(
    data: Path,
    folder: Path,
    encoder: Encoder | None,
    length: int | None,
    precision: str,
    progress: Callable[[int, int], None],
    unfinished: Unfinished | None = None,
    tell: Callable[[str], None] = lambda line: None,
    image: str | None = None,
    alone: Alone | None = None,
) -> Stored:
    """Writes what is told of the images of `data`, and of those held out of it; `folder` appears whole or not at all.

    encoder: of their captions, None for none. length: the most tokens of a caption, None for what `Encoder.of_length` says.
    precision: the dtype of the numbers that are stored, by its name. unfinished: where finished tables are kept until all
    are, so that a killed writer goes on from there; `tell` hears of it. image: what is told of an image by a copy of it, see
    `diffcore.data.image_condition`, None for nothing. alone: prompts without images, in tables that are made as those of
    shards are.
    """
    prompts = alone.prompts if alone else Prompts(())
    survey = encoder and _survey(data, encoder, prompts)
    encoder = encoder and encoder.of_length(length, survey.longest)
    dtype, about = getattr(torch, precision), told_by(encoder, image)
    encoding = encoder and _Encoding(encoder, dtype, progress, survey.distinct)
    with contextlib.ExitStack() as stack:
        signature = _signature(data, encoder, about, precision) | {"prompts": prompts.digest}
        kept = unfinished and stack.enter_context(unfinished.open(signature, [], tell))
        temporary = stack.enter_context(disk.folder(folder))
        telling = _Telling(encoding, image, dtype, about)
        for shards, target in _folders(data, temporary):
            target.mkdir(exist_ok=True)
            here = kept if shards == data else kept and kept.below(HELD_OUT)
            _write(telling, shards, target, here, tell)
        if alone is not None:
            _write_prompts(telling, prompts, stack.enter_context(disk.folder(alone.folder)), kept, tell)
    return Stored(encoder, survey, about["digest"])


def told_by(encoder: Encoder | None, image: str | None) -> dict[str, Any]:
    """What the manifest says of both: of an encoder alone its content; `digest`: what nothing else shares that networks are
    told by."""
    content = {} if encoder is None else encoder.content
    if image is None:
        return content
    return {**content, "image": image, "digest": disk.digest({"text": content.get("digest"), "image": image})}


def _empty(manifest: Manifest, done: int) -> Iterator[Table]:
    """Of each shard after so many a table that says nothing."""
    return (Table(torch.zeros(shard.images, dtype=torch.int64), {}) for shard in manifest.shards[done:])


def _with_images(tables: Iterable[Table], copies: Iterable[Tensor], dtype: torch.dtype) -> Iterator[Table]:
    """The tables with a copy of each image beside its text; a row for each image then, which no other shares."""
    for table, images in zip(tables, copies, strict=True):
        told = table.take(slice(None)) | {IMAGE: images.to(dtype)}
        yield Table(torch.arange(len(images)), told)


def _signature(data: Path, encoder: Encoder | None, about: dict[str, Any], precision: str) -> dict[str, Any]:
    """All that the bytes of the tables depend on but the code and the number of threads."""
    digests = [Manifest.read(shards, verify=False).digest for shards, _ in _folders(data, data)]
    where = {"device": encoder.device.type if encoder else "cpu", "torch": torch.__version__}
    return {"encoder": about, "data": digests, "precision": precision, **where}


@dataclass(frozen=True)
class _Telling:
    """What is told of images: by their captions, by copies of them, or both. about: see `told_by`."""

    encoding: "_Encoding | None"
    image: str | None
    dtype: torch.dtype
    about: dict[str, Any]

    def tables(self, shards: Path, manifest: Manifest, done: int) -> Iterator[Table]:
        """Of each shard after those that are done."""
        if self.encoding is None:
            tables = _empty(manifest, done)
        else:
            captions = read.captions(shards)
            self.encoding.skip(itertools.islice(captions, done))
            tables = map(self.encoding.table, captions)
        if self.image is None:
            return tables
        return _with_images(tables, image_condition.of_shards(self.image, shards, manifest, done), self.dtype)

    def nothing(self, manifest: Manifest) -> dict[str, Tensor]:
        inputs = self.encoding.nothing() if self.encoding else {}
        if self.image is not None:
            copies = image_condition.spoiled(self.image, torch.zeros(1, *manifest.shape))
            inputs |= {IMAGE: copies[0].to(self.dtype)}
        return inputs

    def unseen(self, manifest: Manifest) -> Unseen | None:
        if self.encoding is None or not manifest.unseen:
            return None
        return Unseen(manifest.unseen, self.encoding.inputs(manifest.unseen))


def _write(telling: _Telling, shards: Path, target: Path, kept: Ledger | None, tell: Callable[[str], None]) -> None:
    manifest, done = Manifest.read(shards, verify=False), embeddings.finished(kept)
    if done:
        tell(f"goes on after {len(done)} of {len(manifest.shards)} tables")
    tables = telling.tables(shards, manifest, len(done))
    nothing, unseen = telling.nothing(manifest), telling.unseen(manifest)
    embeddings.write(target, telling.about, manifest, tables, nothing, unseen, kept, done)


def _write_prompts(
    telling: _Telling, prompts: Prompts, folder: Path, kept: Ledger | None, tell: Callable[[str], None]
) -> None:
    if not prompts.texts:
        embeddings.write_none(folder, prompts)
        return
    kept = kept and kept.below(PROMPTS)
    done, encoding, captions = embeddings.finished(kept), telling.encoding, prompts.captions()
    if done:
        tell(f"goes on after {len(done)} of {len(prompts.parts)} tables of prompts")
    encoding.skip(itertools.islice(captions, len(done)))
    tables = map(encoding.table, captions)
    embeddings.write(folder, telling.about, prompts, tables, encoding.nothing(), None, kept, done)


def _folders(data: Path, folder: Path) -> Iterator[tuple[Path, Path]]:
    """Each folder of shards, and the one of its embeddings."""
    yield data, folder
    if (data / HELD_OUT).exists():
        yield data / HELD_OUT, folder / HELD_OUT


def _survey(data: Path, encoder: Encoder, prompts: Prompts) -> Survey:
    distinct, images = 0, Counter(dict.fromkeys(encoder.counts([""]), 0))
    for shards, _ in _folders(data, data):
        manifest = Manifest.read(shards, verify=False)
        if not manifest.captions:
            raise UserError(
                "text.encoder: the images have no captions; say in data.captions where they come from, or encoder: null"
            )
        for captions in read.captions(shards):
            times = Counter(captions)
            distinct += len(times)
            for tokens, count in zip(_counts(encoder, list(times)), times.values()):
                images[tokens] += count
        distinct += len(manifest.unseen)
        images.update(dict.fromkeys(_counts(encoder, manifest.unseen), 0))
    distinct += sum(len(set(captions)) for captions in prompts.captions())
    return Survey(distinct, images, Counter(_counts(encoder, prompts.texts)))


def _counts(encoder: Encoder, captions: Sequence[str]) -> list[int]:
    return [tokens for batch in in_batches(captions) for tokens in encoder.counts(batch)]


@dataclass
class _Encoding:
    """Counts what it has encoded, of `total`."""

    encoder: Encoder
    dtype: torch.dtype
    progress: Callable[[int, int], None]
    total: int
    done: int = field(default=0, init=False)

    def table(self, captions: Sequence[str]) -> Table:
        """Of a shard whose images have these captions; equal ones share a row."""
        return table_of(captions, self._batch)

    def skip(self, tables: Iterable[Sequence[str]]) -> None:
        """Counts the captions of tables that are there already."""
        self.done += sum(len(set(captions)) for captions in tables)

    def inputs(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """By name [k, ...], of at least one caption."""
        return encoded(captions, self._batch)

    def _batch(self, captions: Sequence[str]) -> dict[str, Tensor]:
        inputs = self._stored(self.encoder.encode(captions))
        self.done += len(captions)
        self.progress(self.done, self.total)
        return inputs

    def nothing(self) -> dict[str, Tensor]:
        return self._stored(self.encoder.nothing())

    def _stored(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {
            name: self._cast(name, tensor) if tensor.is_floating_point() else tensor for name, tensor in inputs.items()
        }

    def _cast(self, name: str, tensor: Tensor) -> Tensor:
        cast = tensor.to(self.dtype)
        if not cast.isfinite().all():
            word, most = str(self.dtype).removeprefix("torch."), float(tensor.abs().max())
            raise UserError(f"text.precision: {word} cannot hold {most:g}, the largest number of {name}; take float32")
        return cast
