import pytest
import torch

from diffcore.denoisers.denoiser import per_sample
from diffcore.denoisers.exact import GaussianDenoiser
from diffcore.noise.schedule import Level
from diffcore.noise.trajectory import Trajectory, nodes, uniform
from diffcore.sampling.sampler import Sampler
from diffcore.sampling.solver import forward_variance, posterior_variance
from diffcore.sampling.solvers import analytic
from diffcore.sampling.solvers.analytic import Analytic
from diffcore.search.gamma import Gamma, Moments
from tests.conftest import exact_gamma, make_schedule, randn

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
    torch.testing.assert_close(analytic.optimal_variance(at, to, cov, lam2), published, rtol=1e-11, atol=0)


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
    found = analytic.optimal_variance(at, to, cov, posterior_variance(at, to))
    torch.testing.assert_close(found, posterior, rtol=1e-9, atol=0)
    torch.testing.assert_close(found, corollary, rtol=1e-9, atol=0)


@pytest.mark.parametrize(
    ("steps", "upper", "lower"),
    [(10, 1.45e-1, 9.99e-5), (25, 2.24e-2, 9.96e-5), (50, 6.20e-3, 9.84e-5), (100, 2.10e-3, 9.55e-5)],
)
def test_the_papers_table_of_bounds(steps, upper, lower):
    """Table 7 (CIFAR-10, linear betas, DDPM): bounds of the second step's variance on the uniform trajectory, as printed."""
    second = round(1 + (N - 1) / (steps - 1))
    at, to = level("discrete", second), level("discrete", 1)
    small = posterior_variance(at, to)
    least, most = analytic.bounds(at, to, small, -1.0, 1.0)
    assert float(f"{float(most):.2e}") == upper
    assert float(f"{float(least):.2e}") == lower


def test_the_bound_of_data_in_a_range():
    """Bound (12) is reached by a fair coin between low and high, seen through noise without end."""
    at, to = level("discrete", 1000), level("discrete", 500)
    lam2 = posterior_variance(at, to)
    root = to.alpha - (to.sigma**2 - lam2).sqrt() * at.alpha / at.sigma
    for low, high in ((-1.0, 1.0), (0.0, 1.0), (-0.5, 3.5)):
        coin = torch.tensor([low, high]).double().var(correction=0)
        torch.testing.assert_close(analytic.data_bound(at, to, lam2, low, high), lam2 + root**2 * coin)


@pytest.mark.parametrize(
    ("n", "eta", "known"),
    [(2, 1.0, 1.10792577881951e-4), (2, 0.0, 2.006958076450311e-5), (500, 1.0, 0.010031924760834879)],
)
def test_reference_variances(n, eta, known):
    """Data with variances 1e-4 5000^(i/63), d = 64; the step n -> n - 1 of the linear betas."""
    at, to, c2 = level("discrete", n), level("discrete", n - 1), 1e-4 * 5000 ** (torch.arange(64).double() / 63)
    cov = (c2 * at.sigma**2 / (at.alpha**2 * c2 + at.sigma**2)).mean(0, keepdim=True)
    found = analytic.optimal_variance(at, to, cov, eta**2 * posterior_variance(at, to))
    assert float(found) == pytest.approx(known, rel=1e-11)


@pytest.mark.parametrize("t", [2, 100, 1000])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_the_bounds_hold(t, eta):
    at, to = level("discrete", t), level("discrete", t - 1)
    lam2 = eta**2 * posterior_variance(at, to)
    for c2 in (1e-4, 0.3, 1.0):
        cov = c2 * at.sigma**2 / (at.alpha**2 * c2 + at.sigma**2)
        found = analytic.optimal_variance(at, to, cov, lam2)
        assert lam2 <= found <= analytic.upper_bound(at, to, lam2) * (1 + 1e-12)
        assert found <= analytic.data_bound(at, to, lam2, -1.0, 1.0) * (1 + 1e-12)
    if eta == 1:
        small, large = analytic.ddpm_variances(at, to)
        assert small <= found <= large / (at.alpha / to.alpha) ** 2
        torch.testing.assert_close(analytic.upper_bound(at, to, lam2), large / (at.alpha / to.alpha) ** 2)
        torch.testing.assert_close(large, forward_variance(at, to))


