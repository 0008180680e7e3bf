"""MLflow's SQLite file: whole and of the installed MLflow's version, or untouched.

MLflow makes and migrates it where it lies, in some forty steps that are no transaction: killed between two of them, it leaves
a file that neither goes on nor back. Here that happens to a copy, which takes the file's name when it is done.
"""

import contextlib
import errno
import os
import shlex
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from diffcore.core import disk
from diffcore.core.errors import UserError

SCHEME = "sqlite:"


def file_of(address: str) -> Path | None:
    """The file that an address of MLflow's means; None if it means no SQLite."""
    if not address.startswith(SCHEME):
        return None
    path = address.removeprefix(SCHEME).partition("?")[0]
    if not path.startswith("///") or path in ("///", "///:memory:"):
        raise UserError(f"{address} names no file; write sqlite:///mlflow.db, or sqlite:////home/me/mlflow.db")
    return Path(path.removeprefix("///"))


def ready(path: Path) -> str | None:
    """Makes the database, or brings it to the installed MLflow's version; what it has done, in words, if anything.

    The caller sees to it that no other does the same meanwhile. Before an upgrade the old file is kept as
    NAME.before-VERSION. Raises UserError, and leaves the file as it is, if it is damaged or cannot be made or migrated.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    with _one_line(path):
        if path.parent.is_dir():
            disk.clear(path)  # one killed after all was done but this
        if not path.exists() or path.stat().st_size == 0:  # SQLite begins with an empty file
            _make(path)
            return None
        version, newest = _version(path), _newest()
        if version == newest:
            return None
        _upgrade(path, version)
        return f"{path} was brought to the version of the installed MLflow; as it was before: {_kept(path, version)}"


def lacks(path: Path, run: str) -> str | None:
    """Why the database has no such run; None if it has. Nothing is written."""
    if not path.is_file():
        return f"{path} is no file" if path.exists() else f"{path} is missing"
    try:
        with contextlib.closing(
            sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=20)
        ) as database:
            row = database.execute("select 1 from runs where run_uuid = ?", [run]).fetchone()
    except sqlite3.Error as error:
        return f"{path} cannot be read ({error})"
    return None if row else f"{path} is another one"


def _kept(path: Path, version: str) -> Path:
    return path.with_name(f"{path.name}.before-{version}")


def _version(path: Path) -> str:
    """MLflow's version of a database that SQLite finds in order."""
    with _opened(path) as database:
        faults = [row[0] for row in database.execute("pragma quick_check(1)")]
        if faults != ["ok"]:
            raise sqlite3.DatabaseError(" ".join(faults[0].split()))
        try:
            rows = database.execute("select version_num from alembic_version").fetchall()
        except sqlite3.OperationalError:  # no such table
            rows = []
    if len(rows) != 1:
        raise sqlite3.DatabaseError("it was left half made")
    return rows[0][0]


def _make(path: Path) -> None:
    from mlflow.store.db import utils

    with disk.beside(path) as room:
        with _engine(room / path.name) as engine:
            utils._initialize_tables(engine)
        disk.put(room / path.name, path)


def _upgrade(path: Path, version: str) -> None:
    from mlflow.store.db import utils

    with disk.beside(path) as room:
        old, new = room / "old", room / path.name
        for copy in (old, new):
            _copy(path, copy)
        with _engine(new) as engine:
            utils._upgrade_db(engine)
        disk.put(old, _kept(path, version))
        disk.put(new, path)


def _newest() -> str:
    from mlflow.store.db import utils

    return utils._get_latest_schema_revision()


@contextlib.contextmanager
def _engine(path: Path) -> Iterator[Any]:
    from mlflow.store.db import utils

    engine = utils.create_sqlalchemy_engine(f"{SCHEME}///{path.resolve()}")
    try:
        yield engine
    finally:
        engine.dispose()  # closes the file


def _copy(path: Path, copy: Path) -> None:
    with _opened(path) as database, contextlib.closing(sqlite3.connect(copy)) as into:
        database.backup(into)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[sqlite3.Connection]:
    with contextlib.closing(sqlite3.connect(path, timeout=20)) as database:  # as long as MLflow itself waits for others
        yield database


@contextlib.contextmanager
def _one_line(path: Path) -> Iterator[None]:
    from alembic.util import CommandError
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    aside = shlex.join(["mv", str(path), f"{path}.damaged"])
    remedy = (
        f"move it away (`{aside}`) and publish again (`distill publish`): all that the frontier shows is there anew"
    )
    try:
        yield
    except sqlite3.OperationalError as error:  # locked, full, read-only: the file may be sound
        raise UserError(f"{path} cannot be opened: {error}") from None
    except sqlite3.DatabaseError as error:
        raise UserError(f"{path} is damaged: {error}; {remedy}") from None
    except (CommandError, MlflowException, SQLAlchemyError) as error:
        reason = str(getattr(error, "orig", None) or error).splitlines()[0]
        if path.exists():
            raise UserError(f"{path} cannot be brought to the installed MLflow's version: {reason}; {remedy}") from None
        raise UserError(f"{path} cannot be made: {reason}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be made or read: {error.strerror}") from None
