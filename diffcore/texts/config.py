"""The section `text` of params.yaml: who encodes the captions, and what of it is stored."""

from dataclasses import dataclass
from typing import Literal

from diffcore.texts import encoders


@dataclass(frozen=True)
class Config:
    """The section `text` of params.yaml.

    encoder: a file of `encoders/` with its place, None for no texts. length: the most tokens of a caption; None for as many
    as a model takes, or as the longest caption has. dimension: of a word's vector, by the encoder `words`. precision: in
    which embeddings are stored.
    """

    encoder: str | None = None
    length: int | None = None
    dimension: int = 64
    precision: Literal["float32", "float16"] = "float32"

    def __post_init__(self):
        if self.encoder is not None:
            encoders.parse(self.encoder)
        for name in ("length", "dimension"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
