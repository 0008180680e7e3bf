"""What beliefs cost, added up."""

from dataclasses import dataclass

from torch import Tensor

from diffcore.denoiser import Condition, Denoiser, Prediction
from diffcore.shapes import PerSample, Sample


@dataclass
class Meter:
    """What beliefs have cost, in network calls times samples."""

    spent: float = 0.0


class Metered(Denoiser):
    """A denoiser whose cost is added up."""

    def __init__(self, inner: Denoiser, meter: Meter):
        super().__init__()
        self.inner, self.meter, self.schedule, self.grid = inner, meter, inner.schedule, inner.grid

    def forward(self, x_t: Sample, t: PerSample) -> Prediction:
        belief = self.inner(x_t, t)
        self.meter.spent += belief.cost * len(x_t)
        return belief

    def begin(self, calls: int | None) -> Denoiser:
        return Metered(self.inner.begin(calls), self.meter)

    def given(self, condition: Condition) -> Denoiser:
        return Metered(self.inner.given(condition), self.meter)

    def of(self, rows: slice | Tensor) -> Denoiser:
        return Metered(self.inner.of(rows), self.meter)

    def features(self, x_t: Sample, t: PerSample) -> list[Tensor]:
        self.meter.spent += len(x_t)
        return self.inner.features(x_t, t)
