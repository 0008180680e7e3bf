"""What EDM and EDM2 put around a network (Karras et al. 2022, arXiv 2206.00364, table 1; 2024, arXiv 2312.02696, eq. 22).

Each is a reading that is known here, on a schedule that is: D(x; sigma) = c_skip x + c_out F(c_in x; c_noise) is the belief
of that. Where a network was trained on a range of noise levels, the schedule is that range; else that of EDM's sampler.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from diffcore.core.shapes import PerSample
from diffcore.denoisers.reading import Reading
from diffcore.nets.published.blocks import Unused
from diffcore.nets.published.edm2 import EDM2UNet
from diffcore.nets.published.levels import UNet
from diffcore.nets.published.network import Images, Published
from diffcore.noise.schedule import EDM, VE, Discrete, Linear, Schedule, variance_preserving

SIGMAS = (0.002, 80.0)
"""Of EDM's sampler."""


@dataclass(frozen=True)
class EDMSettings(Images):
    """sigma_min, sigma_max: what it may be asked for. sigma_data: the deviation that it takes its data to have."""

    sigma_min: float = 0.0
    sigma_max: float = math.inf
    sigma_data: float = 0.5
    model_type: str = "DhariwalUNet"


class EDMPrecond(Published):
    """It sees x of variance 1, is told log(sigma) / 4 and says F."""

    names = ("EDMPrecond",)
    Settings = EDMSettings

    @property
    def schedule(self) -> Schedule:
        low, high = SIGMAS
        return variance_preserving(EDM(max(low, self.settings.sigma_min), min(high, self.settings.sigma_max)))

    @property
    def reading(self) -> Reading:
        return Reading.of("edm", "edm", sigma_data=self.settings.sigma_data)


@dataclass(frozen=True)
class VPSettings(Images):
    """beta_d, beta_min: of the linear schedule, whose beta_max is their sum. M: steps of a DDPM that its times count as."""

    beta_d: float = 19.9
    beta_min: float = 0.1
    M: int = 1000
    epsilon_t: float = 1e-5
    model_type: str = "SongUNet"


class VPPrecond(Published):
    """It sees x of variance 1, is told (M - 1) t and says eps (arXiv 2011.13456, eq. 32-33)."""

    names = ("VPPrecond",)
    Settings = VPSettings

    @property
    def schedule(self) -> Schedule:
        return Linear(self.settings.beta_min, self.settings.beta_min + self.settings.beta_d)

    @property
    def reading(self) -> Reading:
        return Reading("eps", self.settings.M - 1, "same", "time")


@dataclass(frozen=True)
class VESettings(Images):
    """sigma_min, sigma_max: of the noise that it knows."""

    sigma_min: float = 0.02
    sigma_max: float = 100.0
    model_type: str = "SongUNet"


class VEPrecond(Published):
    """It sees x_0 + sigma eps and is given sigma, of which the network inside is told log(sigma / 2); that says -eps (arXiv
    2011.13456, eq. 30), and this eps."""

    names = ("VEPrecond",)
    Settings = VESettings

    @property
    def schedule(self) -> Schedule:
        return variance_preserving(VE(self.settings.sigma_min, self.settings.sigma_max))

    @property
    def reading(self) -> Reading:
        return Reading.of("ve", "eps")

    def _told(self, timestep: PerSample) -> PerSample:
        return (timestep / 2).log()

    def _said(self, out: Tensor) -> Tensor:
        return -out


@dataclass(frozen=True)
class IDDPMSettings(Images):
    """C_1: the least share of the signal's variance that a step keeps. C_2: how much of the cosine's start is left out. M: of
    steps."""

    C_1: float = 0.001
    C_2: float = 0.008
    M: int = 1000
    model_type: str = "DhariwalUNet"


class IDDPMPrecond(Published):
    """It sees x of variance 1, is told the index of one of M betas of the cosine schedule (Nichol & Dhariwal 2021, arXiv
    2102.09672, eq. 17) and says eps and a variance, which is left. Between two betas their code takes the nearer one."""

    names = ("iDDPMPrecond",)
    Settings = IDDPMSettings
    outputs = 2

    def __init__(self, content: dict[str, Any], networks: dict[str, type[UNet]]):
        super().__init__(content, networks)
        self.register_buffer("u", torch.empty(self.settings.M + 1))  # their table of the same noise, in float32

    @property
    def schedule(self) -> Schedule:
        own = self.settings
        angle = torch.arange(own.M + 1, dtype=torch.float64) / own.M / (own.C_2 + 1) * math.pi / 2
        bar = angle.sin().flip(0) ** 2
        return Discrete(tuple((1 - (bar[1:] / bar[:-1]).clamp(min=own.C_1)).tolist()))

    @property
    def reading(self) -> Reading:
        return Reading("eps", self.settings.M)

    def _said(self, out: Tensor) -> Tensor:
        return out[:, : self.settings.img_channels].clone()


@dataclass(frozen=True)
class EDM2Settings(Images):
    """logvar_channels: of what said how large the error is, in training alone."""

    use_fp16: bool = True
    sigma_data: float = 0.5
    logvar_channels: int = 128


class EDM2Precond(Published):
    """As EDM's, around the U-Net of EDM2. How large its error is (their eq. 21) is no part of what it says."""

    names = ("EDM2Precond", "Precond")
    Settings = EDM2Settings
    inside = "unet"

    def __init__(self, content: dict[str, Any], networks: dict[str, type[UNet]]):
        super().__init__(content, networks)
        channels = self.settings.logvar_channels
        self.logvar_fourier = nn.Module()
        for name in ("freqs", "phases"):
            self.logvar_fourier.register_buffer(name, torch.empty(channels))
        self.logvar_linear = Unused(1, channels)

    def _network(self, others: dict[str, Any], networks: dict[str, type[UNet]]) -> tuple[type[UNet], dict[str, Any]]:
        own = self.settings
        return EDM2UNet, {
            "img_resolution": own.img_resolution,
            "img_channels": own.img_channels,
            "label_dim": own.label_dim,
        } | others

    @property
    def schedule(self) -> Schedule:
        return variance_preserving(EDM(*SIGMAS))

    @property
    def reading(self) -> Reading:
        return Reading.of("edm", "edm", sigma_data=self.settings.sigma_data)
