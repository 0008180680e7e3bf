"""The frontier in MLflow: a view of the files that the stages wrote, published so that twice is the same as once.

One run for each way to sample, its numbers logged with step = network calls, so that the UI draws the frontier by itself;
sample grids by step; one logged model for each point; a run "train NAME" for each curve; a run "frontier" with table and
picture; the recommended point registered under the alias `challenger`. A person sets `production`; nothing here does.

Every run carries the digest of what it shows. What MLflow already has is found by that digest and left alone; what is no
longer in the frontier stays, tagged current = false. Files are verified before they are logged, and weights that MLflow holds
each time: what does not fit is logged again.
"""

import contextlib
import csv
import fcntl
import http.client
import io
import logging
import os
import re
import tempfile
import textwrap
import time
import urllib.error
import urllib.parse
import urllib.request
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from diffcore.core import disk
from diffcore.core.errors import Mistake
from tasks import database, dvc_environment, faults, paths, pictures
from tasks.progress import say
from tasks.redaction import parted, told

LOCAL = "sqlite:///mlflow.db"
LOCK = ".mlflow.lock"
CHALLENGER = "challenger"
TEACHER = "teacher"
CURVE_ROWS = 100  # of each training curve; the whole csv lies beside them. A thousand metrics take SQLite half a second
HTTP = ("http://", "https://")
ADVICE = "run `distill up` or unset MLFLOW_TRACKING_URI"
REASON = 300  # characters of a library's error that are told
VALUE = 500  # characters of a parameter's or tag's value that MLflow's older stores take
NOTE = 20_000  # characters of an experiment's note that MLflow takes
CHART = "#/experiments/{}/runs?workflowType=machine_learning&compareRunsMode=CHART"
QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    # a server that hangs should cost seconds, not MLflow's own seven retries of two minutes each
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}

Point = dict[str, Any]


@dataclass(frozen=True)
class Files:
    """What the stages left: the frontier's table, the cards of its checkpoints, and params.yaml."""

    folder: Path
    table: dict[str, Any]
    cards: dict[str, dict[str, Any]]
    parameters: dict[str, Any]

    @property
    def shown(self) -> tuple[Path, ...]:
        """What the run "frontier" shows as files."""
        names = ("frontier.json", "frontier.csv", "frontier.png", "samples/all.png")
        return tuple(self.folder / name for name in names)

    def samples(self, point: Point) -> Path:
        return self.folder / "samples" / f"{point['name']}.png"

    def checkpoint(self, point: Point) -> Path:
        return self.folder / "checkpoints" / point["checkpoint"]

    @property
    def recommended(self) -> Point:
        return next(p for p in self.table["points"] if p["name"] == self.table["recommended"]["name"])


@dataclass(frozen=True)
class Page:
    """A run to be: `content` is all that it shows, and `fill` logs it into the active run."""

    kind: str
    name: str
    content: Any
    fill: Callable[[str], None]

    @property
    def digest(self) -> str:
        return disk.digest([self.kind, self.name, self.content])


@dataclass(frozen=True)
class Book:
    """One MLflow experiment, open. aloud: what a person shall hear of; MLflow's own chatter hides the terminal meanwhile."""

    client: Any
    experiment: str
    aloud: list[str] = field(default_factory=list)


def publish(artifacts: Path, experiment: str, model: str, parameters: dict[str, Any]) -> dict[str, Any]:
    """Brings MLflow to what the files under `artifacts` say, and returns a receipt.

    The tracking URI is MLFLOW_TRACKING_URI, else mlflow.db in the working directory. Publishing the same files again
    creates nothing; after a change only the ways that changed get new runs. `model` is the registered model's name,
    `parameters` all of params.yaml, shown with the frontier's run. The files are verified and only read.

    Receipt: tracking_uri (without a password), experiment_id, runs {way: run id}, train {checkpoint: run id}, frontier
    (run id), models {point: model id}, version {name, version, alias, point}, ui (a link's path below the server's address).
    Raises Mistake if MLflow does not answer or refuses, or a file is missing or damaged.
    """
    files = _read(Path(artifacts), parameters)
    uri = os.environ.get("MLFLOW_TRACKING_URI") or LOCAL
    aloud: list[str] = []
    try:
        with _signed_in(uri) as address:
            _ask(address)
            with alone(address), _explained(address):
                return _publish(files, _open(address, experiment, aloud), model) | {"tracking_uri": told(uri)}
    finally:
        for line in aloud:
            say(f"publish: {line}")


