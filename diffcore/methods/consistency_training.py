"""Consistency training: a student that jumps to the end of the trajectory, learned from data alone.

Consistency distillation with the teacher's velocity replaced by the sample's own, cos(phi) eps - sin(phi) x_0, whose mean at
z is the exact velocity; so the target is right to first order in the hop, in expectation (Song et al. 2023, arXiv 2303.01469,
theorem 2). Both times see the same x_0 and eps. Two ways to choose the times, in sigma = tan(phi), the noise beside unscaled
data: iCT (Song & Dhariwal 2023, arXiv 2310.14189) and ECT (Geng et al. 2024, arXiv 2406.14548).

No teacher is asked for anything: the line's `teacher` is only where the student starts, and any checkpoint, of any method and
any grid, will do. ECT is meant to start from a diffusion model, iCT needs none.
"""

import functools
import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from diffcore.core.rng import Draw
from diffcore.core.shapes import PerSample, Sample, lift
from diffcore.core.transfer import to_device
from diffcore.methods import Method, Roles
from diffcore.methods.parts.distance import pseudo_huber
from diffcore.noise.angle import compose, diffuse, velocity
from diffcore.noise.schedule import Schedule

SIGMAS = 0.002, 80.0
"""Ends of iCT's levels (Karras et al. 2022, arXiv 2206.00364); the lower one stands for the data, where f is the identity."""

RHO = 7


