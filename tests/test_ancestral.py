import pytest
import torch

from diffcore import ancestral
from diffcore.denoiser import GaussianDenoiser, per_sample
from diffcore.gamma import Gamma, Moments
from diffcore.mistake import Mistake
from diffcore.sampler import Sampler
from diffcore.schedule import Level
from diffcore.solver import forward_variance, posterior_variance
from diffcore.trajectory import even
from tests.conftest import make_schedule, randn

N = 1000


def level(word: str, n: int) -> Level:
    schedule, t = make_schedule(word), torch.tensor([n / N], dtype=torch.float64)
    return Level(schedule.alpha(t), schedule.sigma(t))


def exact_table(schedule, variance: float) -> Gamma:
    """Gamma's numbers in closed form, for N(0, variance) data."""
    t = torch.arange(1, N + 1, dtype=torch.float64) / N
    alpha2, sigma2 = schedule.alpha(t) ** 2, schedule.sigma(t) ** 2
    total = alpha2 * variance + sigma2
    rows = torch.stack([sigma2 / total, alpha2 * variance / total, variance * sigma2 / total])
    return Gamma(N, 0, alpha2, sigma2, Moments(rows * 4, rows**2 * 4, 4))


@pytest.mark.parametrize("word", ["discrete", "linear"])
@pytest.mark.parametrize(("t", "s"), [(1000, 500), (500, 499), (20, 1), (2, 1)])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_it_is_theorem_1(word, t, s, eta):
    """sigma*^2 = lam^2 + (sqrt(bb_t/a_{t|s}) - sqrt(bb_s - lam^2))^2 (1 - bb_t Gamma_t), arXiv 2201.06503, eq. 7."""
    at, to, c2 = level(word, t), level(word, s), 0.3
    gamma = 1 / (at.alpha**2 * c2 + at.sigma**2)
    cov = c2 * at.sigma**2 * gamma
    lam2 = eta**2 * posterior_variance(at, to)
    root = at.sigma * to.alpha / at.alpha - (to.sigma**2 - lam2).sqrt()
    published = lam2 + root**2 * (1 - at.sigma**2 * gamma)
    torch.testing.assert_close(ancestral.optimal_variance(at, to, cov, lam2), published, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize(("t", "s"), [(1000, 500), (500, 499), (20, 1)])
def test_for_ddpm_it_is_the_exact_posterior_variance(t, s):
    """Isotropic data: q(x_s | x_t) is Gaussian, and corollary 2 gives its variance (beta/a)(1 - beta Gamma)."""
    at, to, c2 = level("discrete", t), level("discrete", s), 0.3
    ratio = at.alpha / to.alpha
    var_s, var_t = to.alpha**2 * c2 + to.sigma**2, at.alpha**2 * c2 + at.sigma**2
    posterior = var_s - (ratio * var_s) ** 2 / var_t
    beta = 1 - ratio**2
    corollary = beta / ratio**2 * (1 - beta / var_t)
    cov = c2 * at.sigma**2 / var_t
    found = ancestral.optimal_variance(at, to, cov, posterior_variance(at, to))
    torch.testing.assert_close(found, posterior, rtol=1e-9, atol=0)
    torch.testing.assert_close(found, corollary, rtol=1e-9, atol=0)


@pytest.mark.parametrize("t", [2, 100, 1000])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_the_bounds_hold(t, eta):
    at, to = level("discrete", t), level("discrete", t - 1)
    lam2 = eta**2 * posterior_variance(at, to)
    for c2 in (1e-4, 0.3, 1.0):
        cov = c2 * at.sigma**2 / (at.alpha**2 * c2 + at.sigma**2)
        found = ancestral.optimal_variance(at, to, cov, lam2)
        assert lam2 <= found <= ancestral.upper_bound(at, to, lam2) * (1 + 1e-12)
        assert found <= ancestral.data_bound(at, to, lam2, -1.0, 1.0) * (1 + 1e-12)
    if eta == 1:
        small, large = ancestral.ddpm_variances(at, to)
        assert small <= found <= large / (at.alpha / to.alpha) ** 2
        torch.testing.assert_close(ancestral.upper_bound(at, to, lam2), large / (at.alpha / to.alpha) ** 2)
        torch.testing.assert_close(large, forward_variance(at, to))


def test_samples_have_the_variance_of_the_data():
    """With exact beliefs and variances every step is the exact posterior, however few steps there are."""
    for word in ("cosine", "linear"):
        schedule = make_schedule(word)
        denoiser = GaussianDenoiser(torch.zeros(2).double(), torch.full((2,), 0.3).double(), schedule)
        solver, steps, count = ancestral.analytic(exact_table(schedule, 0.3), "residual"), 4, 100_000
        start = randn(count, 2, seed=1)
        noise = [randn(count, 2, seed=10 + k) for k in range(steps)]
        x = Sampler(denoiser, solver, even(steps)).sample(start, lambda k, noise=noise: noise[k])
        # the last step returns the mean: what it leaves out is the posterior variance at t = 1/4
        last = per_sample(1 / steps, start[:1])
        alpha2, sigma2 = schedule.alpha(last) ** 2, schedule.sigma(last) ** 2
        expected = float(0.3 - 0.3 * sigma2 / (alpha2 * 0.3 + sigma2))
        assert float(x.var()) == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_the_batch_law(eta):
    schedule = make_schedule("cosine")
    solver = ancestral.analytic(exact_table(schedule, 0.3), "norm", eta)
    denoiser = GaussianDenoiser(randn(3, 3, 3), randn(3, 3, 3, seed=1).square() + 0.1, schedule)
    x, noise = randn(3, 3, 3, 3, seed=2), randn(3, 3, 3, 3, seed=3)
    t, s = torch.tensor([1.0, 0.61234, 0.3]).double(), torch.tensor([0.7, 0.2, 0.0]).double()
    parts = [solver.step(denoiser, x[i : i + 1], t[i : i + 1], s[i : i + 1], noise[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(solver.step(denoiser, x, t, s, noise), torch.cat(parts), rtol=0, atol=1e-14)


def test_between_the_grids_times_the_covariance_is_interpolated():
    table = torch.tensor([1.0, 2.0, 4.0, 8.0]).double()
    t = torch.tensor([0.1, 0.25, 0.375, 0.5, 1.0]).double()
    torch.testing.assert_close(ancestral._look_up(table, t), torch.tensor([1.0, 1.0, 1.5, 2.0, 8.0]).double())


@pytest.mark.parametrize("eta", [-0.1, 1.1])
def test_eta_outside_its_range_is_refused(eta):
    with pytest.raises(Mistake, match=r"eta must be in 0\.\.1"):
        ancestral.analytic(exact_table(make_schedule("cosine"), 0.3), "residual", eta)
