"""Beside a run, a process that shows its watched trainings in MLflow while they go on (`distill follow`)."""

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Collection, Iterator
from pathlib import Path

from diffcore.core.errors import UserError
from tasks import live, paths, strict_yaml
from tasks.redaction import redact
from tasks.running import Log, surroundings
from tasks.tracking.client import HTTP

GRACE_SECONDS = 10.0
TRAINING = ("teachers", "distill")
UNSERVED = "watched, and not shown in MLflow while in training: MLFLOW_TRACKING_URI names no server"


def watched(workspace: Path, stages: Collection[str]) -> list[str]:
    """The lines with `watch` among the trainings of these stages, by their names in dvc.yaml."""
    with contextlib.suppress(UserError, AttributeError, TypeError):  # a wrong file is told of by who reads it strictly
        raw = strict_yaml.load_yaml(workspace / paths.PARAMS)
        return [name for kind, name in _lines(stages) if raw[kind].get(name, {}).get("watch")]
    return []


def _lines(stages: Collection[str]) -> list[tuple[str, str]]:
    """Section and name of each line that these stages train."""
    parts = [stage.partition("@") for stage in stages]
    return [(kind, name) for kind, _, name in parts if kind in TRAINING]


@contextlib.contextmanager
def beside(
    workspace: Path, stages: Collection[str], say: Log, environment: dict[str, str] | None = None
) -> Iterator[None]:
    """Shows the trainings of these stages in MLflow during the block, if one of them is watched and a server is named; a line
    says where none is. Those of others are left to others, who may share the saved states. environment: laid over this
    process's."""
    names = watched(workspace, stages)
    if not names or not _is_served():
        if names:
            say(f"{', '.join(names)}: {UNSERVED}")
        yield
        return
    since = f"{int(1000 * time.time())}"  # what an earlier training of a line has left is none of this run's
    follower = subprocess.Popen(
        [sys.executable, "-m", "tasks", "follow", "--since", since, *(name for _, name in _lines(stages))],
        cwd=workspace,
        env={**surroundings(), **(environment or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,  # a Ctrl-C in the terminal is for the run, which then ends this one
    )
    reader = threading.Thread(target=_passed_on, args=(follower, say), daemon=True)
    reader.start()
    try:
        yield
    finally:
        follower.terminate()
        try:
            follower.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            say(f"{', '.join(names)}: not shown to its end, MLflow is slow; {live.remedy(names)}")
        follower.kill()
        follower.wait()
        reader.join(GRACE_SECONDS)


def _passed_on(follower: subprocess.Popen, say: Log) -> None:
    with follower.stdout as lines:
        for line in lines:
            say(f"follow: {redact(line.rstrip())}")


def _is_served() -> bool:
    """Into a file nobody looks while a training goes on."""
    return os.environ.get("MLFLOW_TRACKING_URI", "").startswith(HTTP)
