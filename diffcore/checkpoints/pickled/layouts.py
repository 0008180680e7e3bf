"""The three layouts of a pickled file: a plain pickle, torch's archive of today, and what torch.save wrote before 1.6."""

import contextlib
import mmap
import re
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffcore.checkpoints.pickled.machine import Machine
from diffcore.checkpoints.pickled.objects import Damage, Foreign, Payload, Storage, leftovers
from diffcore.checkpoints.pickled.rebuild import Rebuild, memory, storage_dtype
from diffcore.core.errors import UserError
from diffcore.data.tars import printable

MAGIC = 0x1950A86A20F9469CFC6C
"""The first pickle of what torch.save wrote before 1.6."""

PROTOCOL = 1001
ZIP = b"PK\x03\x04"
ENCRYPTED = 1
MOST_WORDS = 160
"""Characters of the file's that stand in a message."""

LOCAL_HEADER = 30
"""Bytes before the name of a member."""

DAMAGE = (
    *(Damage, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError, struct.error),
    *(zipfile.BadZipFile, NotImplementedError, EOFError, zlib.error, MemoryError),
)
"""What the bytes of a damaged file raise."""


@dataclass(frozen=True)
class Pickled:
    """content: plain containers, numbers, texts, bytes, tensors on the CPU, and inert records (`Object`) of the rest. Shared
    memory stays shared. refused: the classes and functions that were not called, and how often. size: bytes of the file."""

    path: Path
    content: Any = field(repr=False)
    refused: dict[str, int]
    size: int


def read(path: Path) -> Pickled:
    """What is in the file, of which nothing is imported or run.

    A UserError for a file that is damaged, big-endian or of another kind, and for one that names what can only be there to be
    executed.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise UserError(f"{path} is no file; name a .pkl, .pt, .pth or .ckpt")
    try:
        content, refused = _read(path)
    except Payload as name:
        raise UserError(
            f"{path} names {_short(str(name))}, which whoever unpickles it would run; nothing of it was run: let no other "
            "program open it, and take the weights from somebody you trust"
        ) from None
    except DAMAGE as error:
        remedy = "" if isinstance(error, Foreign) else "; fetch it again"
        raise UserError(f"{path} cannot be read as pickled weights: {_words(error)}{remedy}") from None
    named: Counter[str] = Counter()
    for name, count in sorted(refused.items()):
        named[_short(name)] += count
    return Pickled(path, content, dict(named), path.stat().st_size)


def _short(text: str) -> str:
    return printable(text[:MOST_WORDS])


def _words(error: Exception) -> str:
    """One line; of Python's own errors the kind says more than their text alone."""
    text = _short(" ".join(str(error).split()))
    return text if isinstance(error, Damage) else f"its bytes make no sense ({type(error).__name__}: {text})"


def _read(path: Path) -> tuple[Any, Counter]:
    with _mapped(path) as buffer:
        if buffer[: len(ZIP)] == ZIP:
            return _archive(path, len(buffer))
        return _stream(buffer)


@contextlib.contextmanager
def _mapped(path: Path) -> Iterator[Any]:
    """The bytes of the file, which are read as they are used."""
    with open(path, "rb") as file:
        try:
            buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError:  # it is empty
            yield b""
            return
        with buffer:
            yield buffer


def _done(rebuild: Rebuild, content: Any) -> tuple[Any, Counter]:
    rebuild.check()
    return content, rebuild.refused + leftovers(content)


# ---- one pickle, or torch's before 1.6


def _stream(buffer: Any) -> tuple[Any, Counter]:
    rebuild = Rebuild(len(buffer), _inner)
    content, end = Machine(buffer, rebuild).run()
    if type(content) is int and content == MAGIC:
        content, end = _legacy(buffer, end, rebuild)
    if end != len(buffer):
        raise Damage(f"it goes on after its end, at byte {end} of {len(buffer)}")
    return _done(rebuild, content)


def _inner(rebuild: Rebuild, content: bytes) -> Any:
    """What torch.save wrote of a storage, as a plain pickle of a tensor holds it."""
    inside = Rebuild(len(content))
    value, end = Machine(content, inside).run()
    if type(value) is not int or value != MAGIC:
        raise Damage("a storage in it is not what torch.save writes")
    value, end = _legacy(content, end, inside)
    if end != len(content) or not isinstance(value, Storage):
        raise Damage("a storage in it is not what torch.save writes")
    rebuild.refused.update(inside.refused)
    return value


def _legacy(buffer: Any, start: int, rebuild: Rebuild) -> tuple[Any, int]:
    """A version, the machine, the content, and the names of storages, a pickle each; then each storage's size and bytes."""
    machine, later = Machine(buffer, rebuild), Later(len(buffer))
    version, start = machine.run(start)
    if type(version) is not int or version != PROTOCOL:
        raise Damage("its version is not torch's")
    system, start = machine.run(start)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise Foreign("its numbers are big-endian; save it again on a machine of today")
    outer, rebuild.open = rebuild.open, later.open
    content, start = machine.run(start)
    rebuild.open = outer
    names, start = machine.run(start)
    return content, later.fill(buffer, start, names)


def _storage(address: Any, length: int) -> tuple[Any, str, int]:
    """The class, the name and the count of a storage's address."""
    if not isinstance(address, tuple) or len(address) != length or address[0] != "storage":
        raise Damage("it refers to no storage")
    _, cls, name, _, count = address[:5]
    if not isinstance(name, str) or type(count) is not int:
        raise Damage("it refers to no storage")
    return cls, name, count


