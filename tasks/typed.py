"""Values of params.yaml as dataclasses: strict, every fault with its path and the nearest right word."""

import difflib
import functools
import json
import re
from collections.abc import Callable
from dataclasses import fields
from typing import Any

from diffcore.core.errors import UserError

LETTERS = 64
"""Of what a message shows of a text, and of a student's name, of which file names are made."""


def typed(kind: Any, section: Any, where: str, faults: list[str]) -> Any:
    from pydantic import ValidationError

    try:
        return _adapter(kind).validate_json(json.dumps(section), strict=True, extra="forbid")
    except ValidationError as error:
        for fault in _merged(error.errors(include_url=False)):
            faults.append(_line(kind, where, fault))
    return None


@functools.cache
def _adapter(kind: Any) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


KIND = re.compile(r"float|int|bool|str|none|(list|dict|tuple|literal)\[.*\]")
"""How pydantic writes one."""


def _merged(errors: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One fault for each value: pydantic names each kind that a value of several kinds might have been as a key of it."""
    merged: dict[tuple[int | str, ...], dict[str, Any]] = {}
    for fault in errors:
        place = tuple(part for part in fault["loc"] if not KIND.fullmatch(str(part)))
        if place in merged and place != fault["loc"]:
            merged[place]["msg"] += f", or: {fault['msg']}"
        else:
            merged[place] = {**fault, "loc": place}
    return list(merged.values())


def _line(kind: Any, where: str, fault: dict[str, Any]) -> str:
    path = ".".join([where, *(str(part) for part in fault["loc"])])
    if fault["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"{path}: unknown key{nearest(str(fault['loc'][-1]), names(kind))}"
    if fault["type"] in ("missing", "missing_argument", "missing_keyword_only_argument"):
        return f"{path}: missing"
    value = json.dumps(fault["input"]) if not isinstance(fault["input"], dict) else ""
    message = fault["msg"].removeprefix("Value error, ")
    return f"{path}: {message}" + (f", got {value}" if value and value not in message else "")


def names(kind: Any) -> list[str]:
    return [field.name for field in fields(kind)] if hasattr(kind, "__dataclass_fields__") else []


def nearest(word: Any, candidates: Any) -> str:
    """The end of a message on an unknown word: the candidate it is most like, or else all of them."""
    near = difflib.get_close_matches(str(word), list(candidates), n=1, cutoff=0.5)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; known: {', '.join(candidates)}" if candidates else ""


def as_value_error(check: Callable[..., None], *arguments: Any) -> None:
    """What a dataclass may raise while it is read, so that the fault gets its path."""
    try:
        check(*arguments)
    except UserError as error:
        raise ValueError(str(error)) from None


def listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def quoted(text: str) -> str:
    """In quotes, in one line, and cut where it is long."""
    return repr(text if len(text) <= LETTERS else f"{text[:LETTERS]}...")
