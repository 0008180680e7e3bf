"""Feature networks that others judge by too, one file each; its name is the judge's in params.yaml. Adding a file adds it.

A judge is weights in a local file that the user names, or a folder of it and its config: nothing is downloaded, and no code
in the file is executed. A judge of any other name is a program that the user trusts, see diffcore.metrics.program.
"""

import importlib
import re
from pathlib import Path

from diffcore.core import disk
from diffcore.core.errors import UserError
from diffcore.metrics import judge_file, order, program
from diffcore.metrics.judge import Judge
from diffcore.metrics.judge_file import JudgeFile

IN_NAME = re.compile(r"-([0-9a-f]{8,64})$")
"""The first digits of its sha256, at the end of a file's name, as torch's hub writes it; a date has no letter."""


def load(name: str, file: JudgeFile) -> Judge:
    """The judge `name` with what its file holds; a UserError for one that holds none of it, or is not the one meant."""
    try:
        path = judge_file.path(name, file)
    except ValueError as error:
        raise UserError(f"evaluate.judges.{name}: {error}") from None
    sha256 = disk.sha256(path)
    _check_digest(name, path, sha256, file.sha256)
    if name not in order.JUDGES:
        return Judge(name, program.load(path, file), sha256, program.words(file))
    module = importlib.import_module(f"{__name__}.{name}")
    network = module.load(path)
    return Judge(name, network, sha256, network.preprocessing)


def _check_digest(name: str, path: Path, sha256: str, wanted: str | None) -> None:
    in_name = IN_NAME.search(path.stem)
    digits = wanted or (in_name[1] if in_name and not in_name[1].isdecimal() else "")
    if not sha256.startswith(digits):
        who = "params.yaml" if wanted else "its name"
        raise UserError(
            f"evaluate.judges.{name}: {path} has the sha256 {sha256[: max(12, len(digits))]} and not {digits}, as {who} "
            "says; download it again"
        )
