"""DiTTransformer2DModel: the class-conditional transformer of Peebles & Xie 2023, arXiv 2212.09748."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from diffcore.core.errors import UserError
from diffcore.core.shapes import PerSample, Sample
from diffcore.nets.architectures import Architecture
from diffcore.nets.inputs import Input


class DiT(Architecture):
    """Its table of classes has a row more, the last, for none. It knows square samples only: diffusers takes the side of the
    output from the number of patches."""

    formats = ("DiTTransformer2DModel",)
    apart = ("transformer_blocks.0.norm1.emb",)  # by which its output is scaled as well

    @property
    def conditions(self) -> dict[str, Input]:
        return {"class_labels": Input((), torch.int64, rows=self.config["num_embeds_ada_norm"] + 1)}

    def check(self, x: Sample, inputs: Mapping[str, Tensor]) -> None:
        super().check(x, inputs)
        if x.shape[2] != x.shape[3]:
            raise UserError(f"{self.name}: a sample is {list(x.shape[1:])} and must be square")

    def call(self, net: nn.Module, x: Tensor, timestep: PerSample, inputs: Mapping[str, Tensor]) -> Tensor:
        return net(x, timestep=timestep, class_labels=inputs["class_labels"]).sample
