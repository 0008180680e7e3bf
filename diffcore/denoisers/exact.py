"""Exact denoisers: the rulers of this project."""

import torch
from torch import Tensor

from diffcore.core.shapes import PerSample, Sample
from diffcore.denoisers.denoiser import Denoiser
from diffcore.denoisers.prediction import Prediction
from diffcore.noise.schedule import Schedule


class GaussianDenoiser(Denoiser):
    """The exact denoiser of x_0 ~ N(mean, diag(variance)): the first ruler of this project.

    mean, variance: [*x]. The flow map, Gamma and every optimal variance are closed forms too.
    """

    def __init__(self, mean: Tensor, variance: Tensor, schedule: Schedule):
        super().__init__()
        self.mean, self.variance, self.schedule, self.grid = mean, variance, schedule, None

    def forward(self, x_t: Sample, t: PerSample) -> Prediction:
        level = self.schedule.level(t, x_t)
        total = level.alpha**2 * self.variance + level.sigma**2
        pull = (x_t - level.alpha * self.mean) / total
        return Prediction(self.mean + level.alpha * self.variance * pull, level.sigma * pull, level)

    def flow(self, x_t: Sample, t: PerSample, s: PerSample) -> Sample:
        """The exact probability-flow map from t to s: the standardised x stays as it is."""
        at, to = self.schedule.level(t, x_t), self.schedule.level(s, x_t)
        ratio = (to.alpha**2 * self.variance + to.sigma**2) / (at.alpha**2 * self.variance + at.sigma**2)
        return to.alpha * self.mean + ratio.sqrt() * (x_t - at.alpha * self.mean)

    def gamma(self, t: PerSample) -> PerSample:
        """Gamma = E|score|^2 / d, the mean over coordinates of 1 / (alpha^2 c^2 + sigma^2). [b], float64."""
        flat = self.variance.double().flatten()
        return (self.schedule.alpha(t)[:, None] ** 2 * flat + self.schedule.sigma(t)[:, None] ** 2).reciprocal().mean(1)


class GaussianFlowMap(GaussianDenoiser):
    """The exact denoiser of two times of the same data: `toward(s)` believes in the (x_0, eps) through which one hop lands on
    the flow at s; without it, and where s = t, in the posterior mean."""

    s: PerSample | None = None

    def toward(self, s: PerSample) -> "GaussianFlowMap":
        own = GaussianFlowMap(self.mean, self.variance, self.schedule)
        own.s = s
        return own

    def select(self, rows: slice | Tensor) -> "GaussianFlowMap":
        return self if self.s is None else self.toward(self.s[rows])

    def forward(self, x_t: Sample, t: PerSample) -> Prediction:
        belief = super().forward(x_t, t)
        if self.s is None:
            return belief
        at, to = belief.level, self.schedule.level(self.s, x_t)
        landed, area = self.flow(x_t, t, self.s), to.alpha * at.sigma - at.alpha * to.sigma
        hops, area = area > 0, torch.where(area > 0, area, 1.0)
        x0, eps = (at.sigma * landed - to.sigma * x_t) / area, (to.alpha * x_t - at.alpha * landed) / area
        return Prediction(torch.where(hops, x0, belief.x0), torch.where(hops, eps, belief.eps), at)


class MixtureDenoiser(Denoiser):
    """The exact denoiser of a mixture of diagonal Gaussians: exact score, no closed flow; the ruler for several modes.

    weights: [k], means, variances: [k, *x].
    """

    def __init__(self, weights: Tensor, means: Tensor, variances: Tensor, schedule: Schedule):
        super().__init__()
        self.weights, self.means, self.variances = weights, means, variances
        self.schedule, self.grid = schedule, None

    def forward(self, x_t: Sample, t: PerSample) -> Prediction:
        level = self.schedule.level(t, x_t)
        alpha, sigma = level.alpha.unsqueeze(1), level.sigma.unsqueeze(1)
        total = alpha**2 * self.variances + sigma**2  # [b, k, *x]
        away = x_t.unsqueeze(1) - alpha * self.means
        log_density = -0.5 * (away**2 / total + total.log()).flatten(2).sum(2)
        share = torch.softmax(self.weights.to(x_t.dtype).log() + log_density, 1)
        share = share.reshape(*share.shape, *([1] * (x_t.ndim - 1)))
        x0 = (share * (self.means + alpha * self.variances * away / total)).sum(1)
        return Prediction(x0, (share * sigma * away / total).sum(1), level)
