"""From memory to the device that computes."""

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device | str) -> Tensor:
    """The tensor there. To a GPU it goes from pinned memory, and nobody waits until it has arrived."""
    there = torch.device(device)
    if there.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(there, non_blocking=there.type != "cpu")
