"""The one reader of params.yaml: strict, and all faults at once, each with its path and the nearest right word."""

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from diffcore import methods, nets
from diffcore.checkpoints.adopted import Stated
from diffcore.checkpoints.schedulers import MOST_STEPS
from diffcore.core.errors import UserError
from diffcore.data.config import Config as DataConfig
from diffcore.denoisers import parameterization
from diffcore.denoisers.reading import KINDS, Reading
from diffcore.lineage import Lineage
from diffcore.metrics import features
from diffcore.noise.schedule import SCHEDULES, Discrete, Schedule, variance_preserving
from diffcore.search import gamma
from diffcore.texts import encoders
from diffcore.texts.config import Config as TextConfig
from diffcore.texts.encoder import Encoder
from diffcore.training.config import Compute, Training
from diffcore.watching.config import Watch
from tasks import bounds, paths, renamed, rules, strict_yaml
from tasks.sections import ROOT as ROOT
from tasks.sections import Adopted, Distill, Evaluate, Publish, Search, Teacher
from tasks.strict_yaml import dump_yaml as dump_yaml
from tasks.strict_yaml import load_yaml
from tasks.typed import LETTERS, names, nearest, typed

TRAINED = "trained"
"""The key of what a network from elsewhere was trained on, where its files do not say so."""

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
        return _network(whole, f"distill.{name}.network", [] if faults is None else faults, above and type(above))

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
        return _lines(key, value, _student if key == "distill" else _root, faults)
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


def _lines(section: str, raw: Any, read: Any, faults: list[str]) -> dict[str, Any]:
    if not isinstance(raw, dict):
        faults.append(f"{section}: must map names to lines")
        return {}
    lines = {}
    for name, line in raw.items():
        where = f"{section}.{name}"
        reserved = ("real", *([ROOT] if section == "distill" else []))
        if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or len(name) > LETTERS or name in reserved:
            faults.append(
                f"{where}: a name must be lower-case letters, digits and _, at most {LETTERS}, and not "
                f"{' or '.join(map(repr, reserved))}"
            )
        elif not isinstance(line, dict):
            faults.append(f"{where}: must be a mapping with method and its numbers")
        elif parsed := read(name, line, where, faults):
            lines[name] = parsed
    return lines


def _root(name: str, line: dict[str, Any], where: str, faults: list[str]) -> Teacher | Adopted | None:
    """A line of `teachers`: a training from new weights, or where its network is."""
    if "from" in line:
        return _adopted(name, line, where, faults)
    kind, before = methods.load("denoising"), len(faults)
    if line.get("method") != "denoising":
        faults.append(f"{where}.method: must be denoising, by which a network learns from nothing, or give from: PATH")
    own, shared = names(kind), names(Training)
    faults += _unknown(line, ("method", "network", "schedule", "reading", WATCH, SEEDS, *own, *shared), where)
    faults += [f"{where}.{key}: missing" for key in ("network", "schedule") if key not in line]
    method = typed(kind, {key: line[key] for key in own if key in line}, where, faults)
    fitting = typed(Training, {key: line[key] for key in shared if key in line}, where, faults)
    schedule = _schedule(line.get("schedule", "cosine"), f"{where}.schedule", faults)
    network = _network(line["network"], f"{where}.network", faults) if "network" in line else None
    says = network.parameterization if network else None
    reading = _reading(line.get("reading", "vp"), says, schedule, f"{where}.reading", faults)
    watch, seeds = _watch(line, method, fitting, where, faults), _seeds(line, where, faults)
    if network and method and network.parameterization == "x0" and not method.off_the_data:
        faults.append(
            f"{where}.weight: the error of v has no bound near the data for a network of parameterization x0; write min_snr"
        )
    if len(faults) > before:
        return None
    return Teacher(
        name=name, method=method, fit=fitting, network=network, schedule=schedule,
        conditional=network.conditional, reading=reading, inputs=network.inputs, watch=watch, seeds=seeds,
    )  # fmt: skip


