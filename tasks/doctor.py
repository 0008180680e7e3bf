"""`distill doctor`: whether what a run needs is there, before something fails hours later."""

import contextlib
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from diffcore.core import disk
from diffcore.core.errors import UserError
from diffcore.metrics import judge_file
from diffcore.nets import files
from diffcore.nets.memory import readable
from tasks import dvc_environment, graph, paths
from tasks.params import Params
from tasks.params import read as read_params
from tasks.progress import log
from tasks.redaction import redact
from tasks.sections import Adopted
from tasks.tracking import client

PACKAGES = ("torch", "accelerate", "safetensors", "numpy", "dvc", "mlflow", "prefect")

LITTLE = 2 * 10**9
"""Bytes of the disk below which a run of small images may end in the middle."""


@dataclass(frozen=True)
class Finding:
    """One line of the examination. fault: what will fail and its remedy, None where all is well."""

    about: str
    state: str
    fault: str | None = None


def examine() -> int:
    """Prints a line for each thing that a run needs. 1 where something will fail, else 0."""
    findings = [finding for look in EXAMINATIONS for finding in _looked(look)]
    width = max(len(each.about) for each in findings)
    for each in findings:
        log(f"{'FAULT' if each.fault else 'ok':<5}  {each.about:<{width}}  {each.fault or each.state}")
    faults = sum(each.fault is not None for each in findings)
    log(f"{faults} of {len(findings)} will fail" if faults else "all is in order")
    return int(faults > 0)


def _looked(look: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """The findings; what a part of the pipeline itself refuses is a fault in its own words."""
    try:
        yield from look()
    except UserError as error:
        for line in str(error).splitlines():
            yield Finding(look.__name__.strip("_"), "", redact(line))


def _packages() -> Iterator[Finding]:
    python = sys.version_info[:3]
    old = python < (3, 11)
    yield Finding(
        "python",
        f"{platform.python_version()} at {sys.executable}",
        "older than 3.11; make setup with another one" if old else None,
    )
    for name in PACKAGES:
        try:
            yield Finding(name, version(name))
        except PackageNotFoundError:
            yield Finding(name, "", "is not installed; run make setup")


def _device() -> Iterator[Finding]:
    from diffcore.core import precision, processes
    from diffcore.nets import memory

    device = processes.device()
    half = ", bf16" if precision.has_bf16(device) else ""
    yield Finding(
        "device", f"{device.type}{half}, {os.cpu_count()} processors, {readable(memory.of_machine())} of memory"
    )


def _folder() -> Iterator[Finding]:
    for place in (Path(), paths.ARTIFACTS, paths.RESUME):
        if place.exists() and not os.access(place, os.R_OK | os.W_OK | os.X_OK):
            yield Finding(f"rights of {place}", "", "cannot be written to; give this user the right to it")
        else:
            yield Finding(f"rights of {place}", "readable and writable" if place.exists() else "not there yet")
    free = shutil.disk_usage(Path()).free
    short = f"{readable(free)} are free; free some, a run needs {readable(LITTLE)} (`distill plan` says how much)"
    yield Finding("disk", f"{readable(free)} are free", short if free < LITTLE else None)


def _parameters() -> Iterator[Finding]:
    parameters = read_params()
    yield Finding("params.yaml", f"{len(parameters.teachers)} teachers, {len(parameters.distill)} students")
    graph.check()
    yield Finding("dvc.yaml", "runs our stages")
    yield from _weights(parameters)
    yield from _judges(parameters)


def _weights(parameters: Params) -> Iterator[Finding]:
    """The networks that params.yaml takes from folders, each with the digest of its weights."""
    for name, line in parameters.teachers.items():
        if not isinstance(line, Adopted):
            continue
        folder = Path(line.folder)
        places = (folder, *(folder / part for part in files.PARTS))
        networks = [each for each in places if (each / files.CONFIG).is_file()]
        weights = sorted(file for each in networks for file in each.glob("*.safetensors"))
        weights = [folder] if folder.is_file() else weights
        if not weights:
            yield Finding(
                f"weights of {name}",
                "",
                f"{folder} holds no network with safetensors; fetch it, or name another folder",
            )
        for file in weights:
            yield Finding(f"weights of {name}", f"{file}, sha256 {disk.sha256(file)[:12]}")


def _judges(parameters: Params) -> Iterator[Finding]:
    """The files of judges, each with its digest."""
    for name, file in parameters.evaluate.judge_files.items():
        path = judge_file.path(name, file)
        yield Finding(f"judge {name}", f"{path}, sha256 {disk.sha256(path)[:12]}")


def _versioning() -> Iterator[Finding]:
    dvc_environment.check(Path())
    yield Finding("dvc", "its folder is in order" if Path(".dvc").is_dir() else "no .dvc here; `distill run` needs one")
    here = Path().resolve()
    git = next((folder for folder in (here, *here.parents) if (folder / ".git").exists()), None)
    yield Finding(
        "git", f"versions {git}" if git else "none: DVC keeps versions of results, nobody those of params.yaml"
    )


def _mlflow() -> Iterator[Finding]:
    address = os.environ.get("MLFLOW_TRACKING_URI") or client.LOCAL
    client.ask(address)
    yield Finding("mlflow's address", redact(address))


def _prefect() -> Iterator[Finding]:
    prefect = os.environ.get("PREFECT_API_URL")
    if not prefect:
        yield Finding("prefect's address", "PREFECT_API_URL is not set; `distill run` needs no server")
        return
    with contextlib.suppress(UserError):
        client.ask(prefect)
        yield Finding("prefect's address", redact(prefect))
        return
    yield Finding("prefect", "", f"{redact(prefect)} does not answer; run `distill up` or unset PREFECT_API_URL")


EXAMINATIONS = (_packages, _device, _folder, _parameters, _versioning, _mlflow, _prefect)
