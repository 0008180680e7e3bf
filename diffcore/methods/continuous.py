"""Continuous-time consistency: the discrete method's gradient in the limit of no step, by one Jacobian-vector product.

sCM in TrigFlow form (Lu & Song 2024, arXiv 2410.11081, algorithm 1). Their t is our angle phi, their sigma_d is 1 and their
network F is our v, so f = cos(phi) z - sin(phi) v; along the trajectory f should not change.

The paper learns a weight for each time with a network of its own. That is left out: only the prior weight stays.

The network must take time in slowly: at a rate of 1000 radians the tangent is noise. Ours does (`network.max_phase`).
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from diffcore.core.rng import Draw
from diffcore.core.shapes import PerSample, Sample, lift
from diffcore.methods import Method, Roles
from diffcore.noise.angle import diffuse, velocity
from diffcore.noise.schedule import Schedule
from diffcore.noise.trajectory import Trajectory


@dataclass(frozen=True)
class Continuous(Method):
    """data: dz/dphi is the teacher's velocity (distillation) or the sample's own, cos eps - sin x_0 (training).

    mean, std: of the normal log tan(phi), the log of the noise beside unscaled data. warmup: share of the training over which
    the tangent's second term is turned on, 0 for none. norm: c of g / (rms(g) + c). weight: on the squared error; the paper's
    prior 1/tan(phi) is in the tangent's cos(phi) already, so `one` is its equation 8 and `inverse_tan` stresses small times
    once more.
    """

    data: Literal["distillation", "training"] = "distillation"
    mean: float = -1.0
    std: float = 1.4
    warmup: float = 0.1
    norm: float = 0.1
    weight: Literal["one", "inverse_tan"] = "one"

    sampler = "multistep_consistency"

    def __post_init__(self):
        if self.std <= 0:
            raise ValueError(f"std must be positive, got {self.std}")
        if not 0 <= self.warmup <= 1:
            raise ValueError(f"warmup must be in [0, 1], got {self.warmup}")
        if self.norm <= 0:
            raise ValueError(f"norm must be positive, got {self.norm}")

    def loss(self, roles: Roles, x0: Sample, draw: Draw, progress: float) -> PerSample:
        """Mean squared error of v against itself, without gradient, plus the normalised tangent.

        Only its gradient means something: with the target its own student, its value is the mean square of the tangent.
        """
        schedule = roles.student.schedule
        log_tan = self.log_tans(draw.u, schedule)
        phi, t = log_tan.exp().atan(), schedule.time(-log_tan)
        z = diffuse(x0, draw.noise, phi)
        with torch.no_grad():
            arc = roles.teacher(z, t).v if self.data == "distillation" else velocity(x0, draw.noise, phi)
            g = normalised(tangent(roles, z, log_tan, arc, self.warm(progress)), self.norm)
        v = roles.student(z, t).v
        # the student's own v, not the target's: equal but for bfloat16 and dropout, whose noise is no error
        square = (v - (v.detach() + g)).flatten(1).square().mean(1)
        return square if self.weight == "one" else square * (-log_tan).exp().to(square.dtype)

    def warm(self, progress: float) -> float:
        """r: from 0 to 1 over the warm-up."""
        return 1.0 if self.warmup == 0 else min(1.0, progress / self.warmup)

    def log_tans(self, u: PerSample, schedule: Schedule) -> PerSample:
        """log tan(phi) ~ N(mean, std), at most what the schedule has at t = 1; float64."""
        most = -schedule.half_logsnr(torch.ones_like(u[:1]))
        return torch.minimum(self.mean + self.std * torch.special.ndtri(u.double()), most)

    @property
    def asks_teacher(self) -> bool:
        return self.data == "distillation"

    def advice(self, teacher: Trajectory) -> str:
        return f"{super().advice(teacher)}, or set data to training"

    @property
    def network_calls(self) -> float:
        """Calls, as everywhere; the target's carries a tangent with it, which makes it as long as about two."""
        return 5.0 if self.data == "distillation" else 4.0


def tangent(roles: Roles, z: Sample, log_tan: PerSample, arc: Sample, warmth: float) -> Sample:
    """cos(phi) df/dphi = -cos^2 (F - dz/dphi) - r cos sin (z + dF/dphi), with dz/dphi = arc along the trajectory.

    cos sin d/dphi is d/d(log tan phi), minus the derivative by the schedule's half log-SNR: so the paper's rearranged tangent
    (cos sin dz/dphi, cos sin) is taken through any schedule, and stays finite at both ends.
    """
    schedule, phi = roles.target.schedule, log_tan.exp().atan()
    cos, sin = lift(phi.cos(), z), lift(phi.sin(), z)
    t, speed = _jvp(schedule.time, (-log_tan,), (-torch.ones_like(log_tan),))
    v, change = _jvp(lambda z, t: roles.target(z, t).v, (z, t), (cos * sin * arc, speed))
    return -(cos**2) * (v - arc) - warmth * (cos * sin * z + change)


def normalised(g: Sample, c: float) -> Sample:
    """g / (rms(g) + c) for each sample. The paper divides by |g| + c; the root mean square, which is |g|/sqrt(d), gives c one
    meaning for images of every size."""
    rms = g.flatten(1).square().mean(1).sqrt()
    return g / lift(rms + c, g)


def _jvp(function: Callable[..., Tensor], at: tuple[Tensor, ...], along: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """A function's value and its derivative along a direction.

    In full precision, as a difference of bfloat16 numbers is no derivative, with plain attention, as torch's fused kernels
    know no forward mode, and with networks as they are, as compiled ones know none.
    """
    quiet, exact = warnings.catch_warnings(), torch.autocast(at[0].device.type, enabled=False)
    with quiet, exact, sdpa_kernel(SDPBackend.MATH), _Contiguous(), torch.compiler.set_stance("force_eager"):
        # torch's first derivative of a process loads rules that it compiles in a way it calls deprecated itself
        warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", DeprecationWarning)
        return torch.func.jvp(function, at, along)


class _Contiguous(TorchFunctionMode):
    """Group norms see plain memory: torch's forward mode of them refuses channels_last, in which networks are trained."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.group_norm:
            args = (args[0].contiguous(), *args[1:])
        return func(*args, **(kwargs or {}))
