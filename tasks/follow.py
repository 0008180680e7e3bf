"""`distill follow`: shows trainings in MLflow while they go on. A process of its own, so that no server can slow or end a
training."""

import contextlib
import time
from collections.abc import Collection

from diffcore.core.errors import UserError
from tasks import live, paths, signals
from tasks.live import FINISHED, Seen
from tasks.params import Params
from tasks.progress import log
from tasks.redaction import redact
from tasks.tracking.live import Mirror

POLL_SECONDS = 5.0
STEP_SECONDS = 0.2
"""Between two looks whether it is to end."""


def follow(params: Params, names: Collection[str], poll: float = POLL_SECONDS, since: int | None = None) -> None:
    """Shows the trainings of the lines `names` until all have ended; without names all that are at work, until SIGTERM or
    Ctrl-C.

    A server that does not answer is named once and asked again. since: milliseconds of the clock; then what was written from
    that time on, until SIGTERM with names too.
    """
    labels = [label for name in names for label in _labels(params, name)]
    stop, mirror = signals.StopFlag(), Mirror(params.publish.experiment, log)
    over = [] if names else [each for each in live.everything() if each.ended == FINISHED]

    def trainings() -> list[Seen]:
        own = [each for each in live.everything() if (not labels or each.name in labels) and each.at >= (since or 0)]
        return [each for each in own if each not in over]

    fault = ""
    try:
        while not stop():
            seen = trainings()
            fault = _shown(mirror, seen, fault)
            if names and since is None and not fault and _ended(seen) == set(labels):
                log(f"{', '.join(names)}: all is shown, no training goes on")
                return
            _pause(stop, poll)
    finally:
        _end(mirror, trainings(), fault)


def _end(mirror: Mirror, trainings: list[Seen], before: str) -> None:
    """The last that is shown. before: why they could not be, until now."""
    with contextlib.suppress(UserError):
        if not _shown(mirror, trainings, before):
            mirror.end()
            return
    if trainings:
        lines = dict.fromkeys(paths.line_of(each.name) for each in trainings)
        log(f"not shown to its end; once MLflow answers, {live.remedy(lines)}")


def _ended(trainings: list[Seen]) -> set[str]:
    return {each.name for each in trainings if each.ended == FINISHED}


def _labels(params: Params, name: str) -> list[str]:
    params.line(name)
    return [paths.label(name, number) for number in range(params.trainings(name))]


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
