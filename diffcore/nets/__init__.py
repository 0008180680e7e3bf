"""Networks in diffusers' format: our U-Net where it fits, anything else through the adapter."""

from pathlib import Path

from torch import nn

from diffcore.core.errors import Mistake
from diffcore.nets import foreign, unet
from diffcore.nets.files import CONFIG, WEIGHTS, read_config

__all__ = ["CONFIG", "WEIGHTS", "open_folder", "read_config"]


def open_folder(folder: Path, both: bool = False) -> nn.Module:
    """The network in a local folder of config.json and safetensors; forward(x [b, c, h, w], label [b], class_label).

    both: it is one of the head `both`, whose output has twice the channels; of any other such output, a learned variance,
    the adapter keeps half.

    Raises Mistake if anything is missing, damaged or pickled. diffusers is imported only for what our U-Net lacks.
    """
    folder = Path(folder)
    try:
        return _opened(folder, both)
    except Mistake:
        raise
    except ODD as error:  # whatever a network's constructor makes of numbers and words that describe none
        told = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise Mistake(f"{folder / CONFIG} describes no network ({told}); fetch or write it again") from None


ODD = (ArithmeticError, AttributeError, LookupError, MemoryError, RuntimeError, TypeError, ValueError)


def _opened(folder: Path, both: bool) -> nn.Module:
    content = read_config(folder)
    if content["_class_name"] in (unet.FORMAT, unet.GUIDED) and (folder / WEIGHTS).is_file():
        try:
            config = unet.from_json(content)
        except unet.Unsupported:
            pass
        else:
            if both or config.out_channels == config.in_channels:
                return _ours(config, folder / WEIGHTS)
    return foreign.load(folder)


def _ours(config: unet.UNetConfig, weights: Path) -> unet.UNet:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    net = unet.UNet(config)
    try:
        net.load_state_dict(unet.modern_names(load_file(weights)))
    except (SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise Mistake(f"{weights} does not hold this network's weights ({reason[:300]}); fetch it again") from None
    return net
