"""Two samplings from the same noises, held against each other: what each is worth, and the paired difference with its error.

Samples of one noise resemble each other, so the errors of two distances are correlated, and their difference is known better
than either. Its error is that of one statistic of the noises: how it moves with their weights is the difference of how both
distances do. It covers the drawing of the noises, not the training.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from diffcore.metrics import frechet, mmd
from diffcore.metrics.estimate import Estimate
from diffcore.metrics.measures.rmse_teacher import rmse
from diffcore.metrics.metric import Subject
from diffcore.metrics.reference import Reference, Seen

ENOUGH = 2.0
"""Standard errors from which a difference counts."""


@dataclass(frozen=True)
class Paired:
    """A distance from the real images, of two samplings of the same noises; lower is better.

    difference: second - first, its standard error over the common noises.
    """

    first: Estimate
    second: Estimate
    difference: Estimate

    @classmethod
    def of(cls, first: Estimate, second: Estimate, se: float) -> "Paired":
        """se: the standard error of the difference."""
        return cls(first, second, Estimate(second.value - first.value, se))

    @property
    def errors(self) -> float:
        """The difference in its standard errors, signed: below 0 where the second is better; 0 where nothing differs."""
        value, se = self.difference.value, self.difference.se
        if value == 0:
            return 0.0
        return value / se if se else math.copysign(math.inf, value)

    @property
    def better(self) -> int | None:
        """0 for the first, 1 for the second, None where the difference is no more than chance could make."""
        if abs(self.errors) < ENOUGH:
            return None
        return int(self.errors < 0)

    def amount(self) -> str:
        """`0.31 +- 0.05 (6 errors)`, without a sign."""
        size = Estimate(abs(self.difference.value), self.difference.se)
        count = abs(self.errors)
        return f"{size.plus_minus(' +- ')} ({f'{count:.2g}' if count < 10 else f'{count:.0f}'} errors)"


def fd(first: Tensor, second: Tensor, real: frechet.Moments, repeats: Tensor) -> Paired:
    """The Frechet distances of features [n, d] of two samplings, row i of both from noise i, from real images.

    repeats: [r, n], the resamples that both are taken by.
    """
    values = (frechet.frechet(frechet.Moments.of(each), real) for each in (first, second))
    sways = [frechet.sway(each, real, repeats) for each in (first, second)]
    return Paired.of(*(Estimate(value, each.se) for value, each in zip(values, sways)), (sways[1] - sways[0]).se)


def kid(first: Tensor, second: Tensor, real: Tensor) -> Paired:
    """The kernel distances of features [n, d] of two samplings, row i of both from noise i, from real ones [m, d]."""
    pairs = mmd.mean_of_pairs(real)
    (one, slopes), (other, others) = (mmd.scored(each, real, pairs) for each in (first, second))
    both = Estimate(one, mmd.standard_error(slopes)), Estimate(other, mmd.standard_error(others))
    return Paired.of(*both, mmd.standard_error(others - slopes))


DISTANCES: dict[str, Callable[[Seen, Seen, Reference, Tensor], Paired]] = {
    "fd": lambda a, b, real, repeats: fd(a.features, b.features, real.whole.features, repeats),
    "kid": lambda a, b, real, repeats: kid(a.features, b.features, real.rows),
}
"""By name; the verdict goes by the first."""


@dataclass(frozen=True)
class Comparison:
    """names: of both samplings. rmse: between the two, over the same noises, in units of [-1, 1]."""

    names: tuple[str, str]
    distances: dict[str, Paired]
    rmse: Estimate

    def verdict(self) -> str:
        """Who is better by the first distance, and by how much; another distance is named where it decides otherwise."""
        (name, main), *others = self.distances.items()
        if self.rmse.value == 0:
            return f"no difference: {self.names[0]} and {self.names[1]} make the same images"
        if main.better is None:
            sentence = f"no difference beyond error: {name} differs by {main.amount()}"
        else:
            sentence = f"{self.names[main.better]} is better: {name} lower by {main.amount()}"
        dissent = [
            f"{other} is lower for {self.names[each.better]} by {each.amount()}"
            for other, each in others
            if each.better not in (None, main.better)
        ]
        return "; but ".join([sentence, *dissent])

    def to_json(self) -> dict[str, Any]:
        """{names, distances {name: {first, second, difference, errors}}, rmse, verdict}; errors null where infinite."""
        distances = {
            name: {key: vars(getattr(each, key)) for key in ("first", "second", "difference")}
            | {"errors": each.errors if math.isfinite(each.errors) else None}
            for name, each in self.distances.items()
        }
        return {
            "names": list(self.names),
            "distances": distances,
            "rmse": vars(self.rmse),
            "verdict": self.verdict(),
        }


def compare(names: tuple[str, str], first: Subject, second: Subject) -> Comparison:
    """Two subjects whose samples i are of the same noise; a ValueError unless they have one reference and one seed."""
    if first.reference is not second.reference or first.seed != second.seed:
        raise ValueError("samplings are compared by one reference and one seed of the bootstrap")
    distances = {
        name: each(first.seen, second.seen, first.reference, first.repeats) for name, each in DISTANCES.items()
    }
    return Comparison(names, distances, rmse(first.samples, second.samples))
