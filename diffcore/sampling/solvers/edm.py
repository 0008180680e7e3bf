"""Heun's method and the stochastic sampler of Karras et al. 2022 (arXiv 2206.00364), in k = sigma/alpha on any schedule.

In x/alpha and k the probability flow is d(x/alpha)/dk = eps. A step from alpha = 0 or to sigma = 0 is Euler's, which is DDIM.
"""

import itertools
import math
from dataclasses import dataclass

from diffcore.core.shapes import Sample
from diffcore.denoisers.denoiser import Denoiser
from diffcore.denoisers.node import Node, at_half_logsnr, ddim_step, node, predict_at
from diffcore.noise.trajectory import Trajectory
from diffcore.sampling.solver import Noise, Solver, need_signal


@dataclass(frozen=True)
class Heun(Solver):
    """Algorithm 1: two calls a step, one in the last: 2 K - 1."""

    word = "heun"
    order = 2

    def solve(self, denoiser: Denoiser, x: Sample, trajectory: Trajectory, noise: Noise) -> Sample:
        nodes = [node(denoiser.schedule, t) for t in trajectory.times]
        for at, to in itertools.pairwise(nodes):
            x = heun_step(denoiser, x, at, to)
        return x


def heun_step(denoiser: Denoiser, x: Sample, at: Node, to: Node) -> Sample:
    """Euler's step, and half of how far eps has turned at its end."""
    belief = predict_at(denoiser, x, at)
    landed = ddim_step(belief, to)
    if at.alpha == 0 or to.sigma == 0:
        return landed
    turned = predict_at(denoiser, landed, to).eps - belief.eps
    return landed + to.alpha * (to.sigma / to.alpha - at.sigma / at.alpha) / 2 * turned


@dataclass(frozen=True)
class EDM(Solver):
    """Algorithm 2: before each of Heun's steps a little noise is added anew ("churn").

    churn: the paper's S_churn, over all steps. s_min, s_max: the range of sigma/alpha in which there is any. noise: its size,
    S_noise. Noise is never raised above what the schedule has at t = 1.
    """

    word = "edm"

    churn: float = 20.0
    s_min: float = 0.05
    s_max: float = 50.0
    noise: float = 1.003

    stochastic = True

    def __post_init__(self):
        if self.churn < 0 or self.s_min < 0 or self.s_max < self.s_min or self.noise <= 0:
            raise ValueError("churn and s_min must not be negative, s_max be at least s_min and noise positive")

    def solve(self, denoiser: Denoiser, x: Sample, trajectory: Trajectory, noise: Noise) -> Sample:
        need_signal("edm", denoiser.schedule, trajectory)
        nodes = [node(denoiser.schedule, t) for t in trajectory.times]
        share = min(self.churn / trajectory.steps, math.sqrt(2) - 1)
        for at, to in itertools.pairwise(nodes):
            fresh, ratio = noise(), at.sigma / at.alpha
            if share and self.s_min <= ratio <= self.s_max:
                raised = self._raised(denoiser, at, ratio * (1 + share))
                added = max(0.0, (raised.sigma / raised.alpha) ** 2 - ratio**2) ** 0.5
                x = raised.alpha * (x / at.alpha + added * self.noise * fresh)
                at = raised
            x = heun_step(denoiser, x, at, to)
        return x

    def _raised(self, denoiser: Denoiser, at: Node, ratio: float) -> Node:
        noisiest = node(denoiser.schedule, 1.0)
        if noisiest.alpha and ratio > noisiest.sigma / noisiest.alpha:
            return noisiest
        return at_half_logsnr(denoiser.schedule, -math.log(ratio))
