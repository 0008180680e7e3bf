"""The command line: what a verb is run in, and how it ends. The words are in tasks.verbs.

A mistake of the user's is one line (or one line each) on stderr and exit code 2, without a traceback.
"""

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator

TYPE_CHECKING = False  # typing's own would be imported before the surroundings are checked
if TYPE_CHECKING:
    from tasks.verbs import Verb

    Ask = Callable[[list[str]], Verb | int]

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # stages side by side must not spin on each other's cores


def main(arguments: list[str], ask: "Ask | None" = None) -> int:
    """The exit code. What takes time to import is imported in here, where Ctrl-C is quiet. ask: what reads the words."""
    with _listening() as interrupted:
        try:
            code, fault = _mendable(lambda: _run_one(arguments, ask or _ask))
            if fault is None:
                return code
            return 130 if interrupted else _print_error(fault)
        except KeyboardInterrupt:
            return 130
        except Exception:
            if not interrupted:
                raise
            return 130


@contextlib.contextmanager
def _listening() -> Iterator[list[int]]:
    """Whether Ctrl-C was heard: torch swallows one while it imports numpy, and fails later over what is half imported."""
    heard: list[int] = []

    def interrupt(number, frame) -> None:
        heard.append(number)
        raise KeyboardInterrupt

    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:  # somebody else listens, or nobody shall
        yield heard
        return
    signal.signal(signal.SIGINT, interrupt)
    try:
        yield heard
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _ask(arguments: list[str]) -> "Verb | int":
    from tasks import verbs

    return verbs.parse(arguments, verbs.app)


def _run_one(arguments: list[str], ask: "Ask") -> int:
    from diffcore.core import allocator, launch, parent
    from tasks import surroundings

    surroundings.check()
    allocator.keep()
    verb = ask(arguments)
    if isinstance(verb, int):
        return verb
    if verb.attached:
        parent.die_with_parent()
    if not verb.stages or launch.is_started():  # whoever started several looks after the files
        return verb.run() or 0
    code = 1
    try:
        code, fault = _mendable(lambda: _kept(verb))
        return code if fault is None else _print_error(fault)
    finally:
        if code:
            _put_back(verb.stages)


def _kept(verb: "Verb") -> int:
    from tasks import dvc_files

    dvc_files.keep()
    return verb.run() or 0


def _mendable(work: Callable[[], int]) -> tuple[int, str | None]:
    """The exit code, and what the user or the machine is to mend, if anything."""
    from diffcore.core.errors import MISTAKE, UserError
    from tasks import faults, surroundings

    try:
        return work(), None
    except UserError as error:
        return MISTAKE, str(error)
    except ImportError as error:
        return MISTAKE, surroundings.lacking(error)
    except Exception as error:
        if (line := faults.describe(error)) is None:
            raise
        return MISTAKE, line


def _put_back(stages: tuple[str, ...]) -> None:
    """Restores the outputs of the last good run, which DVC deletes before it starts a stage; this one has failed."""
    from tasks import dvc_files
    from tasks.progress import log

    for stage in stages:
        if outputs := dvc_files.put_back(stage):
            log(
                f"{stage}: {', '.join(map(str, outputs))} of the last good run {'is' if len(outputs) == 1 else 'are'} back"
            )


def _print_error(message: str) -> int:
    """The exit code; nothing secret is printed. One of several processes leaves it to whoever started them."""
    from diffcore.core import launch
    from diffcore.core.errors import MISTAKE
    from tasks import redaction

    if launch.report(redaction.redact(message)):
        return MISTAKE

    with contextlib.suppress(OSError):  # where nothing can be written the exit code must do
        for line in message.splitlines():
            print(f"error: {redaction.redact(line)}", file=sys.stderr)
    return MISTAKE


def end(code: int) -> int:
    """Writes what is left to be written; a reader that has gone away is no fault, and nothing to be said about."""
    try:
        print(end="", flush=True)
    except OSError:  # `log` reports any other
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return code
