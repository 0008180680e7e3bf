"""The least-cost trajectory for the variational bound, for every number of steps in one run.

Bao et al. 2022, arXiv 2201.06503, section 4: with the optimal variances the bound is a sum of costs of jumps t -> s, so the
best K of N times are a shortest path. For eta = 1 the cost log(sigma*^2/lambda^2) is
log(1 + (1/sigma_s^2 - 1/sigma_t^2) cov_t), which differs from the published log(1 - beta_{t|s} Gamma_t) by a constant that no
path changes, and is finite at alpha_t = 0.

With r_t = 1/cov_t - 1/sigma_t^2 that cost is log cov_t + log(1/sigma_s^2 + r_t), so for s < s' < t < t' the quadrangle
inequality J[s, t] + J[s', t'] <= J[s, t'] + J[s', t] says (1/sigma_s^2 - 1/sigma_s'^2) (r_t' - r_t) <= 0: the costs are Monge
just if r_t never rises. The exact cov_t of any data obeys it, since d(1/cov)/d(SNR) is at least 1 (Guo et al. 2011, arXiv
1004.3332, proposition 9) and 1/sigma^2 is 1 + SNR. Then the best node before t moves one way only as t or the number of
nodes grows, and no N x N matrix is needed.
"""

import itertools
from dataclasses import dataclass

import numpy as np
import torch

from diffcore.core.errors import UserError
from diffcore.search.gamma import RANGE, bin_of

BLOCK = 96
"""Rows of the cost matrix worked on together: what they need fits into a core's own cache."""

BRANCHES = 4
"""Into how many parts a level of the Monge search cuts the gaps of the one before: fewer levels, but more sums in each."""

Rows = tuple[np.ndarray, np.ndarray, np.ndarray]
"""The rows of one level, and for each the nearest row of the levels before below it (-1: none) and above it (N: none)."""


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
            raise UserError("one step has no jump whose cost could be told; ask for at least 2")
        return float(self.costs[steps])

    def _check(self, steps: int) -> None:
        if not 1 <= steps <= self.most:
            raise UserError(f"steps must be in 1..{self.most}, got {steps}")


def cheapest(
    sigma2: np.ndarray,
    cov: np.ndarray,
    most: int | None = None,
    eta: float = 1.0,
    data: np.ndarray | None = None,
) -> Paths:
    """The paths of least `cost` by the quicker exact way: Monge's if the costs are such, else over the whole matrix.

    sigma2, cov: [N], as for `cost`. data: [N], what the jump from each time to the data costs, `decoded(...)`: the paths are
    then those of `with_data`, from the data as node 1 to node N + 1, and `most` counts that node. Monge's way takes
    O(K N log N) time at worst, and memory in proportion to N besides the table `before` of K x N int32; the other O(K N^2)
    and N^2. Where paths cost the same but for rounding they may differ.
    """
    sigma2, cov = _checked(sigma2, cov, eta)
    most = _check_most(most, len(cov) + (data is not None))
    if not is_monge(sigma2, cov):
        jumps = cost(sigma2, cov)
        return shortest(jumps if data is None else with_data(jumps, data), most)
    u = 1 / sigma2
    if data is None:
        return _monge(u, cov, np.log1p((u[0] - u) * cov), most, ordered=True)
    # a node before all, whose only jumps are those given: any order of its costs leaves the jumps after it Monge
    return _monge(np.append(np.inf, u), np.append(0.0, cov), np.append(np.inf, data), most, ordered=False)


def is_monge(sigma2: np.ndarray, cov: np.ndarray) -> bool:
    """Whether r_t never rises (up to the rounding of its terms): checked in O(N), for the t that two nodes precede."""
    sigma2, cov = _checked(sigma2, cov)
    with np.errstate(divide="ignore"):
        precision = 1 / cov  # infinite where nothing is left to know: such a jump is free from everywhere
    r = (precision - 1 / sigma2)[2:]
    size = (precision + 1 / sigma2)[2:]
    finite = np.isfinite(r)
    r = r[finite]
    rounding = 8 * np.finfo(np.float64).eps * size[finite]
    falls = (r - rounding <= np.minimum.accumulate(r + rounding)).all()
    return bool(falls and (np.diff(finite.astype(int)) >= 0).all())


