"""A workspace in order: locked, mended and checked before a stage runs in it, and without a process at the end."""

import contextlib
import fcntl
import io
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from diffcore.core.errors import MISTAKE, UserError
from tasks import dvc_files, locks, stages
from tasks.running import Log, Running

Workspace = tuple[Path, Running]


@contextlib.contextmanager
def ready(root: Path, preset: str | None, log: Log) -> Iterator[Workspace]:
    """A checked workspace that no other run works in. At the end, however it comes, no process is left."""
    with contextlib.ExitStack() as held:
        workspace, keep = root, []
        if preset is not None:  # two runs must not refresh the copy at the same time, nor one under another's feet
            workspace, lock = _of_preset(root, preset)
            keep.append(held.enter_context(_alone(lock, workspace, log)))
            _make(root, workspace, preset, Running(keep), log)
        _check_dvc(workspace)
        keep.append(held.enter_context(_alone(workspace / ".dvc" / "tmp" / "flow.lock", workspace, log)))
        yield held.enter_context(_in_it(workspace, keep, log))


@contextlib.contextmanager
def shared(root: Path, preset: str | None, log: Log, check: bool = True) -> Iterator[Workspace]:
    """The same for one who leaves room for others of the kind: stages that were spread over workers, and who spread them.

    check: whether the parameters are checked; a stage that was sent is compared with the run's anyway.
    """
    with contextlib.ExitStack() as held:
        workspace, keep = root, []
        if preset is not None:
            workspace, lock = _of_preset(root, preset)
            if (alone := locks.take(lock)) is not None:  # else others work in it, so it is made; what differs is told
                try:
                    _make(root, workspace, preset, Running([alone]), log)
                finally:
                    os.close(alone)
            keep.append(held.enter_context(_beside(lock, workspace, log)))
        _check_dvc(workspace)
        keep.append(held.enter_context(_beside(workspace / ".dvc" / "tmp" / "flow.lock", workspace, log)))
        yield held.enter_context(_in_it(workspace, keep, log, check))


@contextlib.contextmanager
def _in_it(workspace: Path, keep: list[int], log: Log, check: bool = True) -> Iterator[Workspace]:
    running = Running(keep)
    with contextlib.ExitStack() as held:
        held.callback(_in_order, workspace, dvc_files.keep, log)
        held.callback(running.stop)  # runs before that, and before the locks are freed
        _in_order(workspace, dvc_files.mend, log)
        if check:
            run_verb(workspace, running, log, "check")
        yield workspace, running


def _of_preset(root: Path, preset: str) -> tuple[Path, Path]:
    """The workspace of a preset, and its lock."""
    if Path(preset).name != preset:
        raise UserError(f"a preset is the name of a file in presets/ without .yaml, got {preset!r}")
    return root / ".workspaces" / preset, root / ".workspaces" / f".{preset}.lock"


def _make(root: Path, workspace: Path, preset: str, running: Running, log: Log) -> None:
    run_verb(root, running, log, "workspace", str(workspace.relative_to(root)), "--preset", preset)


def _check_dvc(workspace: Path) -> None:
    if not (workspace / ".dvc").is_dir():
        raise UserError(f"{workspace} is not a DVC workspace: it has no .dvc folder; start in the project's root")


def _in_order(workspace: Path, how: Callable[[], None], log: Log) -> None:
    """Mends what a kill left of DVC's own files, or keeps those that are whole; what that says goes to the run's log."""
    with contextlib.chdir(workspace), contextlib.redirect_stdout(io.StringIO()) as output:
        how()
    for line in output.getvalue().splitlines():
        log(line)


def _alone(lock: Path, workspace: Path, log: Log) -> contextlib.AbstractContextManager[int]:
    return locks.hold(lock, log, f"waiting: another run works in {workspace}")


def _beside(lock: Path, workspace: Path, log: Log) -> contextlib.AbstractContextManager[int]:
    return locks.hold(lock, log, f"waiting: another run works in {workspace}", fcntl.LOCK_SH)


def run_verb(folder: Path, running: Running, log: Log, *arguments: str) -> None:
    """Runs `python -m tasks ...` in `folder`; a UserError with its own words if it fails."""
    ended = running.run([sys.executable, "-m", "tasks", *arguments], folder, log)
    if ended.code:
        line = ended.lines[-1] if ended.lines else "it said nothing"
        reported = stages.faults(ended.lines) if ended.code == MISTAKE else ""
        raise UserError(reported or f"python -m tasks {arguments[0]} failed: {line}")
