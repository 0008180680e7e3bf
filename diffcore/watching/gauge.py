"""Who says what the samples of a look are worth: the feature network of the data, and the images it compares them with."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from diffcore.core.errors import UserError
from diffcore.core.rng import some
from diffcore.core.shapes import Sample
from diffcore.data.feed import to_float, to_uint8
from diffcore.metrics import bootstrap, copies, features, proportion
from diffcore.metrics.estimate import Estimate
from diffcore.metrics.features import Features, Images, extract
from diffcore.metrics.frechet import Moments, Sway, frechet, sway
from diffcore.metrics.neighbours import nearest
from diffcore.watching.look import Reading

REAL = 10_000
"""Images that samples are compared with: more would cost every training a sweep over its data and move no digit."""

PAIRS = 2000
"""Rows of which all pairs are compared."""

MARGIN = 0.1
"""How far beyond [-1, 1] a value counts, 13 of 255 grey levels: half of the values of a white ground are, by less."""


@dataclass(frozen=True)
class Gauge:
    """network: the feature network. rows: features of the images, [m, d]. real: their moments. spread: mean distance of two
    images there. deviation: standard deviation of all values of the images."""

    network: Features
    rows: Tensor
    real: Moments
    spread: Estimate
    deviation: float

    @classmethod
    def of(cls, images: Images, network: Features) -> "Gauge":
        """Compares with at most REAL of the images, drawn by key."""
        real, rows, values = Moments.empty(network.card.config.dimension), [], []
        for places in some(min(REAL, len(images)), len(images), "watch", "real").sort().values.split(1024):
            x = to_float(images.take(places))
            seen = extract(network, x)
            real, rows, values = real + Moments.of(seen), [*rows, seen], [*values, _sums(x)]
        whole = torch.cat(rows)
        return cls(network, whole, real, spread(whole), _deviation(torch.stack(values).sum(0)))

    @functools.cached_property
    def copy_limit(self) -> float | None:
        """The closeness below which a sample is a copy: that of each image among the others."""
        return copies.limit(nearest(self.rows))

    def read(self, samples: Sample) -> tuple[Reading, Sway]:
        """Of samples [n, c, h, w], all finite; and how fd moves with their weights, which of two looks are those of the same
        places in the noise, so that their differences are paired. As the metrics do, it looks at 8 bits; contrast and
        what lies beyond are of the values themselves."""
        seen = extract(self.network, to_float(to_uint8(samples)))
        moved = sway(seen, self.real, bootstrap.resamples(len(seen), 0))
        own = spread(seen)
        error = math.hypot(own.se, own.value / self.spread.value * self.spread.se) / self.spread.value
        copied = self._copied(seen)
        reading = Reading(
            fd=frechet(Moments.of(seen), self.real),
            fd_se=moved.se,
            diversity=own.value / self.spread.value,
            diversity_se=error,
            contrast=_deviation(_sums(samples)) / self.deviation,
            beyond=(samples.abs() > 1 + MARGIN).double().mean().item(),
            memorised=None if copied is None else copied.value,
            memorised_se=None if copied is None else copied.se,
        )
        return reading, moved

    def _copied(self, seen: Tensor) -> Estimate | None:
        """Of features [n, d] the share that copy an image."""
        if self.copy_limit is None:
            return None
        return proportion.of_samples(copies.closeness(nearest(seen, self.rows)) < self.copy_limit)


def spread(rows: Tensor) -> Estimate:
    """The mean distance of two different rows [n, d], of the first PAIRS, and its error: twice that of the mean over rows of
    their mean distance to the others (Hoeffding 1948, the variance of a U-statistic of two arguments)."""
    rows = rows[:PAIRS].double()
    distances = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist").sum(1) / (len(rows) - 1)
    return Estimate(distances.mean().item(), 2 * distances.std().item() / math.sqrt(len(rows)))


def _sums(x: Tensor) -> Tensor:
    """Count, sum and sum of squares of all values, float64."""
    x = x.double()
    return torch.stack([torch.tensor(float(x.numel())).double(), x.sum().cpu(), x.square().sum().cpu()])


def _deviation(sums: Tensor) -> float:
    count, total, squares = sums.tolist()
    return math.sqrt(max(squares / count - (total / count) ** 2, 0.0))


def network(
    images: Callable[[], Images], config: features.Config, folder: Path, log: Callable[[str], None]
) -> Features:
    """The feature network of the images, which is that of the stage `features`: read from `folder`, or trained and written
    there."""
    if folder.exists():
        try:
            return features.load(folder)
        except UserError as damage:
            log(f"{damage}; it is trained again")
    trained = features.train(images(), config)
    features.save(trained, folder)
    log(f"looked at by a network of {trained.card.task}, {trained.digest[:12]}")
    return trained
