"""What is made of the names in a pickle: tensors, numbers and plain containers of those that torch, numpy and Python write
for them, and an inert record of any other."""

import math
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from diffcore.checkpoints.pickled.machine import Builder
from diffcore.checkpoints.pickled.names import is_payload
from diffcore.checkpoints.pickled.objects import (
    Damage,
    Foreign,
    Name,
    Object,
    Payload,
    Pending,
    Storage,
    key,
    set_state,
)

LARGEST = 2**62
"""No size, stride or number of bytes is as large."""

MOST_AXES = 64
SIZED = (list, tuple, dict, set, frozenset, str, bytes)
MOST_REPEATED, FEW = 4, 100_000
"""What is made of a file is copied so many times, and so many values more."""

DTYPES = {
    str(dtype): dtype
    for dtype in vars(torch).values()
    if isinstance(dtype, torch.dtype) and not re.fullmatch(r"torch\.(q.*|bits.*|u?int[1-7])", str(dtype))
}
"""By torch's own words, without those that are numbers only together with something else, or that torch does not save."""

STORAGES: dict[str, torch.dtype | None] = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "UntypedStorage": None,
    "_UntypedStorage": None,
}

ARRAYS = {
    **{"f2": torch.float16, "f4": torch.float32, "f8": torch.float64, "c8": torch.complex64, "c16": torch.complex128},
    **{"i1": torch.int8, "i2": torch.int16, "i4": torch.int32, "i8": torch.int64, "b1": torch.bool},
    **{"u1": torch.uint8, "u2": torch.uint16, "u4": torch.uint32, "u8": torch.uint64},
}
"""numpy's words for numbers."""


class Rebuild(Builder):
    """The builder of one file of `size` bytes. refused: what was to be called and was not. load: what reads the bytes of a
    storage that is pickled inside of a pickle. open: what answers a persistent address."""

    def __init__(self, size: int, load: Callable[..., Any] | None = None, open: Callable[..., Any] | None = None):
        self.load, self.open = load, open
        self.room = MOST_REPEATED * size + FEW
        self.refused: Counter[str] = Counter()
        self.booleans: dict[int, Tensor] = {}

    def name(self, module: Any, attribute: Any) -> Name:
        """A Payload where it is one of those that are there to be executed."""
        if not isinstance(module, str) or not isinstance(attribute, str):
            raise Damage("it names a class by what is no text")
        if is_payload(module, attribute):
            raise Payload(f"{module}.{attribute}")
        return Name(f"{module}.{attribute}")

    def call(self, function: Any, arguments: Any) -> Any:
        """What the function would return, of those that are known here by name, else a record that is counted."""
        if not isinstance(function, Object) or not isinstance(arguments, tuple):
            raise Damage(f"it calls a {type(function).__name__}")
        self.spend(len(arguments) + sum(len(each) for each in arguments if isinstance(each, SIZED)))
        if type(function) is not Name:
            return self.record(f"{function.name}(...)", arguments)
        make = _persistence if function.name.endswith("._reconstruct_persistent_obj") else CALLS.get(function.name)
        value = make(self, *arguments) if make else None
        return self.record(function.name, arguments) if value is None else value

    def record(self, name: str, arguments: tuple = ()) -> Object:
        self.refused[name] += 1
        return Object(name, arguments)

    def build(self, target: Any, state: Any) -> Any:
        """The target with its state. Attributes of plain containers and tensors are left out: a state dict of torch has
        versions there."""
        if isinstance(target, Pending):
            return _finish(target, state, self)
        if isinstance(target, Object):
            set_state(target, state)
        elif not isinstance(target, dict | list | set | Tensor):
            raise Damage(f"it gives attributes to a {type(target).__name__}")
        return target

    def persistent(self, address: Any) -> Any:
        if self.open is None:
            raise Damage("it refers to what lies outside of it (a persistent id)")
        return self.open(address)

    def spend(self, amount: int) -> None:
        """Counts values and bytes that are copied: a file can ask for the same ones again and again."""
        self.room -= amount
        if self.room < 0:
            raise Damage("it copies more than it holds")

    def check(self) -> None:
        """Damage for truth values that are neither 0 nor 1, which torch does not check. To be called when all is read."""
        if any(bool((content > 1).any()) for content in self.booleans.values()):
            raise Damage("a truth value in it is neither 0 nor 1")


