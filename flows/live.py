"""A watched training on the page of its Prefect run while it goes on: how far it is, its looks, and what it draws."""

import base64
import contextlib
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prefect.artifacts import (
    create_image_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    update_progress_artifact,
)

from tasks import live, paths
from tasks.live import Seen
from tasks.pictures import grids
from tasks.redaction import redact
from tasks.running import Log

SECONDS_BETWEEN = 5.0
ROWS = 20
"""Looks of the table, the last ones."""


class Page:
    """Passes on a stage's lines, and with them, no more often than each SECONDS_BETWEEN, brings the page up to date.

    The artifacts are made in the task that runs the stage, so that they stand on its page. What Prefect refuses is told once
    and ends nothing.
    """

    def __init__(self, stage: str, workspace: Path, log: Log, resume: Path = paths.RESUME):
        self.name, self.log = stage.partition("@")[2], log
        self.path = live.folder(workspace / resume) / f"{self.name}.jsonl"
        self.before = self._written()
        self.last = time.monotonic()
        self.progress: Any = None
        self.steps = 0, 0
        self.is_refused = False

    def __call__(self, line: str) -> None:
        self.log(line)
        if time.monotonic() - self.last > SECONDS_BETWEEN:
            self.update()
            self.last = time.monotonic()

    def update(self) -> None:
        """What is new of a watched training that has written since the stage began."""
        if not self.name or self._written() in (None, self.before):
            return
        training = live.read(self.path)
        if training is None or not training.watched or not training.lines:
            return
        steps = training.lines[-1]["step"], training.looks[-1]["step"] if training.looks else 0
        if steps != self.steps:
            self._refusable(lambda: self._show(training, steps))

    def _written(self) -> int | None:
        with contextlib.suppress(OSError):
            return self.path.stat().st_mtime_ns
        return None

    def _show(self, training: Seen, steps: tuple[int, int]) -> None:
        share, key = 100 * steps[0] / training.iterations, f"live-{self.name.replace('_', '-')}"
        text = f"{self.name}: update {steps[0]} of {training.iterations}"
        if self.progress is None:
            self.progress = create_progress_artifact(share, key=key, description=text)
        else:
            update_progress_artifact(self.progress, share, description=text)
        if steps[1] != self.steps[1]:
            create_markdown_artifact(table(training), key=f"{key}-looks", description=text)
            samples = training.samples()
            if samples is not None:
                create_image_artifact(
                    _as_url(samples), key=f"{key}-samples", description=f"{self.name} at update {steps[1]}"
                )
        self.steps = steps

    def _refusable(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:  # whatever Prefect's client raises: a page is no reason to end a training
            if not self.is_refused:
                self.log(
                    f"the page of {self.name} is not brought up to date: {type(error).__name__}: {redact(str(error))[:200]}"
                )
            self.is_refused = True


def table(training: Seen) -> str:
    """What is wrong, the last looks, and the loss before each, in Markdown."""
    alarms = [f"**{alarm}**\n" for alarm in training.alarms]
    lines = [
        f"# {training.name}",
        "",
        *alarms,
        "| update | loss | fd | diversity | contrast |",
        "|--:|--:|--:|--:|--:|",
    ]
    for look in training.looks[-ROWS:]:
        losses = [line["point"]["loss"] for line in training.points if line["step"] <= look["step"]]
        seen = look["look"]
        loss = f"{losses[-1]:.4g}" if losses else ""
        mark = " (best)" if look["best"] == look["step"] else ""
        lines.append(
            f"| {look['step']}{mark} | {loss} | {seen['fd']:.3g} ± {seen['fd_se']:.2g} | {seen['diversity']:.2f} "
            f"| {seen['contrast']:.2f} |"
        )
    return "\n".join(lines)


def _as_url(samples: Any) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "samples.png"
        grids.grid(samples, path)
        return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
