"""Steps through the posterior q(x_s | x_t, x_0) at the believed x_0."""

import abc
from dataclasses import dataclass

import torch
from torch import Tensor

from diffcore.core.shapes import PerSample, Sample
from diffcore.denoisers.denoiser import Denoiser
from diffcore.noise.schedule import Level
from diffcore.sampling.solver import Stepwise, forward_variance, mean, posterior_variance


class Posterior(Stepwise):
    """A normal step around the posterior's mean: a model of data with a likelihood. The last step returns the mean."""

    @abc.abstractmethod
    def variances(self, at: Level, to: Level, t: PerSample) -> tuple[Tensor, Tensor]:
        """(lam2, of q(x_s | x_t, x_0), whose mean is taken; the variance of the noise that the step adds)."""

    def step(self, denoiser: Denoiser, x_t: Sample, t: PerSample, s: PerSample, noise: Sample | None) -> Sample:
        belief, to = denoiser(x_t, t), denoiser.schedule.level(s, x_t)
        lam2, variance = self.variances(belief.level, to, t)
        return mean(belief, to, lam2) + (variance * (to.sigma > 0)).sqrt() * noise


@dataclass(frozen=True)
class DDIM(Posterior):
    """alpha_s x_0 + sigma_s eps, or with the share eta of the ancestral noise (Song et al. 2020, 2010.02502, eq. 12, 16)."""

    word = "ddim"

    eta: float = 0.0

    def __post_init__(self):
        check_eta(self.eta)

    @property
    def order(self) -> int | None:
        return None if self.eta else 1

    @property
    def stochastic(self) -> bool:
        return self.eta > 0

    def variances(self, at: Level, to: Level, t: PerSample) -> tuple[Tensor, Tensor]:
        lam2 = self.eta**2 * posterior_variance(at, to)
        return lam2, lam2

    def step(self, denoiser: Denoiser, x_t: Sample, t: PerSample, s: PerSample, noise: Sample | None) -> Sample:
        if self.eta:
            return super().step(denoiser, x_t, t, s, noise)
        belief, to = denoiser.toward(s)(x_t, t), denoiser.schedule.level(s, x_t)
        return to.alpha * belief.x0 + to.sigma * belief.eps


@dataclass(frozen=True)
class DDPM(Posterior):
    """Ancestral sampling with the posterior's own variance, the small one (Ho et al. 2020, arXiv 2006.11239)."""

    word = "ddpm"
    stochastic = True

    def variances(self, at: Level, to: Level, t: PerSample) -> tuple[Tensor, Tensor]:
        small = posterior_variance(at, to)
        return small, small


@dataclass(frozen=True)
class DDPMLarge(Posterior):
    """Ancestral sampling with the forward process's variance, the large one."""

    word = "ddpm_large"
    stochastic = True

    def variances(self, at: Level, to: Level, t: PerSample) -> tuple[Tensor, Tensor]:
        return posterior_variance(at, to), forward_variance(at, to)


@dataclass(frozen=True)
class MultistepConsistency(Stepwise):
    """Multistep consistency sampling: jump to the data, add fresh noise (Song et al. 2023, arXiv 2303.01469, alg. 1).

    The fresh noise is the whole sigma_s, where the algorithm adds sqrt(sigma_s^2 - sigma_min^2) to an image that keeps noise
    of sigma_min: the believed x_0 here has none left. Its deterministic sister keeps the believed noise: that is DDIM.
    """

    word = "multistep_consistency"
    stochastic = True

    def step(self, denoiser: Denoiser, x_t: Sample, t: PerSample, s: PerSample, noise: Sample | None) -> Sample:
        belief, to = denoiser.toward(torch.zeros_like(s))(x_t, t), denoiser.schedule.level(s, x_t)
        return to.alpha * belief.x0 + to.sigma * noise


def check_eta(eta: float) -> None:
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must be in 0..1, got {eta}")