def test_samples_have_the_variance_of_the_data():
    """With exact beliefs and variances every step is the exact posterior, however few steps there are."""
    for word in ("cosine", "linear"):
        schedule = make_schedule(word)
        denoiser = GaussianDenoiser(torch.zeros(2).double(), torch.full((2,), 0.3).double(), schedule)
        solver, steps, count = Analytic(1.0, "residual").with_gamma(exact_table(schedule, 0.3)), 4, 100_000
        start = randn(count, 2, seed=1)
        noise = [randn(count, 2, seed=10 + k) for k in range(steps)]
        x = Sampler(denoiser, solver, uniform(steps)).sample(start, lambda k, noise=noise: noise[k])
        # the last step returns the mean: what it leaves out is the posterior variance at t = 1/4
        last = per_sample(1 / steps, start[:1])
        alpha2, sigma2 = schedule.alpha(last) ** 2, schedule.sigma(last) ** 2
        expected = float(0.3 - 0.3 * sigma2 / (alpha2 * 0.3 + sigma2))
        assert float(x.var()) == pytest.approx(expected, rel=4 * (2 / x.numel()) ** 0.5)


VARIANCES = torch.tensor([0.02, 0.2, 0.9], dtype=torch.float64)


def anisotropic_table(schedule) -> Gamma:
    """As `exact_table`, for coordinates that differ: one covariance, their mean, stands for all."""
    rows = [exact_table(schedule, float(c2)) for c2 in VARIANCES]
    mean = torch.stack([row.moments.mean for row in rows]).mean(0)
    return Gamma(N, 0, rows[0].alpha2, rows[0].sigma2, Moments(mean * 4, mean**2 * 4, 4))


