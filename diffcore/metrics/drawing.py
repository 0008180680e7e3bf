"""In which precision samples are drawn: bfloat16 where it moves no metric by more than its error."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from diffcore.core.errors import UserError
from diffcore.metrics.estimate import Estimate

CHECKED = 1024
"""Samples that are drawn in both precisions."""

Estimates = Mapping[str, Estimate]


@dataclass(frozen=True)
class Drawing:
    """How samples are drawn. check: what was seen where bfloat16 was held against float32, empty where it was not."""

    precision: Literal["float32", "bf16"] = "float32"
    check: str = ""


def held_against(measure: Callable[[bool], Estimates], count: int, of: int) -> Drawing:
    """Bfloat16 if it moves no metric by more than the standard error that it has over `of` samples, else float32.

    measure: the metrics of `count` samples, `measure(True)` of those in bfloat16, from the same noise. An error over `of`
    samples is taken to be sqrt(count / of) times that over `count`.
    """
    exact = measure(False)
    try:
        rounded = measure(True)
    except UserError as error:  # samples that are not finite
        return Drawing("float32", f"bf16 was refused: {error}")
    shifts = {name: _shift(each, rounded[name], math.sqrt(count / of)) for name, each in exact.items()}
    name, shift = max(shifts.items(), key=lambda item: item[1])
    return Drawing(
        "bf16" if shift <= 1 else "float32",
        f"bf16 moves {name} by {shift:.2g} standard errors, the others by less ({count} samples from the same noise)",
    )


def _shift(exact: Estimate, rounded: Estimate, share: float) -> float:
    """In standard errors; infinite where there is no error and it moved."""
    moved, error = abs(rounded.value - exact.value), share * exact.se
    if not moved:
        return 0.0
    return moved / error if error else math.inf
