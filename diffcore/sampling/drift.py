"""The drifts of the probability flow and of the reverse-time SDE. Song et al. 2021 (arXiv 2011.13456)."""

from diffcore.core.shapes import PerSample, Sample, lift
from diffcore.denoisers.denoiser import Denoiser
from diffcore.noise.process import rates


def flow_drift(denoiser: Denoiser, x_t: Sample, t: PerSample) -> Sample:
    """dx/dt of the probability flow, f x - g^2/2 score (eq. 13)."""
    rate = rates(denoiser.schedule, t)
    return lift(rate.f, x_t) * x_t - lift(rate.g2 / 2, x_t) * denoiser(x_t, t).score


def reverse_drift(denoiser: Denoiser, x_t: Sample, t: PerSample) -> Sample:
    """The drift of the reverse-time SDE, f x - g^2 score (eq. 6)."""
    rate = rates(denoiser.schedule, t)
    return lift(rate.f, x_t) * x_t - lift(rate.g2, x_t) * denoiser(x_t, t).score
