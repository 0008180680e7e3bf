"""UNet2DModel: an image, a time, and a class where it has a table of them."""

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from diffcore.core.shapes import PerSample
from diffcore.nets.architectures import Architecture
from diffcore.nets.inputs import Input


class UNet2D(Architecture):
    formats = ("UNet2DModel",)
    supported: ClassVar = {"time_embedding_type": ("positional",), "class_embed_type": (None,)}

    @property
    def conditions(self) -> dict[str, Input]:
        rows = self.config["num_class_embeds"]
        return {} if rows is None else {"class_labels": Input((), torch.int64, rows=rows)}

    def call(self, net: nn.Module, x: Tensor, timestep: PerSample, inputs: Mapping[str, Tensor]) -> Tensor:
        return net(x, timestep=timestep, **inputs).sample
