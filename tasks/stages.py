"""DVC's stages: which there are, which are stale, and how one runs. `dvc.yaml` is the only graph."""

import contextlib
import difflib
import graphlib
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from dvc.exceptions import DvcException
from dvc.repo import Repo

from diffcore.core.errors import MISTAKE, UserError
from tasks import dvc_environment, undrawn
from tasks.faults import one_line
from tasks.running import Ended, Log, Running

FAULTS = 2000  # characters of a stage's faults that its state tells
BUSY_SECONDS = 2.0  # between two looks whether another command in the workspace has ended
BUSY = re.compile(r"ERROR: .* is busy, it is being blocked by:$")
HOLDER = re.compile(r"\s*\(PID (\d+)\): (.*)")
ADVICE = re.compile(r"If there are no processes with such PIDs, you can manually remove .*")
"""DVC's, and dangerous: it is followed most easily while there are such processes."""
Answer = TypeVar("Answer")
_asking = threading.Lock()  # DVC's Repo is not made for threads


@dataclass(frozen=True)
class Stage:
    """A stage by its name in dvc.yaml, the stages it waits for, and the paths it writes, relative to the workspace."""

    name: str
    after: tuple[str, ...]
    outs: tuple[str, ...]


class StageFailed(Exception):
    """A stage crashed or was killed, or DVC was at work elsewhere: another try may help. The message holds its last line."""


def graph(workspace: Path) -> dict[str, Stage]:
    """All stages that run a command, each after those it depends on. UserError if DVC cannot read the workspace."""
    with _read(workspace) as repo:
        return _graph(workspace, repo)


def stale(workspace: Path) -> tuple[dict[str, Stage], set[str]]:
    """`graph`, and the names of the stages that are not up to date or need one that is not: all looked at in one go. A stage
    `draw` that draws nothing, and has said so, makes none of those after it stale."""
    stages, changed = _looked_at(workspace)
    settled = {"draw"} if undrawn.is_settled(workspace) else set()
    for name, stage in stages.items():
        if (changed - settled) & set(stage.after):
            changed.add(name)
    return stages, changed & set(stages)


def _looked_at(workspace: Path) -> tuple[dict[str, Stage], set[str]]:
    """`graph`, and the names of the stages that are not up to date themselves."""
    with _read(workspace, _wait_for_lock=True) as repo:
        stages, names = _graph(workspace, repo), {stage.addressing: _name(stage) for stage in repo.index.stages}
        return stages, {names[address] for address in repo.status() if address in names}


@contextlib.contextmanager
def _read(workspace: Path, **options: bool) -> Iterator[Repo]:
    try:
        with _asking, _repo(workspace, **options) as repo:
            yield repo
    except DvcException as error:
        raise UserError(f"DVC cannot read {workspace}: {one_line(error)}") from error


def _graph(workspace: Path, repo: Repo) -> dict[str, Stage]:
    edges = repo.index.graph
    stages = {_name(s): _stage(s, edges, repo.root_dir) for s in edges if s.cmd}
    if not stages:
        raise UserError(f"{workspace}/dvc.yaml has no stages")
    order = graphlib.TopologicalSorter({name: stage.after for name, stage in stages.items()}).static_order()
    return {name: stages[name] for name in order}


def _repo(workspace: Path, **options: bool) -> Repo:
    if not (workspace / ".dvc").is_dir():
        return Repo(str(workspace), **options)  # which says what is wrong
    surroundings = dvc_environment.of(workspace)
    os.environ.update(dvc_environment.nameless(workspace))
    return Repo(str(workspace), config={"core": {"site_cache_dir": surroundings["DVC_SITE_CACHE_DIR"]}}, **options)


def _stage(stage, edges, root: str) -> Stage:
    outs = (Path(out.fs_path) for out in stage.outs)
    return Stage(
        _name(stage),
        tuple(sorted(_name(above) for above in edges.successors(stage) if above.cmd)),
        tuple(str(path.relative_to(root) if path.is_relative_to(root) else path) for path in outs),
    )


def _name(stage) -> str:
    # not stage.addressing: that is relative to the current directory, which need not be the workspace
    return stage.name if stage.path_in_repo == "dvc.yaml" else f"{stage.path_in_repo}:{stage.name}"


def with_dvc(workspace: Path, ask: Callable[[Repo], Answer]) -> Answer:
    """What `ask` answers of DVC's repository, which one thread at a time may look at."""
    with _asking, _repo(workspace, _wait_for_lock=True) as repo:
        return ask(repo)


def chosen(stages: Mapping[str, Stage], targets: Collection[str]) -> dict[str, Stage]:
    """The targets with all they depend on; all stages for no targets. `distill` stands for every `distill@NAME`."""
    wanted: set[str] = set()
    pending = [name for target in targets for name in _named(stages, target)]
    while pending:
        name = pending.pop()
        if name not in wanted:
            wanted.add(name)
            pending += stages[name].after
    return {name: stage for name, stage in stages.items() if name in wanted or not targets}


