"""How much noise there is at time t.

x_t = alpha(t) x_0 + sigma(t) eps with t in [0, 1], t = 0 the data. alpha and sigma are the standard-deviation scales (never
alpha-bar). Everything here is computed in float64 and cast where it meets a sample.
"""

import abc
import dataclasses
import functools
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffcore.core.errors import UserError
from diffcore.core.shapes import PerSample, Sample, lift
from diffcore.core.transfer import to_device


@dataclass(frozen=True)
class Level:
    """One noise level for each sample of a batch, lifted to the sample's axes `[b, 1, ...]`."""

    alpha: Tensor
    sigma: Tensor


class Table:
    """Numbers that are asked for wherever a sample lies, and copied there once."""

    def __init__(self, values: Tensor):
        self._copies = {values.device: values}

    def beside(self, like: Tensor) -> Tensor:
        """The same numbers on the device of `like`."""
        if like.device not in self._copies:
            with torch.inference_mode(False):  # the copy outlives the block that asks first
                self._copies[like.device] = to_device(next(iter(self._copies.values())), like.device)
        return self._copies[like.device]


class Schedule(abc.ABC):
    """A noise schedule: `alpha` and `sigma` of t, and the inverse of the half log-SNR log(alpha/sigma)."""

    @abc.abstractmethod
    def alpha(self, t: PerSample) -> PerSample:
        """The scale of the signal, [b], float64."""

    @abc.abstractmethod
    def sigma(self, t: PerSample) -> PerSample:
        """The scale of the noise, [b], float64."""

    @abc.abstractmethod
    def time(self, half_logsnr: PerSample) -> PerSample:
        """The t at which log(alpha/sigma) has this value, [b], float64."""

    def level(self, t: PerSample, like: Sample) -> Level:
        """alpha and sigma at t, lifted to `like` and in its dtype."""
        return Level(lift(self.alpha(t), like), lift(self.sigma(t), like))

    def angle(self, t: PerSample) -> PerSample:
        """phi = atan2(sigma, alpha) in [0, pi/2], float64: 0 is data, pi/2 pure noise."""
        return torch.atan2(self.sigma(t), self.alpha(t))

    def half_logsnr(self, t: PerSample) -> PerSample:
        """lambda = log(alpha/sigma) (DPM-Solver's; half of progressive distillation's log-SNR). Infinite where one is 0."""
        return self.alpha(t).log() - self.sigma(t).log()


@dataclass(frozen=True)
class Cosine(Schedule):
    """alpha = cos(pi t/2), sigma = sin(pi t/2): the angle is linear in t, and alpha(1) = 0 exactly."""

    def alpha(self, t: PerSample) -> PerSample:
        return torch.sin(math.pi / 2 * (1 - t.double()))  # cos would leave 6e-17 at t = 1

    def sigma(self, t: PerSample) -> PerSample:
        return torch.sin(math.pi / 2 * t.double())

    def time(self, half_logsnr: PerSample) -> PerSample:
        return torch.atan(torch.exp(-half_logsnr.double())) * (2 / math.pi)


@dataclass(frozen=True)
class Linear(Schedule):
    """The variance-preserving SDE with beta(t) linear in t (Song et al. 2021, arXiv 2011.13456, eq. 32-33)."""

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self):
        if not 0 < self.beta_min < self.beta_max:
            raise ValueError(f"linear schedule: 0 < beta_min < beta_max, got {self.beta_min} and {self.beta_max}")

    def _log_alpha(self, t: PerSample) -> PerSample:
        t = t.double()
        return -0.25 * t**2 * (self.beta_max - self.beta_min) - 0.5 * t * self.beta_min

    def alpha(self, t: PerSample) -> PerSample:
        return self._log_alpha(t).exp()

    def sigma(self, t: PerSample) -> PerSample:
        return (-torch.expm1(2 * self._log_alpha(t))).sqrt()

    def time(self, half_logsnr: PerSample) -> PerSample:
        minus_log_alpha = 0.5 * torch.nn.functional.softplus(-2 * half_logsnr.double())
        # the root of the quadratic that loses no digits at small t
        root = (0.25 * self.beta_min**2 + (self.beta_max - self.beta_min) * minus_log_alpha).sqrt()
        return 2 * minus_log_alpha / (0.5 * self.beta_min + root)


