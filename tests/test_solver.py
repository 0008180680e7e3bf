import itertools
import math

import pytest
import torch

from diffcore import solver
from diffcore.denoiser import Denoiser, GaussianDenoiser, per_sample
from diffcore.sampler import Sampler
from diffcore.schedule import Cosine, Linear
from diffcore.solver import SOLVERS
from diffcore.trajectory import even
from tests.conftest import gaussian, make_schedule, randn

DETERMINISTIC = [name for name, solver in SOLVERS.items() if solver.order is not None]


class Spy(Denoiser):
    """Counts the calls of a denoiser."""

    def __init__(self, inner: Denoiser):
        super().__init__()
        self.inner, self.schedule, self.grid, self.calls = inner, inner.schedule, inner.grid, 0

    def forward(self, x_t, t):
        self.calls += 1
        return self.inner(x_t, t)


@pytest.mark.parametrize("name", SOLVERS)
def test_nfe_is_what_a_spy_counts(name):
    spy = Spy(gaussian())
    sampler = Sampler(spy, SOLVERS[name], even(5))
    sampler.sample(randn(2, 2, 3), lambda k: randn(2, 2, 3, seed=k))
    assert spy.calls == sampler.nfe


@pytest.mark.parametrize("name", SOLVERS)
def test_the_batch_law(name):
    """b = c = h = w, so that a number per sample that meets the wrong axis is seen."""
    denoiser = GaussianDenoiser(randn(3, 3, 3), randn(3, 3, 3, seed=1).square() + 0.1, Cosine())
    x, noise = randn(3, 3, 3, 3, seed=2), randn(3, 3, 3, 3, seed=3)
    t, s = torch.tensor([1.0, 0.6, 0.3]).double(), torch.tensor([0.7, 0.2, 0.0]).double()
    step = SOLVERS[name].step
    parts = [step(denoiser, x[i : i + 1], t[i : i + 1], s[i : i + 1], noise[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(step(denoiser, x, t, s, noise), torch.cat(parts), rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", DETERMINISTIC)
@pytest.mark.parametrize("words", ["cosine", "linear"])
def test_order_is_the_declared_one(name, words):
    """The error against the exact Gaussian flow falls as h^order."""
    denoiser, start = gaussian(make_schedule(words)), randn(4, 2, 3)
    exact = denoiser.flow(start, torch.ones(4), torch.zeros(4))
    errors = [
        float((Sampler(denoiser, SOLVERS[name], even(steps)).sample(start) - exact).abs().max())
        for steps in (256, 512, 1024)
    ]
    rates = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert rates[-1] == pytest.approx(SOLVERS[name].order, abs=0.1)


def test_ddim_multiplier_by_hand():
    """On N(0, c^2) one step multiplies by (cos cos' c^2 + sin sin') / (cos^2 c^2 + sin^2)."""
    c2, t, s = 0.25, 0.7, 0.4
    denoiser = GaussianDenoiser(torch.zeros(1).double(), torch.tensor([c2]).double(), Cosine())
    a, b, to_a, to_b = (f(math.pi / 2 * u) for u in (t, s) for f in (math.cos, math.sin))
    x = randn(3, 1)
    stepped = solver.ddim(denoiser, x, per_sample(t, x), per_sample(s, x), None)
    torch.testing.assert_close(stepped, (a * to_a * c2 + b * to_b) / (a * a * c2 + b * b) * x, rtol=0, atol=1e-14)


def moments_after(name: str, count: int = 200_000, t: float = 0.8, s: float = 0.5):
    """Mean and variance of x_s after one stochastic step from the exact marginal at t, with N(mu, c^2) data."""
    denoiser = GaussianDenoiser(torch.tensor([0.4]).double(), torch.tensor([0.3]).double(), Linear())
    x0 = denoiser.mean + denoiser.variance.sqrt() * randn(count, 1, seed=1)
    level = Linear().level(per_sample(t, x0), x0)
    x_t = level.alpha * x0 + level.sigma * randn(count, 1, seed=2)
    x_s = SOLVERS[name].step(denoiser, x_t, per_sample(t, x_t), per_sample(s, x_t), randn(count, 1, seed=3))
    return Linear().level(per_sample(s, x0[:1]), x0[:1]), level, x_s


@pytest.mark.parametrize("name", ["ddpm", "ddpm_large"])
def test_ancestral_variance_in_closed_form(name):
    """x_s is linear in x_t with added noise, so its variance follows by hand."""
    to, at, x_s = moments_after(name)
    c2, (a, b), (a_s, b_s) = 0.3, (at.alpha[0], at.sigma[0]), (to.alpha, to.sigma)
    total = a**2 * c2 + b**2
    forward = b**2 - (a / a_s) ** 2 * b_s**2
    small = forward * b_s**2 / b**2
    gain = (a_s * a * c2 + (b_s**2 - small).sqrt() * b) / total
    added = small if name == "ddpm" else forward
    expected = float(gain**2 * total + added)
    assert float(x_s.var()) == pytest.approx(expected, rel=4 * math.sqrt(2 / len(x_s)))
    assert float(x_s.mean()) == pytest.approx(float(a_s) * 0.4, abs=5e-3)


def test_renoise_forgets_where_it_came_from():
    """Consistency sampling keeps only the believed x_0: the rest of x_s is fresh noise."""
    denoiser, x = gaussian(), randn(3, 2, 3)
    t, s, noise = per_sample(0.9, x), per_sample(0.3, x), randn(3, 2, 3, seed=5)
    x_s, to = solver.renoise(denoiser, x, t, s, noise), Cosine().level(s, x)
    torch.testing.assert_close(x_s, to.alpha * denoiser(x, t).x0 + to.sigma * noise, rtol=0, atol=0)


@pytest.mark.parametrize("name", SOLVERS)
def test_the_last_step_adds_no_noise(name):
    denoiser, x = gaussian(), randn(3, 2, 3)
    t, s = per_sample(0.2, x), per_sample(0.0, x)
    results = [SOLVERS[name].step(denoiser, x, t, s, randn(3, 2, 3, seed=seed)) for seed in (1, 2)]
    torch.testing.assert_close(*results, rtol=0, atol=0)


def test_a_first_step_from_pure_noise_is_finite():
    """alpha(1) = 0 on the cosine schedule: nothing may divide by it."""
    x = randn(3, 2, 3)
    for entry in SOLVERS.values():
        assert torch.isfinite(entry.step(gaussian(), x, per_sample(1.0, x), per_sample(0.5, x), x)).all()
