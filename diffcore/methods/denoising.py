"""The teacher's own objective: predict the velocity of the straight arc from data to noise, at continuous times."""

from dataclasses import dataclass

from diffcore.angle import diffuse, velocity
from diffcore.draw import Draw
from diffcore.methods import Roles
from diffcore.shapes import PerSample, Sample
from diffcore.trajectory import Trajectory

SOLVER = "ddim"


@dataclass(frozen=True)
class Config:
    """Nothing to choose: uniform t, weight 1 on the squared error of v (SNR + 1 on that of x_0)."""


def loss(config: Config, roles: Roles, x0: Sample, draw: Draw, progress: float) -> PerSample:
    """Mean squared error of v at t ~ U(0, 1) (Salimans & Ho 2022, arXiv 2202.00512, section 4)."""
    phi = roles.student.schedule.angle(draw.u)
    z = diffuse(x0, draw.noise, phi)
    error = roles.student(z, draw.u).v - velocity(x0, draw.noise, phi)
    return error.flatten(1).square().mean(1)


def grid(config: Config) -> Trajectory | None:
    return None


def network_calls(config: Config) -> float:
    return 3.0
