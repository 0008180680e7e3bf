"""What a stage is started in: the interpreter, folders that may hide Python's own modules from it, the folder it saves in."""

import os
import sys

from diffcore.core.errors import UserError


def check() -> None:
    """A UserError for a PYTHONPATH that puts other modules in the place of Python's own, and for no place to save in."""
    store = os.environ.get("DISTILL_RESUME")
    if store and not (os.path.isabs(store) and os.path.isdir(store)):
        raise UserError(f"DISTILL_RESUME is {store}, no folder by its whole path on this host; mount it, or unset it")
    for folder in filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)):
        for name in _entries(folder):
            word, _, ending = name.partition(".")
            if word in sys.stdlib_module_names and (ending == "py" or not ending):
                place = os.path.join(folder, name)
                raise UserError(f"PYTHONPATH: {place} hides Python's own {word}; rename it, or leave {folder} out")


def lacking(error: ImportError) -> str:
    """What to say where a package is missing, broken or another one than meant."""
    if isinstance(error, ModuleNotFoundError):
        return f"{sys.executable} has no {error.name}; run make setup, or name a Python that has it in DISTILL_PYTHON"
    place = f" ({error.path})" if error.path else ""
    return (
        f"{' '.join(str(error).split())}{place}; run make setup, and look at PYTHONPATH for other modules of that name"
    )


def _entries(folder: str) -> list[str]:
    """Modules and packages in it; none where it cannot be listed."""
    try:
        return sorted(
            name for name in os.listdir(folder) if name.endswith(".py") or _holds_code(os.path.join(folder, name))
        )
    except OSError:
        return []


def _holds_code(folder: str) -> bool:
    return os.path.isfile(os.path.join(folder, "__init__.py"))
