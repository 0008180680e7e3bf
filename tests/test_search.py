import itertools

import numpy as np
import pytest
import torch

from diffcore import search
from diffcore.denoiser import GaussianDenoiser
from diffcore.mistake import Mistake
from diffcore.schedule import Level
from diffcore.solver import posterior_variance
from diffcore.solvers.analytic import optimal_variance
from tests.conftest import DDPM_BETAS, make_schedule


def tables(steps: int = 1000, word: str = "discrete") -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """alpha2, sigma2, cov, gamma at n = 1..N for anisotropic Gaussian data (isotropic data make all paths alike)."""
    i = torch.arange(64, dtype=torch.float64)
    denoiser = GaussianDenoiser(0.5 * i.sin(), 1e-4 * 5000 ** (i / 63), make_schedule(word))
    t = torch.arange(1, steps + 1, dtype=torch.float64) / steps
    alpha2, sigma2 = denoiser.schedule.alpha(t) ** 2, denoiser.schedule.sigma(t) ** 2
    c2 = denoiser.variance
    cov = (c2 * sigma2[:, None] / (alpha2[:, None] * c2 + sigma2[:, None])).mean(1)
    return tuple(x.numpy() for x in (alpha2, sigma2, cov, denoiser.gamma(t)))


def published(alpha2: np.ndarray, gamma: np.ndarray) -> np.ndarray:
    """F[s, t] = log(1 - beta_{t|s} Gamma_t), arXiv 2201.06503, corollary 4."""
    beta = -np.expm1(np.log(alpha2)[None, :] - np.log(alpha2)[:, None])
    return np.log1p(-np.where(np.triu(np.ones_like(beta), 1) > 0, beta, 0) * gamma[None, :])


def along(costs: np.ndarray, path: list[int]) -> float:
    return sum(costs[a - 1, b - 1] for a, b in itertools.pairwise(path))


@pytest.mark.parametrize("word", ["discrete", "cosine", "linear"])
def test_the_path_is_the_best_of_all_subsets(word):
    _, sigma2, cov, _ = tables(10, word)
    costs = search.cost(sigma2, cov)
    found = search.shortest(costs)
    for steps in range(2, 11):
        every = [[1, *inner, 10] for inner in itertools.combinations(range(2, 10), steps - 2)]
        assert found.nodes(steps) == min(every, key=lambda path: along(costs, path))
        assert found.cost(steps) == pytest.approx(min(along(costs, path) for path in every), rel=1e-12)


def test_any_costs_will_do():
    costs = np.where(np.triu(np.ones((9, 9)), 1) > 0, np.random.default_rng(0).normal(size=(9, 9)), np.inf)
    found = search.shortest(costs)
    for steps in range(2, 10):
        every = [[1, *inner, 9] for inner in itertools.combinations(range(2, 9), steps - 2)]
        assert found.nodes(steps) == min(every, key=lambda path: along(costs, path))


def test_our_cost_is_the_published_one_up_to_a_constant():
    alpha2, sigma2, cov, gamma = tables()
    ours, theirs = search.cost(sigma2, cov), published(alpha2, gamma)
    dice, offsets = np.random.default_rng(1), []
    for _ in range(200):
        inner = sorted(dice.choice(np.arange(2, 1000), dice.integers(1, 30), replace=False).tolist())
        path = [1, *inner, 1000]
        offsets.append(along(ours, path) - along(theirs, path))
    assert np.ptp(offsets) < 3e-10  # sums of up to 30 costs; 8e-11 when this was written
    beta1 = DDPM_BETAS[0]
    by_hand = np.log(sigma2[-1] / beta1) - np.log(alpha2[-1] / alpha2[0])
    assert offsets[0] == pytest.approx(by_hand, abs=1e-9)
    assert offsets[0] == pytest.approx(19.32791355, abs=1e-7)


@pytest.mark.parametrize(
    ("steps", "nodes", "cost"),
    [
        (5, [1, 13, 37, 93, 1000], -14.171071855374239),
        (10, [1, 4, 8, 14, 23, 36, 56, 89, 156, 1000], -14.597895625198827),
    ],
)
def test_reference_paths(steps, nodes, cost):
    alpha2, sigma2, cov, gamma = tables()
    found = search.shortest(search.cost(sigma2, cov), 10)
    theirs = published(alpha2, gamma)
    assert along(theirs, found.nodes(steps)) == pytest.approx(cost, abs=1e-9)
    assert found.nodes(steps) == nodes


