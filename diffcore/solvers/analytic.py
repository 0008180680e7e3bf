"""Ancestral sampling with the optimal reverse variance of Analytic-DPM (Bao et al. 2022, arXiv 2201.06503)."""

import dataclasses
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from diffcore.denoiser import Denoiser
from diffcore.gamma import Gamma
from diffcore.mistake import Mistake
from diffcore.schedule import Level
from diffcore.shapes import PerSample, Sample, lift
from diffcore.solver import Stepwise, forward_variance, mean, posterior_variance
from diffcore.solvers.ancestral import check_eta


def optimal_variance(at: Level, to: Level, cov: Tensor, lam2: Tensor) -> Tensor:
    """sigma*^2 = lam2 + (alpha_s - sqrt(sigma_s^2 - lam2) alpha_t/sigma_t)^2 cov: theorem 1 in covariance form."""
    return lam2 + (to.alpha - (to.sigma**2 - lam2).clamp(min=0).sqrt() * at.alpha / at.sigma) ** 2 * cov


def upper_bound(at: Level, to: Level, lam2: Tensor) -> Tensor:
    """Theorem 2's bound (11) for any data: sigma*^2 at cov = sigma_t^2/alpha_t^2."""
    return optimal_variance(at, to, at.sigma**2 / at.alpha**2, lam2)


def data_bound(at: Level, to: Level, lam2: Tensor, low: float, high: float) -> Tensor:
    """Bound (12) for data in [low, high]: no coordinate has a larger variance than ((high - low)/2)^2."""
    return optimal_variance(at, to, torch.full_like(lam2, ((high - low) / 2) ** 2), lam2)


def ddpm_variances(at: Level, to: Level) -> tuple[Tensor, Tensor]:
    """(small, large): the posterior's and the forward process's, between which the optimal one lies for DDPM."""
    return posterior_variance(at, to), forward_variance(at, to)


@dataclass(frozen=True)
class Analytic(Stepwise):
    """Noise of the optimal variance around the DDIM-eta mean; eta = 1 is DDPM's.

    cov is looked up at t and interpolated linearly between the grid's times. The last step returns the mean. It needs to be
    told what Gamma was estimated: `Analytic(...).knowing(gamma)`.
    """

    eta: float = 1.0
    estimator: Literal["norm", "residual"] = "residual"

    noisy = True
    _table = None

    def __post_init__(self):
        check_eta(self.eta)

    def knowing(self, gamma: Gamma) -> "Analytic":
        """This solver with the covariances that an estimate gives."""
        known = dataclasses.replace(self)
        object.__setattr__(known, "_table", gamma.covariance(self.estimator).values)  # frozen for everybody else
        return known

    def step(self, denoiser: Denoiser, x_t: Sample, t: PerSample, s: PerSample, noise: Sample | None) -> Sample:
        if self._table is None:
            raise Mistake("analytic knows no covariances yet; give it an estimate with knowing(gamma)")
        belief, to = denoiser(x_t, t), denoiser.schedule.level(s, x_t)
        lam2 = self.eta**2 * posterior_variance(belief.level, to)
        cov = lift(_look_up(self._table, t), x_t)
        variance = optimal_variance(belief.level, to, cov, lam2) * (to.sigma > 0)
        return mean(belief, to, lam2) + variance.sqrt() * noise


def _look_up(table: Tensor, t: PerSample) -> PerSample:
    """cov at t from the values at 1/N, 2/N, ..., 1; below 1/N that of 1/N."""
    table = table.to(t.device)
    place = (t.double() * len(table) - 1).clamp(0, len(table) - 1)
    low = place.floor().long().clamp(max=len(table) - 2)
    return torch.lerp(table[low], table[low + 1], place - low)
