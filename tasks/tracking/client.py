"""MLflow's client: its address without a password, one publisher at a time, and what it refuses in words of our own."""

import contextlib
import fcntl
import http.client
import io
import logging
import os
import textwrap
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffcore.core import disk
from diffcore.core.errors import UserError
from tasks import database, dvc_environment, faults
from tasks.progress import log
from tasks.redaction import parted, redact

LOCAL = "sqlite:///mlflow.db"
LOCK = ".mlflow.lock"
HTTP = ("http://", "https://")
ADVICE = "run `distill up` or unset MLFLOW_TRACKING_URI"
REASON = 300  # characters of a library's error that are told
QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    # a server that hangs should cost seconds, not MLflow's own seven retries of two minutes each
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}


@dataclass(frozen=True)
class Experiment:
    """One MLflow experiment, open. aloud: what a person shall hear of; MLflow's own chatter hides the terminal meanwhile."""

    client: Any
    id: str
    aloud: list[str] = field(default_factory=list)


@contextlib.contextmanager
def signed_in(uri: str) -> Iterator[str]:
    """The address without its password, which goes to MLflow by its own variables: so it stands in no request's address,
    no exception, no tag. A UserError if it is no address."""
    address, user, password = uri, "", ""
    if uri.startswith(HTTP):
        try:
            address, user, password = parted(uri)
        except ValueError as error:
            raise UserError(f"MLFLOW_TRACKING_URI is {redact(uri)}, no address: {error}; {ADVICE}") from None
    if not password:  # a name alone is a key of its own, which MLflow takes only in the address
        yield uri
        return
    mine = {
        "MLFLOW_TRACKING_URI": address,
        "MLFLOW_TRACKING_USERNAME": user,
        "MLFLOW_TRACKING_PASSWORD": password,
    }
    before = {name: os.environ.get(name) for name in mine}
    os.environ.update(mine)
    try:
        yield address
    finally:
        _restore(before)


def _restore(variables: Mapping[str, str | None]) -> None:
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def ask(address: str) -> None:
    """Finds out in three seconds whether a server is there: MLflow itself would try for minutes."""
    if not address.startswith(HTTP):
        return
    try:
        urllib.request.urlopen(parted(address)[0].rstrip("/") + "/health", timeout=3).close()
    except urllib.error.HTTPError as error:
        error.close()  # it answers; what it thinks of us, MLflow's client will say
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise _silent(address, error) from None


def _silent(address: str, error: Exception) -> UserError:
    return UserError(f"MLflow at {redact(address)} does not answer: {reason(error)}; {ADVICE}")


def reason(error: Exception) -> str:
    """An error of a library's in one line of a length that can be read, and without a password."""
    text = redact(str(getattr(error, "reason", None) or error) or type(error).__name__)
    return textwrap.shorten(text.splitlines()[0], REASON, placeholder=" ...")


@contextlib.contextmanager
def alone(address: str, waiting: str = "waiting: another publishes to MLflow") -> Iterator[None]:
    """One publisher at a time for one database, or from one folder to one server: two that create a fresh database at once
    break it for good, and two that look before either writes would both write. Says `waiting` if it has to wait."""
    file = database.file_of(address)
    lock = file.parent / LOCK if file else Path(LOCK)
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        descriptor = disk.lock_file(lock)
    except OSError as error:
        raise UserError(f"MLflow at {redact(address)} cannot be written to: {lock}: {error.strerror}") from None
    try:
        _hold(descriptor, waiting)
        yield
    finally:
        os.close(descriptor)


def _hold(descriptor: int, waiting: str) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        log(waiting)
        fcntl.flock(descriptor, fcntl.LOCK_EX)


@contextlib.contextmanager
def prepared(address: str, waiting: str) -> Iterator[None]:
    """Holds the database of a server that is about to start, made or upgraded first, against all who would make it too."""
    with alone(address, waiting):
        if (file := database.file_of(address)) is not None:
            with explained(address):
                done = database.ready(file)
            if done:
                log(done)
        yield


