"""Logged models: one for each point, with weights where they are shipped, and the registered versions that are picked."""

import contextlib
import re
import shutil
import tempfile
import urllib.parse
import urllib.request
import warnings
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from diffcore.core import disk
from diffcore.core.errors import UserError
from diffcore.metrics.point import Point, best_of
from tasks import paths
from tasks.tracking.artifacts import ALIASES, Artifacts
from tasks.tracking.client import Experiment, every, logged, reason

LOADING = {"__pycache__", "registered_model_meta"}
"""What Python and MLflow write into a model's folder when it is loaded where it lies."""


def current_models(experiment: Experiment, runs: set[str]) -> dict[str, Any]:
    """The current logged model of each point; where a point has one with weights and one without, that with weights."""
    current = [model for model in logged(experiment, "tags.current = 'true'") if model.source_run_id in runs]
    return {model.tags["point"]: model for model in sorted(current, key=lambda model: model.tags["weights"] == "here")}


def weighed(
    experiment: Experiment, artifacts: Artifacts, models: dict[str, Any], runs: dict[str, str]
) -> dict[str, Any]:
    """The models with weights of the points that are picked, where an earlier frontier picked others and left these without,
    or a person deleted one. runs: of each point, that of its curve."""
    import mlflow

    new = {}
    for point in {point.name: point for point in artifacts.picks.values()}.values():
        model = models.get(point.name)
        if model and model.tags["weights"] == "here":
            continue
        if not model:
            experiment.aloud.append(f"what MLflow held of {point.name} was deleted; logged again")
        with mlflow.start_run(run_id=runs[point.name]):
            new[point.name] = mlflow.get_logged_model(with_weights(artifacts, point))
    return new


def mended(experiment: Experiment, artifacts: Artifacts, models: dict[str, Any]) -> dict[str, Any]:
    """New models for those whose weights in MLflow's store are no longer what was logged."""
    import mlflow

    new = {}
    points = {point.name: point for point in artifacts.frontier.points}
    for name, model in models.items():
        point = points[name]
        if model.tags["weights"] != "here" or not (fault := _fault(artifacts, point, model)):
            continue
        experiment.client.set_logged_model_tags(model.model_id, {"current": "false", "damaged": fault})
        experiment.aloud.append(f"what MLflow holds of {point.name} is damaged ({fault}); logged again")
        with mlflow.start_run(run_id=model.source_run_id):
            new[point.name] = mlflow.get_logged_model(with_weights(artifacts, point))
    return new


def _fault(artifacts: Artifacts, point: Point, model: Any) -> str | None:
    """Which file of a logged model is not as it was logged, or of its checkpoint not as its card says; None for none.

    A store elsewhere is asked for those of the picked points alone: these are shipped, and all would be gigabytes.
    """
    if (folder := local_folder(model.artifact_location)) is not None:
        return _misfit(artifacts, point, folder, model.tags.get("files"))
    if not artifacts.is_picked(point):
        return None
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    with tempfile.TemporaryDirectory() as room:
        try:
            download_artifacts(artifact_uri=model.artifact_location, dst_path=room)
        except MlflowException as error:
            return reason(error)
        (fetched,) = [path.parent for path in Path(room).rglob("MLmodel")] or [Path(room)]
        return _misfit(artifacts, point, fetched, None)


def local_folder(location: str) -> Path | None:
    """The folder that a location in MLflow means, if it is one of this machine's."""
    scheme = urllib.parse.urlsplit(location).scheme  # `mlflow-artifacts:/1`, a server's own, has one slash
    if not scheme:
        return Path(location)
    path = location.removeprefix("file:").removeprefix("//")
    return Path(urllib.request.url2pathname(path)) if scheme == "file" else None


def _misfit(artifacts: Artifacts, point: Point, folder: Path, logged: str | None) -> str | None:
    there = digests_of(folder)
    for name, digest in _shipped(artifacts, point).items():
        if there.get(name) != digest:
            return f"{name} is {'changed' if name in there else 'missing'}"
    return "a file of it was changed" if logged is not None and logged != disk.digest(there) else None


