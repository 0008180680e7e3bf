"""Networks that others published in code of their own, one file for each, by the names of their classes and weights. Adding a
file adds the network.

Written anew from the papers, so that nothing of a file from elsewhere is run; a student of one loads wherever it did.
"""

import functools
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffcore.core import classes
from diffcore.core.errors import UserError
from diffcore.nets.files import CONFIG, tensors_of
from diffcore.nets.published.levels import UNet
from diffcore.nets.published.network import Published

__all__ = ["Published", "content_of", "filled", "formats", "names", "opened"]


@functools.cache
def _kinds(parent: type) -> dict[str, Any]:
    """All classes of such that the files here have, by each of their names."""
    kinds = classes.of_package(sys.modules[__name__], parent)
    return {name: kind for kind in kinds for name in getattr(kind, "names", ())}


def names() -> list[str]:
    """What classes of networks are called where they were published."""
    return sorted(_kinds(Published))


def formats() -> list[str]:
    """The class names that a config.json of ours may have."""
    return sorted({kind.names[0] for kind in _kinds(Published).values()})


def content_of(name: str, arguments: Sequence[Any], keywords: Mapping[str, Any]) -> dict[str, Any]:
    """config.json of a network whose class was called with these. A UserError for a class that is unknown, and for more
    arguments than stand in front of all others."""
    known = _kinds(Published)
    if name not in known:
        raise UserError(f"nothing here knows how a {name} computes, only {', '.join(names())}; take one of these")
    ahead = ("img_resolution", "img_channels", "label_dim")[: len(arguments)]
    if len(ahead) < len(arguments) or set(ahead) & set(keywords):
        raise UserError(f"a {name} was made with arguments that have no names here ({len(arguments)} of them)")
    return {"_class_name": known[name].names[0], **dict(zip(ahead, arguments)), **keywords}


def filled(content: Mapping[str, Any], tensors: Mapping[str, Tensor], whose: str) -> Published:
    """The network of this config.json with these weights, in float32. A UserError, which begins with `whose`, for settings
    that are none, and for weights of another network."""
    try:
        with torch.device("meta"):  # nothing is drawn or taken before the weights are known to fit
            net = _kinds(Published)[content["_class_name"]](content, _kinds(UNet))
    except UserError as error:
        raise UserError(f"{whose}: {error}") from None
    _check(net.state_dict(), tensors, whose)
    net.load_state_dict({name: _copy(each) for name, each in tensors.items()}, assign=True)
    return net


def opened(content: Mapping[str, Any], weights: Path) -> Published:
    """The network of a config.json and a file of weights."""
    return filled(content, tensors_of(weights), str(weights.parent / CONFIG))


def _copy(tensor: Tensor) -> Tensor:
    """In float32, in memory of its own."""
    return tensor.to(torch.float32, copy=True, memory_format=torch.contiguous_format)


def _check(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor], whose: str) -> None:
    if missing := sorted(own.keys() - tensors.keys()):
        raise UserError(f"{whose}: the weights {missing[0]} are missing ({len(missing)} of {len(own)})")
    if odd := sorted(tensors.keys() - own.keys()):
        raise UserError(f"{whose}: it has weights {odd[0]}, for which a network with its settings has no place")
    for name, each in own.items():
        if each.shape != tensors[name].shape:
            shapes = f"{list(tensors[name].shape)} and must be {list(each.shape)}"
            raise UserError(f"{whose}: its {name} are {shapes} in a network with its settings")
