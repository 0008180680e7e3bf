"""From x at a trajectory's first time to x at its last.

A solver is a frozen dataclass: its fields are its options in params.yaml, its properties declare what it promises. The ways
to make one step x_t -> x_s derive from `Stepwise`; those that remember earlier calls, choose their own times or make
several calls in a step write `solve` themselves. The known ones are in diffcore.sampling.solvers.
"""

import abc
from collections.abc import Callable

from torch import Tensor

from diffcore.core.errors import UserError
from diffcore.core.shapes import PerSample, Sample
from diffcore.denoisers.denoiser import Denoiser, per_sample
from diffcore.denoisers.node import Node, node
from diffcore.denoisers.prediction import Prediction
from diffcore.noise.schedule import Level, Schedule
from diffcore.noise.trajectory import Trajectory

Noise = Callable[[], Sample]
"""The next draw of standard normal noise, of the batch's shape."""

History = list[tuple[Node, Prediction]]
"""Nodes with the beliefs at them, the latest first."""


class Solver(abc.ABC):
    """word: what it is called in params.yaml, empty for what solvers are made of. order: the error against the probability
    flow falls as h^order on uniform steps; None if it does not aim there.

    stochastic: whether it draws noise. adaptive: whether the data decide how often it calls the network. min_steps: the
    fewest steps it can make.
    """

    word: str = ""
    order: int | None = None
    stochastic: bool = False
    adaptive: bool = False
    min_steps: int = 1

    @abc.abstractmethod
    def solve(self, denoiser: Denoiser, x: Sample, trajectory: Trajectory, noise: Noise) -> Sample:
        """x: [b, *x] at the first time; returns it at the last. Sample i must not depend on the others in the batch."""


class Stepwise(Solver):
    """A solver that forgets: each step is made of x_t alone."""

    @abc.abstractmethod
    def step(self, denoiser: Denoiser, x_t: Sample, t: PerSample, s: PerSample, noise: Sample | None) -> Sample:
        """x_t -> x_s with 0 <= s < t <= 1; `noise` is None for a deterministic solver. t, s: [b]."""

    def solve(self, denoiser: Denoiser, x: Sample, trajectory: Trajectory, noise: Noise) -> Sample:
        for t, s in trajectory.pairs:
            x = self.step(denoiser, x, per_sample(t, x), per_sample(s, x), noise() if self.stochastic else None)
        return x


def signed(h: float | Tensor, to: Node | Level, predicts: str) -> tuple[float | Tensor, float | Tensor]:
    """The exponent and the scale of a step's integral: sigma_s exp(h) of eps, alpha_s exp(-h) of x_0 (arXiv 2211.01095)."""
    return (h, to.sigma) if predicts == "eps" else (-h, to.alpha)


def need_signal(solver: str, schedule: Schedule, trajectory: Trajectory) -> None:
    """Refuses a trajectory that begins at alpha = 0, where x / alpha means nothing (a UserError)."""
    if node(schedule, trajectory.times[0]).alpha == 0:
        raise UserError(
            f"{solver} cannot begin at t = {trajectory.times[0]:g}, where this schedule has no signal left; "
            "sample it on the trajectory karras or uniform_logsnr"
        )


def forward_variance(at: Level, to: Level) -> Tensor:
    """b_{t|s} = sigma_t^2 - (alpha_t/alpha_s)^2 sigma_s^2, the noise that q(x_t | x_s) adds; needs alpha_s > 0."""
    return at.sigma**2 - (at.alpha / to.alpha) ** 2 * to.sigma**2


def posterior_variance(at: Level, to: Level) -> Tensor:
    """The variance of q(x_s | x_t, x_0), b_{t|s} sigma_s^2 / sigma_t^2."""
    return forward_variance(at, to) * to.sigma**2 / at.sigma**2


def mean(belief: Prediction, to: Level, lam2: Tensor) -> Tensor:
    """The mean of q(x_s | x_t, x_0) with variance lam2 at the believed x_0 (arXiv 2010.02502, eq. 7). [b, *x]."""
    return to.alpha * belief.x0 + (to.sigma**2 - lam2).clamp(min=0).sqrt() * belief.eps
