"""`distill follow`: shows trainings in MLflow while they go on. A process of its own, so that no server can slow or end a
training."""

import contextlib
import time
from collections.abc import Collection

from diffcore.core.errors import UserError
from tasks import live, signals
from tasks.live import FINISHED, Seen
from tasks.params import Params
from tasks.progress import log
from tasks.redaction import redact
from tasks.tracking.live import Mirror

POLL_SECONDS = 5.0
STEP_SECONDS = 0.2
"""Between two looks whether it is to end."""


def follow(params: Params, names: Collection[str], poll: float = POLL_SECONDS) -> None:
    """Shows the trainings `names` until all have ended; without names all that are at work, until SIGTERM or Ctrl-C.

    A server that does not answer is named once and asked again.
    """
    for name in names:
        params.line(name)
    stop, mirror = signals.StopFlag(), Mirror(params.publish.experiment, log)
    over = set() if names else {each.fingerprint for each in live.everything() if each.ended == FINISHED}
    fault = ""
    try:
        while not stop():
            trainings = [each for each in live.everything() if _counts(each, names, over)]
            fault = _shown(mirror, trainings, fault)
            if names and not fault and {each.name for each in trainings if each.ended == FINISHED} == set(names):
                log(f"{', '.join(names)}: all is shown, no training goes on")
                return
            _pause(stop, poll)
    finally:
        trainings = [each for each in live.everything() if _counts(each, names, over)]
        if not _shown(mirror, trainings, fault):
            with contextlib.suppress(UserError):
                mirror.end()


def _counts(training: Seen, names: Collection[str], over: Collection[str]) -> bool:
    return training.name in names if names else training.fingerprint not in over or training.ended != FINISHED


def _shown(mirror: Mirror, trainings: list[Seen], before: str) -> str:
    """Why they could not be shown, which is logged unless it was the same before; empty if they were."""
    try:
        mirror.show(trainings)
    except UserError as error:
        if str(error) != before:
            log(f"not shown: {redact(str(error))}; it is tried again, and no training waits for it")
        return str(error)
    if before:
        log("shown again")
    return ""


def _pause(stop: signals.StopFlag, seconds: float) -> None:
    until = time.monotonic() + seconds
    while not stop() and time.monotonic() < until:
        time.sleep(STEP_SECONDS)
