"""A sampler is a denoiser, a solver and a trajectory."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from diffcore.denoiser import Denoiser, per_sample
from diffcore.draw import noises
from diffcore.mistake import Mistake
from diffcore.shapes import Sample
from diffcore.solver import Solver
from diffcore.trajectory import Trajectory


@dataclass(frozen=True)
class Sampler:
    """Draws samples; refuses a trajectory on which its denoiser is not valid (a Mistake)."""

    denoiser: Denoiser
    solver: Solver
    trajectory: Trajectory

    def __post_init__(self):
        grid = self.denoiser.grid
        if grid is not None and grid != self.trajectory:
            raise Mistake(
                f"this student is valid only on its own {grid.steps} steps at t = {_short(grid)}, "
                f"not on {self.trajectory.steps} steps at t = {_short(self.trajectory)}; sample it on its own trajectory"
            )

    @property
    def nfe(self) -> int:
        """Network calls for one batch of samples."""
        return self.solver.nfe * self.trajectory.steps

    @torch.inference_mode()
    def sample(self, start: Sample, noise: Callable[[int], Sample] | None = None) -> Sample:
        """From `start` at the trajectory's first time to its last. `noise(k)` gives step k's noise to a noisy solver.

        start: [b, *x], already on the scale of the first time (standard normal for a variance-preserving schedule at 1).
        """
        if self.solver.noisy and noise is None:
            raise Mistake("a noisy solver needs noise; give Sampler.sample a function of the step")
        x = start
        for k, (t, s) in enumerate(self.trajectory.pairs):
            fresh = noise(k) if self.solver.noisy else None
            x = self.solver.step(self.denoiser, x, per_sample(t, x), per_sample(s, x), fresh)
        return x

    def draw(self, shape: tuple[int, ...], count: int, seed: int, batch: int = 250) -> Sample:
        """`count` samples `[count, *shape]`, on the CPU. Sample i depends on (seed, i) alone, not on `batch`.

        The first noise is the same for every sampler of a variance-preserving schedule, so that samplers can be compared
        image by image.
        """
        device = next((p.device for p in self.denoiser.parameters()), torch.device("cpu"))
        parts = []
        for first in range(0, count, batch):
            rows = range(first, min(first + batch, count))
            start = self._scale() * noises(shape, seed, rows, "start").to(device)
            parts.append(self.sample(start, lambda k, r=rows: noises(shape, seed, r, f"step {k}").to(device)).cpu())
        return torch.cat(parts)

    def _scale(self) -> float:
        # the standard deviation of unit-variance data at the first time: 1 unless the variance explodes
        t = torch.tensor(self.trajectory.times[:1], dtype=torch.float64)
        return float(torch.hypot(self.denoiser.schedule.alpha(t), self.denoiser.schedule.sigma(t)))


def _short(trajectory: Trajectory) -> str:
    times = [f"{t:.4g}" for t in trajectory.times]
    return ", ".join(times if len(times) <= 6 else [*times[:3], "...", *times[-2:]])
