"""Whether the stated intervals hold: how often `value +- 1.96 se` covers what the number is in the mean.

python bench/coverage.py [N] [DIMENSION] [ROW ...]; N samples of which features, 1000 and 64 if not said, against 1.8 N real
rows. ROW: a metric, `choice` (the best of several tries) or `difference` (of two samplings); all if none is named.

Samples and real rows are Gaussian with a falling spectrum. The real rows are drawn once, as in a project, so the target is
the mean over samples at this N: by brute force over these sets and MEAN further ones. Two samplings: one that differs from
the data by a moved mean and a larger scale (a student), and one whose samples are new real rows (a perfect one).
"""

import functools
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diffcore.metrics import comparison
from diffcore.metrics.bootstrap import resamples
from diffcore.metrics.comparison import Paired
from diffcore.metrics.crossfit import with_crossfit
from diffcore.metrics.estimate import Estimate
from diffcore.metrics.measures import METRICS
from diffcore.metrics.metric import Subject
from diffcore.metrics.mmd import sums_of_groups
from diffcore.metrics.point import Point, with_best
from diffcore.metrics.reference import Part, Reference, Seen

SETS = 200
"""Sets of samples whose intervals are asked for the target."""

MEAN = 200
"""Further sets, of whose values the target is the mean too: it is known to a twentieth of an error."""

RESAMPLES = 50
"""Of a set: by them is the noise of second order alone, which they say to a fifth."""

TRIED = 20
"""Of each of several tries."""

FEW = 2
"""Resamples of those, whose errors nobody reads."""

Q95 = 1.96

STUDENT, PERFECT = (1.1, 0.15), (1.0, 0.0)
"""Scale and mean of a sampling, in standard deviations of the real rows."""

PAIR = (1.1, 0.15), (1.08, 0.1)
"""Of two samplings of the same noises."""

TRIES, SHARED = 5, 0.8
"""Samplings of which the best is chosen, and which share of the variance of their noise they have in common."""

MEASURES = ("fd", "kid", "swd", "fd_infinity", "improved_precision", "recall", "density", "coverage", "memorised")

CHOICE, DIFFERENCE = "choice", "difference"

ROWS = (*MEASURES, CHOICE, DIFFERENCE)


@dataclass(frozen=True)
class World:
    """How many samples [n, dimension] there are against how many real rows."""

    n: int
    dimension: int

    @property
    def real_count(self) -> int:
        return round(1.8 * self.n)

    @functools.cached_property
    def spectrum(self) -> Tensor:
        return torch.logspace(0, -1, self.dimension).double()

    @functools.cached_property
    def reference(self) -> Reference:
        """The real rows as the metrics see them."""
        rows = noise(-1, self.real_count, self.dimension) * self.spectrum
        seen = Seen(rows, rows)
        kernels = sums_of_groups(rows, torch.zeros(len(rows), dtype=torch.int64), 1)
        return Reference((Part.of(seen),), rows, torch.tensor([len(rows)]), kernels, (1, 1, self.dimension), "", "")

    def samples(self, seed: int, how: tuple[float, float]) -> Tensor:
        scale, mean = how
        return (scale * noise(seed, self.n, self.dimension) + mean) * self.spectrum


@dataclass(frozen=True)
class Drawn(Subject):
    """A set of samples that are features already. most: resamples of its bootstrap."""

    most: int = RESAMPLES

    def __post_init__(self):
        pass  # no network has seen them

    @functools.cached_property
    def seen(self) -> Seen:
        return Seen(self.samples, self.samples)

    @functools.cached_property
    def repeats(self) -> Tensor:
        return resamples(len(self.samples), self.seed)[: self.most]


@dataclass(frozen=True)
class Coverage:
    """How often an interval covered its target, how large the stated error is over the true one, and the set's count."""

    name: str
    covered: float
    ratio: float
    sets: int

    @property
    def error(self) -> float:
        """The binomial standard error of `covered` where that is 0.95."""
        return math.sqrt(0.95 * 0.05 / self.sets)

    def __str__(self) -> str:
        return f"{self.name:<34} {100 * self.covered:5.1f} +- {100 * self.error:.1f} %   stated error / true {self.ratio:.2f}"


def noise(seed: int, count: int, dimension: int) -> Tensor:
    rng = torch.Generator().manual_seed(seed + 10**6)
    return torch.randn(count, dimension, generator=rng, dtype=torch.float64)


def covering(name: str, outcomes: list[tuple[Estimate, float]]) -> Coverage:
    """outcomes: of each set an estimate and its target."""
    apart = torch.tensor([each.value - target for each, target in outcomes])
    stated = torch.tensor([each.se for each, _ in outcomes])
    inside = (apart.abs() <= Q95 * stated).double().mean().item()
    return Coverage(name, inside, (stated.square().mean().sqrt() / apart.square().mean().sqrt()).item(), len(outcomes))


def measured(
    world: World, how: tuple[float, float], seed: int, names: tuple[str, ...], most: int
) -> dict[str, Estimate]:
    subject = Drawn(world.samples(seed, how), world.reference, None, seed, most=most)
    outcomes = {name: METRICS[name].measure(subject) for name in names}
    return {name: each for name, each in outcomes.items() if each is not None}


