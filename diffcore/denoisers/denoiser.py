"""What a network believes about x_0, and everything that can hold such a belief."""

import abc
import contextlib
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from diffcore.core.mistake import Mistake
from diffcore.core.shapes import PerSample, Sample, lift
from diffcore.noise.schedule import Level, Schedule
from diffcore.noise.trajectory import Trajectory

LABELS = 1024
"""T of the label c = T t - 1 that a network is given: a power of two, so that every halving lands on an integer."""


@dataclass(frozen=True)
class Prediction:
    """One belief about (x_0, eps) given x_t = alpha x_0 + sigma eps; four readings of it, [b, *x] each.

    `v` is the velocity in the angle of the variance-preserving rescaling x_t / hypot(alpha, sigma). cost: the work it took,
    in network calls per sample: 2 for two calls, a fraction where part of the network was not run.
    """

    x0: Sample
    eps: Sample
    level: Level
    cost: float = 1.0

    @property
    def v(self) -> Sample:
        size = torch.hypot(self.level.alpha, self.level.sigma)
        return (self.level.alpha * self.eps - self.level.sigma * self.x0) / size

    @property
    def score(self) -> Sample:
        """The gradient of log p_t at x_t, -eps / sigma. Infinite where sigma is 0."""
        return -self.eps / self.level.sigma

    @property
    def both(self) -> Tensor:
        """x_0 and eps side by side, [b, 2c, ...]."""
        return torch.cat([self.x0, self.eps], 1)


def from_x0(x_t: Sample, level: Level, x0: Sample) -> Prediction:
    """Singular at sigma = 0."""
    return Prediction(x0, (x_t - level.alpha * x0) / level.sigma, level)


def from_eps(x_t: Sample, level: Level, eps: Sample) -> Prediction:
    """Singular at alpha = 0."""
    return Prediction((x_t - level.sigma * eps) / level.alpha, eps, level)


def from_v(x_t: Sample, level: Level, v: Sample) -> Prediction:
    """Singular nowhere: with C, S = cos, sin of the angle, x_0 = C z - S v and eps = S z + C v."""
    size = torch.hypot(level.alpha, level.sigma)
    c, s = level.alpha / size, level.sigma / size
    z = x_t / size
    return Prediction(c * z - s * v, s * z + c * v, level)


def from_score(x_t: Sample, level: Level, score: Sample) -> Prediction:
    """Singular at alpha = 0."""
    return from_eps(x_t, level, -level.sigma * score)


def from_both(x_t: Sample, level: Level, both: Tensor) -> Prediction:
    """Of an x~ and an eps~, [b, 2c, ...]: x_0 = S^2 x~ + C (z - S eps~), which trusts either where it is good (Salimans &
    Ho 2022, arXiv 2202.00512, section 4). That is v = C eps~ - S x~, so singular nowhere."""
    x0, eps = both.chunk(2, 1)
    return from_v(x_t, level, Prediction(x0, eps, level).v)


HEADS = {"x0": from_x0, "eps": from_eps, "v": from_v, "score": from_score, "both": from_both}


@dataclass(frozen=True)
class Condition:
    """What is known of the samples of a batch.

    labels: int64 [b], -1 for no class, None if nothing is known of any. guidance: [b], the weight g of classifier-free
    guidance, None where there is none. negative: int64 [b], the class that guidance leads away from, None for no class.
    """

    labels: Tensor | None = None
    guidance: PerSample | None = None
    negative: Tensor | None = None

    def __getitem__(self, rows: slice | Tensor) -> "Condition":
        return self._each(lambda part: part[rows])

    def to(self, device: torch.device) -> "Condition":
        return self._each(lambda part: part.to(device))

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Condition":
        parts = (self.labels, self.guidance, self.negative)
        return Condition(*(None if part is None else change(part) for part in parts))


class Denoiser(nn.Module, abc.ABC):
    """(x_t, t) -> Prediction.

    schedule: the noise schedule that t refers to.
    grid: None if the denoiser means what it says at every time; otherwise the only trajectory it may be sampled on (a
    progressive student's velocity is the average over its own step).
    """

    schedule: Schedule
    grid: Trajectory | None

    @abc.abstractmethod
    def forward(self, x_t: Sample, t: PerSample) -> Prediction:
        """x_t: [b, *x], t: [b] in [0, 1]."""

    def begin(self, calls: int | None) -> "Denoiser":
        """What a sampling run uses: itself, or for a denoiser that remembers, one of the same kind with an empty memory.

        calls: how often the run will call it; None if the data decide.
        """
        return self

    def given(self, condition: Condition) -> "Denoiser":
        """This denoiser for a batch whose classes and guidance weights are known; itself if it takes no notice of them."""
        return self

    def of(self, rows: slice | Tensor) -> "Denoiser":
        """This denoiser for some samples of the batch it was `given`."""
        return self

    def features(self, x_t: Sample, t: PerSample) -> list[Tensor]:
        """What its network sees in x_t, [b, c, h, w] for each of its levels; a Mistake where there is none to ask."""
        raise Mistake("this denoiser has no features to show: a loss on features needs a teacher that is our own U-Net")


