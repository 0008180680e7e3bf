"""DPM-Solver (Lu et al. 2022, arXiv 2206.00927) and DPM-Solver++ (arXiv 2211.01095): exact in the linear part of the flow.

With lambda = log(alpha/sigma) and h = lambda_s - lambda_t the flow from t to s is DDIM's step plus an integral over lambda of
how the belief changes: of eps in DPM-Solver, of x_0 in ++. Here its part of first order is `ddim_step`, singular
nowhere, and the rest is added to it. A step whose h is infinite (from alpha = 0, or to sigma = 0) is the DDIM step alone.
"""

import itertools
import math
from dataclasses import dataclass
from typing import Literal

from diffcore.core.shapes import Sample
from diffcore.denoisers.denoiser import Denoiser
from diffcore.denoisers.node import Node, at_half_logsnr, ddim_step, node, predict_at
from diffcore.denoisers.prediction import Prediction
from diffcore.noise.schedule import Schedule
from diffcore.noise.trajectory import Trajectory
from diffcore.sampling.solver import History, Noise, Solver, signed

FEW = 15
"""Under so many steps the last ones are of lower order, where lower_order_final is set (as diffusers counts)."""


@dataclass(frozen=True)
class Multistep(Solver):
    """DPM-Solver++ with the beliefs of earlier steps; one call a step.

    lower_order_final: make the last steps of lower order where there are few. solver_type: of the second order's term, the
    midpoint of the integral or its Taylor expansion ("heun").
    """

    lower_order_final: bool = True
    solver_type: Literal["midpoint", "heun"] = "midpoint"

    uses = 2  # beliefs
    order = 2
    predicts = "x0"
    second_weight = 1.0

    def solve(self, denoiser: Denoiser, x: Sample, trajectory: Trajectory, noise: Noise) -> Sample:
        nodes = [node(denoiser.schedule, t) for t in trajectory.times]
        history: History = []
        for k, (at, to) in enumerate(itertools.pairwise(nodes)):
            belief = predict_at(denoiser, x, at)
            history = [(at, belief), *history][: self.uses]
            left = trajectory.steps - k
            few = self.lower_order_final and trajectory.steps < FEW
            x = self._step(x, to, history[: min(self.uses, left) if few else self.uses], noise)
        return x

    def _step(self, x: Sample, to: Node, history: History, noise: Noise) -> Sample:
        """history: as many beliefs as the step's order."""
        at, belief = history[0]
        h, base = to.lam - at.lam, ddim_step(belief, to)
        history = [(m, b) for m, b in history if math.isfinite(m.lam)]
        if math.isinf(h) or len(history) < 2:
            return base
        step, scale = signed(h, to, self.predicts)
        seen = [getattr(b, self.predicts) for _, b in history]
        phi = math.expm1(step)
        r0 = (at.lam - history[1][0].lam) / h
        d10 = (seen[0] - seen[1]) / r0
        if len(history) < 3:
            weight = 0.5 * phi if self.solver_type == "midpoint" else phi / step - 1
            return base - scale * weight * d10
        r1 = (history[1][0].lam - history[2][0].lam) / h
        d11 = (seen[1] - seen[2]) / r1
        first, second = d10 + r0 / (r0 + r1) * (d10 - d11), (d10 - d11) / (r0 + r1)
        phi2 = phi / step - 1
        return base - scale * phi2 * first - scale * (phi2 / step - 0.5) * self.second_weight * second


@dataclass(frozen=True)
class DPMpp2M(Multistep):
    """DPM-Solver++(2M)."""

    word = "dpmpp_2m"


@dataclass(frozen=True)
class DPMpp3M(Multistep):
    """DPM-Solver++(3M).

    corrected: give the second difference, which is half of h^2 times the second derivative, its whole weight. Published code
    gives it half, so that it stays of order 2; corrected it comes near 3, which its first step, of order 1, keeps it from.
    """

    word = "dpmpp_3m"

    corrected: bool = False

    uses = 3

    @property
    def second_weight(self) -> float:
        return 2.0 if self.corrected else 1.0


