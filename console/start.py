"""Whose code the command `distill` runs: that of the folder in which it is given.

A script in an environment's bin/ would run the code that is installed, and a workspace has a copy of its own. So the process
is replaced by one that begins in the folder, as `./stage` does. Of a folder that is no project nothing is run. Help and
completion run nothing of any folder.
"""

import os
import sys

from tasks import command

TYPE_CHECKING = False  # typing's own would be imported before the surroundings are checked
if TYPE_CHECKING:
    from tasks.verbs import Verb

MARKS = ("dvc.yaml", "stage", "tasks/__main__.py", "diffcore/__init__.py")
"""What a project's root and every workspace hold."""

ROOF = "console/__main__.py"
"""What only a project's root holds."""

SERVICES = ("up", "down", "status")
COMPLETING = "_DISTILL_COMPLETE"
"""The variable with which the shell's completion asks."""


def main() -> int:
    """The script `distill`. The exit code, if the process is not replaced."""
    words = sys.argv[1:]
    explained = COMPLETING in os.environ or {"--help", "-h", "--install-completion", "--show-completion"} & set(words)
    if not explained and _whole("."):
        return command.end(command.main(words, _replaced))
    return command.end(command.main(words, ask if explained else _refused))


def ask(words: list[str]) -> "Verb | int":
    """What the words ask for, of all that there is under the roof."""
    from console.verbs import app
    from tasks.verbs import parse

    return parse(words, app)


def _replaced(words: list[str]) -> "Verb | int":
    from diffcore.core.errors import UserError

    root = os.path.isfile(ROOF)
    if not root and words[:1] and words[0] in SERVICES:
        raise UserError(f"this is a workspace, and the servers are the project's: call `distill {words[0]}` there")
    environment = {"DISTILL_PYTHON": sys.executable, **os.environ}
    environment.pop("PYTHONSAFEPATH", None)  # with it the folder's code would not be found before the installed one
    os.execve(sys.executable, [sys.executable, "-m", "console" if root else "tasks", *words], environment)


def _refused(words: list[str]) -> "Verb | int":
    from diffcore.core.errors import UserError

    found = ask(words)
    if isinstance(found, int):
        return found
    above = next(filter(_whole, _above()), None)
    remedy = f"cd {above}" if above else "cd to the project or to a workspace"
    raise UserError(f"there is no pipeline in this folder (no {_missing('.')}); {remedy}")


def _whole(folder: str) -> bool:
    return _missing(folder) is None


def _missing(folder: str) -> str | None:
    return next((mark for mark in MARKS if not os.path.isfile(os.path.join(folder, mark))), None)


def _above() -> list[str]:
    try:
        folder = os.getcwd()
    except OSError:  # it was removed
        return []
    found = []
    while (folder := os.path.dirname(folder)) not in found:
        found.append(folder)
    return found