# ---- storages and tensors


def storage_dtype(cls: Any) -> torch.dtype | None:
    """Of a storage's class by its name; None for one without. An error for any other class."""
    if not isinstance(cls, Name):
        raise Damage("a storage in it has no class")
    module, _, word = cls.name.rpartition(".")
    if word not in STORAGES or module not in ("torch", "torch.storage", "torch.cuda"):
        raise Foreign(f"its numbers are kept as {cls.name}; save it again as plain tensors")
    return STORAGES[word]


def memory(content: Any) -> Tensor:
    """[bytes] uint8 on writable memory of its own, aligned for every dtype."""
    room = content if isinstance(content, bytearray) else bytearray(content)
    return torch.frombuffer(room, dtype=torch.uint8) if room else torch.empty(0, dtype=torch.uint8)


def _whole(value: Any) -> int:
    if type(value) is not int or not 0 <= value < LARGEST:
        raise Damage("the shape of a tensor in it is none")
    return value


def _wholes(value: Any) -> tuple[int, ...]:
    if not isinstance(value, tuple | list) or len(value) > MOST_AXES:
        raise Damage("the shape of a tensor in it is none")
    return tuple(map(_whole, value))


def _shape(value: Any) -> tuple[int, ...]:
    shape = _wholes(value)
    if math.prod(max(size, 1) for size in shape) >= LARGEST:
        raise Damage("the shape of a tensor in it is none")
    return shape


