"""The whole pipeline in one command, and what came of it in words."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from diffcore import disk
from diffcore.frontier import SCHEMA, Frontier
from diffcore.mistake import Mistake
from tasks import dvc_environment, lifeline, params, paths, tracking
from tasks.progress import say


def run() -> int:
    """`check`, `dvc repro`, `report`. The exit code is 2 for a mistake in params.yaml, else DVC's."""
    params.read()
    _forget_the_dead()
    started = time.monotonic()
    command = [sys.executable, "-m", "dvc", "--wait-for-lock", "repro"]
    surroundings = {**os.environ, **dvc_environment.of(Path())}
    code = subprocess.run(command, env=surroundings, preexec_fn=lifeline.die_with_parent).returncode
    if code:
        say(f"the pipeline stopped (exit {code}); what was finished is kept, and the same command goes on from there")
        return code if code > 0 else 128 - code
    say(f"\npipeline: {time.monotonic() - started:.0f} s\n")
    report()
    return 0


def _forget_the_dead() -> None:
    """Takes killed processes out of DVC's lock file.

    DVC does so itself for processes that are gone, but one that nobody has waited for yet (in a container without an
    init, nobody ever does) still counts as running there, and its stage as busy.
    """
    import psutil

    lock = Path(".dvc/tmp/rwlock")
    if not lock.exists() or not (text := lock.read_text().strip()):
        return

    def dead(holder: dict) -> bool:
        try:
            return psutil.Process(holder["pid"]).status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True

    held = json.loads(text)
    write = {path: holder for path, holder in held.get("write", {}).items() if not dead(holder)}
    read = {path: [holder for holder in holders if not dead(holder)] for path, holders in held.get("read", {}).items()}
    disk.write(lock, json.dumps({"write": write, "read": {path: holders for path, holders in read.items() if holders}}))


def report() -> None:
    """Prints the frontier, the recommended point and why, and where to look."""
    if not paths.FRONTIER.exists():
        raise Mistake(f"{paths.FRONTIER} is missing; run the pipeline first: make run")
    found = disk.read_sealed(paths.FRONTIER, SCHEMA, paths.again("evaluate"))
    say(Frontier.from_json(found).table())
    say(f"recommended: {found['recommended']['name']}\n  {found['recommended']['reason']}")
    for warning in found["recommended"]["warnings"]:
        say(f"  warning: {warning}")
    point = next(point for point in found["points"] if point["name"] == found["recommended"]["name"])
    say(f"  the checkpoint is {paths.CHECKPOINTS / point['checkpoint']}\n")
    say(f"pictures: {paths.FRONTIER.with_suffix('.png')}, samples of every point: {paths.SAMPLES / 'all.png'}")
    if paths.PUBLISHED.exists():
        say(tracking.how_to_open(disk.read_sealed(paths.PUBLISHED, None, paths.again("publish"))))
