"""MLflow's SQLite file is whole or untouched: full disks, kills at any statement, damage, other versions."""

import contextlib
import fcntl
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from diffcore.core.errors import UserError
from tasks import database, faults
from tests import stores
from tests.test_disk import DEAD

ROOT = Path(__file__).resolve().parents[1]
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:unclosed database:ResourceWarning"),
]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("database") / "mlflow.db"
    assert database.ready(path) is None
    return path


@pytest.fixture
def path(made, tmp_path) -> Path:
    return Path(shutil.copy(made, tmp_path / "mlflow.db"))


def run(path: Path, statement: str) -> list:
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        return connection.execute(statement).fetchall()


def version(path: Path) -> str:
    return run(path, "select version_num from alembic_version")[0][0]


def older(path: Path) -> str:
    """Makes a database as MLflow had it one version ago, with an experiment in it; gives that version."""
    from alembic import command
    from alembic.script import ScriptDirectory
    from mlflow.store.db import utils
    from mlflow.store.tracking.dbmodels.initial_models import Base

    config = utils._get_alembic_config(f"sqlite:///{path}")
    before = ScriptDirectory.from_config(config).get_revision(database._newest()).down_revision
    engine = utils.create_sqlalchemy_engine(f"sqlite:///{path}")
    Base.metadata.create_all(engine)
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, before)
    engine.dispose()
    run(path, "insert into experiments (name, lifecycle_stage) values ('kept', 'active')")
    return before


def only(path: Path) -> bool:
    """Whether nothing lies beside the database."""
    return [each.name for each in path.parent.iterdir()] == [path.name]


@pytest.mark.slow
def test_it_is_what_mlflow_would_make(made):
    assert version(made) == database._newest()
    assert only(made)
    assert database.ready(made) is None


@pytest.mark.parametrize(
    "pages", [3, pytest.param(60, marks=pytest.mark.slow), pytest.param(110, marks=pytest.mark.slow)]
)
def test_a_disk_that_fills_while_it_is_made_leaves_nothing(tmp_path, monkeypatch, pages):
    from mlflow.store.db import utils
    from sqlalchemy import event

    path, create = tmp_path / "mlflow.db", utils.create_sqlalchemy_engine

    def small(address: str):
        engine = create(address)
        event.listen(engine, "connect", lambda connection, _: connection.execute(f"pragma max_page_count = {pages}"))
        return engine

    monkeypatch.setattr(utils, "create_sqlalchemy_engine", small)
    with pytest.raises(UserError, match=r"mlflow.db cannot be made: database or disk is full$"):
        database.ready(path)
    assert list(tmp_path.iterdir()) == []


