"""The one reader of params.yaml: strict, and all faults at once, each with its path and the nearest right word."""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from diffcore import nets
from diffcore.core.errors import UserError
from diffcore.data.config import Config as DataConfig
from diffcore.lineage import Lineage
from diffcore.metrics import features
from diffcore.search import gamma
from diffcore.texts import encoders
from diffcore.texts.config import Config as TextConfig
from diffcore.texts.encoder import Encoder
from diffcore.training.config import Compute
from tasks import bounds, paths, renamed, rules, strict_yaml
from tasks.lines import network_of, read_lines
from tasks.sections import ROOT as ROOT
from tasks.sections import Adopted, Distill, Evaluate, Publish, Search, Teacher
from tasks.strict_yaml import dump_yaml as dump_yaml
from tasks.strict_yaml import load_yaml
from tasks.typed import nearest, typed

MOVED = {
    "network": "belongs to a line of `teachers` now: write it under teachers.teacher.network",
    "teacher": "is a line of `teachers` now: teachers: {teacher: {method: denoising, network: ..., ...}}, or {from: PATH}",
    "search.fitted": "is evaluate.fitted now",
}
"""Keys of older files, and where to write them."""


@dataclass(frozen=True)
class Params:
    """All of params.yaml."""

    seed: int
    compute: Compute
    data: DataConfig
    text: TextConfig
    features: features.Config
    teachers: dict[str, Teacher | Adopted]
    distill: dict[str, Distill]
    gamma: gamma.Config
    search: Search
    evaluate: Evaluate
    publish: Publish
    raw: dict[str, Any]

    @property
    def lines(self) -> Lineage:
        """Who starts from whom, and who teaches whom."""
        return Lineage(self.teachers, self.distill)

    def line(self, name: str) -> Teacher | Adopted | Distill:
        """The line of `teachers` or `distill` with this name; a UserError for one that is not there."""
        if name not in (lines := {**self.teachers, **self.distill}):
            raise UserError(f"params.yaml has no line {name!r} in teachers or distill; known: {', '.join(lines)}")
        return lines[name]

    def encoder(self) -> Encoder | None:
        """The encoder that the section `text` names, computing where `compute` says; None for no texts."""
        text, compute = self.text, self.compute
        return text.encoder and encoders.encoder_of(text.encoder, text.dimension, compute.device, compute.numbers)

    def trainings(self, name: str) -> int:
        """How often the line `name` is trained."""
        line = self.line(name)
        return 1 if isinstance(line, Adopted) else line.seeds

    def shape(self, name: str) -> nets.Shape | None:
        """The network that is built for the line `name`; None for one that begins as another's or comes from elsewhere."""
        line = self.line(name)
        if isinstance(line, Distill):
            return _shapes(self.teachers, self.distill)[name] if line.network else None
        return line.network if isinstance(line, Teacher) else None


def read(path: Path = paths.PARAMS) -> Params:
    """Parses and checks the whole file; every fault in one UserError, a line each."""
    return parse(load_yaml(path), str(path))


def parse(raw: dict[str, Any], whose: str) -> Params:
    """Checks what a file like params.yaml says; every fault in one UserError, a line each, in the order of the file."""
    kinds = {field.name: field.type for field in fields(Params) if field.name != "raw"}
    today, faults = renamed.renewed(raw)
    faults += _moved(raw)
    sections = {key: _section(key, today[key], kinds, faults) for key in raw if key not in MOVED}
    faults += [
        f"{key}: missing section" for key in kinds if key not in raw and not (key == "teachers" and "teacher" in raw)
    ]
    if not faults:
        faults += _together(sections)
    if faults:
        raise UserError("\n".join(f"{whose}: {fault}" for fault in _in_file_order(faults, today)))
    return Params(**{key: sections[key] for key in kinds}, raw=raw)


def _moved(raw: Mapping[str, Any]) -> Iterator[str]:
    for path, where in MOVED.items():
        section, _, key = path.partition(".")
        inside = raw.get(section)
        if (section in raw and not key) or (key and isinstance(inside, dict) and key in inside):
            yield f"{path}: {where}"


def _together(sections: Mapping[str, Any]) -> list[str]:
    """Faults between sections; each group of them is looked for only where those before it found none."""
    lines = Lineage(sections["teachers"], sections["distill"])
    evaluate = sections["evaluate"]
    faults = [*bounds.of_samplings(rules.samplings(evaluate)), *_related(sections, lines)]
    if not faults:
        faults += bounds.of_machine(sections, _shapes(sections["teachers"], sections["distill"], faults))
    if not faults:
        shapes = _shapes(sections["teachers"], sections["distill"])
        faults += lines.weights()
        faults += (f"distill.{name}.{key}: {fault}" for name, key, fault in lines.parameterizations())
        skips = {name: shape.skips for name, shape in shapes.items() if shape}
        faults += dict.fromkeys(rules.branches(evaluate, lines, skips))
        faults += dict.fromkeys(rules.sampled(sections, lines))
        faults += rules.ends(lines, shapes)
        faults += rules.foreign(evaluate, lines)
        faults += rules.captioned(sections)
        faults += rules.prompted(sections, lines)
        faults += rules.drawn(sections)
    if not faults:
        faults += rules.guided(evaluate, lines)
    return faults


