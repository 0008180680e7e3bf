"""Consistency distillation: the student jumps from any point of the teacher's trajectory to its end.

Song et al. 2023, arXiv 2303.01469, algorithm 2, on a variance-preserving process with a v network, which satisfies the
boundary condition f(z, 0) = z by construction, as multistep consistency models do (Heek et al. 2024, arXiv 2403.06807).
"""

from dataclasses import dataclass
from typing import Literal

import torch

from diffcore.angle import compose, diffuse, hop
from diffcore.draw import Draw
from diffcore.methods import Roles
from diffcore.mistake import Mistake
from diffcore.shapes import PerSample, Sample
from diffcore.trajectory import Trajectory

SOLVER = "renoise"


@dataclass(frozen=True)
class Config:
    """steps: N, the teacher's grid t = k/N. target_ema: decay of the EMA that the student must agree with, 0 for itself.

    distance: squared error of v, or pseudo-Huber sqrt(|.|^2 + c^2) - c with c = huber sqrt(d) (Song & Dhariwal 2023,
    arXiv 2310.14189, whose huber is 0.00054).
    """

    steps: int
    target_ema: float
    distance: Literal["squared", "pseudo_huber"] = "pseudo_huber"
    huber: float = 0.00054

    def __post_init__(self):
        if self.steps < 2:
            raise ValueError(f"steps must be at least 2, got {self.steps}")
        if not 0 <= self.target_ema < 1:
            raise ValueError(f"target_ema must be in [0, 1), got {self.target_ema}")
        if self.huber <= 0:
            raise ValueError(f"huber must be positive, got {self.huber}")


def loss(config: Config, roles: Roles, x0: Sample, draw: Draw, progress: float) -> PerSample:
    """The distance of v at t = k/N, k ~ U{1..N}, from the velocity that lands where a teacher step, then the target land."""
    schedule, n = roles.student.schedule, config.steps
    k = (draw.u * n).floor() + 1
    t, u = k / n, (k - 1) / n
    phi_t, phi_u = schedule.angle(t), schedule.angle(u)
    z = diffuse(x0, draw.noise, phi_t)
    with torch.no_grad():
        va = roles.teacher(z, t).v
        vb = roles.target(hop(z, va, phi_t - phi_u), u).v
        aim = compose(z, va, vb, phi_t - phi_u, phi_u)
    error = (roles.student(z, t).v - aim).flatten(1)
    if config.distance == "squared":
        return error.square().mean(1)
    c = config.huber * error.shape[1] ** 0.5
    return (error.square().sum(1) + c**2).sqrt() - c


def grid(config: Config) -> Trajectory | None:
    return None


def network_calls(config: Config) -> float:
    return 5.0


def check(config: Config, teacher: Trajectory | None) -> None:
    """The teacher must mean its velocity at every time: a progressive student's is an average over its own step."""
    if teacher is not None:
        raise Mistake(
            f"consistency needs a teacher valid at any time, but this one is valid only on its own {teacher.steps} "
            "steps; name the teacher it was distilled from"
        )


def target_decay(config: Config) -> float:
    return config.target_ema
