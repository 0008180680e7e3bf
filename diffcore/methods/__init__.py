"""One file for each way to train; its name is the word after `method:` in params.yaml.

A method is a module with
    Config                                            a frozen dataclass: the method's own keys in params.yaml
    loss(config, roles, x0, draw, progress)           [b] float32, one number per sample: a pure function of its arguments
    grid(config) -> Trajectory | None                 the only trajectory its student is valid on, None for any
    network_calls(config) -> float                    forward calls of the network per training image (backward counts 2)
    SOLVER                                            the solver its students are sampled with, a word of SOLVERS; one of
                                                      `renoise` jumps to images, and its v is nobody's velocity
and, where it needs them,
    check(config, teacher)                            raises Mistake if a teacher with this grid cannot teach it
    check_guidance(config, weights)                   raises Mistake if it cannot learn these weights, (low, high) or None
    target_decay(config) -> float                     keeps `roles.target` as an EMA of the student with this decay
    ANY_TIME = True                                   its teacher is the nearest one above that is valid at any time
    critic(config, roles, seed) -> nn.Module | None   a second network that is trained beside the student: `roles.critic`
    critic_loss(config, roles, x0, draw, progress)    [b] float32, what the critic learns; nothing else gets its gradient
    critic_training(config) -> Critic                 how often for each update of the student, and how fast

The denoisers of the roles already know the batch's classes and guidance weights. progress is the fraction of the training
done, in [0, 1). Adding a file adds the method and its tests.
"""

import importlib
import pkgutil
from dataclasses import dataclass
from types import ModuleType

from torch import nn

from diffcore.core.mistake import Mistake
from diffcore.denoisers.denoiser import Condition, Denoiser

PARTS = {"distance", "discriminator"}
"""What several methods are made of."""


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

    def given(self, condition: Condition) -> "Roles":
        """The same for a batch whose classes and guidance weights are known."""
        student, teacher, target = (
            role and role.given(condition) for role in (self.student, self.teacher, self.target)
        )
        return Roles(student, teacher, target, self.critic, condition)


@dataclass(frozen=True)
class Critic:
    """updates: of the critic for each one of the student. lr: constant. betas: AdamW's."""

    updates: int
    lr: float
    betas: tuple[float, float] = (0.0, 0.99)


def names() -> list[str]:
    """The known methods, in alphabetical order."""
    return sorted({module.name for module in pkgutil.iter_modules(__path__)} - PARTS)


def load(name: str) -> ModuleType:
    """The module of one method; an unknown name is a Mistake that lists the known ones."""
    if name not in names():
        raise Mistake(f"method {name!r} is unknown; known: {', '.join(names())}")
    return importlib.import_module(f"{__name__}.{name}")


def teaches(method: ModuleType) -> bool:
    """Whether the v of its students is a velocity, which others may learn from where the student is valid."""
    return method.SOLVER != "renoise"


def word(method: ModuleType) -> str:
    """The name of a method's module."""
    return method.__name__.rpartition(".")[2]
