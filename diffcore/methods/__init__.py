"""One file for each way to train; its name is the word after `method:` in params.yaml.

A method is a module with
    Config                                            a frozen dataclass: the method's own keys in params.yaml
    loss(config, roles, x0, draw, progress)           [b] float32, one number per sample: a pure function of its arguments
    grid(config) -> Trajectory | None                 the only trajectory its student is valid on, None for any
    network_calls(config) -> float                    forward calls of the network per training image (backward counts 2)
    SOLVER                                            the solver its students are sampled with, a word of solver.SOLVERS
and, where it needs them,
    check(config, teacher)                            raises Mistake if a teacher with this grid cannot teach it
    target_decay(config) -> float                     keeps `roles.target` as an EMA of the student with this decay

progress is the fraction of the training done, in [0, 1). Adding a file adds the method and its tests.
"""

import importlib
import pkgutil
from dataclasses import dataclass
from types import ModuleType

from diffcore.denoiser import Denoiser
from diffcore.mistake import Mistake


@dataclass(frozen=True)
class Roles:
    """Who takes part in a loss.

    student: the network in training.
    teacher: the frozen teacher, None for a method that learns from data alone.
    target: what the student should agree with: itself without gradient, or its EMA (`target_decay`).
    """

    student: Denoiser
    teacher: Denoiser | None
    target: Denoiser


def names() -> list[str]:
    """The known methods, in alphabetical order."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def load(name: str) -> ModuleType:
    """The module of one method; an unknown name is a Mistake that lists the known ones."""
    if name not in names():
        raise Mistake(f"method {name!r} is unknown; known: {', '.join(names())}")
    return importlib.import_module(f"{__name__}.{name}")


def word(method: ModuleType) -> str:
    """The name of a method's module."""
    return method.__name__.rpartition(".")[2]
