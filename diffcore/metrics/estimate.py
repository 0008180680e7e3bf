"""A number with its standard error."""

import math
from dataclasses import dataclass

RESAMPLES = 200
"""Resamples of the samples: what they say of a standard error is then right to about 1 / sqrt(2 * 200) = 5 %."""


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


@dataclass(frozen=True)
class Variance:
    """The variance of a statistic of independent samples, by its noise of first and of second order.

    A statistic is a sum over samples, of variance V1, and one over pairs, of variance V2, for which no sample alone is to
    blame (Hoeffding 1948, doi 10.1214/aoms/1177730196). slope: the variance that the slope in the samples' weights says,
    which is V1 + 2 V2 in the mean: the slope at the drawn samples has the pairs' noise in it. second: V2. A bootstrap adds
    what a resample bends, and says V1 + 3 V2. Both at least 0.
    """

    slope: float
    second: float

    @property
    def pairs(self) -> float:
        """V2, which is at most half of the slope's; what is more is noise of higher orders."""
        return min(self.second, self.slope / 2)

    @property
    def total(self) -> float:
        """V1 + V2 as slope^2 / (slope + V2): exact to first order in V2 / V1, and too large by a third where V1 = 0.

        The difference slope - V2 is right in the mean there too, but its errors go along with those of the value, and what
        is low claims to be sure: of 300 perfect samples of 16 features 91 % are covered by it and 93 % by this.
        """
        return self.slope**2 / (self.slope + self.pairs) if self.slope else 0.0

    @property
    def se(self) -> float:
        return math.sqrt(self.total)

    def with_pairs(self, times: float) -> float:
        """The standard error of a statistic whose noise of pairs has so many times the variance, at least 1."""
        return math.sqrt(self.total + (times - 1) * self.pairs)


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
