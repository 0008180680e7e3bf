"""Networks in diffusers' format: those of a family of ours where they fit, anything else through the adapter."""

from pathlib import Path

from torch import nn

from diffcore.core.errors import UserError
from diffcore.nets import diffusers_model, dit, module, published, unet
from diffcore.nets.family import Family, Shape
from diffcore.nets.files import CONFIG, WEIGHTS, read_config, take

__all__ = ["CONFIG", "FAMILIES", "MODULE", "WEIGHTS", "Family", "Shape", "is_own", "open_folder", "read_config", "take"]

FAMILIES: dict[str, Family] = {"unet": unet.FAMILY, "dit": dit.FAMILY}
"""What can be trained from nothing, by the word in `network: {family: ...}`. A new one is its file here and its line."""


MODULE = module.FAMILY
"""A class of the user's own, by its path in `network: {module: ...}`."""


def is_own(name: str) -> bool:
    """Whether networks of this `_class_name` are of a family of ours or published by others, and of no class of diffusers."""
    return name in published.formats() or any(name in family.own for family in (*FAMILIES.values(), MODULE))


def open_folder(folder: Path, x0_eps: bool = False, vouched: bool = False) -> nn.Module:
    """The network in a local folder of config.json and safetensors; forward(x [b, c, h, w], timestep [b], class_labels).

    x0_eps: it is one of the parameterization `x0_eps`, whose output has twice the channels; of any other such output, a
    learned variance, the adapter keeps half. vouched: a card of ours vouches for the folder, so that a class of a user's own
    may be imported if it names one.

    Raises UserError if anything is missing, damaged or pickled. diffusers is imported only for what our U-Net lacks.
    """
    folder = Path(folder)
    try:
        return _opened(folder, x0_eps, vouched)
    except UserError:
        raise
    except ODD as error:  # whatever a network's constructor makes of numbers and words that describe none
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(f"{folder / CONFIG} describes no network ({reason}); fetch or write it again") from None


ODD = (ArithmeticError, AttributeError, LookupError, MemoryError, RuntimeError, TypeError, ValueError)


def _opened(folder: Path, x0_eps: bool, vouched: bool) -> nn.Module:
    content = read_config(folder)
    if content["_class_name"] in MODULE.formats:
        if not vouched:
            raise UserError(
                f"{folder} is a {content['_class_name']}: it names a class of somebody's own, which is imported for a "
                "checkpoint of ours alone"
            )
        return MODULE.open(content, folder / WEIGHTS, x0_eps)
    if content["_class_name"] in published.formats():
        return published.opened(content, folder / WEIGHTS)
    for family in FAMILIES.values():
        if content["_class_name"] in family.formats and (folder / WEIGHTS).is_file():
            net = family.open(content, folder / WEIGHTS, x0_eps)
            if net is not None:
                return net
    return diffusers_model.load(folder)
