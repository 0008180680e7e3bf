"""Guided distillation, stage one: one call of the student for the two of a guided teacher, at every time and weight.

Meng et al. 2022, arXiv 2210.03142, section 3.1. The trainer has wrapped the teacher in classifier-free guidance
(diffcore.denoisers.guidance.Guided), and student and teacher know each sample's class and weight. Few steps are stage two:
any method with this student as its teacher.
"""

from dataclasses import dataclass
from typing import Literal

import torch

from diffcore.core.errors import UserError
from diffcore.core.rng import Draw
from diffcore.core.shapes import PerSample, Sample, lift
from diffcore.methods import Method, Roles
from diffcore.noise.angle import diffuse, truncated_snr


@dataclass(frozen=True)
class GuidedDistillation(Method):
    """weight: on the squared error of v, one or truncated SNR (the paper's)."""

    weight: Literal["truncated_snr", "one"] = "truncated_snr"

    sampler = "ddim"
    one_graph = True

    def loss(self, roles: Roles, x0: Sample, draw: Draw, progress: float) -> PerSample:
        """Weighted squared error of v against the teacher's at t ~ U(0, 1)."""
        phi = roles.student.schedule.angle(draw.u)
        z = diffuse(x0, draw.noise, phi)
        with torch.no_grad():
            aim = roles.teacher(z, draw.u).v
        weight = truncated_snr(phi) if self.weight == "truncated_snr" else torch.ones_like(phi)
        error = lift(weight.sqrt(), z) * (roles.student(z, draw.u).v - aim)
        return error.flatten(1).square().mean(1)

    @property
    def network_calls(self) -> float:
        """One of the teacher, in which a guided one makes two of its network."""
        return 4.0

    def check_guidance(self, weights: tuple[float, float] | None) -> None:
        """There must be weights to learn: (lowest, highest), equal where one is built in."""
        if weights is None:
            raise UserError("guided needs weights to learn; say `guidance: [lowest, highest]` in its line")
