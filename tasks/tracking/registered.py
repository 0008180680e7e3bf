"""What an alias of the registered model stands for: a checkpoint and its sampling, as MLflow holds them."""

import contextlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffcore.checkpoints import read_card
from diffcore.core import disk
from diffcore.core.errors import UserError
from tasks import database, paths
from tasks.progress import log
from tasks.tracking.client import LOCAL, alone, ask, explained, open_store, signed_in
from tasks.tracking.models import digests_of, local_folder

FETCHED = paths.RESUME / "registered"
"""Models of a store on another machine, by their ids."""

ALIAS = "@"
"""Begins a word that can be an alias alone."""

IDENTITY = {"point", "digest", "recipe"}
"""Tags that each version of `publish` has."""


@dataclass(frozen=True)
class Registered:
    """A version of the registered model. folder: its checkpoint's. tags: the version's, which say what was registered.
    recipe: as JSON. gamma: of a sampling by the analytic solver."""

    model: str
    version: str
    tags: dict[str, str]
    folder: Path
    recipe: str
    times: tuple[float, ...]
    gamma: Path | None

    def __str__(self) -> str:
        return f"version {self.version} of {self.model!r}, {self.tags['point']}"


def is_there() -> bool:
    """Whether there is an MLflow to ask: one that the environment names, or the file that `publish` writes here."""
    return bool(os.environ.get("MLFLOW_TRACKING_URI")) or database.file_of(LOCAL).exists()


def aliases(model: str) -> dict[str, str]:
    """The aliases of the registered model with their versions; none where nothing is registered. A UserError for an MLflow
    that does not answer."""
    with _opened() as client:
        return aliases_of(client, model)


def fetch(model: str, version: str) -> Registered:
    """A version, where it lies if that is a folder of this machine, else copied to FETCHED once. A UserError for one that is
    not whole, and for one that `publish` did not register."""
    with _opened() as client:
        there = client.get_model_version(model, version)
        described = refuse_unfit(model, there)
        folder, sealed = _folder(client, there)
        try:
            if sealed is not None and sealed != disk.digest(digests_of(folder)):
                raise ValueError("a file of it was changed")
            return _read(model, there, folder)
        except (UserError, OSError, LookupError, TypeError, ValueError) as error:
            fault = str(error).partition("; ")[0]
            raise UserError(f"{described} is damaged in MLflow ({fault}); run `distill publish`") from error


@contextlib.contextmanager
def _opened() -> Iterator[Any]:
    """The client of the store; nobody publishes to a database of ours meanwhile, which may be upgraded first."""
    aloud: list[str] = []
    try:
        with signed_in(os.environ.get("MLFLOW_TRACKING_URI") or LOCAL) as address:
            ask(address)
            with contextlib.ExitStack() as stack:
                if (file := database.file_of(address)) is not None and file.exists():
                    stack.enter_context(alone(address))
                stack.enter_context(explained(address))
                yield open_store(address, aloud)
    finally:
        for line in aloud:
            log(line)


def aliases_of(client: Any, model: str) -> dict[str, str]:
    """As `aliases`, of a store that is open."""
    from mlflow.exceptions import MlflowException

    try:
        return {alias: str(number) for alias, number in client.get_registered_model(model).aliases.items()}
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return {}
        raise


def listing(model: str, aliases: Iterable[str]) -> str:
    """Which aliases there are, for a refusal."""
    return f"the aliases of {model!r} in MLflow are {', '.join(sorted(aliases)) or 'none yet'}"


def refuse_unfit(model: str, version: Any) -> str:
    """How the version is called; a UserError for one that MLflow holds damaged or that `publish` did not register."""
    described = f"version {version.version} of {model!r}"
    if not version.tags.keys() >= IDENTITY:
        raise UserError(f"{described} is no sampler that `distill publish` registered; name another alias")
    if "damaged" in version.tags:
        raise UserError(f"{described} is damaged in MLflow; run `distill publish`")
    return described


def _folder(client: Any, version: Any) -> tuple[Path, str | None]:
    """The folder of a version's files, and the digest of them all where `publish` noted one."""
    location = client.get_model_version_download_uri(version.name, version.version)
    source = version.source.removeprefix("models:/")
    if (folder := local_folder(location)) is not None:
        return folder, client.get_logged_model(source).tags.get("files")
    if not (FETCHED / source).exists():
        from mlflow.artifacts import download_artifacts

        FETCHED.mkdir(parents=True, exist_ok=True)
        with disk.folder(FETCHED / source) as new:
            download_artifacts(artifact_uri=location, dst_path=str(new))
    return next(path.parent for path in (FETCHED / source).rglob("MLmodel")), None


def _read(model: str, version: Any, folder: Path) -> Registered:
    from mlflow.models import Model

    flavor = Model.load(str(folder)).flavors["python_function"]
    config, files = flavor["config"], {key: folder / each["path"] for key, each in flavor["artifacts"].items()}
    card = read_card(files["checkpoint"])
    for name, there, wanted in (("card", card.digest, "digest"), ("recipe", config["recipe"], "recipe")):
        if there != version.tags[wanted]:
            raise ValueError(f"its {name} is another than was registered")
    return Registered(
        model,
        str(version.version),
        dict(version.tags),
        files["checkpoint"],
        config["recipe"],
        tuple(config["times"]),
        files.get("gamma"),
    )