def _publish(files: Files, book: Book, model: str) -> dict[str, Any]:
    # the page opens with the newest ten runs in its charts: the first way to sample the teacher, then the students
    trained = _train_pages(book, files)
    pages = [*reversed(trained), _frontier_page(book, files), _floor_page(book, files)]
    pages += reversed(_students_early(_way_pages(book, files)))
    runs = _enter(book, pages)
    models = _models(book, set(runs.values()))
    (way,) = (page for page in pages if page.kind == "way" and files.recommended in page.content["points"])
    models |= _weighed(book, files, models, runs[way.digest])
    models |= _mended(book, files, models)
    number = _register(book, files, model, models)
    _note(book, files, model, number)
    ids = {
        kind: {page.name: runs[page.digest] for page in reversed(pages) if page.kind == kind}
        for kind in ("way", "train", "frontier")
    }
    return {
        "experiment_id": book.experiment,
        "runs": ids["way"],
        "train": ids["train"],
        "frontier": ids["frontier"]["frontier"],
        "models": {name: found.model_id for name, found in models.items()},
        "version": {"name": model, "version": number, "alias": CHALLENGER, "point": files.recommended["name"]},
        "ui": CHART.format(book.experiment),
    }


def how_to_open(receipt: dict[str, Any]) -> str:
    """A line or two that tell a person where to see what `publish` published."""
    uri = told(receipt["tracking_uri"])
    if uri.startswith(HTTP):
        return f"MLflow: {uri.rstrip('/')}/{receipt['ui']}"
    store = uri if uri.startswith(database.SCHEME) else '"$MLFLOW_TRACKING_URI"'  # a password may be a part of it
    command = f".venv/bin/mlflow server --workers 1 --backend-store-uri {store}"
    return f"MLflow: {command}\n        then open http://127.0.0.1:5000/{receipt['ui']}"


def lost(receipt: dict[str, Any]) -> str | None:
    """Why the SQLite file that a receipt names does not show what was published; None if it does, or MLflow is elsewhere."""
    path = database.file_of(receipt["tracking_uri"])
    return None if path is None else database.lacks(path, receipt["frontier"])


def _read(folder: Path, parameters: dict[str, Any]) -> Files:
    from diffcore.metrics.frontier import Frontier

    path = folder / "frontier.json"
    table = pictures.flat(Frontier.read(path, paths.again("evaluate")))
    cards = {name: _card(folder / "checkpoints" / name) for name in sorted({p["checkpoint"] for p in table["points"]})}
    files = Files(folder, table, cards, parameters)
    for point in table["points"]:
        if cards[point["checkpoint"]]["digest"] != point["checkpoint_digest"]:
            raise Mistake(
                f"{files.checkpoint(point)} is not the network that was measured; run the evaluate stage again"
            )
    for needed in (*files.shown, *(files.samples(point) for point in table["points"])):
        if not needed.exists():
            raise Mistake(f"{needed} is missing; run the evaluate stage again")
    if any(point["sampler"] == "analytic" for point in table["points"]):
        _check_gamma(files)
    _check_rows(folder / "frontier.csv", table["points"])
    for picture in (folder / "frontier.png", folder / "samples/all.png", *map(files.samples, table["points"])):
        _check_picture(picture)
    return files


def _damaged(path: Path) -> Mistake:
    return Mistake(f"{path} is damaged; run the stage that makes it again")


def _card(folder: Path) -> dict[str, Any]:
    """The card of a checkpoint whose every file is as the card says."""
    from diffcore.checkpoints import verify

    return asdict(verify(folder))


def _check_gamma(files: Files) -> None:
    """Whether what analytic samplers are shipped with is whole, and was estimated from this teacher."""
    from diffcore.search import gamma

    teacher = files.cards.get(TEACHER)
    gamma.read(files.folder / "gamma.json", teacher and teacher["digest"], paths.again("gamma"))


