"""Classifier-free guidance."""

from dataclasses import replace

import torch
from torch import Tensor

from diffcore.core.errors import UserError
from diffcore.core.shapes import PerSample, Sample, lift
from diffcore.denoisers.condition import Condition
from diffcore.denoisers.denoiser import Denoiser, Wrapper
from diffcore.denoisers.prediction import Prediction


class Guided(Wrapper):
    """Classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598): unconditional + g (conditional - unconditional).

    g = 1 is the conditional belief, g = 0 the unconditional one; diffusers calls this number guidance_scale, and papers that
    write (1 + w) conditional - w unconditional mean g = 1 + w. Where something negative is known, a class or a text, its
    belief stands for the unconditional one, so that g does nothing to samples of that. Costs two network calls,
    made as one batch.
    """

    def __init__(self, inner: Denoiser, condition: Condition | None = None, s: PerSample | None = None):
        super().__init__(inner)
        self.condition, self.s = condition or Condition(), s

    def forward(self, x_t: Sample, t: PerSample) -> Prediction:
        condition = self.condition
        if condition.guidance is None or not condition.inputs:
            raise UserError("guidance needs a class or a text, and a weight for each sample; give it a condition")
        both = self.inner.with_condition(condition.with_away())
        both = both if self.s is None else both.toward(torch.cat([self.s, self.s]))
        belief = both(torch.cat([x_t, x_t]), torch.cat([t, t]))
        g = lift(condition.guidance, x_t)
        x0, eps = (torch.lerp(without, with_, g) for with_, without in (belief.x0.chunk(2), belief.eps.chunk(2)))
        return Prediction(x0, eps, self.schedule.level(t, x_t), 2 * belief.cost)

    def with_inner(self, inner: Denoiser) -> "Guided":
        return Guided(inner, self.condition, self.s)

    def with_condition(self, condition: Condition) -> "Guided":
        """Kept here: the inner one is told its classes, and none, at each call."""
        return Guided(self.inner, condition, self.s)

    def select(self, rows: slice | Tensor) -> "Guided":
        return Guided(self.inner, self.condition[rows], None if self.s is None else self.s[rows])

    def toward(self, s: PerSample) -> "Guided":
        """Kept here too: both halves of the batch land there."""
        return Guided(self.inner, self.condition, s)

    def features(self, x_t: Sample, t: PerSample) -> list[Tensor]:
        return self.inner.with_condition(replace(self.condition, guidance=None, negative=None)).features(x_t, t)