def _adopted(name: str, line: dict[str, Any], where: str, faults: list[str]) -> Adopted | None:
    before = len(faults)
    folder = line["from"]
    conditional, inputs = line.get("conditional", False), line.get("inputs", [])
    if not isinstance(folder, str) or not folder.strip():
        faults.append(f"{where}.from: must be the path of a folder that holds unet/ and scheduler/")
    if not isinstance(conditional, bool):
        faults.append(f"{where}.conditional: must be true or false, got {conditional!r}")
    if not (isinstance(inputs, list) and all(isinstance(name, str) for name in inputs)):
        faults.append(f"{where}.inputs: must be a list of what it is told, such as [text, text_mask], got {inputs!r}")
    numbers = sorted(set(line) & {"method", "network", "schedule", "reading", WATCH, SEEDS, *names(Training)})
    if numbers:
        faults.append(f"{where}: give from or the numbers of a training, not both; leave out {', '.join(numbers)}")
    else:
        faults += _unknown(line, ("from", "conditional", "inputs", "config", TRAINED), where)
    stated = _stated(line, where, faults)
    if len(faults) > before:
        return None
    return Adopted(name=name, folder=folder, conditional=conditional, inputs=tuple(inputs), stated=stated)


def _stated(line: dict[str, Any], where: str, faults: list[str]) -> Stated:
    """What a line says of a network that lies alone: its config.json, and what it was trained on."""
    config, trained = line.get("config"), line.get(TRAINED)
    if config is not None and not (isinstance(config, str) and config.strip()):
        faults.append(f"{where}.config: must be the path of a config.json, got {config!r}")
        config = None
    if trained is None:
        return Stated(config)
    where = f"{where}.{TRAINED}"
    if not isinstance(trained, dict):
        faults.append(f"{where}: must be a mapping of schedule, reading and parameterization")
        return Stated()
    needed = ("schedule", "reading", "parameterization")
    faults += [f"{where}.{key}: missing" for key in needed if key not in trained]
    faults += _unknown(trained, (*needed, "num_timesteps"), where)
    if not set(needed) <= trained.keys():
        return Stated()
    word = trained["parameterization"]
    if word not in parameterization.NAMES:
        faults.append(f"{where}.parameterization: {word!r} is unknown{nearest(word, parameterization.NAMES)}")
        return Stated()
    schedule = _schedule(trained["schedule"], f"{where}.schedule", faults)
    reading = _reading(trained["reading"], word, schedule, f"{where}.reading", faults)
    if schedule is None or reading is None:
        return Stated()
    steps = _steps(trained, schedule, reading, where, faults)
    stated = Stated(config, schedule, replace(reading, num_timesteps=steps))
    try:
        stated.check()
    except UserError as error:
        faults.append(f"{where}.parameterization: {error}")
    return stated


def _steps(trained: dict[str, Any], schedule: Schedule, reading: Reading, where: str, faults: list[str]) -> int:
    """How many steps the times count that the network is told; of betas their number."""
    usual = len(schedule.betas) if isinstance(schedule, Discrete) else None
    steps = trained.get("num_timesteps", usual)
    if steps is None and reading.time in ("log_sigma", "sigma"):
        return reading.num_timesteps
    if type(steps) is not int or not 1 <= steps <= MOST_STEPS or usual not in (None, steps):
        whose = "the number of betas" if usual else "how many steps its times count, such as 1000"
        faults.append(f"{where}.num_timesteps: must be {whose}, got {steps!r}")
        return reading.num_timesteps
    return steps


def _network(value: Any, where: str, faults: list[str], usual: type[nets.Shape] | None = None) -> nets.Shape | None:
    """The keys of a family, the U-Net unless `family` names another one, or those of a `module` of the user's own and its
    arguments; `usual`: unless one is named, of this shape."""
    if isinstance(value, dict) and "module" in value:
        return _module(value, where, faults)
    kind, own = usual or nets.FAMILIES[FAMILY].shape, value
    if isinstance(value, dict) and "family" in value:
        if (word := value["family"]) not in nets.FAMILIES:
            faults.append(f"{where}.family: {word!r} is unknown{nearest(word, nets.FAMILIES)}")
            return None
        kind, own = nets.FAMILIES[word].shape, {key: inner for key, inner in value.items() if key != "family"}
    return typed(kind, own, where, faults)