def of_metrics(
    world: World, how: tuple[float, float], names: tuple[str, ...] = MEASURES, sets: int = SETS, mean: int = MEAN
) -> dict[str, Coverage]:
    """By metric; none of a metric that says nothing of so few samples."""
    far = [measured(world, how, sets + seed, names, FEW) for seed in range(mean)]
    near = [measured(world, how, seed, names, RESAMPLES) for seed in range(sets)]
    targets = {name: sum(each[name].value for each in far + near) / (mean + sets) for name in far[0]}
    return {name: covering(name, [(each[name], target) for each in near]) for name, target in targets.items()}


def of_pairs(world: World, sets: int = SETS, mean: int = MEAN) -> dict[str, Coverage]:
    """Of the paired difference of two samplings of the same noises, by distance."""
    real = world.reference
    distances: dict[str, Callable[[Tensor, Tensor, Tensor], Paired]] = {
        "fd": lambda a, b, repeats: comparison.fd(a, b, real.whole.features, repeats),
        "kid": lambda a, b, repeats: comparison.kid(a, b, real.rows),
    }

    def differences(seed: int, most: int) -> dict[str, Estimate]:
        first, second = (world.samples(seed, how) for how in PAIR)
        repeats = resamples(world.n, seed)[:most]
        return {name: each(first, second, repeats).difference for name, each in distances.items()}

    far = [differences(sets + seed, FEW) for seed in range(mean)]
    near = [differences(seed, RESAMPLES) for seed in range(sets)]
    targets = {name: sum(each[name].value for each in far + near) / (mean + sets) for name in distances}
    return {
        name: covering(f"paired difference of {name}", [(each[name], targets[name]) for each in near])
        for name in distances
    }


def of_choice(
    world: World, how: tuple[float, float], sets: int = SETS, mean: int = MEAN, shared: float = SHARED
) -> dict[str, Coverage]:
    """Of the best of TRIES samplings that are worth the same: what it was chosen by, `fd`, and cross-fitted."""
    far = [measured(world, how, sets + seed, ("fd",), FEW)["fd"].value for seed in range(mean)]
    target, outcomes = sum(far) / mean, {"fd": [], "fd_crossfit": []}
    for seed in range(sets):
        best = next(point for point in with_crossfit(with_best(tries(world, how, seed, shared))) if point.best)
        outcomes["fd"].append((best.metrics["fd"], target))
        outcomes["fd_crossfit"].append((best.crossfit, target))
    return {name: covering(f"{name} of the best of {TRIES}", each) for name, each in outcomes.items()}


def tries(world: World, how: tuple[float, float], seed: int, shared: float) -> list[Point]:
    """Points of one curve that differ by their noise alone."""
    common = world.samples(seed, (1.0, 0.0))
    points = []
    for number in range(TRIES):
        own = world.samples(sets_of(seed, number), (1.0, 0.0))
        z = math.sqrt(shared) * common + math.sqrt(1 - shared) * own
        drawn = Drawn(how[0] * z + how[1] * world.spectrum, world.reference, None, seed, most=TRIED)
        points.append(point(f"try-{number}", drawn, world.n))
    return points


def sets_of(seed: int, number: int) -> int:
    """The seed of what a try has of its own, used for nothing else."""
    return 10**7 + TRIES * seed + number


def point(name: str, drawn: Drawn, n: int) -> Point:
    return Point(
        name=name, curve="", best=True, method="", checkpoint="", sampler="", trajectory="", recipe="", nfe=4,
        metrics={"fd": drawn.frechet}, ms_per_image=0.0, n=n, seed=0, weights="", features="", checkpoint_digest="",
        times=(1.0, 0.0), halves=drawn.halves, halves_se=drawn.halves_se,
    )  # fmt: skip


def rows(world: World, names: Sequence[str] = ROWS) -> Iterator[str]:
    """The table of these rows, a line at a time."""
    metrics = tuple(name for name in names if name in MEASURES)
    for word, how in (("a student", STUDENT), ("a perfect sampler", PERFECT)):
        yield f"{word}: scale {how[0]:g}, mean {how[1]:g}"
        if metrics:
            yield from (f"  {each}" for each in of_metrics(world, how, metrics).values())
        if CHOICE in names:
            yield from (f"  {each}" for each in of_choice(world, how).values())
    if DIFFERENCE in names:
        yield "two students of the same noises"
        yield from (f"  {each}" for each in of_pairs(world).values())


def main() -> None:
    torch.set_num_threads(1)
    count, dimension = map(int, (sys.argv[1:3] + ["1000", "64"][len(sys.argv[1:3]) :]))
    if strange := [name for name in sys.argv[3:] if name not in ROWS]:
        sys.exit(f"there is no row {strange[0]}; there are {', '.join(ROWS)}")
    world = World(count, dimension)
    print(f"{SETS} sets of {count} samples, {dimension} features, {world.real_count} real rows", flush=True)
    for row in rows(world, sys.argv[3:] or ROWS):
        print(row, flush=True)


if __name__ == "__main__":
    main()
