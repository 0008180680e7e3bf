import itertools
import json
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from diffcore.core.errors import UserError
from diffcore.denoisers.exact import GaussianDenoiser
from diffcore.metrics import likelihood
from diffcore.noise.schedule import Level
from diffcore.noise.trajectory import nodes
from diffcore.sampling.sampler import Sampler
from diffcore.sampling.solver import posterior_variance
from diffcore.sampling.solvers.analytic import Analytic, optimal_variance
from diffcore.search import least_cost
from diffcore.search.gamma import Gamma, Moments
from tasks import search as stage
from tests.conftest import DDPM_BETAS, exact_gamma, make_schedule, randn


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
    costs = least_cost.cost(sigma2, cov)
    found = least_cost.shortest(costs)
    for steps in range(2, 11):
        every = [[1, *inner, 10] for inner in itertools.combinations(range(2, 10), steps - 2)]
        assert found.nodes(steps) == min(every, key=lambda path: along(costs, path))
        assert found.cost(steps) == pytest.approx(min(along(costs, path) for path in every), rel=1e-12)


def test_any_costs_will_do():
    costs = np.where(np.triu(np.ones((9, 9)), 1) > 0, np.random.default_rng(0).normal(size=(9, 9)), np.inf)
    found = least_cost.shortest(costs)
    for steps in range(2, 10):
        every = [[1, *inner, 9] for inner in itertools.combinations(range(2, 9), steps - 2)]
        assert found.nodes(steps) == min(every, key=lambda path: along(costs, path))


@pytest.mark.parametrize("growth", [1.0, 1.15, 0.5, 3.0])
def test_where_errors_grow_on_the_way_an_early_jump_counts_more(growth):
    """The last jump, into N, counts once, each one before it `growth` times as much as the next."""
    costs = np.where(np.triu(np.ones((8, 8)), 1) > 0, np.random.default_rng(2).random((8, 8)), np.inf)

    def grown(path: list[int]) -> float:
        jumps = [costs[a - 1, b - 1] for a, b in itertools.pairwise(path)]
        return sum(jump * growth**later for later, jump in enumerate(reversed(jumps)))

    found = least_cost.shortest(costs, growth=growth)
    for steps in range(2, 9):
        every = [[1, *inner, 8] for inner in itertools.combinations(range(2, 8), steps - 2)]
        assert found.nodes(steps) == min(every, key=grown)
        assert found.cost(steps) == pytest.approx(min(map(grown, every)), rel=1e-12)


def test_our_cost_is_the_published_one_up_to_a_constant():
    alpha2, sigma2, cov, gamma = tables()
    ours, theirs = least_cost.cost(sigma2, cov), published(alpha2, gamma)
    rng, offsets = np.random.default_rng(1), []
    for _ in range(200):
        inner = sorted(rng.choice(np.arange(2, 1000), rng.integers(1, 30), replace=False).tolist())
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
    found = least_cost.shortest(least_cost.cost(sigma2, cov), 10)
    theirs = published(alpha2, gamma)
    assert along(theirs, found.nodes(steps)) == pytest.approx(cost, abs=1e-9)
    assert found.nodes(steps) == nodes


def test_more_steps_never_cost_more_in_the_bound_and_ends_are_fixed():
    _, sigma2, cov, _ = tables(50)
    found = least_cost.shortest(least_cost.cost(sigma2, cov))
    for steps in range(2, 51):
        path = found.nodes(steps)
        assert (path[0], path[-1], len(path)) == (1, 50, steps)
    assert found.nodes(1) == [50]
    assert found.nodes(50) == list(range(1, 51))


@pytest.mark.parametrize("word", ["cosine", "ve"])
def test_the_cost_is_that_of_the_optimal_variance(word):
    """log(sigma*^2/lambda^2) with the variance that the sampler uses; for DDPM's lambda, at pure noise too."""
    _, sigma2, cov, _ = tables(100, word)
    costs, schedule = least_cost.cost(sigma2, cov), make_schedule(word)
    for s, t in ((1, 2), (1, 100), (40, 55), (99, 100)):
        to, at = (Level(schedule.alpha(u), schedule.sigma(u)) for u in torch.tensor([[s], [t]]).double() / 100)
        lam2 = posterior_variance(at, to)
        variance = optimal_variance(at, to, torch.from_numpy(cov[t - 1 : t]), lam2)
        assert costs[s - 1, t - 1] == pytest.approx(float((variance / lam2).log()), rel=1e-9)


