"""New weights: the same for the same seed, wherever they are made."""

import torch
from torch import Tensor, nn

from diffcore.core.errors import UserError
from diffcore.core.rng import generator
from diffcore.denoisers.reading import NUM_TIMESTEPS
from diffcore.nets.unet.blocks import TimeEmbedding, frequencies
from diffcore.nets.unet.config import UNetConfig
from diffcore.nets.unet.model import UNet


def build(config: UNetConfig, seed: int, max_phase: float | None = 12.0, span: int | float = NUM_TIMESTEPS) -> UNet:
    """A new network whose weights come from (seed, name of the parameter) alone.

    Distributed as torch's layers start, but the last convolution of each residual block and of the network is zero (Dhariwal
    & Nichol 2021): after 400 steps on the digits the held-out v loss was 0.303 and 0.304 so, 0.313 and 0.307 otherwise.

    max_phase: radians; only frequencies w with w span <= max_phase are used, where span is how far the times reach that the
    network is told (None: all of them).
    """
    net = UNet(config)
    with torch.no_grad():
        for place, layer in net.named_modules():
            for name, parameter in layer.named_parameters(recurse=False):
                _start(parameter, layer, f"{place}.{name}", generator(seed, "unet", place, name))
        if max_phase is not None:
            _switch_off(net.time_embedding, max_phase, span)
    return net


def _start(parameter: Tensor, layer: nn.Module, name: str, rng: torch.Generator) -> None:
    if isinstance(layer, nn.GroupNorm):
        parameter.fill_(float(name.endswith("weight")))
    elif isinstance(layer, nn.Embedding):
        parameter.normal_(generator=rng)
    elif name.split(".")[-2] in ("conv2", "conv_out", "guidance_embedding", "end_embedding"):
        parameter.zero_()
    else:
        bound = layer.weight[0].numel() ** -0.5
        parameter.uniform_(-bound, bound, generator=rng)


def _switch_off(embedding: TimeEmbedding, max_phase: float, span: int | float) -> None:
    fast = span * frequencies(embedding.features, embedding.shift) > max_phase
    if fast.all():
        raise UserError(
            f"max_phase {max_phase} leaves no frequency of the time embedding; raise it or widen channels[0]"
        )
    embedding.linear_1.weight[:, : 2 * len(fast)].masked_fill_(torch.cat([fast, fast]), 0)