def _check_rows(path: Path, points: list[Point]) -> None:
    """Whether a table for spreadsheets says of each point what frontier.json says."""
    with open(path, newline="", errors="replace") as file:
        rows = list(csv.DictReader(file))
    if len(rows) != len(points) or any(_differ(row, point) for row, point in zip(rows, points, strict=True)):
        raise _damaged(path)


def _differ(row: dict[str, str], point: Point) -> bool:
    wanted = {key: " ".join(map(str, value)) if key == "times" else value for key, value in point.items()}
    wanted = {key: "" if value is None else str(value) for key, value in wanted.items()}
    return any(row[key] != wanted[key] for key in row.keys() & wanted.keys())


def _check_picture(path: Path) -> None:
    from PIL import Image

    try:
        with Image.open(path) as picture:
            picture.verify()  # the checksum of every part of a PNG
    except (OSError, SyntaxError, ValueError):
        raise _damaged(path) from None


@contextlib.contextmanager
def _signed_in(uri: str) -> Iterator[str]:
    """The address without its password, which goes to MLflow by its own variables: so it stands in no request's address,
    no exception, no tag. A Mistake if it is no address."""
    address, user, password = uri, "", ""
    if uri.startswith(HTTP):
        try:
            address, user, password = parted(uri)
        except ValueError as error:
            raise Mistake(f"MLFLOW_TRACKING_URI is {told(uri)}, no address: {error}; {ADVICE}") from None
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


def _ask(address: str) -> None:
    """Finds out in three seconds whether a server is there: MLflow itself would try for minutes."""
    if not address.startswith(HTTP):
        return
    try:
        urllib.request.urlopen(parted(address)[0].rstrip("/") + "/health", timeout=3).close()
    except urllib.error.HTTPError as error:
        error.close()  # it answers; what it thinks of us, MLflow's client will say
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise _silent(address, error) from None


def _silent(address: str, error: Exception) -> Mistake:
    return Mistake(f"MLflow at {told(address)} does not answer: {_reason(error)}; {ADVICE}")


def _reason(error: Exception) -> str:
    """An error of a library's in one line of a length that can be read, and without a password."""
    text = told(str(getattr(error, "reason", None) or error) or type(error).__name__)
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
        raise Mistake(f"MLflow at {told(address)} cannot be written to: {lock}: {error.strerror}") from None
    try:
        _hold(descriptor, waiting)
        yield
    finally:
        os.close(descriptor)


def _hold(descriptor: int, waiting: str) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        say(waiting)
        fcntl.flock(descriptor, fcntl.LOCK_EX)


@contextlib.contextmanager
def prepared(address: str, waiting: str) -> Iterator[None]:
    """Holds the database of a server that is about to start, made or upgraded first, against all who would make it too."""
    with alone(address, waiting):
        if (file := database.file_of(address)) is not None:
            with _explained(address):
                done = database.ready(file)
            if done:
                say(done)
        yield


@contextlib.contextmanager
def _explained(address: str) -> Iterator[None]:
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
        if isinstance(error, OSError) and error.filename and faults.told(error):
            raise  # no word of MLflow's: a file of ours or its own that the machine refuses
        raise Mistake(f"MLflow at {told(address)} refuses: {_reason(error)}") from None


def _open(address: str, name: str, aloud: list[str]) -> Book:
    file = database.file_of(address)
    if file is not None and (done := database.ready(file)):
        aloud.append(done)
    client = _client(address)
    found = client.get_experiment_by_name(name)
    if found is not None and found.lifecycle_stage == "deleted":
        raise Mistake(f"the MLflow experiment {name!r} was deleted; restore it or choose another publish.experiment")
    # without this tag the UI opens in its mode for language models, where runs and checkpoints have other names
    kind = {"mlflow.experimentKind": "custom_model_development"}
    return Book(client, found.experiment_id if found else client.create_experiment(name, tags=kind), aloud)


def _client(address: str) -> Any:
    import mlflow
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        mlflow.set_tracking_uri(address)
        return mlflow.MlflowClient()
    except (MlflowException, SQLAlchemyError, ImportError, ValueError) as error:
        raise Mistake(f"MLFLOW_TRACKING_URI is {told(address)}, which MLflow cannot open: {_reason(error)}") from None


