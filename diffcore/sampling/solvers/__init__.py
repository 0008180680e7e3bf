"""The known solvers, by their words in params.yaml. A new one is a class with a `word` in a file here: the tests find it."""

import importlib
import pkgutil
from collections.abc import Iterator

from diffcore.sampling.solver import Solver


def _solver_classes() -> Iterator[type[Solver]]:
    """Every class of this package that has a word of its own; those without one are what others are made of."""
    for name in sorted(module.name for module in pkgutil.iter_modules(__path__)):
        module = importlib.import_module(f"{__name__}.{name}")
        for kind in vars(module).values():
            if isinstance(kind, type) and kind.__module__ == module.__name__ and vars(kind).get("word"):
                yield kind


SOLVERS: dict[str, type[Solver]] = {kind.word: kind for kind in _solver_classes()}