def digests_of(folder: Path) -> dict[str, str]:
    """By name the sha256 of each file, but for what LOADING leaves."""
    files = (
        path for path in sorted(folder.rglob("*")) if path.is_file() and not LOADING & {path.name, path.parent.name}
    )
    return {str(path.relative_to(folder)): disk.sha256(path) for path in files}


def _shipped(artifacts: Artifacts, point: Point) -> dict[str, str]:
    """Of a point's files, where MLflow puts them in a model, with their sha256."""
    name = point.checkpoint
    shipped = {f"artifacts/{name}/{file}": digest for file, digest in artifacts.cards[name].files.items()}
    shipped[f"artifacts/{name}/card.json"] = disk.sha256(artifacts.checkpoint(point) / "card.json")
    if point.sampler == "analytic":
        shipped["artifacts/gamma.json"] = disk.sha256(artifacts.folder / "gamma.json")
    return shipped


def carries(artifacts: Artifacts, point: Point) -> bool:
    """Whether this point's logged model holds weights: those of the points that are picked, and of each student's checkpoint
    of which none is, that of its best point."""
    if any(pick.checkpoint == point.checkpoint for pick in artifacts.picks.values()):
        return artifacts.is_picked(point)
    alike = [each for each in artifacts.frontier.points if each.checkpoint == point.checkpoint]
    return point.method != "teacher" and point.name == best_of(alike).name


def with_weights(artifacts: Artifacts, point: Point) -> str:
    """Logs a point's checkpoint, this package's code and sampler_model.py as a model that MLflow can serve."""
    with _shippable(artifacts.checkpoint(point).resolve()) as checkpoint:
        return _logged(artifacts, point, {"checkpoint": str(checkpoint)})


@contextlib.contextmanager
def _shippable(folder: Path) -> Iterator[Path]:
    """A checkpoint's folder without further trainings of its line, which show a spread and are not shipped."""
    if not (folder / paths.SEEDS).exists():
        yield folder
        return
    with tempfile.TemporaryDirectory() as room:
        yield Path(shutil.copytree(folder, Path(room) / folder.name, ignore=shutil.ignore_patterns(paths.SEEDS)))


def _logged(artifacts: Artifacts, point: Point, carried: dict[str, str]) -> str:
    config = {"recipe": point.recipe, "times": list(point.times)}
    if point.sampler == "analytic":  # its variance is read from Gamma
        carried["gamma"] = str((artifacts.folder / "gamma.json").resolve())
    with _unadvised():
        from mlflow import pyfunc  # warns of its own type hints

        logged = pyfunc.log_model(
            name=_model_name(point),
            python_model=str(Path(__file__).parent.with_name("sampler_model.py")),
            artifacts=carried,
            code_paths=[str(Path(disk.__file__).parents[1])],
            model_config=config,
            signature=_signature(artifacts.cards[point.checkpoint].image),
            pip_requirements=[_pin(package) for package in ("mlflow", "torch", "numpy", "safetensors")],
            params=_model_params(point),
            tags=_model_tags(point) | {"weights": "here"},
            model_type="sampler",
            step=round(point.nfe),
        )
    _seal(artifacts, point, logged.model_id)
    return logged.model_id


def _seal(artifacts: Artifacts, point: Point, model: str) -> None:
    """Checks what MLflow copied and notes the digest of all of it, where its store is a folder of this machine."""
    import mlflow

    folder = local_folder(mlflow.get_logged_model(model).artifact_location)
    if folder is None:
        return
    if fault := _misfit(artifacts, point, folder, None):
        raise UserError(f"MLflow did not keep {point.name} as it is: {fault} in {folder}; publish again")
    mlflow.set_logged_model_tags(model, {"files": disk.digest(digests_of(folder))})


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


def without_weights(experiment: Experiment, point: Point, run: str) -> str:
    """Records a point whose weights are another model's: its numbers and where it came from, nothing copied."""
    import mlflow

    return mlflow.create_external_model(
        name=_model_name(point),
        source_run_id=run,
        experiment_id=experiment.id,
        params=_model_params(point),
        tags=_model_tags(point) | {"weights": f"not here: checkpoints/{point.checkpoint}"},
        model_type="sampler",
    ).model_id


