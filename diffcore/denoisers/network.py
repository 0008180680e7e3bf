"""A network, read as a denoiser."""

import contextlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from diffcore.core.errors import UserError
from diffcore.core.shapes import PerSample, Sample
from diffcore.denoisers.condition import CLASS, END, GUIDANCE, Condition, Nothing
from diffcore.denoisers.denoiser import Denoiser
from diffcore.denoisers.prediction import Prediction
from diffcore.denoisers.reading import VP, Reading
from diffcore.noise.schedule import Schedule
from diffcore.noise.trajectory import Trajectory

SAME, ANY = "same", "any"
"""What a network of two times is told of the second: always the first, which makes it one of one time, as of a student that
was trained so; or the time where its hop lands, wherever that is."""


class NetDenoiser(Denoiser):
    """A network `net(x, timestep) -> [b, *x]`, fed and read by a reading; for the parameterization `x0_eps` it says
    [b, 2c, ...].

    Our own see x_t as it is, on a variance-preserving schedule, and are told T t - 1 with T = 1024. classes: how many classes
    it tells apart, None for a network that knows none; the index after the last one stands for no class. takes_guidance:
    whether the guidance weight is one of its inputs. nothing: its other inputs, by name, with what each is where nothing is
    known (see `Nothing`). end: of a network that takes an end timestep what it is told there, SAME or ANY; None for a network
    of one time. guidance: of a network that takes the guidance weight the one that it is always told, whatever the condition
    says; None for that of the condition.
    """

    s: PerSample | None = None
    """Where the hop lands that it is asked for, see `toward`; None for the velocity itself."""

    def __init__(
        self,
        net: nn.Module,
        schedule: Schedule,
        reading: Reading = VP,
        grid: Trajectory | None = None,
        classes: int | None = None,
        takes_guidance: bool = False,
        condition: Condition | None = None,
        nothing: Mapping[str, Tensor | None] | None = None,
        end: str | None = None,
        guidance: float | None = None,
    ):
        super().__init__()
        self.net, self.schedule, self.reading, self.grid = net, schedule, reading, grid
        self.classes, self.takes_guidance, self.condition = classes, takes_guidance, condition
        self.nothing, self.end, self.guidance = Nothing(nothing or {}), end, guidance

    def forward(self, x_t: Sample, t: PerSample) -> Prediction:
        # where alpha is 0.006, bfloat16's rounding of eps is half of x_0
        exact = self.reading.parameterization == "eps"
        whole = torch.autocast(x_t.device.type, enabled=False) if exact else contextlib.nullcontext()
        with whole:
            out = self.net(*self.reading.fed(x_t, t, self.schedule), **self._inputs(x_t, t)).to(x_t.dtype)
        return self.reading.belief(x_t, t, self.schedule, out)

    def with_condition(self, condition: Condition) -> "NetDenoiser":
        return self.with_network(self.net, condition) if self.is_told else self

    def select(self, rows: slice | Tensor) -> "NetDenoiser":
        own = self if self.condition is None else self.with_condition(self.condition[rows])
        return own if self.s is None else own.toward(self.s[rows])

    def toward(self, s: PerSample) -> "NetDenoiser":
        if self.end != ANY:
            return self
        own = self.with_network(self.net)
        own.s = s
        return own

    def features(self, x_t: Sample, t: PerSample) -> list[Tensor]:
        if not hasattr(self.net, "features"):
            return super().features(x_t, t)
        return self.net.features(*self.reading.fed(x_t, t, self.schedule), **self._inputs(x_t, t))

    def with_network(self, net: nn.Module, condition: Condition | None = None) -> "NetDenoiser":
        """The same reading of another network."""
        own = NetDenoiser(
            net,
            self.schedule,
            self.reading,
            self.grid,
            self.classes,
            self.takes_guidance,
            condition or self.condition,
            self.nothing.parts(),
            self.end,
            self.guidance,
        )
        own.s = self.s
        return own

    def with_nothing(self, nothing: Mapping[str, Tensor | None]) -> "NetDenoiser":
        """The same network, told so where nothing is known, and no other inputs than these."""
        own = self.with_network(self.net)
        own.nothing = Nothing(nothing)
        return own

    def with_guidance(self, guidance: float | None) -> "NetDenoiser":
        """The same network, always told this weight, or with None that of its condition."""
        own = self.with_network(self.net)
        own.guidance = guidance
        return own

    @property
    def inputs(self) -> tuple[str, ...]:
        """What it can be told beside a weight, by the names of its network's inputs."""
        return ((CLASS,) if self.classes is not None else ()) + self.nothing.names

    @property
    def is_told(self) -> bool:
        """Whether its network takes anything beside x and a time."""
        return self.classes is not None or self.takes_guidance or bool(self.nothing.names)

    def _inputs(self, x_t: Sample, t: PerSample) -> dict[str, Tensor]:
        condition = self.condition or Condition()
        inputs = self.nothing.fill(condition, len(x_t))
        if self.classes is not None:
            class_labels = condition.class_labels
            if class_labels is None:
                class_labels = torch.full((len(x_t),), -1, device=x_t.device)
            inputs[CLASS] = torch.where(class_labels < 0, self.classes, class_labels)
        if self.takes_guidance:
            inputs[GUIDANCE] = self._weights(condition, x_t)
        if self.end is not None:
            inputs[END] = self.reading.timestep(t if self.s is None else self.s, self.schedule)
        return inputs

    def _weights(self, condition: Condition, x_t: Sample) -> PerSample:
        if self.guidance is not None:
            return torch.full((len(x_t),), self.guidance, device=x_t.device)
        if condition.guidance is None:
            raise UserError("this network takes the guidance weight as an input; say which one, evaluate's `guidance`")
        return condition.guidance
