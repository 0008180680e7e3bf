"""The vision transformer of Dosovitskiy et al. 2020, arXiv 2010.11929, section 3.1, as DINOv2 and CLIP have it."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffcore.metrics.judge_folder import Encoder


class Block(nn.Module):
    """x + attention(norm(x)), and of that x + hidden layer(norm(x)): equations 2 and 3, tokens [b, count, width].

    scaled: what is added has a learned scale for each feature (LayerScale, arXiv 2103.17239, equation 5).
    """

    def __init__(self, encoder: Encoder, scaled: bool):
        super().__init__()
        width, inner = encoder.width, encoder.inner
        self.heads, self.activation = encoder.heads, encoder.activation
        self.norm1, self.norm2 = norm(encoder), norm(encoder)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.hidden = nn.Linear(width, 2 * inner if self.activation == "swiglu" else inner)
        self.last = nn.Linear(inner, width)
        self.scale1, self.scale2 = (nn.Parameter(torch.ones(width)) if scaled else 1.0 for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.scale1 * self._attention(self.norm1(x))
        return x + self.scale2 * self.last(activate(self.hidden(self.norm2(x)), self.activation))

    def _attention(self, x: Tensor) -> Tensor:
        """Each head has its share of the features, in order."""
        heads = (
            layer(x).unflatten(2, (self.heads, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        return self.out(F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2))


def norm(encoder: Encoder) -> nn.LayerNorm:
    return nn.LayerNorm(encoder.width, eps=encoder.eps)


def blocks(encoder: Encoder, scaled: bool) -> nn.Sequential:
    return nn.Sequential(*(Block(encoder, scaled) for _ in range(encoder.depth)))


def activate(x: Tensor, activation: str) -> Tensor:
    """`gelu`: x Phi(x); `quick_gelu`: x sigmoid(1.702 x), both arXiv 1606.08415, section 2; `swiglu`: a sigmoid(a) b of the
    halves a and b of the features (arXiv 2002.05202, equation 5)."""
    if activation == "swiglu":
        gate, value = x.chunk(2, dim=-1)
        return F.silu(gate) * value
    return F.gelu(x) if activation == "gelu" else x * torch.sigmoid(1.702 * x)


def patches(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """Images [b, 3, h, w] -> a token of each patch, row by row: [b, count, width]."""
    return layer(x).flatten(2).transpose(1, 2)


def in_file(name: str, words: dict[str, str]) -> str:
    """What a file of weights calls our parameter `name`: each part of it between dots by its word."""
    return ".".join(words.get(part, part) for part in name.split("."))
