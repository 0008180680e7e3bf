"""What Analytic-DPM needs to know of a network: how far off its belief is at each noise level.

Gamma_n = E|score|^2 / d at t_n = n/N (Bao et al. 2022, arXiv 2201.06503, eq. 8) fixes the optimal reverse variance. Here it
is carried as the covariance of x_0 that it stands for, cov_n = E|x_0 - E[x_0 | x_n]|^2 / d, which is
(sigma^2/alpha^2)(1 - sigma^2 Gamma) and stays finite where alpha is 0. Two estimates of it: "norm", the published one from
E|eps_hat|^2, and "residual", measured directly as E|x_0 - x_0_hat|^2 / d, which is never negative and exact for the network's
own mean (the paper's appendix H.2).
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from diffcore.core import processes
from diffcore.core.errors import UserError
from diffcore.core.rng import generator, noises
from diffcore.core.shapes import Sample
from diffcore.denoisers.condition import Condition
from diffcore.denoisers.denoiser import Denoiser
from diffcore.search.gamma_file import SCHEMA as SCHEMA
from diffcore.search.gamma_file import read as read

Estimator = Literal["norm", "residual"]

RANGE = (-1.0, 1.0)
"""Of the data, where nothing else is said."""

GREYS = 256
"""Values that an image's colours can have, evenly from the least to the largest of its range."""


def bin_of(within: tuple[float, float]) -> float:
    """How far apart two neighbouring grey values are."""
    low, high = within
    return (high - low) / (GREYS - 1)


NORM, EPS, X0 = range(3)  # rows of Moments: |eps_hat|^2, |eps - eps_hat|^2, |x_0 - x_0_hat|^2, each over d


