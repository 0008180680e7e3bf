"""The diffusion process behind a schedule: dx = f(t) x dt + g(t) dw with the marginals alpha(t), sigma(t).

Song et al. 2021 (arXiv 2011.13456): f = d log alpha/dt, g^2 = d sigma^2/dt - 2 f sigma^2, whatever the schedule. The
derivatives are exact (automatic), so that a schedule need only say alpha and sigma.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from diffcore.core.shapes import PerSample
from diffcore.noise.schedule import Schedule


@dataclass(frozen=True)
class Rates:
    """f and g^2 at t, [b] each, float64.

    f is infinite where alpha is 0; g^2 is not a number where sigma has no slope, as on the linear schedule at 0.
    """

    f: PerSample
    g2: PerSample


def rates(schedule: Schedule, t: PerSample) -> Rates:
    """The drift's factor and the squared diffusion (arXiv 2011.13456, eq. 5)."""
    (alpha, d_alpha), (sigma, d_sigma) = (_slope(scale, t) for scale in (schedule.alpha, schedule.sigma))
    f = d_alpha / alpha
    return Rates(f, 2 * sigma * d_sigma - 2 * f * sigma**2)


def _slope(scale: Callable[[PerSample], PerSample], t: PerSample) -> tuple[PerSample, PerSample]:
    """A scale and its derivative in t; no sample's depends on another's."""
    with torch.inference_mode(False), torch.enable_grad():
        at = t.detach().clone().double().requires_grad_(True)
        value = scale(at)
        (slope,) = torch.autograd.grad((value + 0 * at).sum(), at)  # 0 * at: a constant scale has a slope too
    return value.detach(), slope


def transition(schedule: Schedule, s: PerSample, t: PerSample) -> tuple[PerSample, PerSample]:
    """(scale, variance) of q(x_t | x_s) for s < t: alpha_t/alpha_s and sigma_t^2 - scale^2 sigma_s^2. [b] each."""
    scale = schedule.alpha(t) / schedule.alpha(s)
    return scale, schedule.sigma(t) ** 2 - scale**2 * schedule.sigma(s) ** 2
