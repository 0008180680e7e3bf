"""The user's images, one file for each kind of source; its name is the word that `source:` in params.yaml begins with. Adding
a file adds the source.

A source is a list of entries that can be read in any order, so that reading runs in several threads and still gives the
same bytes each time. No member of a tar is unpacked to the disk, no pickle is read, no command is run.
"""

import abc
import importlib
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffcore.data.cache import Cache
from diffcore.data.captions import is_template
from diffcore.data.folders import Parts
from diffcore.data.split import Split


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing that can be read by itself: a picture, or a block of `images` pictures.

    read: () -> (pictures, labels): each picture a PIL image or a uint8 array [h, w, c]; each label an int or None.
        Raises if the bytes are not what they should be.
    split: the folder train/, test/, ... that it lies in.
    captions: of each picture; None where `data.captions` is null, and of what is damaged. A kind of source gives what stands
        under `Kind.caption_name`, or the labels for a template; `selection.find` makes texts of them.
    """

    name: str
    images: int
    read: Callable[[], tuple[Sequence[Any], Sequence[int | None]]]
    split: str | None = None
    captions: Sequence[Any] | None = None


@dataclass(frozen=True)
class Source:
    """What a source holds.

    entries: in the source's own order; a folder's, which would come class by class, are dealt once in a fixed random
        order, so that every shard, and the first N images too, are a fair sample of the whole.
    classes: their names by label, or None where the source has no names for them (or no labels).
    splits: images in each of `train`, `test`, ... where the folder is divided so, else None.
    others: files of other kinds that lie among a folder's images. files: those that are read.
    notes: how the source was understood, where that could surprise. held: what is held out. versions: of remote files,
    their digests by address. unseen: the captions whose images were left out, each once, in alphabetical order. drawn: who
    drew the images, and how; None where no network did.
    """

    entries: list[Entry]
    classes: list[str] | None
    splits: dict[str, int] | None = None
    others: list[Parts] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    held: "Source | None" = None
    versions: dict[str, str] = field(default_factory=dict)
    unseen: tuple[str, ...] = ()
    drawn: dict[str, Any] | None = None

    @property
    def ignored(self) -> int:
        """Files of other kinds."""
        return len(self.others)

    @property
    def images(self) -> int:
        """How many images there are to read, good or bad."""
        return sum(entry.images for entry in self.entries)


class Kind(abc.ABC):
    """A kind of source.

    place: the word for what follows the colon in params.yaml, None where nothing does. least: [c, h, w] below which no image
    of it is, as far as is known without a look. label_columns: `data.labels` may name one of several things that are said of
    an image. named_splits: `data.split` may name parts of it. dealt: its entries may come class by class and are dealt.
    remote: its place may be an address, whose files are then read through `cache`. tell: hears how far a long look-up is.
    caption_names: what `data.captions` may name, as a regular expression and in words; None where it has no captions, so
    that only a template with {class} gives it some. captions: `data.captions`. drawn: the folder of what a teacher drew.
    """

    place: str | None = None
    least: tuple[int, int, int] = (1, 1, 1)
    label_columns: bool = False
    named_splits: bool = False
    dealt: bool = False
    remote: bool = False
    caption_names: tuple[str, str] | None = None

    def __init__(
        self,
        cache: Cache | None = None,
        tell: Callable[[str], None] = lambda line: None,
        captions: str | None = None,
        drawn: Path | None = None,
    ):
        self.cache, self.tell, self.captions, self.drawn = cache, tell, captions, drawn

    @classmethod
    def fault(cls, place: str) -> str | None:
        """What is wrong with a place, where that can be seen of it alone; None for nothing."""
        return None

    @property
    def caption_name(self) -> str | None:
        """Where the captions stand, by the source's own name; None where none are read."""
        return None if is_template(self.captions) else self.captions

    def captions_of(self, labels: Sequence[int | None], values: Sequence[Any] | None) -> Sequence[Any] | None:
        """`Entry.captions` of images with these labels; values: what stands under `caption_name`."""
        return labels if is_template(self.captions) else values

    @abc.abstractmethod
    def find(self, place: str, labels: str | None, split: Split | None) -> Source:
        """What lies at `place`, without decoding it. Raises UserError when there is nothing to read.

        labels, split: of the section `data`; looked at by a kind with label_columns and named_splits.
        """


def names() -> list[str]:
    """The known kinds of sources, in alphabetical order."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def load(name: str) -> type[Kind]:
    """The kind of source of this name."""
    module = importlib.import_module(f"{__name__}.{name}")
    return next(
        kind
        for kind in vars(module).values()
        if isinstance(kind, type) and kind.__module__ == module.__name__ and issubclass(kind, Kind)
    )


def parse(source: str) -> tuple[type[Kind], str]:
    """The kind of source that `data.source` says, and its place. Raises ValueError naming the forms there are."""
    name, colon, place = source.partition(":")
    kind = load(name) if name in names() else None
    if kind is None or bool(colon) != bool(kind.place) or bool(place) != bool(kind.place):
        *forms, last = map(_form, names())
        raise ValueError(f"source must be {', '.join(forms)} or {last}, not {source!r}")
    return kind, place


def _form(name: str) -> str:
    place = load(name).place
    return f"{name}:{place}" if place else name