@dataclass(frozen=True)
class DPM2M(DPMpp2M):
    """DPM-Solver(2M): the same of eps."""

    word = "dpm_solver_2m"
    predicts = "eps"


@dataclass(frozen=True)
class DPM3M(DPMpp3M):
    """DPM-Solver(3M): the same of eps."""

    word = "dpm_solver_3m"
    predicts = "eps"


@dataclass(frozen=True)
class DPMpp2MSDE(Multistep):
    """SDE-DPM-Solver++(2M) (arXiv 2211.01095, eq. 18): the reverse-time SDE, exact in its linear part."""

    word = "dpmpp_2m_sde"
    order = None
    stochastic = True

    def _step(self, x: Sample, to: Node, history: History, noise: Noise) -> Sample:
        at, belief = history[0]
        h = to.lam - at.lam
        fresh = noise()
        kept = to.sigma / at.sigma * math.exp(-h)
        mixed = -math.expm1(-2 * h)
        x = kept * x + to.alpha * mixed * belief.x0 + to.sigma * math.sqrt(mixed) * fresh
        if math.isinf(h) or len(history) < 2 or math.isinf(history[1][0].lam):
            return x
        r0 = (at.lam - history[1][0].lam) / h
        weight = 0.5 * mixed if self.solver_type == "midpoint" else 1 - mixed / (2 * h)
        return x + to.alpha * weight / r0 * (belief.x0 - history[1][1].x0)


@dataclass(frozen=True)
class Singlestep(Solver):
    """Looks between the ends of a step instead of back: `calls` for each step.

    solver_type: how the change within a step is expanded, as in the paper's algorithms ("midpoint") or in its Taylor series
    ("heun", the authors' taylor). spacing: where the nodes between lie, at equal parts of h or of the time.
    """

    solver_type: Literal["midpoint", "heun"] = "midpoint"
    spacing: Literal["half_logsnr", "time"] = "half_logsnr"

    calls = 2
    order = 2
    predicts = "eps"

    def solve(self, denoiser: Denoiser, x: Sample, trajectory: Trajectory, noise: Noise) -> Sample:
        nodes = [node(denoiser.schedule, t) for t in trajectory.times]
        for at, to in itertools.pairwise(nodes):
            between = [] if math.isinf(to.lam - at.lam) else self._between(denoiser.schedule, at, to)
            x = grouped(denoiser, x, [at, *between, to], self.predicts, expansion(self.calls, self.solver_type))
        return x

    def _between(self, schedule: Schedule, at: Node, to: Node) -> list[Node]:
        inner = range(1, self.calls)
        if self.spacing == "time":
            return [node(schedule, at.t + (to.t - at.t) * k / self.calls) for k in inner]
        return [at_half_logsnr(schedule, at.lam + (to.lam - at.lam) * k / self.calls) for k in inner]


@dataclass(frozen=True)
class DPM2(Singlestep):
    """DPM-Solver-2: two calls a step."""

    word = "dpm_solver_2"


@dataclass(frozen=True)
class DPM3(Singlestep):
    """DPM-Solver-3: three calls a step."""

    word = "dpm_solver_3"
    calls = 3
    order = 3


@dataclass(frozen=True)
class DPMpp2S(Singlestep):
    """DPM-Solver++(2S): two calls a step, of x_0 instead of eps."""

    word = "dpmpp_2s"
    predicts = "x0"


@dataclass(frozen=True)
class DPMpp3S(DPM3):
    """DPM-Solver++(3S): three calls a step, of x_0 instead of eps."""

    word = "dpmpp_3s"
    predicts = "x0"


