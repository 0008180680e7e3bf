"""Files that nobody should be able to start a pipeline with: a walk over what params.yaml may say, and texts of all sorts.

`cases` gives them one after the other, for the fast suite as for longer campaigns: each is to end with one line for each
fault, soon, whatever the file is.
"""

import copy
import dataclasses
import functools
import json
import os
import types
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffcore import methods
from diffcore.nets import unet
from diffcore.sampling.solvers import SOLVERS
from diffcore.training.config import Training
from tasks import params, sections, strict_yaml

ROOT = Path(__file__).parent.parent
SHIPPED = (ROOT / "tests/compact.yaml").read_text()

Where = tuple[str | int, ...]
"""Keys from the top of params.yaml to one value."""


@dataclass(frozen=True)
class Case:
    """One params.yaml. lay: puts it into a folder. words: a part of what must be said of it."""

    name: str
    lay: Callable[[Path], None]
    words: str


def cases() -> Iterator[Case]:
    """All of them, several hundred."""
    yield from texts()
    yield from places()
    yield from numbers()


def texts() -> Iterator[Case]:
    """Whole files and changes of the one that is shipped."""
    for name, (content, words) in {**FILES, **EDITS}.items():
        yield Case(name, _writes(content), words)


def places() -> Iterator[Case]:
    """Where a file should be, something else."""
    yield Case("a pipe", lambda folder: os.mkfifo(folder / "params.yaml"), "is no file")
    yield Case("a folder", lambda folder: (folder / "params.yaml").mkdir(), "is no file")
    yield Case("a device", lambda folder: (folder / "params.yaml").symlink_to("/dev/zero"), "is no file")
    yield Case("a link to itself", lambda folder: (folder / "params.yaml").symlink_to("params.yaml"), "cannot be read")
    yield Case("a link to nothing", lambda folder: (folder / "params.yaml").symlink_to("there"), "is missing")
    yield Case("nothing", lambda folder: None, "is missing")
    yield Case("a sparse file", lambda folder: _sparse(folder / "params.yaml"), "is longer than")


def numbers() -> Iterator[Case]:
    """Every value of the shipped file in turn as what no parameter is."""
    raw = shipped()
    for where, value in leaves({key: raw[key] for key in raw if not key.startswith("x-")}):
        for word, (odd, words) in ODD.items():
            if word not in ("a list", "nothing at all") or isinstance(value, int | float):
                yield Case(f"{'.'.join(map(str, where))} is {word}", _writes_changed(raw, where, odd), words)


def _writes_changed(raw: dict[str, Any], where: Where, value: Any) -> Callable[[Path], None]:
    return lambda folder: _writes(json_text(changed(raw, where, value)))(folder)


