"""Feature networks that others judge by too, one file each; its name is the judge's in params.yaml. Adding a file adds it.

A judge is weights in a local file that the user names: nothing is downloaded, and no code in the file is executed.
"""

import importlib
from pathlib import Path

from diffcore.core import disk
from diffcore.core.errors import UserError
from diffcore.metrics.judge import Judge


def load(name: str, path: Path) -> Judge:
    """The judge `name` with the weights in the file `path`; a UserError for a file that holds none of it."""
    if not path.is_file():
        raise UserError(
            f"evaluate.judges.{name}: there is no file {path}; download the weights yourself and name them here"
        )
    module = importlib.import_module(f"{__name__}.{name}")
    return Judge(name, module.load(path), disk.sha256(path), module.PREPROCESSING)