@dataclass(frozen=True)
class Config:
    """steps: N, the times n/N. images: M, how many per time, the same with the same noise at every time. batch: network
    inputs per call."""

    steps: int
    images: int
    batch: int
    seed: int

    def __post_init__(self):
        for name, least in (("steps", 2), ("images", 2), ("batch", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")


@dataclass(frozen=True)
class Moments:
    """Sums over images for each time; `a + b` merges what two workers saw. total, square: [3, N] float64; count: images."""

    total: Tensor
    square: Tensor
    count: int

    def __add__(self, other: "Moments") -> "Moments":
        return Moments(self.total + other.total, self.square + other.square, self.count + other.count)

    @property
    def mean(self) -> Tensor:
        return self.total / self.count

    @property
    def stderr(self) -> Tensor:
        """The standard error of `mean` over images."""
        variance = (self.square - self.total**2 / self.count) / (self.count - 1)
        return (variance.clamp(min=0) / self.count).sqrt()


@dataclass(frozen=True)
class Covariance:
    """cov_n for n = 1..N within its bounds, and how many estimates were impossible and had to be moved there.

    repaired: how many of them, once within, were moved again to make r_n monotone; None if that was not asked for.
    """

    values: Tensor
    below: int
    above: int
    repaired: int | None = None

    @property
    def impossible(self) -> float:
        """The share of impossible estimates."""
        return (self.below + self.above) / len(self.values)


@dataclass(frozen=True)
class Gamma:
    """The estimates at t_n = n/N, n = 1..N. alpha2, sigma2: squares of the schedule's scales, [N] float64."""

    steps: int
    seed: int
    alpha2: Tensor
    sigma2: Tensor
    moments: Moments

    @property
    def images(self) -> int:
        return self.moments.count

    @property
    def gamma(self) -> Tensor:
        """Gamma_n by the score norm, as published, [N]."""
        return self.moments.mean[NORM] / self.sigma2

    @property
    def gamma_stderr(self) -> Tensor:
        return self.moments.stderr[NORM] / self.sigma2

    def covariance(self, estimator: Estimator, repair: bool = False, within: tuple[float, float] = RANGE) -> Covariance:
        """cov_n by one estimator, moved into [0, ((high - low)/2)^2] where it lies outside; every move is counted.

        within: the data's (low, high), which have no larger variance (the paper's bound (12)). Where alpha is 0 the norm says
        nothing about x_0: its cov_n is then the bound, counted as above. repair: make r_n = 1/cov_n - SNR_n, which never
        rises with n for any data, monotone: see `_repaired`.
        """
        low, high = within
        if not low < high:
            raise ValueError(f"the data's range must be a low number and a higher one, got {low} and {high}")
        bound, snr = ((high - low) / 2) ** 2, self.alpha2 / self.sigma2
        raw = self.moments.mean[X0] if estimator == "residual" else (1 - self.moments.mean[NORM]) / snr
        weight = torch.ones_like(snr) if estimator == "residual" else snr.clamp(max=1) ** 2  # its error grows as 1/SNR
        raw = torch.where((snr == 0) & (estimator == "norm"), torch.inf, raw)
        values, moved = raw.clamp(0, bound), None
        if repair:
            clipped = values
            values = torch.from_numpy(_repaired(raw.numpy(), snr.numpy(), weight.numpy(), bound))
            moved = int(((values - clipped).abs() > ROUNDING * clipped).sum())
        return Covariance(values, int((raw < 0).sum()), int((raw > bound).sum()), moved)

    def describe(self, within: tuple[float, float] = RANGE) -> str:
        """One line: how many estimates are impossible."""
        parts = []
        for estimator in ("norm", "residual"):
            covariance = self.covariance(estimator, within=within)
            counts = f"{covariance.below} of {self.steps} below 0, {covariance.above} above the bound"
            parts.append(f"{estimator}: {counts} ({covariance.impossible:.1%} impossible)")
        return "; ".join(parts)

    def to_json(self) -> dict[str, Any]:
        """Plain numbers; `from_json` gives the same object back exactly."""
        return {
            "steps": self.steps,
            "seed": self.seed,
            "images": self.moments.count,
            "alpha2": self.alpha2.tolist(),
            "sigma2": self.sigma2.tolist(),
            "total": self.moments.total.tolist(),
            "square": self.moments.square.tolist(),
            "gamma": self.gamma.tolist(),
            "gamma_stderr": self.gamma_stderr.tolist(),
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Gamma":
        def array(key: str) -> Tensor:
            return torch.tensor(value[key], dtype=torch.float64)

        moments = Moments(array("total"), array("square"), value["images"])
        return cls(value["steps"], value["seed"], array("alpha2"), array("sigma2"), moments)


ROUNDING = 1e-9
"""A covariance that a repair changes by a smaller share than this was monotone already."""


def _repaired(raw: np.ndarray, snr: np.ndarray, weight: np.ndarray, bound: float) -> np.ndarray:
    """The monotone covariances nearest to the raw ones, which may be impossible, by pooling adjacent violators. [N].

    With q = 1/r, cov = q / (1 + q SNR) is what Gaussian data of variance q have, and q in [0, bound] never falls with n.
    Times that disobey share the q that keeps the weighted sum of their covariances: the most likely one if each estimate,
    `weight` times, is spread as a mean of squares is (raw (r + SNR) - log(r + SNR) is convex in r). Since nothing is clipped
    before it is pooled, what lies below 0 and what lies above the bound average out.
    """
    pools: list[tuple[float, int]] = []  # q and how many times share it
    for n, one in enumerate(zip(raw.tolist(), snr.tolist(), weight.tolist())):
        q, length = _alone(*one, bound), 1
        while pools and pools[-1][0] > q:
            length += pools.pop()[1]
            rows = slice(n + 1 - length, n + 1)
            q = _shared(raw[rows], snr[rows], weight[rows], bound, q)
        pools.append((q, length))
    q = np.repeat([q for q, _ in pools], [length for _, length in pools])
    return q / (1 + q * snr)


def _alone(raw: float, snr: float, weight: float, bound: float) -> float:
    if weight == 0 or raw * (1 / bound + snr) >= 1:
        return bound
    return max(raw, 0.0) / (1 - max(raw, 0.0) * snr)


def _shared(raw: np.ndarray, snr: np.ndarray, weight: np.ndarray, bound: float, least: float) -> float:
    """The root q of sum w (q / (1 + q SNR) - raw), in [0, bound]; not below `least`. Newton from below: it is concave."""
    weighted = weight > 0
    raw, snr, weight = raw[weighted], snr[weighted], weight[weighted]
    total = (weight * raw).sum()
    if (weight * bound / (1 + bound * snr)).sum() <= total:
        return bound
    q = least
    while True:
        rest = 1 + q * snr
        step = (total - (weight * q / rest).sum()) / (weight / rest**2).sum()
        if step <= 1e-14 * q:
            return q
        q = min(q + step, bound)


NOTHING_KNOWN: Mapping[str, Tensor] = MappingProxyType({})
"""Of images whose classes and captions nobody says."""


@dataclass(frozen=True)
class Begun:
    """An estimate that was broken off: the sums, [3, N] float64, over its first `pairs` of an image and a time."""

    pairs: int
    total: Tensor
    square: Tensor


def nothing(steps: int) -> dict[str, Tensor]:
    """The sums over no pair."""
    return {name: torch.zeros(3, steps, dtype=torch.float64) for name in ("total", "square")}


def pick(count: int, config: Config) -> Tensor:
    """Which of `count` images serve, [M] int64, by the seed alone."""
    if config.images > count:
        raise UserError(f"gamma.images is {config.images}, but the data have only {count}; lower it")
    return torch.randperm(count, generator=generator(config.seed, "gamma images"))[: config.images]


def estimate(
    denoiser: Denoiser,
    x0: Sample,
    config: Config,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    first: int = 0,
    inputs: Mapping[str, Tensor] = NOTHING_KNOWN,
    begun: Begun | None = None,
    keep: Callable[[Begun], None] = lambda begun: None,
    seconds: float = math.inf,
) -> Gamma:
    """Both estimates from the images x0 [m, *x], in one pass whose batches mix the times, and are dealt to all processes.

    first: the place of x0[0] among all images, for a worker that has only a part of them; its noise depends on that alone.
    inputs: [m, ...], what is known of x0, by the name of a network's input; without, of nothing. keep: hears every
    `seconds` what there is so far; from that, given back as `begun`, the result is the same bit for bit on a CPU.
    Costs m N network inputs. Raises UserError if the network gives a number that is not finite.
    """
    device = next((p.device for p in denoiser.parameters()), x0.device)
    steps, m = config.steps, len(x0)
    eps = noises(tuple(x0.shape[1:]), config.seed, range(first, first + m), "gamma").to(device, x0.dtype)
    x0 = x0.to(device)
    moments = _Sums(steps, device, begun)
    spoke = time.monotonic()
    pairs = m * steps

    def errors(start: int) -> Tensor:
        pair = torch.arange(start, min(start + config.batch, pairs), device=device)
        image = pair // steps
        known = Condition({name: part[image.cpu()].to(device) for name, part in inputs.items()})
        conditioned = denoiser.with_condition(known) if inputs else denoiser
        return _errors(conditioned, x0[image], eps[image], (pair % steps + 1) / steps)

    starts = range(begun.pairs if begun else 0, pairs, config.batch)
    for start, values in zip(starts, processes.dealt(starts, errors)):
        moments.add(torch.arange(start, start + values.shape[1], device=device) % steps, values)
        on_progress(min(start + config.batch, pairs), pairs)
        if time.monotonic() - spoke > seconds:
            keep(moments.so_far(start + config.batch))
            spoke = time.monotonic()
    _check_finite(moments.total)
    t = torch.arange(1, steps + 1, dtype=torch.float64) / steps
    alpha2, sigma2 = denoiser.schedule.alpha(t) ** 2, denoiser.schedule.sigma(t) ** 2
    return Gamma(steps, config.seed, alpha2, sigma2, Moments(moments.total.cpu(), moments.square.cpu(), m))


class _Sums:
    def __init__(self, steps: int, device: torch.device, begun: Begun | None):
        sums = {"total": begun.total, "square": begun.square} if begun else nothing(steps)
        self.total, self.square = sums["total"].clone().to(device), sums["square"].clone().to(device)

    def so_far(self, pairs: int) -> Begun:
        return Begun(pairs, self.total.cpu().clone(), self.square.cpu().clone())

    def add(self, places: Tensor, values: Tensor) -> None:
        self.total.index_add_(1, places, values)
        self.square.index_add_(1, places, values**2)


def _check_finite(total: Tensor) -> None:
    # once, after the last batch: asking in each would make a GPU wait
    bad = (~total.isfinite()).any(0).nonzero().flatten().tolist()
    if bad:
        t = (bad[0] + 1) / total.shape[1]
        where = f"{len(bad)} of {total.shape[1]} times, the first t = {t:g}"
        raise UserError(f"gamma: the network's output is not finite at {where}; train this checkpoint again")


@torch.inference_mode()
def _errors(denoiser: Denoiser, x0: Sample, eps: Sample, t: Tensor) -> Tensor:
    """The three mean squares of each sample, [3, b] float64."""
    level = denoiser.schedule.level(t.double(), x0)
    belief = denoiser(level.alpha * x0 + level.sigma * eps, t.double())
    rows = (belief.eps, eps - belief.eps, x0 - belief.x0)
    return torch.stack([row.flatten(1).square().mean(1).double() for row in rows])
