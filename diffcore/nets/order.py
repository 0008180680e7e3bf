"""The order of a network's numbers in memory."""

import math
from collections.abc import Sequence

import torch
from torch import nn

NARROW, SMALL = 3, 1024


def fastest(net: nn.Module, image: Sequence[int], device: torch.device | str) -> torch.memory_format:
    """channels_last, which convolutions like best, but not on a CPU for small images and narrow groups.

    image: [c, h, w]. Below 1024 pixels torch's group norm takes a group of channels_last number by number there: two channels
    take it 2 to 11 times as long as plain memory does, and a whole network 1.05 to 1.4 times (bench/order.py).
    """
    norms = (layer for layer in net.modules() if isinstance(layer, nn.GroupNorm))
    narrow = any(norm.num_channels // norm.num_groups <= NARROW for norm in norms)
    plain = narrow and math.prod(image[1:]) < SMALL and torch.device(device).type == "cpu"
    return torch.contiguous_format if plain else torch.channels_last
