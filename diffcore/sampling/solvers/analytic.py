"""Ancestral sampling with the optimal reverse variance of Analytic-DPM (Bao et al. 2022, arXiv 2201.06503)."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from diffcore.core.errors import UserError
from diffcore.core.shapes import PerSample, Sample, lift
from diffcore.denoisers.denoiser import Denoiser, per_sample
from diffcore.noise.schedule import Level, Schedule, Table
from diffcore.noise.trajectory import Trajectory
from diffcore.sampling.solver import Noise, forward_variance, mean, posterior_variance
from diffcore.sampling.solvers.ancestral import Posterior, check_eta
from diffcore.search.gamma import RANGE, Gamma, bin_of


def optimal_variance(at: Level, to: Level, cov: Tensor, lam2: Tensor) -> Tensor:
    """sigma*^2 = lam2 + (alpha_s - sqrt(sigma_s^2 - lam2) alpha_t/sigma_t)^2 cov: theorem 1 in covariance form."""
    return lam2 + (to.alpha - (to.sigma**2 - lam2).clamp(min=0).sqrt() * at.alpha / at.sigma) ** 2 * cov


def upper_bound(at: Level, to: Level, lam2: Tensor) -> Tensor:
    """Theorem 2's bound (11) for any data: sigma*^2 at cov = sigma_t^2/alpha_t^2."""
    return optimal_variance(at, to, at.sigma**2 / at.alpha**2, lam2)


def data_bound(at: Level, to: Level, lam2: Tensor, low: float, high: float) -> Tensor:
    """Bound (12) for data in [low, high]: no coordinate has a larger variance than ((high - low)/2)^2."""
    return optimal_variance(at, to, torch.full_like(lam2, ((high - low) / 2) ** 2), lam2)


def bounds(at: Level, to: Level, lam2: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
    """Between what the optimal variance lies for any data in [low, high]: lam2, and the lesser of (11) and (12)."""
    return lam2, torch.minimum(upper_bound(at, to, lam2), data_bound(at, to, lam2, low, high))


def ddpm_variances(at: Level, to: Level) -> tuple[Tensor, Tensor]:
    """(small, large): the posterior's and the forward process's, between which the optimal one lies for DDPM."""
    return posterior_variance(at, to), forward_variance(at, to)


@dataclass(frozen=True)
class Analytic(Posterior):
    """Noise of the optimal variance around the DDIM-eta mean; eta = 1 is DDPM's.

    cov is looked up at t and interpolated linearly between the grid's times. The last step returns the mean. It needs to be
    told what Gamma was estimated: `Analytic(...).with_gamma(gamma)`. The believed x_0 is taken as it is; the authors' code
    clamps it to [-1, 1], see diffcore.denoisers.clipping. Covariances are kept below bound (12); bound (11) holds for the
    true score, and so for the estimate "norm" by itself, but "residual" is the optimum for the network's own mean (the
    paper's appendix H.2), which a network that knows less than x_t tells may rightly have above it.

    last: y, or None for no limit: the noise of the step that lands on the trajectory's last positive time moves no value by
    more than y grey values of 255 in the mean (the paper's appendix; y is 1 or 2). It changes samples only, never a
    likelihood, for which `variances` are the model's own; `lowered` tells whether it acts.
    """

    word = "analytic"

    eta: float = 1.0
    estimator: Literal["norm", "residual"] = "residual"
    last: float | None = None

    stochastic = True
    _table = None
    _grey = bin_of(RANGE)

    def __post_init__(self):
        check_eta(self.eta)
        if self.last is not None and not self.last > 0:
            raise ValueError(f"last must be positive or null, got {self.last}")

    def with_gamma(self, gamma: Gamma, within: tuple[float, float] = RANGE) -> "Analytic":
        """This solver with the covariances that an estimate gives of data in `within`, (low, high)."""
        solver = dataclasses.replace(self)
        table = Table(gamma.covariance(self.estimator, within=within).values)
        for name, value in (("_table", table), ("_grey", bin_of(within))):
            object.__setattr__(solver, name, value)  # frozen for everybody else
        return solver

    def variances(self, at: Level, to: Level, t: PerSample) -> tuple[Tensor, Tensor]:
        if self._table is None:
            raise UserError("analytic knows no covariances yet; give it an estimate: with_gamma(gamma)")
        lam2 = self.eta**2 * posterior_variance(at, to)
        return lam2, optimal_variance(at, to, lift(_look_up(self._table.beside(t), t), at.alpha), lam2)

    def solve(self, denoiser: Denoiser, x: Sample, trajectory: Trajectory, noise: Noise) -> Sample:
        limited = self._place(trajectory)
        for k, (t, s) in enumerate(trajectory.pairs):
            t, s = per_sample(t, x), per_sample(s, x)
            step = self._limited if k == limited else self.step
            x = step(denoiser, x, t, s, noise())
        return x

    def lowered(self, schedule: Schedule, trajectory: Trajectory) -> int:
        """How many steps of the trajectory `last` gives less noise than the optimal variance: 1 or 0."""
        place = self._place(trajectory)
        if place is None:
            return 0
        t, s = (torch.tensor([time], dtype=torch.float64) for time in trajectory.pairs[place])
        _, variance = self.variances(schedule.level(t, t), schedule.level(s, s), t)
        return int(float(variance) > self._limit)

    @property
    def _limit(self) -> float:
        """Of the variance: E|sigma eps| = sigma sqrt(2/pi)."""
        return (self.last * self._grey) ** 2 * math.pi / 2

    def _place(self, trajectory: Trajectory) -> int | None:
        """Which step lands on the last positive time, if `last` is to act and there is one."""
        if self.last is None:
            return None
        landed = [k for k, (_, s) in enumerate(trajectory.pairs) if s > 0]
        return landed[-1] if landed else None

    def _limited(self, denoiser: Denoiser, x_t: Sample, t: PerSample, s: PerSample, noise: Sample) -> Sample:
        belief, to = denoiser(x_t, t), denoiser.schedule.level(s, x_t)
        lam2, variance = self.variances(belief.level, to, t)
        return mean(belief, to, lam2) + variance.clamp(max=self._limit).sqrt() * noise


def _look_up(table: Tensor, t: PerSample) -> PerSample:
    """cov at t from the values at 1/N, 2/N, ..., 1; below 1/N that of 1/N."""
    place = (t.double() * len(table) - 1).clamp(0, len(table) - 1)
    low = place.floor().long().clamp(max=len(table) - 2)
    return torch.lerp(table[low], table[low + 1], place - low)
