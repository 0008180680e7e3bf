"""What a metric is, and what it may look at.

Every standard error covers the drawing of the n samples against fixed real images: not the training, whose seed moves the
numbers too, nor the choice of the real images. Those of distances count the noise of pairs once, near the data too, where
squared distances lose their slope (`estimate.Variance`); docs/frontier.md says what the intervals were seen to cover.
"""

import abc
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from diffcore.core.errors import UserError
from diffcore.core.shapes import Sample
from diffcore.metrics.bootstrap import resamples
from diffcore.metrics.estimate import Estimate
from diffcore.metrics.features import Features
from diffcore.metrics.frechet import Moments, Sway, frechet, sway
from diffcore.metrics.likelihood import Model
from diffcore.metrics.neighbours import WIDE, Neighbours, Reach, nearest
from diffcore.metrics.reference import Halves, Reference, Seen, to_8bit


@dataclass(frozen=True)
class Unseen:
    """Samples [n, c, h, w] and what was asked for, captions that no image has that was trained on."""

    samples: Sample
    captions: Sequence[str]


@dataclass(frozen=True)
class Subject:
    """A sampling, as the metrics see it; what is None is not there, and metrics that need it say nothing.

    samples: [n, c, h, w] in [-1, 1]. features: the network that `reference` was built with, else a ValueError. seed: of the
    bootstrap. teacher: the teacher's samples of the same noises. classes: int64 [n], those asked for. real_classes: those of
    the images that the feature network learned from. model: the sampling as a model of real images. captions: [n], those
    asked for; unseen: samples for captions that nothing was trained on.
    A UserError if a sample is not finite, since rounding would turn it into an image.
    """

    samples: Sample
    reference: Reference
    features: Features
    seed: int
    teacher: Sample | None = None
    classes: Tensor | None = None
    real_classes: Tensor | None = None
    model: Model | None = None
    captions: Sequence[str] | None = None
    unseen: Unseen | None = None

    def __post_init__(self):
        if self.features.digest != self.reference.network:
            raise ValueError("the reference was built with another feature network; build it again with this one")
        shape, n = self.reference.shape, len(self.samples)
        if tuple(self.samples.shape[1:]) != shape or n < 2:
            raise UserError(f"need at least 2 samples of shape {list(shape)}, got {list(self.samples.shape)}")
        if broken := int((~self.samples.isfinite().flatten(1).all(1)).sum()):
            raise UserError(f"{broken} of {n} samples are not finite: the network has diverged; train it at a lower lr")

    @functools.cached_property
    def seen(self) -> Seen:
        """The samples as the 8-bit images that they will be kept as."""
        return Seen.of(to_8bit(self.samples), self.features)

    @functools.cached_property
    def repeats(self) -> Tensor:
        """The bootstrap's resamples of the samples, [RESAMPLES, n]."""
        return resamples(len(self.samples), self.seed)

    @functools.cached_property
    def frechet(self) -> Estimate:
        """The Frechet distance of features, which several metrics are made of."""
        return Estimate(self.fd, self.sway.se)

    @functools.cached_property
    def sway(self) -> Sway:
        """How that moves with the samples' weights."""
        return sway(self.seen.features, self.reference.whole.features, self.repeats)

    @property
    def fd(self) -> float:
        """The Frechet distance of features without its error."""
        return frechet(Moments.of(self.seen.features), self.reference.whole.features)

    @functools.cached_property
    def halves(self) -> tuple[float, float] | None:
        """The Frechet distance of the samples of even and of those of odd number; None of fewer than 4."""
        if len(self.samples) < 4:
            return None
        even, odd = (Moments.of(self.seen.features[half::2]) for half in (0, 1))
        return frechet(even, self.reference.whole.features), frechet(odd, self.reference.whole.features)

    @property
    def halves_se(self) -> float:
        """The standard error of either: of half as many samples the noise of pairs has four times the variance, other noise
        twice."""
        return math.sqrt(2) * self.sway.variance.with_pairs(2.0)

    @functools.cached_property
    def reach(self) -> Reach | None:
        """Which samples and real images lie near each other; None of too few to have WIDE neighbours."""
        x, reference = self.seen.features, self.reference
        if min(len(x), len(reference.rows)) <= WIDE:
            return None
        return Reach.of(x, Neighbours.of(x, most=WIDE), reference.rows, reference.nearest_rows)

    @functools.cached_property
    def nearest_real(self) -> Tensor:
        """The squared distances of each sample from its nearest real images, rising: [n, NEAREST]."""
        return nearest(self.seen.features, self.reference.rows)


class Metric(abc.ABC):
    """A number that says what samples are worth.

    better: which way samples get better. needs: fields of a Subject without which it is not measured. Where its column
    stands says `diffcore.metrics.order`.
    """

    better: Literal["lower", "higher"] = "lower"
    needs: tuple[str, ...] = ()

    @abc.abstractmethod
    def measure(self, subject: Subject) -> Estimate | None:
        """None where it says nothing of this sampling."""


class Distance(Metric):
    """From the real images: a metric that has a floor, what it is for other real images.

    biased: whether it is proportional to 1/n + 1/m between n and m images of one distribution; else it is 0 in the mean.
    """

    biased: bool = False

    @abc.abstractmethod
    def compare(self, seen: Seen, reference: Reference, repeats: Tensor) -> Estimate:
        """Of a set of n images from all real ones; `repeats`: [r, n], for errors by resampling."""

    @abc.abstractmethod
    def between(self, halves: Halves) -> float:
        """Of one half of the real images from the other."""

    def measure(self, subject: Subject) -> Estimate:
        """Of the samples."""
        return self.compare(subject.seen, subject.reference, subject.repeats)
