import pytest
import torch

from diffcore.denoisers.exact import GaussianDenoiser
from diffcore.denoisers.network import NetDenoiser
from diffcore.denoisers.prediction import PARAMETERIZATIONS
from diffcore.denoisers.reading import VP, Reading
from diffcore.denoisers.rescaling import Rescaled
from diffcore.noise.schedule import VE, Cosine, Linear
from tests.conftest import ToyNet, gaussian, make_schedule, mixture, randn

TIMES = torch.tensor([0.05, 0.3, 0.5, 0.8, 0.95], dtype=torch.float64)


def close(a, b, atol):
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


@pytest.mark.parametrize("reading", PARAMETERIZATIONS)
def test_each_reading_gives_the_same_belief_back(schedule, reading):
    """v, x0, eps and score of one belief, read out and made into a belief again."""
    x_t = randn(5, 2, 3)
    belief = gaussian(schedule)(x_t, TIMES)
    again = PARAMETERIZATIONS[reading](x_t, belief.level, getattr(belief, reading))
    for other in PARAMETERIZATIONS:
        scale = max(1.0, float(getattr(belief, other).abs().max()))
        close(getattr(again, other) / scale, getattr(belief, other) / scale, 1e-14 if reading == "v" else 1e-12)


def test_a_belief_explains_x_t(schedule):
    x_t = randn(5, 2, 3)
    belief = gaussian(schedule)(x_t, TIMES)
    close(belief.level.alpha * belief.x0 + belief.level.sigma * belief.eps, x_t, 1e-13)


def test_v_is_finite_at_both_ends():
    net = NetDenoiser(ToyNet().double(), Cosine())
    belief = net(randn(2, 1, 4, 4), torch.tensor([0.0, 1.0]))
    for reading in (belief.x0, belief.eps, belief.v):
        assert torch.isfinite(reading).all()


def test_the_boundary_condition_is_built_in():
    """A v network's x0 at t = 0 is its input, whatever the network says."""
    z = randn(3, 1, 4, 4)
    close(NetDenoiser(ToyNet().double(), Cosine())(z, torch.zeros(3)).x0, z, 0)


def test_gaussian_score_is_the_gradient_of_the_log_density(schedule):
    denoiser, x_t = gaussian(schedule), randn(5, 2, 3).requires_grad_()
    level = schedule.level(TIMES, x_t)
    variance = level.alpha**2 * denoiser.variance + level.sigma**2
    log_density = -0.5 * ((x_t - level.alpha * denoiser.mean) ** 2 / variance).sum()
    (gradient,) = torch.autograd.grad(log_density, x_t)
    close(denoiser(x_t.detach(), TIMES).score, gradient, 1e-11)


def test_mixture_score_is_the_gradient_of_the_log_density(schedule):
    denoiser, x_t = mixture(schedule), randn(5, 2).requires_grad_()
    level = schedule.level(TIMES, x_t)
    variance = (level.alpha**2).unsqueeze(1) * denoiser.variances + (level.sigma**2).unsqueeze(1)
    away = x_t.unsqueeze(1) - level.alpha.unsqueeze(1) * denoiser.means
    log_density = torch.logsumexp(denoiser.weights.log() - 0.5 * (away**2 / variance + variance.log()).sum(2), 1).sum()
    (gradient,) = torch.autograd.grad(log_density, x_t)
    close(denoiser(x_t.detach(), TIMES).score, gradient, 1e-9)


def test_a_mixture_of_one_is_a_gaussian(schedule):
    one = gaussian(schedule)
    from diffcore.denoisers.exact import MixtureDenoiser

    same = MixtureDenoiser(torch.ones(1).double(), one.mean[None], one.variance[None], schedule)
    x_t = randn(5, 2, 3)
    close(same(x_t, TIMES).x0, one(x_t, TIMES).x0, 1e-13)


def test_gaussian_flow_keeps_the_marginals():
    denoiser, count = gaussian(Linear()), 40_000
    start = randn(count, 2, 3)
    t, s = torch.full((count,), 0.9), torch.full((count,), 0.2)
    at, to = Linear().level(t, start), Linear().level(s, start)
    x_t = at.alpha * denoiser.mean + (at.alpha**2 * denoiser.variance + at.sigma**2).sqrt() * start
    x_s = denoiser.flow(x_t, t, s)
    expected = to.alpha[0] ** 2 * denoiser.variance + to.sigma[0] ** 2
    torch.testing.assert_close(x_s.var(0), expected, rtol=0.03, atol=0)
    torch.testing.assert_close(x_s.mean(0), to.alpha[0] * denoiser.mean, rtol=0, atol=0.03)


