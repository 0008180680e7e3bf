"""Files on this machine's disks by a pattern with `*`, `{a,b}` or `{000..012}`."""

import glob
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from diffcore.core.errors import UserError
from diffcore.data.tars import printable


def paths(pattern: str, what: str) -> list[Path]:
    """The files that a pattern names, each once, in the order of the pattern; `what` they are called where one is missing.

    Raises UserError for one that is not there, is no regular file, or is named twice.
    """
    return [Path(path) for path in each_once(_matches(os.path.expanduser(pattern), what), pattern)]


def each_once(names: Iterable[str], pattern: str) -> Iterator[str]:
    """The names as they come. Raises UserError at one that came before."""
    seen = set()
    for name in names:
        if name in seen:
            raise UserError(f"data.source: {printable(name)} is named twice by {pattern}")
        seen.add(name)
        yield name


def braces(pattern: str) -> Iterator[str]:
    """`{a,b}` and `{000..012}`, as a shell expands them."""
    match = re.search(r"\{([^{}]*)\}", pattern)
    if match is None:
        yield pattern
        return
    span = re.fullmatch(r"(\d{1,18})\.\.(\d{1,18})", match[1])
    alternatives: Iterable[str] = match[1].split(",")
    if span:
        padded = any(len(number) > 1 and number.startswith("0") for number in span.groups())
        width = max(map(len, span.groups())) if padded else 0
        alternatives = (str(number).zfill(width) for number in _span(int(span[1]), int(span[2])))
    for alternative in alternatives:
        yield from braces(pattern[: match.start()] + alternative + pattern[match.end() :])


def stamp(path: Path) -> tuple[int, int]:
    """Size and time of the last change: what a file that is held open is known by."""
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns


def _matches(pattern: str, what: str) -> Iterator[str]:
    for name in braces(pattern):
        matches = sorted(glob.glob(name, recursive=True)) if glob.has_magic(name) else [name]
        missing = [path for path in matches if not os.path.isfile(path)]
        if missing or not matches:
            raise UserError(f"data.source: there is no {what} {printable((missing or [name])[0])}")
        yield from matches


def _span(first: int, last: int) -> range:
    return range(first, last + 1) if first <= last else range(first, last - 1, -1)