class NetDenoiser(Denoiser):
    """A network `net(x_t, label) -> [b, *x]` read through a head; for the head `both` it says [b, 2c, ...]. The label is
    T t - 1, a float; T is 1024 for our own.

    The network sees x_t as it is, so the schedule must be a variance-preserving one. classes: how many classes it tells
    apart, None for a network that knows none; the index after the last one stands for no class. weighs: whether the guidance
    weight is one of its inputs.
    """

    def __init__(
        self,
        net: nn.Module,
        schedule: Schedule,
        head: str = "v",
        grid: Trajectory | None = None,
        classes: int | None = None,
        weighs: bool = False,
        condition: Condition | None = None,
        labels: int = LABELS,
    ):
        super().__init__()
        self.net, self.schedule, self.head, self.grid = net, schedule, head, grid
        self.classes, self.weighs, self.condition, self.labels = classes, weighs, condition, labels

    def forward(self, x_t: Sample, t: PerSample) -> Prediction:
        # where alpha is 0.006, bfloat16's rounding of eps is half of x_0
        whole = torch.autocast(x_t.device.type, enabled=False) if self.head == "eps" else contextlib.nullcontext()
        with whole:
            out = self.net(x_t, label(t, self.labels), *self._inputs(x_t)).to(x_t.dtype)
        return HEADS[self.head](x_t, self.schedule.level(t, x_t), out)

    def given(self, condition: Condition) -> "NetDenoiser":
        if self.classes is None and not self.weighs:
            return self
        return self.around(self.net, condition)

    def of(self, rows: slice | Tensor) -> "NetDenoiser":
        return self if self.condition is None else self.given(self.condition[rows])

    def features(self, x_t: Sample, t: PerSample) -> list[Tensor]:
        if not hasattr(self.net, "features"):
            return super().features(x_t, t)
        return self.net.features(x_t, label(t, self.labels), *self._inputs(x_t))

    def around(self, net: nn.Module, condition: Condition | None = None) -> "NetDenoiser":
        """The same reading of another network."""
        known = condition or self.condition
        return NetDenoiser(net, self.schedule, self.head, self.grid, self.classes, self.weighs, known, self.labels)

    def _inputs(self, x_t: Sample) -> tuple[Tensor | None, ...]:
        if self.classes is None and not self.weighs:
            return ()
        known = self.condition or Condition()
        labels = None
        if self.classes is not None:
            labels = torch.full((len(x_t),), -1, device=x_t.device) if known.labels is None else known.labels
            labels = torch.where(labels < 0, self.classes, labels)
        if not self.weighs:
            return (labels,)
        if known.guidance is None:
            raise Mistake("this student takes the guidance weight as an input; say which one, evaluate's `guidance`")
        return labels, known.guidance


class Guided(Denoiser):
    """Classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598): unconditional + g (conditional - unconditional).

    g = 1 is the conditional belief, g = 0 the unconditional one; diffusers calls this number guidance_scale, and papers that
    write (1 + w) conditional - w unconditional mean g = 1 + w. Where a negative class is known, its belief stands for the
    unconditional one, so that g does nothing to samples of that class. Costs two network calls, made as one batch.
    """

    def __init__(self, inner: Denoiser, condition: Condition = Condition()):
        super().__init__()
        self.inner, self.condition, self.schedule, self.grid = inner, condition, inner.schedule, inner.grid

    def forward(self, x_t: Sample, t: PerSample) -> Prediction:
        known = self.condition
        if known.guidance is None or known.labels is None:
            raise Mistake("guidance needs a class and a weight for each sample; give it a condition")
        away = torch.full_like(known.labels, -1) if known.negative is None else known.negative
        both = self.inner.given(Condition(torch.cat([known.labels, away])))
        belief = both(torch.cat([x_t, x_t]), torch.cat([t, t]))
        g = lift(known.guidance, x_t)
        x0, eps = (torch.lerp(without, with_, g) for with_, without in (belief.x0.chunk(2), belief.eps.chunk(2)))
        return Prediction(x0, eps, self.schedule.level(t, x_t), 2 * belief.cost)

    def given(self, condition: Condition) -> "Guided":
        return Guided(self.inner, condition)

    def of(self, rows: slice | Tensor) -> "Guided":
        return Guided(self.inner, self.condition[rows])

    def features(self, x_t: Sample, t: PerSample) -> list[Tensor]:
        return self.inner.given(Condition(self.condition.labels)).features(x_t, t)

    def begin(self, calls: int | None) -> Denoiser:
        return Guided(self.inner.begin(calls), self.condition)


