"""The one reader of params.yaml: strict, and all faults at once, each with its path and the nearest right word."""

import contextlib
import difflib
import functools
import itertools
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from diffcore import methods
from diffcore.checkpoints import Guidance
from diffcore.core.errors import Mistake
from diffcore.data.config import Config as DataConfig
from diffcore.denoisers.clipping import Threshold
from diffcore.methods import Method
from diffcore.metrics import features
from diffcore.nets import unet
from diffcore.noise.schedule import Cosine
from diffcore.noise.trajectory import TRAJECTORIES, Trajectory
from diffcore.sampling import deepcache
from diffcore.sampling.deepcache import Config as CacheConfig
from diffcore.sampling.recipe import Recipe
from diffcore.sampling.sampler import check_grid, check_steps, rehearse
from diffcore.sampling.skip_tuning import Config as SkipConfig
from diffcore.sampling.solver import Solver
from diffcore.sampling.solvers import SOLVERS
from diffcore.sampling.solvers.analytic import Analytic
from diffcore.search import fitted as hops
from diffcore.search import gamma
from diffcore.training import fit
from tasks import bounds, paths, strict_yaml
from tasks.strict_yaml import dump_yaml as dump_yaml
from tasks.strict_yaml import load_yaml

Kind = Literal["even", "quadratic", "logsnr", "karras", "searched", "fitted", "own"]
OWN = "own"
"""A student's own steps, the only ones it is valid on."""

NAME = 200
"""Letters of a name in MLflow, whose columns hold 256."""

SOME = 8
"""Steps of a rehearsal."""

STUDENT = 64
"""Letters of a student's name, of which file names are made."""

ROOT = "teacher"
"""The name of the checkpoint that every chain begins with."""


@dataclass(frozen=True)
class Adopt:
    """`teacher: {folder: PATH}`: a network that is trained already, in diffusers' format, not a training's numbers."""

    folder: str

    def __post_init__(self):
        if not self.folder.strip():
            raise ValueError("folder must be the path of a folder that holds unet/ and scheduler/")


@dataclass(frozen=True)
class Distill:
    """One line of `distill`: a student, its method, and which checkpoint it starts from and, where it can, learns from.

    guidance: the lowest and the highest weight of classifier-free guidance by which its teacher is guided. head: what its
    network shall say, None for what the one it starts from says. dropout: of its network in training, whatever its
    teacher's was; consistency methods give the student and its target one mask.
    """

    name: str
    teacher: str
    method: Method
    fit: fit.Config
    guidance: tuple[float, float] | None = None
    head: Literal["v"] | None = None
    dropout: float = 0.0


@dataclass(frozen=True)
class Search:
    """estimator: of the covariance that costs and variances are made of. most: steps to search for. repair: make the estimate
    monotone first, which the fast search needs. decoder: let the last look be at any time, the decoder's cost counted; false
    for paths as published, which end at 1/N. fitted: times fitted to the teacher's own path."""

    estimator: Literal["norm", "residual"]
    most: int
    repair: bool
    decoder: bool
    fitted: hops.Config

    def __post_init__(self):
        if self.most < 1:
            raise ValueError(f"most must be at least 1, got {self.most}")


