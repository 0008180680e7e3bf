"""All stages that are stale, as many at a time as there are slots. `dvc.yaml` is the only graph, and DVC runs each stage.

A stage that fails takes those with it that need it; the others finish.
"""

import queue
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from diffcore.core.errors import MISTAKE, UserError
from tasks import follower, locks, stages
from tasks.progress import log
from tasks.redaction import redact
from tasks.running import Running
from tasks.stages import Stage, StageFailed

FAILED = 255
"""The exit code where a stage crashed: DVC's own."""

SILENT = (
    "Generating lock file",
    "Updating lock file",
    "Use `dvc push`",
    "To track the changes",
    "\tgit add ",
    "To enable auto staging",
    "\tdvc config",
)
"""How DVC's hints begin, which would come once for each stage: they are not passed on."""


def reproduce(workspace: Path, slots: locks.Slots) -> int:
    """Runs what is stale. The exit code: 2 if all faults are the user's to mend; they are told on stderr, a line each."""
    graph, changed = stages.stale(workspace)
    todo = {name: stage for name, stage in graph.items() if name in changed}
    log(f"{len(graph)} stages, {len(todo)} of them to run or to look at, {len(slots.all)} at a time")
    with follower.beside(workspace, todo, log):
        failures = _Run(workspace, slots, todo).to_the_end() if todo else {}
    if not failures:
        return 0
    if left := [name for name in todo if name not in failures and set(_above(graph, name)) & set(failures)]:
        log(f"not run: {', '.join(left)}")
    for error in failures.values():
        print(f"error: {redact(str(error))}", file=sys.stderr)
    crashed = any(isinstance(error, StageFailed) for error in failures.values())
    return FAILED if crashed else MISTAKE


def in_order(todo: Mapping[str, Stage]) -> dict[str, int]:
    """The stages, those first for which most others wait, and how many that are."""
    below = dict.fromkeys(todo, 0)
    for name in todo:
        for above in _above(todo, name):
            below[above] += 1
    return dict(sorted(below.items(), key=lambda item: -item[1]))


def _above(graph: Mapping[str, Stage], name: str) -> set[str]:
    """All stages that one depends on."""
    above: set[str] = set()
    pending = [name]
    while pending:
        new = {each for each in graph[pending.pop()].after if each in graph} - above
        above |= new
        pending += new
    return above


@dataclass
class _Run:
    """The stages of one run: each starts when those it needs are done and a slot is free."""

    workspace: Path
    slots: locks.Slots
    todo: Mapping[str, Stage]
    running: Running = field(default_factory=Running)
    events: queue.SimpleQueue = field(default_factory=queue.SimpleQueue)

    def __post_init__(self):
        self.width = max(map(len, self.todo)) if len(self.slots.all) > 1 else 0
        self.waiting = in_order(self.todo)
        self.done: set[str] = set()
        self.failures: dict[str, Exception] = {}

    def to_the_end(self) -> dict[str, Exception]:
        """What went wrong, by stage. However it is left, no process of it is."""
        with ThreadPoolExecutor(len(self.slots.all)) as pool:
            try:
                going = self._start(pool, set())
                while going:
                    name, event = self.events.get()
                    if isinstance(event, str):
                        self._log(name, event)
                        continue
                    self._end(name, event)
                    going = self._start(pool, going - {name})
            finally:
                self.running.stop()
        if unforeseen := [e for e in self.failures.values() if not isinstance(e, UserError | StageFailed)]:
            raise unforeseen[0]
        return self.failures

    def _start(self, pool: ThreadPoolExecutor, going: set[str]) -> set[str]:
        """Starts what can be, in its order, as long as there are slots for it; those that are going then."""
        needs = {name: {above for above in self.todo[name].after if above in self.todo} for name in self.waiting}
        free = len(self.slots.all) - sum(map(self.slots.width, going))
        for name in [name for name in self.waiting if needs[name] <= self.done]:
            if (free := free - self.slots.width(name)) < 0:
                break
            del self.waiting[name]
            pool.submit(self._reproduce, name)
            going = going | {name}
        return going

    def _reproduce(self, name: str) -> None:
        """In a thread of its own; whatever comes of it is an event."""

        def tell(line: str) -> None:
            self.events.put((name, line))

        try:
            with self.slots.taken(name, tell, lambda: self.running.pause(0)) as (environment, descriptors):
                stages.reproduce(name, self.workspace, self.running, tell, environment, keep=descriptors)
        except Exception as error:
            self.events.put((name, error))
        else:
            self.events.put((name, None))

    def _end(self, name: str, error: Exception | None) -> None:
        if error is None:
            self.done.add(name)
        else:
            self.failures[name] = error

    def _log(self, name: str, line: str) -> None:
        if line.strip() and not line.startswith(SILENT):
            log(f"{name:<{self.width}} | {line}" if self.width else line)
