"""A number with its standard error."""

import math
from dataclasses import dataclass

RESAMPLES = 200
"""Bootstrap resamples: the relative error of a standard error is then about 1 / sqrt(2 * 200) = 5 %."""


@dataclass(frozen=True)
class Estimate:
    """An estimated value and its standard error, which is at least 0."""

    value: float
    se: float

    def __post_init__(self):
        if self.se < 0:
            raise ValueError(f"a standard error is at least 0, got {self.se}")

    def plus_minus(self, sign: str = "+-") -> str:
        """`2.29+-0.11`: both to the second digit of the standard error, at most 6 decimals."""
        decimals = min(max(1 - math.floor(math.log10(self.se)), 0), 6) if self.se > 0 else 4
        return f"{self.value:.{decimals}f}{sign}{self.se:.{decimals}f}"


def columns(metrics: dict[str, Estimate]) -> dict[str, float]:
    """{NAME: value, NAME_se: standard error} of each, as tables and MLflow have them."""
    parts = {name: {name: each.value, f"{name}_se": each.se} for name, each in metrics.items()}
    return {key: number for part in parts.values() for key, number in part.items()}


class Scored:
    """What has metrics; `fd` is the one that the frontier goes by."""

    metrics: dict[str, Estimate]

    @property
    def fd(self) -> float:
        """The Frechet distance in features."""
        return self.metrics["fd"].value

    @property
    def fd_se(self) -> float:
        """Its standard error."""
        return self.metrics["fd"].se