@dataclass(frozen=True)
class Way:
    """Some points of the frontier: one sampler on a kind of trajectory at several numbers of steps.

    options: the solver's own. trajectory, deepcache, skip: a list of them is tried, and the best at each number of steps
    counts. guidance: one weight or several, each a way of its own. negative: name of the class that guidance leads away from.
    clip, threshold: limits of the believed x_0; left out, an adopted teacher's own, and with clip false none.
    """

    sampler: str
    trajectory: Kind | list[Kind]
    steps: list[int] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)
    deepcache: CacheConfig | list[CacheConfig] | None = None
    skip: SkipConfig | list[SkipConfig] | None = None
    guidance: float | list[float] | None = None
    negative: str | None = None
    clip: float | Literal[False] | None = None
    threshold: Threshold | None = None

    def __post_init__(self):
        if self.sampler not in SOLVERS:
            raise ValueError(f"sampler {self.sampler!r} is unknown{_nearest(self.sampler, SOLVERS)}")
        if OWN in self.trajectories and (self.trajectories != [OWN] or self.steps):
            raise ValueError("trajectory own has steps of its own; leave steps and other trajectories out")
        if OWN not in self.trajectories and (not self.steps or min(self.steps) < 1):
            raise ValueError("steps must be a list of numbers of at least 1")
        if self.deepcache and self.solver.adaptive:
            raise ValueError(f"deepcache needs a sampler with a fixed number of calls, which {self.sampler} has not")
        if self.negative is not None and not 0 < len(self.negative) <= STUDENT:
            raise ValueError(
                f"negative must be the name of a class, at most {STUDENT} letters, got {_shown(self.negative)}"
            )
        if self.negative is not None and self.guidance is None:
            raise ValueError("negative is what guidance leads away from; give guidance too, or leave negative out")
        for steps in self.steps:
            _as_value_error(check_steps, self.solver, steps)
        self.recipes()  # which refuses limits that are none

    @property
    def solver(self) -> Solver:
        """With its options."""
        return _options(SOLVERS[self.sampler], self.options, f"options of {self.sampler}")

    @property
    def trajectories(self) -> list[str]:
        return _listed(self.trajectory)

    def recipes(self) -> list[Recipe]:
        """What is tried of it on each trajectory."""
        parts = itertools.product(_listed(self.deepcache), _listed(self.skip), _listed(self.guidance))
        return [Recipe(self.solver, *part, self.negative, self.clip, self.threshold) for part in parts]


@dataclass(frozen=True)
class Likelihood:
    """images: how many real images the bits per dimension of a way are averaged over; 0 for none. probes: Hutchinson's."""

    images: int
    probes: int
    seed: int

    def __post_init__(self):
        if self.images < 0 or self.probes < 1:
            raise ValueError("images must not be negative and probes at least 1")


@dataclass(frozen=True)
class Evaluate:
    """How many images, with which noise, and which ways to sample.

    teacher: ways for the teacher; the first way's largest number of steps is what fidelity compares with. anytime: ways for
    students that jump to images from any time; those that know velocities at any time are sampled as the teacher's first way
    says, and those with steps of their own on just these. students: by name, ways in place of all that.
    """

    images: int
    seed: int
    batch: int
    likelihood: Likelihood
    teacher: list[Way]
    anytime: list[Way]
    students: dict[str, list[Way]]

    def __post_init__(self):
        if self.images < 10 or self.batch < 1:
            raise ValueError("images must be at least 10 and batch at least 1")
        if not self.teacher:
            raise ValueError("teacher must name at least one way to sample: students are compared with it")


@dataclass(frozen=True)
class Publish:
    """The names in MLflow. tolerance: the recommended point is the one of fewest network calls whose Frechet distance is
    at most this many times the teacher's best, or the floor, what a perfect sampler is to expect, if that is more."""

    experiment: str
    model: str
    tolerance: float

    def __post_init__(self):
        if self.tolerance < 1:
            raise ValueError(f"tolerance must be at least 1, got {self.tolerance}")
        for key in ("experiment", "model"):
            name = getattr(self, key)
            if name != name.strip() or not name.isprintable() or not 0 < len(name) <= NAME:
                raise ValueError(f"{key} must be a name of 1 to {NAME} letters in one line, got {_shown(name)}")
        if set(self.model) & set("/:") or self.model in (".", ".."):
            raise ValueError(f"model must be a name without / and :, as MLflow asks, got {_shown(self.model)}")


@dataclass(frozen=True)
class Params:
    """All of params.yaml."""

    seed: int
    compute: fit.Compute
    data: DataConfig
    network: unet.Shape
    features: features.Config
    teacher: fit.Config | Adopt
    distill: dict[str, Distill]
    gamma: gamma.Config
    search: Search
    evaluate: Evaluate
    publish: Publish
    raw: dict[str, Any]


def read(path: Path = paths.PARAMS) -> Params:
    """Parses and checks the whole file; every fault in one Mistake, a line each."""
    return parse(load_yaml(path), str(path))


