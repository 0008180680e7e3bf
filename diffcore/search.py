"""The least-cost trajectory for the variational bound, for every number of steps in one run.

Bao et al. 2022, arXiv 2201.06503, section 4: with the optimal variances the bound is a sum of costs of jumps t -> s, so the
best K of N times are a shortest path. For eta = 1 the cost log(sigma*^2/lambda^2) is
log(1 + (1/sigma_s^2 - 1/sigma_t^2) cov_t), which differs from the published log(1 - beta_{t|s} Gamma_t) by a constant that no
path changes, and is finite at alpha_t = 0.
"""

from dataclasses import dataclass

import numpy as np

from diffcore.mistake import Mistake

BLOCK = 96
"""Rows of the cost matrix worked on together: what they need fits into a core's own cache."""


@dataclass(frozen=True)
class Paths:
    """Least-cost paths from node 1 to node N with exactly K nodes, for K up to `most`.

    costs: [most + 1], costs[K]; before: [most + 1, N], the node before node n on the best path of k nodes that ends in n.
    """

    steps: int
    most: int
    costs: np.ndarray
    before: np.ndarray

    def nodes(self, steps: int) -> list[int]:
        """The K nodes, rising from 1 to N; K = 1 is N alone. K nodes are K network calls."""
        self._check(steps)
        path = [self.steps]
        for k in range(steps, 1, -1):
            path.append(int(self.before[k, path[-1] - 1]))
        return path[::-1]

    def cost(self, steps: int) -> float:
        """The sum of the costs of its K - 1 jumps; half of it, in nats per dimension, enters the bound. K of at least 2."""
        self._check(steps)
        if steps == 1:
            raise Mistake("one step has no jump whose cost could be told; ask for at least 2")
        return float(self.costs[steps])

    def _check(self, steps: int) -> None:
        if not 1 <= steps <= self.most:
            raise Mistake(f"steps must be in 1..{self.most}, got {steps}")


def cost(sigma2: np.ndarray, cov: np.ndarray, eta: float = 1.0) -> np.ndarray:
    """J[s - 1, t - 1] = log(sigma*^2/lambda^2) of the jump t -> s for 1 <= s < t <= N, infinite elsewhere. [N, N] float64.

    sigma2, cov: [N], at n = 1..N. Only eta = 1: with eta = 0 lambda is 0 and every jump costs infinitely much.
    """
    if eta != 1:
        raise Mistake(f"the cost of a trajectory is known for eta = 1 only, got {eta}; search with eta 1")
    sigma2, cov = np.asarray(sigma2, np.float64), np.asarray(cov, np.float64)
    if sigma2.shape != cov.shape or sigma2.ndim != 1 or not (cov >= 0).all() or not (np.diff(sigma2) > 0).all():
        raise ValueError("sigma2 must rise strictly and cov be numbers that are not negative, both of one length")
    upper = np.triu(np.ones((len(cov), len(cov)), bool), 1)
    jumps = np.full(upper.shape, np.inf)
    return np.log1p((1 / sigma2[:, None] - 1 / sigma2[None, :]) * cov[None, :], where=upper, out=jumps)


def shortest(jumps: np.ndarray, most: int | None = None) -> Paths:
    """Exact dynamic programming over the number of nodes; among equal paths the one through smaller nodes wins.

    jumps: [N, N], jumps[s, t] finite for s < t. Works for any costs, Monge or not.
    """
    n = len(jumps)
    most = n if most is None else most
    if not 1 <= most <= n:
        raise Mistake(f"the most steps to search for must be in 1..{n}, got {most}")
    into = np.ascontiguousarray(jumps.T)  # row t holds the cost of reaching t from each s
    best = np.full(n, np.inf)
    best[0] = 0.0
    costs, before = np.full(most + 1, np.inf), np.zeros((most + 1, n), np.int32)
    scratch = np.empty((BLOCK, n))
    for k in range(2, most + 1):
        best = _extend(into, best, k, before[k], scratch)
        costs[k] = best[-1]
    return Paths(n, most, costs, before)


def _extend(into: np.ndarray, best: np.ndarray, k: int, before: np.ndarray, scratch: np.ndarray) -> np.ndarray:
    """The best costs of k nodes from those of k - 1. Only t >= k - 1 can be reached, only from k - 2 <= s < t."""
    n, low = len(best), k - 2
    longer = np.full(n, np.inf)
    for first in range(k - 1, n, BLOCK):
        last = min(first + BLOCK, n)
        sums = scratch[: last - first, : last - 1 - low]
        np.add(into[first:last, low : last - 1], best[low : last - 1], out=sums)
        chosen = sums.argmin(1)
        longer[first:last] = sums[np.arange(last - first), chosen]
        before[first:last] = chosen + low + 1
    return longer
