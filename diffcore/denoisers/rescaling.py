"""One denoiser under the schedule of another."""

import dataclasses

import torch
from torch import Tensor

from diffcore.core.shapes import PerSample, Sample
from diffcore.denoisers.denoiser import Denoiser, Wrapper
from diffcore.denoisers.prediction import Prediction
from diffcore.noise.schedule import Schedule


class Rescaled(Wrapper):
    """The same belief under another schedule: x_t is scaled to the inner schedule's point of equal alpha/sigma.

    At times whose SNR the inner schedule never reaches its inverse is asked outside [0, 1].
    """

    def __init__(self, inner: Denoiser, schedule: Schedule):
        super().__init__(inner, schedule)

    def forward(self, x_t: Sample, t: PerSample) -> Prediction:
        belief = self.inner(*self._there(x_t, t))
        return dataclasses.replace(belief, level=self.schedule.level(t, x_t))

    def with_inner(self, inner: Denoiser) -> "Rescaled":
        return Rescaled(inner, self.schedule)

    def toward(self, s: PerSample) -> "Rescaled":
        return self.with_inner(self.inner.toward(self._time(s)))

    def features(self, x_t: Sample, t: PerSample) -> list[Tensor]:
        return super().features(*self._there(x_t, t))

    def _there(self, x_t: Sample, t: PerSample) -> tuple[Sample, PerSample]:
        inner_t = self._time(t)
        level, inner = self.schedule.level(t, x_t), self.inner.schedule.level(inner_t, x_t)
        return x_t * (torch.hypot(inner.alpha, inner.sigma) / torch.hypot(level.alpha, level.sigma)), inner_t

    def _time(self, t: PerSample) -> PerSample:
        """The inner schedule's time of as much noise beside as much of the image."""
        return self.inner.schedule.time(self.schedule.half_logsnr(t))