def test_gamma_is_the_mean_square_of_the_score():
    denoiser, count, t = gaussian(), 100_000, torch.tensor([0.4])
    x0 = denoiser.mean + denoiser.variance.sqrt() * randn(count, 2, 3, seed=1)
    level = Cosine().level(t.expand(count), x0)
    x_t = level.alpha * x0 + level.sigma * randn(count, 2, 3, seed=2)
    measured = denoiser(x_t, t.expand(count)).score.square().flatten(1).mean(1)
    error = float(measured.std()) / count**0.5
    assert abs(float(measured.mean()) - float(denoiser.gamma(t))) < 4 * error


def test_another_schedule_under_the_same_denoiser_changes_no_answer():
    """Swap the schedule for its variance-exploding rescaling: x_0 at the same SNR stays as it is."""
    inner, outer = gaussian(Cosine()), VE(0.02, 80.0)
    t = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    x_ve = 10 * randn(3, 2, 3)
    exact = GaussianDenoiser(inner.mean, inner.variance, outer)
    close(Rescaled(inner, outer)(x_ve, t).x0, exact(x_ve, t).x0, 1e-11)
    close(Rescaled(inner, outer)(x_ve, t).eps, exact(x_ve, t).eps, 1e-11)


def test_the_label_is_diffusers_index():
    t = torch.tensor([1.0, 0.5, 1 / 1024])
    assert VP.timestep(t, Cosine()).tolist() == [1023.0, 511.0, 0.0]


@pytest.mark.parametrize("make", [gaussian, mixture])
def test_the_batch_law(make):
    denoiser = make()
    x = randn(3, *denoiser(randn(1, 2, 3) if make is gaussian else randn(1, 2), TIMES[:1]).x0.shape[1:])
    whole = denoiser(x, TIMES[:3]).v
    close(whole, torch.cat([denoiser(x[i : i + 1], TIMES[i : i + 1]).v for i in range(3)]), 1e-15)


class Doubled(ToyNet):
    """Says x~ and eps~."""

    def forward(self, x, timestep):
        out = super().forward(x, timestep)
        return torch.cat([out.sin(), out.flip(1) + x], 1)


def test_both_is_merged_as_published():
    """x = S^2 x~ + C (z - S eps~), by hand."""
    z, says_x0, says_eps = (randn(5, 2, 3, seed=seed) for seed in range(3))
    level, phi = Cosine().level(TIMES, z), Cosine().angle(TIMES)[:, None, None]
    found = PARAMETERIZATIONS["x0_eps"](z, level, torch.cat([says_x0, says_eps], 1))
    close(found.x0, phi.sin() ** 2 * says_x0 + phi.cos() * (z - phi.sin() * says_eps), 1e-14)
    close(found.v, phi.cos() * says_eps - phi.sin() * says_x0, 1e-14)
    close(found.level.alpha * found.x0 + found.level.sigma * found.eps, z, 1e-14)


def test_both_trusts_eps_at_the_data_and_x0_at_the_noise():
    z, t = randn(2, 2, 4, 4), torch.tensor([0.0, 1.0]).double()
    denoiser = NetDenoiser(Doubled(2).double(), Cosine(), Reading("x0_eps"))
    belief, says = denoiser(z, t), denoiser.net(z, VP.timestep(t, Cosine()))
    close(belief.x0[0], z[0], 0)
    close(belief.v[0], says[0, 2:], 0)
    close(belief.x0[1], says[1, :2], 1e-15)
    close(belief.eps[1], z[1], 1e-15)


@pytest.mark.parametrize(
    ("net", "parameterization"), [(ToyNet, "v"), (ToyNet, "x0"), (ToyNet, "eps"), (Doubled, "x0_eps")]
)
def test_the_batch_law_holds_for_networks_where_all_axes_are_alike(net, parameterization):
    denoiser = NetDenoiser(net(channels=3).double(), make_schedule("linear"), Reading(parameterization))
    x = randn(3, 3, 3, 3)
    parts = [denoiser(x[i : i + 1], TIMES[i : i + 1]).x0 for i in range(3)]
    close(denoiser(x, TIMES[:3]).x0, torch.cat(parts), 1e-12)
