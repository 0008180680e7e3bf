"""What Analytic-DPM needs to know of a network: how far off its belief is at each noise level.

Gamma_n = E|score|^2 / d at t_n = n/N (Bao et al. 2022, arXiv 2201.06503, eq. 8) fixes the optimal reverse variance. Here it
is carried as the covariance of x_0 that it stands for, cov_n = E|x_0 - E[x_0 | x_n]|^2 / d, which is
(sigma^2/alpha^2)(1 - sigma^2 Gamma) and stays finite where alpha is 0. Two estimates of it: "norm", the published one from
E|eps_hat|^2, and "residual", measured directly as E|x_0 - x_0_hat|^2 / d, which is never negative and exact for the network's
own mean (the paper's appendix H.2).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from diffcore.denoiser import Denoiser
from diffcore.draw import generator, noises
from diffcore.mistake import Mistake
from diffcore.shapes import Sample

BOUND = 1.0
"""No x_0 in [-1, 1] has a larger variance: ((b - a)/2)^2, the paper's bound (12)."""

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
    """cov_n for n = 1..N within its bounds, and how many estimates had to be moved there."""

    values: Tensor
    below: int
    above: int


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

    def covariance(self, estimator: Literal["norm", "residual"]) -> Covariance:
        """cov_n by one estimator, moved into [0, BOUND] where it lies outside; every move is counted.

        Where alpha is 0 the norm says nothing about x_0: its cov_n is then the bound, counted as above.
        """
        raw = (
            self.moments.mean[X0]
            if estimator == "residual"
            else self.sigma2 / self.alpha2 * (1 - self.moments.mean[NORM])
        )
        unknown = (self.alpha2 == 0) & (estimator == "norm")
        raw = torch.where(unknown, torch.inf, raw)
        return Covariance(raw.clamp(0, BOUND), int((raw < 0).sum()), int((raw > BOUND).sum()))

    def told(self) -> str:
        """One line: how many estimates are impossible."""
        parts = []
        for estimator in ("norm", "residual"):
            found = self.covariance(estimator)
            parts.append(f"{estimator}: {found.below} of {self.steps} below 0, {found.above} above the bound")
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


def pick(count: int, config: Config) -> Tensor:
    """Which of `count` images serve, [M] int64, by the seed alone."""
    if config.images > count:
        raise Mistake(f"gamma.images is {config.images}, but the data have only {count}; lower it")
    return torch.randperm(count, generator=generator(config.seed, "gamma images"))[: config.images]


def estimate(
    denoiser: Denoiser,
    x0: Sample,
    config: Config,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    first: int = 0,
) -> Gamma:
    """Both estimates from the images x0 [m, *x], in one pass whose batches mix the times.

    first: the place of x0[0] among all images, for a worker that has only a part of them; its noise depends on that alone.
    Costs m N network inputs. Raises Mistake if the network gives a number that is not finite.
    """
    device = next((p.device for p in denoiser.parameters()), x0.device)
    steps, m = config.steps, len(x0)
    eps = noises(tuple(x0.shape[1:]), config.seed, range(first, first + m), "gamma").to(device, x0.dtype)
    x0, moments = x0.to(device), _Sums(steps, device)
    pairs = m * steps
    for start in range(0, pairs, config.batch):
        pair = torch.arange(start, min(start + config.batch, pairs), device=device)
        moments.add(pair % steps, _errors(denoiser, x0[pair // steps], eps[pair // steps], (pair % steps + 1) / steps))
        on_progress(min(start + config.batch, pairs), pairs)
    _check_finite(moments.total)
    t = torch.arange(1, steps + 1, dtype=torch.float64) / steps
    alpha2, sigma2 = denoiser.schedule.alpha(t) ** 2, denoiser.schedule.sigma(t) ** 2
    return Gamma(steps, config.seed, alpha2, sigma2, Moments(moments.total.cpu(), moments.square.cpu(), m))


class _Sums:
    def __init__(self, steps: int, device: torch.device):
        self.total = torch.zeros(3, steps, dtype=torch.float64, device=device)
        self.square = torch.zeros_like(self.total)

    def add(self, places: Tensor, values: Tensor) -> None:
        self.total.index_add_(1, places, values)
        self.square.index_add_(1, places, values**2)


def _check_finite(total: Tensor) -> None:
    # once, after the last batch: asking in each would make a GPU wait
    bad = (~total.isfinite()).any(0).nonzero().flatten().tolist()
    if bad:
        t = (bad[0] + 1) / total.shape[1]
        where = f"{len(bad)} of {total.shape[1]} times, the first t = {t:g}"
        raise Mistake(f"gamma: the network's output is not finite at {where}; train this checkpoint again")


@torch.inference_mode()
def _errors(denoiser: Denoiser, x0: Sample, eps: Sample, t: Tensor) -> Tensor:
    """The three mean squares of each sample, [3, b] float64."""
    level = denoiser.schedule.level(t.double(), x0)
    belief = denoiser(level.alpha * x0 + level.sigma * eps, t.double())
    rows = (belief.eps, eps - belief.eps, x0 - belief.x0)
    return torch.stack([row.flatten(1).square().mean(1).double() for row in rows])