def _enter(book: Book, pages: list[Page]) -> dict[str, str]:
    """The run of each page, by the page's digest: the one that is there, or a new one. All others are not current."""
    known = list(_all(lambda token: book.client.search_runs([book.experiment], page_token=token)))
    finished = {run.data.tags.get("digest"): run for run in reversed(known) if run.info.status == "FINISHED"}
    runs = {}
    for page in pages:
        run = finished.get(page.digest)
        runs[page.digest] = run.info.run_id if run else _new_run(book, page)
        if run and run.data.tags["current"] == "false":  # an earlier frontier is back
            _mark(book, run, "true")
    for run in known:
        if run.info.run_id not in runs.values() and run.data.tags.get("current") == "true":
            _mark(book, run, "false")
    return runs


def _new_run(book: Book, page: Page) -> str:
    import mlflow

    tags = {"kind": page.kind, "digest": page.digest, "current": "true"}
    with mlflow.start_run(experiment_id=book.experiment, run_name=page.name, tags=tags) as run:
        page.fill(run.info.run_id)
    return run.info.run_id


def _mark(book: Book, run: Any, current: str) -> None:
    if run.info.status == "RUNNING":  # its publisher was killed: the lock says that no other is at work
        book.client.set_terminated(run.info.run_id, "KILLED")
    book.client.set_tag(run.info.run_id, "current", current)
    for found in _logged(book, f"source_run_id = '{run.info.run_id}'"):
        book.client.set_logged_model_tags(found.model_id, {"current": current})


def _models(book: Book, runs: set[str]) -> dict[str, Any]:
    """The current logged model of each point; where a point has one with weights and one without, that with weights."""
    found = [model for model in _logged(book, "tags.current = 'true'") if model.source_run_id in runs]
    return {model.tags["point"]: model for model in sorted(found, key=lambda model: model.tags["weights"] == "here")}


def _weighed(book: Book, files: Files, models: dict[str, Any], run: str) -> dict[str, Any]:
    """The recommended point's model with weights, where an earlier frontier recommended another and left it without, or a
    person deleted it. run: that of the point's way."""
    import mlflow

    point = files.recommended
    found = models.get(point["name"])
    if found and found.tags["weights"] == "here":
        return {}
    if not found:
        book.aloud.append(f"what MLflow held of {point['name']} was deleted; logged again")
    with mlflow.start_run(run_id=run):
        return {point["name"]: mlflow.get_logged_model(_with_weights(files, point))}


def _mended(book: Book, files: Files, models: dict[str, Any]) -> dict[str, Any]:
    """New models for those whose weights in MLflow's store are no longer what was logged."""
    import mlflow

    new = {}
    points = {point["name"]: point for point in files.table["points"]}
    for name, found in models.items():
        point = points[name]
        if found.tags["weights"] != "here" or not (fault := _fault(files, point, found)):
            continue
        book.client.set_logged_model_tags(found.model_id, {"current": "false", "damaged": fault})
        book.aloud.append(f"what MLflow holds of {point['name']} is damaged ({fault}); logged again")
        with mlflow.start_run(run_id=found.source_run_id):
            new[point["name"]] = mlflow.get_logged_model(_with_weights(files, point))
    return new


def _fault(files: Files, point: Point, model: Any) -> str | None:
    """Which file of a logged model is not as it was logged, or of its checkpoint not as its card says; None for none.

    A store elsewhere is asked for the recommended point's alone: that one is shipped, and all would be gigabytes.
    """
    if (folder := _local(model.artifact_location)) is not None:
        return _misfit(files, point, folder, model.tags.get("files"))
    if point["name"] != files.recommended["name"]:
        return None
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    with tempfile.TemporaryDirectory() as room:
        try:
            download_artifacts(artifact_uri=model.artifact_location, dst_path=room)
        except MlflowException as error:
            return _reason(error)
        (fetched,) = [path.parent for path in Path(room).rglob("MLmodel")] or [Path(room)]
        return _misfit(files, point, fetched, None)