KILLED = """
import os, signal, sys
from pathlib import Path
from sqlalchemy import event
from sqlalchemy.engine import Engine
from tasks import database

left = int(sys.argv[2])

@event.listens_for(Engine, "after_cursor_execute")
def count(*_):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)

database.ready(Path(sys.argv[1]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["new", "older"])
@pytest.mark.parametrize("statements", [2, 25, 120, 400])
def test_killed_at_any_statement_the_next_one_has_it_whole(tmp_path, kind, statements):
    path = tmp_path / "mlflow.db"
    if kind == "older":
        older(path)
    done = subprocess.run([sys.executable, "-c", KILLED, str(path), str(statements)], cwd=ROOT, capture_output=True)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    assert done.returncode or kind == "older"  # a new one takes more statements than these
    database.ready(path)
    assert version(path) == database._newest()
    assert run(path, "pragma quick_check") == [("ok",)]
    assert not list(tmp_path.glob(".*"))
    if kind == "older":
        assert run(path, "select name from experiments") == [("kept",)]


@pytest.mark.slow
def test_an_upgrade_keeps_what_was_there_and_a_copy_of_it(tmp_path):
    path = tmp_path / "mlflow.db"
    before = older(path)
    said = database.ready(path)
    kept = tmp_path / f"mlflow.db.before-{before}"
    assert said == f"{path} was brought to the version of the installed MLflow; as it was before: {kept}"
    assert (version(path), version(kept)) == (database._newest(), before)
    for each in (path, kept):
        assert run(each, "select name from experiments") == [("kept",)]
    assert database.ready(path) is None
    assert {each.name for each in tmp_path.iterdir()} == {path.name, kept.name}


def test_an_upgrade_that_fails_leaves_all_as_it_was(path, monkeypatch):
    from mlflow.store.db import utils
    from sqlalchemy.exc import OperationalError

    def fails(engine) -> None:
        with engine.begin() as connection:
            connection.exec_driver_sql("drop table tags")
        raise OperationalError("alter table", {}, sqlite3.OperationalError("duplicate column name: x"))

    run(path, "update alembic_version set version_num = 'old'")
    before = path.read_bytes()
    monkeypatch.setattr(utils, "_upgrade_db", fails)
    with pytest.raises(
        UserError, match=r"cannot be brought to the installed MLflow's version: duplicate column name: x; "
    ):
        database.ready(path)
    assert path.read_bytes() == before
    assert only(path)


def test_an_upgrade_is_another_file_under_the_same_name(path, monkeypatch):
    """Written over in place, a kill on the way would leave neither."""
    from mlflow.store.db import utils

    run(path, "update alembic_version set version_num = 'old'")
    monkeypatch.setattr(utils, "_upgrade_db", lambda engine: None)
    with open(path, "rb") as before:
        content = path.read_bytes()
        assert "was brought to the version" in database.ready(path)
        assert path.stat().st_ino != os.fstat(before.fileno()).st_ino
        assert before.read() == content


def test_a_newer_mlflow_s_is_refused_in_one_line(path):
    run(path, "update alembic_version set version_num = 'feed'")
    with pytest.raises(UserError, match=r"mlflow.db cannot be brought .*'feed'") as caught:
        database.ready(path)
    assert "\n" not in str(caught.value)
    assert version(path) == "feed"


@pytest.mark.parametrize("left", ["no version", "no table of versions", "a table alone"])
def test_one_that_was_left_half_made_is_refused_with_what_to_do(path, left):
    if left == "a table alone":
        path.unlink()
        run(path, "create table experiments (name text)")
    else:
        run(path, "delete from alembic_version" if left == "no version" else "drop table alembic_version")
    before = path.read_bytes()
    with pytest.raises(
        UserError, match=rf"{path} is damaged: it was left half made; move it away \(`mv {path} {path}.damaged`\)"
    ):
        database.ready(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("there", [True, False])
def test_a_database_is_made_where_there_is_none_or_an_empty_file(there, tmp_path, monkeypatch):
    made, path = [], tmp_path / "mlflow.db"
    monkeypatch.setattr(database, "_make", made.append)
    if there:
        path.touch()
    assert database.ready(path) is None
    assert made == [path]


@pytest.mark.slow
def test_an_empty_file_is_as_good_as_none(tmp_path):
    """SQLite makes one before it writes the first page: all that a process killed then leaves."""
    (tmp_path / "mlflow.db").touch()
    database.ready(tmp_path / "mlflow.db")
    assert version(tmp_path / "mlflow.db") == database._newest()


@pytest.mark.parametrize("damage", ["garbage", "cut", "head", *range(8)])
def test_a_damaged_one_is_refused_in_one_line_or_does_not_matter(path, damage):
    whole = path.read_bytes()
    if damage == "garbage":
        path.write_bytes(b"what is this?" * 1000)
    elif damage == "cut":
        path.write_bytes(whole[: len(whole) // 2 + 100])
    else:
        begin = 0 if damage == "head" else len(whole) * damage // 8 // 4096 * 4096
        path.write_bytes(whole[:begin] + bytes(range(256)) * 2 + whole[begin + 512 :])
    before = path.read_bytes()
    with pytest.raises(UserError, match=rf"^{path} is damaged: .*; move it away") as caught:
        database.ready(path)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == before


def test_a_folder_in_its_place_is_one_line(tmp_path):
    (tmp_path / "mlflow.db").mkdir()
    with pytest.raises(IsADirectoryError) as caught:
        database.ready(tmp_path / "mlflow.db")
    path = tmp_path / "mlflow.db"
    said = f"{path}: a folder is where a file should be; move it away (`mv {path} {path}.moved`)"
    assert faults.describe(caught.value) == f"{said}, and run the same command again"


def test_a_place_that_cannot_be_written_to_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"mlflow.db cannot be made or read: (Not a directory|File exists)$"):
        database.ready(tmp_path / "file" / "mlflow.db")


@pytest.mark.parametrize(
    ("address", "file"),
    [
        ("sqlite:///mlflow.db", Path("mlflow.db")),
        ("sqlite:////home/me/a b.db", Path("/home/me/a b.db")),
        ("sqlite:///a.db?timeout=3", Path("a.db")),
        ("http://127.0.0.1:5000", None),
        ("postgresql://h/db", None),
    ],
)
def test_the_file_of_an_address(address, file):
    assert database.file_of(address) == file


@pytest.mark.parametrize("address", ["sqlite:", "sqlite://", "sqlite:///", "sqlite:///:memory:", "sqlite:/mlflow.db"])
def test_what_would_keep_nothing_is_a_mistake(address):
    with pytest.raises(UserError, match=r"names no file; write sqlite:///mlflow\.db"):
        database.file_of(address)


def test_what_a_database_lacks_is_told_and_nothing_is_written(path):
    run(path, "insert into experiments (experiment_id, name) values (1, 'x')")
    run(path, "insert into runs (run_uuid, experiment_id) values ('abc', 1)")
    assert database.lacks(path, "abc") is None
    before = path.read_bytes()
    assert database.lacks(path, "abd") == f"{path} is another one"
    assert path.read_bytes() == before
    path.write_bytes(b"x" * 5000)
    assert database.lacks(path, "abc").startswith(f"{path} cannot be read (file is not a database")
    path.write_bytes(b"")
    assert database.lacks(path, "abc").startswith(f"{path} cannot be read (no such table")
    path.unlink()
    assert database.lacks(path, "abc") == f"{path} is missing"
    assert not path.exists()
    path.mkdir()
    assert database.lacks(path, "abc") == f"{path} is no file"


def test_what_one_killed_at_its_very_end_left_is_removed(path):
    left = path.with_name(f".{path.name}.{DEAD}.tmp")
    left.mkdir()
    (left / "old").write_bytes(path.read_bytes())
    assert database.ready(path) is None
    assert list(path.parent.iterdir()) == [path]


def test_what_was_there_is_kept_under_its_version_with_all_that_was_written_to_it(path, monkeypatch):
    """Also what SQLite has not yet moved from its journal into the file."""
    from mlflow.store.db import utils

    upgraded = []
    monkeypatch.setattr(utils, "_upgrade_db", lambda engine: upgraded.append(engine.url.database))
    run(path, "pragma journal_mode = wal")
    run(path, "update alembic_version set version_num = 'old'")
    with contextlib.closing(sqlite3.connect(path)) as other:
        other.execute("pragma wal_autocheckpoint = 0")
        other.execute("insert into experiments (experiment_id, name) values (7, 'late')")
        other.commit()
        said = database.ready(path)
    kept = path.with_name(f"{path.name}.before-old")
    assert said.endswith(f"as it was before: {kept}")
    assert version(kept) == "old"
    assert run(kept, "select name from experiments where experiment_id = 7") == [("late",)]
    assert upgraded[0] != str(path)
    assert Path(upgraded[0]).name == path.name


def test_an_upgrade_killed_before_its_end_has_kept_what_was_there(path, monkeypatch):
    from mlflow.store.db import utils

    monkeypatch.setattr(utils, "_upgrade_db", lambda engine: None)
    run(path, "update alembic_version set version_num = 'old'")
    put, left = database.disk.put, []

    def killed_at_the_second(source: Path, target: Path) -> None:
        if left:
            raise KeyboardInterrupt
        left.append(target)
        put(source, target)

    monkeypatch.setattr(database.disk, "put", killed_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        database.ready(path)
    kept = path.with_name(f"{path.name}.before-old")
    assert (version(kept), version(path)) == ("old", "old")


def test_two_versions_at_once_are_none(path):
    run(path, "insert into alembic_version values ('another')")
    with pytest.raises(UserError, match="it was left half made"):
        database.ready(path)


def test_what_only_another_holds_is_not_called_damaged(path, monkeypatch):
    """Whoever moved it away then would lose it."""
    real = sqlite3.connect
    waits = []

    def connect(*words, timeout=5.0, **more):
        waits.append(timeout)
        return real(*words, timeout=0.01, **more)

    monkeypatch.setattr(sqlite3, "connect", connect)
    with contextlib.closing(real(path)) as other:
        other.execute("begin exclusive")
        with pytest.raises(UserError, match=rf"^{path} cannot be opened: database is locked$"):
            database.ready(path)
        assert database.lacks(path, "x").startswith(f"{path} cannot be read (database is locked)")
    assert set(waits) == {20}


def test_whether_a_run_is_there_is_asked_of_a_file_that_nobody_may_write_to(path, monkeypatch):
    asked, real = [], sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *words, **more: asked.append((*words, more)) or real(*words, **more))
    assert database.lacks(path, "x") == f"{path} is another one"
    assert asked == [(f"file://{path}?mode=ro", {"uri": True, "timeout": 20})]


# ------------------------------------------------------------------------------- what the tests of publishing begin with


def test_the_suite_s_database_is_made_once_by_the_first_and_under_a_lock(tmp_path):
    path, calls = tmp_path / "mlflow.db", []

    def make(place: Path) -> None:
        with open(tmp_path / "mlflow.db.lock") as lock, pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert not path.exists()
        calls.append(place)
        place.write_text("half")
        if len(calls) == 1:
            raise KeyboardInterrupt
        place.write_text("whole")

    with pytest.raises(KeyboardInterrupt):
        stores.made_once(path, make)
    assert [each.name for each in tmp_path.iterdir()] == ["mlflow.db.lock"]
    for _ in range(2):
        assert stores.made_once(path, make).read_text() == "whole"
    assert len(calls) == 2


@pytest.mark.slow
def test_the_suite_s_database_is_mlflow_s_own_and_only_its_copies_are_hasty(
    pytestconfig, tmp_path_factory, made, tmp_path
):
    fresh_store = stores.made_once(stores.common(pytestconfig, tmp_path_factory) / "mlflow.db", stores.migrated)
    assert database._version(fresh_store) == version(made)
    assert run(fresh_store, "select name from experiments") == [("Default",)]
    with stores.hasty(), database._engine(tmp_path / "a.db") as engine, engine.connect() as connection:
        assert connection.exec_driver_sql("pragma synchronous").scalar() == 0
    with database._engine(tmp_path / "b.db") as engine, engine.connect() as connection:
        assert connection.exec_driver_sql("pragma synchronous").scalar() == 2
