"""Networks in diffusers' format."""

import json
from pathlib import Path

from torch import nn

from diffcore.mistake import Mistake

WEIGHTS = "diffusion_pytorch_model.safetensors"


def open_folder(folder: Path) -> nn.Module:
    """The network in a folder with config.json and safetensors: our U-Net where it fits, else diffusers' own model.

    Weights in any other format are refused: reading a pickle can run code.
    """
    from diffcore.nets import unet

    folder = Path(folder)
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise Mistake(f"{folder}/config.json cannot be read ({error}); give a folder that diffusers saved") from None
    if not (folder / WEIGHTS).is_file():
        raise Mistake(f"{folder} has no {WEIGHTS}; save it again with safe_serialization=True")
    try:
        if config.get("_class_name") != unet.FORMAT:
            raise Mistake("another model")
        net = unet.UNet(unet.from_json(config))
    except Mistake:  # our U-Net does not know it, diffusers may
        from diffcore.nets import foreign

        return foreign.load(folder)
    from safetensors.torch import load_file

    try:
        net.load_state_dict(load_file(folder / WEIGHTS))
    except (RuntimeError, ValueError) as error:
        raise Mistake(f"{folder / WEIGHTS} does not fit its config.json ({str(error).splitlines()[0]})") from None
    return net