def parse(raw: dict[str, Any], whose: str) -> Params:
    """Checks what a file like params.yaml says; every fault in one Mistake, a line each, in the order of the file."""
    kinds = {field.name: field.type for field in fields(Params) if field.name != "raw"}
    faults: list[str] = []
    found = {key: _section(key, raw[key], kinds, faults) for key in raw}
    faults += [f"{key}: missing section" for key in kinds if key not in raw]
    if not faults:
        faults += bounds.of_machine(found)
        faults += bounds.of_ways(_ways(found["evaluate"]))
        _chains(found["distill"], faults)
    if not faults:
        _weights(found["distill"], found["network"].conditional, faults)
        if isinstance(found["teacher"], fit.Config):  # the section `network` says nothing of another one
            _branches(found["evaluate"], found["network"].skips, faults)
            _heads(found["distill"], found["network"].head, faults)
        _sampled(found, faults)
    if not faults:
        _guided(found, faults)
    if faults:
        raise Mistake("\n".join(f"{whose}: {fault}" for fault in _told(faults, raw)))
    return Params(**{key: found[key] for key in kinds}, raw=raw)


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
        faults.append(f"{key}: unknown section{_nearest(key, kinds)}")
        return None
    if key in ("distill", "teacher"):
        return (_distill if key == "distill" else _teacher)(value, faults)
    return _typed(kinds[key], value, key, faults)


def _told(faults: list[str], raw: dict[str, Any]) -> list[str]:
    """Each once, in the order of the file, and no key missing where a misspelt one stands for it."""
    misspelt = re.compile(r"(.*?)[^.]*: unknown (?:section|key); did you mean '(.+)'\?")
    known = [match for match in map(misspelt.fullmatch, faults) if match]
    echoes = {f"{match[1]}{match[2]}: missing{section}" for match in known for section in ("", " section")}
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
    """Where a fault stands: at the longest part of its path that the file has; after all else if it has none."""
    words = fault.partition(": ")[0].split(".")
    found = (places.get(".".join(words[:count])) for count in range(len(words), 0, -1))
    return next((place for place in found if place is not None), math.inf)


@contextlib.contextmanager
def _noting(faults: list[str], where: str = "") -> Iterator[None]:
    try:
        yield
    except Mistake as mistake:
        faults.append(f"{where}{mistake}")


def _teacher(raw: Any, faults: list[str]) -> fit.Config | Adopt | None:
    """A training, or where its network is."""
    given = set(raw) if isinstance(raw, dict) else set()
    numbers = sorted(given & set(_names(fit.Config)))
    if "folder" in given and numbers:
        faults.append(f"teacher: give folder or the numbers of a training, not both; leave out {', '.join(numbers)}")
        return None
    return _typed(Adopt if given and not numbers else fit.Config, raw, "teacher", faults)


def _distill(raw: Any, faults: list[str]) -> dict[str, Distill]:
    if not isinstance(raw, dict):
        faults.append("distill: must map names to students")
        return {}
    found = {}
    for name, line in raw.items():
        where = f"distill.{name}"
        if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or len(name) > STUDENT or name in (ROOT, "real"):
            faults.append(
                f"{where}: a student's name must be lower-case letters, digits and _, at most {STUDENT}, and not {ROOT!r} or "
                "'real'"
            )
        elif student := _student(name, line, where, faults):
            found[name] = student
    return found


def _student(name: str, line: Any, where: str, faults: list[str]) -> Distill | None:
    if not isinstance(line, dict):
        faults.append(f"{where}: must be a mapping with method, teacher and their numbers")
        return None
    missing = [key for key in ("method", "teacher") if not isinstance(line.get(key), str)]
    if missing:
        faults.extend(f"{where}.{key}: missing" for key in missing)
        return None
    if line["method"] not in methods.names():
        faults.append(f"{where}.method: {line['method']!r} is unknown{_nearest(line['method'], methods.names())}")
        return None
    kind = methods.load(line["method"])
    own, shared = _names(kind), _names(fit.Config)
    before = len(faults)
    for key in line:
        if key not in (known := ["method", "teacher", "guidance", "head", "dropout", *own, *shared]):
            faults.append(f"{where}.{key}: unknown key{_nearest(key, known)}")
    method = _typed(kind, {key: line[key] for key in own if key in line}, where, faults)
    fitting = _typed(fit.Config, {key: line[key] for key in shared if key in line}, where, faults)
    guidance = _range(line.get("guidance"), f"{where}.guidance", faults)
    if (head := line.get("head")) not in (None, "v"):
        faults.append(f"{where}.head: must be v, or left out for that of the network it starts from, got {head!r}")
    if not _share(dropout := line.get("dropout", 0.0)):
        faults.append(f"{where}.dropout: must be at least 0 and below 1, got {dropout!r}")
    if len(faults) > before:
        return None
    return Distill(name, line["teacher"], method, fitting, guidance, head, float(dropout))


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


