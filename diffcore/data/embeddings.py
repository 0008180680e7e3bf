"""Embeddings of captions, beside the shards whose images they are of: a folder of safetensors with a manifest.

    000000.safetensors ...    of each shard: `rows` int32 [n], for each image its row in the tables; a table [k, ...] for each
                              input of a network by its name: `text` [k, l, d], `text_mask` bool [k, l], `pooled` [k, p]
    nothing.safetensors       of the empty caption: by the same names a tensor without the first dimension
    unseen.safetensors        of captions that no image here has, in the order of the manifest's `unseen`; where there are any
    manifest.json             sealed: whose embeddings, of which shards, the digest of every file

Equal captions of a shard share a row. Files are mapped, not read, so data larger than memory have embeddings too. Prompts
without images lie in such a folder of their own, PART of them to a file.
"""

import abc
import functools
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffcore.core import disk
from diffcore.core.errors import UserError
from diffcore.data.ledger import Ledger
from diffcore.data.manifest import Manifest

SCHEMA = 1
MANIFEST, NOTHING, UNSEEN, ROWS = "manifest.json", "nothing.safetensors", "unseen.safetensors", "rows"
AGAIN = "run the encode stage again"

PART = 512
"""Prompts of a table, all of which are in memory at once."""

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
class Part:
    """What one table is of: its name, and how many rows."""

    name: str
    rows: int

    @property
    def file(self) -> str:
        return f"{Path(self.name).stem}.safetensors"


def _numbered(count: int) -> list[Part]:
    """The tables of so many prompts."""
    return [Part(f"{number:06d}", min(PART, count - start)) for number, start in enumerate(range(0, count, PART))]


@dataclass(frozen=True)
class Prompts:
    """Texts without images, in order."""

    texts: Sequence[str]

    @functools.cached_property
    def digest(self) -> str:
        return disk.digest(list(self.texts))

    @property
    def parts(self) -> list[Part]:
        return _numbered(len(self.texts))

    def captions(self) -> Iterator[list[str]]:
        """Those of each part."""
        texts = iter(self.texts)
        return (list(itertools.islice(texts, part.rows)) for part in self.parts)


def _parts(data: Manifest | Prompts) -> list[Part]:
    if isinstance(data, Prompts):
        return data.parts
    return [Part(shard.name, shard.images) for shard in data.shards]


@dataclass(frozen=True)
class Unseen:
    """Captions that no image of the data has, and what a network is told by them: by name [u, ...]."""

    captions: Sequence[str]
    inputs: Mapping[str, Tensor]


def write(
    folder: Path,
    encoder: dict[str, Any],
    data: Manifest | Prompts,
    tables: Iterable[Table],
    nothing: Mapping[str, Tensor],
    unseen: Unseen | None = None,
    kept: Ledger | None = None,
    done: Sequence[dict[str, Any]] = (),
) -> None:
    """Writes `tables`, one for each shard or part of `data` after those that are `done`; the manifest comes last. encoder:
    says what made them, with its key `digest` for what no other encoder shares. folder: empty, such as a temporary one of
    `disk.folder`. kept: where finished tables are kept until all are, and what is `done` lies, as `finished` says it."""
    whole = list(done)
    for part, table in zip(_parts(data)[len(whole) :], tables, strict=True):
        if len(table.rows) != part.rows:
            raise ValueError(f"a table of {len(table.rows)} images is not that of {part.name}, of {part.rows}")
        place = kept.folder if kept else folder
        saved = _saved(place / part.file, {ROWS: table.rows.to(torch.int32), **table.inputs})
        whole.append({"name": part.file, **saved})
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
    counted = {"prompts": len(data.texts)} if isinstance(data, Prompts) else {}
    content = {"encoder": encoder, "inputs": inputs, "unseen": captions, "files": files, **counted}
    _write_manifest(folder, data, content)


def finished(kept: Ledger | None) -> list[dict[str, Any]]:
    """Of the tables that are kept whole, those of the first shards, name, bytes and sha256."""
    return list((kept.load() or {"shards": []})["shards"]) if kept else []


def write_none(folder: Path, data: Manifest | Prompts) -> None:
    """Says that these data have no embeddings."""
    _write_manifest(folder, data, {"encoder": None, "inputs": {}, "unseen": [], "files": {}})


def _write_manifest(folder: Path, data: Manifest | Prompts, content: dict[str, Any]) -> None:
    disk.write_sealed(folder / MANIFEST, {"schema": SCHEMA, "data": data.digest, **content})


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


