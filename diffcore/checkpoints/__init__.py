"""Checkpoints on disk, in diffusers' format, and teachers that come from diffusers."""

import importlib
from typing import TYPE_CHECKING, Any

from diffcore.checkpoints.card import Card, Guidance, read_card
from diffcore.checkpoints.verified import verify

if TYPE_CHECKING:
    from diffcore.checkpoints.folder import Checkpoint, load, save

__all__ = ["Card", "Checkpoint", "Guidance", "load", "read_card", "save", "verify"]


def __getattr__(name: str) -> Any:
    """What needs torch, when it is first used: a card is read and files are verified without."""
    if name not in ("Checkpoint", "load", "save"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.folder"), name)