def cost(sigma2: np.ndarray, cov: np.ndarray, eta: float = 1.0) -> np.ndarray:
    """J[s - 1, t - 1] = log(sigma*^2/lambda^2) of the jump t -> s for 1 <= s < t <= N, infinite elsewhere. [N, N] float64.

    sigma2, cov: [N], at n = 1..N. sigma2 is the noise's share sigma^2/(alpha^2 + sigma^2): what counts is that 1/sigma_s^2 -
    1/sigma_t^2 is the difference in SNR, which sigma^2 itself gives for variance-preserving and exploding schedules. Only
    eta = 1: with eta = 0 lambda is 0 and every jump costs infinitely much.
    """
    sigma2, cov = _checked(sigma2, cov, eta)
    upper = np.triu(np.ones((len(cov), len(cov)), bool), 1)
    jumps = np.full(upper.shape, np.inf)
    return np.log1p((1 / sigma2[:, None] - 1 / sigma2[None, :]) * cov[None, :], where=upper, out=jumps)


def with_data(jumps: np.ndarray, data: np.ndarray) -> np.ndarray:
    """The costs with a node before the others, the data: [N + 1, N + 1]. A path may then look last at whatever time is best.

    data: [N], `decoded(...)`. Published paths all end at 1/N, which serves only where sigma there is about a bin: a finer
    last look costs a jump and tells nothing that a bin would show.
    """
    n = len(data)
    whole = np.full((n + 1, n + 1), np.inf)
    whole[1:, 1:], whole[0, 1:] = jumps, data
    return whole