def _model_name(point: Point) -> str:
    return re.sub(r"[^\w-]+", "-", point.name)


def _model_params(point: Point) -> dict[str, str]:
    return {
        key: str(getattr(point, key))
        for key in ("method", "checkpoint", "sampler", "trajectory", "recipe", "nfe", "seed", "n")
    }


def _model_tags(point: Point) -> dict[str, str]:
    identity = {key: str(value) for key, value in identity_of(point).items()}
    return identity | {"point": point.name, "method": point.method, "fd": f"{point.fd:.4g}", "current": "true"}


def identity_of(point: Point) -> dict[str, str]:
    """What makes two points the same thing to ship."""
    sampled = {"recipe": point.recipe, "trajectory": point.trajectory, "nfe": f"{point.nfe:g}"}
    return {"digest": point.checkpoint_digest, **sampled}


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


def register(experiment: Experiment, artifacts: Artifacts, model: str, models: dict[str, Any]) -> dict[str, str]:
    """Each alias's version, new only where there is none that holds its point, and the aliases moved to them."""
    client = experiment.client
    versions = list(every(lambda token: client.search_model_versions(f"name = '{model}'", page_token=token)))
    sound: dict[str, str] = {}
    bad: list[tuple[Any, str]] = []
    for point in {point.name: point for point in artifacts.picks.values()}.values():
        sound[point.name], damaged = _version(experiment, artifacts, model, models[point.name], point, versions)
        bad += [(version, sound[point.name]) for version in damaged]
    numbers = {alias: sound[point.name] for alias, point in artifacts.picks.items()}
    aliases = client.get_registered_model(model).aliases
    for alias, number in numbers.items():
        if str(aliases.get(alias)) != number:
            client.set_registered_model_alias(model, alias, number)
    for worse, number in bad:
        left = [name for name in _names(aliases, worse.version) if name not in ALIASES]
        _tell_of(experiment, model, worse, number, left)
    return numbers


def _version(
    experiment: Experiment, artifacts: Artifacts, model: str, logged: Any, point: Point, versions: list[Any]
) -> tuple[str, list[Any]]:
    """The newest sound version of a point, registered if there is none, and those of it that are damaged."""
    import mlflow

    wanted = identity_of(point)
    same = [v for v in versions if all(v.tags.get(key) == value for key, value in wanted.items())]
    sound = [v for v in same if not _version_fault(experiment, artifacts, point, v)]
    damaged = [v for v in same if v not in sound]
    if sound:
        return str(max(sound, key=lambda v: int(v.version)).version), damaged
    tags = {**wanted, "method": point.method, "fd": f"{point.fd:.4g}", "point": point.name}
    new = mlflow.register_model(f"models:/{logged.model_id}", model, await_registration_for=0, tags=tags)
    return str(new.version), damaged


def _names(aliases: dict[str, str], version: str) -> list[str]:
    return sorted(name for name, number in aliases.items() if str(number) == str(version))


def _version_fault(experiment: Experiment, artifacts: Artifacts, point: Point, version: Any) -> str | None:
    from mlflow.exceptions import MlflowException

    try:
        model = experiment.client.get_logged_model(version.source.removeprefix("models:/"))
    except MlflowException:
        return "its logged model is gone"
    return _fault(artifacts, point, model)


def _tell_of(experiment: Experiment, model: str, bad: Any, number: str, left: list[str]) -> None:
    """Marks a damaged version, once, and says which takes its place. An alias that a person set stays where it is."""
    if "damaged" not in bad.tags:
        experiment.client.set_model_version_tag(model, bad.version, "damaged", f"replaced by version {number}")
        experiment.aloud.append(
            f"version {bad.version} of {model!r} in MLflow is damaged; version {number} takes its place"
        )
    for name in left:
        experiment.aloud.append(f"the alias {name!r} of {model!r} names the damaged version {bad.version}: set it anew")
