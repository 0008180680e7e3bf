"""What a pickle holds beside plain data, as inert records; and why a file is refused."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

MOST_KEY = 64
"""Values in a key of a dict. Hashing a tuple visits all its values, and tuples of the same tuple twice have 2^depth."""

LARGEST_KEY = 2**64


class Damage(Exception):
    """What is wrong with the bytes, in words that follow "cannot be read"."""


class Foreign(Damage):
    """Why a file that may be whole is not read, and what to do: it is of a kind that is none of ours."""


class Payload(Exception):
    """The file names something that can only be there to be executed: its dotted name."""


@dataclass(frozen=True, eq=False)
class Object:
    """What would have been an object of the file's own class: which class or function was to be called, with what. No such
    class exists here, and two records are equal only if they are the same one.

    state: what was to become its attributes. items, elements: what was to be put into it as into a dict, or a list.
    """

    name: str
    arguments: tuple = field(default=(), repr=False)
    state: Any = field(default=None, repr=False)
    items: dict = field(default_factory=dict, repr=False)
    elements: list = field(default_factory=list, repr=False)

    @property
    def attributes(self) -> dict:
        """Its state, if that is a dict, as it is for nearly every class; of a class with slots what is beside them."""
        state = self.state[0] if isinstance(self.state, tuple) and self.state else self.state
        return state if isinstance(state, dict) else {}


class Name(Object):
    """A class or function that the file names: a string, which is never looked up."""


@dataclass(frozen=True, eq=False)
class Pending(Object):
    """One that is replaced by `value` as soon as its state is read."""

    value: list = field(default_factory=list, repr=False)


@dataclass(frozen=True, eq=False)
class Storage(Object):
    """Memory that tensors are views of. content: [bytes] uint8. dtype: None where the tensor says it."""

    content: Tensor | None = field(default=None, repr=False)
    dtype: Any = None


def set_state(target: Object, state: Any) -> None:
    """Notes the state of a record, which pickle writes once."""
    if target.state is not None:
        raise Damage("an object in it has two states")
    object.__setattr__(target, "state", state)


def key(value: Any) -> Any:
    """The value, if it can be a key of a dict or in a set: a scalar, a record, or a small tuple of such."""
    room, waiting = MOST_KEY, [value]
    while waiting:
        part = waiting.pop()
        room -= 1
        if isinstance(part, tuple | frozenset) and len(part) < room:
            waiting += part
        elif room < 0 or not _is_scalar(part):
            raise Damage(f"a {type(part).__name__} is a key in it")
    return value


def _is_scalar(value: Any) -> bool:
    """Hashing a number visits all its digits, each time."""
    if isinstance(value, int):
        return abs(value) < LARGEST_KEY
    return value is None or isinstance(value, str | bytes | float | complex | Object)


def parts(content: Any) -> Iterator[Any]:
    """All values in the content, each once, whatever refers to whatever."""
    seen, waiting = set(), [content]
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        yield value
        if isinstance(value, dict):
            waiting += value.keys()
            waiting += value.values()
        elif isinstance(value, list | tuple | set | frozenset):
            waiting += value
        elif isinstance(value, Object):
            waiting += (value.arguments, value.state, value.items, value.elements)


def leftovers(content: Any) -> Counter:
    """What stands in the content as a value and is no plain one, beside records of calls: names, numpy's types, storages."""
    return Counter(value.name for value in parts(content) if isinstance(value, Name | Pending | Storage))