def leaves(value: Any, where: Where = ()) -> Iterator[tuple[Where, Any]]:
    """Every value that is no mapping and no list, with its place."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from leaves(inner, (*where, key))
    if not isinstance(value, dict | list):
        yield where, value


def changed(raw: dict[str, Any], where: Where, value: Any) -> dict[str, Any]:
    """A copy with another value at one place."""
    made = copy.deepcopy(raw)
    inner = made
    for key in where[:-1]:
        inner = inner[key]
    inner[where[-1]] = value
    return made


def json_text(raw: dict[str, Any]) -> bytes:
    """JSON, which is YAML too; numbers that are not finite as YAML has them."""
    text = json.dumps(raw)
    for word, yaml in {"NaN": ".nan", "-Infinity": "-.inf", "Infinity": ".inf"}.items():
        text = text.replace(f": {word}", f": {yaml}").replace(f"[{word}", f"[{yaml}").replace(f", {word}", f", {yaml}")
    return text.encode()


ODD: dict[str, tuple[Any, str]] = {
    "not a number": (float("nan"), "must be a finite number, got nan"),
    "infinite": (float("inf"), "must be a finite number, got inf"),
    "minus infinite": (float("-inf"), "must be a finite number, got -inf"),
    "of a hundred digits": (10**99, "is a number of more than 64 bits"),
    "a control character": ("a\x1bb", "holds a control character"),
    "a mapping with a bad key": ({"a\nb": 1}, "is no word of at most"),
    "a list": ([[[]]], ""),
    "nothing at all": ({}, ""),
}


SAMPLING: Where = ("evaluate", "teacher", 0)


def fields_of_all() -> Iterator[tuple[Where, str, type]]:
    """(place of its mapping, name, float or int) of every number in every dataclass that params.yaml can fill."""
    for section in dataclasses.fields(params.Params):
        yield from _numbers_of(section.type, (section.name,))
    yield from _numbers_of(sections.Sampling, SAMPLING)
    for kind in (Training, unet.Shape, methods.load("denoising")):
        within = ("network",) if kind is unet.Shape else ()
        yield from _numbers_of(kind, ("teachers", "teacher", *within))
    for word in methods.names():
        yield from _numbers_of(methods.load(word), ("distill", word))
        yield from _numbers_of(Training, ("distill", word))
    for word, solver in SOLVERS.items():
        yield from _numbers_of(solver, (*SAMPLING, "options", word))


def _numbers_of(kind: Any, where: Where) -> Iterator[tuple[Where, str, type]]:
    if not dataclasses.is_dataclass(kind):
        return
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        inside = [hints[field.name], *_parts(hints[field.name])]
        yield from ((where, field.name, number) for number in (float, int) if number in inside)
        for part in inside:
            if part is not sections.Sampling:
                yield from _numbers_of(part, (*where, field.name))


def _parts(hint: Any) -> list[Any]:
    """What a union, a list or a tuple is made of."""
    if typing.get_origin(hint) not in (typing.Union, types.UnionType, list, tuple):
        return []
    return [inner for part in typing.get_args(hint) for inner in (part, *_parts(part))]


def raw_with(where: Where, name: str, value: Any) -> dict[str, Any]:
    """The shipped parameters with this number at that place, everything else that the place needs made for it."""
    raw = shipped()
    if where[0] == "distill":
        needed = {
            field.name for field in dataclasses.fields(methods.load(where[1])) if field.default is dataclasses.MISSING
        }
        own = {"steps": 8, "target_ema": 0.5}
        line = {
            "method": where[1],
            "init": "teacher",
            "teacher": "teacher",
            "iterations": 1,
            "batch": 8,
            "lr": 0.1,
            "ema": 0.9,
        }
        raw["distill"] = {"own": line | {key: own[key] for key in needed} | {name: value}}
    elif where[:3] == SAMPLING:
        sampler = where[4] if "options" in where else "ddim"
        sampling = {"sampler": sampler, "trajectory": "uniform", "steps": [8]}
        config = {"deepcache": {"interval": 2}, "skip": {"bottom": 0.9}}.get(where[-1], {}) | {name: value}
        raw["evaluate"]["teacher"] = [sampling | ({where[3]: config} if where[3:] else {name: [value]})]
    else:
        inner = raw
        for key in where:
            inner[key] = inner[key] if isinstance(inner.get(key), dict) else {}
            inner = inner[key]
        inner[name] = value
    return raw


def path_of(where: Where, name: str) -> str:
    """How a fault there is called."""
    if where[0] == "distill":
        where = ("distill", "own")
    if where == SAMPLING:
        name = f"{name}.0"
    return ".".join(map(str, [*(where[:4] if where[:3] == SAMPLING else where), name]))


@functools.cache
def _shipped() -> str:
    return json.dumps(strict_yaml.load_yaml(ROOT / "params.yaml"))


def shipped() -> dict[str, Any]:
    """What params.yaml says, aliases written out."""
    return json.loads(_shipped())


def _writes(content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / "params.yaml").write_bytes(content) and None


def _sparse(path: Path) -> None:
    with open(path, "wb") as file:
        file.truncate(2**40)


def _edit(old: str, new: str) -> bytes:
    assert old in SHIPPED, old
    return SHIPPED.replace(old, new, 1).encode()


def _bomb(levels: int = 9) -> str:
    lines = ["x-0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol]"]
    lines += [f"x-{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 9)}]" for k in range(1, levels)]
    return "\n".join(lines)


def _merge_bomb(levels: int = 12) -> str:
    lines = ["x-0: &a0 {" + ", ".join(f"k{k}: 1" for k in range(100)) + "}"]
    lines += [f"x-{k}: &a{k} {{{', '.join(f'm{j}: *a{k - 1}' for j in range(9))}}}" for k in range(1, levels)]
    return "\n".join(lines)


INVALID = "is not valid YAML"
FILES: dict[str, tuple[bytes, str]] = {
    "an empty file": (b"", "must be a mapping"),
    "a comment alone": (b"# nothing\n", "must be a mapping"),
    "a list": (b"- 1\n- 2\n", "must be a mapping"),
    "a word": (b"parameters", "must be a mapping"),
    "a number": (b"3", "must be a mapping"),
    "null": (b"null", "must be a mapping"),
    "a date": (b"2024-01-01", "must be a mapping"),
    "an empty mapping": (b"{}", "missing section"),
    "two documents": (b"seed: 0\n---\nseed: 1\n", INVALID),
    "a key twice": (b"seed: 0\nseed: 1\n", INVALID),
    "a key twice further in": (b"data: {source: digits, source: digits}\n", INVALID),
    "an open bracket": (b"seed: [1, 2", INVALID),
    "a closed bracket too many": (b"seed: [1]]\n", INVALID),
    "a tab for spaces": (b"data:\n\tsource: digits\n", INVALID),
    "odd spaces": (b"data:\n   source: digits\n  size: 3\n", INVALID),
    "a zero byte": (b"seed: \x00\n", INVALID),
    "a bell": (b"seed: \x07\n", INVALID),
    "Latin-1": ("license: \u00e9t\u00e9".encode("latin-1"), "is not in UTF-8"),
    "UTF-16": ("seed: 0\n".encode("utf-16"), "is not in UTF-8"),
    "random bytes": (bytes(range(128, 256)) * 8, "is not in UTF-8"),
    "a picture": (b"\x89PNG\r\n\x1a\n" + bytes(64), "is not in UTF-8"),
    "zeros": (bytes(4096), INVALID),
    "half a surrogate": (b'seed: "\\ud800"\n', INVALID),
    "too long": (b"# " + b"x" * 2**18 + b"\n", "is longer than"),
    "deep brackets": (b"[" * 100_000, "is nested more than"),
    "deep braces": (b"{a: " * 30_000, "is nested more than"),
    "deep blocks": ("\n".join(" " * k + "a:" for k in range(400)).encode(), "is nested more than"),
    "deep sequences": (b"- " * 50_000, "is nested more than"),
    "deep, and closed": (b"a: " + b"[" * 1000 + b"]" * 1000, "is nested more than"),
    "a bomb of aliases": (_bomb().encode(), "grows without measure"),
    "a bomb of a hundred levels": (_bomb(100).encode(), "grows without measure"),
    "a bomb of mappings": (_merge_bomb().encode(), "grows without measure"),
    "a bomb of one long word": (b"x-a: &a " + b"y" * 100_000 + b"\nx-b: [" + b"*a, " * 1000 + b"]\n", "grows without"),
    "an alias within itself": (b"x-a: &a [*a]\n", "has an alias within"),
    "an alias within a mapping of its own": (b"x-a: &a {b: {c: *a}}\n", "has an alias within"),
    "a merge with itself": (b"x-a: &a {<<: *a}\n", "has an alias within"),
    "an alias of nothing": (b"seed: *seed\n", INVALID),
    "a merge of a number": (b"<<: 3\nseed: 0\n", INVALID),
    "a merge of a list of numbers": (b"<<: [1, 2]\nseed: 0\n", INVALID),
    "a merge of a word": (b"data: {<<: digits}\n", INVALID),
    "a command of Python's": (b"seed: !!python/object/apply:os.system ['true']\n", INVALID),
    "a name of Python's": (b"seed: !!python/name:os.system\n", INVALID),
    "a tuple of Python's": (b"seed: !!python/tuple [1]\n", INVALID),
    "a tag of nobody's": (b"seed: !secret 3\n", INVALID),
    "a number that is none": (b"seed: !!int x\n", INVALID),
    "a fraction that is none": (b"seed: !!float y\n", INVALID),
    "a truth that is none": (b"seed: !!bool x\n", INVALID),
    "a day that is none": (b"seed: 2024-13-45\n", INVALID),
    "a time that is none": (b"seed: !!timestamp soon\n", INVALID),
    "bytes that are none": (b"seed: !!binary '*'\n", ""),
    "a number of 5000 digits": (b"seed: " + b"9" * 5000, INVALID),
    "a number of 5000 hexadecimal digits": (b"seed: 0x" + b"f" * 5000, ""),
    "an odd directive": (b"%FOO\n---\nseed: 0\n", INVALID),
    "another YAML": (b"%YAML 9.9\n---\nseed: 0\n", ""),
    "a mapping for a key": (b"? {a: 1}\n: b\n", INVALID),
    "an equals sign": (b"seed: =\n", INVALID),
    "JSON cut off": (b'{"seed": 0, "data": {"source": "dig', INVALID),
    "a page of the web": (b"<!DOCTYPE html><html><body>404</body></html>", ""),
    "a program": (b"import os\nprint(os.environ)\n", ""),
    "conflict marks": (b"<<<<<<< HEAD\nseed: 0\n=======\nseed: 1\n>>>>>>> other\n", ""),
}

# ruff: noqa: E501

EDITS: dict[str, tuple[bytes, str]] = {
    name: (_edit(old, new), words)
    for name, (old, new, words) in {
        "a number for a key": ("seed: 0", "7: 0", "7 is no word"),
        "null for a key": ("seed: 0", "null: 0", "None is no word"),
        "true for a key": ("seed: 0", "true: 0", "True is no word"),
        "a list for a key": ("seed: 0", "? [seed]\n: 0", "is no word"),
        "an empty key": ("seed: 0", '"": 0', "is no word"),
        "a key of two lines": ("seed: 0", '"se\\ned": 0', "is no word"),
        "a key of 300 letters": ("seed: 0", f"{'s' * 300}: 0", "is no word"),
        "a number for a key further in": (
            "      layers: 1",
            "      1: layers",
            "teachers.teacher.network: the key 1 is no word",
        ),
        "a date for a word": ("license: null", "license: 2024-01-01", "data.license: is a date"),
        "bytes for a word": ("license: null", "license: !!binary aGk=", "data.license: is a bytes"),
        "a set": ("license: null", "license: !!set {a, b}", "data.license: is a set"),
        "a zero byte in a path": ("source: digits", 'source: "folder:\\0"', "data.source: holds a control character"),
        "an ordered mapping": ("license: null", "license: !!omap [a: 1]", "data.license: "),
        "too large to be finite": ("lr: 3.0e-3", "lr: 1e999", "teachers.teacher.lr: must be a finite number, got inf"),
        "beyond use": ("lr: 3.0e-3", "lr: 1e30", "teachers.teacher.lr: 1e+30 is beyond all use"),
        "a rate below zero": ("lr: 3.0e-3", "lr: -3.0e-3", "teachers.teacher: lr must be positive, got -0.003"),
        "a model with a slash": ("model: sampler", "model: a/b", "publish: model must be a name without / and :"),
        "a model with a colon": ("model: sampler", 'model: "a:b"', "publish: model must be a name without / and :"),
        "a model that is two dots": ("model: sampler", 'model: ".."', "publish: model must be a name without / and :"),
        "no model": ("model: sampler", 'model: ""', "publish: model must be a name of 1 to 200 letters"),
        "a model of spaces": ("model: sampler", 'model: "  "', "publish: model must be a name of 1 to 200 letters"),
        "a model of 300 letters": (
            "model: sampler",
            f"model: {'m' * 300}",
            "publish: model must be a name of 1 to 200",
        ),
        "a model of two lines": (
            "model: sampler",
            'model: "a\\nb"',
            "publish: model must be a name of 1 to 200 letters",
        ),
        "no experiment": ("experiment: distill", 'experiment: ""', "publish: experiment must be a name"),
        "an experiment of 300 letters": (
            "experiment: distill",
            f"experiment: {'e' * 300}",
            "publish: experiment must be",
        ),
        "an experiment of two lines": ("experiment: distill", 'experiment: "a\\nb"', "publish: experiment must be"),
        "a student of 300 letters": ("  pd16: {<<", f"  {'p' * 90}: {{<<", "a name must be"),
        "a student in capitals": ("  pd16: {<<", "  PD16: {<<", "a name must be"),
        "a student who is the teacher": ("  pd16: {<<", "  teacher: {<<", "a name must be"),
        "a student with a slash": ("  pd16: {<<", "  ../pd16: {<<", "a name must be"),
        "a student called by a number": ("  pd16: {<<", "  16: {<<", "distill: the key 16 is no word"),
        "a class of 300 letters": (
            "{sampler: ddim, trajectory: fitted, steps: [8, 4, 2]}",
            "{sampler: ddim, trajectory: uniform, steps: [8], guidance: 2.0, negative: " + "n" * 90 + "}",
            "negative must be the name of a class",
        ),
        "a huge batch": (
            "batch: 128\n    lr: 3.0e-3",
            "batch: 1000000000000\n    lr: 3.0e-3",
            "of memory at the very least",
        ),
        "a huge network": (
            "channels: [16, 32]",
            "channels: [1600000, 3200000]",
            "teachers.teacher.network.channels: a training of this network",
        ),
        "a very deep network": (
            "layers: 1",
            "layers: 1000000",
            "teachers.teacher.network.layers: 1000000 is more than 1000",
        ),
        "huge images": ("size: null", "size: 1000000", "data.size: 1000000 is more than 65536"),
        "endless updates": (
            "iterations: 1000\n",
            "iterations: 1000000000000\n",
            "a thousand a second would take 11574 days",
        ),
        "a million threads": ("threads: 1", "threads: 1000000", "compute.threads: 1000000 threads on"),
        "a billion steps of a student": (
            "steps: 16, target_ema",
            "steps: 1000000000, target_ema",
            "distill.cd.steps: 1000000000 is",
        ),
        "a billion steps of a way": (
            "steps: [64, 8, 4, 2, 1]",
            "steps: [1000000000]",
            "steps.0: 1000000000 is more than 10000",
        ),
        "a billion times": (
            "gamma: {steps: 1000",
            "gamma: {steps: 1000000000",
            "gamma.steps: 1000000000 is more than 10000",
        ),
        "a batch in odd parts": (
            "cores: 2 ",
            "cores: 3 ",
            "teachers.teacher.cores: 128 images",
        ),
        "a million points": (
            "{sampler: ddim, trajectory: uniform, steps: [64, 8, 4, 2, 1]}",
            f"{{sampler: ddim, trajectory: uniform, steps: {list(range(1, 102))}, skip: [{', '.join(['{bottom: 0.5}'] * 100)}]}}",
            "more than 10000 points to measure",
        ),
        "a power that is never reached": (
            "{interval: 4}",
            "{interval: 4, power: 1.0e+30}",
            "power: 1e+30 is beyond all use",
        ),
        "features without number": ("dimension: 64\n", "dimension: 100000000\n", "features.dimension: a covariance"),
        "images without number": (
            "images: 1000 ",
            "images: 1000000000000 ",
            "evaluate.images: 1000000000000 is more than",
        ),
    }.items()
}

GOOD: dict[str, bytes] = {
    "as shipped": SHIPPED.encode(),
    "with a mark of UTF-8 before it": b"\xef\xbb\xbf" + SHIPPED.encode(),
    "with the ends of lines of Windows": SHIPPED.replace("\n", "\r\n").encode(),
    "with its version": b"%YAML 1.2\n---\n" + SHIPPED.encode(),
    "in JSON": json.dumps(strict_yaml.load_yaml(ROOT / "params.yaml")).encode(),
    "octal": _edit("seed: 0", "seed: 0o17"),
    "with a number in groups": _edit("iterations: 1000\n", "iterations: 1_000\n"),
    "with a seed below zero": _edit("seed: 0", "seed: -5"),
    "with a tab after a colon": _edit("seed: 0", "seed:\t0"),
    "with keys in quotes": _edit("seed: 0", '"seed": 0'),
    "with a license of two lines": _edit("license: null", 'license: "mine\\nand yours"'),
    "with letters of other tongues": _edit("experiment: distill", "experiment: \u30c6\u30b9\u30c8"),
    "with a slash in an experiment": _edit("experiment: distill", "experiment: team/distill"),
    "with a rate of one": _edit("lr: 3.0e-3", "lr: 1.0"),
    "with the most of a GPU": _edit("iterations: 1000\n    batch: 128", "iterations: 2000000\n    batch: 8192"),
    "with the threads of a larger machine": _edit("threads: 1", "threads: 64"),
    "with a large network": _edit("channels: [16, 32]", "channels: [256, 512]"),
    "with as many steps as published": _edit("gamma: {steps: 1000", "gamma: {steps: 8192"),
}
"""Files that are in order, however odd they look."""