@dataclass(frozen=True)
class SubVP(Linear):
    """The linear VP's alpha with the smaller noise sigma = 1 - alpha^2 (2011.13456, eq. 29): not variance-preserving."""

    def sigma(self, t: PerSample) -> PerSample:
        return -torch.expm1(2 * self._log_alpha(t))

    def time(self, half_logsnr: PerSample) -> PerSample:
        # alpha from sigma/alpha = 1/alpha - alpha, and the variance-preserving schedule's time of that alpha
        ratio = torch.exp(-half_logsnr.double())
        alpha = 2 / (ratio + (ratio**2 + 4).sqrt())
        return super().time(alpha.log() - 0.5 * (ratio * alpha).log())  # whose sigma^2 is 1 - alpha^2 = alpha ratio


@dataclass(frozen=True)
class Discrete(Schedule):
    """DDPM's N betas (Ho et al. 2020, arXiv 2006.11239): t = n/N is step n, t = 0 is data.

    Between the steps the angle is linear in t, which stays finite where alpha-bar is 0 (a zero terminal SNR). At n/N its
    slope is that of step n, which lies below: the one that a sampler at n/N is about to undo.
    """

    betas: tuple[float, ...]

    def __post_init__(self):
        if not self.betas or not all(0 < beta <= 1 for beta in self.betas):
            raise ValueError("discrete schedule: betas must be a non-empty list of numbers in (0, 1]")

    @functools.cached_property
    def _table(self) -> Table:
        with torch.inference_mode(False):  # it outlives the block that asks first
            log_alpha_bar = torch.log1p(-torch.tensor(self.betas, dtype=torch.float64)).cumsum(0)
            sigma = (-torch.expm1(log_alpha_bar)).sqrt()
            angles = torch.atan2(sigma, (0.5 * log_alpha_bar).exp())
            return Table(torch.cat([torch.zeros(1, dtype=torch.float64), angles]))

    def _angle(self, t: PerSample) -> PerSample:
        angles = self._table.beside(t)
        place = t.double() * len(self.betas)
        # t = n/N may miss its n by a rounding, which must move it neither off the table nor, by its slope, off the clock
        off = (place.round() - place).detach()
        place = place + torch.where(off.abs() < 1e-9, off, 0.0)
        high = place.detach().ceil().long().clamp(1, len(self.betas))
        return torch.lerp(angles[high - 1], angles[high], place - (high - 1))

    def alpha(self, t: PerSample) -> PerSample:
        return torch.sin(math.pi / 2 - self._angle(t))

    def sigma(self, t: PerSample) -> PerSample:
        return torch.sin(self._angle(t))

    def time(self, half_logsnr: PerSample) -> PerSample:
        angles = self._table.beside(half_logsnr)
        angle = torch.atan(torch.exp(-half_logsnr.double()))
        high = torch.searchsorted(angles, angle.contiguous()).clamp(1, len(self.betas))
        within = (angle - angles[high - 1]) / (angles[high] - angles[high - 1])
        return (high - 1 + within) / len(self.betas)


