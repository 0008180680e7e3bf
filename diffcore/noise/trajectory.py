"""The times of a sampler's steps."""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from diffcore.core.errors import UserError
from diffcore.noise.schedule import Schedule

SCHEMA = 2
"""Of trajectory.json."""


@dataclass(frozen=True)
class Trajectory:
    """K + 1 falling times from the first look to the result: K steps. Usually from 1 to 0."""

    times: tuple[float, ...]

    def __post_init__(self):
        falling = all(t > s for t, s in itertools.pairwise(self.times))
        if len(self.times) < 2 or not falling or self.times[0] > 1 or self.times[-1] < 0:
            raise UserError(
                f"a trajectory needs at least two times that fall from at most 1 to at least 0, got {self.times}"
            )

    @property
    def steps(self) -> int:
        return len(self.times) - 1

    @property
    def pairs(self) -> tuple[tuple[float, float], ...]:
        """(t, s) of each step."""
        return tuple(itertools.pairwise(self.times))

    def halved(self) -> "Trajectory":
        """Every second time; the number of steps must be even."""
        if self.steps % 2:
            raise UserError(f"a trajectory of {self.steps} steps cannot be halved")
        return Trajectory(self.times[::2])


def uniform(steps: int) -> Trajectory:
    """t = k/K: equal angles on the cosine schedule, diffusers' "trailing" spacing."""
    _check(steps)
    return Trajectory(tuple(k / steps for k in range(steps, -1, -1)))


def quadratic(steps: int) -> Trajectory:
    """t = (k/K)^2: small steps near the data (DDIM's, arXiv 2010.02502, appendix D.2)."""
    _check(steps)
    return Trajectory(tuple((k / steps) ** 2 for k in range(steps, -1, -1)))


def uniform_logsnr(steps: int, schedule: Schedule) -> Trajectory:
    """Equal steps in log(alpha/sigma) between the `ends` of the schedule, then 0 (DPM-Solver's, arXiv 2206.00927)."""
    _check(steps)
    return _through(
        schedule, torch.linspace(*(math.log(end) for end in ends(schedule)), steps, dtype=torch.float64).exp()
    )


def karras(steps: int, schedule: Schedule, rho: float = 7.0) -> Trajectory:
    """Equal steps in (sigma/alpha)^(1/rho) between the `ends` of the schedule, then 0 (arXiv 2206.00364, eq. 5)."""
    _check(steps)
    first, last = (end ** (1 / rho) for end in ends(schedule))
    return _through(schedule, torch.linspace(first, last, steps, dtype=torch.float64) ** rho)


def ends(schedule: Schedule) -> tuple[float, float]:
    """The largest and the smallest sigma/alpha of `karras` and `uniform_logsnr`: 80 and 0.002, or what t = 1 and 0.001
    have."""
    t = torch.tensor([1.0, 1e-3], dtype=torch.float64)
    noisiest, cleanest = (schedule.sigma(t) / schedule.alpha(t)).tolist()
    return min(80.0, noisiest), max(0.002, cleanest)


def _through(schedule: Schedule, ratios: Tensor) -> Trajectory:
    times = schedule.time(-ratios.log()).clamp(max=1.0).tolist()
    return Trajectory((*times, 0.0))


TRAJECTORIES: dict[str, Callable[[int, Schedule], Trajectory]] = {
    "uniform": lambda steps, schedule: uniform(steps),
    "quadratic": lambda steps, schedule: quadratic(steps),
    "uniform_logsnr": uniform_logsnr,
    "karras": karras,
}
"""Those that need nothing but a schedule, by their words in params.yaml."""


def nodes(places: list[int], total: int) -> Trajectory:
    """The trajectory through t = n/N for the given rising n in 1..N, ending at 0: K nodes are K network calls."""
    if not places or any(a >= b for a, b in itertools.pairwise(places)) or places[0] < 1 or places[-1] > total:
        raise UserError(f"nodes must rise within 1..{total}, got {places}")
    return Trajectory((*(n / total for n in reversed(places)), 0.0))


def _check(steps: int) -> None:
    if steps < 1:
        raise UserError(f"a trajectory needs at least 1 step, got {steps}")