def label(t: PerSample, labels: int = LABELS) -> PerSample:
    """What a network is told about t, [b], float32: diffusers' index of t on a grid of T steps."""
    return (t.double() * labels - 1).float()


class Rescaled(Denoiser):
    """The same belief under another schedule: x_t is scaled to the inner schedule's point of equal alpha/sigma.

    At times whose SNR the inner schedule never reaches its inverse is asked outside [0, 1].
    """

    def __init__(self, inner: Denoiser, schedule: Schedule):
        super().__init__()
        self.inner, self.schedule, self.grid = inner, schedule, inner.grid

    def forward(self, x_t: Sample, t: PerSample) -> Prediction:
        inner_t = self.inner.schedule.time(self.schedule.half_logsnr(t))
        level, inner = self.schedule.level(t, x_t), self.inner.schedule.level(inner_t, x_t)
        scale = torch.hypot(inner.alpha, inner.sigma) / torch.hypot(level.alpha, level.sigma)
        belief = self.inner(x_t * scale, inner_t)
        return dataclasses.replace(belief, level=level)

    def begin(self, calls: int | None) -> Denoiser:
        return Rescaled(self.inner.begin(calls), self.schedule)

    def given(self, condition: Condition) -> Denoiser:
        return Rescaled(self.inner.given(condition), self.schedule)

    def of(self, rows: slice | Tensor) -> Denoiser:
        return Rescaled(self.inner.of(rows), self.schedule)


class GaussianDenoiser(Denoiser):
    """The exact denoiser of x_0 ~ N(mean, diag(variance)): the first ruler of this project.

    mean, variance: [*x]. The flow map, Gamma and every optimal variance are closed forms too.
    """

    def __init__(self, mean: Tensor, variance: Tensor, schedule: Schedule):
        super().__init__()
        self.mean, self.variance, self.schedule, self.grid = mean, variance, schedule, None

    def forward(self, x_t: Sample, t: PerSample) -> Prediction:
        level = self.schedule.level(t, x_t)
        total = level.alpha**2 * self.variance + level.sigma**2
        pull = (x_t - level.alpha * self.mean) / total
        return Prediction(self.mean + level.alpha * self.variance * pull, level.sigma * pull, level)

    def flow(self, x_t: Sample, t: PerSample, s: PerSample) -> Sample:
        """The exact probability-flow map from t to s: the standardised x stays as it is."""
        at, to = self.schedule.level(t, x_t), self.schedule.level(s, x_t)
        ratio = (to.alpha**2 * self.variance + to.sigma**2) / (at.alpha**2 * self.variance + at.sigma**2)
        return to.alpha * self.mean + ratio.sqrt() * (x_t - at.alpha * self.mean)

    def gamma(self, t: PerSample) -> PerSample:
        """Gamma = E|score|^2 / d, the mean over coordinates of 1 / (alpha^2 c^2 + sigma^2). [b], float64."""
        flat = self.variance.double().flatten()
        return (self.schedule.alpha(t)[:, None] ** 2 * flat + self.schedule.sigma(t)[:, None] ** 2).reciprocal().mean(1)


class MixtureDenoiser(Denoiser):
    """The exact denoiser of a mixture of diagonal Gaussians: exact score, no closed flow; the ruler for several modes.

    weights: [k], means, variances: [k, *x].
    """

    def __init__(self, weights: Tensor, means: Tensor, variances: Tensor, schedule: Schedule):
        super().__init__()
        self.weights, self.means, self.variances = weights, means, variances
        self.schedule, self.grid = schedule, None

    def forward(self, x_t: Sample, t: PerSample) -> Prediction:
        level = self.schedule.level(t, x_t)
        alpha, sigma = level.alpha.unsqueeze(1), level.sigma.unsqueeze(1)
        total = alpha**2 * self.variances + sigma**2  # [b, k, *x]
        away = x_t.unsqueeze(1) - alpha * self.means
        log_density = -0.5 * (away**2 / total + total.log()).flatten(2).sum(2)
        share = torch.softmax(self.weights.to(x_t.dtype).log() + log_density, 1)
        share = share.reshape(*share.shape, *([1] * (x_t.ndim - 1)))
        x0 = (share * (self.means + alpha * self.variances * away / total)).sum(1)
        return Prediction(x0, (share * sigma * away / total).sum(1), level)


def per_sample(t: float, like: Sample) -> PerSample:
    """One time for a whole batch: [b], float64, on its device."""
    return torch.full((len(like),), t, dtype=torch.float64, device=like.device)
