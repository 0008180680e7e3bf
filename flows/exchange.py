"""A stage's files by DVC's remote: what it needs comes here, what it has made goes there, and what is there already."""

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dvc.exceptions import DvcException

from diffcore.core import disk
from diffcore.core.errors import MISTAKE, UserError
from tasks import dvc_content, dvc_environment, dvc_files, dvc_remote, faults, paths, stages, surroundings
from tasks.dvc_content import Content, Job
from tasks.running import Log, Running

SHARED_STORE = paths.RESUME_VARIABLE
"""The variable that names a folder which all hosts share: there stages save their state, and hold their locks."""


def contents(workspace: Path) -> dict[str, Content]:
    """All stages by content. A UserError if DVC cannot read them, or one stands elsewhere than in dvc.yaml."""
    try:
        return stages.with_dvc(workspace, dvc_content.contents)
    except DvcException as error:
        raise UserError(f"DVC cannot read {workspace}: {faults.one_line(error)}") from error


def remote(workspace: Path) -> str:
    """The name of DVC's default remote; a UserError if there is none."""
    return stages.with_dvc(workspace, dvc_remote.remote_of)


def fetch(job: Job, workspace: Path, running: Running, log: Log) -> None:
    """Brings what a job needs. A UserError if this clone's stage is another, StageFailed where another try may help."""
    path = workspace / ".dvc" / "tmp" / f"job-{dvc_content.key(job)[:16]}-{os.getpid()}.json"
    disk.write_json(path, job)
    try:
        _dvc(["fetch", str(path)], f"{job['stage']}: its inputs", workspace, running, log)
    finally:
        path.unlink(missing_ok=True)


def push(name: str, workspace: Path, running: Running, log: Log) -> None:
    """Sends what a stage has made to the remote; raises as `fetch` does."""
    _dvc(["push", name], f"{name}: its outputs", workspace, running, log)


def pull(paths: list[str], workspace: Path, running: Running, log: Log) -> None:
    """Brings these outputs, as dvc.lock has them; raises as `fetch` does."""
    _dvc(["pull", *paths], ", ".join(paths), workspace, running, log)


def _dvc(arguments: list[str], what: str, workspace: Path, running: Running, log: Log) -> None:
    command = [sys.executable, "-m", "tasks.dvc_remote", *arguments]
    ended = running.run(command, workspace, log, dvc_environment.of(workspace))
    if ended.code:
        code, line = stages.cause(ended)
        raise UserError(line) if code == MISTAKE else stages.StageFailed(f"{what} and the remote: {line}")


def read_lock(workspace: Path) -> dict[str, Any]:
    """The stages of dvc.lock; none where there is none yet."""
    return dvc_files.read(workspace / dvc_files.LOCK) or {}


def merge(workspace: Path, entries: dict[str, Any]) -> None:
    """Writes these entries into dvc.lock."""
    stages.with_dvc(workspace, lambda repo: dvc_remote.merge(repo, entries))


def store(workspace: Path, preset: str | None) -> tuple[Path, bool]:
    """Where the stages of a workspace save their state, and whether that is a folder which all hosts share."""
    surroundings.check()
    if folder := os.environ.get(SHARED_STORE):
        return Path(folder) / (preset or ""), True
    return workspace / ".resume", False


class Finished:
    """The stages whose results dvc.lock and the remote have: content and entry are noted in .dvc/tmp as each is finished."""

    def __init__(self, workspace: Path, send: Callable[[str], None]):
        self.workspace, self._send = workspace, send
        self._path = workspace / ".dvc" / "tmp" / "finished.json"

    def __call__(self, job: Job) -> bool:
        """Whether a job's stage has nothing left to do. One that was done here alone is sent to the remote first."""
        name = job["stage"]
        if (entry := read_lock(self.workspace).get(name)) is None:
            return False
        if self._notes().get(name) == _note(job, entry):
            return stages.with_dvc(self.workspace, lambda repo: dvc_remote.holds(repo, entry))
        if not stages.up_to_date(self.workspace, name):
            return False
        self._send(name)
        self.note(job, entry)
        return True

    def note(self, job: Job, entry: Mapping[str, Any]) -> None:
        disk.write_json(self._path, {**self._notes(), job["stage"]: _note(job, entry)})

    def _notes(self) -> dict[str, Any]:
        try:
            notes = disk.parse_json(self._path.read_text())
        except (OSError, ValueError):  # it saves work, no more
            return {}
        return notes if isinstance(notes, dict) else {}


def _note(job: Job, entry: Mapping[str, Any]) -> list[str]:
    return [dvc_content.key(job), disk.digest(entry)]
