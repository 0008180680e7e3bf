"""The flow `distill`: DVC's graph as Prefect tasks. Prefect says when and where a stage runs, DVC says whether."""

import argparse
import contextlib
import os
import sys
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import httpx
from prefect import flow, get_run_logger, runtime, task
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture, wait
from prefect.settings import (
    PREFECT_API_AUTH_STRING,
    PREFECT_API_URL,
    PREFECT_HOME,
    PREFECT_SERVER_ALLOW_EPHEMERAL_MODE,
    temporary_settings,
)
from prefect.states import Cancelled, Completed, Failed, State
from prefect.task_runners import ThreadPoolTaskRunner

from diffcore.core.errors import MISTAKE, UserError
from flows import exchange, live, pages
from flows import spread as spreading
from flows.ready import ready, shared
from tasks import dvc_content, dvc_remote, follower, locks, stages
from tasks.redaction import parted, redact
from tasks.running import Log, Running, Stopped
from tasks.stages import Stage, StageFailed

RETRY_SECONDS = 2
ANSWER_SECONDS = 5


def _may_help(task, run, state: State) -> bool:
    return isinstance(state.data, StageFailed)


@task(
    name="stage",
    task_run_name="{name}",
    cache_policy=NO_CACHE,  # DVC is the only cache
    persist_result=False,
    retry_delay_seconds=RETRY_SECONDS,
    retry_condition_fn=_may_help,
)
def run_stage(
    name: str, workspace: Path, running: Running, slots: locks.Slots, job: dvc_content.Job | None = None
) -> State:
    """One stage: Cached if DVC has nothing to do, otherwise run in a free slot. Raises UserError or StageFailed.

    job: of a spread run; what the stage needs comes from DVC's remote first.
    """
    logger = get_run_logger()
    try:
        if job is not None:
            exchange.fetch(job, workspace, running, logger.info)
        if stages.up_to_date(workspace, name):
            return Completed(name="Cached", message="up to date")
        with slots.taken(name, logger.info, lambda: _go_on(running)) as (environment, descriptors):
            page = live.Page(name, workspace, logger.info)
            stages.reproduce(name, workspace, running, page, environment, keep=descriptors)
            page.update()
    except Stopped as stopped:
        return Cancelled(message=str(stopped))
    return Completed(message="done")


def _go_on(running: Running) -> None:
    if running.stopped:
        raise Stopped("the flow run was stopped before a slot was free")


@flow(
    name="distill",
    persist_result=False,
    task_runner=ThreadPoolTaskRunner(),
    on_cancellation=[spreading.on_cancellation],
)
def distill(
    workspace: str = ".",
    preset: str | None = None,
    targets: tuple[str, ...] = (),
    retries: int = 1,
    slots: int = 1,
    spread: bool = False,
    queue: str | None = None,
) -> State:
    """Brings the stages of dvc.yaml up to date.

    Args:
        workspace: the folder with dvc.yaml; a relative one is meant from the project's root.
        preset: works in .workspaces/PRESET instead, a copy with the parameters of that preset ("smoke" is the small one).
        targets: names of stages; they and all they depend on. None for all. `distill` means every `distill@NAME`.
        retries: further tries for a stage that crashed or was killed, never for one that reported a mistake.
        slots: stages at the same time on a host without a GPU; with GPUs it is one for each of them.
        spread: each stage is a run of the deployment distill/stage, for any worker, and files go by DVC's remote.
        queue: the work queue of the stages that are spread; the pool's default one unless told.
    """
    log = get_run_logger().info
    try:
        if spread:
            return _spread(spreading.Place(workspace, preset, queue), targets, retries, slots, log)
        return _distill(Path(workspace).resolve(), preset, targets, retries, slots, log)
    except (UserError, StageFailed) as error:
        return Failed(message=str(error))


def _distill(root: Path, preset: str | None, targets: tuple[str, ...], retries: int, slots: int, log: Log) -> State:
    with ready(root, preset, log) as (workspace, running), pages.challenger_told(workspace):
        todo = stages.chosen(stages.graph(workspace), targets)
        places = locks.here(workspace, slots)
        log(f"{len(todo)} stages in {workspace}, {len(places.all)} at a time")
        with follower.beside(workspace, _watched(workspace, todo), log):
            futures = _submit(todo, workspace, running, places, retries)
            wait(list(futures.values()))
        states = {name: future.state for name, future in futures.items()}
        return verdict(states, pages.show(workspace, _completed(todo, states)))


def _watched(workspace: Path, todo: Mapping[str, Stage]) -> list[str]:
    """The watched trainings that are to be run; DVC is asked only where there are watched ones at all."""
    if not follower.watched(workspace, todo):
        return []
    return [name for name in stages.stale(workspace)[1] if name in todo]


