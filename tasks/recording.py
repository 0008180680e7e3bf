"""The file in which a training says how it goes (tasks.live): written by the training itself, which waits for nobody."""

import contextlib
import io
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from diffcore.core import disk, processes
from diffcore.data.feed import to_uint8
from diffcore.training.curve import Event
from diffcore.training.loop import Stopped
from diffcore.watching.look import Look
from tasks.live import FAILED, FINISHED, STOPPED, folder, read

SHOWN = 16
"""Samples of a look that are kept."""


class Record:
    """What one training writes; only the main process of several does. Lines after the update from which a training goes on
    are written again, so every update has its line once."""

    def __init__(self, name: str, iterations: int, batch: int):
        self.path = folder() / f"{name}.jsonl"
        self.about: dict[str, Any] = {"name": name, "iterations": iterations, "batch": batch}
        self.step, self.before, self.started = 0, 0.0, time.monotonic()
        self.is_begun = False

    @contextlib.contextmanager
    def kept(self, fingerprint: str, watched: bool) -> Iterator[None]:
        """Writes during the block, for the job of this fingerprint, and at its end how it ended."""
        self.about |= {"fingerprint": fingerprint, "watched": watched}
        ended = FAILED
        try:
            yield
            ended = FINISHED
        except Stopped:
            ended = STOPPED
            raise
        finally:
            self._end(ended)

    def _end(self, ended: str) -> None:
        try:
            self._write({"ended": ended})
        except OSError:
            if ended != FAILED:  # else the first fault is the one to be told
                raise

    def go_on(self, step: int) -> None:
        """The training goes on after `step` updates."""
        self.step = step

    def point(self, event: Event) -> None:
        """A point of the curve."""
        numbers = {key: value for key, value in asdict(event).items() if key not in ("step", "images")}
        self._write({"step": event.step, "point": {key: value for key, value in numbers.items() if value is not None}})

    def look(self, look: Look, samples: Any, alarms: Sequence[str] = ()) -> None:
        """samples: float [n, c, h, w] in [-1, 1]. alarms: what is wrong then, in words."""
        some = to_uint8(samples[:SHOWN]).permute(0, 2, 3, 1).contiguous().numpy()
        content = io.BytesIO()
        np.save(content, some, allow_pickle=False)
        self._write({"step": look.step, "look": look.columns(), "best": look.best, "alarms": [*alarms]})
        disk.write(self.path.with_suffix(".npy"), content.getvalue())

    def _write(self, line: dict[str, Any]) -> None:
        if not processes.is_main():
            return
        if not self.is_begun:
            self._begin()
        seconds = self.before + time.monotonic() - self.started
        row = json.dumps({**line, "at": int(1000 * time.time()), "seconds": round(seconds, 3)})
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(row + "\n")

    def _begin(self) -> None:
        """A new file, with the lines of this very job up to the update from which it goes on."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        old = read(self.path)
        lines: list[dict[str, Any]] = []
        if old is not None and old.fingerprint == self.about["fingerprint"]:
            lines = [line for line in old.lines if line["step"] <= self.step]
        self.before = lines[-1]["seconds"] if lines else 0.0
        disk.write(self.path, "".join(json.dumps(line) + "\n" for line in (self.about, *lines)))
        self.is_begun = True
