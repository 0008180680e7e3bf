"""A text encoder that the user has: a folder of transformers, or a whole pipeline of diffusers."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from diffcore.core import disk
from diffcore.core.errors import UserError
from diffcore.data.embeddings import of_pipeline
from diffcore.texts.encoder import Encoder
from diffcore.texts.layouts import Layout, layouts
from diffcore.texts.layouts.single import Single
from diffcore.texts.model import Loaded, Model, check_installed

PLACE = "PATH"
INDEX = "model_index.json"


@dataclass(frozen=True)
class Folder(Encoder):
    """folder: where it lies, on which nothing depends. layout: what is made of the models' outputs."""

    folder: Path | None = None
    layout: Layout | None = None
    models: tuple[Model, ...] = ()

    @functools.cached_property
    def about(self) -> dict[str, Any]:
        files = {str(path.relative_to(self.folder)): disk.sha256(path) for each in self.models for path in each.files()}
        kind, settings = type(self.layout).__name__, dict(self.layout.settings)
        return {"name": "folder", "layout": kind, "settings": settings, "files": disk.digest(files)}

    @property
    def content(self) -> dict[str, Any]:
        """With `pipeline`: by what a teacher adopted from the same folder is to be told texts."""
        return super().content | ({"pipeline": of_pipeline(self.folder)} if self.layout.formats else {})

    @property
    def _counted(self) -> Model:
        return self.models[self.layout.counted]

    @property
    def most(self) -> int | None:
        return self._counted.most

    @property
    def usual(self) -> int | None:
        return self.layout.usual or self._counted.usual

    @functools.cached_property
    def _loaded(self) -> list[Loaded]:
        return [each.load(self.device, self.numbers) for each in self.models]

    def counts(self, captions: Sequence[str]) -> list[int]:
        return self._counted.counts(self._prepared(captions))

    def encode(self, captions: Sequence[str]) -> dict[str, Tensor]:
        return self.layout.encode(self._loaded, self._prepared(captions), self.length)

    def nothing(self) -> dict[str, Tensor]:
        return self.layout.nothing(self._loaded, self.length)

    def _prepared(self, captions: Sequence[str]) -> list[str]:
        return [self.layout.prepared(each) for each in captions]


def encoder_of(place: str, dimension: int) -> Folder:
    check_installed()
    folder = Path(place).expanduser()
    if not folder.is_dir():
        raise UserError(f"text.encoder: {place} is not there; name a folder of transformers or of a whole pipeline")
    layout = _layout(folder) if (folder / INDEX).is_file() else Single({})
    models = tuple(Model(folder / model, folder / tokenizer) for model, tokenizer in layout.places)
    return Folder(folder=folder, layout=layout, models=models)


def _layout(folder: Path) -> Layout:
    """That of a pipeline, by its name in model_index.json."""
    try:
        content = disk.parse_json((folder / INDEX).read_bytes())
        name = content["_class_name"]
    except (ValueError, KeyError, TypeError):
        raise UserError(
            f"text.encoder: {folder / INDEX} names no pipeline; write it again with save_pretrained"
        ) from None
    for kind in layouts():
        if name in kind.formats:
            return kind({key: content[key] for key in kind.reads if key in content})
    formats = ", ".join(kind.formats[0] for kind in layouts() if kind.formats)
    raise UserError(
        f"text.encoder: {folder} is a {name}, of which only these are known: {formats}; name its text encoder's folder"
    )
