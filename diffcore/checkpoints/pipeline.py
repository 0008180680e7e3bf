"""A whole pipeline of diffusers, and a student in the place of its network."""

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffcore.checkpoints.card import Card
from diffcore.checkpoints.from_diffusers import part_of
from diffcore.checkpoints.to_diffusers import is_stepped, reading_of
from diffcore.core import disk
from diffcore.core.errors import UserError
from diffcore.data.embeddings import of_pipeline
from diffcore.nets import read_config
from diffcore.nets.diffusers_model import silent

INDEX, SETTINGS = "model_index.json", "scheduler/scheduler_config.json"


@dataclass(frozen=True)
class Pipeline:
    """folder: what its `save_pretrained` wrote. part: the folder of its network. index: the content of model_index.json.
    others: its other folders beside the scheduler: text encoders, tokenizers, what makes latents of images."""

    folder: Path
    part: str
    index: Mapping[str, Any]
    others: tuple[str, ...]

    @property
    def name(self) -> str:
        """Of its class."""
        return self.index["_class_name"]

    @property
    def absent(self) -> tuple[str, ...]:
        """Parts that it has not, which diffusers must be told to open it without."""
        import diffusers

        with silent():  # what it imports for the class speaks of packages that no network here needs
            optional = getattr(getattr(diffusers, self.name, None), "_optional_components", ())
        return tuple(name for name, value in self.index.items() if value == [None, None] and name not in optional)

    def check(self, card: Card, network: str, encoder: str | None) -> None:
        """A UserError where a student of this card, a network of that class, cannot take the place of its network. encoder:
        digest of the text encoders that lay there when its teacher was adopted, None where there were none."""
        own = read_config(self.folder / self.part)["_class_name"]
        if network != own:
            raise UserError(
                f"{card.name} is a {network}, and the {self.name} in {self.folder} calls a {own}; choose another --format"
            )
        if not is_stepped(reading_of(card)):
            raise UserError(
                f"no scheduler of diffusers steps {card.name}, so no {self.name} can; choose another --format"
            )
        if encoder is not None and encoder != of_pipeline(self.folder):
            raise UserError(
                f"the text encoders in {self.folder} are other than those by whose embeddings {card.name} is told texts; "
                "fetch those again"
            )

    def complete(self, new: Path, copies: bool) -> None:
        """Makes a pipeline of the copied checkpoint in `new`, with this one's other folders as links, or as copies.

        Where its network lies in transformer/, what vouched for unet/ is gone.
        """
        if self.part != "unet":
            (new / "unet").rename(new / self.part)
            (new / "card.json").unlink()
        for name in self.others:
            source = (self.folder / name).resolve()
            if copies:
                shutil.copytree(source, new / name)
            else:
                os.symlink(source, new / name, target_is_directory=True)
        settings = disk.parse_json((new / SETTINGS).read_text())
        index = {**self.index, "scheduler": ["diffusers", settings["_class_name"]]}
        disk.write_json(new / INDEX, index)


def read(folder: Path) -> Pipeline | None:
    """The pipeline in a folder; None where that is a network and a scheduler alone, or says of no class."""
    folder = Path(folder).expanduser()
    if not (folder / INDEX).is_file():
        return None
    try:
        index = disk.parse_json((folder / INDEX).read_text())
    except ValueError as error:
        raise UserError(f"{folder / INDEX} is not valid JSON ({error}); fetch or write it again") from None
    if not isinstance(index, dict) or not isinstance(index.get("_class_name"), str):
        raise UserError(f"{folder / INDEX} does not say which pipeline it is; fetch or write it again")
    part = part_of(folder)
    others = tuple(sorted(name for name, value in index.items() if _is_part(value) and (folder / name).is_dir()))
    others = tuple(name for name in others if name not in (part, "scheduler"))
    return Pipeline(folder, part, index, others) if others else None


def _is_part(value: Any) -> bool:
    """Whether an entry of the index names the class of a folder."""
    return isinstance(value, list) and len(value) == 2 and all(isinstance(word, str) for word in value)
