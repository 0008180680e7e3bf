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
    arguments = sys.argv[1:]
    explaining = {"--help", "-h", "--install-completion", "--show-completion"}
    explained = COMPLETING in os.environ or explaining & set(arguments)
    if not explained and _whole("."):
        return command.end(command.main(arguments, _replaced))
    return command.end(command.main(arguments, ask if explained else _refused))


def ask(arguments: list[str]) -> "Verb | int":
    """The verb that the arguments name, of the stages' or the servers'; an exit code where that was help."""
    from console.verbs import app
    from tasks.verbs import parse

    return parse(arguments, app)


def _replaced(arguments: list[str]) -> "Verb | int":
    from diffcore.core.errors import UserError

    root = os.path.isfile(ROOF)
    if not root and arguments[:1] and arguments[0] in SERVICES:
        raise UserError(f"this is a workspace, and the servers are the project's: call `distill {arguments[0]}` there")
    environment = {"DISTILL_PYTHON": sys.executable, **os.environ}
    environment.pop("PYTHONSAFEPATH", None)  # with it the folder's code would not be found before the installed one
    os.execve(sys.executable, [sys.executable, "-m", "console" if root else "tasks", *arguments], environment)


def _refused(arguments: list[str]) -> "Verb | int":
    from diffcore.core.errors import UserError

    verb = ask(arguments)
    if isinstance(verb, int):
        return verb
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
    folders = []
    while (folder := os.path.dirname(folder)) not in folders:
        folders.append(folder)
    return folders
