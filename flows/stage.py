"""The deployment `distill/stage`: one stage of a run that is spread over workers, here on the host of one of them.

What it needs comes from DVC's remote and what it makes goes there; its entry of dvc.lock goes to the run that sent it, as
an artifact of this one.
"""

import os
from pathlib import Path
from typing import Any

import joblib
from prefect import flow, get_run_logger
from prefect.artifacts import Artifact
from prefect.states import Cancelled, Completed, Failed, State

from diffcore.core.errors import UserError
from flows import exchange, live
from flows.ready import shared
from tasks import dvc_content, dvc_remote, follower, locks, stages
from tasks.dvc_content import Job
from tasks.running import Log, Running, Stopped
from tasks.stages import StageFailed

ENTRY = "dvc.lock"
"""The type of the artifact with {entry, host, folder}."""

NOT_SHARED = f"from which no other host goes on: {exchange.SHARED_STORE} names no folder that all share"
REFUSED = "Refused"
"""The name of a failed state that no further try mends."""


@flow(name="distill", persist_result=False)
def stage(job: dict[str, Any], workspace: str = ".", preset: str | None = None) -> State:
    """Brings one stage up to date as a run's parent describes it (tasks.dvc_content.Job), in this worker's clone.

    Args:
        job: the stage by content; another one here is refused.
        workspace: the folder with dvc.yaml; a relative one is meant from the root of this worker's clone.
        preset: works in .workspaces/PRESET instead.
    """
    log = get_run_logger().info
    try:
        root = Path(workspace).resolve()
        with shared(root, preset, log, check=False) as (folder, running):
            if preset is not None:
                dvc_remote.share(root, folder)
            entry = _run(job, folder, running, log, *exchange.store(folder, preset))
    except UserError as error:
        return Failed(name=REFUSED, message=str(error))
    except StageFailed as error:
        return Failed(message=str(error))
    except Stopped as stopped:
        return Cancelled(message=str(stopped))
    host = os.uname().nodename
    Artifact(type=ENTRY, data={"entry": entry, "host": host, "folder": str(folder)}).create()
    return Completed(message=f"done on {host}")


def _run(job: Job, workspace: Path, running: Running, log: Log, saved: Path, everywhere: bool) -> Any:
    """The stage's entry of dvc.lock, but for the parameters, which the parent has.

    saved: where it saves its state. everywhere: whether all hosts see that.
    """
    name = job["stage"]
    log(
        f"{name} runs in {workspace} and saves its state in {saved}, {'which all hosts share' if everywhere else NOT_SHARED}"
    )
    # one that was given up for lost may still be at work, and would be done twice
    lock = saved / "locks" / f"{name.replace('/', '-')}-{dvc_content.key(job)[:16]}"
    with locks.hold(lock, log, f"waiting: {name} is being done already, by one who was given up for lost") as content:
        exchange.fetch(job, workspace, running, log)
        most = joblib.cpu_count()  # without GPUs the worker's --limit says how many there are at a time
        places = locks.here(workspace, most)
        environment = {exchange.SHARED_STORE: str(saved)} if everywhere else {}
        with places.taken(name, log, lambda: running.pause(0)) as (slots, held):
            surroundings = {**environment, **slots}
            page = live.Page(name, workspace, log, saved)
            with follower.beside(workspace, [name], log, environment):
                stages.reproduce(name, workspace, running, page, surroundings, keep=[content, *held], pull=True)
            page.update()
        exchange.push(name, workspace, running, log)
    entry = {part: value for part, value in exchange.read_lock(workspace)[name].items() if part != "params"}
    if strays := dvc_content.strays(job, entry):
        raise StageFailed(f"{name}: {', '.join(strays)} changed in this clone while it ran")
    return entry