def _view(rebuild: Rebuild, storage: Any, dtype: torch.dtype, offset: Any, size: Any, stride: Any) -> Tensor:
    """The tensor on a storage. Damage where one of its elements would lie outside."""
    if not isinstance(storage, Storage):
        raise Damage("a tensor in it has no storage")
    shape, steps, first = _shape(size), _wholes(stride), _whole(offset)
    if len(shape) != len(steps):
        raise Damage("a tensor in it has more strides than axes")
    content = storage.content[: len(storage.content) // dtype.itemsize * dtype.itemsize]
    if 0 in shape:
        return torch.empty(shape, dtype=dtype)
    last = first + sum((count - 1) * step for count, step in zip(shape, steps, strict=True))
    if last >= len(content) // dtype.itemsize:
        raise Damage("a tensor in it reaches beyond its storage")
    if dtype == torch.bool:
        rebuild.booleans[id(storage.content)] = storage.content
    numbers = content.view(dtype)
    return numbers.as_strided(shape, steps, numbers.storage_offset() + first)


def _tensor(rebuild: Rebuild, storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> Tensor | None:
    """torch._utils._rebuild_tensor_v2; rest: requires_grad, backward hooks, and bits that are still to be done."""
    dtype = getattr(storage, "dtype", None)
    tensor = _view(rebuild, storage, dtype or torch.uint8, offset, size, stride)
    return _with_bits(tensor, rest[2] if len(rest) > 2 else None)


def _tensor_with_dtype(
    rebuild: Rebuild,
    storage: Any,
    offset: Any,
    size: Any,
    stride: Any,
    grad: Any,
    hooks: Any,
    dtype: Any,
    bits: Any = None,
) -> Tensor:
    """torch._utils._rebuild_tensor_v3."""
    if not isinstance(dtype, Name) or dtype.name not in DTYPES:
        raise Damage(
            f"a tensor in it is of {dtype.name if isinstance(dtype, Name) else 'no dtype'}, which is not read here"
        )
    return _with_bits(_view(rebuild, storage, DTYPES[dtype.name], offset, size, stride), bits)


def _with_bits(tensor: Tensor, bits: Any) -> Tensor:
    """A tensor that was saved as the conjugate or the negative of its memory."""
    if bits is None:
        return tensor
    if not isinstance(bits, dict) or bits.keys() - {"conj", "neg"}:
        raise Damage("a tensor in it has marks that are not known here")
    tensor = torch.conj(tensor) if bits.get("conj") is True else tensor
    return torch._neg_view(tensor) if bits.get("neg") is True else tensor


def _parameter(rebuild: Rebuild, data: Any, *rest: Any) -> Any:
    if not isinstance(data, Tensor | Object):
        raise Damage("a parameter in it is no tensor")
    return data


def _typed(rebuild: Rebuild, function: Any, cls: Any, arguments: Any, state: Any) -> Any:
    """torch._tensor._rebuild_from_type_v2: a tensor with attributes, which are left out, or one of a subclass."""
    plain = {"torch.Tensor", "torch._tensor.Tensor", "torch.nn.parameter.Parameter", "torch.nn.parameter.Buffer"}
    if isinstance(cls, Name) and cls.name in plain:
        return rebuild.call(function, arguments)
    return rebuild.record(cls.name, arguments) if isinstance(cls, Name) else None


def _inner(rebuild: Rebuild, content: Any) -> Any:
    """torch.storage._load_from_bytes: what torch.save made of a storage."""
    if rebuild.load is None:
        raise Damage("a pickle in a pickle in a pickle")
    if not isinstance(content, bytes):
        raise Damage("a storage in it is no bytes")
    return rebuild.load(rebuild, content)


# ---- numpy


def _number_type(rebuild: Rebuild, word: Any, *rest: Any) -> Pending | None:
    """numpy.dtype, whose byte order follows as its state."""
    return Pending("numpy.dtype", (word,)) if isinstance(word, str) else None


def _array(rebuild: Rebuild, *rest: Any) -> Pending:
    """numpy.core.multiarray._reconstruct, an array whose shape and values follow as its state."""
    return Pending("numpy.ndarray")


def _array_of(rebuild: Rebuild, content: Any, kind: Any, shape: Any, order: Any = "C") -> Tensor | None:
    """numpy.core.numeric._frombuffer."""
    return _values(rebuild, content, kind, shape, order == "F")


def _scalar(rebuild: Rebuild, kind: Any, content: Any = b"") -> Any:
    value = _values(rebuild, content, kind, (), False)
    return None if value is None else value.item()


def _values(rebuild: Rebuild, content: Any, kind: Any, shape: Any, fortran: bool) -> Tensor | None:
    """None for an array of what are no numbers: texts, records, objects."""
    word = kind.arguments[0] if isinstance(kind, Pending) and kind.name == "numpy.dtype" else None
    if word not in ARRAYS:
        return None
    content = content.encode("latin1") if isinstance(content, str) else content
    if not isinstance(content, bytes):
        raise Damage("an array in it is no bytes")
    dtype, sizes = ARRAYS[word], _shape(shape)
    if len(content) != math.prod(sizes) * dtype.itemsize:
        raise Damage("an array in it has more or fewer values than its shape")
    sizes = sizes[::-1] if fortran else sizes
    steps = [math.prod(sizes[axis + 1 :]) for axis in range(len(sizes))]
    tensor = _view(rebuild, Storage("numpy", content=memory(content)), dtype, 0, sizes, steps)
    return tensor.permute(*range(len(sizes))[::-1]).contiguous() if fortran else tensor


def _finish(target: Pending, state: Any, rebuild: Rebuild) -> Any:
    """A number's type or an array, with what numpy keeps as its state."""
    if not isinstance(state, tuple) or len(state) < 2:
        raise Damage(f"the state of a {target.name} in it is none")
    if target.name == "numpy.dtype":
        if state[1] == ">":
            raise Foreign("its numbers are big-endian; save it again on a machine of today")
        if state[1] not in ("<", "|", "="):
            raise Damage("a number type in it has no byte order")
        return target
    if target.value:
        raise Damage("an array in it has two states")
    _, shape, kind, fortran, content = state
    rebuild.spend(len(content) if isinstance(content, SIZED) else 1)
    if (value := _values(rebuild, content, kind, shape, bool(fortran))) is None:
        return target
    target.value.append(value)
    return value


# ---- Python


def _persistence(rebuild: Rebuild, meta: Any) -> Object | None:
    """torch_utils.persistence of EDM, EDM2 and StyleGAN: a class by its source code, which stays unread."""
    if not isinstance(meta, dict) or not isinstance(meta.get("class_name"), str):
        raise Damage("an object in it does not say its class")
    value = rebuild.record(meta["class_name"])
    set_state(value, meta.get("state"))
    return value


def _dict(rebuild: Rebuild, pairs: Any = ()) -> dict:
    if not isinstance(pairs, dict | list | tuple):
        raise Damage("it makes a dict of what is none")
    pairs = list(pairs.items()) if isinstance(pairs, dict) else pairs
    if not all(isinstance(pair, tuple | list) and len(pair) == 2 for pair in pairs):
        raise Damage("it makes a dict of what are no pairs")
    return {key(name): value for name, value in pairs}


def _with_default(rebuild: Rebuild, factory: Any = None, pairs: Any = ()) -> dict:
    return _dict(rebuild, pairs)


def _plain(make: Callable[..., Any], *kinds: type) -> Callable[..., Any]:
    """A constructor of Python's own, of values of these kinds alone."""

    def build(rebuild: Rebuild, *arguments: Any) -> Any:
        if not all(isinstance(each, kinds) for each in arguments):
            raise Damage(f"it makes a {make.__name__} of what is none")
        return make(*arguments)

    return build


def _set(rebuild: Rebuild, values: Any = ()) -> set:
    if not isinstance(values, list | tuple):
        raise Damage("it makes a set of what is none")
    return set(map(key, values))


def _encoded(rebuild: Rebuild, text: Any, encoding: Any = "latin1") -> bytes:
    """_codecs.encode: bytes, as protocol 2 writes them."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise Damage("it encodes what is no text")
    return text.encode("latin1")


def _bytes(rebuild: Rebuild, content: Any = b"", encoding: Any = None) -> bytes:
    if isinstance(content, str) and encoding == "latin-1":
        return content.encode("latin1")
    if not isinstance(content, bytes):
        raise Damage("it makes bytes of what is none")
    return content


def _size(rebuild: Rebuild, values: Any = ()) -> tuple[int, ...]:
    return _shape(values)


def _old_object(rebuild: Rebuild, cls: Any, base: Any, state: Any) -> Any:
    """copyreg._reconstructor, how protocols 0 and 1 make an object of a class; state: what its dict or list begins as."""
    if not isinstance(cls, Name):
        return None
    value = rebuild.call(cls, ())
    if isinstance(value, Object):
        value.items.update(state if isinstance(state, dict) else {})
        value.elements.extend(state if isinstance(state, list) else [])
    elif isinstance(value, dict) and isinstance(state, dict):
        value.update(state)
    return value


def _new(rebuild: Rebuild, cls: Any, *arguments: Any) -> Any:
    return rebuild.call(cls, arguments)


CALLS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_with_dtype,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._tensor._rebuild_from_type_v2": _typed,
    "torch.storage._load_from_bytes": _inner,
    "torch.Size": _size,
    "numpy.dtype": _number_type,
    **{f"numpy.{core}.multiarray._reconstruct": _array for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray.scalar": _scalar for core in ("core", "_core")},
    **{f"numpy.{core}.numeric._frombuffer": _array_of for core in ("core", "_core")},
    "collections.OrderedDict": _dict,
    "collections.defaultdict": _with_default,
    "dnnlib.util.EasyDict": _dict,
    "_codecs.encode": _encoded,
    **{f"{module}._reconstructor": _old_object for module in ("copyreg", "copy_reg")},
    **{f"{module}.__newobj__": _new for module in ("copyreg", "copy_reg")},
    **{f"{module}.set": _set for module in ("builtins", "__builtin__")},
    **{f"{module}.frozenset": lambda *a: frozenset(_set(*a)) for module in ("builtins", "__builtin__")},
    **{f"{module}.dict": _dict for module in ("builtins", "__builtin__")},
    **{f"{module}.complex": _plain(complex, int, float) for module in ("builtins", "__builtin__")},
    **{f"{module}.{word}": _bytes for module in ("builtins", "__builtin__") for word in ("bytes", "bytearray")},
}
"""What is done for a name: by text alone, and by code of ours. One that answers None leaves the call undone."""
