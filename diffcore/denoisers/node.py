"""One time with its coefficients, a belief there, and the DDIM step to another."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from diffcore.core.shapes import Sample
from diffcore.denoisers.denoiser import Denoiser, per_sample
from diffcore.denoisers.prediction import Prediction
from diffcore.noise.schedule import Schedule


@dataclass(frozen=True)
class Node:
    """A time with its coefficients as plain float64 numbers. lam: log(alpha/sigma), -inf and inf where one of them is 0."""

    t: float
    alpha: float
    sigma: float
    lam: float


def node(schedule: Schedule, t: float) -> Node:
    """The coefficients at t."""
    alpha, sigma = (float(f(_one(t))) for f in (schedule.alpha, schedule.sigma))
    lam = -math.inf if alpha == 0 else math.inf if sigma == 0 else math.log(alpha / sigma)
    return Node(t, alpha, sigma, lam)


def at_half_logsnr(schedule: Schedule, lam: float) -> Node:
    """The time at which log(alpha/sigma) is `lam`, for solvers that look between the trajectory's times."""
    return node(schedule, float(schedule.time(_one(lam))))


def predict_at(denoiser: Denoiser, x: Sample, at: Node) -> Prediction:
    """One network call for a batch that is all at one time."""
    return denoiser(x, per_sample(at.t, x))


def ddim_step(belief: Prediction, to: Node) -> Sample:
    """alpha_s x_0 + sigma_s eps: the DDIM step, exact in first order in every parametrisation and singular nowhere."""
    return to.alpha * belief.x0 + to.sigma * belief.eps


def _one(value: float) -> Tensor:
    return torch.tensor([value], dtype=torch.float64)