@contextlib.contextmanager
def explained(address: str) -> Iterator[None]:
    """MLflow's chatter goes nowhere, and what it or its server refuses is the user's to mend, not a stack trace."""
    for name, value in {**QUIET, **dvc_environment.nameless(Path())}.items():
        os.environ.setdefault(name, value)
    from mlflow.exceptions import MlflowException
    from requests.exceptions import RequestException
    from sqlalchemy.exc import SQLAlchemyError

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    except (MlflowException, RequestException, SQLAlchemyError, OSError) as error:
        if "Connection" in str(error) or isinstance(error, RequestException):
            raise _silent(address, error) from None
        if isinstance(error, OSError) and error.filename and faults.describe(error):
            raise  # no word of MLflow's: a file of ours or its own that the machine refuses
        raise UserError(f"MLflow at {redact(address)} refuses: {reason(error)}") from None


def open_store(address: str, aloud: list[str]) -> Any:
    """A client of a store that was published to, a database of ours upgraded first; a UserError where it is missing."""
    file = database.file_of(address)
    if file is not None and not file.exists():
        raise UserError(f"MLflow's {file} is missing: nothing was published from here; run `distill publish`")
    if file is not None and (done := database.ready(file)):
        aloud.append(done)
    return _client(address)


def open_experiment(address: str, name: str, aloud: list[str]) -> Experiment:
    """The experiment of this name, made where there is none; a database of ours is made or upgraded first."""
    file = database.file_of(address)
    if file is not None and (done := database.ready(file)):
        aloud.append(done)
    client = _client(address)
    existing = client.get_experiment_by_name(name)
    if existing is not None and existing.lifecycle_stage == "deleted":
        raise UserError(f"the MLflow experiment {name!r} was deleted; restore it or choose another publish.experiment")
    # without this tag the UI opens in its mode for language models, where runs and checkpoints have other names
    kind = {"mlflow.experimentKind": "custom_model_development"}
    number = existing.experiment_id if existing else client.create_experiment(name, tags=kind)
    _check_files(address, name, (existing or client.get_experiment(number)).artifact_location)
    return Experiment(client, number, aloud)


def _check_files(address: str, name: str, location: str) -> None:
    """Whether this host can write where an experiment keeps its files, which was settled when it began; UserError if not."""
    scheme = urllib.parse.urlsplit(location).scheme
    served = address.startswith(HTTP)
    if scheme == "mlflow-artifacts" and not served:
        raise UserError(
            f"the MLflow experiment {name!r} began on a server, which keeps its files: set MLFLOW_TRACKING_URI to that "
            "server, or choose another publish.experiment"
        )
    folder = Path(location.removeprefix("file:").removeprefix("//")) if scheme in ("", "file") else None
    if served and folder is not None and not any(above.is_dir() for above in (folder.parent, folder.parent.parent)):
        raise UserError(
            f"MLflow at {redact(address)} keeps the files of the experiment {name!r} in {folder}, a folder of another host; "
            "choose another publish.experiment on a server that serves files (`distill up --host ADDRESS`)"
        )


def _client(address: str) -> Any:
    import mlflow
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        mlflow.set_tracking_uri(address)
        return mlflow.MlflowClient()
    except (MlflowException, SQLAlchemyError, ImportError, ValueError) as error:
        raise UserError(
            f"MLFLOW_TRACKING_URI is {redact(address)}, which MLflow cannot open: {reason(error)}"
        ) from None


def logged(experiment: Experiment, condition: str) -> Iterator[Any]:
    """The logged models of which the condition, in MLflow's words, is true."""

    def search(token: str | None) -> Any:
        return experiment.client.search_logged_models([experiment.id], filter_string=condition, page_token=token)

    return every(search)


def every(search: Callable[[str | None], Any]) -> Iterator[Any]:
    """All that a search of MLflow's finds, page by page. search: (token of a page, None for the first) -> that page."""
    page = search(None)
    yield from page
    while page.token:
        page = search(page.token)
        yield from page
