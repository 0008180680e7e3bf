"""The teacher's own objective: predict the velocity of the straight arc from data to noise, at continuous times."""

from dataclasses import dataclass
from typing import Literal

from diffcore.core.rng import Draw
from diffcore.core.shapes import PerSample, Sample, lift
from diffcore.methods import Method, Roles
from diffcore.noise.angle import WEIGHTS, diffuse, min_snr, velocity


@dataclass(frozen=True)
class Denoising(Method):
    """weight: named for the squared error of x_0, and used on that of v, where none of them grows without bound.

    one, the same as snr_plus_one: 1. truncated_snr, max(SNR, 1): max(alpha^2, sigma^2). snr, 1 on the error of eps: alpha^2.
    min_snr, min(SNR, gamma): min(alpha^2, gamma sigma^2) (Hang et al. 2023, arXiv 2303.09556, whose gamma is 5). The
    last two ask nothing of the network at pure noise, where a sampler begins.
    """

    weight: Literal["one", "snr_plus_one", "truncated_snr", "snr", "min_snr"] = "one"
    gamma: float = 5.0

    sampler = "ddim"
    asks_teacher = False
    one_graph = True

    def __post_init__(self):
        if self.gamma <= 0:
            raise ValueError(f"gamma must be positive, got {self.gamma}")

    def loss(self, roles: Roles, x0: Sample, draw: Draw, progress: float) -> PerSample:
        """Weighted mean squared error of v at t ~ U(0, 1) (Salimans & Ho 2022, arXiv 2202.00512, section 4)."""
        phi = roles.student.schedule.angle(draw.u)
        z = diffuse(x0, draw.noise, phi)
        weight = min_snr(phi, self.gamma) if self.weight == "min_snr" else WEIGHTS[self.weight](phi)
        error = lift(weight.sqrt(), z) * (roles.student(z, draw.u).v - velocity(x0, draw.noise, phi))
        return error.flatten(1).square().mean(1)

    @property
    def off_the_data(self) -> bool:
        """A weight that falls to 0 with the noise bounds the error of any parameterization."""
        return self.weight == "min_snr"

    @property
    def network_calls(self) -> float:
        return 3.0
