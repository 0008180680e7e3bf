import json
import math

import pytest
import torch

from diffcore import gamma
from diffcore.denoiser import GaussianDenoiser, Prediction
from diffcore.gamma import BOUND, Config, Gamma, Moments, estimate, pick
from diffcore.mistake import Mistake
from diffcore.schedule import Cosine, Linear
from tests.conftest import gaussian, make_schedule, randn

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
        assert (found.values.tolist(), found.below, found.above) == ([BOUND], 0, 1)


class Broken(GaussianDenoiser):
    """Not a number from t = 0.7 on."""

    def forward(self, x_t, t):
        belief = super().forward(x_t, t)
        return Prediction(torch.where(t[:, None, None] > 0.65, torch.nan, belief.x0), belief.eps, belief.level)


def test_a_network_that_is_not_finite_is_refused():
    """It must not pass for a covariance beyond the bound."""
    exact = gaussian()
    with pytest.raises(Mistake, match=r"not finite at 4 of 10 times, the first t = 0\.7; train"):
        estimate(Broken(exact.mean, exact.variance, exact.schedule), data(3, exact), Config(10, 3, 8, 0))


def test_impossible_values_are_moved_to_the_bounds_and_counted():
    found = given(norm=[0.5, 1.2, 0.1, 1.0], x0=[0.2, 0.3, 1.5, 0.4], sigma2=[0.5, 0.5, 0.9, 1.0])
    by_norm, residual = found.covariance("norm"), found.covariance("residual")
    torch.testing.assert_close(by_norm.values, torch.tensor([0.5, 0.0, BOUND, BOUND]).double())
    assert (by_norm.below, by_norm.above) == (1, 2)  # at alpha = 0 the norm says nothing: the bound, counted
    torch.testing.assert_close(residual.values, torch.tensor([0.2, 0.3, BOUND, 0.4]).double())
    assert (residual.below, residual.above) == (0, 1)
    assert "norm: 1 of 4 below 0, 2 above the bound" in found.told()


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
    with pytest.raises(Mistake, match=r"gamma\.images is 51, but the data have only 50"):
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
