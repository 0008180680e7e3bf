"""From shards with captions to the folder of their embeddings, never with more than one shard's in memory."""

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
from diffcore.data import embeddings, read
from diffcore.data.embeddings import Table, Unseen
from diffcore.data.ledger import Ledger, Unfinished
from diffcore.data.manifest import HELD_OUT, Manifest
from diffcore.texts.encoder import Encoder

BATCH = 64
"""Captions that are encoded together."""


@dataclass(frozen=True)
class Survey:
    """What is known of captions before any is encoded. distinct: how many are to be encoded, each shard's by themselves.
    images: of each number of tokens, how many images have a caption so long; none for those that no image has."""

    distinct: int
    images: Mapping[int, int]

    @property
    def longest(self) -> int:
        """In tokens."""
        return max(self.images)

    @property
    def total(self) -> int:
        """Images."""
        return sum(self.images.values())

    def longer(self, length: int) -> int:
        """Images whose caption has more tokens than that."""
        return sum(images for tokens, images in self.images.items() if tokens > length)


@dataclass(frozen=True)
class Stored:
    """What was written: by which encoder, of its length, and of what."""

    encoder: Encoder
    survey: Survey


def write_none(data: Path, folder: Path) -> None:
    """Says in the empty `folder` that the images of `data`, and those held out of it, have no embeddings."""
    for shards, target in _folders(data, folder):
        target.mkdir(exist_ok=True)
        embeddings.write_none(target, Manifest.read(shards, verify=False))


def write(
    data: Path,
    folder: Path,
    encoder: Encoder,
    length: int | None,
    precision: str,
    progress: Callable[[int, int], None],
    unfinished: Unfinished | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> Stored:
    """Encodes the captions of the images of `data`, and of those held out of it; `folder` appears whole or not at all.

    length: the most tokens of a caption, None for what `Encoder.of_length` says. precision: the dtype of the numbers that are
    stored, by its name. unfinished: where finished tables are kept until all are, so that a killed writer goes on from there;
    `tell` hears of it.
    """
    survey = _survey(data, encoder)
    encoder = encoder.of_length(length, survey.longest)
    encoding = _Encoding(encoder, getattr(torch, precision), progress, survey.distinct)
    with contextlib.ExitStack() as stack:
        kept = unfinished and stack.enter_context(unfinished.open(_signature(data, encoder, precision), [], tell))
        temporary = stack.enter_context(disk.folder(folder))
        for shards, target in _folders(data, temporary):
            target.mkdir(exist_ok=True)
            _write(encoding, shards, target, kept if shards == data else kept and kept.below(HELD_OUT), tell)
    return Stored(encoder, survey)


def _signature(data: Path, encoder: Encoder, precision: str) -> dict[str, Any]:
    """All that the bytes of the tables depend on but the code and the number of threads."""
    digests = [Manifest.read(shards, verify=False).digest for shards, _ in _folders(data, data)]
    where = {"device": encoder.device.type, "torch": torch.__version__}
    return {"encoder": encoder.content, "data": digests, "precision": precision, **where}


def _write(encoding: "_Encoding", shards: Path, target: Path, kept: Ledger | None, tell: Callable[[str], None]) -> None:
    manifest, done = Manifest.read(shards, verify=False), embeddings.finished(kept)
    captions = read.captions(shards)
    if done:
        tell(f"goes on after {len(done)} of {len(manifest.shards)} tables")
        encoding.skip(itertools.islice(captions, len(done)))
    tables = map(encoding.table, captions)
    unseen = Unseen(manifest.unseen, encoding.inputs(manifest.unseen)) if manifest.unseen else None
    embeddings.write(target, encoding.encoder.content, manifest, tables, encoding.nothing(), unseen, kept, done)


def _folders(data: Path, folder: Path) -> Iterator[tuple[Path, Path]]:
    """Each folder of shards, and the one of its embeddings."""
    yield data, folder
    if (data / HELD_OUT).exists():
        yield data / HELD_OUT, folder / HELD_OUT


def _survey(data: Path, encoder: Encoder) -> Survey:
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
    return Survey(distinct, images)


def _counts(encoder: Encoder, captions: Sequence[str]) -> list[int]:
    return [tokens for batch in _batches(captions) for tokens in encoder.counts(batch)]


def _batches(captions: Sequence[str]) -> Iterator[list[str]]:
    for start in range(0, len(captions), BATCH):
        yield list(captions[start : start + BATCH])


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
        places = {caption: place for place, caption in enumerate(dict.fromkeys(captions))}
        rows = torch.tensor([places[caption] for caption in captions])
        return Table(rows, self.inputs(list(places)))

    def skip(self, tables: Iterable[Sequence[str]]) -> None:
        """Counts the captions of tables that are there already."""
        self.done += sum(len(set(captions)) for captions in tables)

    def inputs(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """By name [k, ...], of at least one caption."""
        parts = []
        for batch in _batches(captions):
            parts.append(self._stored(self.encoder.encode(batch)))
            self.done += len(batch)
            self.progress(self.done, self.total)
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

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