def _spread(place: spreading.Place, targets: tuple[str, ...], retries: int, slots: int, log: Log) -> State:
    root = Path(place.workspace).resolve()
    with contextlib.ExitStack() as held:
        workspace, running = held.enter_context(shared(root, place.preset, log))
        held.enter_context(_only_spread(workspace, log))
        held.enter_context(pages.challenger_told(workspace))
        if place.preset is not None:
            dvc_remote.share(root, workspace)
        todo = stages.chosen(stages.graph(workspace), targets)
        places = locks.here(workspace, slots)

        def here(name: str, job: dvc_content.Job) -> PrefectFuture:
            return run_stage.with_options(retries=retries).submit(name, workspace, running, places, job)

        cancel = partial(spreading.cancel_stages, runtime.flow_run.id)
        states = spreading.Spread(todo, workspace, place, running, here, cancel, retries, log).run()
        completed = _completed(todo, states)
        if fresh := pages.pages_of(completed):
            exchange.pull(fresh, workspace, running, log)
        return verdict(states, pages.show(workspace, completed))


def _completed(todo: Mapping[str, Stage], states: Mapping[str, State]) -> list[Stage]:
    return [todo[name] for name, state in states.items() if state.is_completed()]


def _only_spread(workspace: Path, log: Log) -> contextlib.AbstractContextManager[int]:
    return locks.hold(workspace / ".dvc" / "tmp" / "spread.lock", log, f"waiting: another run works in {workspace}")


def _submit(
    todo: Mapping[str, Stage], workspace: Path, running: Running, slots: locks.Slots, retries: int
) -> dict[str, PrefectFuture]:
    futures: dict[str, PrefectFuture] = {}
    for name, stage in todo.items():
        above = [futures[upstream] for upstream in stage.after]
        futures[name] = run_stage.with_options(retries=retries).submit(name, workspace, running, slots, wait_for=above)
    return futures


def verdict(states: Mapping[str, State], recommended: str | None = None) -> State:
    """The state of a flow run from those of its stages, with the failed ones' own words. recommended: what came of it, where
    the frontier is up to date."""
    failed = [_reason(state) for state in states.values() if state.is_failed() or state.is_crashed()]
    left = [name for name, state in states.items() if state.name == "NotReady"]
    stopped = [name for name, state in states.items() if state.is_cancelled()]
    if failed:
        return Failed(message="; ".join(failed) + (f"; not run: {', '.join(left)}" if left else ""))
    if stopped:
        return Cancelled(message=f"stopped: {', '.join(stopped)}")
    cached = sum(state.name == "Cached" for state in states.values())
    counts = f"{len(states)} stages: {cached} up to date, {len(states) - cached} run or restored"
    return Completed(message=counts + (f"; {recommended}" if recommended else ""))


def _reason(state: State) -> str:
    reason = state.result(raise_on_failure=False)
    return str(reason) if isinstance(reason, UserError | StageFailed) else f"{state.message}"


def main(arguments: list[str]) -> int:
    """`python -m flows.distill [--preset smoke] [STAGE ...]`: the flow here and now, without a worker."""
    parser = argparse.ArgumentParser(prog="python -m flows.distill", description="Run the flow here, without a worker.")
    parser.add_argument("targets", nargs="*", metavar="STAGE", help="these and all they depend on; none means all")
    parser.add_argument("--preset", help="work in .workspaces/PRESET with the parameters of that preset")
    options = parser.parse_args(arguments)
    try:
        with _server():
            state = distill(preset=options.preset, targets=tuple(options.targets), return_state=True)
    except UserError as error:
        print(f"error: {redact(str(error))}", file=sys.stderr)
        return MISTAKE
    print(f"{state.name}: {state.message}", file=sys.stdout if state.is_completed() else sys.stderr)
    return 0 if state.is_completed() else 1


@contextlib.contextmanager
def _server() -> Iterator[None]:
    """The Prefect server of PREFECT_API_URL, or what `up` has started here, or else one for as long as this process.

    A password goes to Prefect by its own setting, so that it stands in no address that Prefect tells.
    """
    api = str(PREFECT_API_URL.value() or "")
    address, user, password = _parted(api) if api else ("", "", "")
    updates: dict[Any, Any] = {PREFECT_API_URL: address or None, PREFECT_SERVER_ALLOW_EPHEMERAL_MODE: True}
    if user:
        updates[PREFECT_API_AUTH_STRING] = f"{user}:{password}"
    if address and (fault := _dumb(address)):
        if os.environ.get("PREFECT_API_URL"):
            raise UserError(f"Prefect at {address} does not answer: {fault}; run `distill up` or unset PREFECT_API_URL")
        updates[PREFECT_API_URL] = None  # it was `up` once
    PREFECT_HOME.value().mkdir(parents=True, exist_ok=True)
    with temporary_settings(updates):
        try:
            yield
        except httpx.HTTPError as error:
            raise UserError(f"Prefect at {address} refuses: {str(error).splitlines()[0]}") from error


def _parted(api: str) -> tuple[str, str, str]:
    try:
        return parted(api)
    except ValueError as error:
        raise UserError(f"PREFECT_API_URL is {redact(api)}, no address: {error}") from None


def _dumb(address: str) -> str | None:
    """Why nobody answers at an address, in words; None if somebody does, whatever the answer."""
    try:
        httpx.get(f"{address.rstrip('/')}/health", timeout=ANSWER_SECONDS)
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
        return str(error) or type(error).__name__
    return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
