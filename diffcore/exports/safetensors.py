"""One file of weights that says what it is."""

import json
import tempfile
from pathlib import Path

from diffcore.checkpoints import Checkpoint
from diffcore.core import disk
from diffcore.exports.format import Call, Format
from diffcore.nets import CONFIG, WEIGHTS, open_folder


class Safetensors(Format):
    """The weights under diffusers' names; in the file's metadata `config` (diffusers' config.json), `card` and `readme`."""

    def write(self, checkpoint: Checkpoint, folder: Path, new: Path, readme: str) -> None:
        from safetensors.torch import save_file

        net = checkpoint.denoiser.net
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in net.state_dict().items()}
        about = {"config": net.config_json(), "card": checkpoint.card.to_json()}
        words = {name: json.dumps(value) for name, value in about.items()}
        save_file(tensors, new, metadata={"format": "pt", **words, "readme": readme})

    def open(self, checkpoint: Checkpoint, new: Path) -> Call:
        from safetensors import safe_open

        with safe_open(new, framework="pt") as file:
            config = disk.parse_json(file.metadata()["config"])
        with tempfile.TemporaryDirectory() as room:
            disk.write_json(Path(room) / CONFIG, config)
            (Path(room) / WEIGHTS).symlink_to(new.resolve())
            return open_folder(Path(room), checkpoint.card.parameterization == "x0_eps", vouched=True).eval()
