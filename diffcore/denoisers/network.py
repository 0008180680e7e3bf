"""A network, read as a denoiser."""

import contextlib

import torch
from torch import Tensor, nn

from diffcore.core.errors import UserError
from diffcore.core.shapes import PerSample, Sample
from diffcore.denoisers.denoiser import Condition, Denoiser
from diffcore.denoisers.prediction import PARAMETERIZATIONS, Prediction
from diffcore.noise.schedule import Schedule
from diffcore.noise.trajectory import Trajectory

NUM_TIMESTEPS = 1024
"""T of the timestep c = T t - 1 that a network is given: a power of two, so that every halving lands on an integer."""


class NetDenoiser(Denoiser):
    """A network `net(x_t, timestep) -> [b, *x]` read through a parameterization; for the parameterization `x0_eps` it says
    [b, 2c, ...]. The timestep is T t - 1, a float; T is 1024 for our own.

    The network sees x_t as it is, so the schedule must be a variance-preserving one. classes: how many classes it tells
    apart, None for a network that knows none; the index after the last one stands for no class. takes_guidance: whether
    the guidance weight is one of its inputs.
    """

    def __init__(
        self,
        net: nn.Module,
        schedule: Schedule,
        parameterization: str = "v",
        grid: Trajectory | None = None,
        classes: int | None = None,
        takes_guidance: bool = False,
        condition: Condition | None = None,
        num_timesteps: int = NUM_TIMESTEPS,
    ):
        super().__init__()
        self.net, self.schedule, self.parameterization, self.grid = net, schedule, parameterization, grid
        self.classes, self.takes_guidance = classes, takes_guidance
        self.condition, self.num_timesteps = condition, num_timesteps

    def forward(self, x_t: Sample, t: PerSample) -> Prediction:
        # where alpha is 0.006, bfloat16's rounding of eps is half of x_0
        exact = self.parameterization == "eps"
        whole = torch.autocast(x_t.device.type, enabled=False) if exact else contextlib.nullcontext()
        with whole:
            out = self.net(x_t, timestep(t, self.num_timesteps), *self._inputs(x_t)).to(x_t.dtype)
        return PARAMETERIZATIONS[self.parameterization](x_t, self.schedule.level(t, x_t), out)

    def with_condition(self, condition: Condition) -> "NetDenoiser":
        if self.classes is None and not self.takes_guidance:
            return self
        return self.with_network(self.net, condition)

    def select(self, rows: slice | Tensor) -> "NetDenoiser":
        return self if self.condition is None else self.with_condition(self.condition[rows])

    def features(self, x_t: Sample, t: PerSample) -> list[Tensor]:
        if not hasattr(self.net, "features"):
            return super().features(x_t, t)
        return self.net.features(x_t, timestep(t, self.num_timesteps), *self._inputs(x_t))

    def with_network(self, net: nn.Module, condition: Condition | None = None) -> "NetDenoiser":
        """The same reading of another network."""
        return NetDenoiser(
            net,
            self.schedule,
            self.parameterization,
            self.grid,
            self.classes,
            self.takes_guidance,
            condition or self.condition,
            self.num_timesteps,
        )

    def _inputs(self, x_t: Sample) -> tuple[Tensor | None, ...]:
        if self.classes is None and not self.takes_guidance:
            return ()
        condition = self.condition or Condition()
        class_labels = None
        if self.classes is not None:
            class_labels = (
                torch.full((len(x_t),), -1, device=x_t.device)
                if condition.class_labels is None
                else condition.class_labels
            )
            class_labels = torch.where(class_labels < 0, self.classes, class_labels)
        if not self.takes_guidance:
            return (class_labels,)
        if condition.guidance is None:
            raise UserError("this student takes the guidance weight as an input; say which one, evaluate's `guidance`")
        return class_labels, condition.guidance


def timestep(t: PerSample, num_timesteps: int = NUM_TIMESTEPS) -> PerSample:
    """What a network is told about t, [b], float32: diffusers' index of t on a grid of T steps."""
    return (t.double() * num_timesteps - 1).float()
