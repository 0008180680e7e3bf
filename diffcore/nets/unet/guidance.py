"""The guidance weight as an input of the network: given to one that has none, and built in for good."""

from dataclasses import replace

import torch

from diffcore.nets.unet.blocks import guidance_features
from diffcore.nets.unet.model import UNet


def with_guidance(net: "UNet") -> "UNet":
    """The same network with an input for the guidance weight, to which it pays no attention yet."""
    guided = UNet(replace(net.config, guidance_embeds=True))
    start = {
        f"guidance_embedding.{name}": torch.zeros_like(p) for name, p in guided.guidance_embedding.named_parameters()
    }
    guided.load_state_dict(net.state_dict() | start)
    return guided


def folded(net: "UNet", guidance: float) -> "UNet":
    """The plain UNet2DModel that this network is at one guidance weight: its embedding becomes a part of a bias, exactly."""
    plain = UNet(replace(net.config, guidance_embeds=False))
    state = {name: tensor for name, tensor in net.state_dict().items() if not name.startswith("guidance_embedding.")}
    with torch.no_grad():
        shift = net.guidance_embedding(guidance_features(torch.tensor([guidance])).to(net.guidance_embedding.weight))[0]
    state["time_embedding.linear_2.bias"] = state["time_embedding.linear_2.bias"] + shift
    plain.load_state_dict(state)
    return plain
