"""manifest.json: what lies in a folder of shards, where it came from, and a digest that vouches for every byte."""

import contextlib
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np

from diffcore.core import disk
from diffcore.core.errors import UserError

SCHEMA = 1

SEEN_LATER = ("captions", "unseen")
LATER = (*SEEN_LATER, "drawn")
"""Fields that older manifests have not, and that are written where they say something; training can see the first ones."""

HELD_OUT = "holdout"
"""The folder, within that of the images to train on, of those that are held out."""


@dataclass(frozen=True)
class Shard:
    """One tar: its file name, how many images it holds, its size in bytes and its digest."""

    name: str
    images: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """manifest.json: what lies in a folder of shards, and where it came from.

    found: images in the source: those written and those quarantined because they cannot be read, each named as
    {name, images, reason} (a damaged block of a tar counts as many). enlarged: images smaller than the size asked for.
    ignored: files of other kinds beside a folder's images. splits: images found in each of a folder's train/, test/, ...
    shape: [channels, height, width]. classes: names by label; None if the images have no labels.
    captions: whether the images have captions. unseen: the captions whose images data.unseen left out, of those held out
    too, each once, in alphabetical order. Where there are none the file says nothing of either. drawn: which teacher drew the
    images, and how; None, and not in the file, where none did.
    digest: sha256 over what training can see (the shards, shape, classes, layout, captions), not over where it came from, so
    that the same images found in another place give the same digest. A checkpoint carries it as its data digest.
    """

    schema: int
    source: str
    license: str | None
    found: int
    images: int
    quarantined: tuple[dict[str, Any], ...]
    enlarged: int
    ignored: int
    splits: dict[str, int] | None
    filter: str
    shape: tuple[int, int, int]
    classes: tuple[str, ...] | None
    members: Literal["block", "image"]
    shards: tuple[Shard, ...]
    digest: str
    captions: bool = False
    unseen: tuple[str, ...] = ()
    drawn: dict[str, Any] | None = None

    @staticmethod
    def read(folder: Path, verify: bool = True) -> "Manifest":
        """The manifest of `folder`, with every shard found in its place and size, and, to `verify`, with its digest.

        Raises UserError naming what is missing or has changed.
        """
        manifest = _parse(Path(folder))
        for shard in manifest.shards:
            path = Path(folder) / shard.name
            if not path.is_file():
                raise UserError(f"{path} is missing: run the shard stage again")
            if path.stat().st_size != shard.bytes or (verify and disk.sha256(path) != shard.sha256):
                raise UserError(f"{path} is not what the manifest says: run the shard stage again")
        return manifest

    def content(self) -> dict[str, Any]:
        """What the file says."""
        return {name: value for name, value in asdict(self).items() if name not in LATER or value}

    @property
    def drawn_by(self) -> str:
        """Who drew the images, and how, in words; empty where no teacher did."""
        if self.drawn is None:
            return ""
        by, recipe = self.drawn, self.drawn["recipe"]
        guided = f", guidance {recipe['guidance']:g}" if "guidance" in recipe else ""
        return (
            f"{by['images']} images drawn by {by['name']} ({by['teacher'][:12]}), {recipe['sampler']}, {by['steps']} steps"
            f"{guided}, seed {by['seed']}"
        )

    @property
    def image_bytes(self) -> int:
        """The size of one decoded image."""
        return int(np.prod(self.shape))


def digest(content: dict[str, Any]) -> str:
    """Of a manifest's fields, those that training can see."""
    seen = ("schema", "images", "shape", "classes", "members")
    later = {name: content[name] for name in SEEN_LATER if content.get(name)}
    shards = [asdict(shard) for shard in content["shards"]]
    return disk.digest({name: content[name] for name in seen} | later | {"shards": shards})


def _parse(folder: Path) -> Manifest:
    path = folder / "manifest.json"
    try:
        value = disk.parse_json(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{folder} holds no manifest.json: run the shard stage") from None
    except ValueError:
        raise UserError(f"{path} is not JSON: run the shard stage again") from None
    if not isinstance(value, dict) or value.get("schema") != SCHEMA:
        raise UserError(f"{path} is not a manifest of schema {SCHEMA}: run the shard stage again")
    with contextlib.suppress(KeyError, TypeError, ValueError):
        value["shards"] = tuple(Shard(**shard) for shard in value["shards"])
        for name in ("shape", "classes", "quarantined", "unseen"):
            if value.get(name) is not None:
                value[name] = tuple(value[name])
        names = [shard.name for shard in value["shards"]]
        whole = _is_whole(value) and all(Path(n).name == n for n in names)
        adds_up = value["images"] == sum(shard.images for shard in value["shards"])
        if whole and adds_up and value["digest"] == digest(value):
            return Manifest(**value)
    raise UserError(f"{path} was changed after it was written: run the shard stage again")


def _is_whole(value: dict[str, Any]) -> bool:
    # every field, and those of LATER where they say something
    wanted = {each.name for each in fields(Manifest)}
    return set(value) == wanted - {name for name in LATER if name not in value} and all(
        value[name] for name in LATER if name in value
    )
