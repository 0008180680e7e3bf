"""Which tensors of a pickled file are a network, under the names of its state dict."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from diffcore.checkpoints.pickled.layouts import Pickled
from diffcore.checkpoints.pickled.objects import Object
from diffcore.core.errors import UserError
from diffcore.data.tars import printable

AVERAGED = ("ema", "G_ema", "ema_model", "model_ema")
PLAIN = ("net", "model", "network", "state_dict", "G")
SHADOW = "shadow_params"
"""score_sde's averages: tensors in the order of the parameters, without names."""

PREFIX = "module."
"""What torch's DataParallel puts before each name."""

MOST_DEEP, MOST_MODULES = 100, 100_000
"""A file of a few bytes can hold the same module in itself, twice."""

BUFFERS = (".running_mean", ".running_var", ".num_batches_tracked")
"""What batch norm counts: of the shapes of parameters, and never one."""

MOST_EXTRA = 64
"""Tensors of a state dict that are not among its averages: buffers, and parameters that are not trained."""

MOST_REPEATED, FEW = 4, 2**26
"""Tensors may take so many times the bytes of the file, or so many bytes: one number can be expanded to any shape."""

MOST_VALUES = 100_000
"""Of arguments that are written as JSON."""

LARGEST = 2**63
"""Python writes no number of more than some thousand digits."""


@dataclass(frozen=True)
class Network:
    """part: the key of the file that it was taken from, "" for the file as a whole. others: those that there are beside it.
    tensors: by the names of the state dict. cls: the name of the network's class, None of a state dict. arguments, keywords:
    what an object of EDM's was made with, as JSON. notes: what a person should hear of how it was taken."""

    part: str
    others: tuple[str, ...]
    tensors: dict[str, Tensor] = field(repr=False)
    cls: str | None = None
    arguments: list[Any] = field(default_factory=list)
    keywords: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def numbers(self) -> int:
        """How many numbers all its tensors have."""
        return sum(tensor.numel() for tensor in self.tensors.values())

    @property
    def bytes(self) -> int:
        """Of all its tensors, each for itself."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors.values())

    def not_finite(self) -> list[str]:
        """The names of tensors with a value that is NaN or infinite."""
        return [printable(name) for name, each in self.tensors.items() if not _is_finite(each)]


def network(pickled: Pickled, part: str | None = None) -> Network:
    """The network in the file: `part` of it, or the averaged weights where there are such, else the others.

    A UserError where there is none, or several of which none is the usual one; where it holds what is no tensor; and where
    tensors repeat a few numbers so often that they would not fit.
    """
    candidates = _candidates(pickled.content)
    if not candidates:
        raise UserError(f"{pickled.path} holds no network: neither a state dict of tensors nor an object of modules")
    name = _choice(pickled, candidates, part)
    try:
        result = candidates[name]()
    except Refusal as error:
        raise UserError(f"{pickled.path}: {error}") from None
    others = tuple(printable(other) for other in candidates if other != name)
    if not result.tensors:
        raise UserError(f"{pickled.path}: {name or 'its network'} has no tensors")
    if result.bytes > max(MOST_REPEATED * pickled.size, FEW):
        raise UserError(
            f"{pickled.path}: its tensors would take {result.bytes:.3g} bytes of a file of {pickled.size}; it repeats the "
            "same numbers too often to be a network"
        )
    return Network(
        printable(name), others, _plain_names(result), result.cls, result.arguments, result.keywords, result.notes
    )


def _is_finite(tensor: Tensor) -> bool:
    if not (tensor.is_floating_point() or tensor.is_complex()) or "float4" in str(
        tensor.dtype
    ):  # four bits have no NaN
        return True
    return bool((tensor.float() if tensor.element_size() == 1 else tensor).isfinite().all())


class Refusal(Exception):
    """Why a network cannot be taken."""


def _choice(pickled: Pickled, candidates: dict[str, Any], part: str | None) -> str:
    names = ", ".join(map(printable, candidates))
    if part is not None:
        if part not in candidates:
            raise UserError(f"{pickled.path} has no network {printable(part)!r}; it has {names or 'one'}")
        return part
    usual = [name for name in ("", *AVERAGED, *PLAIN) if name in candidates] or list(candidates)
    if len(candidates) > 1 and usual == list(candidates):
        raise UserError(f"{pickled.path} has several networks: {names}; choose one with --part")
    return usual[0]


def _candidates(content: Any) -> dict[str, Callable[[], Network]]:
    """What reads each network of the file, by its key; "" is the file as a whole."""
    if _is_module(content) or _is_state(content):
        return {"": lambda: _read(content)}
    if not isinstance(content, dict):
        return {}
    readers: dict[str, Callable[[], Network]] = {}
    for name, value in content.items():
        if isinstance(name, str) and (_is_module(value) or _is_state(value)):
            readers[name] = lambda value=value: _read(value)
    model, shadow = content.get("model"), content.get("ema")
    if "model" in readers and isinstance(shadow, dict) and isinstance(shadow.get(SHADOW), list):
        readers["ema"] = lambda: _averaged(_read(model), shadow[SHADOW])
    return readers


def _is_state(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and bool(value)
        and all(isinstance(name, str) and isinstance(each, Tensor) for name, each in value.items())
    )


def _is_module(value: Any) -> bool:
    return isinstance(value, Object) and all(
        isinstance(value.attributes.get(part), dict) for part in ("_parameters", "_buffers", "_modules")
    )


def _read(value: Any) -> Network:
    if not isinstance(value, Object):
        return Network("", (), dict(value))
    tensors = _flatten(value)
    room = [MOST_VALUES]
    arguments, keywords = value.attributes.get("_init_args"), value.attributes.get("_init_kwargs")
    arguments = [] if arguments is None else _json(arguments, room, 0)
    keywords = {} if keywords is None else _json(keywords, room, 0)
    if not isinstance(arguments, list) or not isinstance(keywords, dict):
        raise Refusal("the arguments that its network was made with are none")
    return Network("", (), tensors, printable(value.name), arguments, keywords)


def _flatten(network: Object) -> dict[str, Tensor]:
    """The state dict, as torch makes it: of each module its parameters, the buffers that are kept, then its modules'."""
    tensors: dict[str, Tensor] = {}
    waiting, count = [("", network)], 0
    while waiting:
        before, module = waiting.pop()
        if (count := count + 1) > MOST_MODULES or before.count(".") > MOST_DEEP:
            raise Refusal(f"it has more than {MOST_MODULES} modules, or they are more than {MOST_DEEP} deep")
        for name, value in _own(module):
            if not isinstance(value, Tensor):
                raise Refusal(f"{printable(before + name)} is {_kind(value)}, which is not read here")
            tensors[before + name] = value
        inner = _named(module.attributes["_modules"])
        for name, value in inner:
            if not _is_module(value):
                raise Refusal(f"{printable(before + name)} is {_kind(value)} and no module")
        waiting += [(f"{before}{name}.", value) for name, value in reversed(inner)]
    return tensors


