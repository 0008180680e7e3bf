"""Embeddings of captions, beside the shards whose images they are of: a folder of safetensors with a manifest.

    000000.safetensors ...    of each shard: `rows` int32 [n], for each image its row in the tables; a table [k, ...] for each
                              input of a network by its name: `text` [k, l, d], `text_mask` bool [k, l], `pooled` [k, p]
    nothing.safetensors       of the empty caption: by the same names a tensor without the first dimension
    unseen.safetensors        of captions that no image here has, in the order of the manifest's `unseen`; where there are any
    manifest.json             sealed: whose embeddings, of which shards, the digest of every file

Equal captions of a shard share a row. Files are mapped, not read, so data larger than memory have embeddings too.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffcore.core import disk
from diffcore.core.errors import UserError
from diffcore.data.ledger import Ledger
from diffcore.data.manifest import Manifest, Shard

SCHEMA = 1
MANIFEST, NOTHING, UNSEEN, ROWS = "manifest.json", "nothing.safetensors", "unseen.safetensors", "rows"
AGAIN = "run the encode stage again"

ENCODERS = ("text_encoder", "tokenizer")
"""What the folders of a pipeline begin with that make embeddings of texts."""


@dataclass(frozen=True)
class Shape:
    """Of one input for one sample, and its dtype's name in torch."""

    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Table:
    """What one shard's images are told. rows: int64 [n], of each image; inputs: by name a tensor [k, ...]."""

    rows: Tensor
    inputs: Mapping[str, Tensor]

    def take(self, images: Tensor | np.ndarray | slice) -> dict[str, Tensor]:
        """Of the images of these numbers in the shard."""
        rows = self.rows[images]
        return {name: tensor[rows] for name, tensor in self.inputs.items()}

    def to(self, device: torch.device | str) -> "Table":
        return Table(self.rows.to(device), {name: tensor.to(device) for name, tensor in self.inputs.items()})


@dataclass(frozen=True)
class Unseen:
    """Captions that no image of the data has, and what a network is told by them: by name [u, ...]."""

    captions: Sequence[str]
    inputs: Mapping[str, Tensor]


def write(
    folder: Path,
    encoder: dict[str, Any],
    data: Manifest,
    tables: Iterable[Table],
    nothing: Mapping[str, Tensor],
    unseen: Unseen | None = None,
    kept: Ledger | None = None,
    done: Sequence[dict[str, Any]] = (),
) -> None:
    """Writes `tables`, one for each shard of `data` after those that are `done`; the manifest comes last. encoder: says what
    made them, with its key `digest` for what no other encoder shares. folder: empty, such as a temporary one of
    `disk.folder`. kept: where finished tables are kept until all are, and what is `done` lies, as `finished` says it."""
    whole = list(done)
    for shard, table in zip(data.shards[len(whole) :], tables, strict=True):
        if len(table.rows) != shard.images:
            raise ValueError(f"a table of {len(table.rows)} images is not that of {shard.name}, of {shard.images}")
        name, place = _file_of(shard), kept.folder if kept else folder
        saved = _saved(place / name, {ROWS: table.rows.to(torch.int32), **table.inputs})
        whole.append({"name": name, **saved})
        if kept is not None:
            kept.save({"shards": whole})
    if kept is not None:
        kept.link([each["name"] for each in whole], folder)
    files = {each["name"]: {key: each[key] for key in ("bytes", "sha256")} for each in whole}
    files[NOTHING] = _saved(folder / NOTHING, nothing)
    if unseen is not None:
        files[UNSEEN] = _saved(folder / UNSEEN, unseen.inputs)
    inputs = {name: [list(part.shape), str(part.dtype).removeprefix("torch.")] for name, part in nothing.items()}
    captions = [] if unseen is None else list(unseen.captions)
    _write_manifest(folder, data, {"encoder": encoder, "inputs": inputs, "unseen": captions, "files": files})


def finished(kept: Ledger | None) -> list[dict[str, Any]]:
    """Of the tables that are kept whole, those of the first shards, name, bytes and sha256."""
    return list((kept.load() or {"shards": []})["shards"]) if kept else []


def write_none(folder: Path, data: Manifest) -> None:
    """Says that these data have no embeddings."""
    _write_manifest(folder, data, {"encoder": None, "inputs": {}, "unseen": [], "files": {}})


def _write_manifest(folder: Path, data: Manifest, content: dict[str, Any]) -> None:
    disk.write_sealed(folder / MANIFEST, {"schema": SCHEMA, "data": data.digest, **content})


def _file_of(shard: Shard) -> str:
    return f"{Path(shard.name).stem}.safetensors"