@dataclass(frozen=True)
class VE(Schedule):
    """Variance exploding: alpha = 1, sigma = sigma_min (sigma_max/sigma_min)^t (arXiv 2011.13456, eq. 30).

    At t = 0 the noise is sigma_min, not 0.
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0

    def __post_init__(self):
        if not 0 < self.sigma_min < self.sigma_max:
            raise ValueError(f"ve schedule: 0 < sigma_min < sigma_max, got {self.sigma_min} and {self.sigma_max}")

    def alpha(self, t: PerSample) -> PerSample:
        return torch.ones_like(t, dtype=torch.float64)

    def sigma(self, t: PerSample) -> PerSample:
        return self.sigma_min * (self.sigma_max / self.sigma_min) ** t.double()

    def time(self, half_logsnr: PerSample) -> PerSample:
        return (-half_logsnr.double() - math.log(self.sigma_min)) / math.log(self.sigma_max / self.sigma_min)


@dataclass(frozen=True)
class Flow(Schedule):
    """Rectified flow: alpha = 1 - u, sigma = u (Liu et al. 2022, arXiv 2209.03003), u = shift t / (1 + (shift - 1) t).

    shift: of the times, for larger images (Esser et al. 2024, arXiv 2403.03206, eq. 23); the log-SNR falls by 2 log(shift) at
    every t. A dynamic one, of which the number of patches decides, is one number for one size of image.
    """

    shift: float = 1.0

    def __post_init__(self):
        if not 0 < self.shift < math.inf:
            raise ValueError(f"flow schedule: shift must be above 0, got {self.shift}")

    def alpha(self, t: PerSample) -> PerSample:
        t = t.double()
        return (1 - t) / (1 + (self.shift - 1) * t)

    def sigma(self, t: PerSample) -> PerSample:
        t = t.double()
        return self.shift * t / (1 + (self.shift - 1) * t)

    def time(self, half_logsnr: PerSample) -> PerSample:
        return torch.sigmoid(-half_logsnr.double() - math.log(self.shift))


@dataclass(frozen=True)
class EDM(Schedule):
    """alpha = 1, sigma^(1/rho) linear in t (Karras et al. 2022, arXiv 2206.00364, eq. 5): even steps of t are theirs.

    At t = 0 the noise is sigma_min, not 0.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    def __post_init__(self):
        if not 0 < self.sigma_min < self.sigma_max:
            raise ValueError(f"edm schedule: 0 < sigma_min < sigma_max, got {self.sigma_min} and {self.sigma_max}")
        if not 0 < self.rho < math.inf:
            raise ValueError(f"edm schedule: rho must be above 0, got {self.rho}")

    def alpha(self, t: PerSample) -> PerSample:
        return torch.ones_like(t, dtype=torch.float64)

    def sigma(self, t: PerSample) -> PerSample:
        low, high = self._ends
        return (low + t.double() * (high - low)) ** self.rho

    def time(self, half_logsnr: PerSample) -> PerSample:
        low, high = self._ends
        return (torch.exp(-half_logsnr.double() / self.rho) - low) / (high - low)

    @property
    def _ends(self) -> tuple[float, float]:
        return self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)


@dataclass(frozen=True)
class Normalised(Schedule):
    """The variance-preserving schedule with the log-SNR of another one at every t: of x_t / hypot(alpha, sigma)."""

    of: Schedule

    def alpha(self, t: PerSample) -> PerSample:
        alpha = self.of.alpha(t)
        return alpha / torch.hypot(alpha, self.of.sigma(t))

    def sigma(self, t: PerSample) -> PerSample:
        sigma = self.of.sigma(t)
        return sigma / torch.hypot(self.of.alpha(t), sigma)

    def time(self, half_logsnr: PerSample) -> PerSample:
        return self.of.time(half_logsnr)


SCHEDULES: dict[str, type[Schedule]] = {
    "cosine": Cosine,
    "linear": Linear,
    "subvp": SubVP,
    "discrete": Discrete,
    "ve": VE,
    "flow": Flow,
    "edm": EDM,
}


def to_json(schedule: Schedule) -> dict[str, Any]:
    """`{"name": ..., **fields}`, what a card holds; of a normalised one, those of the other with `normalised: true`."""
    if isinstance(schedule, Normalised):
        return {**to_json(schedule.of), "normalised": True}
    name = next(name for name, kind in SCHEDULES.items() if type(schedule) is kind)
    return {"name": name, **dataclasses.asdict(schedule)}


def from_json(spec: dict[str, Any]) -> Schedule:
    """The inverse of `to_json`; an unknown name is a UserError."""
    fields = dict(spec)
    if fields.pop("normalised", False):
        return Normalised(from_json(fields))
    name = fields.pop("name", None)
    if name not in SCHEDULES:
        raise UserError(f"schedule {name!r} is unknown; known: {', '.join(SCHEDULES)}")
    fields = {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}
    return SCHEDULES[name](**fields)


def variance_preserving(schedule: Schedule) -> Schedule:
    """The schedule that a network is trained on: the same, or normalised where alpha^2 + sigma^2 is not 1.

    Training, DDIM and every method here work in the angle, which normalising leaves as it is.
    """
    t = torch.linspace(0, 1, 17, dtype=torch.float64)
    power = schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2
    return schedule if (power - 1).abs().max() < 1e-9 else Normalised(schedule)