def _local(location: str) -> Path | None:
    """The folder that a location in MLflow means, if it is one of this machine's."""
    scheme = urllib.parse.urlsplit(location).scheme  # `mlflow-artifacts:/1`, a server's own, has one slash
    if not scheme:
        return Path(location)
    path = location.removeprefix("file:").removeprefix("//")
    return Path(urllib.request.url2pathname(path)) if scheme == "file" else None


def _misfit(files: Files, point: Point, folder: Path, logged: str | None) -> str | None:
    there = _digests(folder)
    for name, digest in _shipped(files, point).items():
        if there.get(name) != digest:
            return f"{name} is {'changed' if name in there else 'missing'}"
    return "a file of it was changed" if logged is not None and logged != disk.digest(there) else None


def _digests(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): disk.sha256(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def _shipped(files: Files, point: Point) -> dict[str, str]:
    """Of a point's files, where MLflow puts them in a model, with their sha256."""
    name = point["checkpoint"]
    shipped = {f"artifacts/{name}/{file}": digest for file, digest in files.cards[name]["files"].items()}
    shipped[f"artifacts/{name}/card.json"] = disk.sha256(files.checkpoint(point) / "card.json")
    if point["sampler"] == "analytic":
        shipped["artifacts/gamma.json"] = disk.sha256(files.folder / "gamma.json")
    return shipped


def _logged(book: Book, condition: str) -> Iterator[Any]:
    def search(token: str | None) -> Any:
        return book.client.search_logged_models([book.experiment], filter_string=condition, page_token=token)

    return _all(search)


def _all(search: Callable[[str | None], Any]) -> Iterator[Any]:
    page = search(None)
    yield from page
    while page.token:
        page = search(page.token)
        yield from page


def _way_pages(book: Book, files: Files) -> list[Page]:
    about = files.table["about"]
    pages = []
    for name, points in pictures.ways(files.table["points"]).items():
        cards = {point["checkpoint"]: files.cards[point["checkpoint"]] for point in points}
        images = {point["name"]: disk.sha256(files.samples(point)) for point in points}
        content = {"points": points, "about": about, "cards": cards, "images": images}
        pages.append(
            Page(
                "way", name, content, lambda run, points=points, cards=cards: _fill_way(book, files, points, cards, run)
            )
        )
    return pages


def _students_early(pages: list[Page]) -> list[Page]:
    """The teacher's first way, by which all are measured, the students' ways, and the teacher's others."""
    first, *others = pages
    return [first, *sorted(others, key=lambda page: page.content["points"][0]["method"] == "teacher")]


def _fill_way(book: Book, files: Files, points: list[Point], cards: dict[str, dict[str, Any]], run: str) -> None:
    metrics = []
    for point in points:
        carries = _carries(files, point)
        model = _with_weights(files, point) if carries else _without_weights(book, point, run)
        metrics += _metrics(pictures.measured(point), round(point["nfe"]), model)
    about = {f"evaluate/{key}": value for key, value in files.table["about"].items()}
    trained = {
        f"{name}/{key}": value for name, card in cards.items() for key, value in _flat(card["parameters"]).items()
    }
    tags = {"method": points[0]["method"], **{f"digest {name}": card["digest"] for name, card in cards.items()}}
    _log(book, run, metrics, about | trained, tags)
    _log_images(book, files, points, run)


def _carries(files: Files, point: Point) -> bool:
    """Whether this point's logged model holds weights: they are copied once for each student's checkpoint, with its
    recommended point or else its best, and for the teacher only if one of its points is recommended."""
    if files.recommended["checkpoint"] == point["checkpoint"]:
        return point["name"] == files.recommended["name"]
    alike = [p for p in files.table["points"] if p["checkpoint"] == point["checkpoint"]]
    return point["method"] != "teacher" and point["name"] == min(alike, key=lambda p: p["fd"])["name"]


def _with_weights(files: Files, point: Point) -> str:
    """Logs a point's checkpoint, this package's code and sampler_model.py as a model that MLflow can serve."""
    artifacts = {"checkpoint": str(files.checkpoint(point).resolve())}
    config = {"recipe": point["recipe"], "times": list(point["times"])}
    if point["sampler"] == "analytic":  # its variance is read from Gamma
        artifacts["gamma"] = str((files.folder / "gamma.json").resolve())
    with _unadvised():
        from mlflow import pyfunc  # warns of its own type hints

        logged = pyfunc.log_model(
            name=_model_name(point),
            python_model=str(Path(__file__).with_name("sampler_model.py")),
            artifacts=artifacts,
            code_paths=[str(Path(disk.__file__).parents[1])],
            model_config=config,
            signature=_signature(files.cards[point["checkpoint"]]["image"]),
            pip_requirements=[_pin(package) for package in ("mlflow", "torch", "numpy", "safetensors")],
            params=_model_params(point),
            tags=_model_tags(point) | {"weights": "here"},
            model_type="sampler",
            step=round(point["nfe"]),
        )
    _seal(files, point, logged.model_id)
    return logged.model_id


def _seal(files: Files, point: Point, model: str) -> None:
    """Checks what MLflow copied and notes the digest of all of it, where its store is a folder of this machine."""
    import mlflow

    folder = _local(mlflow.get_logged_model(model).artifact_location)
    if folder is None:
        return
    if fault := _misfit(files, point, folder, None):
        raise Mistake(f"MLflow did not keep {point['name']} as it is: {fault} in {folder}; publish again")
    mlflow.set_logged_model_tags(model, {"files": disk.digest(_digests(folder))})


@contextlib.contextmanager
def _unadvised() -> Iterator[None]:
    """MLflow would have the signature inferred by running the model; ours is given."""
    with warnings.catch_warnings():
        for advice in (
            "An input example was not provided",
            "Add type hints to the `predict`",
            "Any type hint is inferred",
        ):
            warnings.filterwarnings("ignore", f".*{advice}", UserWarning)
        yield


def _without_weights(book: Book, point: Point, run: str) -> str:
    """Records a point whose weights are another model's: its numbers and where it came from, nothing copied."""
    import mlflow

    return mlflow.create_external_model(
        name=_model_name(point),
        source_run_id=run,
        experiment_id=book.experiment,
        params=_model_params(point),
        tags=_model_tags(point) | {"weights": f"not here: checkpoints/{point['checkpoint']}"},
        model_type="sampler",
    ).model_id


def _model_name(point: Point) -> str:
    return re.sub(r"[^\w-]+", "-", point["name"])


def _model_params(point: Point) -> dict[str, str]:
    return {
        key: str(point[key]) for key in ("method", "checkpoint", "sampler", "trajectory", "recipe", "nfe", "seed", "n")
    }


def _model_tags(point: Point) -> dict[str, str]:
    identity = {key: str(value) for key, value in _identity(point).items()}
    return identity | {"point": point["name"], "method": point["method"], "fd": f"{point['fd']:.4g}", "current": "true"}


def _identity(point: Point) -> dict[str, Any]:
    """What makes two points the same thing to ship."""
    names = {"digest": "checkpoint_digest", "recipe": "recipe", "trajectory": "trajectory", "nfe": "nfe"}
    return {tag: f"{point[key]:g}" if tag == "nfe" else point[key] for tag, key in names.items()}


def _signature(image: list[int]) -> Any:
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema, TensorSpec

    c, h, w = image
    return ModelSignature(
        inputs=Schema([ColSpec("long", "num_images")]),
        outputs=Schema([TensorSpec(np.dtype("uint8"), (-1, h, w, c))]),
        params=ParamSchema([ParamSpec("seed", "long", 0)]),
    )


def _pin(package: str) -> str:
    # without the local part ("+cpu"), which no index serves
    return f"{package}=={version(package).split('+')[0]}"


def _log_images(book: Book, files: Files, points: list[Point], run: str) -> None:
    """The grids by step, and at step 0, where the UI's slider starts, all of the way's points one below the other."""
    from PIL import Image

    rows = [(point["name"], pictures.tiles(files.samples(point))) for point in reversed(points)]
    with tempfile.TemporaryDirectory() as folder:
        sheet = Path(folder) / "sheet.png"
        pictures.contact_sheet(rows, sheet)
        for step, path in [(0, sheet), *((round(point["nfe"]), files.samples(point)) for point in points)]:
            with Image.open(path) as picture:
                book.client.log_image(run, picture.convert("RGB"), key="samples", step=step)


def _frontier_page(book: Book, files: Files) -> Page:
    """The whole table: its files and pictures, the recommendation and every parameter."""
    table = files.table

    def fill(run: str) -> None:
        floor = {f"floor_{key}": value for key, value in table["floor"].items() if isinstance(value, float | int)}
        tags = {"recommended": table["recommended"]["name"], "reason": table["recommended"]["reason"]}
        _log(book, run, _metrics(floor, 0), _flat(files.parameters), tags)
        for path in files.shown:
            book.client.log_artifact(run, str(path))

    content = {"parameters": files.parameters, "files": {path.name: disk.sha256(path) for path in files.shown}}
    return Page("frontier", "frontier", content, fill)


def _floor_page(book: Book, files: Files) -> Page:
    """The real-against-real floor as a way of its own: a level line under the others in every chart."""
    floor = {key: value for key, value in files.table["floor"].items() if isinstance(value, float)}
    steps = sorted({round(point["nfe"]) for point in files.table["points"]})
    content = {"floor": floor, "steps": steps, "about": files.table["about"]}

    def fill(run: str) -> None:
        _log(book, run, [metric for step in steps for metric in _metrics(floor, step)], {}, {})

    return Page("floor", "real against real", content, fill)


def _train_pages(book: Book, files: Files) -> list[Page]:
    pages = []
    for path in sorted((files.folder / "curves").glob("*.csv")):
        name = path.stem
        card = _card(files.folder / "checkpoints" / name)
        disk.read_summed(path, paths.again(paths.stage(name)))
        cost = _cost(files.folder / "cost" / f"{name}.json", name)
        content = {"curve": disk.sha256(path), "digest": card["digest"], "cost": cost}
        pages.append(Page("train", f"train {name}", content, _train_filler(book, path, card, cost)))
    return pages


def _train_filler(book: Book, path: Path, card: dict[str, Any], cost: dict[str, Any]) -> Callable[[str], None]:
    def fill(run: str) -> None:
        rows = _thinned(path)
        metrics = [metric for row in rows for metric in _metrics(_curve_values(row), int(row["step"]))]
        tags = {key: card[key] or "none" for key in ("method", "parent", "data")} | {
            f"digest {path.stem}": card["digest"]
        }
        spent = {f"cost.{key}": value for key, value in cost.items()}  # one number each: as a metric, an empty chart
        _log(book, run, metrics, _flat(card["parameters"]) | {"seed": card["seed"]} | spent, tags)
        book.client.log_artifact(run, str(path))

    return fill


def _curve_values(row: dict[str, float]) -> dict[str, float]:
    return {f"train_{key}": row[key] for key in ("loss", "grad_norm", "lr")}


def _thinned(path: Path) -> list[dict[str, float]]:
    """A curve as at most CURVE_ROWS rows: each the mean of as many neighbours, at the step of the last of them."""
    text = disk.read_summed(path, paths.again(paths.stage(path.stem)))
    rows = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(io.StringIO(text))]
    width = -(-len(rows) // CURVE_ROWS) or 1
    cells = [rows[first : first + width] for first in range(0, len(rows), width)]
    return [
        {key: sum(row[key] for row in cell) / len(cell) for key in cell[0]} | {"step": cell[-1]["step"]}
        for cell in cells
    ]


def _cost(path: Path, name: str) -> dict[str, Any]:
    return disk.read_sealed(path, None, paths.again(paths.stage(name)))


def _metrics(values: dict[str, float | None], step: int, model: str | None = None) -> list[Any]:
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    return [Metric(key, float(value), now, step, model_id=model) for key, value in values.items() if value is not None]


def _log(book: Book, run: str, metrics: list[Any], params: dict[str, Any], tags: dict[str, str]) -> None:
    from mlflow.entities import Param, RunTag

    book.client.log_batch(
        run,
        metrics=metrics,
        params=[Param(_key(key), str(value)[:VALUE]) for key, value in params.items()],
        tags=[RunTag(_key(key), str(value)[:VALUE]) for key, value in tags.items()],
    )


def _key(key: str) -> str:
    return re.sub(r"[^\w\-. :/]", "_", key)[:250]


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _register(book: Book, files: Files, model: str, models: dict[str, Any]) -> str:
    """The version that holds the recommended point, new only if there is none, and the alias moved to it."""
    import mlflow

    point = files.recommended
    wanted = _identity(point)
    versions = list(_all(lambda token: book.client.search_model_versions(f"name = '{model}'", page_token=token)))
    same = [v for v in versions if all(v.tags.get(key) == value for key, value in wanted.items())]
    sound = [v for v in same if not _version_fault(book, files, v)]
    if sound:
        number = max(sound, key=lambda v: int(v.version)).version
    else:
        source = models[point["name"]].model_id
        tags = {**wanted, "method": point["method"], "fd": f"{point['fd']:.4g}", "point": point["name"]}
        number = mlflow.register_model(f"models:/{source}", model, await_registration_for=0, tags=tags).version
    aliases = book.client.get_registered_model(model).aliases
    if aliases.get(CHALLENGER) != str(number):
        book.client.set_registered_model_alias(model, CHALLENGER, str(number))
    for bad in (v for v in same if v not in sound):
        _tell_of(book, model, bad, number, [name for name in _names(aliases, bad.version) if name != CHALLENGER])
    return str(number)


def _names(aliases: dict[str, str], version: str) -> list[str]:
    return sorted(name for name, number in aliases.items() if str(number) == str(version))


def _version_fault(book: Book, files: Files, version: Any) -> str | None:
    from mlflow.exceptions import MlflowException

    try:
        model = book.client.get_logged_model(version.source.removeprefix("models:/"))
    except MlflowException:
        return "its logged model is gone"
    return _fault(files, files.recommended, model)


def _tell_of(book: Book, model: str, bad: Any, number: str, left: list[str]) -> None:
    """Marks a damaged version, once, and says which takes its place. An alias that a person set stays where it is."""
    if "damaged" not in bad.tags:
        book.client.set_model_version_tag(model, bad.version, "damaged", f"replaced by version {number}")
        book.aloud.append(f"version {bad.version} of {model!r} in MLflow is damaged; version {number} takes its place")
    for name in left:
        book.aloud.append(f"the alias {name!r} of {model!r} names the damaged version {bad.version}: set it anew")


def _note(book: Book, files: Files, model: str, number: str) -> None:
    """The table and the recommendation on the experiment's own page."""
    recommended = files.table["recommended"]
    head = f"Recommended: **{recommended['name']}** ({model} version {number}). {recommended['reason']}"
    head += "".join(f"\n\nWarning: {warning}." for warning in recommended["warnings"])
    note = "\n".join([head, "", *_lines(files.table["points"], NOTE - len(head) - 2)])
    if book.client.get_experiment(book.experiment).tags.get("mlflow.note.content") != note:
        book.client.set_experiment_tag(book.experiment, "mlflow.note.content", note)


def _lines(points: list[Point], room: int) -> list[str]:
    """A table of the points by rising calls in at most `room` characters: all, or the best of each number of calls, as many
    as there is room for, and how many more there are."""
    lines = ["| point | calls | distance | ms/image |", "|---|---|---|---|"]
    rows = [(p, _line(p)) for p in sorted(points, key=lambda p: (p["nfe"], p["fd"]))]
    if _length([*lines, *(line for _, line in rows)]) <= room:
        return [*lines, *(line for _, line in rows)]
    room -= _length(lines) + 100  # for the last line
    for _, line in _firsts(rows):
        if (room := room - len(line) - 1) < 0:
            break
        lines.append(line)
    return [*lines, "", f"{len(rows) - len(lines) + 2} more points: frontier.csv in the run frontier holds all."]


def _firsts(rows: list[tuple[Point, str]]) -> list[tuple[Point, str]]:
    """Of each number of calls the first row alone."""
    return [row for row, before in zip(rows, [None, *rows]) if before is None or before[0]["nfe"] != row[0]["nfe"]]


def _length(lines: list[str]) -> int:
    return sum(len(line) + 1 for line in lines)


def _line(p: Point) -> str:
    return f"| {p['name']} | {p['nfe']:g} | {p['fd']:.3g} +- {p['fd_se']:.1g} | {p['ms_per_image']:.3g} |"
