"""What `data.captions` may be, and what a caption."""

import json
import re
from collections.abc import Sequence
from typing import Any

from diffcore.core import disk
from diffcore.core.errors import UserError
from diffcore.data.tars import printable

CLASS = "{class}"
"""In a template, what stands for the name of an image's class."""


def is_template(named: str | None) -> bool:
    """Whether `data.captions` is a text with {class} in it, and not a name."""
    return named is not None and CLASS in named


def fault(named: str | None, names: tuple[str, str] | None, kind: str, labelled: bool) -> str | None:
    """What is wrong with `data.captions`; None if nothing is.

    names: of the kind of source, see `Kind.caption_names`. kind: its word. labelled: whether its labels are read.
    """
    if named is None:
        return None
    if re.search(r"[{}]", named.replace(CLASS, "")):
        return f"captions: {CLASS} alone stands in braces, not as in {named!r}"
    if is_template(named):
        return None if labelled else f"captions has {CLASS}, and labels are none: name captions, or leave labels null"
    if names is None:
        return f"captions may be null or a template with {CLASS} for {kind}, which has none of its own, not {named!r}"
    form, words = names
    if not re.fullmatch(form, named):
        return f"captions may be null, {words} or a template with {CLASS} for {kind}, not {named!r}"
    return None


def text(value: Any, name: str) -> str:
    """The caption of the image `name`, stripped, white space folded to one blank; empty where there is none.

    value: str, UTF-8 or None. Raises UserError for what is no text.
    """
    if value is None:
        return ""
    if isinstance(value, list):
        raise UserError(f"data.captions: {name} has a list of {len(value)} captions: choose one for each image")
    if not isinstance(value, str | bytes):
        raise UserError(f"data.captions: the caption of {name} is {excerpt(value)}, no text: write it in words")
    try:
        value = value.decode() if isinstance(value, bytes) else value
        value.encode()  # half a surrogate pair is no character
    except UnicodeError:
        raise UserError(f"data.captions: the caption of {name} is not UTF-8: save it anew") from None
    return " ".join(value.replace("\0", " ").split())


def excerpt(value: Any) -> str:
    """A value as one short line."""
    words = printable(repr(value))
    return words if len(words) < 40 else f"{words[:36]} ..."


def encode(captions: Sequence[str]) -> bytes:
    """The member of a tar with the captions of a block, one for each image."""
    return json.dumps(list(captions), ensure_ascii=False).encode()


def decode(content: bytes, count: int) -> list[str]:
    """The inverse of `encode`, for so many images. Raises ValueError for anything else."""
    captions = disk.parse_json(content)
    if not isinstance(captions, list) or not all(type(each) is str for each in captions):
        raise ValueError("its captions are no list of texts")
    if len(captions) != count:
        raise ValueError(f"{len(captions)} captions for {count} images")
    return captions


def of_sample(parts: dict[str, bytes], count: int) -> list[str] | None:
    """The captions of one sample of a shard that was written here, None without any. Raises ValueError for anything else."""
    if "captions.json" in parts:
        return decode(parts["captions.json"], count)
    return [parts["txt"].decode()] * count if "txt" in parts else None
