"""x_0 kept within limits, whatever asks for it."""

import numpy as np
import pytest
import torch

from diffcore.core.errors import UserError
from diffcore.denoisers.clipping import Clip, Clipped, Threshold
from diffcore.denoisers.condition import of_classes
from diffcore.denoisers.denoiser import Denoiser, per_sample
from diffcore.denoisers.exact import GaussianDenoiser
from diffcore.denoisers.guidance import Guided
from diffcore.denoisers.meter import Meter, Metered
from diffcore.denoisers.prediction import Prediction
from diffcore.metrics import likelihood
from diffcore.noise.schedule import Cosine
from diffcore.noise.trajectory import karras, uniform
from diffcore.sampling.sampler import Sampler
from diffcore.sampling.solvers import SOLVERS
from tests.conftest import gaussian, make_solver, randn, toy_denoiser
from tests.test_condition import TwoBlobs

pytestmark = pytest.mark.usefixtures("without_shape_checks")

LIMITS = {"clip": Clip(0.4), "threshold": Threshold(0.6, 1.5), "threshold to 1": Threshold(0.9)}
OFF_X0 = {"euler_maruyama", "reverse_diffusion", "predictor_corrector"}
"""Whose last step is not to the believed x_0 itself."""


def wide() -> GaussianDenoiser:
    """Data far beyond the limits, so that beliefs are at every time."""
    return GaussianDenoiser(randn(2, 3), 4 * torch.ones(2, 3).double(), Cosine())


def drawn(count: int):
    return lambda k: randn(count, 2, 3, seed=100 + k)


class ByHand(Denoiser):
    """As it is written: x_0 limited, eps = (x_t - alpha x_0) / sigma."""

    def __init__(self, inner: Denoiser, limit):
        super().__init__()
        self.inner, self.limit, self.schedule, self.grid = inner, limit, inner.schedule, None

    def forward(self, x_t, t):
        belief = self.inner(x_t, t)
        x0, level = self.limit(belief.x0), belief.level
        eps = torch.where(level.sigma > 0, (x_t - level.alpha * x0) / level.sigma, belief.eps)
        return Prediction(x0, eps, level)

    def select(self, rows):
        return self


def test_a_clip_by_hand():
    x0 = torch.tensor([[-3.0, -0.2, 0.0, 0.7, 9.0]])
    assert Clip(0.5)(x0).tolist() == [[-0.5, pytest.approx(-0.2), 0.0, 0.5, 0.5]]


def test_a_threshold_by_hand():
    """Of each sample its own quantile, numpy's; below 1 it is 1, and above max it is max."""
    x0 = 3 * randn(6, 2, 4, 4) * torch.tensor([0.05, 0.3, 0.6, 1.0, 2.0, 5.0]).double()[:, None, None, None]
    seen = set()
    for row, found in zip(x0, Threshold(0.8, 4.0)(x0)):
        quantile = float(np.quantile(row.abs().numpy(), 0.8))
        s = min(max(quantile, 1.0), 4.0)
        seen.add("1" if s == 1 else "max" if s == 4 else "between")
        torch.testing.assert_close(found, row.clamp(-s, s) / s, rtol=1e-12, atol=0)
    assert seen == {"1", "between", "max"}


def test_a_threshold_up_to_1_is_a_clip():
    x0 = 3 * randn(4, 3)
    assert torch.equal(Threshold(0.5, 1.0)(x0), Clip(1.0)(x0))


def test_a_threshold_takes_half_precision():
    found = Threshold(0.9, 3.0)(torch.linspace(-9, 9, 20)[None].to(torch.bfloat16))
    assert found.dtype == torch.bfloat16
    assert float(found.abs().max()) == 1.0


@pytest.mark.parametrize("limit", LIMITS.values(), ids=LIMITS)
def test_all_readings_of_a_limited_belief_agree(limit, schedule):
    denoiser, x, t = gaussian(schedule), 3 * randn(5, 2, 3), torch.tensor([0.02, 0.3, 0.6, 0.9, 1.0]).double()
    plain, found = denoiser(x, t), Clipped(denoiser, limit)(x, t)
    torch.testing.assert_close(found.x0, limit(plain.x0), rtol=0, atol=0)
    torch.testing.assert_close(found.level.alpha * found.x0 + found.level.sigma * found.eps, x, rtol=0, atol=1e-12)
    assert not torch.equal(found.x0, plain.x0)
    kept = found.x0 == plain.x0  # whose eps is then the same, digit for digit
    assert torch.equal(found.eps[kept], plain.eps[kept])


def test_where_there_is_no_noise_left_eps_stays():
    x = 5 * randn(3, 2, 3)
    t = per_sample(0.0, x)
    assert torch.equal(Clipped(wide(), Clip())(x, t).eps, wide()(x, t).eps)


