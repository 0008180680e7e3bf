"""Where the networks of a chain of students come from, if that is a folder that somebody else made."""

import re
from dataclasses import dataclass
from pathlib import Path

from diffcore.checkpoints import Card, pipeline, read_card
from diffcore.checkpoints.pipeline import Pipeline
from diffcore.core import disk
from diffcore.core.errors import UserError
from diffcore.nets import files
from tasks import paths
from tasks.params import Params

HUB = re.compile(r"[\w.-]+/[\w.-]+")
"""What a model of Hugging Face is called."""

LICENSE = re.compile(r"^license:\s*['\"]?([^'\"\n]+?)['\"]?\s*$", re.MULTILINE)


@dataclass(frozen=True)
class Origin:
    """folder: the adopted one; it need not be there any more. name: of the model, as its files have it, else the folder's.
    license: as its README.md says, None where that says nothing. encoder: digest of the text encoders that lay there."""

    folder: Path
    name: str
    license: str | None
    encoder: str | None = None

    @property
    def pipeline(self) -> Pipeline | None:
        """What it is, if that is more than a network and a scheduler."""
        return pipeline.read(self.folder)


def find(params: Params, card: Card) -> Origin | None:
    """That of the teacher that the chain of this card begins with; None where that was trained here, or is not known."""
    root = card if card.method == "adopted" else _root(params, card)
    folder = root and root.parameters.get("folder")
    if not isinstance(folder, str):
        return None
    place = Path(folder).expanduser()
    return Origin(place, _name(place), _license(place), root.parameters.get("encoder"))


def _root(params: Params, card: Card) -> Card | None:
    if card.name not in params.distill:
        return None
    try:
        root = read_card(paths.CHECKPOINTS / params.lines.root_name(card.name))
    except UserError:  # not made in this folder
        return None
    return root if root.method == "adopted" else None


def _name(folder: Path) -> str:
    for path in (folder / "model_index.json", *(folder / part / "config.json" for part in files.PARTS)):
        if not path.is_file():
            continue
        content = disk.parse_json(path.read_text())
        name = content.get("_name_or_path") if isinstance(content, dict) else None
        if isinstance(name, str) and HUB.fullmatch(name):
            return name
    return folder.resolve().name


def _license(folder: Path) -> str | None:
    readme = folder / "README.md"
    if not readme.is_file():
        return None
    head = re.match(r"---\n(.*?)\n---", readme.read_text(errors="replace"), re.DOTALL)
    line = head and LICENSE.search(head.group(1))
    return line.group(1) if line else None
