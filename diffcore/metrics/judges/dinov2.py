"""DINOv2 (Oquab et al. 2023, arXiv 2304.07193): the network of FD-DINOv2 (Stein et al. 2023, arXiv 2306.04675).

The features are those of the class token after the last norm. Images are brought to it as dgm-eval and EDM2 do; the
published numbers are by ViT-L/14 without registers (`dinov2-large`).
"""

import functools
import math
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffcore.metrics import judge_folder, transformer, weights
from diffcore.metrics.judge_folder import DINOV2_SIDE, Encoder
from diffcore.metrics.preprocessing import bicubic, normalised, with_channels

PREPROCESSING = (
    f"bicubic with antialias to {DINOV2_SIDE}x{DINOV2_SIDE}, mean and std of ImageNet, grey as three equal channels"
)

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

OFFSET = 0.1
"""What the published network adds to the number of patches as it computes by how much positions are scaled, though not to
how many come out. The networks with registers add nothing and average over what is left out."""

IN_FILE = {
    **{"cls": "embeddings.cls_token", "registers": "embeddings.register_tokens"},
    **{"positions": "embeddings.position_embeddings", "patches": "embeddings.patch_embeddings.projection"},
    **{"blocks": "encoder.layer", "after": "layernorm", "scale1": "layer_scale1.lambda1"},
    **{"query": "attention.attention.query", "key": "attention.attention.key", "value": "attention.attention.value"},
    **{"out": "attention.output.dense", "scale2": "layer_scale2.lambda1"},
}
"""What transformers calls our parameters, part by part."""

PLAIN = {"hidden": "mlp.fc1", "last": "mlp.fc2"}
GATED = {"hidden": "mlp.weights_in", "last": "mlp.weights_out"}
"""The same of a block's hidden layer."""


class DinoV2(nn.Module):
    """Images uint8 [b, 1 or 3, h, w] -> features [b, width]."""

    def __init__(self, encoder: Encoder):
        super().__init__()
        self.preprocessing = f"{PREPROCESSING}, {encoder}"
        self.grid = encoder.side // encoder.patch
        self.patches = nn.Conv2d(3, encoder.width, encoder.patch, encoder.patch)
        self.cls = nn.Parameter(torch.empty(1, 1, encoder.width))
        self.positions = nn.Parameter(torch.empty(1, 1 + self.grid**2, encoder.width))
        self.registers = nn.Parameter(torch.empty(1, encoder.registers, encoder.width)) if encoder.registers else None
        self.blocks, self.after = transformer.blocks(encoder, scaled=True), transformer.norm(encoder)

    def forward(self, images: Tensor) -> Tensor:
        x = bicubic(with_channels(images, 3).float(), DINOV2_SIDE) / 255
        return self.after(self.blocks(self.tokens(normalised(x, MEAN, STD)))[:, 0])

    def tokens(self, x: Tensor) -> Tensor:
        """Of images [b, 3, side, side]: the class, the registers, which have no position, and the patches."""
        tokens = transformer.patches(self.patches, x)
        positions = self.positions_of(math.isqrt(tokens.shape[1]))
        cls = (self.cls + positions[:, :1]).expand(len(x), -1, -1)
        parts = [cls, tokens + positions[:, 1:]]
        if self.registers is not None:
            parts.insert(1, self.registers.expand(len(x), -1, -1))
        return torch.cat(parts, 1)

    def positions_of(self, side: int) -> Tensor:
        """Of the class and side x side patches, interpolated where the weights have other ones: [1, 1 + side^2, width]."""
        if side == self.grid:
            return self.positions
        square = self.positions[:, 1:].unflatten(1, (self.grid, self.grid)).permute(0, 3, 1, 2)
        if self.registers is None:
            square = F.interpolate(square, scale_factor=(side + OFFSET) / self.grid, mode="bicubic")
        else:
            square = bicubic(square, side)
        return torch.cat([self.positions[:, :1], square.flatten(2).transpose(1, 2)], 1)


def load(path: Path) -> DinoV2:
    """The network of the folder in which the file of weights lies, safetensors, with these."""
    encoder = judge_folder.encoder("dinov2", path.parent)
    with torch.device("meta"):
        network = DinoV2(encoder)
    hidden = GATED if encoder.activation == "swiglu" else PLAIN
    in_file = functools.partial(transformer.in_file, words=IN_FILE | hidden)
    return weights.load(network, path, "this DINOv2", "name the folder of a Dinov2Model", in_file)
