"""The samples of a look: the same noise, classes and guidance weight each time.

They are drawn as a checkpoint's own sampler draws them, of which a training needs the two steps below alone: a new solver
trains nothing again.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from diffcore.core import precision, processes
from diffcore.core.rng import noises
from diffcore.core.shapes import Sample, batches
from diffcore.denoisers.condition import Condition
from diffcore.denoisers.denoiser import Denoiser, per_sample
from diffcore.denoisers.network import NetDenoiser
from diffcore.denoisers.prediction import Prediction
from diffcore.methods import Method
from diffcore.noise.schedule import Level
from diffcore.noise.trajectory import Trajectory, uniform

BATCH = 250
"""Samples that are drawn together. It is part of no key: a sample does not depend on its batch beyond rounding."""

FLOW_STEPS, JUMPS = 16, 1

Noise = Callable[[], Sample]


def _flow(belief: Prediction, to: Level, noise: Noise) -> Sample:
    """A DDIM step."""
    return to.alpha * belief.x0 + to.sigma * belief.eps


def _jump(belief: Prediction, to: Level, noise: Noise) -> Sample:
    """To the data and back to the level with fresh noise (Song et al. 2023, arXiv 2303.01469, alg. 1)."""
    return to.alpha * belief.x0 + to.sigma * noise()


STEPS = {"ddim": _flow, "multistep_consistency": _jump}
"""By the sampler that a method names."""


@dataclass(frozen=True)
class FixedSamples:
    """What is drawn of a network at each look.

    reading: how the network is read. shape: of an image, (c, h, w). steps: see `Watch`. inputs: what is known of the samples,
    by the name of a network's input [count, ...]. weight: of guidance, for a network that takes it as an input.
    """

    method: Method
    reading: NetDenoiser
    shape: tuple[int, ...]
    count: int
    seed: int
    steps: int | None = None
    inputs: Mapping[str, Tensor] = field(default_factory=dict)
    weight: float | None = None

    @property
    def trajectory(self) -> Trajectory:
        """The method's own grid, or so many even steps."""
        usual = FLOW_STEPS if self.method.is_velocity else JUMPS
        return self.method.grid or uniform(self.steps or usual)

    @property
    def calls(self) -> int:
        """Network calls of one look."""
        return self.count * self.trajectory.steps

    @precision.exact()
    @torch.no_grad()
    def draw(self, net: nn.Module) -> Sample:
        """[count, *shape] on the CPU, in every process; the batches are dealt to all of them."""
        denoiser = self.reading.with_network(net)
        parts = processes.dealt(batches(range(self.count), BATCH), lambda rows: self._batch(denoiser, rows))
        return torch.cat(list(parts))

    def _batch(self, denoiser: NetDenoiser, rows: range) -> Sample:
        device = next(denoiser.parameters()).device
        denoiser = denoiser.with_condition(self._condition(rows).to(device))
        return self._solved(denoiser, rows, device).cpu()

    def _solved(self, denoiser: Denoiser, rows: range, device: torch.device) -> Sample:
        def noise(role: str) -> Sample:
            return noises(self.shape, self.seed, rows, role).to(device)

        x, step = noise("start"), STEPS[self.method.sampler]
        start = denoiser.schedule.level(per_sample(self.trajectory.times[0], x), x)
        x = torch.hypot(start.alpha, start.sigma) * x
        for number, (t, s) in enumerate(self.trajectory.pairs):
            belief, to = denoiser(x, per_sample(t, x)), denoiser.schedule.level(per_sample(s, x), x)
            x = step(belief, to, lambda role=f"step {number}": noise(role))
        return x

    def _condition(self, rows: range) -> Condition:
        known = Condition(self.inputs)[rows.start : rows.stop]
        weight = None if self.weight is None else torch.full((len(rows),), self.weight, dtype=torch.float64)
        return replace(known, guidance=weight)
