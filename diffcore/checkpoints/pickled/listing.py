"""What a pickled file holds, in words."""

from typing import Any

from torch import Tensor

from diffcore.checkpoints.pickled.layouts import Pickled
from diffcore.checkpoints.pickled.objects import Object
from diffcore.checkpoints.pickled.weights import Network
from diffcore.data.tars import printable

MOST = 40
"""Entries of the file that are listed; the tensors of its network all are."""


def entries(pickled: Pickled) -> list[tuple[str, str]]:
    """Each entry of the file and what it is; of a file that is no dict the one."""
    content = pickled.content
    if not isinstance(content, dict):
        return [("", kind(content))]
    rows = [
        (printable(str(name) if isinstance(name, str) else kind(name)), kind(value)) for name, value in content.items()
    ]
    return rows[:MOST] + ([("...", f"{len(rows) - MOST} more")] if len(rows) > MOST else [])


def kind(value: Any) -> str:
    """What a value is, on one line; a number or a short text as it is."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    if isinstance(value, Object):
        return printable(value.name)
    if isinstance(value, dict | list | tuple | set | frozenset):
        return f"{type(value).__name__} of {len(value)}"
    if isinstance(value, str | bytes) and len(value) > MOST:
        return f"{type(value).__name__} of {len(value)}"
    return printable(repr(value)) if not isinstance(value, int) or abs(value) < 2**63 else "int"


def rows(network: Network) -> list[tuple[str, str]]:
    """Each tensor of the network: its name, and its dtype and shape."""
    return [(printable(name), kind(tensor)) for name, tensor in network.tensors.items()]
