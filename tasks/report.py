"""The whole pipeline in one command, and what came of it in words."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from diffcore.checkpoints import read_card
from diffcore.core import disk, parent
from diffcore.core.errors import UserError
from diffcore.metrics.frontier import Frontier
from diffcore.metrics.point import Point
from tasks import dvc_environment, dvc_files, params, paths, pipeline, places
from tasks.alone import alone
from tasks.progress import log
from tasks.tracking.receipt import how_to_open, lost


def run(slots: int | None = None) -> int:
    """`check`, all stages that are stale, `report`. slots: stages at a time; None for as many as the machine can.

    The exit code is 2 for what is the user's to mend, else DVC's.
    """
    parameters = params.read()
    with alone():
        dvc_environment.check(Path())
        dvc_files.mend()
        dvc_files.wait_for_others()
        started = time.monotonic()
        code = pipeline.reproduce(Path(), places.of(Path(), parameters, slots)) or _published_again()
        dvc_files.keep()
    if code:
        log(f"the pipeline stopped (exit {code}); what was finished is kept, and the same command goes on from there")
        return code if code > 0 else 128 - code
    log(f"\npipeline: {time.monotonic() - started:.0f} s\n")
    report()
    return 0


def _published_again() -> int:
    """Publishes once more where MLflow's own file is gone or another one: DVC knows the receipt alone. The exit code."""
    if not paths.PUBLISHED.is_file():
        return 0
    reason = lost(disk.read_sealed(paths.PUBLISHED, None, paths.again("publish")))
    if reason is None:
        return 0
    log(f"{reason}, so it does not show what was published: publishing again")
    return _repro("--force", "--single-item", "publish")


def _repro(*arguments: str) -> int:
    command = [sys.executable, "-m", "tasks.dvc_repro", *arguments]
    surroundings = {**os.environ, **dvc_environment.of(Path())}
    return subprocess.run(command, env=surroundings, preexec_fn=parent.die_with_parent).returncode


def report() -> None:
    """Prints the frontier, the recommended point and why, and where to look."""
    frontier, folder = _read()
    log(frontier.table())
    chosen = frontier.recommended
    log(f"recommended: {chosen.point.name}\n  {chosen.reason}")
    for warning in chosen.warnings:
        log(f"  warning: {warning}")
    log(f"  the checkpoint is {folder}\n")
    log(f"pictures: {paths.FRONTIER.with_suffix('.png')}, samples of every point: {paths.SAMPLES / 'all.png'}")
    log(f"all on one page, for a browser: {paths.REPORT}")
    if paths.PUBLISHED.exists():
        log(how_to_open(disk.read_sealed(paths.PUBLISHED, None, paths.again("publish"))))
    else:
        log(f"MLflow: nothing is published, there is no {paths.PUBLISHED}; {paths.again('publish')}")


def report_json() -> None:
    """Prints the frontier as JSON, as artifacts/frontier.json holds it, and beside it the paths of the recommended point's
    `checkpoint`, of the `picture`, of the `samples` and of the `page`; nothing else."""
    frontier, folder = _read()
    places = {"checkpoint": folder, "picture": paths.FRONTIER.with_suffix(".png"), "samples": paths.SAMPLES / "all.png"}
    places |= {"page": paths.REPORT}
    log(json.dumps(frontier.to_json() | {key: str(path) for key, path in places.items()}, indent=1, allow_nan=False))


def _read() -> tuple[Frontier, Path]:
    """The frontier, and the folder of the recommended point's checkpoint; a UserError where one of them is not whole."""
    if not paths.FRONTIER.exists():
        raise UserError(f"{paths.FRONTIER} is missing; run the pipeline first: distill run")
    frontier = Frontier.read(paths.FRONTIER, paths.again("frontier"))
    return frontier, checkpoint_of(frontier.recommended.point)


def checkpoint_of(point: Point) -> Path:
    """The folder of a point's checkpoint; a UserError if it is gone, or another than the one that was measured."""
    folder = paths.CHECKPOINTS / point.checkpoint
    if (here := read_card(folder).digest) != point.checkpoint_digest:
        measured = point.checkpoint_digest[:12]
        raise UserError(
            f"{folder} is {here[:12]}, not the {measured} that was measured, so this frontier says nothing of it; "
            "run the pipeline again: distill run"
        )
    return folder
