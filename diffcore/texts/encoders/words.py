"""A vector for each word, drawn from its letters: no table, no file. For small vocabularies and tests."""

import functools
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffcore.core.rng import generator
from diffcore.texts.encoder import Static

PLACE = None
WORD = re.compile(r"\w+")
BEGINNING = ""
"""The word that every caption begins with, which none has."""

KEPT = 2**16
"""Vectors that are kept in memory."""


@dataclass(frozen=True)
class Words(Static):
    """dimension: of a word's vector, whose numbers are standard normal. Words are lower case, and end at white space and
    punctuation, which is dropped."""

    dimension: int = 64

    @property
    def about(self) -> dict[str, Any]:
        return {"name": "words", "dimension": self.dimension}

    def tokens(self, captions: Sequence[str]) -> list[list[Any]]:
        return [[BEGINNING, *WORD.findall(unicodedata.normalize("NFC", each).lower())] for each in captions]

    def vectors(self, tokens: Sequence[Any]) -> Tensor:
        return torch.stack([_vector(word, self.dimension) for word in tokens])


@functools.lru_cache(KEPT)
def _vector(word: str, dimension: int) -> Tensor:
    return torch.randn(dimension, generator=generator("word", word, dimension))


def encoder_of(place: str, dimension: int) -> Words:
    return Words(dimension=dimension)
