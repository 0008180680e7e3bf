"""How a network is fed and read: what it sees of x_t, what it is told of t, and what its output states."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from diffcore.core.errors import UserError
from diffcore.core.shapes import PerSample, Sample
from diffcore.denoisers.prediction import PARAMETERIZATIONS, Prediction
from diffcore.noise.schedule import Level, Schedule

NUM_TIMESTEPS = 1024
"""T of the timestep c = T t - 1 that a network is given: a power of two, so that every halving lands on an integer."""

INPUTS: dict[str, Callable[[Tensor, Tensor], Tensor] | None] = {
    "same": None,
    "unit": lambda alpha, sigma: 1 / torch.hypot(alpha, sigma),
    "flow": lambda alpha, sigma: 1 / (alpha + sigma),
    "ve": lambda alpha, sigma: 1 / alpha,
}
"""The factor c of alpha and sigma by which x_t is scaled before a network sees it; None for x_t as it is.

unit: c x_t has variance 1 (EDM's c_in). flow: c x_t = (1 - s) x_0 + s eps. ve: c x_t = x_0 + s eps.
"""

TIMES: dict[str, Callable[[PerSample, PerSample, PerSample, int], PerSample]] = {
    "index": lambda t, alpha, sigma, count: t * count - 1,
    "time": lambda t, alpha, sigma, count: t * count,
    "flow": lambda t, alpha, sigma, count: count * sigma / (alpha + sigma),
    "log_sigma": lambda t, alpha, sigma, count: (sigma / alpha).log() / 4,
    "sigma": lambda t, alpha, sigma, count: sigma / alpha,
}
"""What a network is told of (t, alpha, sigma, T), [b] float64.

index: T t - 1, diffusers' index of t on a grid of T steps. time: T t. flow: T s of the input `flow`. log_sigma: EDM's
c_noise.
"""

SEEN = {"same": "x_t", "unit": "x_t / sqrt({a}^2 + sigma^2)", "flow": "x_t / ({a} + sigma)", "ve": "x_t / {a}"}
TOLD = {
    "index": "{T} t - 1",
    "time": "{T} t",
    "flow": "{T} sigma / (alpha + sigma)",
    "log_sigma": "log(sigma / alpha) / 4",
    "sigma": "sigma / alpha",
}
"""INPUTS and TIMES for a reader: a is sigma_data alpha, T the number of timesteps."""

KINDS = {
    "vp": ("same", "index"),
    "flow": ("flow", "flow"),
    "edm": ("unit", "log_sigma"),
    "ve": ("ve", "sigma"),
}
"""(input, time) of the readings that have a name: DDPM's; rectified flow (arXiv 2209.03003); EDM (Karras et al. 2022, arXiv
2206.00364, table 1); the variance-exploding SDE (arXiv 2011.13456)."""


@dataclass(frozen=True)
class Reading:
    """How a network is fed and read.

    parameterization: what its output states of x_0 / sigma_data and eps, a word of PARAMETERIZATIONS, in the scale of what it
    sees. num_timesteps: T of the times that count in steps. input: a word of INPUTS, time: of TIMES. sigma_data: the
    standard deviation of the data that the network takes for 1. A network that sees x_t as it is (`same`) knows one schedule
    alone; any other input means the same at one log-SNR on every schedule.
    """

    parameterization: str = "v"
    num_timesteps: int = NUM_TIMESTEPS
    input: str = "same"
    time: str = "index"
    sigma_data: float = 1.0

    def __post_init__(self):
        for word, registry in ((self.parameterization, PARAMETERIZATIONS), (self.input, INPUTS), (self.time, TIMES)):
            if word not in registry:
                raise ValueError(f"{word!r} is no part of a reading; known: {', '.join(registry)}")
        if not 0 < self.sigma_data < math.inf:
            raise ValueError(f"sigma_data must be a positive number, got {self.sigma_data}")

    @classmethod
    def of(
        cls, kind: str, parameterization: str, num_timesteps: int = NUM_TIMESTEPS, sigma_data: float = 1.0
    ) -> "Reading":
        """One of KINDS."""
        return cls(parameterization, num_timesteps, *KINDS[kind], sigma_data)

    @property
    def is_usual(self) -> bool:
        """Whether the network sees x_t as it is, is told the index of t, and takes the data as they are."""
        return self == Reading(self.parameterization, self.num_timesteps)

    def fed(self, x_t: Sample, t: PerSample, schedule: Schedule) -> tuple[Sample, PerSample]:
        """(what the network sees, what it is told): [b, *x], and [b] float32, worked out in float64."""
        seen = x_t if self.input == "same" else self.seen(x_t, schedule.level(t, x_t))[0]
        return seen, self.timestep(t, schedule)

    def timestep(self, t: PerSample, schedule: Schedule) -> PerSample:
        """What the network is told of t, [b], float32."""
        scales = (None, None) if self.time in ("index", "time") else (schedule.alpha(t), schedule.sigma(t))
        return TIMES[self.time](t.double(), *scales, self.num_timesteps).float()

    def belief(self, x_t: Sample, t: PerSample, schedule: Schedule, out: Tensor) -> Prediction:
        """What the network's output states of x_t: read in the scale of what the network sees, of x_0 / sigma_data."""
        level = schedule.level(t, x_t)
        belief = PARAMETERIZATIONS[self.parameterization](*self.seen(x_t, level), out)
        if belief.level is level:
            return belief
        return Prediction(belief.x0 * self.sigma_data, belief.eps, level)

    def check(self, schedule: Schedule) -> None:
        """A UserError for a schedule that has times at which the network can be told nothing."""
        ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
        seen = self.seen(torch.ones(2, 1, dtype=torch.float64), schedule.level(ends, ends[:, None]))[0].flatten()
        for end, x, said in zip((0, 1), seen.tolist(), self.timestep(ends, schedule).tolist()):
            if not (math.isfinite(x) and math.isfinite(said)):
                raise UserError(
                    f"a network with input {self.input} that is told {self.time} has nothing to be told at t = {end} of this "
                    "schedule; take edm or ve, whose noise is neither none nor all"
                )

    def span(self, schedule: Schedule) -> int | float:
        """How far what the network is told reaches, from t = 0 to t = 1."""
        if self.time in ("index", "time"):
            return self.num_timesteps
        start, end = self.timestep(torch.tensor([0.0, 1.0], dtype=torch.float64), schedule).tolist()
        return abs(end - start)

    @property
    def words(self) -> str:
        """What is called x and timestep where the network is called, for a model card."""
        seen = SEEN[self.input].format(a="alpha" if self.sigma_data == 1 else f"({self.sigma_data:g} alpha)")
        told = f"timestep is {TOLD[self.time].format(T=self.num_timesteps)}"
        return told if self.input == "same" else f"x is {seen}, {told}"

    def to_json(self) -> dict[str, Any] | None:
        """What a card says of it beside parameterization and num_timesteps; None for the usual one."""
        if self.is_usual:
            return None
        return {key: value for key, value in asdict(self).items() if key in ("input", "time", "sigma_data")}

    def seen(self, x_t: Sample, level: Level) -> tuple[Sample, Level]:
        """(what the network sees, the level at which that is x_0 / sigma_data with noise)."""
        if self.sigma_data != 1:
            level = Level(level.alpha * self.sigma_data, level.sigma)
        factor = INPUTS[self.input]
        if factor is None:
            return x_t, level
        scale = factor(level.alpha, level.sigma)
        return x_t * scale, Level(level.alpha * scale, level.sigma * scale)


VP = Reading()
"""That of our own networks unless params.yaml says otherwise."""
