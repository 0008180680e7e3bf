"""A network, read as a denoiser."""

import contextlib

import torch
from torch import Tensor, nn

from diffcore.core.errors import UserError
from diffcore.core.shapes import PerSample, Sample
from diffcore.denoisers.denoiser import Condition, Denoiser
from diffcore.denoisers.prediction import Prediction
from diffcore.denoisers.reading import VP, Reading
from diffcore.noise.schedule import Schedule
from diffcore.noise.trajectory import Trajectory


class NetDenoiser(Denoiser):
    """A network `net(x, timestep) -> [b, *x]`, fed and read by a reading; for the parameterization `x0_eps` it says
    [b, 2c, ...].

    Our own see x_t as it is, on a variance-preserving schedule, and are told T t - 1 with T = 1024. classes: how many classes
    it tells apart, None for a network that knows none; the index after the last one stands for no class. takes_guidance:
    whether the guidance weight is one of its inputs.
    """

    def __init__(
        self,
        net: nn.Module,
        schedule: Schedule,
        reading: Reading = VP,
        grid: Trajectory | None = None,
        classes: int | None = None,
        takes_guidance: bool = False,
        condition: Condition | None = None,
    ):
        super().__init__()
        self.net, self.schedule, self.reading, self.grid = net, schedule, reading, grid
        self.classes, self.takes_guidance, self.condition = classes, takes_guidance, condition

    def forward(self, x_t: Sample, t: PerSample) -> Prediction:
        # where alpha is 0.006, bfloat16's rounding of eps is half of x_0
        exact = self.reading.parameterization == "eps"
        whole = torch.autocast(x_t.device.type, enabled=False) if exact else contextlib.nullcontext()
        with whole:
            out = self.net(*self.reading.fed(x_t, t, self.schedule), *self._inputs(x_t)).to(x_t.dtype)
        return self.reading.belief(x_t, t, self.schedule, out)

    def with_condition(self, condition: Condition) -> "NetDenoiser":
        if self.classes is None and not self.takes_guidance:
            return self
        return self.with_network(self.net, condition)

    def select(self, rows: slice | Tensor) -> "NetDenoiser":
        return self if self.condition is None else self.with_condition(self.condition[rows])

    def features(self, x_t: Sample, t: PerSample) -> list[Tensor]:
        if not hasattr(self.net, "features"):
            return super().features(x_t, t)
        return self.net.features(*self.reading.fed(x_t, t, self.schedule), *self._inputs(x_t))

    def with_network(self, net: nn.Module, condition: Condition | None = None) -> "NetDenoiser":
        """The same reading of another network."""
        return NetDenoiser(
            net,
            self.schedule,
            self.reading,
            self.grid,
            self.classes,
            self.takes_guidance,
            condition or self.condition,
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