@pytest.mark.parametrize("word", ["cosine", "linear"])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_one_step_by_hand(word, eta):
    """Mean alpha_s x_0 + sqrt(sigma_s^2 - lam^2) eps, and the optimal variance of the covariance at t, not at s."""
    schedule, t, s, x = make_schedule(word), 0.6, 0.35, randn(2, 3)
    denoiser = GaussianDenoiser(torch.zeros(3).double(), VARIANCES, schedule)
    solver = Analytic(eta, "residual").with_gamma(anisotropic_table(schedule))
    a, b, a_s, b_s = (float(f(per_sample(u, x[:1]))) for u in (t, s) for f in (schedule.alpha, schedule.sigma))
    total = a**2 * VARIANCES + b**2
    lam2 = eta**2 * (b**2 - (a / a_s) ** 2 * b_s**2) * b_s**2 / b**2
    gain = (a_s * a * VARIANCES + (b_s**2 - lam2) ** 0.5 * b) / total
    spread = (lam2 + (a_s - (b_s**2 - lam2) ** 0.5 * a / b) ** 2 * float((VARIANCES * b**2 / total).mean())) ** 0.5
    for size in (0.0, 1.0):
        found = solver.step(denoiser, x, per_sample(t, x), per_sample(s, x), torch.full_like(x, size))
        torch.testing.assert_close(found, gain * x + size * spread, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_samples_of_unlike_coordinates_have_the_variance_in_closed_form(eta):
    """Each step multiplies a coordinate by its gain and adds the one variance that all share."""
    schedule, steps, count = make_schedule("cosine"), 5, 60_000
    denoiser = GaussianDenoiser(torch.zeros(3).double(), VARIANCES, schedule)
    table = anisotropic_table(schedule)
    solver = Analytic(eta, "residual").with_gamma(table)
    noise = [randn(count, 3, seed=10 + k) for k in range(steps)]
    x = Sampler(denoiser, solver, uniform(steps)).sample(randn(count, 3, seed=1), lambda k: noise[k])
    expected = torch.ones(3).double()
    for t, s in uniform(steps).pairs:
        at, to = (Level(schedule.alpha(u), schedule.sigma(u)) for u in torch.tensor([[t], [s]], dtype=torch.float64))
        lam2 = eta**2 * posterior_variance(at, to)
        gain = to.alpha * at.alpha * VARIANCES + (to.sigma**2 - lam2).sqrt() * at.sigma
        added = analytic.optimal_variance(at, to, table.moments.mean[2, [round(t * N) - 1]], lam2) * (s > 0)
        expected = (gain / (at.alpha**2 * VARIANCES + at.sigma**2)) ** 2 * expected + added
    torch.testing.assert_close(x.var(0), expected, rtol=4.5 * (2 / count) ** 0.5, atol=0)


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_the_batch_law(eta):
    schedule = make_schedule("cosine")
    solver = Analytic(eta, "norm").with_gamma(exact_table(schedule, 0.3))
    denoiser = GaussianDenoiser(randn(3, 3, 3), randn(3, 3, 3, seed=1).square() + 0.1, schedule)
    x, noise = randn(3, 3, 3, 3, seed=2), randn(3, 3, 3, 3, seed=3)
    t, s = torch.tensor([1.0, 0.61234, 0.3]).double(), torch.tensor([0.7, 0.2, 0.0]).double()
    parts = [solver.step(denoiser, x[i : i + 1], t[i : i + 1], s[i : i + 1], noise[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(solver.step(denoiser, x, t, s, noise), torch.cat(parts), rtol=0, atol=1e-14)


def test_between_the_grids_times_the_covariance_is_interpolated():
    table = torch.tensor([1.0, 2.0, 4.0, 8.0]).double()
    t = torch.tensor([0.1, 0.25, 0.375, 0.5, 1.0]).double()
    torch.testing.assert_close(analytic._look_up(table, t), torch.tensor([1.0, 1.0, 1.5, 2.0, 8.0]).double())


@pytest.mark.parametrize("eta", [-0.1, 1.1])
def test_eta_outside_its_range_is_refused(eta):
    with pytest.raises(ValueError, match=r"eta must be in 0\.\.1"):
        Analytic(eta, "residual").with_gamma(exact_table(make_schedule("cosine"), 0.3))


@pytest.mark.parametrize("word", ["discrete", "cosine", "ve"])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("low", "high"), [(-1.0, 1.0), (0.0, 1.0)])
def test_the_optimal_variance_lies_between_its_bounds(word, eta, low, high):
    """Of Gaussian and of two-point data; at pure noise the first bound is infinite and the second counts."""
    largest = ((high - low) / 2) ** 2
    for t, s in ((1000, 500), (500, 499), (20, 1), (2, 1)):
        at, to = level(word, t), level(word, s)
        lam2 = eta**2 * posterior_variance(at, to)
        least, most = analytic.bounds(at, to, lam2, low, high)
        for c2 in (1e-6, 0.1 * largest, largest):
            cov = c2 * at.sigma**2 / (at.alpha**2 * c2 + at.sigma**2)
            found = analytic.optimal_variance(at, to, cov, lam2)
            assert least <= found <= most * (1 + 1e-12)
        assert torch.isfinite(most)
        assert float(least) == float(lam2)
        assert most <= analytic.data_bound(at, to, lam2, low, high)
    early, late = (
        analytic.bounds(level(word, t), level(word, 1), torch.zeros(1).double(), low, high)[1] for t in (2, 999)
    )
    assert early < analytic.data_bound(level(word, 2), level(word, 1), torch.zeros(1).double(), low, high)
    assert late < analytic.upper_bound(level(word, 999), level(word, 1), torch.zeros(1).double())


def sampled(solver: Analytic, path: Trajectory, denoiser, draws) -> torch.Tensor:
    draws = iter(draws)
    return Sampler(denoiser, solver, path).sample(randn(50, 2, seed=1), lambda k: next(draws))


def point(schedule) -> GaussianDenoiser:
    return GaussianDenoiser(torch.zeros(2).double(), torch.full((2,), 0.3).double(), schedule)


PATHS = {
    "uniform": uniform(5),
    "short of 0": Trajectory((1.0, 0.6, 0.2)),
    "two": Trajectory((1.0, 0.3, 0.0)),
    "least_cost": nodes([1, 100, 1000], 1000),
}


@pytest.mark.parametrize("path", list(PATHS))
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_the_last_noise_is_limited_and_no_other(path, eta):
    """Only the step that lands on the last positive time; there E|sigma eps| is y grey values of 255."""
    schedule, path = make_schedule("cosine"), PATHS[path]
    denoiser, gamma = point(schedule), exact_table(schedule, 0.3)
    free, limited = (Analytic(eta, "residual", y).with_gamma(gamma) for y in (None, 2.0))
    place = max(k for k, (_, s) in enumerate(path.pairs) if s > 0)
    silent = [torch.zeros(50, 2).double() for _ in range(path.steps)]
    assert torch.equal(sampled(free, path, denoiser, silent), sampled(limited, path, denoiser, silent))
    for k in range(path.steps):
        draws = [torch.ones(50, 2).double() if j == k else draw for j, draw in enumerate(silent)]
        same = torch.equal(sampled(free, path, denoiser, draws), sampled(limited, path, denoiser, draws))
        assert same == (k != place)
    # up to the limited step and no further: what its noise adds
    short = Trajectory(path.times[: place + 2])
    draws = [*silent[:place], torch.ones(50, 2).double()]
    added = sampled(limited, short, denoiser, draws) - sampled(limited, short, denoiser, silent)
    sigma = float(added.mean())
    assert sigma * (2 / torch.pi) ** 0.5 == pytest.approx(2 * 2 / 255, rel=1e-9)
    assert sigma**2 == pytest.approx(3.86508900e-4, rel=1e-8)  # as the authors' code has it
    assert limited.lowered(schedule, path) == 1
    assert free.lowered(schedule, path) == 0


def test_a_limit_that_is_not_reached_changes_nothing():
    schedule = make_schedule("discrete")
    denoiser, gamma = point(schedule), exact_table(schedule, 0.3)
    path = nodes([1, 2, 1000], 1000)  # 2 -> 1 adds about 1.1e-4
    draws = [randn(50, 2, seed=k) for k in range(3)]
    free, loose, tight = (Analytic(1.0, "residual", y).with_gamma(gamma) for y in (None, 2.0, 0.5))
    assert torch.equal(sampled(free, path, denoiser, draws), sampled(loose, path, denoiser, draws))
    assert not torch.equal(sampled(free, path, denoiser, draws), sampled(tight, path, denoiser, draws))
    assert [solver.lowered(schedule, path) for solver in (free, loose, tight)] == [0, 0, 1]


def test_one_step_has_no_noise_to_limit():
    schedule = make_schedule("cosine")
    solver = Analytic(1.0, "residual", 1.0).with_gamma(exact_table(schedule, 0.3))
    assert solver.lowered(schedule, uniform(1)) == 0
    found = sampled(solver, uniform(1), point(schedule), [randn(50, 2)])
    torch.testing.assert_close(found, torch.zeros(50, 2).double(), rtol=0, atol=1e-12)


def test_the_limit_is_no_part_of_the_model():
    """A likelihood asks for `variances`, which are the optimal ones whatever `last` says."""
    schedule = make_schedule("cosine")
    at, to, t = level("cosine", 400), level("cosine", 200), torch.tensor([0.4]).double()
    free, limited = (Analytic(1.0, "residual", y).with_gamma(exact_table(schedule, 0.3)) for y in (None, 0.1))
    assert all(map(torch.equal, free.variances(at, to, t), limited.variances(at, to, t)))


@pytest.mark.parametrize("last", [0.0, -1.0, float("nan")])
def test_a_limit_outside_its_range_is_refused(last):
    with pytest.raises(ValueError, match="last must be positive"):
        Analytic(last=last)


@pytest.mark.parametrize("word", ["cosine", "linear"])
def test_coarse_and_fine_tables_agree(word):
    """N = 250 and N = 1000 are the same at the times they share, and interpolated nearly so between."""
    i = torch.arange(64).double()
    denoiser = GaussianDenoiser(torch.zeros(64).double(), 1e-4 * 5000 ** (i / 63), make_schedule(word))
    fine, coarse = (exact_gamma(denoiser, n).covariance("residual").values for n in (1000, 250))
    common = torch.arange(1, 251).double() / 250
    torch.testing.assert_close(analytic._look_up(fine, common), coarse, rtol=1e-12, atol=0)
    between = torch.linspace(0.05, 0.999, 300).double()
    torch.testing.assert_close(analytic._look_up(coarse, between), analytic._look_up(fine, between), rtol=2e-3, atol=0)


def test_many_betas_are_the_linear_schedule():
    """DDPM's betas are the variance-preserving process with beta from 0.1 to 20, in steps of 1/1000."""
    i = torch.arange(64).double()
    tables = [
        exact_gamma(GaussianDenoiser(torch.zeros(64).double(), 1e-4 * 5000 ** (i / 63), make_schedule(word)))
        .covariance("residual")
        .values
        for word in ("discrete", "linear")
    ]
    torch.testing.assert_close(*[table[50:] for table in tables], rtol=0.02, atol=0)


@pytest.mark.parametrize("estimator", ["norm", "residual"])
def test_covariances_and_the_last_noise_are_those_of_the_datas_range(estimator):
    """Two-point data at -4 and 4 have 16 times the variance that [-1, 1] allows, and grey values 4 times as far apart."""
    schedule, wide = make_schedule("discrete"), (-4.0, 4.0)
    gamma = exact_table(schedule, 16.0)
    at, to, t = level("discrete", 1000), level("discrete", 500), torch.ones(1).double()
    lam2 = posterior_variance(at, to)
    solver = Analytic(1.0, estimator, last=1.0)
    found = solver.with_gamma(gamma, wide).variances(at, to, t)[1]
    torch.testing.assert_close(found, analytic.optimal_variance(at, to, gamma.moments.mean[2, -1:], lam2))
    torch.testing.assert_close(
        solver.with_gamma(gamma).variances(at, to, t)[1], analytic.data_bound(at, to, lam2, -1.0, 1.0)
    )
    assert solver.with_gamma(gamma, wide)._limit == pytest.approx(16 * solver.with_gamma(gamma)._limit)


def test_the_covariances_are_copied_to_a_device_once():
    known, t = Analytic().with_gamma(exact_table(make_schedule("cosine"), 0.3)), torch.ones(1, device="meta")
    assert known._table.beside(t) is known._table.beside(t)


@pytest.mark.parametrize("word", ["norm", "residual"])
def test_the_covariance_is_that_of_the_estimator_asked_for(word):
    """Exact estimates of both are one number; these are not."""
    schedule, at, to, t = (
        make_schedule("linear"),
        level("linear", 100),
        level("linear", 60),
        torch.tensor([0.1]).double(),
    )
    known = exact_table(schedule, 0.3)
    unlike = known.moments.total * torch.tensor([[0.8], [1.0], [0.9]])
    gamma = Gamma(N, 0, known.alpha2, known.sigma2, Moments(unlike, known.moments.square, 4))
    total = at.alpha**2 * 0.3 + at.sigma**2
    cov = {
        "norm": (1 - 0.8 * at.sigma**2 / total) * at.sigma**2 / at.alpha**2,
        "residual": 0.9 * 0.3 * at.sigma**2 / total,
    }
    lam2 = posterior_variance(at, to)
    right = analytic.optimal_variance(at, to, cov[word], lam2)
    torch.testing.assert_close(Analytic(1.0, word).with_gamma(gamma).variances(at, to, t)[1], right, rtol=1e-6, atol=0)
    assert abs(float(cov["norm"] / cov["residual"]) - 1) > 0.1
