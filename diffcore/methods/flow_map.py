"""Flow maps: one student for hops of any length, from t to any s below it, which is told both times.

Boffi et al. 2024 (arXiv 2406.07507), in the way of the shortcut models of Frans et al. 2024 (arXiv 2410.12557): a hop must
land where a first part of it and then the rest land, and a hop of no length is the teacher's velocity. Both targets are
velocities, so the exact flow map of any data is a fixed point, without the error of steps that a grid would have.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from diffcore.core.rng import Draw
from diffcore.core.shapes import PerSample, Sample, lift
from diffcore.methods import Method, Roles
from diffcore.methods.parts.distance import pseudo_huber
from diffcore.noise.angle import compose, diffuse, hop
from diffcore.noise.schedule import Schedule

PARTS = 4096
"""A uniform number's place within one of so many parts of [0, 1] is another uniform number."""


@dataclass(frozen=True)
class Times:
    """[b] each: a hop from t over m to s, s < m < t, and whether the velocity at t is learned instead."""

    t: PerSample
    m: PerSample
    s: PerSample
    at_once: Tensor

    @property
    def end(self) -> PerSample:
        """Where the student is told that its hop lands."""
        return torch.where(self.at_once, self.t, self.s)

    def angles(self, schedule: Schedule) -> tuple[PerSample, PerSample, PerSample]:
        """phi of each, float64."""
        return schedule.angle(self.t), schedule.angle(self.m), schedule.angle(self.s)


@dataclass(frozen=True)
class FlowMap(Method):
    """steps: N, hops of lengths 1/N to 1 are made of two. first: the share of a hop that the first one is; a half makes
    shortcut models, less keeps the first one closer to the velocity. velocity: the share of images that learn the teacher's.

    target_ema: decay of the EMA whose two hops are the target, 0 for the student itself. distance: squared error of v, or
    pseudo-Huber with c = huber sqrt(d).
    """

    steps: int = 64
    first: float = 0.25
    velocity: float = 0.25
    target_ema: float = 0.5
    distance: Literal["squared", "pseudo_huber"] = "squared"
    huber: float = 0.00054

    sampler = "ddim"
    off_the_data = True
    one_graph = True
    two_times = True

    def __post_init__(self):
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")
        for name in ("first", "velocity"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name} must be in (0, 1), got {getattr(self, name)}")
        if not 0 <= self.target_ema < 1:
            raise ValueError(f"target_ema must be in [0, 1), got {self.target_ema}")
        if self.huber <= 0:
            raise ValueError(f"huber must be positive, got {self.huber}")

    def loss(self, roles: Roles, x0: Sample, draw: Draw, progress: float) -> PerSample:
        """The distance of the velocity of a hop from that of the target's two parts of it, or of none from the teacher's."""
        at = self.times(draw.u)
        z = diffuse(x0, draw.noise, roles.student.schedule.angle(at.t))
        error = roles.student.toward(at.end)(z, at.t).v - aim(roles, z, at)
        if self.distance == "squared":
            return error.flatten(1).square().mean(1)
        return pseudo_huber(error, self.huber)

    def times(self, u: PerSample) -> Times:
        """For each uniform number. One in 1 + log2 N hops goes from 1 to 0, in one step; the lengths of the others are
        log-uniform in [1/N, 1], and their place in [0, 1] uniform."""
        u = u.double()
        place = (u * PARTS).frac()
        levels = 1 + math.log2(self.steps)
        halvings = levels * (place - self.velocity) / (1 - self.velocity) - 1
        at_once = place < self.velocity
        length = torch.where(at_once, 1 / self.steps, 2 ** -halvings.clamp(min=0))
        s = (1 - length) * u
        return Times(s + length, s + (1 - self.first) * length, s, at_once)

    @property
    def network_calls(self) -> float:
        return 6.0

    @property
    def target_decay(self) -> float:
        return self.target_ema


@torch.no_grad()
def aim(roles: Roles, z: Sample, at: Times) -> Sample:
    """The velocity at z whose one hop lands where the target's hops to m and from there to s land; where no hop is asked for,
    the teacher's."""
    phi_t, phi_m, phi_s = at.angles(roles.student.schedule)
    first = roles.target.toward(at.m)(z, at.t).v
    second = roles.target.toward(at.s)(hop(z, first, phi_t - phi_m), at.m).v
    whole = compose(z, first, second, phi_t - phi_m, phi_m - phi_s)
    return torch.where(lift(at.at_once.double(), z) > 0, roles.teacher(z, at.t).v, whole)
