"""What is believed of x_0, kept where images can be: clipped to a range, or thresholded.

An image's values end at -1 and 1, a network's belief about it need not. Where much noise is left and steps are few, what
lies outside is carried into every later step; training asks for none of this, so it belongs to a sampling.
"""

import math
from dataclasses import dataclass, replace

import torch

from diffcore.core.shapes import PerSample, Sample, lift
from diffcore.denoisers.denoiser import Denoiser, Wrapper
from diffcore.denoisers.prediction import Prediction


@dataclass(frozen=True)
class Clip:
    """Each value of x_0 moved into [-bound, bound]; diffusers' `clip_sample`."""

    bound: float = 1.0

    def __post_init__(self):
        if not 0 < self.bound < math.inf:
            raise ValueError(f"clip must be a positive number, got {self.bound}")

    def __call__(self, x0: Sample) -> Sample:
        return x0.clamp(-self.bound, self.bound)


@dataclass(frozen=True)
class Threshold:
    """Dynamic thresholding (Saharia et al. 2022, arXiv 2205.11487, section 2.3): x_0 clipped to [-s, s] and divided by s.

    s: a sample's own, this quantile of its |x_0|, but at least 1 and at most `max`; with max 1 it is a clip to [-1, 1].
    diffusers' `thresholding`.
    """

    quantile: float = 0.995
    max: float = 1.0

    def __post_init__(self):
        if not 0 < self.quantile <= 1 or not 1 <= self.max < math.inf:
            raise ValueError(
                f"threshold's quantile must be in 0..1 and its max at least 1, got {self.quantile} and {self.max}"
            )

    def __call__(self, x0: Sample) -> Sample:
        size = x0.abs().flatten(1).to(torch.promote_types(x0.dtype, torch.float32))
        s = lift(torch.quantile(size, self.quantile, dim=1).clamp(1, self.max), x0)
        return torch.minimum(torch.maximum(x0, -s), s) / s


class Clipped(Wrapper):
    """A denoiser whose x_0 is kept within limits. Its eps is what then fits x_t, so that every reading of the belief agrees.

    A belief within the limits stays as it is, bit for bit. Where sigma is 0 eps stays too: nothing of it is in x_t.
    """

    def __init__(self, inner: Denoiser, limit: Clip | Threshold):
        super().__init__(inner)
        self.limit = limit

    def forward(self, x_t: Sample, t: PerSample) -> Prediction:
        belief = self.inner(x_t, t)
        x0, level = self.limit(belief.x0), belief.level
        weight = torch.where(level.sigma > 0, level.alpha / level.sigma, 0.0)
        return replace(belief, x0=x0, eps=belief.eps + weight * (belief.x0 - x0))

    def with_inner(self, inner: Denoiser) -> "Clipped":
        return Clipped(inner, self.limit)
