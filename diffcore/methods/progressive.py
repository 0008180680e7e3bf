"""Progressive distillation: one step of the student does what two steps of the teacher do.

Salimans & Ho 2022, arXiv 2202.00512, algorithm 2, with the target in velocity form (diffcore.angle.compose).
"""

from dataclasses import dataclass
from typing import Literal

import torch

from diffcore.angle import compose, diffuse, hop, truncated_snr
from diffcore.draw import Draw
from diffcore.methods import Roles
from diffcore.mistake import Mistake
from diffcore.shapes import PerSample, Sample, lift
from diffcore.trajectory import Trajectory, even

SOLVER = "ddim"


@dataclass(frozen=True)
class Config:
    """steps: the student's N; its teacher takes 2N. weight: truncated SNR (the paper's) or one, on the v error."""

    steps: int
    weight: Literal["truncated_snr", "one"] = "truncated_snr"

    def __post_init__(self):
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")


def loss(config: Config, roles: Roles, x0: Sample, draw: Draw, progress: float) -> PerSample:
    """Weighted squared error of v at t = i/N, i ~ U{1..N}."""
    schedule, n = roles.student.schedule, config.steps
    i = (draw.u * n).floor() + 1
    t, m, s = i / n, (i - 0.5) / n, (i - 1) / n
    phi_t, phi_m, phi_s = schedule.angle(t), schedule.angle(m), schedule.angle(s)
    z = diffuse(x0, draw.noise, phi_t)
    with torch.no_grad():
        va = roles.teacher(z, t).v
        vb = roles.teacher(hop(z, va, phi_t - phi_m), m).v
        aim = compose(z, va, vb, phi_t - phi_m, phi_m - phi_s)
    weight = truncated_snr(phi_t) if config.weight == "truncated_snr" else torch.ones_like(phi_t)
    error = (lift(weight.sqrt(), z) * (roles.student(z, t).v - aim)).flatten(1)
    return error.square().mean(1)


def grid(config: Config) -> Trajectory | None:
    return even(config.steps)


def network_calls(config: Config) -> float:
    return 5.0


def check(config: Config, teacher: Trajectory | None) -> None:
    """The teacher must be valid on the grid of 2N steps."""
    if teacher is not None and teacher != even(2 * config.steps):
        halves = f"set steps to {teacher.steps // 2} or " if teacher.steps % 2 == 0 else ""
        raise Mistake(
            f"steps {config.steps} needs a teacher of {2 * config.steps} steps or one valid at any time, "
            f"but its teacher has {teacher.steps}; {halves}name another teacher"
        )
