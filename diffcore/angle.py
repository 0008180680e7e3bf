"""The one equation.

On a variance-preserving process use the angle phi = atan2(sigma, alpha) and the velocity v = alpha eps - sigma x_0 = dz/dphi.
One DDIM step over the angle d is then a rotation, and every method here regresses the one velocity whose single hop lands
where two hops land. The coefficients are formed in float64 from differences of angles, never through an SNR: the published
x_0-space form divides by alpha_s - (sigma_s/sigma_t) alpha_t and loses all its digits in low precision.
"""

import torch

from diffcore.shapes import PerSample, Sample, lift


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
