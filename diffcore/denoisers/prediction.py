"""One belief about x_0 and eps, and the ways in which a network can state it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from diffcore.core.shapes import Sample
from diffcore.denoisers import parameterization
from diffcore.noise.schedule import Level


@dataclass(frozen=True)
class Prediction:
    """One belief about (x_0, eps) given x_t = alpha x_0 + sigma eps; the readings of it, [b, *x] each.

    `v` is the velocity in the angle of the variance-preserving rescaling x_t / hypot(alpha, sigma). cost: the work it took,
    in network calls per sample: 2 for two calls, a fraction where part of the network was not run.
    """

    x0: Sample
    eps: Sample
    level: Level
    cost: float = 1.0

    @property
    def v(self) -> Sample:
        size = torch.hypot(self.level.alpha, self.level.sigma)
        return (self.level.alpha * self.eps - self.level.sigma * self.x0) / size

    @property
    def score(self) -> Sample:
        """The gradient of log p_t at x_t, -eps / sigma. Infinite where sigma is 0."""
        return -self.eps / self.level.sigma

    @property
    def flow(self) -> Sample:
        """u = eps - x_0, the velocity of rectified flow (Liu et al. 2022, arXiv 2209.03003): d x_t/dt where alpha = 1 - t and
        sigma = t."""
        return self.eps - self.x0

    @property
    def edm(self) -> Sample:
        """F of Karras et al. 2022 (arXiv 2206.00364, eq. 7) for data of standard deviation 1: -v."""
        return -self.v

    @property
    def x0_eps(self) -> Tensor:
        """x_0 and eps side by side, [b, 2c, ...]."""
        return torch.cat([self.x0, self.eps], 1)


def from_x0(x_t: Sample, level: Level, x0: Sample) -> Prediction:
    """Singular at sigma = 0."""
    return Prediction(x0, (x_t - level.alpha * x0) / level.sigma, level)


def from_eps(x_t: Sample, level: Level, eps: Sample) -> Prediction:
    """Singular at alpha = 0."""
    return Prediction((x_t - level.sigma * eps) / level.alpha, eps, level)


def from_v(x_t: Sample, level: Level, v: Sample) -> Prediction:
    """Singular nowhere: with C, S = cos, sin of the angle, x_0 = C z - S v and eps = S z + C v."""
    size = torch.hypot(level.alpha, level.sigma)
    c, s = level.alpha / size, level.sigma / size
    z = x_t / size
    return Prediction(c * z - s * v, s * z + c * v, level)


def from_score(x_t: Sample, level: Level, score: Sample) -> Prediction:
    """Singular at alpha = 0."""
    return from_eps(x_t, level, -level.sigma * score)


def from_x0_eps(x_t: Sample, level: Level, x0_eps: Tensor) -> Prediction:
    """Of an x~ and an eps~, [b, 2c, ...]: x_0 = S^2 x~ + C (z - S eps~), which trusts either where it is good (Salimans &
    Ho 2022, arXiv 2202.00512, section 4). That is v = C eps~ - S x~, so singular nowhere."""
    x0, eps = x0_eps.chunk(2, 1)
    return from_v(x_t, level, Prediction(x0, eps, level).v)


def from_flow(x_t: Sample, level: Level, u: Sample) -> Prediction:
    """Singular nowhere, on no schedule: x_0 = (x_t - sigma u)/(alpha + sigma), eps = (x_t + alpha u)/(alpha + sigma)."""
    whole = level.alpha + level.sigma
    return Prediction((x_t - level.sigma * u) / whole, (x_t + level.alpha * u) / whole, level)


def from_edm(x_t: Sample, level: Level, F: Sample) -> Prediction:
    """Singular nowhere: c_skip x_t + c_out F for data of standard deviation 1."""
    return from_v(x_t, level, -F)


PARAMETERIZATIONS = dict(
    zip(
        parameterization.NAMES,
        (from_x0, from_eps, from_v, from_score, from_x0_eps, from_flow, from_edm),
        strict=True,
    )
)
