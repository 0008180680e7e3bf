"""Weights that are shared out: each process keeps a part of every tensor, and has a layer whole only while it computes.

FSDP2 (torch's `fully_shard`; Zhao et al. 2023, arXiv 2304.11277) does it, so that a network, its averages and AdamW's moments
need 1/n of the memory in each of n processes. A state is written by all of them at once, each its parts, by torch's
distributed checkpointing in safetensors, and read again by any number of processes.
"""

import contextlib
import copy
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from diffcore.core import processes

METHODS = ("features",)
"""What a network is called by besides its forward pass, with all of its weights."""


def shard(net: nn.Module) -> nn.Module:
    """The network itself, its weights shared out: those of each block apart, and the rest together. The modules `net.apart`,
    if it names any, are blocks too: those that it calls by themselves, outside of the block they belong to."""
    # imported where several processes share a network: it takes a second
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    mesh = init_device_mesh(processes.device().type, (processes.count(),), mesh_dim_names=("shard",))
    for part in getattr(net, "apart", ()):
        fully_shard(part, mesh=mesh)
    for part in reversed(list(net.modules())):  # from the inside out
        if isinstance(part, nn.ModuleList):
            for block in part:
                # a layer in a list, as diffusers' attention has them, is no block: what it answers may be a view
                if not isinstance(block, nn.ModuleList) and any(block.children()):
                    fully_shard(block, mesh=mesh)
    fully_shard(net, mesh=mesh)
    for name in METHODS:
        if hasattr(net, name):
            register_fsdp_forward_method(net, name)
    return net


def is_sharded(net: nn.Module) -> bool:
    return hasattr(net, "set_requires_gradient_sync")


def give_back(net: nn.Module) -> nn.Module:
    """The network itself, all of it shared out again: after a forward pass without one backward, as an average makes, FSDP2
    leaves whole what is in no block."""
    if is_sharded(net):
        net.reshard()
    return net


def part(tensor: Tensor) -> Tensor:
    """What this process has of it: all, if it is not shared out."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of it, in every process."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def gathered(net: nn.Module, like: nn.Module) -> nn.Module:
    """The network whole again on the CPU: a copy of `like`, which has its shape."""
    result = copy.deepcopy(like).cpu()
    result.load_state_dict({name: whole(value).cpu() for name, value in net.state_dict().items()})
    return result


def save(tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Each process writes its parts, as safetensors; all of them call it."""
    from torch.distributed import checkpoint

    with _quiet():
        writer = checkpoint.HuggingFaceStorageWriter(str(folder), save_distributed=True)
        checkpoint.save(dict(tensors), storage_writer=writer)


def load(tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Reads what any number of processes has written into the tensors, of which each process has all or its parts."""
    from torch.distributed import checkpoint

    with _quiet(), torch.no_grad():
        checkpoint.load(dict(tensors), storage_reader=checkpoint.HuggingFaceStorageReader(str(folder)))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's advice on how else to call it."""
    log = logging.getLogger("torch.distributed")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)
