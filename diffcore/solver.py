"""One step x_t -> x_s.

A solver is a function and its declaration: the order with which it converges to the probability flow (None if it does not
aim there), its network calls per step, and whether it draws noise. A new solver is one function and one line of SOLVERS.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from diffcore.denoiser import Denoiser, Prediction
from diffcore.schedule import Level
from diffcore.shapes import PerSample, Sample

Step = Callable[[Denoiser, Sample, PerSample, PerSample, Sample | None], Sample]


@dataclass(frozen=True)
class Solver:
    """step(denoiser, x_t, t, s, noise) -> x_s with 0 <= s < t <= 1; `noise` is None for a deterministic solver."""

    step: Step
    order: int | None
    nfe: int
    noisy: bool


def ddim(denoiser: Denoiser, x_t: Sample, t: PerSample, s: PerSample, noise: Sample | None) -> Sample:
    """alpha_s x_0 + sigma_s eps (Song et al. 2020, arXiv 2010.02502, eq. 12 with eta = 0)."""
    belief, to = denoiser(x_t, t), denoiser.schedule.level(s, x_t)
    return to.alpha * belief.x0 + to.sigma * belief.eps


def ddpm(denoiser: Denoiser, x_t: Sample, t: PerSample, s: PerSample, noise: Sample | None) -> Sample:
    """Ancestral sampling with the posterior's own variance, the small one (Ho et al. 2020, arXiv 2006.11239)."""
    belief, to = denoiser(x_t, t), denoiser.schedule.level(s, x_t)
    small = posterior_variance(belief.level, to)
    return mean(belief, to, small) + small.sqrt() * noise


def ddpm_large(denoiser: Denoiser, x_t: Sample, t: PerSample, s: PerSample, noise: Sample | None) -> Sample:
    """Ancestral sampling with the forward process's variance, the large one; the last step returns the mean."""
    belief, to = denoiser(x_t, t), denoiser.schedule.level(s, x_t)
    large = forward_variance(belief.level, to) * (to.sigma > 0)
    return mean(belief, to, posterior_variance(belief.level, to)) + large.sqrt() * noise


def renoise(denoiser: Denoiser, x_t: Sample, t: PerSample, s: PerSample, noise: Sample | None) -> Sample:
    """Multistep consistency sampling: jump to the data, add fresh noise (Song et al. 2023, arXiv 2303.01469, alg. 1)."""
    belief, to = denoiser(x_t, t), denoiser.schedule.level(s, x_t)
    return to.alpha * belief.x0 + to.sigma * noise


SOLVERS = {
    "ddim": Solver(ddim, order=1, nfe=1, noisy=False),
    "ddpm": Solver(ddpm, order=None, nfe=1, noisy=True),
    "ddpm_large": Solver(ddpm_large, order=None, nfe=1, noisy=True),
    "renoise": Solver(renoise, order=None, nfe=1, noisy=True),
}


def forward_variance(at: Level, to: Level) -> Tensor:
    """b_{t|s} = sigma_t^2 - (alpha_t/alpha_s)^2 sigma_s^2, the noise that q(x_t | x_s) adds; needs alpha_s > 0."""
    return at.sigma**2 - (at.alpha / to.alpha) ** 2 * to.sigma**2


def posterior_variance(at: Level, to: Level) -> Tensor:
    """The variance of q(x_s | x_t, x_0), b_{t|s} sigma_s^2 / sigma_t^2."""
    return forward_variance(at, to) * to.sigma**2 / at.sigma**2


def mean(belief: Prediction, to: Level, lam2: Tensor) -> Tensor:
    """The mean of q(x_s | x_t, x_0) with variance lam2 at the believed x_0 (arXiv 2010.02502, eq. 7). [b, *x]."""
    return to.alpha * belief.x0 + (to.sigma**2 - lam2).clamp(min=0).sqrt() * belief.eps
