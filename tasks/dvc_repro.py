"""`dvc repro`, which ends as our own commands do: `python -m tasks.dvc_repro [--single-item STAGE]`.

DVC tells what the machine refused it (a full disk, a forbidden folder) in its own words, offers its own help, and exits with
255, as for any bug; so it does when a stage refused something with 2. Here the first is one line with the remedy, and both
exit with 2. A damaged entry of DVC's run cache, which it stumbles over and could do without, is removed. Whatever else
happens stays DVC's.
"""

import logging
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from diffcore.core.errors import MISTAKE
from tasks import dvc_files
from tasks.progress import log

LOGGERS = ("dvc", "dvc_data", "dvc_objects")
CODE = re.compile(r"exited with (-?\d+)$")
"""DVC keeps a stage's exit code in the words of its error alone."""


class _Refused(Exception):
    """One line: what the machine refused."""


class _Listener(logging.Filter):
    """Hears each error before DVC tells it. `codes`: those of stages that failed."""

    def __init__(self):
        super().__init__()
        self.line: str | None = None
        self.codes: set[int] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        from tasks import faults

        error = record.exc_info[1] if record.exc_info and record.levelno >= logging.ERROR else None
        line = None if error is None else faults.describe(error)
        self.line = self.line or line
        if error is not None:
            self.codes |= {int(match[1]) for cause in _causes(error) if (match := CODE.search(str(cause)))}
        if self.line is not None and record.name == "dvc.cli":  # its last word, and the end of what it does
            raise _Refused(self.line)
        return line is None


def main(arguments: Sequence[str]) -> int:
    """DVC's exit code, or 2 for what is the user's to mend."""
    from dvc.cli import main as dvc

    listener = _Listener()
    for handler in {handler for name in LOGGERS for handler in logging.getLogger(name).handlers}:
        handler.addFilter(listener)
    command = ["--wait-for-lock", "repro", *arguments]
    try:
        code = dvc(command)
        if code and not listener.codes and _removed():
            code = dvc(command)
    except _Refused as refused:
        print(f"error: {refused}", file=sys.stderr)
        return MISTAKE
    return MISTAKE if code and listener.codes == {MISTAKE} else code


def _removed() -> int:
    """How many entries of the run cache were not what their names say, and are gone. DVC names each by its digest."""
    damaged = [path for path in dvc_files.RUNS.glob("??/*/*") if path.is_file() and not _whole(path)]
    for path in damaged:
        path.unlink()
    if damaged:
        dvc_files.remove_empty_notes()
        log(f"{len(damaged)} damaged of DVC's notes on earlier runs ({damaged[0]}) removed: those stages run again")
    return len(damaged)


def _whole(path: Path) -> bool:
    from dvc.utils import dict_sha256
    from dvc.utils.serialize import ParseError, load_yaml

    try:
        return dict_sha256(load_yaml(path), exclude=["size", "nfiles"]) == path.name
    except (ParseError, ValueError, TypeError, AttributeError):
        return False


def _causes(error: BaseException) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
