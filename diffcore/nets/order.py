"""The order of a network's numbers in memory."""

import math
from collections.abc import Sequence

import torch
from torch import nn

NARROW, SMALL = 3, 1024


def fastest(net: nn.Module, image: Sequence[int], device: torch.device | str) -> torch.memory_format:
    """channels_last, which convolutions like best, but not on a CPU for small images and narrow groups; plain memory for what
    is no image, and for a network without convolutions of images or with others, which know no such order.

    image: [c, h, w], or another shape of a sample. Below 1024 pixels torch's group norm takes a group of channels_last
    number by number there: two channels take it 2 to 11 times as long as plain memory does, and a whole network 1.05 to
    1.4 times (bench/order.py).
    """
    is_flat = any(isinstance(layer, nn.Conv2d) for layer in net.modules())
    if len(image) != 3 or not is_flat or any(weight.dim() == 5 for weight in net.parameters()):
        return torch.contiguous_format
    norms = (layer for layer in net.modules() if isinstance(layer, nn.GroupNorm))
    narrow = any(norm.num_channels // norm.num_groups <= NARROW for norm in norms)
    plain = narrow and math.prod(image[1:]) < SMALL and torch.device(device).type == "cpu"
    return torch.contiguous_format if plain else torch.channels_last
