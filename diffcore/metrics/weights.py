"""Weights of feature networks that were trained elsewhere, from local files of which nothing is executed."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from diffcore.core.errors import UserError

Network = TypeVar("Network", bound=nn.Module)


def load(
    network: Network, path: Path, called: str, remedy: str, in_file: Callable[[str], str] = lambda name: name
) -> Network:
    """The network, which may be one without numbers (on torch's device `meta`), with the weights of the state dict in `path`,
    in its own precision and for inference; what the file has beside them is left out. in_file: what the file calls a
    parameter of the network.

    A UserError that names the network as it is `called` and ends in `remedy` for a file that does not hold all its weights.
    """
    there = read(path)
    network.requires_grad_(False)
    own = network.state_dict()
    ours = {name: there[in_file(name)] for name in own if in_file(name) in there}
    missing = sorted(name for name in own if name not in ours and not name.endswith("num_batches_tracked"))
    unfit = sorted(name for name in ours if not _fits(ours[name], own[name]))
    if missing or unfit:
        raise UserError(
            f"{path} is no state dict of {called}: {in_file([*missing, *unfit][0])} is "
            f"{'missing' if missing else 'of another shape or kind'}; {remedy}"
        )
    copies = {name: value.to(own[name].dtype, copy=True) for name, value in ours.items()}
    network.load_state_dict(copies, strict=False, assign=True)
    return network.eval().to(memory_format=torch.channels_last)


def read(path: Path) -> dict[str, Tensor]:
    """A state dict of torch (read without executing what is in it) or safetensors; a UserError for any other file."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        weights = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, SafetensorError, pickle.UnpicklingError) as error:
        raise UserError(
            f"{path} cannot be read as weights ({_line(error)}); name a state dict or safetensors"
        ) from error
    if not isinstance(weights, dict) or not all(isinstance(each, Tensor) for each in weights.values()):
        raise UserError(f"{path} holds no state dict of tensors; name a state dict or safetensors")
    return weights


def _fits(value: Tensor, own: Tensor) -> bool:
    return value.shape == own.shape and value.is_floating_point() == own.is_floating_point()


def _line(error: Exception) -> str:
    return str(error).split("\n")[0][:120]