def _chains(students: dict[str, Distill], faults: list[str]) -> None:
    """Every teacher exists, every chain begins at the root, and every method accepts its teacher."""
    known = [ROOT, *students]
    for name, student in students.items():
        if student.teacher not in known:
            faults.append(
                f"distill.{name}.teacher: no checkpoint {student.teacher!r}{_nearest(student.teacher, known)}"
            )
        elif _in_circle(name, students):
            faults.append(f"distill.{name}.teacher: the chain {student.teacher!r} comes from goes round in a circle")
        else:
            try:
                student.method.check(grid_of(mentor_of(name, students), students))
            except Mistake as mistake:
                faults.append(f"distill.{name}: {mistake}")


def _ways(evaluate: Evaluate) -> Iterator[tuple[str, str, Way]]:
    """(path, whose, way) of all there are; whose is a student's name, or the teacher's, or empty for `anytime`."""
    lists = {"teacher": (ROOT, evaluate.teacher), "anytime": ("", evaluate.anytime)}
    lists |= {f"students.{name}": (name, ways) for name, ways in evaluate.students.items()}
    for key, (whose, ways) in lists.items():
        for number, way in enumerate(ways):
            yield f"evaluate.{key}.{number}", whose, way


def _branches(evaluate: Evaluate, skips: int, faults: list[str]) -> None:
    """Every branch that a cached call takes is one of the network's."""
    for path, _, way in _ways(evaluate):
        for config in filter(None, _listed(way.deepcache)):
            with _noting(faults, f"{path}.deepcache.branch: "):
                deepcache.check(config, skips)


def _sampled(found: Mapping[str, Any], faults: list[str]) -> None:
    """Every trajectory will be there when it is asked for, and is one that the checkpoint is valid on."""
    evaluate, search, students = found["evaluate"], found["search"], found["distill"]
    if search.most > found["gamma"].steps:
        faults.append(f"search.most: {search.most} is more than gamma.steps, {found['gamma'].steps}; lower it")
    most = {"searched": (search.most, "search.most"), "fitted": (search.fitted.points, "search.fitted.points")}
    for name in evaluate.students:
        if name not in students:
            faults.append(f"evaluate.students.{name}: no student is called so{_nearest(name, students)}")
    for path, whose, way in _ways(evaluate):
        for kind in way.trajectories:
            limit, key = most.get(kind, (max(way.steps, default=0), ""))
            if way.steps and max(way.steps) > limit:
                faults.append(f"{path}.steps: {max(way.steps)} on the trajectory {kind}; {key} allows {limit}")
        if whose in (ROOT, "", *students):
            grid = grid_of(whose, students) if whose in students else None
            if grid is None and OWN in way.trajectories:
                faults.append(f"{path}.trajectory: own is for a student with steps of its own; name another")
            if grid is not None and OWN not in way.trajectories:
                faults.append(
                    f"{path}.trajectory: {whose} is valid only on its own {grid.steps} steps; say `trajectory: own`"
                )
            elif grid is not None:
                with _noting(faults, f"{path}.sampler: "):
                    check_grid(way.solver, grid, grid, Cosine())
        if isinstance(found["teacher"], fit.Config):  # one that we train has the cosine schedule
            with _noting(faults, f"{path}: "):
                _begins(way)


def ways_of(name: str, evaluate: Evaluate, students: Mapping[str, Distill]) -> list[tuple[str, Way]]:
    """How the checkpoint `name` is sampled, each way with its path."""
    if name == ROOT:
        return _numbered("evaluate.teacher", evaluate.teacher)
    if name in evaluate.students:
        return _numbered(f"evaluate.students.{name}", evaluate.students[name])
    method = students[name].method
    if grid_of(name, students):
        return [(f"distill.{name}", Way(method.sampler, OWN))]
    if method.is_velocity:
        return _numbered("evaluate.teacher", evaluate.teacher[:1])
    return _numbered("evaluate.anytime", evaluate.anytime)