def _named(stages: Mapping[str, Stage], target: str) -> list[str]:
    names = [name for name in stages if target in (name, name.partition("@")[0])]
    if not names:
        near = difflib.get_close_matches(target, stages, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(stages)}"
        raise UserError(f"dvc.yaml has no stage {target!r}: {hint}")
    return names


def up_to_date(workspace: Path, name: str) -> bool:
    """Whether DVC finds nothing changed. Costs a tenth of a second instead of a process. StageFailed if DVC cannot say."""
    try:
        return _unchanged(workspace, name)
    except DvcException as error:
        raise StageFailed(f"{name}: DVC cannot look at it: {one_line(error)}") from error


def _unchanged(workspace: Path, name: str) -> bool:
    file, _, stage = name.rpartition(":")
    # a bare name would be looked up in the current directory's dvc.yaml, whatever the repository
    targets = [f"{workspace / (file or 'dvc.yaml')}:{stage}"]
    return not with_dvc(workspace, lambda repo: repo.status(targets=targets))


def reproduce(
    name: str,
    workspace: Path,
    running: Running,
    log: Log,
    environment: Mapping[str, str] | None = None,
    keep: Collection[int] = (),
    pull: bool = False,
) -> None:
    """Runs one stage through DVC, or restores it from DVC's cache. Waits while another command works on its files.

    pull: from the cache of DVC's remote too.

    Raises UserError if the stage exits with 2, StageFailed if it ends in any other way but well.
    """
    # --single-item: otherwise a stage takes write locks on its upstream's outputs, and of two arms at once one fails.
    # --wait-for-lock: otherwise finished work is thrown away if another stage writes dvc.lock at that moment.
    command = [sys.executable, "-m", "tasks.dvc_repro", "--single-item", *(["--pull"] if pull else []), name]
    surroundings = {**dvc_environment.of(workspace), **(environment or {})}
    ended = running.run(command, workspace, _but_busy(log), surroundings, keep)
    if holders := _holders(ended):
        log(f"waiting: {name} needs files on which another command is at work: {holders}")
    while _holders(ended):
        running.pause(BUSY_SECONDS)
        ended = running.run(command, workspace, _but_busy(log), surroundings, keep)
    if ended.code:
        code, line = cause(ended)
        raise UserError(f"{name}: {line}") if code == MISTAKE else StageFailed(f"{name} {_how(code)}: {line}")


def cause(ended: Ended) -> tuple[int, str]:
    """The stage's own exit code and all the faults it names, or else its last line; DVC hides them behind its own."""
    own = [line for line in ended.lines if not line.startswith("ERROR: failed to reproduce")]
    failures = [line for line in ended.lines if line.startswith("ERROR: failed to reproduce")]
    codes = re.findall(r", exited with (-?\d+)$", failures[-1]) if failures else []
    if codes:
        code = int(codes[0])
        return code, (faults(own) if code == MISTAKE else "") or _last([x for x in own if not _of_the_shell(x, code)])
    refused = faults(ended.lines) if ended.code == MISTAKE else ""
    return ended.code, refused or _last([x for x in ended.lines if x.startswith("ERROR")] or list(ended.lines))


def faults(lines: Sequence[str]) -> str:
    """All that a command reports as the user's to mend, in one line of at most FAULTS characters; "" for nothing."""
    messages = [line.strip().removeprefix("error: ") for line in lines if line.startswith("error: ")]
    text = ""
    left = len(messages)
    for fault in messages:
        longer = f"{text}; {fault}" if text else fault[:FAULTS]
        if len(longer) > FAULTS:
            return f"{text}; and {left} more in the log"
        text = longer
        left -= 1
    return text


def _holders(ended: Ended) -> str:
    """The commands, with their pids, that DVC says hold a stage's files; "" if it was not refused for that."""
    if not ended.code or not any(map(BUSY.match, ended.lines)):
        return ""
    matches = filter(None, map(HOLDER.fullmatch, ended.lines))
    return ", ".join(sorted({f"{match[2]} (pid {match[1]})" for match in matches}))


def _but_busy(log: Log) -> Log:
    """Passes on all but DVC's words on who is busy, which come again at each try."""

    def passing(line: str) -> None:
        if not any(pattern.match(line) for pattern in (BUSY, HOLDER, ADVICE)):
            log(line)

    return passing


def _last(lines: Sequence[str]) -> str:
    return lines[-1].strip().removeprefix("error: ") if lines else "it said nothing"


def _of_the_shell(line: str, code: int) -> bool:
    # some shells remark on a command that a signal ended: "Killed", "sh: line 1: 4711 Killed    ./stage shard"
    killer = _signal(code)
    return killer is not None and re.search(rf"(^|\d+ +){signal.strsignal(killer)}\b", line) is not None


def _how(code: int) -> str:
    killer = _signal(code)
    return f"exited with {code}" if killer is None else f"was ended by {killer.name}"


def _signal(code: int) -> signal.Signals | None:
    try:
        return signal.Signals(-code if code < 0 else code - 128)
    except ValueError:
        return None
