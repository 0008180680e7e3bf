"""Looks at a training: what it is worth, which state is the best, and when to end."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from diffcore.core import processes
from diffcore.metrics.frechet import Sway
from diffcore.training.loop import Diverged
from diffcore.watching import alarms
from diffcore.watching.config import Watch
from diffcore.watching.gauge import Gauge
from diffcore.watching.look import Look
from diffcore.watching.samples import FixedSamples

Shown = Callable[[Look, torch.Tensor, list[str]], None]
"""Who gets each look with its samples and what is wrong then, in words; it must change none of them."""


def nowhere(look: Look, samples: torch.Tensor, wrong: list[str]) -> None:
    """Shows nothing."""


class Watcher:
    """What `training.watch.Watcher` is. All processes draw; the main one reads for all.

    gauge: None in the others. log: gets a line for each look, and one for each alarm when it begins. show: in the main
    process. looks: all so far. wrong: the alarms of each. sway: of the fd of the best one. worse: how many of the last looks
    were worse than the best by more than their error. seconds: what looking took so far.
    """

    def __init__(
        self,
        config: Watch,
        iterations: int,
        samples: FixedSamples,
        gauge: Gauge | None,
        log: Callable[[str], None] = lambda line: None,
        show: Shown = nowhere,
    ):
        self.config, self.iterations, self.samples, self.gauge = config, iterations, samples, gauge
        self.log, self.show = log, show
        self.looks: list[Look] = []
        self.wrong: list[dict[str, str]] = []
        self.sway: Sway | None = None
        self.worse, self.seconds = 0, 0.0

    @property
    def keeps_best(self) -> bool:
        return self.config.keep == "best"

    @property
    def is_over(self) -> bool:
        """Whether patience is at its end."""
        return self.config.patience is not None and self.worse >= self.config.patience

    def is_due(self, step: int) -> bool:
        return step % self.config.every == 0 or step == self.iterations

    def look(self, step: int, net: nn.Module, seconds: float = 0.0) -> bool:
        """Looks at the averaged network after `step` updates; whether it is the best so far. seconds: of the training until
        now, earlier looks included."""
        started = time.monotonic()
        samples = self.samples.draw(net)
        if odd := int((~samples.isfinite().flatten(1).all(1)).sum()):
            raise Diverged(f"step {step}: {odd} of {len(samples)} samples are not finite; lower lr or set clip")
        look = self._add(step, *self._read(samples), seconds - self.seconds)
        self.seconds += time.monotonic() - started
        self._tell(look)
        if self.gauge is not None:
            self.show(look, samples, list(self.wrong[-1].values()))
        return look.is_best

    def _read(self, samples: torch.Tensor) -> tuple[dict[str, float], Sway]:
        """The main process's reading, in all; and how fd moves."""
        own = None
        with processes.alone():
            if self.gauge is not None:
                reading, sway = self.gauge.read(samples)
                own = [dataclasses.asdict(reading), sway.to_json()]
        reading, sway = processes.from_main(own)
        return reading, Sway.from_json(sway)

    def _add(self, step: int, reading: dict[str, float], sway: Sway, seconds: float = 0.0) -> Look:
        """A new best is lower than the best so far by more than the error of their difference, over the noise that both
        have in common."""
        best = next((look for look in reversed(self.looks) if look.is_best), None)
        if best is None:
            look = Look(step=step, best=step, seconds=seconds, **reading)
        else:
            behind, error = reading["fd"] - best.fd, (sway - self.sway).se
            kept = step if behind < -error else best.step
            look = Look(step=step, best=kept, behind=behind, behind_se=error, seconds=seconds, **reading)
        if look.is_best:
            self.sway = sway
        self.worse = self.worse + 1 if look.is_worse else 0
        self.looks.append(look)
        self.wrong.append(alarms.alarms(self.looks, self.iterations))
        return look

    def _tell(self, look: Look) -> None:
        place = "the best so far" if look.is_best else f"the best is that of update {look.best}"
        self.log(
            f"update {look.step}: fd {look.distance.plus_minus()}, diversity {look.diversity:.2f}, contrast "
            f"{look.contrast:.2f}; {place}"
        )
        for text in self._begun(len(self.looks) - 1):
            self.log(f"warning: {text}")
        if self.is_over and look.step < self.iterations:
            self.log(
                f"ends after {look.step} of {self.iterations} updates: {self.worse} looks in a row were worse than that of "
                f"update {look.best} by more than their error"
            )

    def _begun(self, place: int) -> list[str]:
        """The alarms of the look at this place that the one before had not."""
        before = self.wrong[place - 1] if place else {}
        return [text for word, text in self.wrong[place].items() if word not in before]

    def alarms(self) -> list[str]:
        """All that were raised, in their order."""
        return [text for place in range(len(self.wrong)) for text in self._begun(place)]

    @property
    def kept(self) -> Look:
        """The look at the weights that are the result."""
        last = self.looks[-1]
        return next(look for look in self.looks if look.step == last.best) if self.keeps_best else last

    def summary(self) -> dict[str, Any]:
        """What a card says of it: nothing that changes from run to run."""
        kept = self.kept
        return {
            "images": self.config.images,
            "kept": kept.step,
            "fd": kept.fd,
            "fd_se": kept.fd_se,
            "updates": self.looks[-1].step,
            "alarms": self.alarms(),
        }

    @property
    def calls(self) -> int:
        """Network calls of all looks."""
        return len(self.looks) * self.samples.calls

    def facts(self) -> dict[str, Any]:
        """All that a resumed training needs of it, as JSON."""
        looks = [dataclasses.asdict(look) for look in self.looks]
        return {"looks": looks, "sway": self.sway and self.sway.to_json(), "worse": self.worse, "seconds": self.seconds}

    def restore(self, facts: dict[str, Any]) -> None:
        """Goes on from what `facts` gave."""
        self.looks = [Look(**look) for look in facts["looks"]]
        self.wrong = [alarms.alarms(self.looks[: place + 1], self.iterations) for place in range(len(self.looks))]
        self.sway = facts["sway"] and Sway.from_json(facts["sway"])
        self.worse, self.seconds = facts["worse"], facts["seconds"]
