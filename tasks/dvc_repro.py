"""`dvc repro`, which ends as our own commands do: `python -m tasks.dvc_repro [--single-item STAGE]`.

DVC tells what the machine refused it (a full disk, a forbidden folder) in its own words, offers its own help, and exits with
255, as for any bug; so it does when a stage refused something with 2. Here the first is one line with the remedy, and both
exit with 2. Whatever else happens stays DVC's.
"""

import logging
import re
import sys
from collections.abc import Iterator, Sequence

MISTAKE = 2
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
        if error is not None:
            self.line = self.line or faults.told(error)
            self.codes |= {int(found[1]) for cause in _causes(error) if (found := CODE.search(str(cause)))}
        if self.line is not None and record.name == "dvc.cli":  # its last word, and the end of what it does
            raise _Refused(self.line)
        return error is None or faults.told(error) is None


def main(arguments: Sequence[str]) -> int:
    """DVC's exit code, or 2 for what is the user's to mend."""
    from dvc.cli import main as dvc

    listener = _Listener()
    for handler in {handler for name in LOGGERS for handler in logging.getLogger(name).handlers}:
        handler.addFilter(listener)
    try:
        code = dvc(["--wait-for-lock", "repro", *arguments])
    except _Refused as refused:
        print(f"error: {refused}", file=sys.stderr)
        return MISTAKE
    return MISTAKE if code and listener.codes == {MISTAKE} else code


def _causes(error: BaseException) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
