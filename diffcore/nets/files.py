"""The files of a network's folder in diffusers' format."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from diffcore.core import disk
from diffcore.core.errors import UserError

CONFIG = "config.json"
WEIGHTS = "diffusion_pytorch_model.safetensors"

PARTS = ("unet", "transformer")
"""Where a pipeline has its network; the first that is there."""


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a network's folder, which must name its class."""
    path = Path(folder) / CONFIG
    if not path.is_file():
        raise UserError(f"{folder} holds no network: {CONFIG} is missing; give a local folder in diffusers' format")
    content = read_json(path)
    if not isinstance(content.get("_class_name"), str):
        raise UserError(f"{path} does not say which network it is: it needs _class_name, as diffusers writes it")
    return content


def read_json(path: Path) -> dict[str, Any]:
    """A file of one mapping in JSON, empty where it is of anything else."""
    try:
        content = disk.parse_json(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}); fetch or write it again") from None
    return content if isinstance(content, dict) else {}


def fill(net: nn.Module, weights: Path, names: Callable[[dict[str, Tensor]], dict[str, Tensor]] = dict) -> None:
    """Loads a file of safetensors into a network: every tensor, and no other. names: what an older file's are called now. A
    UserError for a damaged file, and for one of another network."""
    try:
        net.load_state_dict(names(tensors_of(weights)))
    except RuntimeError as error:
        raise _odd(weights, error) from None


def tensors_of(weights: Path) -> dict[str, Tensor]:
    """What a file of safetensors holds, by name. A UserError for a damaged file."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(weights)
    except (SafetensorError, RuntimeError, OSError) as error:
        raise _odd(weights, error) from None


def _odd(weights: Path, error: Exception) -> UserError:
    reason = " ".join(str(error).split())
    return UserError(f"{weights} does not hold this network's weights ({reason[:300]}); fetch it again")


def take(net: nn.Module, source: nn.Module) -> int:
    """Copies into `net` the tensors of `source` that have a name and shape of its own; returns how many those are."""
    own, theirs = net.state_dict(), source.state_dict()
    fitting = {
        name: theirs[name] for name, tensor in own.items() if name in theirs and theirs[name].shape == tensor.shape
    }
    net.load_state_dict(own | fitting)
    return len(fitting)
