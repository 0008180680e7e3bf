"""DPM-Solver-12 and -23 (Lu et al. 2022, arXiv 2206.00927, appendix C): steps as long as a tolerance allows.

A step of order k - 1 and one of order k share their calls; their difference is the error. Each sample has steps of its own,
so that its result does not depend on the others in the batch.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch

from diffcore.core.errors import UserError
from diffcore.core.shapes import PerSample, Sample, lift
from diffcore.denoisers.denoiser import Denoiser
from diffcore.denoisers.node import Node, at_half_logsnr, ddim_step, node, predict_at
from diffcore.denoisers.prediction import Prediction
from diffcore.noise.schedule import Level, Schedule
from diffcore.noise.trajectory import Trajectory, ends
from diffcore.sampling.solver import Noise, Solver, signed

SAFETY = 0.9
"""theta: the share of the longest step that is taken (the paper's)."""
MOST_STEPS = 10_000


@dataclass(frozen=True)
class Adaptive(Solver):
    """From the trajectory's first time to its last; those between are not needed. The number of network calls is a mean.

    Steps are equal in nothing but their error: rms(difference / max(atol, rtol |x|)) <= 1. Where an end has no finite
    lambda = log(alpha/sigma) the way there is one DDIM step, from or to the ends that `karras` has. predicts: what is
    expanded within a step, eps or, as in ++, x_0. atol: 0.0078 is one of 256 levels of data in [-1, 1].
    """

    rtol: float = 0.05
    atol: float = 0.0078
    predicts: Literal["eps", "x0"] = "eps"

    adaptive = True
    higher = 2
    FIRST = 0.05  # the first h (the paper's)

    def __post_init__(self):
        if self.rtol <= 0 or self.atol <= 0:
            raise ValueError(f"rtol and atol must be positive, got {self.rtol} and {self.atol}")

    def solve(self, denoiser: Denoiser, x: Sample, trajectory: Trajectory, noise: Noise) -> Sample:
        first, last = (node(denoiser.schedule, trajectory.times[k]) for k in (0, -1))
        begin, end = finite_ends(denoiser.schedule, first, last)
        if begin != first:
            x = ddim_step(predict_at(denoiser, x, first), begin)
        x = self._integrate(denoiser, x, begin.lam, end.lam)
        return x if end == last else ddim_step(predict_at(denoiser, x, end), last)

    def _integrate(self, denoiser: Denoiser, x: Sample, start: float, end: float) -> Sample:
        result, rows = x.clone(), torch.arange(len(x), device=x.device)
        lam = torch.full((len(x),), start, dtype=torch.float64, device=x.device)
        h, before = torch.full_like(lam, self.FIRST), x
        for _ in range(MOST_STEPS):
            last = h >= (end - lam) * (1 - 1e-12)
            to = torch.where(last, torch.full_like(lam, end), lam + h)
            lower, higher = self._step(denoiser.select(rows), x, lam, to)
            size = self._size(higher - lower, lower, before)
            good = size <= 1
            h = SAFETY * (to - lam) * size.clamp(min=1e-12) ** (-1 / self.higher)
            keep = lift(good.double(), x) > 0
            x, before = torch.where(keep, higher, x), torch.where(keep, lower, before)
            lam, arrived = torch.where(good, to, lam), good & last
            result = result.to(x.dtype)  # an exact denoiser answers in float64 whatever it is asked in
            result[rows[arrived]] = x[arrived]
            rows, x, before, lam, h = (part[~arrived] for part in (rows, x, before, lam, h))
            if not len(rows):
                return result
        raise UserError(
            f"dpm_solver_{self.higher - 1}{self.higher} took {MOST_STEPS} steps without arriving; raise rtol"
        )

    def _size(self, difference: Sample, lower: Sample, before: Sample) -> PerSample:
        """The error of each sample in units of what is allowed, [b], float64."""
        allowed = (self.rtol * torch.maximum(lower.abs(), before.abs())).clamp(min=self.atol)
        size = (difference / allowed).flatten(1).square().mean(1).sqrt().double()
        if not size.isfinite().all():
            raise UserError("an adaptive step met numbers that are not finite; look at what the network makes of noise")
        return size

    def _step(self, denoiser: Denoiser, x: Sample, lam: PerSample, to: PerSample) -> tuple[Sample, Sample]:
        """The steps of order 1 and 2 (algorithm 4 with r_1 = 1/2)."""
        step, r1 = _Step(denoiser, x, lam, to - lam, self.predicts), 1 / 2
        look = step.predict_at(step.ddim_step(r1), r1)
        return step.ddim_step(1.0), step.bend(1.0, look, r1, integral=False)


@dataclass(frozen=True)
class DPM12(Adaptive):
    """DPM-Solver-12: two calls a step."""

    word = "dpm_solver_12"


@dataclass(frozen=True)
class DPM23(Adaptive):
    """DPM-Solver-23: three calls a step."""

    word = "dpm_solver_23"

    higher = 3

    def _step(self, denoiser: Denoiser, x: Sample, lam: PerSample, to: PerSample) -> tuple[Sample, Sample]:
        """The steps of order 2 and 3 (algorithm 4 with r_1 = 1/3, algorithm 5)."""
        step, r1, r2 = _Step(denoiser, x, lam, to - lam, self.predicts), 1 / 3, 2 / 3
        early = step.predict_at(step.ddim_step(r1), r1)
        late = step.predict_at(step.bend(r2, early, r1, integral=True), r2)
        return step.bend(1.0, early, r1, integral=False), step.bend(1.0, late, r2, integral=True)


class _Step:
    """One try from lambda over h, [b] each: where its beliefs land. A place in it is a share of h, 0 to 1."""

    def __init__(self, denoiser: Denoiser, x: Sample, lam: PerSample, h: PerSample, predicts: str):
        self.denoiser, self.lam, self.h, self.predicts = denoiser, lam, h, predicts
        self.first = self.predict_at(x, 0.0)

    def predict_at(self, x: Sample, place: float) -> Prediction:
        return self.denoiser(x, self._time(place))

    def ddim_step(self, place: float) -> Sample:
        """The DDIM step."""
        to = self._level(place)
        return to.alpha * self.first.x0 + to.sigma * self.first.eps

    def bend(self, place: float, look: Prediction, where: float, integral: bool) -> Sample:
        """The step that knows how the belief has changed at `where`: the change's integral, or its midpoint."""
        step, scale = signed(place * self.h, self._level(place), self.predicts)
        weight = torch.expm1(step) / step - 1 if integral else 0.5 * torch.expm1(step)
        change = getattr(look, self.predicts) - getattr(self.first, self.predicts)
        return self.ddim_step(place) - scale * lift(weight * place / where, change) * change

    def _time(self, place: float) -> PerSample:
        return self.denoiser.schedule.time(self.lam + place * self.h)

    def _level(self, place: float) -> Level:
        return self.denoiser.schedule.level(self._time(place), self.first.x0)


def finite_ends(schedule: Schedule, first: Node, last: Node) -> tuple[Node, Node]:
    """The two nodes, or in place of one with an infinite lambda that of the `ends` of the schedule."""
    noisiest, cleanest = (at_half_logsnr(schedule, -math.log(end)) for end in ends(schedule))
    return noisiest if math.isinf(first.lam) else first, cleanest if math.isinf(last.lam) else last