def _numbered(path: str, ways: list[Way]) -> list[tuple[str, Way]]:
    return [(f"{path}.{number}", way) for number, way in enumerate(ways)]


def _guided(found: Mapping[str, Any], faults: list[str]) -> None:
    """Every checkpoint can be sampled with the guidance that its ways ask for, and at their times."""
    evaluate, students, conditional = found["evaluate"], found["distill"], found["network"].conditional
    for name in (ROOT, *students):
        known = guidance_of(name, students, conditional)
        for path, way in ways_of(name, evaluate, students):
            asked = known is not None or way.guidance is not None
            if asked and "fitted" in way.trajectories:
                faults.append(
                    f"{path}.trajectory: fitted times follow the teacher's path without guidance, and {name} is sampled "
                    "with guidance; name another trajectory"
                )
            if known is None and way.guidance is not None and not conditional:
                faults.append(f"{path}.guidance: there are no classes to guide to; set network.conditional to true")
            if known is not None:
                _weighed(name, path, way, known, faults)


def _weighed(name: str, path: str, way: Way, known: Guidance, faults: list[str]) -> None:
    if way.negative is not None:
        faults.append(f"{path}.negative: {name} learned to be led away from no class; leave it out")
    for weight in _listed(way.guidance):
        if weight is None and known.is_input:
            faults.append(
                f"{path}: {name} takes the guidance weight as an input; give evaluate.students.{name} ways with `guidance`"
            )
        elif weight is not None:
            with _noting(faults, f"{path}.guidance: {name}: "):
                known.check(weight)


def _begins(way: Way) -> None:
    """A Mistake for a solver that cannot begin at the first time of one of its trajectories."""
    for kind in set(way.trajectories) & set(TRAJECTORIES):
        if not (way.solver.adaptive or isinstance(way.solver, Analytic)):
            few = max(way.solver.least, min(*way.steps, SOME))  # where it begins does not depend on how many follow
            rehearse(way.solver, TRAJECTORIES[kind](few, Cosine()), Cosine())


def _heads(students: dict[str, Distill], head: str, faults: list[str]) -> None:
    """A network that says x_0 has no velocity at the data: only methods whose times keep off it can teach it."""
    for name, student in students.items():
        word = methods.word(student.method)
        asked = [name] if word == "denoising" else [name, mentor_of(name, students)]  # which learns from the data alone
        if not student.method.off_the_data and "x0" in [head_of(role, students, head) for role in asked]:
            faults.append(
                f"distill.{name}.method: {word} asks for velocities close to the data, where the head x0 has none; set "
                "network.head to v or both, or begin the chain with a line of method denoising and head v"
            )


def check_adopted(params: Params, skips: int | None, head: str) -> None:
    """A Mistake, a line each, for what is asked of a network from elsewhere that it has not. skips: how many, None for a
    network whose parts cannot be run alone."""
    faults: list[str] = []
    _heads(params.distill, head, faults)
    if skips is not None:
        _branches(params.evaluate, skips, faults)
    for path, _, way in _ways(params.evaluate) if skips is None else ():
        for key in ("deepcache", "skip"):
            if any(_listed(getattr(way, key))):
                faults.append(f"{path}.{key}: needs our own U-Net, which the teacher is not; leave it out")
    if faults:
        raise Mistake("\n".join(f"{paths.PARAMS}: {fault}" for fault in faults))


def _weights(students: dict[str, Distill], conditional: bool, faults: list[str]) -> None:
    """The guidance weights of every line are ones its teacher knows and its method can learn from."""
    for name, student in students.items():
        with _noting(faults):
            weights = guidance_of(name, students, conditional)
            with _noting(faults, f"distill.{name}: "):
                student.method.check_guidance(weights and (weights.low, weights.high))


def mentor_of(name: str, students: Mapping[str, Distill]) -> str:
    """Who teaches `name`, which starts as a copy of its line's `teacher`: that one, or if it only jumps to images, the
    nearest above it that knows velocities; for some methods the nearest that knows them at any time."""
    any_time, found = students[name].method.any_time_teacher, students[name].teacher
    while found != ROOT:
        if students[found].method.is_velocity and not (any_time and grid_of(found, students)):
            return found
        found = students[found].teacher
    return found