@dataclass(frozen=True)
class ConsistencyTraining(Method):
    """schedule: how the pair of times is chosen; mean, std: of log sigma, log-normal in both.

    ict: a grid of Karras' levels, `first` intervals that double in equal parts of the training up to `last`.
    ect: r = t (1 - q^-(stage + 1) (1 + k sigmoid(-b t))) in sigma, at least 0; `stages` equal parts of the training. Its
    one-hour variant is q 256, stages 1.
    huber: c / sqrt(d) of the distance sqrt(|.|^2 + c^2) - c between two beliefs about x_0; null for the paper's, 0.00054 for
    ict and 0, the plain norm, for ect. weight: `gap` is 1/(t - r) in sigma, both papers'; `one` takes the distance in v.
    """

    schedule: Literal["ict", "ect"] = "ict"
    mean: float = -1.1
    std: float = 2.0
    first: int = 10
    last: int = 1280
    q: float = 2.0
    k: float = 8.0
    b: float = 1.0
    stages: int = 8
    huber: float | None = None
    weight: Literal["gap", "one"] = "gap"

    sampler = "multistep_consistency"
    asks_teacher = False

    def __post_init__(self):
        if self.std <= 0:
            raise ValueError(f"std must be positive, got {self.std}")
        if not 1 <= self.first <= self.last:
            raise ValueError(f"first must be at least 1 and last not below it, got {self.first} and {self.last}")
        if self.q <= 1:
            raise ValueError(f"q must be above 1, got {self.q}: r would stay at 0 for ever")
        if self.k < 0 or self.b < 0:
            raise ValueError(f"k and b must not be negative, got {self.k} and {self.b}")
        if self.stages < 1:
            raise ValueError(f"stages must be at least 1, got {self.stages}")
        if self.huber is not None and self.huber < 0:
            raise ValueError(f"huber must not be negative, got {self.huber}")

    def loss(self, roles: Roles, x0: Sample, draw: Draw, progress: float) -> PerSample:
        """The weighted distance between f(z_t, t) and f(z_r, r), by way of v.

        f = cos(phi) z - sin(phi) v, so two beliefs at the same z_t differ by sin(phi_t) times the difference of their v; and
        tan(phi_t) - tan(phi_r) = sin(phi_t - phi_r) / (cos(phi_t) cos(phi_r)), in which nothing cancels.
        """
        schedule = roles.student.schedule
        sigma, lower = self.pair(draw.u, progress, _most(schedule))
        phi, phi_r = sigma.atan(), lower.atan()
        z = diffuse(x0, draw.noise, phi)
        v = aim(roles, x0, draw.noise, sigma, lower)
        error = roles.student(z, schedule.time(-sigma.log())).v - v
        if self.weight == "one":
            return self._distance(error)
        gap = (phi - phi_r).sin() / (phi.cos() * phi_r.cos())
        return self._distance(lift(phi.sin(), error) * error) / gap.to(error.dtype)

    def pair(self, u: PerSample, progress: float, most: float = math.inf) -> tuple[PerSample, PerSample]:
        """(t, r) in sigma for each uniform number, r < t <= most, float64; r may be 0, the data."""
        u = u.double().contiguous()
        if self.schedule == "ict":
            levels = to_device(ict_levels(self.intervals(progress), most), u.device)
            i = torch.searchsorted(self._shares(levels).cumsum(0), u, right=True).clamp(max=len(levels) - 2)
            return levels[i + 1], levels[i]
        t = (self.mean + self.std * torch.special.ndtri(u)).exp().clamp(max=most)
        return t, self.ect_lower(t, progress)

    def intervals(self, progress: float) -> int:
        """iCT's N - 1: `first`, doubled in equal parts of the training until it is `last` (arXiv 2310.14189, eq. 14)."""
        parts = math.ceil(math.log2(self.last / self.first)) + 1
        return min(self.first * 2 ** math.floor(progress * parts), self.last)

    def ect_lower(self, t: PerSample, progress: float) -> PerSample:
        """r(t) of the stage that `progress` is in (arXiv 2406.14548, section 3.3)."""
        stage = math.floor(progress * self.stages)
        ratio = 1 - self.q ** -(stage + 1) * (1 + self.k * torch.sigmoid(-self.b * t))
        return t * ratio.clamp(min=0)

    @property
    def network_calls(self) -> float:
        return 4.0

    def _shares(self, levels: Tensor) -> Tensor:
        """How often each interval is drawn: the log-normal's mass in it (arXiv 2310.14189, eq. 10)."""
        log = levels.clamp(min=SIGMAS[0]).log()
        mass = torch.special.erf((log - self.mean) / (math.sqrt(2) * self.std)).diff()
        return mass / mass.sum()

    def _distance(self, error: Sample) -> PerSample:
        huber = self.huber
        if huber is None:
            huber = 0.00054 if self.schedule == "ict" else 0.0
        if huber == 0:
            return torch.linalg.vector_norm(
                error.flatten(1), dim=1
            )  # pseudo-Huber's square root has no slope at 0 then
        return pseudo_huber(error, huber)


@torch.no_grad()
def aim(roles: Roles, x0: Sample, eps: Sample, sigma: PerSample, lower: PerSample) -> Sample:
    """The velocity at sigma that lands where the target lands from the lower level of the same arc."""
    phi, phi_r = sigma.atan(), lower.atan()
    vb = roles.target(diffuse(x0, eps, phi_r), roles.student.schedule.time(-lower.log())).v
    vb = torch.where(lift(lower, vb) > 0, vb, 0)  # a hop of no length; an x0 network has no v there
    return compose(diffuse(x0, eps, phi), velocity(x0, eps, phi), vb, phi - phi_r, phi_r)


def ict_levels(count: int, most: float = math.inf) -> Tensor:
    """count + 1 rising levels of sigma, the first of which is 0: f is the identity there and not at Karras' least one."""
    least, largest = SIGMAS[0] ** (1 / RHO), min(SIGMAS[1], most) ** (1 / RHO)
    levels = torch.linspace(least, largest, count + 1, dtype=torch.float64) ** RHO
    levels[0] = 0.0
    return levels


@functools.cache
def _most(schedule: Schedule) -> float:
    """sigma/alpha at t = 1, beyond which the schedule has no time."""
    return float(schedule.angle(torch.ones(1, dtype=torch.float64)).tan())