def _part(part: Any) -> tuple[int, int]:
    if not isinstance(part, tuple) or len(part) != 3 or {type(part[1]), type(part[2])} != {int}:
        raise Damage("a part of a storage in it is none")
    return part[1], part[2]


class Later:
    """Storages whose bytes come after the pickle that is about them. size: of the file; they cannot be larger together."""

    def __init__(self, size: int):
        self.room = size
        self.bytes: dict[str, bytearray] = {}
        self.content: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}

    def open(self, address: Any) -> Any:
        """("storage", class, name, device, how many numbers, which part of it or None), or a module with its source."""
        if isinstance(address, tuple) and len(address) == 4 and address[0] == "module":
            return address[1]
        (cls, name, count), part = _storage(address, 6), address[5]
        dtype = storage_dtype(cls)
        each = (dtype or torch.uint8).itemsize
        content = self._allocate(name, count, each)
        if part is not None:
            first, length = _part(part)
            if min(first, length) < 0 or first + length > count:
                raise Damage("a part of a storage reaches beyond it")
            content = content[first * each : (first + length) * each]
        return Storage(str(cls.name), content=content, dtype=dtype)

    def _allocate(self, name: str, count: int, each: int) -> Tensor:
        size = count * each
        if name not in self.bytes:
            if not 0 <= size <= self.room:
                raise Damage("its storages are larger than the file")
            self.room -= size
            self.bytes[name], self.counts[name] = bytearray(size), count
            self.content[name] = memory(self.bytes[name])
        if len(self.bytes[name]) != size:
            raise Damage("a storage in it has two sizes")
        return self.content[name]

    def fill(self, buffer: Any, start: int, names: Any) -> int:
        """Reads the storages in the order of the names; where they end."""
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise Damage("its list of storages is none")
        if sorted(names) != sorted(self.bytes):
            raise Damage("its list of storages does not fit its tensors")
        for name in names:
            count, size = struct.unpack("<q", buffer[start : start + 8])[0], len(self.bytes[name])
            start += 8
            if count != self.counts[name]:
                raise Damage("a storage in it has two sizes")
            if start + size > len(buffer):
                raise Damage(f"it ends early, at byte {len(buffer)}")
            with memoryview(buffer) as whole:
                self.bytes[name][:] = whole[start : start + size]
            start += size
        return start


# ---- torch's archive


def _archive(path: Path, size: int) -> tuple[Any, Counter]:
    try:
        with zipfile.ZipFile(path) as archive:
            return _members(archive, size)
    except OSError as error:  # zipfile seeks where a damaged number says
        raise Damage(f"its archive is damaged ({error})") from None


def _members(archive: zipfile.ZipFile, size: int) -> tuple[Any, Counter]:
    names = _checked(archive, size)
    roots = [match[1] for match in map(re.compile("([^/]+)/data.pkl").fullmatch, names) if match]
    if len(roots) != 1:
        raise Foreign("it is an archive without data.pkl; name what torch.save wrote")
    root = roots[0]
    if f"{root}/constants.pkl" in names:
        raise Foreign("it is a program of TorchScript; name a state dict that torch.save wrote")
    if f"{root}/byteorder" in names and archive.read(f"{root}/byteorder") != b"little":
        raise Foreign("its numbers are big-endian; save it again on a machine of today")
    rebuild = Rebuild(size, _inner, Members(archive, f"{root}/data/").open)
    pickle = archive.read(f"{root}/data.pkl")
    content, end = Machine(pickle, rebuild).run()
    if end != len(pickle):
        raise Damage("data.pkl in it goes on after its end")
    return _done(rebuild, content)


def _checked(archive: zipfile.ZipFile, size: int) -> set[str]:
    """The names in the archive. Damage for members that torch does not write: packed, encrypted, of one name, in one
    place. So all of them together are no larger than the file."""
    end, names = 0, set()
    for member in sorted(archive.infolist(), key=lambda each: each.header_offset):
        if member.flag_bits & ENCRYPTED:
            raise Foreign("its archive is encrypted; name what torch.save wrote")
        if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
            raise Damage(
                "its archive is compressed, which torch.save does not do; unpack it and pack it without (zip -0)"
            )
        if member.filename in names or member.header_offset < end:
            raise Damage("two members of its archive have one name or one place")
        names.add(member.filename)
        end = member.header_offset + LOCAL_HEADER + member.file_size
    if end > size:
        raise Damage("its archive is larger than the file")
    return names


class Members:
    """Storages that are members of an archive; the archive has the sum of each."""

    def __init__(self, archive: zipfile.ZipFile, folder: str):
        self.archive, self.folder = archive, folder
        self.content: dict[str, Tensor] = {}

    def open(self, address: Any) -> Storage:
        """("storage", class, name, device, how many numbers)."""
        cls, name, count = _storage(address, 5)
        dtype = storage_dtype(cls)
        if name not in self.content:
            self.content[name] = memory(self.archive.read(self.folder + name))
        if len(self.content[name]) != count * (dtype or torch.uint8).itemsize:
            raise Damage(f"its storage {name} has more or fewer bytes than its class says")
        return Storage(str(cls.name), content=self.content[name], dtype=dtype)