def _saved(path: Path, parts: Mapping[str, Tensor]) -> dict[str, Any]:
    """Writes them; what the manifest says of the file."""
    from safetensors.torch import save_file

    save_file({name: part.contiguous() for name, part in parts.items()}, path)
    return {"bytes": path.stat().st_size, "sha256": disk.sha256(path)}


def of_pipeline(folder: Path) -> str | None:
    """The digest of names and bytes of all that makes embeddings of texts in the folder of a diffusers pipeline, which says
    whose they are; None where nothing does."""
    paths = sorted(path for word in ENCODERS for path in folder.glob(f"{word}*/**/*") if path.is_file())
    return disk.digest({str(path.relative_to(folder)): disk.sha256(path) for path in paths}) if paths else None


class Embeddings:
    """Of the images in a folder of shards; made by `read`.

    encoder: what made them, in words of its own, with a `digest`. inputs: by name the shape and dtype of what a network is
    told. nothing: what it is told where nothing is known. unseen: captions that no image has, see `unseen_inputs`.
    """

    def __init__(self, folder: Path, content: dict[str, Any], data: Manifest):
        self.encoder: dict[str, Any] = content["encoder"]
        self.inputs = {name: Shape(tuple(shape), dtype) for name, (shape, dtype) in content["inputs"].items()}
        self.unseen = tuple(content["unseen"])
        self.digest = disk.digest(content["files"])
        self._folder, self._files = Path(folder), content["files"]
        self._shards = [_file_of(shard) for shard in data.shards]
        self._starts = np.cumsum([0, *(shard.images for shard in data.shards)])
        self._tables: dict[int, Table] = {}

    @property
    def bytes(self) -> int:
        """Of all tables on the disk."""
        return sum(self._files[name]["bytes"] for name in self._shards)

    @property
    def nothing(self) -> dict[str, Tensor]:
        return self._load(NOTHING)

    def unseen_inputs(self) -> dict[str, Tensor]:
        """By name [u, ...], of the captions `unseen`."""
        return self._load(UNSEEN)

    def table(self, shard: int) -> Table:
        """Of a shard's images; its file is checked when it is first asked for, and mapped from then on."""
        if shard not in self._tables:
            tensors = self._load(self._shards[shard])
            self._tables[shard] = Table(tensors.pop(ROWS).long(), tensors)
        return self._tables[shard]

    def whole(self) -> Table:
        """Of all images, in memory."""
        tables = [self.table(shard) for shard in range(len(self._shards))]
        before = np.cumsum([0, *(len(next(iter(each.inputs.values()))) for each in tables)])
        rows = torch.cat([each.rows + int(start) for each, start in zip(tables, before)])
        return Table(rows, {name: torch.cat([each.inputs[name] for each in tables]) for name in self.inputs})

    def take(self, images: Tensor | np.ndarray | Sequence[int]) -> dict[str, Tensor]:
        """What these images are told, numbered through all shards in order: by name [k, ...]."""
        images = np.asarray(images)
        shards = np.searchsorted(self._starts, images, side="right") - 1
        return self.at(shards, images - self._starts[shards])

    def at(self, shards: np.ndarray, rows: np.ndarray) -> dict[str, Tensor]:
        """What the images `rows[i]` of the shards `shards[i]` are told: by name [k, ...]."""
        out = {
            name: torch.empty((len(rows), *kind.shape), dtype=getattr(torch, kind.dtype))
            for name, kind in self.inputs.items()
        }
        for shard in np.unique(shards):
            here = np.flatnonzero(shards == shard)
            for name, part in self.table(int(shard)).take(rows[here]).items():
                out[name][here] = part
        return out

    def _load(self, name: str) -> dict[str, Tensor]:
        from safetensors.torch import load_file

        path = self._folder / name
        if not path.is_file() or path.stat().st_size != self._files[name]["bytes"]:
            raise UserError(f"{path} is missing or torn: {AGAIN}")
        if disk.sha256(path) != self._files[name]["sha256"]:
            raise UserError(f"{path} is not what the manifest says: {AGAIN}")
        return load_file(path)


def read(folder: Path, data: Manifest) -> Embeddings | None:
    """The embeddings in `folder`, None where the data have none. A UserError if they are of other data than these."""
    content = disk.read_sealed(Path(folder) / MANIFEST, SCHEMA, AGAIN)
    if content["data"] != data.digest:
        raise UserError(f"{folder} holds the embeddings of other captions than those of the data: {AGAIN}")
    return Embeddings(folder, content, data) if content["encoder"] else None
