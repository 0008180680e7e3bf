"""The sections of params.yaml that are no dataclass of diffcore's."""

import dataclasses
import itertools
from dataclasses import dataclass, field
from typing import Any, Literal

from diffcore import lineage, nets
from diffcore.checkpoints.adopted import SILENT, Stated
from diffcore.denoisers.reading import Reading
from diffcore.methods import Method
from diffcore.metrics import judge_file
from diffcore.metrics.judge_file import JudgeFile
from diffcore.metrics.order import JUDGES
from diffcore.sampling.deepcache import Config as CacheConfig
from diffcore.sampling.headroom import USUAL
from diffcore.sampling.recipe import Options, Recipe
from diffcore.sampling.sampler import check_steps
from diffcore.sampling.skip_tuning import Config as SkipConfig
from diffcore.sampling.solver import Solver
from diffcore.sampling.solvers import SOLVERS
from diffcore.search.fitted import Config as FittedConfig
from diffcore.training.config import Training
from diffcore.watching.config import Watch
from tasks.typed import LETTERS, as_value_error, listed, nearest, quoted, typed

Kind = Literal["uniform", "quadratic", "uniform_logsnr", "karras", "least_cost", "fitted", "own"]


ROOT = "teacher"
"""The line of `teachers` that all else is held against: Gamma and least-cost times are its, and fidelity compares with it."""

OWN = "own"
"""A student's own steps, the only ones it is valid on."""


NAME = 200
"""Letters of a name in MLflow, whose columns hold 256."""


@dataclass(frozen=True, kw_only=True)
class Teacher(lineage.Root):
    """One line of `teachers` that is trained on the images, from new weights. reading: how its network is fed and read.
    watch, seeds: as of `Distill`."""

    name: str
    method: Method
    fit: Training
    network: nets.Shape
    reading: Reading
    parameterization: str = field(init=False)
    watch: Watch | None = None
    seeds: int = 1

    def __post_init__(self):
        object.__setattr__(self, "parameterization", self.reading.parameterization)


@dataclass(frozen=True, kw_only=True)
class Adopted(lineage.Root):
    """One line of `teachers` that says `from: PATH`: a network that is trained already, a folder in diffusers' format or a
    file. stated: what the line says of it that its files do not."""

    name: str
    folder: str
    stated: Stated = SILENT


@dataclass(frozen=True, kw_only=True)
class Distill(lineage.Student):
    """One line of `distill`: a student, its method, whose weights it starts from, and who teaches it.

    dropout: of its network in training, whatever its teacher's was; consistency methods give the student and its target one
    mask. network: what differs from the network of `init`; layers that fit start with its weights, others with new ones.
    watch: how the training is looked at, None for not at all. seeds: how often it is trained, each time with other random
    numbers; the first training is the line's, the others say how far trainings lie apart.
    """

    name: str
    fit: Training
    dropout: float = 0.0
    network: dict[str, Any] | None = None
    watch: Watch | None = None
    seeds: int = 1


@dataclass(frozen=True)
class Search:
    """estimator: of the covariance that costs and variances are made of. most: steps to search for. repair: make the estimate
    monotone first, which the fast search needs. decoder: let the last look be at any time, the decoder's cost counted; false
    for paths as published, which end at 1/N."""

    estimator: Literal["norm", "residual"]
    most: int
    repair: bool
    decoder: bool

    def __post_init__(self):
        if self.most < 1:
            raise ValueError(f"most must be at least 1, got {self.most}")


