"""The classes that the files of a package hold, for registries to which adding a file adds a class."""

import importlib
import pkgutil
from types import ModuleType


def of_package(package: ModuleType, parent: type) -> list[type]:
    """Those that derive from `parent` and are defined in one of its files, not imported there."""
    modules = [
        importlib.import_module(f"{package.__name__}.{each.name}") for each in pkgutil.iter_modules(package.__path__)
    ]
    return [
        kind
        for module in modules
        for kind in vars(module).values()
        if isinstance(kind, type) and issubclass(kind, parent) and kind.__module__ == module.__name__
    ]
