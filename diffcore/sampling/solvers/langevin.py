"""Langevin dynamics at one noise level after the other: alone (NCSN), or to correct another solver's steps."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from diffcore.core.errors import UserError
from diffcore.core.shapes import Sample, lift
from diffcore.denoisers.denoiser import Denoiser, per_sample
from diffcore.denoisers.node import node, predict_at
from diffcore.noise.trajectory import Trajectory
from diffcore.sampling.solver import Noise, Solver, Stepwise, need_signal
from diffcore.sampling.solvers.ancestral import DDPM
from diffcore.sampling.solvers.sde import EulerMaruyama, ReverseDiffusion


@dataclass(frozen=True)
class Langevin(Solver):
    """Annealed Langevin dynamics (Song & Ermon 2019, arXiv 1907.05600, algorithm 1), in x/alpha with noise k = sigma/alpha.

    inner: steps at each level. rate: a step's size relative to the level, so that it is rate k^2. At the end the mean of x_0.
    """

    word = "langevin"

    inner: int = 5
    rate: float = 0.2

    stochastic = True

    def __post_init__(self):
        if self.inner < 1 or not 0 < self.rate < 2:
            raise ValueError(f"inner must be at least 1 and rate in (0, 2), got {self.inner} and {self.rate}")

    def solve(self, denoiser: Denoiser, x: Sample, trajectory: Trajectory, noise: Noise) -> Sample:
        need_signal("langevin", denoiser.schedule, trajectory)
        if trajectory.times[-1] != 0:
            raise UserError(f"langevin ends with the mean of x_0, not at t = {trajectory.times[-1]:g}; end at 0")
        nodes = [node(denoiser.schedule, t) for t in trajectory.times[:-1]]
        bar = x / nodes[0].alpha
        for at in nodes:
            size = self.rate * (at.sigma / at.alpha) ** 2
            for _ in range(self.inner):
                # the score in x/alpha is -eps/k
                drift = -predict_at(denoiser, at.alpha * bar, at).eps * at.alpha / at.sigma
                bar = bar + size / 2 * drift + size**0.5 * noise()
        return predict_at(denoiser, nodes[-1].alpha * bar, nodes[-1]).x0


PREDICTORS: dict[str, type[Stepwise]] = {
    "reverse_diffusion": ReverseDiffusion,
    "euler_maruyama": EulerMaruyama,
    "ddpm": DDPM,
}


@dataclass(frozen=True)
class PredictorCorrector(Solver):
    """Langevin steps at each time, then a predictor's step to the next (arXiv 2011.13456, algorithms 4 and 5).

    predictor: whose steps. snr: the corrector's r, the size of its steps against its noise. corrections: steps at each time.
    Norms are each sample's own, where the paper averages them over the batch. The algorithms' alpha, 1 - beta_i of the step
    to be undone and 1 where the variance explodes, is (alpha_t/alpha_s)^2 of the trajectory's.
    """

    word = "predictor_corrector"

    predictor: Literal["reverse_diffusion", "euler_maruyama", "ddpm"] = "reverse_diffusion"
    snr: float = 0.16
    corrections: int = 1

    stochastic = True

    def __post_init__(self):
        if self.snr <= 0 or self.corrections < 1:
            raise ValueError(f"snr must be positive and corrections at least 1, got {self.snr} and {self.corrections}")

    def solve(self, denoiser: Denoiser, x: Sample, trajectory: Trajectory, noise: Noise) -> Sample:
        need_signal("predictor_corrector", denoiser.schedule, trajectory)
        predictor = PREDICTORS[self.predictor]()
        for t, s in trajectory.pairs:
            at, to = per_sample(t, x), per_sample(s, x)
            alpha = lift(denoiser.schedule.alpha(at) / denoiser.schedule.alpha(to), x) ** 2
            for _ in range(self.corrections):
                x = self._corrected(denoiser(x, at).score, x, noise(), alpha)
            x = predictor.step(denoiser, x, at, to, noise())
        return x

    def _corrected(self, score: Sample, x: Sample, noise: Sample, alpha: Tensor) -> Sample:
        size = 2 * alpha * (self.snr * _norm(noise) / _norm(score)) ** 2
        return x + size * score + (2 * size).sqrt() * noise


def _norm(x: Sample) -> Tensor:
    """[b, 1, ...], each sample's own length."""
    return x.flatten(1).norm(dim=1).reshape(-1, *[1] * (x.ndim - 1))
