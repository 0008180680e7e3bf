"""A U-Net from a config.json and a file of weights."""

from pathlib import Path
from typing import Any

from diffcore.nets.family import Family
from diffcore.nets.files import fill
from diffcore.nets.unet.config import FORMAT, FORMATS, UNetConfig, Unsupported, from_json, modern_names
from diffcore.nets.unet.model import UNet
from diffcore.nets.unet.shape import Shape


def opened(content: dict[str, Any], weights: Path, x0_eps: bool) -> UNet | None:
    """The network; None for a part that ours lacks, and for an output of a learned variance, which the adapter halves.

    x0_eps: it is one of the parameterization `x0_eps`, whose output has twice the channels.
    """
    try:
        config = from_json(content)
    except Unsupported:
        return None
    return _loaded(config, weights) if x0_eps or config.out_channels == config.in_channels else None


def _loaded(config: UNetConfig, weights: Path) -> UNet:
    net = UNet(config)
    fill(net, weights, modern_names)
    return net


FAMILY = Family(Shape, tuple(FORMATS), opened, own=tuple(name for name in FORMATS if name != FORMAT))
