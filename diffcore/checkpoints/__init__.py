"""Checkpoints on disk, in diffusers' format, and teachers that come from diffusers."""