def grid_of(name: str, students: dict[str, Distill]) -> Trajectory | None:
    """The only trajectory the checkpoint `name` will be valid on; None for any."""
    return None if name == ROOT else students[name].method.grid


def head_of(name: str, students: Mapping[str, Distill], root: str) -> str:
    """What the network of the checkpoint `name` says, where the teacher's says `root`."""
    return root if name == ROOT else students[name].head or head_of(students[name].teacher, students, root)


def guidance_of(name: str, students: Mapping[str, Distill], conditional: bool) -> Guidance | None:
    """The weights that the checkpoint `name` is for: its own line's, or else its teacher's. None for no guidance.

    A Mistake for guidance without classes, or for weights that its teacher was not trained for.
    """
    if name == ROOT:
        return None
    line = students[name]
    above = guidance_of(line.teacher, students, conditional)
    if line.guidance is None:
        return above
    if not conditional:
        raise Mistake(
            f"distill.{name}.guidance: the teacher knows no classes to guide to; set network.conditional to true"
        )
    own = Guidance(*line.guidance)
    if above is not None:
        for weight in line.guidance:
            try:
                above.check(weight)
            except Mistake as mistake:
                raise Mistake(f"distill.{name}.guidance: its teacher {line.teacher!r}: {mistake}") from None
    return own


def _in_circle(name: str, students: dict[str, Distill]) -> bool:
    seen = set()
    while name in students:
        if name in seen:
            return True
        seen.add(name)
        name = students[name].teacher
    return False


def _shown(text: str) -> str:
    """In quotes, in one line, and cut where it is long."""
    return repr(text if len(text) <= STUDENT else f"{text[:STUDENT]}...")


def _as_value_error(check: Callable[..., None], *arguments: Any) -> None:
    """What a dataclass may raise while it is read, so that the fault gets its path."""
    try:
        check(*arguments)
    except Mistake as mistake:
        raise ValueError(str(mistake)) from None


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _options(kind: type[Solver], given: dict[str, Any], where: str) -> Solver:
    faults: list[str] = []
    made = _typed(kind, given, where, faults)
    if faults:
        raise ValueError("; ".join(faults))
    return made


@functools.cache
def _adapter(kind: Any) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


KIND = re.compile(r"float|int|bool|str|none|(list|dict|tuple)\[.*\]")
"""How pydantic writes one."""


def _typed(kind: Any, section: Any, where: str, faults: list[str]) -> Any:
    from pydantic import ValidationError

    try:
        return _adapter(kind).validate_json(json.dumps(section), strict=True, extra="forbid")
    except ValidationError as error:
        for fault in _merged(error.errors(include_url=False)):
            faults.append(_line(kind, where, fault))
    return None


def _merged(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One fault for each value: pydantic names each kind that a value of several kinds might have been as a key of it."""
    merged: dict[tuple[int | str, ...], dict[str, Any]] = {}
    for fault in found:
        place = tuple(part for part in fault["loc"] if not KIND.fullmatch(str(part)))
        if place in merged and place != fault["loc"]:
            merged[place]["msg"] += f", or: {fault['msg']}"
        else:
            merged[place] = {**fault, "loc": place}
    return list(merged.values())


def _line(kind: Any, where: str, fault: dict[str, Any]) -> str:
    path = ".".join([where, *(str(part) for part in fault["loc"])])
    if fault["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"{path}: unknown key{_nearest(str(fault['loc'][-1]), _names(kind))}"
    if fault["type"] in ("missing", "missing_argument", "missing_keyword_only_argument"):
        return f"{path}: missing"
    given = json.dumps(fault["input"]) if not isinstance(fault["input"], dict) else ""
    message = fault["msg"].removeprefix("Value error, ")
    return f"{path}: {message}" + (f", got {given}" if given and given not in message else "")


def _names(kind: Any) -> list[str]:
    return [field.name for field in fields(kind)] if hasattr(kind, "__dataclass_fields__") else []


def _nearest(word: Any, known: Any) -> str:
    near = difflib.get_close_matches(str(word), list(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}" if known else ""
