"""The network of a pickled file as a folder that nothing needs to be executed for."""

from pathlib import Path

import torch
from torch import Tensor

from diffcore.checkpoints.pickled.layouts import Pickled
from diffcore.checkpoints.pickled.weights import Network
from diffcore.core import disk
from diffcore.core.errors import UserError

WEIGHTS, CONFIG = "model.safetensors", "config.json"


def save(pickled: Pickled, network: Network, folder: Path) -> None:
    """Writes model.safetensors and config.json into a new folder, whole or not at all; a UserError where there is one."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    disk.check_free(folder)
    source = {"file": pickled.path.name, "sha256": disk.sha256(pickled.path)}
    about = {"class": network.cls, "arguments": network.arguments, "keywords": network.keywords}
    with disk.folder(folder, new=True) as room:
        try:
            save_file({name: _plain(each) for name, each in network.tensors.items()}, room / WEIGHTS, {"format": "pt"})
        except (SafetensorError, ValueError, KeyError) as error:
            line = " ".join(str(error).split())[:160]
            raise UserError(f"{pickled.path}: safetensors cannot hold its tensors ({line})") from None
        disk.write_json(room / CONFIG, {**about, "part": network.part, "source": source})


def _plain(tensor: Tensor) -> Tensor:
    """The same values in memory of their own."""
    return tensor.resolve_conj().resolve_neg().clone(memory_format=torch.contiguous_format)
