"""FluxTransformer2DModel: Flux, and its versions that take an image to condition on (Fill, Canny, Depth)."""

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from diffcore.core.shapes import PerSample
from diffcore.nets.architectures import Architecture
from diffcore.nets.inputs import Input

PATCH = 2
"""Squares of 2 x 2 become a token, which its pipeline does and not the network: in_channels counts those of a token."""


class Flux(Architecture):
    """It is told times of 0 to 1, and attends to all of the text's tokens: it takes no mask."""

    formats = ("FluxTransformer2DModel",)
    time_scale = 1
    packed = PATCH**2
    supported: ClassVar = {"patch_size": (1,)}

    @property
    def conditions(self) -> dict[str, Input]:
        conditions = {
            "text": Input((None, self.config["joint_attention_dim"]), torch.float32),
            "pooled": Input((self.config["pooled_projection_dim"],), torch.float32),
        }
        return {**conditions, "guidance": Input((), torch.float32)} if self.config["guidance_embeds"] else conditions

    @property
    def sides(self) -> int:
        return PATCH

    def call(self, net: nn.Module, x: Tensor, timestep: PerSample, inputs: Mapping[str, Tensor]) -> Tensor:
        height, width = x.shape[2] // PATCH, x.shape[3] // PATCH
        tokens = net(
            hidden_states=packed(x),
            timestep=timestep,
            guidance=inputs.get("guidance"),
            pooled_projections=inputs["pooled"],
            encoder_hidden_states=inputs["text"],
            txt_ids=torch.zeros(inputs["text"].shape[1], 3, device=x.device),
            img_ids=positions(height, width, x.device),
        ).sample
        return unpacked(tokens, height, width)


def packed(x: Tensor) -> Tensor:
    """[b, c, 2 h, 2 w] -> [b, h w, 4 c]: channels outermost, so that channels of an image may stand behind a sample's."""
    b, c, height, width = x.shape
    squares = x.reshape(b, c, height // PATCH, PATCH, width // PATCH, PATCH)
    return squares.permute(0, 2, 4, 1, 3, 5).reshape(b, -1, c * PATCH**2)


def unpacked(tokens: Tensor, height: int, width: int) -> Tensor:
    """[b, h w, 4 c] -> [b, c, 2 h, 2 w]."""
    squares = tokens.reshape(len(tokens), height, width, -1, PATCH, PATCH)
    return squares.permute(0, 3, 1, 4, 2, 5).reshape(len(tokens), -1, height * PATCH, width * PATCH)


def positions(height: int, width: int, device: torch.device) -> Tensor:
    """[h w, 3] float32: zero, the row and the column of each token."""
    rows = torch.arange(height, dtype=torch.float32, device=device)[:, None].expand(height, width)
    columns = torch.arange(width, dtype=torch.float32, device=device)[None].expand(height, width)
    return torch.stack([torch.zeros_like(rows), rows, columns], 2).reshape(-1, 3)
