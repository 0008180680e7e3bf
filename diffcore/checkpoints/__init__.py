"""Checkpoints on disk, in diffusers' format, and teachers that come from diffusers."""

from diffcore.checkpoints.card import Card, Guidance, read_card
from diffcore.checkpoints.folder import Checkpoint, load, save, verify

__all__ = ["Card", "Checkpoint", "Guidance", "load", "read_card", "save", "verify"]