def decoded(cov: np.ndarray, edges: float, within: tuple[float, float] = RANGE) -> np.ndarray:
    """What the jump t -> data costs, [N]: the bound's decoder, a normal of variance cov_t in the bins of 256 grey values.

    Twice the mean of -log P of the bin, where the error has that variance, for a jump counts twice in `cost` too. edges: the
    share of values that are the least or the largest of the range `within`, whose bins reach to infinity.
    """
    parts = np.array_split(np.asarray(cov, np.float64), -(-len(cov) // BLOCK))
    return 2 * np.concatenate([_discretised(part, edges, bin_of(within)) for part in parts])


def _discretised(variance: np.ndarray, edges: float, width: float) -> np.ndarray:
    """-E log P(e's bin) for e ~ N(0, variance), by Gauss-Hermite quadrature; 0 where a bin is much wider than e."""
    z, weights = np.polynomial.hermite_e.hermegauss(64)
    half, left = width / 2 / np.sqrt(np.maximum(variance, 1e-16))[:, None], -np.abs(z)
    upper, lower = (torch.special.log_ndtr(torch.from_numpy(end)).numpy() for end in (left + half, left - half))
    inside = -(upper + np.log(-np.expm1(lower - upper)))
    at_edge = -torch.special.log_ndtr(torch.from_numpy(z + half)).numpy()
    return ((1 - edges) * inside + edges * at_edge) @ weights / weights.sum()


def _checked(sigma2: np.ndarray, cov: np.ndarray, eta: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    if eta != 1:
        raise UserError(f"the cost of a trajectory is known for eta = 1 only, got {eta}; search with eta 1")
    sigma2, cov = np.asarray(sigma2, np.float64), np.asarray(cov, np.float64)
    if sigma2.shape != cov.shape or sigma2.ndim != 1 or not (cov >= 0).all() or not (np.diff(sigma2) > 0).all():
        raise ValueError("sigma2 must rise strictly and cov be numbers that are not negative, both of one length")
    return sigma2, cov


def _check_most(most: int | None, n: int) -> int:
    most = n if most is None else most
    if not 1 <= most <= n:
        raise UserError(f"the most steps to search for must be in 1..{n}, got {most}")
    return most


def shortest(jumps: np.ndarray, most: int | None = None, growth: float = 1.0) -> Paths:
    """Exact dynamic programming over the number of nodes; among equal paths the one through smaller nodes wins.

    jumps: [N, N], jumps[s, t] finite for s < t. Works for any costs, Monge or not. growth: how much more a jump counts than
    the one after it; the last jump, into N, counts once.
    """
    n = len(jumps)
    most = _check_most(most, n)
    into = np.ascontiguousarray(jumps.T)  # row t holds the cost of reaching t from each s
    best = np.full(n, np.inf)
    best[0] = 0.0
    costs, before = np.full(most + 1, np.inf), np.zeros((most + 1, n), np.int32)
    scratch = np.empty((BLOCK, n))
    for k in range(2, most + 1):
        best = _extend(into, growth * best, k, before[k], scratch)
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


def _monge(u: np.ndarray, cov: np.ndarray, first: np.ndarray, most: int, ordered: bool) -> Paths:
    """u: [N], 1/sigma^2. Layers of nodes as in `shortest`; a layer's best nodes before are found level by level.

    first: [N], the costs of the jumps into node 1. ordered: whether they too are Monge, so that a node more on the way never
    moves the node before t to the left.
    """
    n, plan = len(u), _levels(len(u))
    best, chosen = np.full(n, np.inf), np.zeros(n, np.int64)
    best[0] = 0.0
    costs, before = np.full(most + 1, np.inf), np.zeros((most + 1, n), np.int32)
    for k in range(2, most + 1):
        if k > 2:  # of one node there is only the first
            chosen = _choose(u, cov, best, k, chosen if ordered else np.zeros_like(chosen), plan)
        t, longer = np.arange(k - 1, n), np.full(n, np.inf)
        longer[t] = first[t] if k == 2 else best[chosen[t]] + np.log1p((u[chosen[t]] - u[t]) * cov[t])
        best, costs[k] = longer, longer[-1]
        before[k, t] = chosen[t] + 1
    return Paths(n, most, costs, before)


def _choose(
    u: np.ndarray, cov: np.ndarray, best: np.ndarray, k: int, shorter: np.ndarray, plan: list[Rows]
) -> np.ndarray:
    """For each t the first best node before it on a path of k nodes; `shorter` holds those of k - 1 nodes.

    It lies between the nodes chosen for the rows around t, and not before that of the shorter path.
    """
    n = len(u)
    chosen = np.full(n + 2, k - 2)  # the least that can be: of row -1, of rows 0..N-1 and of row N
    chosen[-1] = n - 1
    for level in plan:
        rows, below, above = (part[np.searchsorted(level[0], k - 1) :] for part in level)
        if len(rows):
            last = np.minimum(chosen[above + 1], rows - 1)
            first = np.minimum(np.maximum(chosen[below + 1], shorter[rows]), last)  # ties but for rounding may cross
            lengths = last - first + 1
            starts = np.cumsum(lengths) - lengths
            s = np.arange(lengths.sum()) + np.repeat(first - starts, lengths)
            sums = best[s] + np.log1p((u[s] - np.repeat(u[rows], lengths)) * np.repeat(cov[rows], lengths))
            least = np.flatnonzero(sums == np.repeat(np.minimum.reduceat(sums, starts), lengths))
            chosen[rows + 1] = s[least[np.searchsorted(least, starts)]]
    return chosen[1:-1]


def _levels(n: int) -> list[Rows]:
    """The rows 0..N-1 level by level; each level cuts every gap that the levels before have left into BRANCHES."""
    plan, gaps = [], [(-1, n)]
    while gaps:
        cuts = [(*gap, _cuts(*gap)) for gap in gaps]
        level = [(row, low, high) for low, high, rows in cuts for row in rows]
        plan.append(tuple(np.array(level).T))
        ends = [[low, *rows, high] for low, high, rows in cuts]
        gaps = [(a, b) for row in ends for a, b in itertools.pairwise(row) if b - a > 1]
    return plan


def _cuts(low: int, high: int) -> list[int]:
    parts = min(BRANCHES, high - low)
    return [low + i * (high - low) // parts for i in range(1, parts)]