def _module(value: dict[str, Any], where: str, faults: list[str]) -> nets.Shape | None:
    if "family" in value:
        faults.append(f"{where}: family is of ours and module is yours; give one of them")
        return None
    own = {key: value[key] for key in names(nets.MODULE.shape) if key in value and key != "arguments"}
    arguments = {key: inner for key, inner in value.items() if key not in own}
    return typed(nets.MODULE.shape, {**own, "arguments": arguments}, where, faults)


def is_another_family(network: Mapping[str, Any], old: Mapping[str, Any]) -> bool:
    """Whether what `network` says is of another family than what was there, whose keys then mean nothing."""
    own = {} if "module" in old else {"family": FAMILY}
    return any(key in network and network[key] != {**own, **old}.get(key) for key in ("family", "module"))


def _schedule(value: Any, where: str, faults: list[str]) -> Schedule | None:
    """A word, or a mapping with `name` and the schedule's own numbers; what networks are trained on of it."""
    line = {"name": value} if isinstance(value, str) else value
    if not isinstance(line, dict) or line.get("name") not in SCHEDULES:
        word = line.get("name") if isinstance(line, dict) else value
        faults.append(f"{where}: {word!r} is no schedule{nearest(word, SCHEDULES)}")
        return None
    kind = SCHEDULES[line["name"]]
    before = len(faults)
    schedule = typed(kind, {key: inner for key, inner in line.items() if key != "name"}, where, faults)
    return None if len(faults) > before else variance_preserving(schedule)


def _reading(value: Any, says: str | None, schedule: Schedule | None, where: str, faults: list[str]) -> Reading | None:
    """A word of readings.KINDS, or a mapping with `name` and sigma_data; None for a fault, and beside faulty neighbours."""
    line = {"name": value} if isinstance(value, str) else value
    if not isinstance(line, dict) or line.get("name") not in KINDS:
        word = line.get("name") if isinstance(line, dict) else value
        faults.append(f"{where}: {word!r} is no reading{nearest(word, KINDS)}")
        return None
    faults += _unknown(line, ("name", "sigma_data"), where)
    size = line.get("sigma_data", 1.0)
    if isinstance(size, bool) or not isinstance(size, int | float) or not 0 < size < math.inf:
        faults.append(f"{where}.sigma_data: must be a positive number, got {size!r}")
        return None
    if says is None or schedule is None:
        return None
    reading = Reading.of(line["name"], says, sigma_data=float(size))
    try:
        reading.check(schedule)
    except UserError as error:
        faults.append(f"{where}: {error}")
    return reading


def _unknown(line: dict[str, Any], keys: Iterable[str], where: str) -> Iterator[str]:
    keys = list(keys)
    return (f"{where}.{key}: unknown key{nearest(key, keys)}" for key in line if key not in keys)


FAMILY = "unet"
"""Of networks of which params.yaml names none."""

WATCH, SEEDS = "watch", "seeds"

RELATIONS = {"init": "whose weights it starts from", "teacher": "who teaches it"}


