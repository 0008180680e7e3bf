"""The reverse-time SDE in small steps (Song et al. 2021, arXiv 2011.13456)."""

from dataclasses import dataclass

import torch

from diffcore.core.shapes import PerSample, Sample, lift
from diffcore.denoisers.denoiser import Denoiser
from diffcore.noise.process import rates
from diffcore.noise.trajectory import Trajectory
from diffcore.sampling.drift import reverse_drift
from diffcore.sampling.solver import Noise, Stepwise, forward_variance, need_signal


@dataclass(frozen=True)
class EulerMaruyama(Stepwise):
    """x + drift (s - t) + g sqrt(t - s) z (appendix D); the last step adds no noise.

    Needs many steps, and a first time with some signal: the drift grows without bound where alpha vanishes.
    """

    word = "euler_maruyama"
    stochastic = True

    def step(self, denoiser: Denoiser, x_t: Sample, t: PerSample, s: PerSample, noise: Sample | None) -> Sample:
        g = rates(denoiser.schedule, t).g2.sqrt()
        moved = x_t + lift(s - t, x_t) * reverse_drift(denoiser, x_t, t)
        return moved + lift(torch.where(s > 0, g * (t - s).sqrt(), 0.0), x_t) * noise

    def solve(self, denoiser: Denoiser, x: Sample, trajectory: Trajectory, noise: Noise) -> Sample:
        need_signal("euler_maruyama", denoiser.schedule, trajectory)
        return super().solve(denoiser, x, trajectory, noise)


@dataclass(frozen=True)
class ReverseDiffusion(Stepwise):
    """The reverse of the discrete forward step x_t = a x_s + G z: (2 - a) x + G^2 score + G z (appendix E, eq. 46).

    a = alpha_t/alpha_s; the last step adds no noise.
    """

    word = "reverse_diffusion"
    stochastic = True

    def step(self, denoiser: Denoiser, x_t: Sample, t: PerSample, s: PerSample, noise: Sample | None) -> Sample:
        belief, to = denoiser(x_t, t), denoiser.schedule.level(s, x_t)
        a, spread = belief.level.alpha / to.alpha, forward_variance(belief.level, to)
        mean = (2 - a) * x_t + spread * belief.score
        return mean + torch.where(to.sigma > 0, spread.sqrt(), 0.0) * noise