def _own(module: Object) -> list[tuple[str, Any]]:
    passing = module.attributes.get("_non_persistent_buffers_set", set())
    if not isinstance(passing, set | frozenset):
        raise Refusal("the buffers that its network does not keep are no set of names")
    buffers = [(name, value) for name, value in _named(module.attributes["_buffers"]) if name not in passing]
    return _named(module.attributes["_parameters"]) + buffers


def _named(values: dict) -> list[tuple[str, Any]]:
    """Those that are there: torch keeps None for a bias that a layer does without."""
    if not all(isinstance(name, str) for name in values):
        raise Refusal("a part of its network has no name")
    return [(name, value) for name, value in values.items() if value is not None]


def _kind(value: Any) -> str:
    return printable(value.name) if isinstance(value, Object) else f"a {type(value).__name__}"


def _plain_names(result: Network) -> dict[str, Tensor]:
    if not all(name.startswith(PREFIX) for name in result.tensors):
        return result.tensors
    return {name.removeprefix(PREFIX): tensor for name, tensor in result.tensors.items()}


# ---- averages without names


def _averaged(model: Network, shadow: list[Any]) -> Network:
    """The model with score_sde's averages in the place of its parameters, where only one assignment fits; else as it is."""
    if not all(isinstance(each, Tensor) for each in shadow):
        raise Refusal(f"ema.{SHADOW} is no list of tensors; take --part model")
    own = [item for item in model.tensors.items() if not item[0].endswith(BUFFERS)]
    names = _assignment(own, shadow)
    if names is None:
        raise Refusal(
            f"ema.{SHADOW} has {len(shadow)} tensors without names, which do not fit the {len(model.tensors)} of model in "
            "one way alone; take --part model, which is not averaged"
        )
    note = f"ema.{SHADOW} for {len(names)} of the {len(model.tensors)} tensors of model, the rest from model itself"
    return Network("", (), model.tensors | dict(zip(names, shadow, strict=True)), notes=(note,))


def _assignment(own: list[tuple[str, Tensor]], shadow: list[Tensor]) -> list[str] | None:
    """The names that the averages belong to, in order; None where shapes allow none or more than one."""
    extra = len(own) - len(shadow)
    if not 0 <= extra <= MOST_EXTRA:
        return None
    forms = [(tensor.shape, tensor.dtype) for _, tensor in own]
    wanted = [(tensor.shape, tensor.dtype) for tensor in shadow]
    # ways[i][k]: how the first i averages are assigned to the first i + k names, each number at most 2
    ways = [[1] * (extra + 1)]
    for i, form in enumerate(wanted):
        row: list[int] = []
        for k in range(extra + 1):
            skipped = row[k - 1] if k else 0
            row.append(min(skipped + (ways[i][k] if forms[i + k] == form else 0), 2))
        ways.append(row)
    if ways[-1][extra] != 1:
        return None
    names, k = [], extra
    for i in range(len(shadow), 0, -1):
        while k and ways[i][k - 1]:
            k -= 1
        names.append(own[i - 1 + k][0])
    return names[::-1]


# ---- arguments


def _json(value: Any, room: list[int], depth: int) -> Any:
    """The value as JSON: a tuple or set is a list, what JSON cannot hold is a text that says what it was."""
    room[0] -= 1
    if room[0] < 0 or depth > MOST_DEEP:
        raise Refusal("the arguments that its network was made with are too many or too deep")
    if isinstance(value, dict):
        return {_json_name(name): _json(each, room, depth + 1) for name, each in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_json(each, room, depth + 1) for each in value]
    if isinstance(value, Tensor):
        return f"tensor of {value.dtype}, shape {list(value.shape)}"
    if value is None or isinstance(value, bool | str) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if type(value) is int and abs(value) < LARGEST:
        return value
    return repr(value) if isinstance(value, float | complex) else _kind(value)


def _json_name(name: Any) -> str:
    return name if isinstance(name, str) else str(name) if type(name) is int and abs(name) < LARGEST else _kind(name)
