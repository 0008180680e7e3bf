"""A folder that diffusers opens, with a model card."""

import shutil
from pathlib import Path

from diffcore.checkpoints import Checkpoint
from diffcore.checkpoints.from_diffusers import part_of
from diffcore.core import disk
from diffcore.core.errors import UserError
from diffcore.denoisers.network import ANY
from diffcore.exports.format import Call, Format
from diffcore.nets import diffusers_model, is_own


class Diffusers(Format):
    """The checkpoint's own files, which are diffusers' format already, and README.md beside them; opened by diffusers itself.

    A UserError by name for a network that diffusers has no class for: our transformer, a module of the user's own, and
    one with a guidance weight, or the time where its hop lands, as an input.
    """

    is_folder = True

    def write(self, checkpoint: Checkpoint, folder: Path, new: Path, readme: str) -> None:
        kind = checkpoint.denoiser.net.config_json()["_class_name"]
        if is_own(kind):
            jumps = " or give --to-data" if checkpoint.denoiser.end == ANY else ""
            others = "--format safetensors" if checkpoint.denoiser.nothing.names else "another --format"
            raise UserError(f"diffusers has no class {kind}; choose {others}{jumps}")
        for name in (*checkpoint.card.files, "card.json"):
            (new / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / name, new / name)
        disk.write(new / "README.md", readme)

    def open(self, checkpoint: Checkpoint, new: Path) -> Call:
        return diffusers_model.load(new / part_of(new)).eval()
