"""Who turns captions into what a network is told."""

import abc
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffcore.core import disk
from diffcore.core.errors import UserError
from diffcore.data.embeddings import Shape, Table

BATCH = 64
"""Captions that are encoded together."""

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Encoder(abc.ABC):
    """An encoder of texts; every file of `encoders/` holds one.

    length: tokens that each caption is padded or cut to; None until `of_length` has said it. device: where it computes.
    numbers: float32 or bf16, in which it computes on a GPU.
    """

    length: int | None = None
    device: torch.device = CPU
    numbers: str = "float32"

    @property
    @abc.abstractmethod
    def about(self) -> dict[str, Any]:
        """What makes it this encoder, wherever its files lie: equal for equal files and settings."""

    @property
    def most(self) -> int | None:
        """The most tokens that it takes; None where any number will do."""
        return None

    @property
    def usual(self) -> int | None:
        """How many tokens it is meant for; None where the data decide."""
        return self.most

    @abc.abstractmethod
    def counts(self, captions: Sequence[str]) -> list[int]:
        """Of each caption its tokens, those that begin and end it among them, before anything is cut."""

    @abc.abstractmethod
    def encode(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """What a network is told, float32 or bool on the CPU, by the name of its input: `text` [k, l, d], and as the encoder
        has them `text_mask` bool [k, l], which tokens are there, and `pooled` [k, p]."""

    def nothing(self) -> dict[str, Tensor]:
        """What a network is told where there is no caption, without the first dimension: that of the empty caption."""
        return {name: tensor[0] for name, tensor in self.encode([""]).items()}

    def of_length(self, length: int | None, longest: int) -> "Encoder":
        """The same encoder for captions of `length` tokens, or of as many as it is meant for, or as the `longest` has."""
        if length is not None and self.most is not None and length > self.most:
            raise UserError(
                f"text.length: {length} is more than the {self.most} tokens that the encoder takes; lower it"
            )
        return dataclasses.replace(self, length=length or self.usual or longest)

    @functools.cached_property
    def inputs(self) -> dict[str, Shape]:
        """By name the shape and dtype of what one caption becomes."""
        return {
            name: Shape(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
            for name, tensor in self.nothing().items()
        }

    @property
    def content(self) -> dict[str, Any]:
        """What the manifest of embeddings says of it; `digest`: of `about` and the length. `numbers` is no part of it."""
        about = {**self.about, "length": self.length}
        return {**about, "numbers": self.numbers, "digest": disk.digest(about)}


@dataclass(frozen=True)
class Static(Encoder):
    """An encoder with a vector for each token, whatever stands beside it. The first token of every caption says that it
    begins, so that the empty one has a token too; `pooled` is the mean over all others, zero where there are none."""

    @abc.abstractmethod
    def tokens(self, captions: Sequence[str]) -> list[list[Any]]:
        """Of each caption its tokens, the first of which says that it begins."""

    @abc.abstractmethod
    def vectors(self, tokens: Sequence[Any]) -> Tensor:
        """float32 [n, d], of these tokens."""

    def counts(self, captions: Sequence[str]) -> list[int]:
        return [len(tokens) for tokens in self.tokens(captions)]

    def encode(self, captions: Sequence[str]) -> dict[str, Tensor]:
        rows = [self.vectors(tokens[: self.length]) for tokens in self.tokens(captions)]
        length, width = self.length or max(map(len, rows)), rows[0].shape[1]
        text, mask = torch.zeros(len(rows), length, width), torch.zeros(len(rows), length, dtype=torch.bool)
        for number, row in enumerate(rows):
            text[number, : len(row)] = row
            mask[number, : len(row)] = True
        pooled = torch.stack([row[1:].sum(0) / max(1, len(row) - 1) for row in rows])
        return {"text": text, "text_mask": mask, "pooled": pooled}


Encode = Callable[[Sequence[str]], Mapping[str, Tensor]]
"""Of a few captions what a network is told, by name [k, ...]."""


def in_batches(captions: Sequence[str]) -> Iterator[list[str]]:
    """Of BATCH captions each, the last of those that are left."""
    for start in range(0, len(captions), BATCH):
        yield list(captions[start : start + BATCH])


def encoded(captions: Sequence[str], encode: Encode) -> dict[str, Tensor]:
    """By name [k, ...], of at least one caption; a batch of them at a time."""
    parts = [encode(batch) for batch in in_batches(captions)]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def table_of(captions: Sequence[str], encode: Encode) -> Table:
    """Of rows that have these captions; equal ones are encoded once and share a row."""
    places = {caption: place for place, caption in enumerate(dict.fromkeys(captions))}
    return Table(torch.tensor([places[caption] for caption in captions]), encoded(list(places), encode))
