"""The pickle machine, all opcodes of protocols 0 to 5, on plain values and inert records.

It is Python's pickle.py with one difference: where that one imports, calls or sets attributes, this one asks a `Builder`,
which knows a few dozen names by their text and makes a record of any other.
"""

import codecs
import struct
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from diffcore.checkpoints.pickled.objects import Damage, Foreign, Name, Object, Payload, Pending, key

MOST = 5_000_000
"""Opcodes that are followed in one file, EDM2's have some 10^4: an empty set costs the file a byte and the memory 200."""

TEXT = ("utf-8", "surrogatepass")
TUPLES = {0x85: 1, 0x86: 2, 0x87: 3}
CONSTANTS = {ord("N"): None, 0x88: True, 0x89: False}
EMPTY = {ord(")"): tuple, ord("]"): list, ord("}"): dict, 0x8F: set}
NUMBERS = {ord("J"): "<i", ord("K"): "<B", ord("M"): "<H", ord("G"): ">d"}
IGNORED = {0x80: 1, 0x95: 8, 0x98: 0}
"""Bytes that follow the opcodes which change no value: PROTO, FRAME and READONLY_BUFFER."""


def _old_string(content: bytes) -> str | bytes:
    """A string of Python 2, which may have meant either."""
    return content.decode() if content.isascii() else content


def _long(content: bytes) -> int:
    return int.from_bytes(content, "little", signed=True)


def _text(content: bytes) -> str:
    return content.decode(*TEXT)


SIZED: dict[int, tuple[str, Callable]] = {
    ord("C"): ("<B", bytes),
    ord("B"): ("<I", bytes),
    0x8E: ("<Q", bytes),
    0x96: ("<Q", bytes),
    0x8C: ("<B", _text),
    ord("X"): ("<I", _text),
    0x8D: ("<Q", _text),
    ord("U"): ("<B", _old_string),
    ord("T"): ("<i", _old_string),
    0x8A: ("<B", _long),
    0x8B: ("<i", _long),
}
"""How long a value is, and what its bytes are."""


def _whole(line: bytes) -> int | bool:
    return {b"00": False, b"01": True}.get(line) if line in (b"00", b"01") else int(line)


def _quoted(line: bytes) -> str | bytes:
    if len(line) < 2 or line[:1] != line[-1:] or line[:1] not in (b"'", b'"'):
        raise Damage("a string in it has no quotes")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of escapes that Python does not write
        try:
            return _old_string(codecs.escape_decode(line[1:-1])[0])
        except DeprecationWarning:
            raise Damage("a string in it has an escape that is none") from None


LINES: dict[int, Callable] = {
    ord("I"): _whole,
    ord("L"): lambda line: int(line.removesuffix(b"L")),
    ord("F"): float,
    ord("S"): _quoted,
    ord("V"): lambda line: line.decode("raw-unicode-escape"),
}
"""Values that are written as a line of text."""


class Builder(ABC):
    """What a machine asks instead of importing and calling."""

    @abstractmethod
    def name(self, module: Any, attribute: Any) -> Name: ...

    @abstractmethod
    def call(self, function: Any, arguments: Any) -> Any: ...

    @abstractmethod
    def build(self, target: Any, state: Any) -> Any: ...

    @abstractmethod
    def persistent(self, address: Any) -> Any: ...


