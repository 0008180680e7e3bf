"""The commands that a flow run has going."""

import collections
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tasks.redaction import redact

SUPERVISOR = Path(__file__).with_name("supervisor.py")
GRACE_SECONDS = 20.0  # to save in; Prefect kills a cancelled run after 30
LINES_KEPT = 200
POLL_SECONDS = 0.2

Log = Callable[[str], None]


class Stopped(Exception):
    """The flow run is being stopped, and the command with it."""


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code (128 + n for signal n) and the last lines it wrote."""

    code: int
    lines: tuple[str, ...]


class Running:
    """Starts commands and, on `stop`, ends them all; after that none can start. What they write is told without passwords.

    `keep` are descriptors of locks that shall stay held until the last process of a command is gone, even if the flow
    dies first.
    """

    def __init__(self, keep: Collection[int] = (), grace: float = GRACE_SECONDS):
        self._keep, self._grace = tuple(keep), grace
        self._supervisors: set[subprocess.Popen] = set()
        self._guard = threading.Lock()
        self._stopping = threading.Event()

    @property
    def stopped(self) -> bool:
        return self._stopping.is_set()

    def run(
        self,
        command: Sequence[str],
        folder: Path,
        log: Log,
        environment: Mapping[str, str] | None = None,
        keep: Collection[int] = (),
    ) -> Ended:
        """Runs a command in `folder`, passes on each line as it comes, and returns when it has ended.

        `environment` is laid over the current one. Raises Stopped if `stop` was called before or meanwhile.
        """
        supervisor = self._start(command, folder, {**surroundings(), **(environment or {})}, keep)
        try:
            lines = _follow(supervisor, log)
        finally:  # whatever is raised here, a time-out of Prefect's or a bug, the command does not survive it
            self._end(supervisor)
        if self.stopped:
            raise Stopped(f"{' '.join(command)} was stopped")
        return Ended(supervisor.returncode, lines)

    def stop(self) -> None:
        """Asks all commands to end, all at once, and returns when none is left."""
        with self._guard:
            self._stopping.set()
            supervisors = list(self._supervisors)
        for supervisor in supervisors:
            supervisor.terminate()
        for supervisor in supervisors:
            self._end(supervisor)

    def pause(self, seconds: float) -> None:
        """Waits; raises Stopped as soon as `stop` is called."""
        if self._stopping.wait(seconds):
            raise Stopped("the flow run was stopped while it waited")

    def _start(self, command, folder, environment, keep) -> subprocess.Popen:
        held = f"{self._grace}", f"{os.getpid()}"
        with self._guard:
            if self.stopped:
                raise Stopped(f"{' '.join(command)} was not started")
            supervisor = subprocess.Popen(
                [sys.executable, "-P", str(SUPERVISOR), *held, *command],
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                start_new_session=True,  # a Ctrl-C in the terminal is the flow's to handle
                pass_fds=(*self._keep, *keep),
            )
            self._supervisors.add(supervisor)
        return supervisor

    def _end(self, supervisor: subprocess.Popen) -> None:
        if supervisor.poll() is None:
            supervisor.terminate()
        try:
            supervisor.wait(self._grace + 5)
        except subprocess.TimeoutExpired:
            os.killpg(supervisor.pid, signal.SIGKILL)  # its own session: nobody else is in that group
            supervisor.wait()
        with self._guard:
            self._supervisors.discard(supervisor)


def surroundings() -> dict[str, str]:
    """The environment for commands: Python is this interpreter, lines come at once, nobody phones home."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    quiet = {"DO_NOT_TRACK": "true", "DVC_NO_ANALYTICS": "1"}
    return {"DISTILL_PYTHON": sys.executable, **os.environ, "PATH": path, "PYTHONUNBUFFERED": "1", **quiet}


def _follow(supervisor: subprocess.Popen, log: Log) -> tuple[str, ...]:
    # a thread of its own reads: a command that is silent for hours must not make this one deaf to interruptions
    arriving: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(supervisor.stdout, arriving.put), daemon=True).start()
    last: collections.deque[str] = collections.deque(maxlen=LINES_KEPT)
    while (line := _next(arriving)) is not None:
        if line:
            last.append(line)
            log(line)
    return tuple(last)


def _next(arriving: queue.SimpleQueue) -> str | None:
    try:
        return arriving.get(timeout=POLL_SECONDS)
    except queue.Empty:
        return ""


def _read(pipe, put: Callable[[str | None], None]) -> None:
    with pipe:
        for line in pipe:
            put(redact(line.rstrip()))
    put(None)
