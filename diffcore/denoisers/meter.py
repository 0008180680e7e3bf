"""What beliefs cost, added up."""

from dataclasses import dataclass

import torch
from torch import Tensor

from diffcore.core.shapes import PerSample, Sample
from diffcore.denoisers.denoiser import Denoiser, Wrapper
from diffcore.denoisers.prediction import Prediction


@dataclass
class Meter:
    """What beliefs have cost, in network calls times samples."""

    spent: float = 0.0


def with_backward(learns: bool) -> int:
    """What a call counts: a backward pass costs two more."""
    return 3 if learns and torch.is_grad_enabled() else 1


class Metered(Wrapper):
    """A denoiser whose cost is added up. learns: whether it is in training, so that a call may have a backward pass."""

    def __init__(self, inner: Denoiser, meter: Meter, learns: bool = False):
        super().__init__(inner)
        self.meter, self.learns = meter, learns

    def forward(self, x_t: Sample, t: PerSample) -> Prediction:
        belief = self.inner(x_t, t)
        self.meter.spent += belief.cost * len(x_t) * with_backward(self.learns)
        return belief

    def with_inner(self, inner: Denoiser) -> "Metered":
        return Metered(inner, self.meter, self.learns)

    def features(self, x_t: Sample, t: PerSample) -> list[Tensor]:
        self.meter.spent += len(x_t)
        return super().features(x_t, t)
