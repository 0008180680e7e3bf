"""The training curve, and the losses and norms that its points are means of.

On a GPU a number is ready long after it was asked for. What updates come to stays there until somebody reads it, all of it at
once: for a point of the curve, and before anything is saved.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Event:
    """What is reported: losses and gradient norm are means over the steps since the event before."""

    step: int
    images: int
    loss: float
    grad_norm: float
    lr: float
    critic_loss: float | None = None


@dataclass(frozen=True)
class Reading:
    """What one update came to: its number, counted from 1, and (loss, gradient norm), or (loss,) of a critic."""

    step: int
    numbers: tuple[float, ...]

    @property
    def is_finite(self) -> bool:
        return all(math.isfinite(number) for number in self.numbers)


class Curve:
    """events: its points. since: (loss, norm) of each update after the last point; critic: the critic's losses."""

    def __init__(self):
        self.events: list[Event] = []
        self.since: list[tuple[float, float]] = []
        self.critic: list[float] = []
        self._unread: list[tuple[int, tuple[Tensor, ...]]] = []

    def add(self, step: int, *numbers: Tensor) -> None:
        """What update `step` came to: loss and gradient norm, or a critic's loss alone."""
        self._unread.append((step, numbers))

    def read(self) -> Reading | None:
        """Waits for all that was added; the first reading with a number that is not finite, None if all are."""
        readings, self._unread = _fetched(self._unread), []
        for reading in readings:
            if not reading.is_finite:
                return reading
            if len(reading.numbers) == 1:
                self.critic.extend(reading.numbers)
            else:
                self.since.append(reading.numbers)
        return None

    def point(self, step: int, images: int, lr: float) -> Event:
        """A new point: the means of what was read since the one before."""
        losses, norms = zip(*self.since)
        event = Event(step, images, _mean(losses), _mean(norms), lr, _mean(self.critic) if self.critic else None)
        self.events.append(event)
        self.since = []
        self.critic = []
        return event

    def facts(self) -> dict[str, Any]:
        """All that was read, as JSON."""
        return {"curve": [asdict(event) for event in self.events], "since": self.since, "critic": self.critic}

    def restore(self, facts: dict[str, Any]) -> None:
        """Goes on from what `facts` gave."""
        self.events = [Event(**event) for event in facts["curve"]]
        self.since = [tuple(pair) for pair in facts["since"]]
        self.critic = facts["critic"]


def _fetched(unread: Sequence[tuple[int, tuple[Tensor, ...]]]) -> list[Reading]:
    """Their numbers, in one transfer."""
    tensors = [number.double() for _, numbers in unread for number in numbers]
    values = iter(torch.stack(tensors).tolist() if tensors else ())
    return [Reading(step, tuple(next(values) for _ in numbers)) for step, numbers in unread]


def _mean(numbers: Sequence[float]) -> float:
    return sum(numbers) / len(numbers)
