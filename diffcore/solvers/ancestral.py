"""Steps through the posterior q(x_s | x_t, x_0) at the believed x_0."""

from dataclasses import dataclass

from diffcore.denoiser import Denoiser
from diffcore.shapes import PerSample, Sample
from diffcore.solver import Stepwise, forward_variance, mean, posterior_variance


@dataclass(frozen=True)
class DDIM(Stepwise):
    """alpha_s x_0 + sigma_s eps, or with the share eta of the ancestral noise (Song et al. 2020, 2010.02502, eq. 12, 16)."""

    eta: float = 0.0

    def __post_init__(self):
        check_eta(self.eta)

    @property
    def order(self) -> int | None:
        return None if self.eta else 1

    @property
    def noisy(self) -> bool:
        return self.eta > 0

    def step(self, denoiser: Denoiser, x_t: Sample, t: PerSample, s: PerSample, noise: Sample | None) -> Sample:
        belief, to = denoiser(x_t, t), denoiser.schedule.level(s, x_t)
        if not self.eta:
            return to.alpha * belief.x0 + to.sigma * belief.eps
        lam2 = self.eta**2 * posterior_variance(belief.level, to)
        return mean(belief, to, lam2) + lam2.sqrt() * noise


@dataclass(frozen=True)
class DDPM(Stepwise):
    """Ancestral sampling with the posterior's own variance, the small one (Ho et al. 2020, arXiv 2006.11239)."""

    noisy = True

    def step(self, denoiser: Denoiser, x_t: Sample, t: PerSample, s: PerSample, noise: Sample | None) -> Sample:
        belief, to = denoiser(x_t, t), denoiser.schedule.level(s, x_t)
        small = posterior_variance(belief.level, to)
        return mean(belief, to, small) + small.sqrt() * noise


@dataclass(frozen=True)
class DDPMLarge(Stepwise):
    """Ancestral sampling with the forward process's variance, the large one; the last step returns the mean."""

    noisy = True

    def step(self, denoiser: Denoiser, x_t: Sample, t: PerSample, s: PerSample, noise: Sample | None) -> Sample:
        belief, to = denoiser(x_t, t), denoiser.schedule.level(s, x_t)
        large = forward_variance(belief.level, to) * (to.sigma > 0)
        return mean(belief, to, posterior_variance(belief.level, to)) + large.sqrt() * noise


@dataclass(frozen=True)
class Renoise(Stepwise):
    """Multistep consistency sampling: jump to the data, add fresh noise (Song et al. 2023, arXiv 2303.01469, alg. 1).

    Its deterministic sister keeps the believed noise instead of a fresh one: that is DDIM.
    """

    noisy = True

    def step(self, denoiser: Denoiser, x_t: Sample, t: PerSample, s: PerSample, noise: Sample | None) -> Sample:
        belief, to = denoiser(x_t, t), denoiser.schedule.level(s, x_t)
        return to.alpha * belief.x0 + to.sigma * noise


def check_eta(eta: float) -> None:
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must be in 0..1, got {eta}")
