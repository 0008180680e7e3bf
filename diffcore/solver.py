"""From x at a trajectory's first time to x at its last.

A solver is a frozen dataclass: its fields are its options in params.yaml, its properties declare what it promises. The ways
to make one step x_t -> x_s derive from `Stepwise`; those that remember earlier calls, choose their own times or make
several calls in a step write `solve` themselves. The known ones are in diffcore.solvers.
"""

import abc
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from diffcore.denoiser import Denoiser, Prediction, per_sample
from diffcore.mistake import Mistake
from diffcore.schedule import Level, Schedule
from diffcore.shapes import PerSample, Sample
from diffcore.trajectory import Trajectory

Noise = Callable[[], Sample]
"""The next draw of standard normal noise, of the batch's shape."""


class Solver(abc.ABC):
    """order: the error against the probability flow falls as h^order on even steps; None if it does not aim there.

    noisy: whether it draws noise. adaptive: whether the data decide how often it calls the network. least: the fewest steps
    it can make.
    """

    order: int | None = None
    noisy: bool = False
    adaptive: bool = False
    least: int = 1

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
            x = self.step(denoiser, x, per_sample(t, x), per_sample(s, x), noise() if self.noisy else None)
        return x


@dataclass(frozen=True)
class Mark:
    """A time with its coefficients as plain float64 numbers. lam: log(alpha/sigma), -inf and inf where one of them is 0."""

    t: float
    alpha: float
    sigma: float
    lam: float


def mark(schedule: Schedule, t: float) -> Mark:
    """The coefficients at t."""
    alpha, sigma = (float(f(_one(t))) for f in (schedule.alpha, schedule.sigma))
    lam = -math.inf if alpha == 0 else math.inf if sigma == 0 else math.log(alpha / sigma)
    return Mark(t, alpha, sigma, lam)


def at_half_logsnr(schedule: Schedule, lam: float) -> Mark:
    """The time at which log(alpha/sigma) is `lam`, for solvers that look between the trajectory's times."""
    return mark(schedule, float(schedule.time(_one(lam))))


def believe(denoiser: Denoiser, x: Sample, at: Mark) -> Prediction:
    """One network call for a batch that is all at one time."""
    return denoiser(x, per_sample(at.t, x))


def land(belief: Prediction, to: Mark) -> Sample:
    """alpha_s x_0 + sigma_s eps: the DDIM step, exact in first order in every parametrisation and singular nowhere."""
    return to.alpha * belief.x0 + to.sigma * belief.eps


def signed(h: float | Tensor, to: Mark | Level, predicts: str) -> tuple[float | Tensor, float | Tensor]:
    """The exponent and the scale of a step's integral: sigma_s exp(h) of eps, alpha_s exp(-h) of x_0 (arXiv 2211.01095)."""
    return (h, to.sigma) if predicts == "eps" else (-h, to.alpha)


def _one(value: float) -> Tensor:
    return torch.tensor([value], dtype=torch.float64)


def need_signal(solver: str, schedule: Schedule, trajectory: Trajectory) -> None:
    """Refuses a trajectory that begins at alpha = 0, where x / alpha means nothing (a Mistake)."""
    if mark(schedule, trajectory.times[0]).alpha == 0:
        raise Mistake(
            f"{solver} cannot begin at t = {trajectory.times[0]:g}, where this schedule has no signal left; "
            "sample it on the trajectory karras or logsnr"
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
