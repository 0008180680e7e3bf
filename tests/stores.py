"""An empty database of MLflow, made once for the whole suite: its migrations take seconds, a copy of the file none."""

import contextlib
import fcntl
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from diffcore.core import disk

MAKE = "import sys, mlflow; mlflow.set_tracking_uri(sys.argv[1]); mlflow.MlflowClient().search_experiments()"


def common(config: pytest.Config, factory: pytest.TempPathFactory) -> Path:
    """The temporary folder that all workers of this run of pytest have in common."""
    own = factory.getbasetemp()
    return own.parent if hasattr(config, "workerinput") else own


def made_once(path: Path, make: Callable[[Path], None]) -> Path:
    """The file as the first who comes has it made; the others wait for it. One that is not whole never has the name."""
    with open(path.with_name(f"{path.name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            with disk.beside(path) as room:
                make(room / path.name)
                (room / path.name).rename(path)
    return path


@contextlib.contextmanager
def hasty() -> Iterator[None]:
    """SQLite commits without waiting for the disk, in this process and meanwhile: only a power cut could tell, which no test
    of MLflow's database asks for."""
    from sqlalchemy import Engine, event  # as MLflow itself: not in every process of the suite

    event.listen(Engine, "connect", _unsynced)
    try:
        yield
    finally:
        event.remove(Engine, "connect", _unsynced)


def _unsynced(connection: object, _: object) -> None:
    if isinstance(connection, sqlite3.Connection):  # Prefect's own are of another kind
        connection.execute("pragma synchronous = off")


def migrated(path: Path) -> None:
    """By MLflow itself in a process of its own, so that what it sets on import and in logging is not the tests'."""
    done = subprocess.run(
        [sys.executable, "-c", MAKE, f"sqlite:///{path}"], capture_output=True, text=True, cwd=path.parent
    )
    assert done.returncode == 0, done.stderr
