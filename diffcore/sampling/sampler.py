"""A sampler is a denoiser, a solver and a trajectory."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from diffcore.core import processes
from diffcore.core.errors import UserError
from diffcore.core.rng import noises
from diffcore.core.shapes import PerSample, Sample, batches
from diffcore.denoisers.condition import Condition
from diffcore.denoisers.denoiser import Denoiser, per_sample
from diffcore.denoisers.meter import Meter, Metered
from diffcore.denoisers.prediction import Prediction
from diffcore.noise.schedule import Schedule
from diffcore.noise.trajectory import Trajectory
from diffcore.sampling.headroom import USUAL, Headroom
from diffcore.sampling.overlap import NoiseAhead, one_behind, returning
from diffcore.sampling.solver import Solver


@dataclass(frozen=True)
class Sampler:
    """Draws samples; refuses a trajectory on which its denoiser is not valid, or which is too short for its solver."""

    denoiser: Denoiser
    solver: Solver
    trajectory: Trajectory

    def __post_init__(self):
        check_steps(self.solver, self.trajectory.steps)
        if self.denoiser.grid is not None:
            check_grid(self.solver, self.trajectory, self.denoiser.grid, self.denoiser.schedule)

    @property
    def evaluation_times(self) -> tuple[float, ...]:
        """The times of its network calls, in their order; a UserError for a solver whose times the data decide."""
        return rehearse(self.solver, self.trajectory, self.denoiser.schedule)

    @property
    def nfe(self) -> int:
        """Network calls for one batch of samples; a UserError for a solver whose number the data decide."""
        return len(self.evaluation_times)

    @torch.inference_mode()
    def sample(self, start: Sample, noise: Callable[[int], Sample] | None = None) -> Sample:
        """From `start` at the trajectory's first time to its last. `noise(k)` gives a stochastic solver its k-th draw.

        start: [b, *x], already on the scale of the first time (standard normal for a variance-preserving schedule at 1).
        """
        if self.solver.stochastic and noise is None:
            raise UserError("a stochastic solver needs noise; give Sampler.sample a function of the draw's number")
        denoiser = self.denoiser.start_run(None if self.solver.adaptive else self.nfe)
        return self.solver.solve(denoiser, start, self.trajectory, _numbered(noise))

    def draw(
        self,
        shape: tuple[int, ...],
        count: int,
        seed: int,
        batch: int = USUAL,
        condition: Condition | None = None,
        meter: Meter | None = None,
        headroom: Headroom | None = None,
        numbers: Callable[[range, str], Sample] | None = None,
    ) -> Sample:
        """`count` samples `[count, *shape]`, on the CPU. Sample i depends on (seed, i) alone, not on `batch`; the batches are
        dealt to all processes, and each of them gets all samples.

        condition: the classes and guidance weights of all of them, for a network that takes such. meter: what the calls cost
        is added to it. headroom: how many samples are computed at once, where a batch is more than a GPU has memory for.
        numbers: (rows, role) -> the standard normal noise of these samples, in place of that of (seed, i).

        The first noise is the same for every sampler of a variance-preserving schedule, so that samplers can be compared
        image by image. On a GPU noise is drawn ahead, and samples are copied back while the next are computed.
        """
        meter, headroom, dealt = meter or Meter(), headroom or Headroom(), batches(range(count), batch)
        device, scale = self._device, self._scale()
        roles = ["start", *(f"step {k}" for k in range(self._draws))]
        parts = [part for rows in processes.share(dealt) for part in headroom.parts(rows)]
        plan = [(part, role) for part in parts for role in roles]
        placed = condition and condition.to(device)  # at once: each copy would wait for all that was computed before

        def begun(rows: range) -> Callable[[], Sample]:
            here = Meter()  # rows for which memory runs out are drawn again, in parts, and count once
            sampler = replace(self, denoiser=Metered(self.denoiser, here))
            sampler = sampler if placed is None else sampler._with_condition(placed[rows.start : rows.stop])
            samples = returning(sampler.sample(scale * noise(rows, "start"), lambda k: noise(rows, f"step {k}")))
            meter.take(here)
            return samples

        def whole(rows: range) -> Callable[[], Sample]:
            waits = headroom.split(rows, begun)
            return lambda: torch.cat([wait() for wait in waits])

        numbers = numbers or (lambda rows, role: noises(shape, seed, rows, role))
        with NoiseAhead(numbers, plan, device) as noise:
            own = one_behind(whole(rows) for rows in processes.share(dealt))
            return torch.cat(list(processes.dealt(dealt, lambda rows: next(own))))

    @torch.inference_mode()
    def warm_up(self, shape: tuple[int, ...], count: int, condition: Condition | None = None) -> None:
        """Two network calls for `count` samples, the second with what a cache keeps: what is done once only is then done."""
        device = self._device
        sampler = self if condition is None else self._with_condition(condition[:count].to(device))
        denoiser = sampler.denoiser.start_run(2)
        x = noises(shape, 0, range(count), "warm up").to(device)
        for _ in range(2):
            denoiser(x, per_sample(self.trajectory.times[0], x)).x0.cpu()

    @property
    def _device(self) -> torch.device:
        return next((p.device for p in self.denoiser.parameters()), torch.device("cpu"))

    @property
    def _draws(self) -> int:
        """How often one run draws noise; 0 where the data decide."""
        if not self.solver.stochastic or self.solver.adaptive:
            return 0
        return _rehearsal(self.solver, self.trajectory, self.denoiser.schedule).draws

    def _with_condition(self, condition: Condition) -> "Sampler":
        return replace(self, denoiser=self.denoiser.with_condition(condition))

    def _scale(self) -> float:
        # the standard deviation of unit-variance data at the first time: 1 unless the variance explodes
        t = torch.tensor(self.trajectory.times[:1], dtype=torch.float64)
        return float(torch.hypot(self.denoiser.schedule.alpha(t), self.denoiser.schedule.sigma(t)))


def rehearse(solver: Solver, trajectory: Trajectory, schedule: Schedule) -> tuple[float, ...]:
    """The times at which a solver calls the network on a trajectory, in their order, seen by running it on nothing."""
    if solver.adaptive:
        raise UserError(f"how often {name(solver)} calls the network depends on the data; count it while sampling")
    return tuple(_rehearsal(solver, trajectory, schedule).evaluation_times)


def _rehearsal(solver: Solver, trajectory: Trajectory, schedule: Schedule) -> "_Blank":
    blank = _Blank(schedule)
    solver.solve(blank, torch.zeros(1, 1, dtype=torch.float64), trajectory, blank.noise)
    return blank


class _Blank(Denoiser):
    """Believes in nothing, keeps the times at which it is asked, and counts the noise that is drawn."""

    def __init__(self, schedule: Schedule):
        super().__init__()
        self.schedule, self.grid, self.evaluation_times, self.draws = schedule, None, [], 0

    def noise(self) -> Sample:
        self.draws += 1
        return torch.zeros(1, 1, dtype=torch.float64)

    def forward(self, x_t: Sample, t: PerSample) -> Prediction:
        self.evaluation_times.append(float(t[0]))
        return Prediction(torch.zeros_like(x_t), x_t, self.schedule.level(t, x_t))


def check_grid(solver: Solver, trajectory: Trajectory, grid: Trajectory, schedule: Schedule) -> None:
    """A UserError if a student that is valid on `grid` alone would be asked elsewhere."""
    if grid != trajectory:
        raise UserError(
            f"this student is valid only on its own {grid.steps} steps at t = {_short(grid)}, "
            f"not on {trajectory.steps} steps at t = {_short(trajectory)}; sample it on its own trajectory"
        )
    if solver.adaptive or set(rehearse(solver, trajectory, schedule)) - set(grid.times):
        raise UserError(
            f"this student is valid only at its own times t = {_short(grid)}, and {name(solver)} evaluates between them; "
            "sample it with ddim"
        )


def check_steps(solver: Solver, steps: int) -> None:
    """A UserError if the solver needs more steps than these."""
    if steps < solver.min_steps:
        raise UserError(
            f"{name(solver)} needs at least {solver.min_steps} steps, got {steps}; ask for more, or for ddim"
        )


def name(solver: Solver) -> str:
    """The word for a solver in params.yaml."""
    return vars(type(solver)).get("word") or type(solver).__name__


def _numbered(noise: Callable[[int], Sample] | None) -> Callable[[], Sample]:
    numbers = itertools.count()
    return lambda: noise(next(numbers))


def _short(trajectory: Trajectory) -> str:
    times = [f"{t:.4g}" for t in trajectory.times]
    return ", ".join(times if len(times) <= 6 else [*times[:3], "...", *times[-2:]])
