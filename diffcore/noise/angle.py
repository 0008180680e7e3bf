"""The one equation.

On a variance-preserving process use the angle phi = atan2(sigma, alpha) and the velocity v = alpha eps - sigma x_0 = dz/dphi.
One DDIM step over the angle d is then a rotation, and every method here regresses the one velocity whose single hop lands
where two hops land. The coefficients are formed in float64 from differences of angles, never through an SNR: the published
x_0-space form divides by alpha_s - (sigma_s/sigma_t) alpha_t and loses all its digits in low precision.
"""

from collections.abc import Callable, Sequence

import torch

from diffcore.core.shapes import PerSample, Sample, lift
from diffcore.noise.schedule import Schedule

Velocity = Callable[[Sample, PerSample], Sample]
"""(z, t) -> v: what somebody believes."""


def hop(z: Sample, v: Sample, d: PerSample) -> Sample:
    """cos(d) z - sin(d) v: exactly one DDIM step from angle phi to phi - d. z, v: [b, *x]; d: [b], radians."""
    d = d.double()
    return lift(d.cos(), z) * z - lift(d.sin(), z) * v


def compose(z: Sample, va: Sample, vb: Sample, d1: PerSample, d2: PerSample) -> Sample:
    """The velocity at z whose one hop over d1 + d2 lands where `hop(hop(z, va, d1), vb, d2)` does.

    Equals progressive distillation's x_0 target (Salimans & Ho 2022, arXiv 2202.00512, appendix G) read as a velocity, and
    the consistency target when the second hop ends at the data. [b, *x]; d1, d2: [b], radians, d1 + d2 in (0, pi).
    """
    d1, d2 = d1.double(), d2.double()
    whole = (d1 + d2).sin()
    first, second = d2.cos() * d1.sin() / whole, d2.sin() / whole
    return lift(first, z) * va + lift(second, z) * vb - lift(d1.sin() * d2.sin() / whole, z) * z


def between(z: Sample, z_s: Sample, d: PerSample) -> Sample:
    """The velocity whose hop over d takes z to z_s: the inverse of `hop` in v. d: [b], radians, in (0, pi)."""
    d = d.double()
    return lift(d.cos() / d.sin(), z) * z - lift(1 / d.sin(), z) * z_s


def hops(v: Velocity, z: Sample, times: Sequence[PerSample], schedule: Schedule) -> Sample:
    """The velocity at z whose one hop over all of the falling times lands where a hop from each to the next lands.

    `compose`, folded: len(times) - 1 DDIM steps for as many calls of v. times: [b] each.
    """
    phi = [schedule.angle(t) for t in times]
    at, whole = z, v(z, times[0])
    last = whole
    for j in range(1, len(times) - 1):
        at = hop(at, last, phi[j - 1] - phi[j])
        last = v(at, times[j])
        whole = compose(z, whole, last, phi[0] - phi[j], phi[j] - phi[j + 1])
    return whole


def heun(v: Velocity, z: Sample, t: PerSample, u: PerSample, schedule: Schedule) -> Sample:
    """The velocity at z whose one hop lands where Heun's step of dz/dphi = v from t to u lands: z_u = z - d (v_t + v_u)/2.

    A step to the data is a DDIM step, as in Karras et al. 2022 (arXiv 2206.00364, algorithm 1): no network is trained to have
    a slope there. v is called twice. t, u: [b], t > u.
    """
    d = schedule.angle(t) - schedule.angle(u)
    first = v(z, t)
    second = v(z - lift(d, z) * first, u)
    step = lift(d / (2 * d.sin()), z) * (first + second) - lift((d / 2).tan(), z) * z
    return torch.where(lift(u, z) > 0, step, first)


def velocity(x0: Sample, eps: Sample, phi: PerSample) -> Sample:
    """v = cos(phi) eps - sin(phi) x_0, the velocity of the straight arc from data to noise."""
    phi = phi.double()
    return lift(phi.cos(), eps) * eps - lift(phi.sin(), eps) * x0


def diffuse(x0: Sample, eps: Sample, phi: PerSample) -> Sample:
    """z = cos(phi) x_0 + sin(phi) eps."""
    phi = phi.double()
    return lift(phi.cos(), eps) * x0 + lift(phi.sin(), eps) * eps


def truncated_snr(phi: PerSample) -> PerSample:
    """max(cos^2, sin^2) of phi: the weight max(SNR, 1) on the x_0 error, as a weight on the v error. [b], in [1/2, 1]."""
    phi = phi.double()
    return torch.maximum(phi.cos(), phi.sin()) ** 2


def snr(phi: PerSample) -> PerSample:
    """cos^2 of phi: SNR on the x_0 error, 1 on the eps error. [b], 0 at pure noise."""
    return phi.double().cos() ** 2


def min_snr(phi: PerSample, gamma: float) -> PerSample:
    """min(cos^2, gamma sin^2) of phi: min(SNR, gamma) on the x_0 error (Hang et al. 2023, arXiv 2303.09556). [b]."""
    return torch.minimum(snr(phi), gamma * phi.double().sin() ** 2)


WEIGHTS: dict[str, Callable[[PerSample], PerSample]] = {
    "one": torch.ones_like,
    "snr_plus_one": torch.ones_like,
    "truncated_snr": truncated_snr,
    "snr": snr,
}
"""On the squared error of v. `one` and `snr_plus_one` are one weight, named for v and for x_0."""
