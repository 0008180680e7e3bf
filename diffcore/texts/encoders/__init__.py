"""Encoders of texts, one file each; its name is the word that `text.encoder` in params.yaml begins with. Adding a file adds
the encoder.

None is downloaded: an encoder is a rule, a file of a package that is installed, or a folder that the user has.
"""

import dataclasses
import importlib
import pkgutil
from typing import Any

import torch

from diffcore.texts.encoder import Encoder


def names() -> list[str]:
    """The known encoders, in alphabetical order."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def load(name: str) -> Any:
    """The module of the encoder: `PLACE`, the word for what follows the colon in params.yaml, None where nothing does;
    `encoder_of`, (place, dimension) -> Encoder, which raises UserError for one that is not there."""
    return importlib.import_module(f"{__name__}.{name}")


def parse(encoder: str) -> tuple[Any, str]:
    """The module of the encoder that `text.encoder` says, and its place. Raises ValueError naming the forms there are."""
    name, colon, place = encoder.partition(":")
    module = load(name) if name in names() else None
    if module is None or bool(colon) != bool(module.PLACE) or bool(place.strip()) != bool(module.PLACE):
        *forms, last = map(_form, names())
        raise ValueError(f"encoder must be null, {', '.join(forms)} or {last}, not {encoder!r}")
    return module, place


def encoder_of(encoder: str, dimension: int, device: torch.device, numbers: str) -> Encoder:
    """The encoder that `text.encoder` says, computing on `device` in these numbers. dimension: of the section `text`."""
    module, place = parse(encoder)
    return dataclasses.replace(module.encoder_of(place, dimension), device=device, numbers=numbers)


def _form(name: str) -> str:
    place = load(name).PLACE
    return f"{name}:{place}" if place else name
