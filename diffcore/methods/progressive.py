"""Progressive distillation: one step of the student does what `factor` steps of the teacher do, two in the paper.

Salimans & Ho 2022, arXiv 2202.00512, algorithm 2, with the target in velocity form (diffcore.noise.angle.compose). The
paper's next teacher is the student's last weights, not an average of them: `ema: 0`.
"""

from dataclasses import dataclass
from typing import Literal

import torch

from diffcore.core.rng import Draw
from diffcore.core.shapes import PerSample, Sample, lift
from diffcore.denoisers.denoiser import Denoiser
from diffcore.methods import Method, Roles
from diffcore.noise.angle import WEIGHTS, Velocity, diffuse, hops
from diffcore.noise.trajectory import Trajectory, uniform


@dataclass(frozen=True)
class Progressive(Method):
    """steps: the student's N. factor: how many times as many its teacher takes.

    weight: on the squared error of v: truncated_snr (the paper's), snr_plus_one (the same as one) or snr, which asks nothing
    of the student at t = 1. clip: the teacher's beliefs about x_0 to [-1, 1] on the way to the target. The paper's code
    clips them when it samples and not here; clipping bends the path, so it is right only for a student whose sampler clips.
    """

    steps: int
    weight: Literal["truncated_snr", "one", "snr_plus_one", "snr"] = "truncated_snr"
    factor: int = 2
    clip: bool = False

    sampler = "ddim"
    off_the_data = True
    one_graph = True

    def __post_init__(self):
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")
        if self.factor < 2:
            raise ValueError(f"factor must be at least 2, got {self.factor}")
        if self.weight == "snr" and self.steps == 1:
            raise ValueError("weight snr is 0 at t = 1, where the only step of 1 begins; take truncated_snr")

    def loss(self, roles: Roles, x0: Sample, draw: Draw, progress: float) -> PerSample:
        """Weighted squared error of v at t = i/N, i ~ U{1..N}."""
        schedule, n, factor = roles.student.schedule, self.steps, self.factor
        i = (draw.u * n).floor() + 1
        times = [(factor * i - j) / (factor * n) for j in range(factor + 1)]
        phi = schedule.angle(times[0])
        z = diffuse(x0, draw.noise, phi)
        with torch.no_grad():
            aim = hops(_clipped(roles.teacher) if self.clip else _plain(roles.teacher), z, times, schedule)
        weight = WEIGHTS[self.weight](phi)
        error = (lift(weight.sqrt(), z) * (roles.student(z, times[0]).v - aim)).flatten(1)
        return error.square().mean(1)

    @property
    def teacher_grid(self) -> Trajectory:
        return uniform(self.factor * self.steps)

    def advice(self, teacher: Trajectory) -> str:
        whole = teacher.steps % self.factor == 0
        return (
            f"set steps to {teacher.steps // self.factor} or name another teacher" if whole else super().advice(teacher)
        )

    @property
    def grid(self) -> Trajectory | None:
        return uniform(self.steps)

    @property
    def network_calls(self) -> float:
        return 3.0 + self.factor


def _plain(teacher: Denoiser) -> Velocity:
    return lambda z, t: teacher(z, t).v


def _clipped(teacher: Denoiser) -> Velocity:
    """The velocity of the belief whose x_0 is clipped and whose eps still explains z: v + (x_0 - clipped x_0) / sin(phi)."""

    def v(z: Sample, t: PerSample) -> Sample:
        belief = teacher(z, t)
        return belief.v + (belief.x0 - belief.x0.clamp(-1, 1)) / lift(teacher.schedule.angle(t).sin(), z)

    return v