@pytest.mark.parametrize("steps", [least_cost.BLOCK, least_cost.BLOCK + 1, 2 * least_cost.BLOCK + 2, 250])
def test_work_in_blocks_is_the_plain_recurrence(steps):
    """C[k, t] = min_s C[k - 1, s] + J[s, t], for costs of no structure: every node before every node, in every layer."""
    costs = np.where(np.triu(np.ones((steps, steps)), 1) > 0, np.random.default_rng(2).random((steps, steps)), np.inf)
    found, best = least_cost.shortest(costs), np.where(np.arange(steps) == 0, 0, np.inf)
    for k in range(2, steps + 1):
        sums = best[:, None] + costs
        best, reached = sums.min(0), np.isfinite(sums.min(0))
        assert found.costs[k] == best[-1]
        assert (found.before[k] == sums.argmin(0) + 1)[reached].all()


def test_a_cut_off_search_gives_the_same_paths():
    _, sigma2, cov, _ = tables(200)
    costs = least_cost.cost(sigma2, cov)
    whole, short = least_cost.shortest(costs), least_cost.shortest(costs, 7)
    assert all(whole.nodes(k) == short.nodes(k) for k in range(1, 8))


def test_among_equal_paths_the_one_through_smaller_nodes_wins():
    costs = np.where(np.triu(np.ones((6, 6)), 1) > 0, 1.0, np.inf)
    assert least_cost.shortest(costs).nodes(4) == [1, 2, 3, 6]


def test_the_cost_is_finite_at_pure_noise():
    _, sigma2, cov, _ = tables(100, "cosine")
    costs = least_cost.cost(sigma2, cov)
    assert np.isfinite(costs[np.triu_indices(100, 1)]).all()


def test_what_cannot_be_searched_is_a_mistake():
    _, sigma2, cov, _ = tables(10)
    costs = least_cost.cost(sigma2, cov)
    for wrong in (0, 11):
        with pytest.raises(UserError, match=r"in 1\.\.10"):
            least_cost.shortest(costs, wrong)
        with pytest.raises(UserError, match=r"in 1\.\.10"):
            least_cost.shortest(costs).nodes(wrong)
    with pytest.raises(UserError, match="eta = 1 only, got 0"):
        least_cost.cost(sigma2, cov, eta=0.0)
    with pytest.raises(UserError, match="at least 2"):
        least_cost.shortest(costs).cost(1)
    with pytest.raises(ValueError, match="rise"):
        least_cost.cost(sigma2[::-1], cov)
    for wrong in (-0.1, np.nan):
        with pytest.raises(ValueError, match="not negative"):
            least_cost.cost(sigma2, np.where(np.arange(10) == 3, wrong, cov))


def rising(steps: int) -> np.ndarray:
    """sigma2 of the cosine schedule."""
    return np.sin(np.pi / 2 * np.arange(1, steps + 1) / steps) ** 2


def bimodal(steps: int) -> tuple[np.ndarray, np.ndarray]:
    """x_0 = -1 or 1 with even chances: cov = E[1 - tanh(SNR x_0 + sqrt(SNR) z)^2], all but 0 where there is little noise."""
    sigma2 = rising(steps)
    snr = (1 / sigma2 - 1)[:, None]
    z, weight = np.polynomial.hermite_e.hermegauss(200)
    cov = (1 - np.tanh(snr + np.sqrt(snr) * z) ** 2) @ weight / weight.sum()
    return sigma2, np.where(cov < 1e-12, 0, cov)


