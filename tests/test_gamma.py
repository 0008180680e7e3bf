import itertools
import json
import math

import pytest
import torch

from diffcore.core import disk
from diffcore.core.errors import UserError
from diffcore.core.shapes import CLASS
from diffcore.data.read import Images
from diffcore.denoisers.exact import GaussianDenoiser
from diffcore.denoisers.prediction import Prediction
from diffcore.noise.schedule import Cosine, Linear
from diffcore.search import gamma, least_cost
from diffcore.search.gamma import Config, Gamma, Moments, estimate, pick
from tasks import gamma as stage
from tests.conftest import SCHEDULES, exact_gamma, gaussian, make_schedule, mixture, randn
from tests.test_condition import TwoBlobs

CONFIG = Config(steps=20, images=4000, batch=999, seed=0)


def data(count: int, denoiser, seed: int = 1) -> torch.Tensor:
    return denoiser.mean + denoiser.variance.sqrt() * randn(count, 2, 3, seed=seed)


def truth(denoiser, steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Gamma_n and cov_n = mean of c^2 sigma^2 / (alpha^2 c^2 + sigma^2), in closed form."""
    t = torch.arange(1, steps + 1, dtype=torch.float64) / steps
    alpha2, sigma2 = (f(t)[:, None] ** 2 for f in (denoiser.schedule.alpha, denoiser.schedule.sigma))
    c2 = denoiser.variance.flatten()
    return denoiser.gamma(t), (c2 * sigma2 / (alpha2 * c2 + sigma2)).mean(1)


@pytest.mark.parametrize("word", ["linear", "discrete", "cosine"])
def test_both_estimators_agree_with_the_closed_form(word):
    denoiser = gaussian(make_schedule(word))
    found = estimate(denoiser, data(4000, denoiser), CONFIG)
    exact_gamma, exact_cov = truth(denoiser, 20)
    z = (found.gamma - exact_gamma) / found.gamma_stderr
    assert z.abs().max() < 4.5
    z = (found.moments.mean[gamma.X0] - exact_cov) / found.moments.stderr[gamma.X0]
    assert z.abs().max() < 4.5
    exact_eps = 1 - found.sigma2 * exact_gamma
    z = (found.moments.mean[gamma.EPS] - exact_eps) / found.moments.stderr[gamma.EPS]
    assert z[found.moments.stderr[gamma.EPS] > 1e-12].abs().max() < 4.5
    torch.testing.assert_close(found.moments.mean[gamma.EPS], exact_eps, rtol=0.2, atol=1e-9)
    finite = found.alpha2 > 1e-3
    by_norm = (found.sigma2 / found.alpha2 * (1 - found.moments.mean[gamma.NORM]))[finite]
    error = (found.sigma2 / found.alpha2 * found.moments.stderr[gamma.NORM])[finite]
    assert ((by_norm - exact_cov[finite]) / error).abs().max() < 4.5


def test_standard_errors_are_those_of_independent_repeats():
    denoiser = gaussian(Linear())
    runs = [estimate(denoiser, data(50, denoiser, seed), Config(5, 50, 250, seed)) for seed in range(200)]
    means = torch.stack([run.moments.mean for run in runs])
    claimed = torch.stack([run.moments.stderr for run in runs]).mean(0)
    torch.testing.assert_close(means.std(0), claimed, rtol=0.25, atol=0)
    assert runs[0].images == 50


def test_a_denoiser_of_classes_is_told_those_of_the_images():
    """The covariance left is that within a class: less than the whole mixture's, by far where the blobs are apart."""
    denoiser = TwoBlobs()
    labels = torch.arange(4000) % 2
    x0 = denoiser.means[labels] + denoiser.variances[labels].sqrt() * randn(4000, 2)
    found = estimate(denoiser, x0, CONFIG, inputs={CLASS: labels})
    t = torch.arange(1, 21, dtype=torch.float64) / 20
    alpha2, sigma2 = (f(t)[:, None] ** 2 for f in (denoiser.schedule.alpha, denoiser.schedule.sigma))
    c2 = denoiser.variances.flatten()  # as many images of either class
    exact = (c2 * sigma2 / (alpha2 * c2 + sigma2)).mean(1)
    assert ((found.moments.mean[gamma.X0] - exact) / found.moments.stderr[gamma.X0]).abs().max() < 4.5
    assert ((found.gamma - (1 / (alpha2 * c2 + sigma2)).mean(1)) / found.gamma_stderr).abs().max() < 4.5
    unknown = estimate(denoiser, x0, CONFIG)
    assert unknown.moments.mean[gamma.X0][-1] > 3 * exact[-1]


def test_two_workers_see_what_one_sees():
    denoiser = gaussian()
    x0, config = data(60, denoiser), Config(steps=7, images=60, batch=100, seed=3)
    whole = estimate(denoiser, x0, config)
    parts = estimate(denoiser, x0[:25], config), estimate(denoiser, x0[25:], config, first=25)
    merged = parts[0].moments + parts[1].moments
    torch.testing.assert_close(merged.total, whole.moments.total, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(merged.stderr, whole.moments.stderr, rtol=1e-8, atol=1e-12)
    assert merged.count == 60


def test_the_batch_size_changes_nothing():
    denoiser = gaussian()
    x0 = data(30, denoiser)
    one, other = (estimate(denoiser, x0, Config(11, 30, batch, 0)) for batch in (1000, 13))
    torch.testing.assert_close(one.moments.total, other.moments.total, rtol=1e-12, atol=0)


def test_every_time_sees_the_same_noise():
    """Common random numbers: an estimate of a difference between times has less noise than the times have."""
    denoiser = gaussian()
    runs = [
        estimate(denoiser, data(20, denoiser, seed), Config(100, 20, 500, seed)).moments.mean[gamma.X0]
        for seed in range(60)
    ]
    values = torch.stack(runs)[:, [50, 51]]
    assert (values[:, 1] - values[:, 0]).std() < 0.2 * values[:, 0].std()


def given(norm: list[float], x0: list[float], sigma2: list[float]) -> Gamma:
    rows = torch.tensor([norm, x0, x0], dtype=torch.float64)
    sigma2 = torch.tensor(sigma2, dtype=torch.float64)
    return Gamma(len(norm), 0, 1 - sigma2, sigma2, Moments(rows * 10, rows**2 * 10, 10))


def test_the_standard_error_by_hand():
    """Three images that gave 1, 2 and 6: variance 7 with the count less one, and over images."""
    values = torch.tensor([1.0, 2.0, 6.0], dtype=torch.float64)
    moments = Moments(values.sum().expand(3, 2), values.square().sum().expand(3, 2), 3)
    torch.testing.assert_close(
        moments.stderr, torch.full((3, 2), 7 / 3, dtype=torch.float64).sqrt(), rtol=1e-14, atol=0
    )


def test_merging_is_associative():
    a, b, c = (Moments(randn(3, 4, seed=k), randn(3, 4, seed=k + 9).square(), k + 1) for k in range(3))
    left, right = (a + b) + c, a + (b + c)
    torch.testing.assert_close(left.total, right.total, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(left.square, right.square, rtol=1e-14, atol=1e-14)
    assert left.count == right.count == 6


def test_progress_counts_network_inputs():
    denoiser, heard = gaussian(), []
    estimate(denoiser, data(5, denoiser), Config(4, 5, 8, 0), lambda done, total: heard.append((done, total)))
    assert heard == [(8, 20), (16, 20), (20, 20)]


def test_the_norm_says_nothing_where_alpha_is_zero():
    """0.9 would give an infinite covariance, 1.1 a negative one: both are the bound, and count as above."""
    for norm in (0.9, 1.0, 1.1):
        found = given(norm=[norm], x0=[0.4], sigma2=[1.0]).covariance("norm")
        assert (found.values.tolist(), found.below, found.above) == ([1.0], 0, 1)


class Broken(GaussianDenoiser):
    """Not a number from t = 0.7 on."""

    def forward(self, x_t, t):
        belief = super().forward(x_t, t)
        return Prediction(torch.where(t[:, None, None] > 0.65, torch.nan, belief.x0), belief.eps, belief.level)


def test_a_network_that_is_not_finite_is_refused():
    """It must not pass for a covariance beyond the bound."""
    exact = gaussian()
    with pytest.raises(UserError, match=r"not finite at 4 of 10 times, the first t = 0\.7; train"):
        estimate(Broken(exact.mean, exact.variance, exact.schedule), data(3, exact), Config(10, 3, 8, 0))


def test_impossible_values_are_moved_to_the_bounds_and_counted():
    found = given(norm=[0.5, 1.2, 0.1, 1.0], x0=[0.2, 0.3, 1.5, 0.4], sigma2=[0.5, 0.5, 0.9, 1.0])
    by_norm, residual = found.covariance("norm"), found.covariance("residual")
    torch.testing.assert_close(by_norm.values, torch.tensor([0.5, 0.0, 1.0, 1.0]).double())
    assert (by_norm.below, by_norm.above) == (1, 2)  # at alpha = 0 the norm says nothing: the bound, counted
    torch.testing.assert_close(residual.values, torch.tensor([0.2, 0.3, 1.0, 0.4]).double())
    assert (residual.below, residual.above) == (0, 1)
    assert "norm: 1 of 4 below 0, 2 above the bound (75.0% impossible)" in found.describe()
    assert "residual: 0 of 4 below 0, 1 above the bound (25.0% impossible)" in found.describe()
    assert (by_norm.impossible, residual.impossible) == (0.75, 0.25)
    assert by_norm.repaired is None


def test_json_gives_the_same_numbers_back():
    denoiser = gaussian()
    found = estimate(denoiser, data(10, denoiser), Config(6, 10, 7, 3))
    again = Gamma.from_json(json.loads(json.dumps(found.to_json())))
    for name in ("total", "square"):
        assert torch.equal(getattr(found.moments, name), getattr(again.moments, name))
    assert torch.equal(found.sigma2, again.sigma2)
    assert torch.equal(found.alpha2, again.alpha2)
    assert (found.steps, found.images, found.seed) == (again.steps, again.images, again.seed) == (6, 10, 3)


def test_gamma_reference_values():
    """samples of x_0 with mean 0.5 sin(i) and variance 1e-4 5000^(i/63), d = 64, linear-1000 betas."""
    i = torch.arange(64, dtype=torch.float64)
    denoiser = GaussianDenoiser(0.5 * i.sin(), 1e-4 * 5000 ** (i / 63), make_schedule("discrete"))
    known = {1: 840.4516937, 10: 186.3841444, 100: 7.766128241, 500: 1.079698511, 1000: 1.000037867}
    for n, value in known.items():
        assert float(denoiser.gamma(torch.tensor([n / 1000], dtype=torch.float64))) == pytest.approx(value, rel=1e-8)


def test_too_few_images_are_refused():
    assert len(set(pick(50, Config(5, 50, 10, 0)).tolist())) == 50
    first, again, other = (pick(50, Config(5, 50, 10, seed)).tolist() for seed in (0, 0, 1))
    assert first == again != other
    with pytest.raises(UserError, match=r"gamma\.images is 51, but the data have only 50"):
        pick(50, Config(5, 51, 10, 0))


@pytest.mark.parametrize("wrong", [{"steps": 1}, {"images": 1}, {"batch": 0}])
def test_impossible_numbers_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Config(**{"steps": 5, "images": 5, "batch": 5, "seed": 0, **wrong})


def test_the_cosine_ends_finite():
    denoiser = gaussian(Cosine())
    found = estimate(denoiser, data(50, denoiser), Config(10, 50, 100, 0))
    assert found.alpha2[-1] == 0
    for estimator in ("norm", "residual"):
        assert torch.isfinite(found.covariance(estimator).values).all()
    assert math.isclose(float(found.sigma2[-1]), 1.0)


@pytest.mark.parametrize(("within", "bound"), [((0.0, 1.0), 0.25), ((-1.0, 1.0), 1.0), ((-0.5, 3.5), 4.0)])
def test_the_bound_is_that_of_the_datas_range(within, bound):
    """((high - low)/2)^2 is the variance of a fair coin between the two."""
    found = given(norm=[0.5, 0.1], x0=[0.2, 9.0], sigma2=[0.5, 0.9])
    residual = found.covariance("residual", within=within)
    torch.testing.assert_close(residual.values, torch.tensor([0.2, bound]).double())
    assert (residual.below, residual.above) == (0, 1)
    by_norm = found.covariance("norm", within=within)  # 0.5 and 8.1
    torch.testing.assert_close(by_norm.values, torch.tensor([0.5, 8.1]).double().clamp(max=bound))
    assert f"{by_norm.above} above the bound" in found.describe(within)
    repaired = found.covariance("residual", repair=True, within=within).values
    linear = 1 / (1 / bound + found.alpha2 / found.sigma2)  # what a line can know of data of the largest variance
    torch.testing.assert_close(repaired, torch.minimum(torch.tensor([0.2, 9.0]).double(), linear))


@pytest.mark.parametrize("within", [(1.0, 1.0), (1.0, -1.0)])
def test_a_range_that_is_none_is_refused(within):
    with pytest.raises(ValueError, match="a low number and a higher one"):
        given(norm=[0.5, 0.5], x0=[0.2, 0.2], sigma2=[0.5, 0.9]).covariance("residual", within=within)


def precision_gain(found: Gamma, values: torch.Tensor) -> torch.Tensor:
    """r_n = 1/cov_n - SNR_n."""
    return 1 / values - found.alpha2 / found.sigma2


@pytest.mark.parametrize("word", list(SCHEDULES))
@pytest.mark.parametrize("steps", [2, 3, 250, 1000])
def test_a_repair_leaves_exact_covariances_alone(word, steps):
    """Also where r_n is one number, which isotropic data have, and only rounding disobeys."""
    i = torch.arange(64).double()
    for variance in (1e-4 * 5000 ** (i / 63), torch.full((64,), 0.3).double()):
        found = exact_gamma(GaussianDenoiser(torch.zeros(64).double(), variance, make_schedule(word)), steps)
        plain, repaired = (found.covariance("residual", repair) for repair in (False, True))
        assert repaired.repaired == 0
        torch.testing.assert_close(repaired.values, plain.values, rtol=1e-11, atol=0)


@pytest.mark.parametrize("estimator", ["norm", "residual"])
@pytest.mark.parametrize("word", ["discrete", "cosine", "linear", "ve"])
def test_a_repaired_estimate_is_monotone_and_nearer_the_truth(word, estimator):
    denoiser, worse, better = gaussian(make_schedule(word)), 0.0, 0.0
    denoiser.variance.mul_(0.4)  # of [-1, 1]
    for seed in range(5):
        found = estimate(denoiser, data(10, denoiser, seed), Config(200, 10, 2000, seed))
        _, exact = truth(denoiser, 200)
        plain, repaired = (found.covariance(estimator, repair) for repair in (False, True))
        bound = 1 / (1 + found.alpha2 / found.sigma2)
        assert (repaired.values >= 0).all()
        assert (repaired.values <= bound * (1 + 1e-12)).all()
        share = found.sigma2 / (found.alpha2 + found.sigma2)
        assert least_cost.is_monge(share.numpy(), repaired.values.numpy())
        assert (repaired.below, repaired.above) == (plain.below, plain.above)
        changed = ((repaired.values / plain.values - 1).abs() > 1e-9) | ((plain.values == 0) & (repaired.values > 0))
        assert repaired.repaired == int(changed.sum())
        worse += float((plain.values - exact).square().mean())
        better += float((repaired.values - exact).square().mean())
    assert better <= worse * 1.001


@pytest.mark.parametrize("word", ["discrete", "cosine"])
def test_a_repair_by_the_norm_finds_better_trajectories(word):
    """What a path found by the estimate costs more than the best one, in the true cost: a mean of six estimates."""
    i = torch.arange(64).double()
    denoiser = GaussianDenoiser(torch.zeros(64).double(), 1e-4 * 5000 ** (i / 63), make_schedule(word))
    exact = exact_gamma(denoiser, 250)
    sigma2 = exact.sigma2.numpy()
    best = least_cost.cheapest(sigma2, exact.covariance("residual").values.numpy(), 20)
    costs = least_cost.cost(sigma2, exact.covariance("residual").values.numpy())
    regret = {False: 0.0, True: 0.0}
    for seed in range(6):
        x0 = denoiser.variance.sqrt() * randn(10, 64, seed=seed)
        found = estimate(denoiser, x0, Config(250, 10, 2500, seed))
        for repair in regret:
            path = least_cost.cheapest(sigma2, found.covariance("norm", repair).values.numpy(), 20).nodes(20)
            regret[repair] += sum(costs[a - 1, b - 1] for a, b in itertools.pairwise(path)) - best.cost(20)
    assert regret[True] < 0.5 * regret[False]


def test_a_repair_by_hand():
    """Two times that disobey share the q with cov_n = q / (1 + q SNR_n) that keeps the sum of their covariances."""
    sigma2 = torch.tensor([0.2, 0.5, 0.8]).double()
    snr = 1 / sigma2 - 1
    q = torch.tensor([0.1, 0.6, 0.4]).double()
    raw = q / (1 + q * snr)
    found = given(norm=[0.5] * 3, x0=raw.tolist(), sigma2=sigma2.tolist()).covariance("residual", repair=True)
    assert found.repaired == 2
    assert float(found.values[0]) == pytest.approx(float(raw[0]), rel=1e-12)
    assert float(found.values[1:].sum()) == pytest.approx(float(raw[1:].sum()), rel=1e-12)
    shared = 1 / (1 / found.values[1:] - snr[1:])
    assert float(shared[0]) == pytest.approx(float(shared[1]), rel=1e-12)
    assert 0.4 < float(shared[0]) < 0.6


def test_a_repair_by_the_norm_trusts_it_less_where_there_is_less_signal():
    """Its error grows as 1/SNR, so the pooled sum is weighed by min(SNR, 1)^2."""
    snr = torch.tensor([4.0, 0.5, 0.1]).double()
    raw = torch.tensor([0.18, 0.3, 0.1]).double()
    sigma2 = 1 / (1 + snr)
    known_ = given(norm=(1 - raw * snr).tolist(), x0=raw.tolist(), sigma2=sigma2.tolist())
    found = known_.covariance("norm", repair=True)
    weight = snr.clamp(max=1) ** 2
    assert float((weight * found.values).sum()) == pytest.approx(float((weight * raw).sum()), rel=1e-9)
    assert precision_gain(known_, found.values).diff().abs().max() < 1e-9
    unweighed = known_.covariance("residual", repair=True)
    assert float(unweighed.values.sum()) == pytest.approx(float(raw.sum()), rel=1e-9)


def test_a_repair_lets_no_estimate_be_worse_than_a_straight_line():
    """With data of the largest variance, 1, a line leaves 1 / (1 + SNR) unknown, so more is no covariance of any data."""
    found = given(norm=[0.5] * 2, x0=[0.5, 0.55], sigma2=[0.2, 0.5]).covariance("residual", repair=True)
    torch.testing.assert_close(found.values, torch.tensor([0.2, 0.5]).double())
    assert (found.above, found.repaired) == (0, 2)


def test_a_repair_is_the_most_likely_monotone_table():
    """sum raw (r + SNR) - log(r + SNR), over r that never rises: no small move that keeps it so makes it less."""
    rng, n = torch.Generator().manual_seed(3), 30
    sigma2 = (torch.pi / 2 * torch.arange(1, n + 1) / (n + 1)).double().sin() ** 2
    snr = 1 / sigma2 - 1
    raw = 0.3 / (1 + 0.3 * snr) * (0.6 * torch.randn(n, generator=rng, dtype=torch.float64)).exp()
    found = given(norm=[0.5] * n, x0=raw.tolist(), sigma2=sigma2.tolist())
    r = precision_gain(found, found.covariance("residual", repair=True).values)
    assert len(r.round(decimals=9).unique()) > 3  # several pools

    def unlikely(r: torch.Tensor) -> float:
        return float((raw * (r + snr) - (r + snr).log()).sum())

    best = unlikely(r)
    for _ in range(500):
        move = torch.randn(n, generator=rng, dtype=torch.float64) * 10 ** -(4 * torch.rand(1, generator=rng).double())
        tried = (r + move).cummin(0).values.clamp(min=1)
        assert unlikely(tried) >= best - 1e-9


def test_a_repair_lets_what_is_below_and_above_average_out():
    """By the norm, near pure noise, where single estimates are noise: 0 and the bound by turns, 0.3 in the mean."""
    alpha2, cov = torch.linspace(0.02, 0.01, 40).double(), 0.3 / (1 + 0.3 * torch.linspace(0.02, 0.01, 40).double())
    raw = cov + 2 * torch.tensor([1.0, -1.0]).double().repeat(20)
    norm = 1 - raw * alpha2 / (1 - alpha2)
    found = given(norm=norm.tolist(), x0=cov.tolist(), sigma2=(1 - alpha2).tolist())
    plain, repaired = (found.covariance("norm", repair) for repair in (False, True))
    assert (plain.below, plain.above) == (20, 20)
    assert (plain.values - cov).abs().min() > 0.25
    inner = (repaired.values - cov)[2:-2].abs()
    assert inner.median() < 0.15


def test_a_repair_of_nothing_to_know_and_of_nothing_known():
    nothing = given(norm=[1.0, 1.0, 1.0], x0=[0.0, 0.0, 0.0], sigma2=[0.2, 0.5, 0.8]).covariance(
        "residual", repair=True
    )
    assert (nothing.values.tolist(), nothing.repaired) == ([0.0, 0.0, 0.0], 0)
    below = given(norm=[1.5, 1.2, 1.1], x0=[0.1] * 3, sigma2=[0.2, 0.5, 0.8]).covariance("norm", repair=True)
    assert (below.values.tolist(), below.below, below.repaired) == ([0.0, 0.0, 0.0], 3, 0)
    blind = given(norm=[0.5, 0.9], x0=[0.1, 0.2], sigma2=[0.5, 1.0]).covariance("norm", repair=True)
    assert (blind.values.tolist(), blind.above, blind.repaired) == ([0.5, 1.0], 1, 0)


def test_the_estimate_of_data_of_two_modes_is_repaired_to_a_monotone_one():
    denoiser = mixture()
    blob = (randn(30, 2, seed=5)[:, :1] > 0.5).double()
    x0 = torch.where(blob == 1, denoiser.means[1], denoiser.means[0]) + 0.05**0.5 * randn(30, 2, seed=6)
    found = estimate(denoiser, x0, Config(100, 30, 500, 0))
    repaired = found.covariance("residual", repair=True)
    assert least_cost.is_monge(found.sigma2.numpy(), repaired.values.numpy())
    share = found.sigma2 / (found.alpha2 + found.sigma2)
    assert not least_cost.is_monge(share.numpy(), found.covariance("residual").values.numpy())
    assert 0 < repaired.repaired <= 100


@pytest.mark.parametrize("channels", [1, 3])
def test_the_share_of_values_at_either_end_counts_every_channel(channels):
    pixels = torch.full((5, channels, 2, 2), 7, dtype=torch.uint8)
    pixels[0, 0, 0, 0], pixels[4, channels - 1, 1, 1], pixels[2, 0, 1, 0] = 0, 255, 254
    assert stage._edges(Images(pixels, None, None)) == 2 / pixels.numel()


def test_an_estimate_that_is_broken_off_goes_on_to_the_same_numbers():
    denoiser = gaussian()
    x0, config = data(7, denoiser), Config(steps=5, images=7, batch=8, seed=3)
    heard: list[gamma.Begun] = []
    whole = estimate(denoiser, x0, config, keep=heard.append, seconds=-1.0)
    assert [begun.pairs for begun in heard][:-1] == [8, 16, 24, 32]
    assert heard[-1].pairs >= 35
    for begun in heard:
        done = []
        again = estimate(denoiser, x0, config, lambda now, total, done=done: done.append((now, total)), begun=begun)
        assert torch.equal(again.moments.total, whole.moments.total)
        assert torch.equal(again.moments.square, whole.moments.square)
        assert done == [pair for pair in ((8, 35), (16, 35), (24, 35), (32, 35), (35, 35)) if pair[0] > begun.pairs]
    never: list[gamma.Begun] = []
    assert torch.equal(estimate(denoiser, x0, config, keep=never.append).moments.total, whole.moments.total)
    assert never == []


def test_the_seed_decides_on_noise_and_images_and_the_file_says_what_is_read_of_it():
    denoiser = gaussian()
    x0 = data(6, denoiser)
    found, other = (estimate(denoiser, x0, Config(4, 6, 8, seed)) for seed in (0, 1))
    assert not torch.equal(found.moments.total, other.moments.total)
    told = found.to_json()
    assert told["gamma"] == (found.moments.mean[gamma.NORM] / found.sigma2).tolist() == found.gamma.tolist()
    assert told["gamma_stderr"] == (found.moments.stderr[gamma.NORM] / found.sigma2).tolist()
    t = torch.arange(1, 5, dtype=torch.float64) / 4
    assert told["alpha2"] == (denoiser.schedule.alpha(t) ** 2).tolist()
    assert told["sigma2"] == (denoiser.schedule.sigma(t) ** 2).tolist()


def test_a_table_of_gamma_is_of_one_checkpoint_and_one_schema(tmp_path):
    path, value = tmp_path / "gamma.json", {"about": {"checkpoint_digest": "a" * 64}}
    disk.write_sealed(path, {"schema": gamma.SCHEMA, **value})
    for checkpoint in (None, "a" * 64):
        assert gamma.read(path, checkpoint, "estimate it again")["about"] == value["about"]
    with pytest.raises(UserError, match=r"from checkpoint a{12}, and the one here is b{12}; estimate it again$"):
        gamma.read(path, "b" * 64, "estimate it again")
    disk.write_sealed(path, {"schema": gamma.SCHEMA - 1, **value})
    with pytest.raises(UserError, match=r"estimate it again$"):
        gamma.read(path, None, "estimate it again")
