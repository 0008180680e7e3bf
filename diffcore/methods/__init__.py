"""One file for each way to train; its name is the word after `method:` in params.yaml. Adding a file adds the method and
its tests."""

import abc
import importlib
import pkgutil
from dataclasses import dataclass

from torch import nn

from diffcore.core.errors import UserError
from diffcore.core.rng import Draw
from diffcore.core.shapes import PerSample, Sample
from diffcore.denoisers.condition import Condition
from diffcore.denoisers.denoiser import Denoiser
from diffcore.noise.trajectory import Trajectory


@dataclass(frozen=True)
class Roles:
    """Who takes part in a loss.

    student: the network in training.
    teacher: the frozen teacher, None for a method that learns from data alone.
    target: what the student should agree with: itself without gradient, or its EMA (`target_decay`).
    critic: the method's second network, None for a method without one. condition: what the denoisers were given.
    """

    student: Denoiser
    teacher: Denoiser | None
    target: Denoiser
    critic: nn.Module | None = None
    condition: Condition | None = None

    def with_condition(self, condition: Condition) -> "Roles":
        """The same for a batch whose classes and guidance weights are known."""
        student, teacher, target = (
            role and role.with_condition(condition) for role in (self.student, self.teacher, self.target)
        )
        return Roles(student, teacher, target, self.critic, condition)


@dataclass(frozen=True)
class CriticTraining:
    """updates: of the critic for each one of the student. lr: constant. betas: AdamW's."""

    updates: int
    lr: float
    betas: tuple[float, float] = (0.0, 0.99)


class Method(abc.ABC):
    """How a student is trained: a frozen dataclass whose fields are the method's own keys in params.yaml.

    sampler: the solver its students are sampled with, a word of SOLVERS; the v of `multistep_consistency`, which jumps to
    images, is nobody's velocity. any_time_teacher: who teaches it is the nearest one above that is valid at any time.
    off_the_data: it asks nobody for a velocity closer to the data than one of its steps, so that networks of parameterization
    x0 can take part. grid: the only trajectory that its student is valid
    on, None for any. asks_teacher: whether its loss asks a teacher; teacher_grid: the trajectory on which that must be
    valid, None for any time. target_decay: above 0, `roles.target` is an EMA of the student with this decay. one_graph:
    whether its loss is the same graph of tensors all through a training, with no look at the progress, no fork of the draw
    and no derivative in it, so that it can be compiled whole. two_times: whether its students are told where a hop lands, see
    `Denoiser.toward`. needs_images: whether its loss looks at x0; one that does not can train on texts alone.
    """

    sampler: str = "ddim"
    any_time_teacher: bool = False
    off_the_data: bool = False
    grid: Trajectory | None = None
    asks_teacher: bool = True
    teacher_grid: Trajectory | None = None
    target_decay: float = 0.0
    one_graph: bool = False
    two_times: bool = False
    needs_images: bool = True

    @abc.abstractmethod
    def loss(self, roles: Roles, x0: Sample, draw: Draw, progress: float) -> PerSample:
        """[b] float32, one number for each sample: a pure function of its arguments.

        The denoisers of the roles know the batch's classes and guidance weights already. progress: the fraction of the
        training done, in [0, 1).
        """

    @property
    @abc.abstractmethod
    def network_calls(self) -> float:
        """Forward calls of the network for each training image; a backward pass counts 2."""

    def check(self, teacher: Trajectory | None) -> None:
        """Raises UserError if a teacher that is valid on this grid alone (None: at any time) cannot teach it."""
        if teacher is None or not self.asks_teacher or teacher == self.teacher_grid:
            return
        if self.teacher_grid is not None:
            raise UserError(
                f"steps {self.steps} needs a teacher of {self.teacher_grid.steps} steps or one valid at any time, "
                f"but its teacher has {teacher.steps}; {self.advice(teacher)}"
            )
        raise UserError(
            f"{word(self)} needs a teacher valid at any time, but this one is valid only on its own {teacher.steps} steps; "
            f"{self.advice(teacher)}"
        )

    def advice(self, teacher: Trajectory) -> str:
        """What to do about a teacher that is valid on this grid alone and cannot teach it."""
        return "name the teacher it was distilled from" if self.teacher_grid is None else "name another teacher"

    def check_guidance(self, weights: tuple[float, float] | None) -> None:
        """Raises UserError if it cannot learn these guidance weights, (low, high) or None; any are fine unless it says so."""
        return

    def critic(self, roles: Roles, seed: int) -> nn.Module | None:
        """A second network that is trained beside the student, `roles.critic`; None for a method without one."""
        return None

    @property
    def is_velocity(self) -> bool:
        """Whether the v of its students is a velocity, which others may learn from where the student is valid."""
        return self.sampler != "multistep_consistency"


class WithCritic(Method):
    """A method that can have a critic, by its options."""

    @property
    @abc.abstractmethod
    def critic_training(self) -> CriticTraining:
        """How often for each update of the student, and how fast."""

    @abc.abstractmethod
    def critic_loss(self, roles: Roles, x0: Sample, draw: Draw, progress: float) -> PerSample:
        """[b] float32, what the critic learns; nothing else gets its gradient."""


def names() -> list[str]:
    """The known methods, in alphabetical order."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.ispkg)


def load(name: str) -> type[Method]:
    """The method of this name; an unknown one is a UserError that lists the known ones."""
    if name not in names():
        raise UserError(f"method {name!r} is unknown; known: {', '.join(names())}")
    module = importlib.import_module(f"{__name__}.{name}")
    return next(
        kind
        for kind in vars(module).values()
        if isinstance(kind, type) and kind.__module__ == module.__name__ and issubclass(kind, Method)
    )


def word(method: type[Method] | Method) -> str:
    """The name of a method's module."""
    return method.__module__.rpartition(".")[2]
