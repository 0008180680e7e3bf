"""UniPC (Zhao et al. 2023, arXiv 2302.04867): a predictor and a corrector of any order from the same beliefs."""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from diffcore.core.shapes import Sample
from diffcore.denoisers.denoiser import Denoiser
from diffcore.denoisers.node import Node, ddim_step, node, predict_at
from diffcore.denoisers.prediction import Prediction
from diffcore.noise.trajectory import Trajectory
from diffcore.sampling.solver import History, Noise, Solver, signed


@dataclass(frozen=True)
class UniPC(Solver):
    """One call a step: the belief at the predicted x corrects the step that led there, and begins the next one.

    uses: beliefs in a step (the paper's order p). variant: B(h), h itself or expm1(h), which matter where a weight is taken
    to be 1/2 (of two beliefs in the predictor, of one in the corrector); vary_coeff solves for that weight too.
    lower_order_final: make the last steps of lower order. predicts: what is expanded, x_0 or eps.
    """

    word = "unipc"

    uses: int = 2
    variant: Literal["bh1", "bh2", "vary_coeff"] = "bh2"
    lower_order_final: bool = True
    predicts: Literal["x0", "eps"] = "x0"

    order = 2  # p = 2 corrected reaches 3 on some problems; the first steps limit it

    def __post_init__(self):
        if not 1 <= self.uses <= 3:
            raise ValueError(f"uses must be 1, 2 or 3, got {self.uses}")

    def solve(self, denoiser: Denoiser, x: Sample, trajectory: Trajectory, noise: Noise) -> Sample:
        nodes = [node(denoiser.schedule, t) for t in trajectory.times]
        history: History = [(nodes[0], predict_at(denoiser, x, nodes[0]))]
        for k, to in enumerate(nodes[1:], 1):
            uses = min(self.uses, trajectory.steps - k + 1) if self.lower_order_final else self.uses
            used = [pair for pair in history[:uses] if math.isfinite(pair[0].lam)]
            predicted = self._predict(history[0], used, to)
            if k == trajectory.steps:
                return predicted
            belief = predict_at(denoiser, predicted, to)
            x = self._correct(history[0], used, to, belief) if used else predicted
            # the next step begins at the corrected x with the belief at the predicted one: no further call
            history = [(to, self._moved(belief, x, to)), *history]
            history = history[: self.uses]
        return x

    def _moved(self, belief: Prediction, x: Sample, to: Node) -> Prediction:
        """A belief that keeps what is expanded and is made whole at another x."""
        if self.predicts == "x0":
            return Prediction(belief.x0, (x - to.alpha * belief.x0) / to.sigma, belief.level)
        return Prediction((x - to.sigma * belief.eps) / to.alpha, belief.eps, belief.level)

    def _predict(self, now: tuple[Node, Prediction], used: History, to: Node) -> Sample:
        base, h = ddim_step(now[1], to), to.lam - now[0].lam
        if math.isinf(h) or len(used) < 2:
            return base
        ratios, matrix, vector, scale = self._system(used, to, h)
        is_half = len(used) == 2 and self.variant != "vary_coeff"
        weights = [0.5] if is_half else np.linalg.solve(matrix[:-1, :-1], vector[:-1])
        return base - scale * self._change(used, ratios, weights)

    def _correct(self, now: tuple[Node, Prediction], used: History, to: Node, belief: Prediction) -> Sample:
        base, h = ddim_step(now[1], to), to.lam - now[0].lam
        if math.isinf(h):
            return base
        ratios, matrix, vector, scale = self._system(used, to, h)
        is_half = len(used) == 1 and self.variant != "vary_coeff"
        weights = [0.5] if is_half else np.linalg.solve(matrix, vector)
        change = float(weights[-1]) * (self._read(belief) - self._read(now[1]))
        if len(used) > 1:
            change = change + self._change(used, ratios, weights[:-1])
        return base - scale * change

    def _change(self, used: History, ratios: list[float], weights) -> Sample:
        """sum_i rho_i (m_{-i} - m_0) / r_i."""
        now = self._read(used[0][1])
        parts = (float(w) / r * (self._read(belief) - now) for w, r, (_, belief) in zip(weights, ratios, used[1:]))
        return sum(parts)

    def _system(self, used: History, to: Node, h: float) -> tuple[list[float], np.ndarray, np.ndarray, float]:
        """r_i, R and b of the paper's equation 9 and B(h) times the scale of what is expanded."""
        ratios = [(m.lam - used[0][0].lam) / h for m, _ in used[1:]] + [1.0]
        step, scale = signed(h, to, self.predicts)
        size = step if self.variant == "bh1" else math.expm1(step)
        matrix = np.array([[r**i for r in ratios] for i in range(len(ratios))])
        phi, vector = math.expm1(step) / step - 1, []
        for i in range(1, len(ratios) + 1):
            vector.append(phi * math.factorial(i) / size)
            phi = phi / step - 1 / math.factorial(i + 1)
        return ratios, matrix, np.array(vector), scale * size

    def _read(self, belief: Prediction) -> Sample:
        return getattr(belief, self.predicts)
