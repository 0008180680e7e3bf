"""One service: the process to keep alive, and what .services/ says of it."""

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from diffcore.core import disk
from tasks import locks, progress
from tasks.redaction import redact

HOST = "127.0.0.1"
MARK = "DISTILL_SERVICE"
"""The variable by which the processes of a service are known, the service's own and all below it."""


@dataclass(frozen=True)
class Service:
    """A process to keep alive: what it runs, where it is seen, and how one knows that it works. host: where it listens."""

    name: str
    command: tuple[str, ...]
    url: str
    healthy: Callable[[], bool]
    environment: dict[str, str]
    port: int | None = None
    host: str = HOST


@dataclass(frozen=True)
class Record:
    """What .services/NAME.json says of a service. With its time of birth a pid is never mistaken for its successor; the mark
    stands in the environment of all its processes, also of those that outlive it."""

    pid: int
    born: float
    url: str
    mark: str = ""
    host: str = HOST

    def process(self) -> psutil.Process | None:
        """The process if it still lives."""
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(self.pid)
            if abs(process.create_time() - self.born) < 1 and process.status() != psutil.STATUS_ZOMBIE:
                return process
        return None

    def family(self) -> list[psutil.Process]:
        """All processes of the service that live, whether or not the one that was started still does."""
        leader = self.process()
        processes = {process.pid: process for process in [leader, *_children(leader)] if process} if leader else {}
        processes |= {process.pid: process for process in psutil.process_iter() if self._marked(process)}
        return [process for process in processes.values() if process.pid != os.getpid() and lives(process)]

    def _marked(self, process: psutil.Process) -> bool:
        return bool(self.mark) and _environment(process).get(MARK) == self.mark


class Folder:
    """.services/ below the project's root: records, logs, and a lock against two at the same time."""

    def __init__(self, root: Path):
        self.root, self.path = root, root / ".services"

    def alone(self) -> contextlib.AbstractContextManager[int]:
        return locks.hold(self.path / "lock", log, "waiting: another up or down is at work here")

    def log(self, name: str) -> Path:
        return self.path / f"{name}.log"

    def record(self, name: str) -> Record | None:
        try:
            return Record(**disk.parse_json((self.path / f"{name}.json").read_text()))
        except (OSError, ValueError, TypeError):
            return None

    def write(self, name: str, record: Record) -> None:
        disk.write_json(self.path / f"{name}.json", vars(record))

    def forget(self, name: str) -> None:
        (self.path / f"{name}.json").unlink(missing_ok=True)

    def alive(self, name: str) -> psutil.Process | None:
        record = self.record(name)
        return record.process() if record else None

    def environment(self, name: str) -> dict[str, str]:
        """That of the service's process; empty if it is down."""
        process = self.alive(name)
        return _environment(process) if process else {}

    def family(self, name: str) -> list[psutil.Process]:
        record = self.record(name)
        return record.family() if record else []


NAMES = ("prefect-server", "mlflow-server", "worker")  # in the order in which they start


def log(line: str) -> None:
    """Logs it without what is secret."""
    progress.log(redact(line))


def elsewhere(root: Path) -> list[str]:
    """The other folders whose servers run on this machine, as far as their processes can be looked at."""
    environments = [_environment(process) for process in psutil.process_iter() if lives(process)]
    folders = {each["DISTILL_ROOT"] for each in environments if MARK in each and "DISTILL_ROOT" in each}
    return sorted(folders - {str(root)})


def _environment(process: psutil.Process) -> dict[str, str]:
    with contextlib.suppress(psutil.Error, OSError):  # others' processes do not show their environment
        return process.environ()
    return {}


def _children(process: psutil.Process) -> list[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.children(recursive=True)
    return []


def lives(process: psutil.Process) -> bool:
    """Whether it is neither gone nor dead and unburied."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.status() != psutil.STATUS_ZOMBIE
    return False
