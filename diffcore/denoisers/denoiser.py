"""Denoisers, and what wraps them."""

import abc

import torch
from torch import Tensor, nn

from diffcore.core.errors import UserError
from diffcore.core.shapes import PerSample, Sample
from diffcore.denoisers.condition import Condition
from diffcore.denoisers.prediction import Prediction
from diffcore.noise.schedule import Schedule
from diffcore.noise.trajectory import Trajectory


class Denoiser(nn.Module, abc.ABC):
    """(x_t, t) -> Prediction.

    schedule: the noise schedule that t refers to.
    grid: None if the denoiser means what it says at every time; otherwise the only trajectory it may be sampled on (a
    progressive student's velocity is the average over its own step).
    """

    schedule: Schedule
    grid: Trajectory | None

    @abc.abstractmethod
    def forward(self, x_t: Sample, t: PerSample) -> Prediction:
        """x_t: [b, *x], t: [b] in [0, 1]."""

    def start_run(self, calls: int | None) -> "Denoiser":
        """What a sampling run uses: itself, or for a denoiser that remembers, one of the same kind with an empty memory.

        calls: how often the run will call it; None if the data decide.
        """
        return self

    def with_condition(self, condition: Condition) -> "Denoiser":
        """This denoiser for a batch whose classes and guidance weights are known; itself if it takes no notice of them."""
        return self

    def select(self, rows: slice | Tensor) -> "Denoiser":
        """This denoiser for some samples of the batch that `with_condition` described."""
        return self

    def toward(self, s: PerSample) -> "Denoiser":
        """This denoiser for one hop that lands at s, [b]: the v of its belief is then the velocity whose hop from t lands on
        the flow at s. Itself, which says the velocity at t, if its network takes one time."""
        return self

    def features(self, x_t: Sample, t: PerSample) -> list[Tensor]:
        """What its network sees in x_t, [b, c, h, w] for each of its levels; a UserError where there is none to ask."""
        raise UserError(
            "this denoiser has no features to show: a loss on features needs a teacher that is our own U-Net or transformer"
        )


class Wrapper(Denoiser):
    """A denoiser around another one, `inner`: conditions, rows of a batch, where a hop lands, the memory of a sampling run
    and features pass through to that; `with_inner` says what is put about it. schedule: None for the inner one's."""

    def __init__(self, inner: Denoiser, schedule: Schedule | None = None):
        super().__init__()
        self.inner, self.schedule, self.grid = inner, schedule or inner.schedule, inner.grid

    @abc.abstractmethod
    def with_inner(self, inner: Denoiser) -> "Wrapper":
        """The same around another denoiser."""

    def start_run(self, calls: int | None) -> Denoiser:
        return self.with_inner(self.inner.start_run(calls))

    def with_condition(self, condition: Condition) -> Denoiser:
        return self.with_inner(self.inner.with_condition(condition))

    def select(self, rows: slice | Tensor) -> Denoiser:
        return self.with_inner(self.inner.select(rows))

    def toward(self, s: PerSample) -> Denoiser:
        return self.with_inner(self.inner.toward(s))

    def features(self, x_t: Sample, t: PerSample) -> list[Tensor]:
        return self.inner.features(x_t, t)


def per_sample(t: float, like: Sample) -> PerSample:
    """One time for a whole batch: [b], float64, on its device."""
    return torch.full((len(like),), t, dtype=torch.float64, device=like.device)
