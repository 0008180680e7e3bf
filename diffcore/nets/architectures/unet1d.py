"""UNet1DModel: a sequence [c, l] and a time."""

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor, nn

from diffcore.core.shapes import PerSample
from diffcore.nets.architectures import Architecture
from diffcore.nets.inputs import Input


class UNet1D(Architecture):
    formats = ("UNet1DModel",)
    supported: ClassVar = {"time_embedding_type": ("positional",)}

    @property
    def conditions(self) -> dict[str, Input]:
        return {}

    @property
    def axes(self) -> int:
        return 1

    def call(self, net: nn.Module, x: Tensor, timestep: PerSample, inputs: Mapping[str, Tensor]) -> Tensor:
        return net(x, timestep=timestep).sample
