"""A denoiser whose network computes in bfloat16."""

import torch
from torch import Tensor

from diffcore.core.shapes import PerSample, Sample
from diffcore.denoisers.denoiser import Denoiser, Wrapper
from diffcore.denoisers.prediction import Prediction


class BFloat16(Wrapper):
    """Its products and convolutions are in bfloat16 as in training (torch.autocast); what is made of them stays in float32. A
    network that says eps computes in float32 all the same, see `NetDenoiser`."""

    def forward(self, x_t: Sample, t: PerSample) -> Prediction:
        with torch.autocast(x_t.device.type, torch.bfloat16):
            return self.inner(x_t, t)

    def with_inner(self, inner: Denoiser) -> "BFloat16":
        return BFloat16(inner)

    def features(self, x_t: Sample, t: PerSample) -> list[Tensor]:
        with torch.autocast(x_t.device.type, torch.bfloat16):
            return self.inner.features(x_t, t)