class Machine:
    """Reads pickles out of `buffer`, which has `find` and slices of bytes."""

    def __init__(self, buffer: Any, builder: Builder):
        self.buffer, self.builder, self.room = buffer, builder, MOST

    def run(self, start: int = 0) -> tuple[Any, int]:
        """The value of the pickle that begins at `start`, and where it ends. Errors: Damage, Payload, and those that
        Python raises for values that do not fit."""
        self.at = start
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        while (code := self._take(1)[0]) != ord("."):
            self.room -= 1
            if self.room < 0:
                raise Foreign(f"it has more than {MOST} instructions; name a file of weights")
            self._step(code)
        return self._pop(), self.at

    def _step(self, code: int) -> None:
        if (action := ACTIONS.get(code)) is not None:
            action(self)
        elif code in SIZED:
            size, decode = SIZED[code]
            self.stack.append(decode(self._take(self._number(size))))
        elif code in NUMBERS:
            self.stack.append(self._number(NUMBERS[code]))
        elif code in CONSTANTS:
            self.stack.append(CONSTANTS[code])
        elif code in EMPTY:
            self.stack.append(EMPTY[code]())
        elif code in TUPLES:
            self._tuple(TUPLES[code])
        elif code in LINES:
            self.stack.append(LINES[code](self._line()))
        elif code in IGNORED:
            self._take(IGNORED[code])
        else:
            raise Damage(f"byte {self.at - 1} is no instruction of a pickle")

    # ---- bytes

    def _take(self, count: int) -> bytes:
        content = self.buffer[self.at : self.at + count] if 0 <= count <= len(self.buffer) - self.at else None
        if content is None:
            raise Damage(f"it ends early, at byte {len(self.buffer)}")
        self.at += count
        return content

    def _number(self, form: str) -> Any:
        return struct.unpack(form, self._take(struct.calcsize(form)))[0]

    def _line(self) -> bytes:
        end = self.buffer.find(b"\n", self.at)
        return self._take((end if end >= 0 else len(self.buffer)) + 1 - self.at)[:-1]

    # ---- the stack and the memo

    def _pop(self) -> Any:
        if not self.stack:
            raise Damage(f"it takes what it has not put down, at byte {self.at}")
        return self.stack.pop()

    def _top(self) -> Any:
        if not self.stack:
            raise Damage(f"it takes what it has not put down, at byte {self.at}")
        return self.stack[-1]

    def _mark(self) -> None:
        self.below.append(self.stack)
        self.stack = []

    def _marked(self) -> list[Any]:
        """All since the last mark, which is taken away."""
        if not self.below:
            raise Damage(f"it has no mark, at byte {self.at}")
        values, self.stack = self.stack, self.below.pop()
        return values

    def _drop(self) -> None:
        """As Python does: where nothing lies above the last mark, it is the mark that goes."""
        if self.stack:
            self.stack.pop()
        else:
            self._marked()

    def _put(self, place: int) -> None:
        self.memo[place] = self._top()

    def _get(self, place: int) -> None:
        value = self.memo[place]
        self.stack.append(value.value[0] if isinstance(value, Pending) and value.value else value)

    # ---- containers

    def _tuple(self, count: int) -> None:
        self.stack.append(tuple(reversed([self._pop() for _ in range(count)])))

    def _push_marked(self, make: Callable[[list], Any]) -> None:
        values = self._marked()
        self.stack.append(make(values))

    def _append(self, values: list[Any]) -> None:
        target = self._top()
        if not isinstance(target, list | Object):
            raise Damage(f"it appends to a {type(target).__name__}")
        (target if isinstance(target, list) else target.elements).extend(values)

    def _set(self, values: list[Any]) -> None:
        target = self._top()
        if not isinstance(target, dict | Object):
            raise Damage(f"it puts items into a {type(target).__name__}")
        (target if isinstance(target, dict) else target.items).update(_pairs(values))

    def _add(self) -> None:
        values, target = self._marked(), self._top()
        if not isinstance(target, set):
            raise Damage(f"it adds to a {type(target).__name__}")
        target.update(map(key, values))

    # ---- what would import and call

    def _global(self) -> None:
        module, attribute = _text(self._line()), _text(self._line())
        self.stack.append(self.builder.name(module, attribute))

    def _stack_global(self) -> None:
        attribute, module = self._pop(), self._pop()
        self.stack.append(self.builder.name(module, attribute))

    def _call(self, function: Any, arguments: Any) -> None:
        self.stack.append(self.builder.call(function, arguments))

    def _reduce(self) -> None:
        arguments, function = self._pop(), self._pop()
        self._call(function, arguments)

    def _new_with_keywords(self) -> None:
        keywords, arguments, cls = self._pop(), self._pop(), self._pop()
        if not isinstance(keywords, dict) or not isinstance(arguments, tuple):
            raise Damage("it calls a class with what are no arguments")
        self._call(cls, arguments + ((keywords,) if keywords else ()))

    def _inst(self) -> None:
        self._global()
        cls = self._pop()
        self._call(cls, tuple(self._marked()))

    def _obj(self) -> None:
        cls, *arguments = self._marked()
        self._call(cls, tuple(arguments))

    def _build(self) -> None:
        state, target = self._pop(), self._pop()
        self.stack.append(self.builder.build(target, state))

    def _persistent(self, address: Any) -> None:
        self.stack.append(self.builder.persistent(address))

    def _extension(self, form: str) -> None:
        raise Payload(f"number {self._number(form)} of copyreg's registry")

    def _outside(self) -> None:
        raise Foreign("a part of it was written to another place (out of band); name a file that is whole")


def _pairs(values: list[Any]) -> dict:
    if len(values) % 2:
        raise Damage("a key in it has no value")
    return {key(name): value for name, value in zip(values[::2], values[1::2], strict=True)}


ACTIONS: dict[int, Callable[[Machine], None]] = {
    ord("("): Machine._mark,
    ord("0"): Machine._drop,
    ord("1"): lambda m: m._marked() and None,
    ord("2"): lambda m: m.stack.append(m._top()),
    ord("t"): lambda m: m._push_marked(tuple),
    ord("l"): lambda m: m._push_marked(list),
    ord("d"): lambda m: m._push_marked(_pairs),
    0x91: lambda m: m._push_marked(lambda values: frozenset(map(key, values))),
    0x90: Machine._add,
    ord("a"): lambda m: m._append([m._pop()]),
    ord("e"): lambda m: m._append(m._marked()),
    ord("s"): lambda m: m._set([m._pop(), m._pop()][::-1]),
    ord("u"): lambda m: m._set(m._marked()),
    ord("p"): lambda m: m._put(int(m._line())),
    ord("q"): lambda m: m._put(m._number("<B")),
    ord("r"): lambda m: m._put(m._number("<I")),
    0x94: lambda m: m._put(len(m.memo)),
    ord("g"): lambda m: m._get(int(m._line())),
    ord("h"): lambda m: m._get(m._number("<B")),
    ord("j"): lambda m: m._get(m._number("<I")),
    ord("c"): Machine._global,
    0x93: Machine._stack_global,
    ord("R"): Machine._reduce,
    0x81: Machine._reduce,
    0x92: Machine._new_with_keywords,
    ord("i"): Machine._inst,
    ord("o"): Machine._obj,
    ord("b"): Machine._build,
    ord("P"): lambda m: m._persistent(_text(m._line())),
    ord("Q"): lambda m: m._persistent(m._pop()),
    0x82: lambda m: m._extension("<B"),
    0x83: lambda m: m._extension("<H"),
    0x84: lambda m: m._extension("<i"),
    0x97: Machine._outside,
}
