"""A flow run whose stages are runs of their own, of the deployment `distill/stage`: any worker of the pool takes each.

The parent walks the graph, sends each stage when those above it are done, and keeps dvc.lock; Prefect places the stages.
What a stage writes only here (a receipt, `cache: false`) the parent runs itself.
"""

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
from dvc.exceptions import DvcException
from prefect import get_client, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas import filters
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.deployments import run_deployment
from prefect.futures import PrefectFuture
from prefect.states import Cancelled, Cancelling, Completed, Failed, Pending, State

from diffcore.core import disk
from diffcore.core.errors import UserError
from flows import exchange, watch
from flows.stage import ENTRY, REFUSED
from tasks import dvc_content
from tasks.dvc_content import Content, Job
from tasks.faults import one_line
from tasks.pipeline import in_order
from tasks.running import Log, Running
from tasks.stages import Stage, StageFailed

DEPLOYMENT = "distill/stage"
POLL_SECONDS = 2.0
SERVER_ERROR = 500
LIVE = [StateType.SCHEDULED, StateType.PENDING, StateType.RUNNING, StateType.PAUSED]


@dataclass(frozen=True)
class Place:
    """Where stages run: `workspace` and `preset` of a worker's clone, and the work queue, the default one for None."""

    workspace: str
    preset: str | None
    queue: str | None


@task(name="stage", task_run_name="{name}", cache_policy=NO_CACHE, persist_result=False)
def up_to_date(name: str) -> State:
    """Draws a stage that nothing is left to do for."""
    return Completed(name="Cached", message="up to date")


@dataclass
class Spread:
    """The stages of one flow run on their way.

    here: submits a stage that this host must run. cancel: ends the stages on their way. retries: further tries for a stage
    that crashed or was killed.
    """

    todo: Mapping[str, Stage]
    folder: Path
    place: Place
    running: Running
    here: Callable[[str, Job], PrefectFuture]
    cancel: Callable[[], None]
    retries: int
    log: Log
    contents: Mapping[str, Content] = field(default_factory=dict)
    states: dict[str, State] = field(default_factory=dict)
    _open: dict[str, UUID] = field(default_factory=dict)
    _jobs: dict[str, Job] = field(default_factory=dict)
    _tries: dict[str, int] = field(default_factory=dict)
    _here: dict[str, PrefectFuture] = field(default_factory=dict)
    _home: set[str] = field(default_factory=set)
    _answers: bool = True

    def run(self) -> dict[str, State]:
        """The state of each stage. Left before the end, however that comes, it cancels the stages on their way."""
        self.todo = {name: self.todo[name] for name in in_order(self.todo)}  # workers take the first that was sent
        self.contents = exchange.contents(self.folder)
        if foreign := [name for name in self.todo if name not in self.contents]:
            raise UserError(f"{foreign[0]} is no stage of dvc.yaml itself, and only those can be spread over workers")
        self._home = self._at_home()
        remote = exchange.remote(self.folder)
        finished = exchange.Finished(self.folder, self._push)
        watch.ensure(DEPLOYMENT, self.log)
        self.log(
            f"{len(self.todo)} stages of {self.folder} as runs of {DEPLOYMENT}, their files by the remote {remote}"
        )
        try:
            while len(self.states) < len(self.todo):
                begun = [name for name in self._ready() if self._patiently(self._begin, name, finished)]
                self._patiently(self._look, finished)
                if not begun:
                    self.running.pause(POLL_SECONDS)
        finally:
            if self._open:
                with contextlib.suppress(httpx.HTTPError):  # who cannot be reached cannot be asked
                    self.cancel()
        return self.states

    def _patiently(self, ask: Callable[..., None], *words: Any) -> bool:
        """Whether a question to Prefect's server was answered; one that cannot answer now is asked again."""
        try:
            ask(*words)
        except httpx.HTTPError as error:
            if isinstance(error, httpx.HTTPStatusError) and error.response.status_code < SERVER_ERROR:
                raise
            if self._answers:
                self.log(f"waiting: Prefect's server does not answer ({type(error).__name__})")
            self._answers = False
            return False
        self._answers = True
        return True

    def _at_home(self) -> set[str]:
        """The stages whose results only this host has, and those that need one of them."""
        home: set[str] = set()
        for name in self.todo:
            if not self.contents[name].cached or home & set(self.contents[name].needs):
                home.add(name)
        return home

    def _ready(self) -> list[str]:
        """The stages that are not begun and have none above that is not done."""
        begun = {*self.states, *self._open, *self._here}
        return [name for name, stage in self.todo.items() if name not in begun and set(stage.after) <= set(self.states)]

    def _begin(self, name: str, finished: exchange.Finished) -> None:
        if not all(self.states[above].is_completed() for above in self.todo[name].after):
            self.states[name] = Pending(name="NotReady")
            return
        self._jobs[name] = job = dvc_content.job(self.contents[name], exchange.read_lock(self.folder))
        if name in self._home:
            self.log(f"{name} runs on this host: what it writes is of this host alone")
            self._here[name] = self.here(name, job)
        elif self._is_done(finished, job):
            self.states[name] = up_to_date(name, return_state=True)
        else:
            self._send(name)

    def _is_done(self, finished: exchange.Finished, job: Job) -> bool:
        try:
            return finished(job)
        except (UserError, StageFailed, DvcException, OSError) as error:
            self.log(f"{job['stage']}: this host cannot see whether it is done, so a worker shall: {one_line(error)}")
            return False

    def _send(self, name: str) -> None:
        self._tries[name] = self._tries.get(name, 0) + 1
        place = {"workspace": self.place.workspace, "preset": self.place.preset}
        run = run_deployment(
            DEPLOYMENT,
            parameters={"job": self._jobs[name], **place},
            flow_run_name=name,
            work_queue_name=self.place.queue,
            tags=[watch.TAG],
            timeout=0,  # it is not waited for here
        )
        self._open[name] = run.id

    def _push(self, name: str) -> None:
        exchange.push(name, self.folder, self.running, self.log)

    def _look(self, finished: exchange.Finished) -> None:
        for name, future in list(self._here.items()):
            if future.state.is_final():
                self.states[name] = self._here.pop(name).state
        for name, run in _runs(self._open).items():
            if run.state is not None and run.state.is_final():
                self._end(name, run, finished)

    def _end(self, name: str, run: FlowRun, finished: exchange.Finished) -> None:
        """Takes over what a run has made, or sends the stage once more."""
        state, fault = run.state, run.state.message
        result = _entry(run.id) if state.is_completed() else None
        del self._open[name]
        if state.is_cancelled():
            self.states[name] = Cancelled(message=fault)
            return
        if result is not None:
            entry = {**result["entry"], "params": self.contents[name].params}
            exchange.merge(self.folder, {name: entry})
            finished.note(self._jobs[name], exchange.read_lock(self.folder)[name])
            self.log(f"{name}: done on {result['host']} in {result['folder']}")
            self.states[name] = Completed(message=fault)
            return
        if state.is_completed():
            fault = "its run left no entry of dvc.lock"
        line = fault if fault and fault.startswith(name) else f"{name}: {fault or state.name}"
        if state.name == REFUSED or self._tries[name] > self.retries:
            self.states[name] = Failed(message=line)
            return
        self.log(f"{line}; it is tried again ({self._tries[name]} of {self.retries})")
        self._send(name)


