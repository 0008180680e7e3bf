"""What the looks at a watched training cost: a watcher as the stage has it, on random images, for the calibration."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from diffcore.core import rng
from diffcore.data.feed import to_float
from diffcore.data.read import Images
from diffcore.denoisers.network import NetDenoiser
from diffcore.metrics import features
from diffcore.noise.trajectory import Trajectory
from diffcore.watching.gauge import REAL, Gauge
from diffcore.watching.samples import BATCH, FixedSamples
from diffcore.watching.watcher import Watcher
from tasks.params import Params
from tasks.planned_data import PlannedData
from tasks.sections import Distill

MOST_SAMPLES = 2000
"""Samples on which a reading is timed."""


@dataclass(frozen=True)
class Brief(FixedSamples):
    """The same in one step, which takes as much memory."""

    @property
    def trajectory(self) -> Trajectory:
        times = super().trajectory.times
        return Trajectory((times[0], times[-1]))


def samples(
    parameters: Params, name: str, student: NetDenoiser, data: PlannedData, most: int | None = None
) -> FixedSamples:
    """Those of each look at a line that has `watch`; at most so many, in one step, where that is said."""
    line, guided = parameters.line(name), None
    if isinstance(line, Distill) and student.takes_guidance:
        weights = parameters.lines.guidance(name)
        guided = (weights.low + weights.high) / 2
    count = min(line.watch.images, most or line.watch.images)
    known = {name: part for name, part in data.known(count).items() if name in student.inputs}
    kind = Brief if most else FixedSamples
    return kind(line.method, student, data.shape, count, 0, line.watch.steps, known, guided)


def watcher(parameters: Params, name: str, student: NetDenoiser, data: PlannedData, images: Images) -> Watcher:
    """Who looks at a line that has `watch`, by a feature network of one update: at one batch of samples, in one step.
    images: random ones of the data's shape, and fewer where the data are many."""
    line = parameters.line(name)
    network = features.train(images, replace(parameters.features, iterations=1)).to(parameters.compute.device)
    gauge = Gauge.of(images, network)
    count = min(REAL, data.images)
    rows = gauge.rows[rng.some(count, count, 0) % len(images)]
    rows = rows + rng.draw(rows, "calibration").noise * rows.std()  # no row twice
    seen = samples(parameters, name, student, data, BATCH)
    return Watcher(line.watch, line.fit.iterations, seen, replace(gauge, rows=rows))


def cost(watcher: Watcher, net: Any, images: Images, clock: Callable[[], float]) -> dict[str, float]:
    """Lets the watcher look once, as a training does. Seconds of reading the samples of a look (`read`), and of what is done
    once for a training (`once`), but for the feature network's own training."""
    own, count, seconds = watcher.gauge, watcher.config.images, []
    began = clock()
    Gauge.of(images, own.network)
    of_images = (clock() - began) * len(own.rows) / len(images)
    few = min(count, MOST_SAMPLES)
    seen = to_float(images.take(rng.some(few, few, 1) % len(images)))
    for _ in range(2):  # the first one looks at the images too, for what a copy is
        began = clock()
        own.read(seen)
        seconds.append(clock() - began)
    watcher.look(watcher.config.every, net)
    return {"read": seconds[1] * count / few, "once": of_images + max(0.0, seconds[0] - seconds[1])}