def _related(sections: Mapping[str, Any], lines: Lineage) -> list[str]:
    """Faults of inits and teachers that are not there, that form a circle, or that cannot be what they are named for."""
    if ROOT not in lines.roots:
        return [f"teachers.{ROOT}: missing: the line that all else is held against"]
    checkpoints = list(lines)
    faults = [
        f"distill.{name}.{key}: no checkpoint {above!r}{nearest(above, checkpoints)}"
        for name, line in lines.students.items()
        for key, above in (("init", line.init), ("teacher", line.teacher))
        if above and above not in checkpoints
    ]
    if not faults:
        faults = [f"distill.{name}.{key}: {fault}" for name, key, fault in lines.circles()]
    if not faults:
        faults = [f"distill.{name}{'.' if key else ''}{key}: {fault}" for name, key, fault in lines.unfit()]
    return faults


def _shapes(
    teachers: Mapping[str, Teacher | Adopted], students: Mapping[str, Distill], faults: list[str] | None = None
) -> dict[str, nets.Shape | None]:
    """The networks of all checkpoints, None where only a folder knows; a student's is its init's with what it changes."""
    lines = Lineage(teachers, students)
    shapes: dict[str, nets.Shape | None] = {}

    def of(name: str) -> nets.Shape | None:
        if name in shapes:
            return shapes[name]
        if name in teachers:
            return getattr(teachers[name], "network", None)
        line = students[name]
        above, changes = of(line.init), line.network or {}
        inherited = {"conditional": lines.root(name).conditional, "parameterization": lines.parameterization(name)}
        if above is None and not changes:
            return None
        inherited = {key: value for key, value in inherited.items() if value is not None}
        whole = (above.keys() if above and not {"family", "module"} & changes.keys() else {}) | changes | inherited
        return network_of(whole, f"distill.{name}.network", [] if faults is None else faults, above and type(above))

    for name in lines:
        shapes[name] = of(name)
    return shapes


def _section(key: Any, value: Any, kinds: Mapping[str, Any], faults: list[str]) -> Any:
    if fault := strict_yaml.bad_key(key):
        faults.append(fault)
        return None
    before = len(faults)
    faults += strict_yaml.strange(key, value)
    faults += bounds.of_numbers(key, value)
    if key[:2] == "x-" or len(faults) > before:
        return None
    if key not in kinds:
        faults.append(f"{key}: unknown section{nearest(key, kinds)}")
        return None
    if key in ("distill", "teachers"):
        return read_lines(key, value, faults)
    if key == "search" and isinstance(value, dict):
        value = {inner: one for inner, one in value.items() if f"search.{inner}" not in MOVED}
    return typed(kinds[key], value, key, faults)


def _in_file_order(faults: list[str], raw: dict[str, Any]) -> list[str]:
    """The faults, each once, in the order of the file; no key is missing where a misspelt one stands for it."""
    misspelt = re.compile(r"(.*?)[^.]*: unknown (?:section|key); did you mean '(.+)'\?")
    matches = [match for match in map(misspelt.fullmatch, faults) if match]
    echoes = {f"{match[1]}{match[2]}: missing{section}" for match in matches for section in ("", " section")}
    places = {path: number for number, path in enumerate(_paths(raw))}
    return sorted(
        dict.fromkeys(fault for fault in faults if fault not in echoes), key=lambda fault: _place(fault, places)
    )


def _paths(value: Any, path: str = "") -> Iterator[str]:
    """The path of everything in a file, in its order."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (where := f"{path}.{key}" if path else f"{key}")
        yield from _paths(inner, where)


def _place(fault: str, places: Mapping[str, int]) -> float:
    """The number of the longest part of a fault's path that the file has; infinite, so after all else, if it has none."""
    keys = fault.partition(": ")[0].split(".")
    candidates = (places.get(".".join(keys[:count])) for count in range(len(keys), 0, -1))
    return next((place for place in candidates if place is not None), math.inf)


def check_adopted(params: Params, name: str, skips: int | None, parameterization: str, takes_end: bool) -> None:
    """A UserError, a line each, for what is asked of the network from elsewhere that it has not: see `rules.adopted` and
    `rules.adopted_ends`, unless it can be told where a hop lands."""
    teacher = replace(params.teachers[name], parameterization=parameterization)
    lines = Lineage({**params.teachers, name: teacher}, params.distill)
    shapes = _shapes(params.teachers, params.distill)
    faults = [] if takes_end else list(rules.adopted_ends(name, lines, shapes))
    if faults := faults + rules.adopted(name, params.evaluate, lines, skips):
        raise UserError("\n".join(f"{paths.PARAMS}: {fault}" for fault in faults))