@dataclass(frozen=True)
class Sampling(Options):
    """Some points of the frontier: one sampler on a kind of trajectory at several numbers of steps.

    options: the solver's own. trajectory, deepcache, skip: a list of them is tried, and the best at each number of steps
    counts. guidance: one weight or several, each a sampling of its own. negative: the class, by name, or the text that
    guidance leads away from. clip, threshold: limits of the believed x_0; left out, an adopted teacher's own, and with clip
    false none.
    """

    sampler: str
    trajectory: Kind | list[Kind]
    steps: list[int] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)
    deepcache: CacheConfig | list[CacheConfig] | None = None
    skip: SkipConfig | list[SkipConfig] | None = None
    guidance: float | list[float] | None = None
    negative: str | None = field(default=None, kw_only=True)  # in a recipe it may be a number too

    def __post_init__(self):
        if self.sampler not in SOLVERS:
            raise ValueError(f"sampler {self.sampler!r} is unknown{nearest(self.sampler, SOLVERS)}")
        if OWN in self.trajectories and (self.trajectories != [OWN] or self.steps):
            raise ValueError("trajectory own has steps of its own; leave steps and other trajectories out")
        if OWN not in self.trajectories and (not self.steps or min(self.steps) < 1):
            raise ValueError("steps must be a list of numbers of at least 1")
        if self.deepcache and self.solver.adaptive:
            raise ValueError(f"deepcache needs a sampler with a fixed number of calls, which {self.sampler} has not")
        if self.negative is not None and not 0 < len(self.negative) <= LETTERS:
            raise ValueError(
                f"negative must be the name of a class or a text, at most {LETTERS} letters, got {quoted(self.negative)}"
            )
        if self.negative is not None and self.guidance is None:
            raise ValueError("negative is what guidance leads away from; give guidance too, or leave negative out")
        for steps in self.steps:
            as_value_error(check_steps, self.solver, steps)
        self.recipes()  # which refuses limits that are none

    @property
    def solver(self) -> Solver:
        """With its options."""
        return _options(SOLVERS[self.sampler], self.options, f"options of {self.sampler}")

    @property
    def trajectories(self) -> list[str]:
        return listed(self.trajectory)

    def recipes(self) -> list[Recipe]:
        """What is tried of it on each trajectory."""
        parts = itertools.product(listed(self.deepcache), listed(self.skip), listed(self.guidance))
        once = {key.name: getattr(self, key.name) for key in dataclasses.fields(Options)}
        return [Recipe(self.solver, *part, **once) for part in parts]


@dataclass(frozen=True)
class Likelihood:
    """images: how many real images the bits per dimension of a sampling are averaged over; 0 for none. probes:
    Hutchinson's."""

    images: int
    probes: int
    seed: int

    def __post_init__(self):
        if self.images < 0 or self.probes < 1:
            raise ValueError("images must not be negative and probes at least 1")


@dataclass(frozen=True)
class Evaluate:
    """How many images, with which noise, and which samplings.

    batch: samples that are drawn together, or auto: as many as a GPU has memory for, USUAL on a CPU. precision: of the
    networks' calls while samples are drawn; auto is bf16 on a GPU where that moves no metric by more than its error, see
    diffcore.metrics.drawing, and float32 elsewhere. fitted: how times are fitted to the teacher's own path.
    teacher: samplings for the teacher; the first sampling's largest number of steps is what fidelity compares with.
    any_time_students: samplings for students that jump to images from any time; those that know velocities at any time are
    sampled as the teacher's first sampling says, and those with steps of their own on just these. students: by name,
    samplings in place of all that. judges: feature networks that were trained elsewhere, by name the file of weights or a
    `JudgeFile`.
    """

    images: int
    seed: int
    batch: Literal["auto"] | int
    likelihood: Likelihood
    fitted: FittedConfig
    teacher: list[Sampling]
    any_time_students: list[Sampling]
    students: dict[str, list[Sampling]]
    precision: Literal["auto", "float32", "bf16"] = "auto"
    judges: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        for name, file in self.judge_files.items():
            try:
                judge_file.check(name, file)
            except ValueError as error:
                raise ValueError(f"judges.{name}: {error}") from None
        if self.images < 10 or (self.batch != "auto" and self.batch < 1):
            raise ValueError("images must be at least 10 and batch at least 1 or auto")
        if not self.teacher:
            raise ValueError("teacher must name at least one sampling: students are compared with it")

    @property
    def judge_files(self) -> dict[str, JudgeFile]:
        """The judges by name; a path alone is a file with nothing else to say of it."""
        return {name: _judge_file(name, value) for name, value in self.judges.items()}

    @property
    def usual_batch(self) -> int:
        """Of what is computed in batches of a number that no GPU's memory decides."""
        return USUAL if self.batch == "auto" else self.batch


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
                raise ValueError(f"{key} must be a name of 1 to {NAME} letters in one line, got {quoted(name)}")
        if set(self.model) & set("/:") or self.model in (".", ".."):
            raise ValueError(f"model must be a name without / and :, as MLflow asks, got {quoted(self.model)}")


def _judge_file(name: str, value: Any) -> JudgeFile:
    if name not in JUDGES and isinstance(value, str) and not judge_file.is_program(value):
        raise ValueError(f"judges: {quoted(name)} is none{nearest(name, JUDGES)}")
    return _of(JudgeFile, {"file": value} if isinstance(value, str) else value, f"judges.{name}")


def _options(kind: type[Solver], options: dict[str, Any], where: str) -> Solver:
    return _of(kind, options, where)


def _of(kind: Any, value: Any, where: str) -> Any:
    faults: list[str] = []
    outcome = typed(kind, value, where, faults)
    if faults:
        raise ValueError("; ".join(faults))
    return outcome