class Tables(abc.ABC):
    """Rows of what a network is told, in tables one after the other.

    inputs: by name the shape and dtype of what a row is. counts: rows of each table. bytes: of all on the disk.
    """

    inputs: Mapping[str, Shape]
    counts: tuple[int, ...]
    bytes: int

    @abc.abstractmethod
    def table(self, number: int) -> Table:
        """That of this number."""

    @property
    def _starts(self) -> np.ndarray:
        return np.cumsum([0, *self.counts])

    def whole(self) -> Table:
        """All rows, in memory."""
        tables = [self.table(number) for number in range(len(self.counts))]
        before = np.cumsum([0, *(len(next(iter(each.inputs.values()))) for each in tables)])
        rows = torch.cat([each.rows + int(start) for each, start in zip(tables, before)])
        return Table(rows, {name: torch.cat([each.inputs[name] for each in tables]) for name in self.inputs})

    def take(self, rows: Tensor | np.ndarray | Sequence[int]) -> dict[str, Tensor]:
        """What these rows are told, numbered through all tables in order: by name [k, ...]."""
        rows, starts = np.asarray(rows), self._starts
        tables = np.searchsorted(starts, rows, side="right") - 1
        return self.at(tables, rows - starts[tables])

    def at(self, tables: np.ndarray, rows: np.ndarray) -> dict[str, Tensor]:
        """What the rows `rows[i]` of the tables `tables[i]` are told: by name [k, ...]."""
        out = {
            name: torch.empty((len(rows), *kind.shape), dtype=getattr(torch, kind.dtype))
            for name, kind in self.inputs.items()
        }
        for number in np.unique(tables):
            here = np.flatnonzero(tables == number)
            for name, part in self.table(int(number)).take(rows[here]).items():
                out[name][here] = part
        return out


class Embeddings(Tables):
    """Of the images in a folder of shards, or of prompts without images; made by `read` and `read_prompts`.

    encoder: what made them, in words of its own, with a `digest`. inputs: by name the shape and dtype of what a network is
    told. nothing: what it is told where nothing is known. unseen: captions that no image has, see `unseen_inputs`. data: the
    digest of what they are of.
    """

    def __init__(self, folder: Path, content: dict[str, Any], parts: Sequence[Part]):
        self.encoder: dict[str, Any] = content["encoder"]
        self.inputs = {name: Shape(tuple(shape), dtype) for name, (shape, dtype) in content["inputs"].items()}
        self.unseen = tuple(content["unseen"])
        self.digest, self.data = disk.digest(content["files"]), content["data"]
        self.counts = tuple(part.rows for part in parts)
        self._folder, self._files = Path(folder), content["files"]
        self._names = [part.file for part in parts]
        self._tables: dict[int, Table] = {}

    @property
    def bytes(self) -> int:
        """Of all tables on the disk."""
        return sum(self._files[name]["bytes"] for name in self._names)

    @property
    def nothing(self) -> dict[str, Tensor]:
        return self._load(NOTHING)

    def unseen_inputs(self) -> dict[str, Tensor]:
        """By name [u, ...], of the captions `unseen`."""
        return self._load(UNSEEN)

    def table(self, number: int) -> Table:
        """Of a shard's images; its file is checked when it is first asked for, and mapped from then on."""
        if number not in self._tables:
            tensors = self._load(self._names[number])
            self._tables[number] = Table(tensors.pop(ROWS).long(), tensors)
        return self._tables[number]

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
    return Embeddings(folder, content, _parts(data)) if content["encoder"] else None


def read_prompts(folder: Path, beside: Embeddings) -> Embeddings | None:
    """Those in `folder` of prompts without images, None where there are none. A UserError if another encoder made them than
    the one that made those of the images, `beside`."""
    content = disk.read_sealed(Path(folder) / MANIFEST, SCHEMA, AGAIN)
    if not content["encoder"]:
        return None
    if content["encoder"]["digest"] != beside.encoder["digest"]:
        raise UserError(f"{folder} holds embeddings by another encoder than those of the captions: {AGAIN}")
    return Embeddings(folder, content, _numbered(content["prompts"]))


class Joined(Tables):
    """The rows of several by one encoder, one after the other."""

    def __init__(self, *parts: Tables):
        self.inputs, self.bytes = parts[0].inputs, sum(each.bytes for each in parts)
        self.counts = tuple(count for each in parts for count in each.counts)
        self._tables = [(each, number) for each in parts for number in range(len(each.counts))]

    def table(self, number: int) -> Table:
        each, own = self._tables[number]
        return each.table(own)
