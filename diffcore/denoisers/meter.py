"""What beliefs cost, added up."""

import torch
from torch import Tensor

from diffcore.core.shapes import PerSample, Sample
from diffcore.denoisers.denoiser import Denoiser, Wrapper
from diffcore.denoisers.prediction import Prediction


class Meter:
    """Adds up what beliefs cost, in network calls times samples.

    calls: what was added and is not summed yet. A compiled function adds to an empty list each time, never to a number, which
    would be another one each time.
    """

    def __init__(self):
        self.calls: list[float] = []
        self._before = 0.0

    def add(self, calls: float | int) -> None:
        self.calls.append(calls)

    def take(self, other: "Meter") -> None:
        """Adds what another has not summed yet."""
        self.calls += other.calls

    def settle(self) -> float:
        """All that was added so far; `calls` is empty then."""
        for calls in self.calls:
            self._before += calls
        self.calls.clear()
        return self._before


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
        self.meter.add(belief.cost * len(x_t) * with_backward(self.learns))
        return belief

    def with_inner(self, inner: Denoiser) -> "Metered":
        return Metered(inner, self.meter, self.learns)

    def features(self, x_t: Sample, t: PerSample) -> list[Tensor]:
        self.meter.add(len(x_t))
        return super().features(x_t, t)
