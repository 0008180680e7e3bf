"""CLIP's image encoder (Radford et al. 2021, arXiv 2103.00020): the network of FD-CLIP (Kynkaanniemi et al. 2022, arXiv
2203.06026) and CMMD (Jayasumana et al. 2023, arXiv 2401.09603).

The features are the image's embedding as it is projected to where the text's are, of no unit length: clean-fid's. Images are
brought to it as CMMD does: the square in the middle, bicubic in floats. Published numbers of FD-CLIP are by ViT-B/32, of CMMD
by ViT-L/14 at 336 pixels.
"""

import functools
from pathlib import Path

import torch
from torch import Tensor, nn

from diffcore.metrics import judge_folder, transformer, weights
from diffcore.metrics.judge_folder import Encoder
from diffcore.metrics.preprocessing import bicubic, central_square, normalised, with_channels

PREPROCESSING = (
    "square in the middle, bicubic with antialias to {side}x{side}, mean and std of CLIP, grey as three equal channels"
)

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)

IN_FILE = {
    **{
        "cls": "vision_model.embeddings.class_embedding",
        "positions": "vision_model.embeddings.position_embedding.weight",
    },
    **{"patches": "vision_model.embeddings.patch_embedding", "blocks": "vision_model.encoder.layers"},
    # transformers writes it so
    **{"before": "vision_model.pre_layrnorm", "after": "vision_model.post_layernorm", "project": "visual_projection"},
    **{"norm1": "layer_norm1", "norm2": "layer_norm2", "hidden": "mlp.fc1", "last": "mlp.fc2"},
    **{
        "query": "self_attn.q_proj",
        "key": "self_attn.k_proj",
        "value": "self_attn.v_proj",
        "out": "self_attn.out_proj",
    },
}
"""What transformers calls our parameters, part by part."""


class Clip(nn.Module):
    """Images uint8 [b, 1 or 3, h, w] -> features [b, those of the projection]."""

    def __init__(self, encoder: Encoder):
        super().__init__()
        self.side = encoder.side
        self.preprocessing = f"{PREPROCESSING.format(side=self.side)}, {encoder}"
        self.patches = nn.Conv2d(3, encoder.width, encoder.patch, encoder.patch, bias=False)
        self.cls = nn.Parameter(torch.empty(encoder.width))
        self.positions = nn.Parameter(torch.empty(1 + (encoder.side // encoder.patch) ** 2, encoder.width))
        self.before, self.after = transformer.norm(encoder), transformer.norm(encoder)
        self.blocks = transformer.blocks(encoder, scaled=False)
        self.project = nn.Linear(encoder.width, encoder.features, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        x = bicubic(central_square(with_channels(images, 3)).float(), self.side) / 255
        x = transformer.patches(self.patches, normalised(x, MEAN, STD))
        x = torch.cat([self.cls.expand(len(x), 1, -1), x], 1) + self.positions
        return self.project(self.after(self.blocks(self.before(x))[:, 0]))


def load(path: Path) -> Clip:
    """The network of the folder in which the file of weights lies, safetensors, with these."""
    encoder = judge_folder.encoder("clip", path.parent)
    with torch.device("meta"):
        network = Clip(encoder)
    in_file = functools.partial(transformer.in_file, words=IN_FILE)
    remedy = "name the folder of a CLIPModel or a CLIPVisionModelWithProjection"
    return weights.load(network, path, "this CLIP", remedy, in_file)