def monotone(steps: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """r_t that falls at random, over many orders of magnitude, with long stretches of no change."""
    rng, sigma2 = np.random.default_rng(seed), rising(steps)
    drops = rng.exponential(size=steps) * (rng.random(steps) < 0.3)
    return sigma2, 1 / (np.exp(6 - 8 * drops.cumsum() / max(drops.sum(), 1e-9)) + 1 / sigma2 - 1)


MONGE = {
    "gaussian, discrete": lambda: tables(400)[1:3],
    "gaussian, cosine": lambda: tables(257, "cosine")[1:3],
    "gaussian, linear": lambda: tables(64, "linear")[1:3],
    "gaussian, exploding": lambda: tables(100, "ve")[1:3],
    "isotropic": lambda: (rising(150), 0.3 * rising(150) / (0.3 * (1 - rising(150)) + rising(150))),
    "bimodal": lambda: bimodal(200),
    "nothing to know": lambda: (rising(40), np.zeros(40)),
    "one to know": lambda: (rising(40), np.where(np.arange(40) == 39, 0.5, 0)),
    **{f"at random {seed}": lambda seed=seed: monotone(60 + 37 * seed, seed) for seed in range(5)},
    **{f"{steps} nodes": lambda steps=steps: monotone(steps, 9) for steps in range(1, 10)},
}


@pytest.fixture
def dense(monkeypatch):
    """How often the search over the whole matrix was asked for by `cheapest`."""
    calls, shortest = [], least_cost.shortest
    monkeypatch.setattr(least_cost, "shortest", lambda *given: calls.append(given) or shortest(*given))
    return calls


def assert_same(found: least_cost.Paths, costs: np.ndarray) -> None:
    """The least costs, and paths that have them: which path may differ where two cost the same but for rounding."""
    expected, n = least_cost.shortest(costs, found.most), len(costs)
    np.testing.assert_allclose(found.costs[2:], expected.costs[2:], rtol=1e-12, atol=1e-14)
    for steps in range(2, found.most + 1):
        path = found.nodes(steps)
        assert (path[0], path[-1], len(path)) == (1, n, steps)
        assert all(a < b for a, b in itertools.pairwise(path))
        assert along(costs, path) == pytest.approx(expected.cost(steps), rel=1e-12, abs=1e-14)


@pytest.mark.parametrize("branches", [2, 3, least_cost.BRANCHES, 1000])
@pytest.mark.parametrize("case", MONGE)
def test_the_fast_search_finds_what_the_whole_matrix_gives(case, branches, dense, monkeypatch):
    monkeypatch.setattr(least_cost, "BRANCHES", branches)
    sigma2, cov = MONGE[case]()
    assert least_cost.is_monge(sigma2, cov)
    found = least_cost.cheapest(sigma2, cov)
    assert not dense
    assert_same(found, least_cost.cost(sigma2, cov))


@pytest.mark.parametrize("most", [1, 2, 3, 17, 199, 200])
def test_the_fast_search_may_be_cut_off(most, dense):
    sigma2, cov = monotone(200, 3)
    found = least_cost.cheapest(sigma2, cov, most)
    assert (found.most, found.before.shape, found.before.dtype) == (most, (most + 1, 200), np.int32)
    assert found.nodes(1) == [200]
    assert not dense
    assert_same(found, least_cost.cost(sigma2, cov))


@pytest.mark.parametrize("case", ["gaussian, discrete", "bimodal", "at random 4"])
def test_monge_is_the_quadrangle_inequality(case):
    """J[s, t] + J[s', t'] <= J[s, t'] + J[s', t], of all neighbours: the rest follows by adding them up."""
    costs = least_cost.cost(*MONGE[case]())
    n = len(costs)
    s, t = np.triu_indices(n, 2)
    s, t = s[t < n - 1], t[t < n - 1]
    excess = costs[s, t] + costs[s + 1, t + 1] - costs[s, t + 1] - costs[s + 1, t]
    assert excess.max() < 1e-12


def test_a_path_whose_answer_is_known():
    """Isotropic data: the cost is that of the whole way whatever the path, so every K costs log1p((u_1 - u_N) cov_N)."""
    sigma2, cov = MONGE["isotropic"]()
    found = least_cost.cheapest(sigma2, cov)
    whole = np.log1p((1 / sigma2[0] - 1 / sigma2[-1]) * cov[-1])
    np.testing.assert_allclose(found.costs[2:], whole, rtol=1e-12)


UNLIKE = {
    "noise": lambda cov, rng: cov * np.exp(0.05 * rng.standard_normal(len(cov))),
    "a gap": lambda cov, rng: np.where(np.arange(len(cov)) == 50, 0, cov),
    "clipped": lambda cov, rng: np.where(np.arange(len(cov)) > 70, 1.0, 0.9 * cov),
    "one small fault": lambda cov, rng: cov * np.where(np.arange(len(cov)) == 40, 0.9, 1),
}


@pytest.mark.parametrize("case", UNLIKE)
def test_costs_that_are_not_monge_are_searched_over_the_whole_matrix(case, dense):
    _, sigma2, cov, _ = tables(100, "cosine")
    cov = UNLIKE[case](cov, np.random.default_rng(5))
    assert not least_cost.is_monge(sigma2, cov)
    found, costs = least_cost.cheapest(sigma2, cov, 30), least_cost.cost(sigma2, cov)
    assert len(dense) == 1
    assert_same(found, costs)
    assert (found.before == least_cost.shortest(costs, 30).before).all()


def test_the_monge_search_is_wrong_where_costs_are_not_monge():
    """So the check is needed, and these cases would tell if it were left out."""
    _, sigma2, cov, _ = tables(100, "cosine")
    cov = UNLIKE["noise"](cov, np.random.default_rng(5))
    right = least_cost.cheapest(sigma2, cov, 30)
    u = 1 / sigma2
    found = least_cost._monge(u, cov, np.log1p((u[0] - u) * cov), 30, ordered=True)
    assert (found.costs[2:] > right.costs[2:] + 1e-6).any()


def test_what_no_path_can_tell_does_not_count_against_monge():
    """Into node 1 there is no jump, into node 2 only one."""
    _, sigma2, cov, _ = tables(30, "cosine")
    cov[:2] = 0.9
    assert least_cost.is_monge(sigma2, cov)
    assert_same(least_cost.cheapest(sigma2, cov), least_cost.cost(sigma2, cov))


def test_the_fast_search_needs_no_matrix():
    sigma2, cov = monotone(2000, 1)
    tracemalloc.start()
    found = least_cost.cheapest(sigma2, cov, 20)
    peak = tracemalloc.get_traced_memory()[1] - found.before.nbytes
    tracemalloc.stop()
    assert peak < 100 * 8 * 2000  # 38 numbers for each time when this was written; a matrix has 2000


def test_what_the_fast_search_refuses():
    sigma2, cov = monotone(10, 0)
    for wrong in (0, 11):
        with pytest.raises(UserError, match=r"in 1\.\.10"):
            least_cost.cheapest(sigma2, cov, wrong)
        with pytest.raises(UserError, match=r"in 1\.\.10"):
            least_cost.cheapest(sigma2, cov).nodes(wrong)
    for eta in (0.0, 0.5):
        with pytest.raises(UserError, match=f"eta = 1 only, got {eta}"):
            least_cost.cheapest(sigma2, cov, eta=eta)
    for wrong in (-0.1, np.nan):
        with pytest.raises(ValueError, match="not negative"):
            least_cost.cheapest(sigma2, np.where(np.arange(10) == 3, wrong, cov))


@pytest.mark.parametrize("repair", [False, True])
def test_the_stage_tells_what_was_moved(repair):
    alpha2, sigma2, cov, _ = tables(20, "cosine")
    cov[[9, 15]] *= [0.5, 9.0]
    rows = torch.from_numpy(np.stack([1 - alpha2 / sigma2 * cov, cov, cov]))
    found = Gamma(20, 0, torch.from_numpy(alpha2), torch.from_numpy(sigma2), Moments(rows * 4, rows**2 * 4, 4))
    known_edges = {**found.to_json(), "edges": 0.25}
    options = SimpleNamespace(most=8, estimator="residual", repair=repair, decoder=False)
    told = json.loads(json.dumps(stage._bound(SimpleNamespace(search=options), known_edges)))
    known = found.covariance("residual", repair)
    assert told["about"] == {
        "estimator": "residual",
        "steps": 20,
        "decoder": False,
        "moved_into_bounds": {"below": 0, "above": known.above},
        "impossible": known.above / 20,
        "repaired": known.repaired if repair else None,
        "monotone": repair,
    }
    expected = least_cost.shortest(least_cost.cost(sigma2, known.values.numpy()), 8)
    for steps in range(2, 9):
        assert told["cost"][str(steps)] == pytest.approx(expected.cost(steps), rel=1e-12)
    options.decoder = True
    free = stage._bound(SimpleNamespace(search=options), known_edges)
    assert all(len(free["nodes"][str(k)]) == k and free["nodes"][str(k)][-1] == 20 for k in range(1, 9))
    data = least_cost.decoded(known.values.numpy(), 0.25)
    whole = least_cost.shortest(least_cost.with_data(least_cost.cost(sigma2, known.values.numpy()), data), 9)
    assert free["cost"]["4"] == pytest.approx(whole.cost(5), rel=1e-12)


def test_the_stage_knows_the_noise_by_its_share():
    """A process scaled at each time as one likes has the same costs and the same paths."""
    alpha2, sigma2, cov, _ = tables(20, "cosine")
    rows = torch.from_numpy(np.stack([1 - alpha2 / sigma2 * cov, cov, cov]))
    options, told = SimpleNamespace(most=8, estimator="residual", repair=True, decoder=True), []
    for scale in (1.0, np.linspace(9.0, 1.0, 20)):
        scaled = (torch.from_numpy(scale * part) for part in (alpha2, sigma2))
        found = Gamma(20, 0, *scaled, Moments(rows * 4, rows**2 * 4, 4))
        told.append(stage._bound(SimpleNamespace(search=options), {**found.to_json(), "edges": 0.25}))
    assert told[0]["nodes"] == told[1]["nodes"]
    assert list(told[0]["cost"].values()) == pytest.approx(list(told[1]["cost"].values()))


def test_the_decoder_s_cost():
    """Wide errors cost their entropy less the bin's, errors within a bin nothing; by plain sums over fine bins between."""
    width = 2 / 255
    found = least_cost._discretised(np.array([1.0, 0.05, 1e-12, 0.0]), 0.0, width)
    wide = 0.5 * np.log(2 * np.pi * np.e * np.array([1.0, 0.05])) - np.log(width)
    np.testing.assert_allclose(found[:2], wide, rtol=0, atol=1e-4)
    np.testing.assert_allclose(found[2:], 0.0, rtol=0, atol=1e-9)
    edge = least_cost._discretised(np.array([1.0, 1e-12]), 1.0, width)
    np.testing.assert_allclose(edge, [1.0, 0.0], rtol=0, atol=0.01)  # the mean of -log Phi(z) is 1
    from scipy.stats import norm

    for variance in ((width / 2) ** 2, width**2):
        e = np.linspace(-6, 6, 200001) * variance**0.5
        shares = norm.pdf(e, scale=variance**0.5)
        p = norm.cdf(e + width / 2, scale=variance**0.5) - norm.cdf(e - width / 2, scale=variance**0.5)
        exact = -(shares * np.log(p)).sum() / shares.sum()
        np.testing.assert_allclose(least_cost._discretised(np.array([variance]), 0.0, width)[0], exact, rtol=1e-3)


def test_with_the_data_as_a_node_the_last_look_is_chosen():
    """Against every path: any last look, the decoder's cost counted, never worse than ending at 1/N."""
    sigma2 = np.sin(np.pi / 2 * np.arange(1, 9) / 8) ** 2
    cov = 0.04 * sigma2 / ((1 - sigma2) * 0.04 + sigma2)
    jumps = least_cost.cost(sigma2, cov)
    whole = least_cost.with_data(jumps, least_cost.decoded(cov, 0.3))
    paths = least_cost.shortest(whole, 5)
    for count in (1, 2, 3, 4):
        tried = {}
        for chosen in itertools.combinations(range(8), count):
            if chosen[-1] == 7:
                tried[chosen] = whole[0, chosen[0] + 1] + sum(jumps[s, t] for s, t in itertools.pairwise(chosen))
        best = min(tried, key=tried.get)
        assert paths.cost(count + 1) == pytest.approx(tried[best])
        assert [node - 2 for node in paths.nodes(count + 1)[1:]] == list(best)


@pytest.mark.parametrize("branches", [2, least_cost.BRANCHES, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("edges", [0.0, 0.58])
@pytest.mark.parametrize("case", MONGE)
def test_the_fast_search_with_the_decoder_finds_what_the_whole_matrix_gives(case, edges, branches, dense, monkeypatch):
    monkeypatch.setattr(least_cost, "BRANCHES", branches)
    sigma2, cov = MONGE[case]()
    data = least_cost.decoded(cov, edges)
    found = least_cost.cheapest(sigma2, cov, data=data)
    assert not dense
    assert found.most == len(cov) + 1
    assert_same(found, least_cost.with_data(least_cost.cost(sigma2, cov), data))


@pytest.mark.parametrize("seed", range(4))
def test_any_costs_of_a_last_look_will_do(seed, dense):
    """They need not grow with the time, nor be Monge with the jumps."""
    sigma2, cov = monotone(80, 3)
    data = np.random.default_rng(seed).exponential(size=80)
    found = least_cost.cheapest(sigma2, cov, 40, data=data)
    assert not dense
    assert_same(found, least_cost.with_data(least_cost.cost(sigma2, cov), data))


def test_with_the_decoder_costs_that_are_not_monge_are_searched_over_the_whole_matrix(dense):
    _, sigma2, cov, _ = tables(100, "cosine")
    cov = UNLIKE["noise"](cov, np.random.default_rng(5))
    data = least_cost.decoded(cov, 0.3)
    assert_same(
        least_cost.cheapest(sigma2, cov, 30, data=data), least_cost.with_data(least_cost.cost(sigma2, cov), data)
    )
    assert dense


def test_the_fast_search_with_the_decoder_needs_no_matrix():
    sigma2, cov = monotone(2000, 1)
    tracemalloc.start()
    found = least_cost.cheapest(sigma2, cov, 20, data=least_cost.decoded(cov, 0.3))
    peak = tracemalloc.get_traced_memory()[1] - found.before.nbytes
    tracemalloc.stop()
    assert peak < 100 * 8 * 2000


def test_half_a_paths_cost_is_its_part_of_the_bound():
    """On isotropic data: the jumps and the decoder of the variational bound in nats, so that one counts as the others do."""
    steps, variance = 50, 0.02
    whole = torch.ones(2, 3, dtype=torch.float64)
    denoiser = GaussianDenoiser(0 * whole, variance * whole, make_schedule("cosine"))
    known = exact_gamma(denoiser, steps)
    sigma2, cov = known.sigma2.numpy(), known.covariance("residual").values.numpy()
    costs = least_cost.with_data(least_cost.cost(sigma2, cov), least_cost.decoded(cov, 0.0))
    solver = Analytic().with_gamma(known)
    x0 = 0.02**0.5 * randn(1500, 2, 3)
    for places in ([5, 50], [1, 10, 30, 50], [2, 50]):
        told = likelihood.bound(Sampler(denoiser, solver, nodes(places, steps)), x0, 0, range(1500))
        expected = along(costs, [1, *(n + 1 for n in places)]) / 2
        found = (told.total - told.prior).numpy()
        assert abs(found.mean() - expected) < 4 * found.std() / len(found) ** 0.5 + 1e-3, places


def test_bins_are_those_of_the_datas_range():
    """The same picture in [0, 1] has half the deviations and half the bins."""
    cov = np.array([1e-5, 1e-3, 0.2])
    np.testing.assert_allclose(least_cost.decoded(cov, 0.3), least_cost.decoded(cov / 4, 0.3, (0.0, 1.0)), rtol=1e-12)
