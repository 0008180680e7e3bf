"""The probability flow as a black box, integrated to a tolerance (Song et al. 2021, arXiv 2011.13456, section 4.3)."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from diffcore.core.shapes import PerSample, Sample
from diffcore.denoisers.denoiser import Denoiser
from diffcore.noise.schedule import Schedule
from diffcore.noise.trajectory import Trajectory
from diffcore.sampling.ode import Rate, integrate
from diffcore.sampling.solver import Noise, Solver


@dataclass(frozen=True)
class RK45(Solver):
    """Dormand and Prince's method from the trajectory's first time to its last; those between are not needed.

    Runs in the angle phi = atan2(sigma, alpha) of the rescaled z = x / hypot(alpha, sigma), where the flow is dz/dphi = v and
    nothing is singular, from pure noise to the data. Each sample has steps of its own: the number of network calls is a mean.
    """

    word = "rk45"

    rtol: float = 1e-3
    atol: float = 1e-3

    order = 5
    adaptive = True

    def __post_init__(self):
        if self.rtol <= 0 or self.atol <= 0:
            raise ValueError(f"rtol and atol must be positive, got {self.rtol} and {self.atol}")

    def solve(self, denoiser: Denoiser, x: Sample, trajectory: Trajectory, noise: Noise) -> Sample:
        schedule = denoiser.schedule
        ends = trajectory.times[0], trajectory.times[-1]
        clock = Clock(schedule, ends)
        start, end = angles(schedule, ends)
        z = x / size_at(schedule, ends[0])
        z = integrate(flow(denoiser, clock, x), z.flatten(1), start, end, self.rtol, self.atol)
        return z.reshape(x.shape) * size_at(schedule, ends[1])


def flow(denoiser: Denoiser, clock: Callable[[PerSample], PerSample], like: Tensor) -> Rate:
    """dz/dphi = v for flattened samples shaped like `like`."""

    def rate(z: Tensor, phi: Tensor, rows: Tensor) -> Tensor:
        z, t = z.reshape(-1, *like.shape[1:]), clock(phi)
        level = denoiser.schedule.level(t, z)
        return denoiser.select(rows)(z * torch.hypot(level.alpha, level.sigma), t).v.flatten(1).to(z.dtype)

    return rate


@dataclass(frozen=True)
class Clock:
    """The time at an angle; exactly the first or last time at an end, where the half log-SNR may be infinite."""

    schedule: Schedule
    ends: tuple[float, float]

    def __call__(self, phi: PerSample) -> PerSample:
        first, last = angles(self.schedule, self.ends)
        low, high = min(first, last), max(first, last)
        inner = phi.clamp(max(low, 1e-9), min(high, math.pi / 2 - 1e-9))
        t = self.schedule.time(inner.cos().log() - inner.sin().log())
        for angle, time in zip((first, last), self.ends):
            t = torch.where((phi - angle).abs() < 1e-12, time, t)
        return t


def size_at(schedule: Schedule, t: float) -> float:
    """hypot(alpha, sigma), 1 for a variance-preserving schedule."""
    at = torch.tensor([t], dtype=torch.float64)
    return float(torch.hypot(schedule.alpha(at), schedule.sigma(at)))


def angles(schedule: Schedule, times: tuple[float, float]) -> tuple[float, float]:
    first, last = schedule.angle(torch.tensor(times, dtype=torch.float64)).tolist()
    return first, last