@dataclass(frozen=True)
class DPMFast(Solver):
    """DPM-Solver-fast (arXiv 2206.00927, section 3.4): as many calls as steps, in groups of three (algorithm 5 of the paper)
    and at the end of two (algorithm 4) and one.

    The nodes within a group are the trajectory's own times, as in the authors' code on its grids of uniform time; on uniform
    log-SNR theirs makes all groups equally long. A group that begins at alpha = 0 or ends at sigma = 0 is made of DDIM steps.
    predicts: what changes within a step, eps or, as in ++, x_0. uses: the largest group; the orders of 2 are diffusers'.
    solver_type: as of the single steps.
    """

    word = "dpm_solver_fast"
    predicts: Literal["eps", "x0"] = "eps"
    uses: int = 3
    solver_type: Literal["midpoint", "heun"] = "midpoint"

    order = 1  # of the few steps of lower order at the end; groups of three have order 3

    def __post_init__(self):
        if self.uses not in (2, 3):
            raise ValueError(f"uses must be 2 or 3, got {self.uses}")

    def solve(self, denoiser: Denoiser, x: Sample, trajectory: Trajectory, noise: Noise) -> Sample:
        nodes, place = [node(denoiser.schedule, t) for t in trajectory.times], 0
        for size in groups(trajectory.steps, self.uses):
            group = nodes[place : place + size + 1]
            place += size
            if math.isfinite(group[-1].lam - group[0].lam):
                x = grouped(denoiser, x, group, self.predicts, expansion(size, self.solver_type))
            else:
                for at, to in itertools.pairwise(group):
                    x = ddim_step(predict_at(denoiser, x, at), to)
        return x


Expansion = Literal["midpoint", "integral", "taylor"]


def expansion(calls: int, solver_type: str) -> Expansion:
    """How a group of so many calls expands the change of a belief: algorithm 4 takes its midpoint, 5 its integral."""
    if solver_type == "heun":
        return "taylor"
    return "integral" if calls == 3 else "midpoint"


def grouped(denoiser: Denoiser, x: Sample, group: list[Node], predicts: str, how: Expansion = "midpoint") -> Sample:
    """From the group's first time to its last, with a call at each but the last (arXiv 2206.00927, algorithms 4 and 5).

    Each node is reached by a step of the order that those before it allow.
    """
    beliefs = [predict_at(denoiser, x, group[0])]
    for k, to in enumerate(group[1:], 1):
        x = _landed(beliefs, group[:k], to, predicts, how)
        if k < len(group) - 1:
            beliefs.append(predict_at(denoiser, x, to))
    return x


def _landed(beliefs: list[Prediction], nodes: list[Node], to: Node, predicts: str, how: Expansion) -> Sample:
    base, h = ddim_step(beliefs[0], to), to.lam - nodes[0].lam
    if len(beliefs) == 1:
        return base
    step, scale = signed(h, to, predicts)
    phi = math.expm1(step)
    weight = 0.5 * phi if how == "midpoint" else phi / step - 1
    spans = [each.lam - nodes[0].lam for each in nodes[1:]]
    changes = [getattr(belief, predicts) - getattr(beliefs[0], predicts) for belief in beliefs[1:]]
    if len(changes) == 1 or how != "taylor":
        return base - scale * weight * h / spans[-1] * changes[-1]
    (r1, r2), (d1, d2) = (span / h for span in spans), (h / span * change for span, change in zip(spans, changes))
    first, second = (r2 * d1 - r1 * d2) / (r2 - r1), 2 * (d2 - d1) / (r2 - r1)
    return base - scale * weight * first - scale * (weight / step - 0.5) * second


def groups(calls: int, uses: int = 3) -> list[int]:
    """The orders of the steps that so many calls are spent on: 7 -> [3, 3, 1], 8 -> [3, 3, 2], 9 -> [3, 3, 2, 1]."""
    whole, rest = divmod(calls, uses)
    if rest:
        return [uses] * whole + [rest]
    return [uses] * (whole - 1) + [uses - 1, 1]  # the last step is of order 1 wherever the calls allow it
