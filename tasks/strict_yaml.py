"""YAML 1.2 as DVC reads it, and of that only what parameters need: mappings by words, lists, words, finite numbers.

Whatever the file, the answer comes soon and is a value or a UserError: pipes and devices are not waited for, and
length, depth and what aliases expand to are bounded before anything is built.
"""

import io
import math
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from diffcore.core.errors import UserError

LONGEST = 2**18
"""Bytes of a file."""

DEEPEST = 40
"""Brackets within brackets."""

MOST = 2**20
"""Letters and values, every alias written out."""

WORD = 100
"""Letters of a key."""


def load_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file."""
    raw = parse_yaml(_read(path), str(path))
    if not isinstance(raw, dict):
        raise UserError(f"{path} must be a mapping of sections")
    return raw


def _read(path: Path) -> str:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # opening a pipe would wait for a writer
    except FileNotFoundError:
        raise UserError(f"{path} is missing; run from the folder that holds it") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise UserError(f"{path} is no file, but a folder, pipe or device")
        content = _all(descriptor)
    finally:
        os.close(descriptor)
    if len(content) > LONGEST:
        raise UserError(f"{path} is longer than {LONGEST} bytes; no file of parameters is")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UserError(f"{path} is not in UTF-8, line {line}; save it as UTF-8") from None


def _all(descriptor: int) -> bytes:
    content = b""
    while len(content) <= LONGEST and (block := os.read(descriptor, LONGEST + 1)):
        content += block
    return content


def parse_yaml(text: str, whose: str) -> Any:
    """What a text says. PyYAML's dialect would take 1e-4 for a string and `on` for true."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    try:
        _measure(YAML(typ="safe").parse(text))
        return YAML(typ="safe").load(text)
    except UserError as error:
        raise UserError(f"{whose} {error}") from None
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{whose} is not valid YAML{place}: {_short(str(error.problem or error.context))}") from None
    except (YAMLError, ValueError, LookupError, OverflowError) as error:  # a date or number that there is not
        raise UserError(f"{whose} is not valid YAML: {_short(str(error))}") from None


def _measure(events: Iterable[Any]) -> None:
    """Refuses what is too deep, or too much once its aliases are written out, from the parser's events alone."""
    open_nodes: list[list[Any]] = [[None, 0]]  # anchor and size of each, the outermost first
    sizes: dict[str, int] = {}
    for event in events:
        kind, anchor = type(event).__name__, getattr(event, "anchor", None)
        if kind in ("MappingStartEvent", "SequenceStartEvent"):
            open_nodes.append([anchor, 1])
        elif kind in ("MappingEndEvent", "SequenceEndEvent"):
            anchor, size = open_nodes.pop()
            _count(open_nodes, sizes, anchor, size)
        elif kind == "ScalarEvent":
            _count(open_nodes, sizes, anchor, 1 + len(event.value))
        elif kind == "AliasEvent":
            if any(anchor == inside for inside, _ in open_nodes):
                raise UserError(f"has an alias within what it stands for, *{anchor}")
            _count(open_nodes, sizes, None, sizes.get(anchor, 0))
        if len(open_nodes) > DEEPEST:
            raise UserError(f"is nested more than {DEEPEST} deep; no parameters are")
        if open_nodes[-1][1] > MOST:
            raise UserError("grows without measure when its aliases are written out")


def _count(open_nodes: list[list[Any]], sizes: dict[str, int], anchor: str | None, size: int) -> None:
    open_nodes[-1][1] += size
    if anchor is not None:
        sizes[anchor] = size


def strange(path: str, value: Any) -> Iterator[str]:
    """A line for everything in a value that is no parameter, with its path: numbers that are not finite, dates, bytes, sets,
    keys that are no words, letters that no terminal shows."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if fault := bad_key(key):
                yield f"{path}: {fault}"
            else:
                yield from strange(f"{path}.{key}", inner)
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from strange(f"{path}.{number}", inner)
    elif fault := _bad_value(value):
        yield f"{path}: {fault}"


def bad_key(key: Any) -> str | None:
    """What is wrong with a key, or None."""
    if not isinstance(key, str):
        return f"the key {_short(repr(key))} is no word; put it in quotes or leave it out"
    if not key or len(key) > WORD or not key.isprintable():
        return f"the key {_short(repr(key))} is no word of at most {WORD} letters"
    return None


def _bad_value(value: Any) -> str | None:
    if isinstance(value, float) and not math.isfinite(value):
        return f"must be a finite number, got {value}"
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return "is a number of more than 64 bits"
    if isinstance(value, str) and any(letter < " " and letter not in "\n\t" for letter in value):
        return f"holds a control character, {_short(repr(value))}"
    if not isinstance(value, str | int | float | bool | None):
        return f"is a {type(value).__name__}, which no parameter is; put it in quotes if words are meant"
    return None


def yaml_text(value: dict[str, Any]) -> str:
    """A mapping as YAML, in its own order."""
    from ruamel.yaml import YAML

    yaml, text = YAML(typ="safe"), io.StringIO()
    yaml.sort_base_mapping_type_on_output = False
    yaml.default_flow_style = False
    yaml.dump(value, text)
    return text.getvalue()


def dump_yaml(value: dict[str, Any], path: Path) -> None:
    """Writes a mapping as YAML, in its own order."""
    Path(path).write_text(yaml_text(value), encoding="utf-8")


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 2 * WORD else f"{line[: 2 * WORD]}..."
