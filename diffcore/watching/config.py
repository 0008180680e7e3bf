"""What params.yaml says of a watched training."""

from dataclasses import dataclass
from typing import Literal

FEWEST = 10
"""Samples of which a covariance says anything at all."""


@dataclass(frozen=True)
class Watch:
    """every: updates from one look to the next; the last update is looked at too. images: samples of each look. keep: which
    averaged weights are the result, those of the last update or of the best look. patience: how many looks in a row may be
    worse than the best by more than their error before the training ends, null for any number. steps: of the sampler, for a
    network that has no steps of its own; null for 16 along the flow, and for 1 of one that jumps to images.
    """

    every: int
    images: int
    keep: Literal["last", "best"] = "last"
    patience: int | None = None
    steps: int | None = None

    def __post_init__(self):
        for name in ("every", "patience", "steps"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.images < FEWEST:
            raise ValueError(f"images must be at least {FEWEST}, got {self.images}")