def _runs(identities: Mapping[str, UUID]) -> dict[str, FlowRun]:
    """The runs by stage."""
    if not identities:
        return {}
    names = {identity: name for name, identity in identities.items()}
    wanted = filters.FlowRunFilter(id=filters.FlowRunFilterId(any_=list(names)))
    with get_client(sync_client=True) as client:
        return {names[run.id]: run for run in client.read_flow_runs(flow_run_filter=wanted)}


def _entry(run: UUID) -> dict[str, Any] | None:
    wanted = filters.ArtifactFilter(
        flow_run_id=filters.ArtifactFilterFlowRunId(any_=[run]), type=filters.ArtifactFilterType(any_=[ENTRY])
    )
    with get_client(sync_client=True) as client:
        artifacts = client.read_artifacts(artifact_filter=wanted)
    return disk.parse_json(str(artifacts[0].data)) if artifacts else None


def cancel_stages(parent: UUID | str) -> None:
    """Asks all stages of a run that have not ended to end; Prefect itself leaves them to run, or to start later."""
    wanted = filters.FlowRunFilter(
        parent_flow_run_id=filters.FlowRunFilterParentFlowRunId(any_=[parent]),
        state=filters.FlowRunFilterState(type=filters.FlowRunFilterStateType(any_=LIVE)),
    )
    with get_client(sync_client=True) as client:
        for run in client.read_flow_runs(flow_run_filter=wanted):
            client.set_flow_run_state(run.id, Cancelling())


def on_cancellation(flow: Any, run: FlowRun, state: State) -> None:
    """The same where the parent's own process is gone."""
    cancel_stages(run.id)