@pytest.mark.parametrize("limit", LIMITS.values(), ids=LIMITS)
@pytest.mark.parametrize("name", SOLVERS)
def test_every_solver_samples_with_a_limited_belief(name, limit):
    """What it makes of the same belief written out by hand; and its samples are images."""
    x, path = 2 * randn(6, 2, 3), karras(7, Cosine())
    solver = make_solver(name, wide())
    found, expected = (Sampler(kind(wide(), limit), solver, path).sample(x, drawn(6)) for kind in (Clipped, ByHand))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(found, Sampler(wide(), solver, path).sample(x, drawn(6)), atol=1e-3)
    bound = 0.4 if isinstance(limit, Clip) else 1.0
    if name not in OFF_X0:
        assert float(found.abs().max()) < bound * (1.05 if solver.adaptive else 1 + 1e-9)


@pytest.mark.parametrize("limit", [Clip(50.0), Threshold(0.9, 2.0)], ids=["clip", "threshold"])
@pytest.mark.parametrize("name", SOLVERS)
def test_a_limit_that_is_not_reached_changes_no_bit(name, limit):
    denoiser = GaussianDenoiser(torch.zeros(2, 3).double(), 1e-3 * torch.ones(2, 3).double(), Cosine())
    x, solver = 0.001 * randn(4, 2, 3), make_solver(name, denoiser)
    plain, found = (
        Sampler(each, solver, karras(5, Cosine())).sample(x, lambda k: 0.001 * drawn(4)(k))
        for each in (denoiser, Clipped(denoiser, limit))
    )
    assert torch.equal(plain, found)


@pytest.mark.parametrize("limit", LIMITS.values(), ids=LIMITS)
@pytest.mark.parametrize("name", SOLVERS)
def test_the_batch_law(name, limit):
    """A sample's limit is its own."""
    x, noise = 2 * randn(3, 2, 3), drawn(3)
    sampler = Sampler(Clipped(wide(), limit), make_solver(name, wide()), karras(6, Cosine()))
    parts = [sampler.sample(x[i : i + 1], lambda k, i=i: noise(k)[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(sampler.sample(x, noise), torch.cat(parts), rtol=0, atol=1e-12)


def test_classes_and_rows_reach_what_is_limited():
    x, t, labels = randn(4, 2), per_sample(0.4, randn(4, 2)), torch.tensor([0, 1, 1, 0])
    condition = of_classes(labels, torch.full((4,), 3.0).double())
    expected = Guided(TwoBlobs()).with_condition(condition)(x, t)
    found = Clipped(Guided(TwoBlobs()), Clip(0.3)).with_condition(condition)
    torch.testing.assert_close(found(x, t).x0, expected.x0.clamp(-0.3, 0.3), rtol=0, atol=0)
    rows = torch.tensor([2, 0])
    torch.testing.assert_close(found.select(rows)(x[rows], t[rows]).x0, found(x, t).x0[rows], rtol=0, atol=0)


def test_cost_features_and_memory_are_those_of_what_is_limited():
    class Remembers(type(toy_denoiser())):
        def start_run(self, calls):
            self.began = calls
            return self

    inner, meter, x = Remembers(toy_denoiser().net, Cosine()), Meter(), randn(2, 1, 4, 4).float()
    limited = Clipped(Metered(inner, meter), Clip())
    Sampler(limited, SOLVERS["heun"](), uniform(3)).sample(x)
    assert (inner.began, meter.settle()) == (4, 8)
    t = per_sample(0.5, x)
    assert all(map(torch.equal, limited.features(x, t), inner.features(x, t)))


def test_a_bound_is_that_of_the_limited_model_and_a_flow_that_ends_on_a_face_has_no_density():
    """Images lie within the limits, so that a poor network's beliefs come nearer to all of them."""
    images = torch.tensor([[-1.0, 1.0, 0.2], [0.0, -1.0, 1.0]]).double()[None].expand(40, 2, 3)
    limited = Clipped(wide(), Clip(1.0))
    plain, found = (
        likelihood.estimate(Sampler(each, SOLVERS["ddpm"](), uniform(5)), images, 0) for each in (wide(), limited)
    )
    assert found.mean < plain.mean
    sampler = Sampler(limited, SOLVERS["rk45"](), uniform(1))
    assert likelihood.estimate(sampler, images, 0) is None
    with pytest.raises(UserError, match="has no density"):
        likelihood.exact(sampler, images, 0, range(40))


@pytest.mark.parametrize(
    "make",
    [
        *(lambda bound=bound: Clip(bound) for bound in (0.0, -1.0, float("nan"), float("inf"))),
        *(lambda q=q: Threshold(q) for q in (0.0, 1.1, -0.5, float("nan"))),
        *(lambda most=most: Threshold(0.9, most) for most in (0.5, float("nan"), float("inf"))),
    ],
)
def test_impossible_limits_are_refused(make):
    with pytest.raises(ValueError, match="must be"):
        make()