def test_more_steps_never_cost_more_in_the_bound_and_ends_are_fixed():
    _, sigma2, cov, _ = tables(50)
    found = search.shortest(search.cost(sigma2, cov))
    for steps in range(2, 51):
        path = found.nodes(steps)
        assert (path[0], path[-1], len(path)) == (1, 50, steps)
    assert found.nodes(1) == [50]
    assert found.nodes(50) == list(range(1, 51))


@pytest.mark.parametrize("word", ["cosine", "ve"])
def test_the_cost_is_that_of_the_optimal_variance(word):
    """log(sigma*^2/lambda^2) with the variance that the sampler uses; for DDPM's lambda, at pure noise too."""
    _, sigma2, cov, _ = tables(100, word)
    costs, schedule = search.cost(sigma2, cov), make_schedule(word)
    for s, t in ((1, 2), (1, 100), (40, 55), (99, 100)):
        to, at = (Level(schedule.alpha(u), schedule.sigma(u)) for u in torch.tensor([[s], [t]]).double() / 100)
        lam2 = posterior_variance(at, to)
        variance = optimal_variance(at, to, torch.from_numpy(cov[t - 1 : t]), lam2)
        assert costs[s - 1, t - 1] == pytest.approx(float((variance / lam2).log()), rel=1e-9)


@pytest.mark.parametrize("steps", [search.BLOCK, search.BLOCK + 1, 2 * search.BLOCK + 2, 250])
def test_work_in_blocks_is_the_plain_recurrence(steps):
    """C[k, t] = min_s C[k - 1, s] + J[s, t], for costs of no structure: every node before every node, in every layer."""
    costs = np.where(np.triu(np.ones((steps, steps)), 1) > 0, np.random.default_rng(2).random((steps, steps)), np.inf)
    found, best = search.shortest(costs), np.where(np.arange(steps) == 0, 0, np.inf)
    for k in range(2, steps + 1):
        sums = best[:, None] + costs
        best, reached = sums.min(0), np.isfinite(sums.min(0))
        assert found.costs[k] == best[-1]
        assert (found.before[k] == sums.argmin(0) + 1)[reached].all()


def test_a_cut_off_search_gives_the_same_paths():
    _, sigma2, cov, _ = tables(200)
    costs = search.cost(sigma2, cov)
    whole, short = search.shortest(costs), search.shortest(costs, 7)
    assert all(whole.nodes(k) == short.nodes(k) for k in range(1, 8))


def test_among_equal_paths_the_one_through_smaller_nodes_wins():
    costs = np.where(np.triu(np.ones((6, 6)), 1) > 0, 1.0, np.inf)
    assert search.shortest(costs).nodes(4) == [1, 2, 3, 6]


def test_the_cost_is_finite_at_pure_noise():
    _, sigma2, cov, _ = tables(100, "cosine")
    costs = search.cost(sigma2, cov)
    assert np.isfinite(costs[np.triu_indices(100, 1)]).all()


def test_what_cannot_be_searched_is_a_mistake():
    _, sigma2, cov, _ = tables(10)
    costs = search.cost(sigma2, cov)
    for wrong in (0, 11):
        with pytest.raises(Mistake, match=r"in 1\.\.10"):
            search.shortest(costs, wrong)
        with pytest.raises(Mistake, match=r"in 1\.\.10"):
            search.shortest(costs).nodes(wrong)
    with pytest.raises(Mistake, match="eta = 1 only, got 0"):
        search.cost(sigma2, cov, eta=0.0)
    with pytest.raises(Mistake, match="at least 2"):
        search.shortest(costs).cost(1)
    with pytest.raises(ValueError, match="rise"):
        search.cost(sigma2[::-1], cov)
    for wrong in (-0.1, np.nan):
        with pytest.raises(ValueError, match="not negative"):
            search.cost(sigma2, np.where(np.arange(10) == 3, wrong, cov))