def _student(name: str, line: dict[str, Any], where: str, faults: list[str]) -> Distill | None:
    missing = [key for key in ("method", "init") if not isinstance(line.get(key), str)]
    if missing:
        faults.extend(f"{where}.{key}: missing{_meant(key, line)}" for key in missing)
        return None
    if line["method"] not in methods.names():
        faults.append(f"{where}.method: {line['method']!r} is unknown{nearest(line['method'], methods.names())}")
        return None
    kind = methods.load(line["method"])
    own, shared = names(kind), names(Training)
    before = len(faults)
    faults += _unknown(
        line,
        ("method", *RELATIONS, "guidance", "parameterization", "dropout", "network", WATCH, SEEDS, *own, *shared),
        where,
    )
    method = typed(kind, {key: line[key] for key in own if key in line}, where, faults)
    fitting = typed(Training, {key: line[key] for key in shared if key in line}, where, faults)
    guidance = _range(line.get("guidance"), f"{where}.guidance", faults)
    if not isinstance(line.get("teacher", ""), str):
        faults.append(f"{where}.teacher: must be the name of a line, got {line['teacher']!r}")
    if (parameterization := line.get("parameterization")) not in (None, "v"):
        faults.append(
            f"{where}.parameterization: must be v, or left out for that of the network it starts from, "
            f"got {parameterization!r}"
        )
    if not _share(dropout := line.get("dropout", 0.0)):
        faults.append(f"{where}.dropout: must be at least 0 and below 1, got {dropout!r}")
    network = _changes(line.get("network"), f"{where}.network", faults)
    watch, seeds = _watch(line, method, fitting, where, faults), _seeds(line, where, faults)
    if len(faults) > before:
        return None
    return Distill(
        init=line["init"], teacher=line.get("teacher", ""), method=method, guidance=guidance,
        parameterization=parameterization,
        name=name, fit=fitting, dropout=float(dropout), network=network, watch=watch, seeds=seeds,
    )  # fmt: skip


def _seeds(line: dict[str, Any], where: str, faults: list[str]) -> int:
    """How often a line is trained."""
    if not _is_count(seeds := line.get(SEEDS, 1)):
        faults.append(f"{where}.{SEEDS}: how often the line is trained, a whole number of at least 1, got {seeds!r}")
    return seeds


def _watch(
    line: dict[str, Any], method: methods.Method | None, fitting: Training | None, where: str, faults: list[str]
) -> Watch | None:
    """How the training of a line is looked at; None where nothing is said of that."""
    if line.get(WATCH) is None:
        return None
    watch = typed(Watch, line[WATCH], f"{where}.{WATCH}", faults)
    if watch and fitting and watch.every > fitting.iterations:
        faults.append(
            f"{where}.{WATCH}.every: {watch.every} is more than the {fitting.iterations} updates of this line"
        )
    if watch and watch.steps and method and method.grid:
        faults.append(f"{where}.{WATCH}.steps: {where.rpartition('.')[2]} has steps of its own; leave it out")
    return watch


def _meant(key: str, line: dict[str, Any]) -> str:
    """What a line of an older file is to say instead."""
    if key != "init" or not isinstance(line.get("teacher"), str):
        return f": {RELATIONS[key]}" if key in RELATIONS else ""
    return (
        f": {RELATIONS[key]}, which `teacher` said before; write init: {line['teacher']}, and in teacher who teaches it"
    )


def _changes(value: Any, where: str, faults: list[str]) -> dict[str, Any] | None:
    """What differs in a student's network from that of its init."""
    if value is None:
        return None
    if not isinstance(value, dict) or not value:
        faults.append(f"{where}: must be a mapping of what differs from the network of init")
        return None
    for key in sorted({"parameterization", "conditional"} & value.keys()):
        faults.append(
            f"{where}.{key}: unknown key; parameterization stands in the line, conditional with the root of its chain"
        )
    return value


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _share(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1


def _range(value: Any, where: str, faults: list[str]) -> tuple[float, float] | None:
    """One weight, or the lowest and the highest."""
    if value is None:
        return None
    low, high = value if isinstance(value, list) and len(value) == 2 else (value, value)
    numbers = all(isinstance(weight, int | float) and not isinstance(weight, bool) for weight in (low, high))
    if not numbers or not 0 <= low <= high or (isinstance(value, list) and low == high):
        faults.append(f"{where}: must be a weight of at least 0, or [lowest, highest] of them, got {value!r}")
        return None
    return float(low), float(high)


def check_adopted(params: Params, name: str, skips: int | None, parameterization: str) -> None:
    """A UserError, a line each, for what is asked of the network from elsewhere that it has not: see `rules.adopted`."""
    teacher = replace(params.teachers[name], parameterization=parameterization)
    lines = Lineage({**params.teachers, name: teacher}, params.distill)
    if faults := rules.adopted(name, params.evaluate, lines, skips):
        raise UserError("\n".join(f"{paths.PARAMS}: {fault}" for fault in faults))
