"""The whole pipeline in one command, and what came of it in words."""

import json
import subprocess
import sys
import time

from diffcore.frontier import Frontier
from diffcore.mistake import Mistake
from tasks import lifeline, params, paths, tracking
from tasks.progress import say


def run() -> int:
    """`check`, `dvc repro`, `report`. The exit code is 2 for a mistake in params.yaml, else DVC's."""
    params.read()
    started = time.monotonic()
    command = [sys.executable, "-m", "dvc", "--wait-for-lock", "repro"]
    code = subprocess.run(command, preexec_fn=lifeline.die_with_parent).returncode
    if code:
        say(f"the pipeline stopped (exit {code}); what was finished is kept, and the same command goes on from there")
        return code if code > 0 else 128 - code
    say(f"\npipeline: {time.monotonic() - started:.0f} s\n")
    report()
    return 0


def report() -> None:
    """Prints the frontier, the recommended point and why, and where to look."""
    if not paths.FRONTIER.exists():
        raise Mistake(f"{paths.FRONTIER} is missing; run the pipeline first: make run")
    found = json.loads(paths.FRONTIER.read_text())
    say(Frontier.from_json(found).table())
    say(f"recommended: {found['recommended']['name']}\n  {found['recommended']['reason']}")
    point = next(point for point in found["points"] if point["name"] == found["recommended"]["name"])
    say(f"  the checkpoint is {paths.CHECKPOINTS / point['checkpoint']}\n")
    say(f"pictures: {paths.FRONTIER.with_suffix('.png')}, samples of every point: {paths.SAMPLES / 'all.png'}")
    if paths.PUBLISHED.exists():
        say(tracking.how_to_open(json.loads(paths.PUBLISHED.read_text())))
