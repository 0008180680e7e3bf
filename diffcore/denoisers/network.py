"""A network, read as a denoiser."""

import contextlib

import torch
from torch import Tensor, nn

from diffcore.core.errors import Mistake
from diffcore.core.shapes import PerSample, Sample
from diffcore.denoisers.denoiser import Condition, Denoiser
from diffcore.denoisers.prediction import HEADS, Prediction
from diffcore.noise.schedule import Schedule
from diffcore.noise.trajectory import Trajectory

LABELS = 1024
"""T of the label c = T t - 1 that a network is given: a power of two, so that every halving lands on an integer."""


class NetDenoiser(Denoiser):
    """A network `net(x_t, label) -> [b, *x]` read through a head; for the head `both` it says [b, 2c, ...]. The label is
    T t - 1, a float; T is 1024 for our own.

    The network sees x_t as it is, so the schedule must be a variance-preserving one. classes: how many classes it tells
    apart, None for a network that knows none; the index after the last one stands for no class. weighs: whether the guidance
    weight is one of its inputs.
    """

    def __init__(
        self,
        net: nn.Module,
        schedule: Schedule,
        head: str = "v",
        grid: Trajectory | None = None,
        classes: int | None = None,
        weighs: bool = False,
        condition: Condition | None = None,
        labels: int = LABELS,
    ):
        super().__init__()
        self.net, self.schedule, self.head, self.grid = net, schedule, head, grid
        self.classes, self.weighs, self.condition, self.labels = classes, weighs, condition, labels

    def forward(self, x_t: Sample, t: PerSample) -> Prediction:
        # where alpha is 0.006, bfloat16's rounding of eps is half of x_0
        whole = torch.autocast(x_t.device.type, enabled=False) if self.head == "eps" else contextlib.nullcontext()
        with whole:
            out = self.net(x_t, label(t, self.labels), *self._inputs(x_t)).to(x_t.dtype)
        return HEADS[self.head](x_t, self.schedule.level(t, x_t), out)

    def given(self, condition: Condition) -> "NetDenoiser":
        if self.classes is None and not self.weighs:
            return self
        return self.around(self.net, condition)

    def of(self, rows: slice | Tensor) -> "NetDenoiser":
        return self if self.condition is None else self.given(self.condition[rows])

    def features(self, x_t: Sample, t: PerSample) -> list[Tensor]:
        if not hasattr(self.net, "features"):
            return super().features(x_t, t)
        return self.net.features(x_t, label(t, self.labels), *self._inputs(x_t))

    def around(self, net: nn.Module, condition: Condition | None = None) -> "NetDenoiser":
        """The same reading of another network."""
        known = condition or self.condition
        return NetDenoiser(net, self.schedule, self.head, self.grid, self.classes, self.weighs, known, self.labels)

    def _inputs(self, x_t: Sample) -> tuple[Tensor | None, ...]:
        if self.classes is None and not self.weighs:
            return ()
        known = self.condition or Condition()
        labels = None
        if self.classes is not None:
            labels = torch.full((len(x_t),), -1, device=x_t.device) if known.labels is None else known.labels
            labels = torch.where(labels < 0, self.classes, labels)
        if not self.weighs:
            return (labels,)
        if known.guidance is None:
            raise Mistake("this student takes the guidance weight as an input; say which one, evaluate's `guidance`")
        return labels, known.guidance


def label(t: PerSample, labels: int = LABELS) -> PerSample:
    """What a network is told about t, [b], float32: diffusers' index of t on a grid of T steps."""
    return (t.double() * labels - 1).float()
