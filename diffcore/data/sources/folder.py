"""A folder of pictures, with the classes and splits of its folders or of its annotations."""

import functools
import os
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

from diffcore.core.errors import UserError
from diffcore.data import folders, tars
from diffcore.data.folders import Picture
from diffcore.data.sources import Entry, Kind, Source
from diffcore.data.split import Split, divide
from diffcore.data.tars import printable

MOST_BYTES = 1 << 30  # of an image file


class Folder(Kind):
    """PATH may begin with `~`."""

    place = "PATH"
    label_columns = True
    named_splits = True
    dealt = True
    caption_names = (".+", "a column of metadata.csv or metadata.jsonl")

    def find(self, place: str, labels: str | None, split: Split | None) -> Source:
        root = _root(place)
        named = [name.lower() for name in ((split.train or []) + split.names if split else [])]
        contents = folders.read(root, printable(place), labels, named, self.caption_name)
        entries = [self._entry(root, picture) for picture in contents.pictures]
        kept, out, notes = divide(entries, split, place)
        notes = contents.notes + notes
        source = Source(kept, contents.classes, others=contents.others, files=contents.files, notes=notes)
        return replace(source, held=Source(out, contents.classes) if out else None)

    def _entry(self, root: Path, picture: Picture) -> Entry:
        if not picture.there:
            what = "label" if picture.caption is None else "caption"
            return Entry(picture.name, 1, functools.partial(_absent, what), picture.split)
        read = functools.partial(_read_file, root.joinpath(*picture.parts), picture.label)
        texts = [picture.caption] if self.caption_name else None
        return Entry(picture.name, 1, read, picture.split, self.captions_of([picture.label], texts))


def _root(place: str) -> Path:
    try:
        root = Path(place).expanduser()
        is_folder, is_there = root.is_dir(), root.exists()
    except (OSError, RuntimeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"data.source: {printable(place)} cannot be read ({reason})") from None
    if is_folder:
        return root
    if is_there:
        raise UserError(f"data.source: {printable(place)} is no folder; unpack it if it is an archive")
    raise UserError(f"data.source: there is no folder {printable(place)}")


def _absent(what: str) -> tuple[list[Any], list[int | None]]:
    raise FileNotFoundError(f"a {what} is given for it, and it is not there")


def _read_file(path: Path, label: int | None) -> tuple[list[Any], list[int | None]]:
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("it is no regular file")  # reading a fifo would wait for ever
    if status.st_size > MOST_BYTES:
        raise ValueError(f"it has {status.st_size} bytes; at most {MOST_BYTES} are read")
    return [tars.decode(path.read_bytes(), "any")], [label]
