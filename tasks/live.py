"""What a training says of itself while it goes on, as others read it: a small file of lines, and no server.

`.resume/live/NAME.jsonl` begins with a line about the training; each point of the curve and each look is one more, and how it
ended the last. `.resume/live/NAME.npy` holds some samples of the last look. tasks.recording writes them.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from diffcore.core import disk
from tasks import paths

FOLDER = "live"
"""Below the saved states."""

FINISHED, STOPPED, FAILED = "finished", "stopped", "failed"
"""How a training ends. One that was killed has not said so."""


def remedy(names: Iterable[str]) -> str:
    """What shows the trainings of these lines to their end."""
    return f"`distill follow {' '.join(names)}` shows it"


def folder(resume: Path = paths.RESUME) -> Path:
    return resume / FOLDER


@dataclass(frozen=True)
class Seen:
    """What a reader sees of a training. lines: points of the curve and looks, each with its update (`step`), the time (`at`,
    milliseconds of the clock) and the seconds of training until then. ended: None for one that goes on, or was killed. at:
    the time of the last line, 0 for none."""

    name: str
    fingerprint: str
    iterations: int
    watched: bool
    lines: tuple[dict[str, Any], ...]
    ended: str | None
    path: Path
    at: int = 0

    @property
    def points(self) -> list[dict[str, Any]]:
        return [line for line in self.lines if "point" in line]

    @property
    def looks(self) -> list[dict[str, Any]]:
        return [line for line in self.lines if "look" in line]

    @property
    def alarms(self) -> list[str]:
        """What was wrong at the last look, in words."""
        return self.looks[-1].get("alarms", []) if self.looks else []

    def samples(self) -> np.ndarray | None:
        """uint8 [n, h, w, c] of the last look; None where there are none, or no whole ones."""
        try:
            return np.load(self.path.with_suffix(".npy"), allow_pickle=False) if self.looks else None
        except (OSError, ValueError, EOFError):
            return None


def read(path: Path) -> Seen | None:
    """A training's file as far as it can be read: a line that is being written is none yet. None where there is no file, or
    one that tells of no training."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    rows = list(_rows(text))
    try:
        about = rows[0]
        lines = tuple(row for row in rows[1:] if isinstance(row.get("step"), int))
        ended, at = rows[-1].get("ended"), rows[-1].get("at", 0)
        return Seen(about["name"], about["fingerprint"], about["iterations"], about["watched"], lines, ended, path, at)
    except (IndexError, KeyError):
        return None


def _rows(text: str) -> Iterator[dict[str, Any]]:
    whole, _, _ = text.rpartition("\n")
    for line in whole.splitlines():
        try:
            row = disk.parse_json(line)
        except ValueError:
            return
        if not isinstance(row, dict):
            return
        yield row


def everything(resume: Path = paths.RESUME) -> list[Seen]:
    """Of all trainings that have a file, by name."""
    seen = (read(path) for path in sorted(folder(resume).glob("*.jsonl")))
    return [each for each in seen if each is not None]
