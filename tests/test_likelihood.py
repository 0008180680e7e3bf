"""Bits per dimension against densities that are known."""

import itertools
import math

import pytest
import torch

from diffcore.denoisers.condition import of_classes
from diffcore.denoisers.exact import GaussianDenoiser
from diffcore.metrics import likelihood
from diffcore.noise import trajectory
from diffcore.noise.schedule import SCHEDULES, Cosine, Linear
from diffcore.noise.trajectory import Trajectory, uniform
from diffcore.sampling.sampler import Sampler
from diffcore.sampling.solver import forward_variance, posterior_variance
from diffcore.sampling.solvers import SOLVERS
from tests.conftest import exact_gamma, gaussian, make_schedule, mixture, randn

FINE = SOLVERS["rk45"](rtol=1e-8, atol=1e-8)
WHOLE = Trajectory((1.0, 0.0))


def flow(denoiser, solver=FINE) -> Sampler:
    return Sampler(denoiser, solver, WHOLE)


def isotropic(variance: float = 0.05, mean: float = 0.2, schedule=None) -> GaussianDenoiser:
    whole = torch.ones(2, 3, dtype=torch.float64)
    return GaussianDenoiser(mean * whole, variance * whole, schedule or Cosine())


def images(denoiser: GaussianDenoiser, count: int, seed: int = 1) -> torch.Tensor:
    """Gaussian data on 256 levels."""
    x = denoiser.mean + denoiser.variance.sqrt() * randn(count, *denoiser.mean.shape, seed=seed)
    return ((x.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1


@pytest.mark.slow
@pytest.mark.parametrize("times", [(0.0, 1.0), (0.1, 0.9)])
@pytest.mark.parametrize("name", SCHEDULES)
def test_the_exact_likelihood_is_the_density(name, times):
    schedule = make_schedule(name)
    denoiser = gaussian(schedule)
    # what the flow carries to x at t = 0 is the density of alpha_0 x_0 + sigma_0 eps; its start is N(0, alpha^2 + sigma^2)
    ends = torch.tensor(times, dtype=torch.float64)
    alpha, sigma = schedule.alpha(ends), schedule.sigma(ends)
    x = randn(7, 2, 3, seed=5)
    std = (alpha[0] ** 2 * denoiser.variance + sigma[0] ** 2).sqrt()
    std1 = (alpha[1] ** 2 * denoiser.variance + sigma[1] ** 2).sqrt()
    z = (x - alpha[0] * denoiser.mean) / std
    landed, prior = alpha[1] * denoiser.mean + std1 * z, torch.hypot(alpha[1], sigma[1])
    log_p = torch.distributions.Normal(0, prior).log_prob(landed) + (std1 / std).log()
    sampler = Sampler(denoiser, FINE, Trajectory((times[1], times[0])))
    found = likelihood.exact(sampler, x, 0, range(7), None)
    torch.testing.assert_close(found, -log_p.flatten(1).mean(1), rtol=0, atol=1e-5)


def test_each_tolerance_is_its_own(monkeypatch):
    told, real = [], likelihood.integrate
    monkeypatch.setattr(likelihood, "integrate", lambda *words: told.append(words[-2:]) or real(*words))
    for rtol, atol in ((1e-2, 1e-4), (1e-4, 1e-2)):
        likelihood.exact(flow(isotropic(), SOLVERS["rk45"](rtol=rtol, atol=atol)), randn(2, 2, 3), 0, range(2))
    assert told == [(1e-2, 1e-4), (1e-4, 1e-2)]


@pytest.mark.parametrize("first", [1.0, 0.9])
@pytest.mark.parametrize("name", SCHEDULES)
def test_the_prior_is_the_noise_that_sampling_starts_from(name, first):
    """KL(N(alpha x_0, sigma^2) || N(0, alpha^2 + sigma^2)) at the first time, whatever that is and however loud."""
    schedule, x = make_schedule(name), 0.5 * randn(4, 2, 3, seed=4)
    found = likelihood.bound(
        Sampler(isotropic(schedule=schedule), SOLVERS["ddpm"](), Trajectory((first, 0.5, 0.1))), x, 0, range(4)
    )
    alpha, sigma = (float(f(torch.tensor([first], dtype=torch.float64))) for f in (schedule.alpha, schedule.sigma))
    started = torch.distributions.Normal(0.0, torch.tensor(math.hypot(alpha, sigma)).double())
    noised = torch.distributions.Normal(alpha * x, torch.tensor(sigma).double())
    expected = torch.distributions.kl_divergence(noised, started).flatten(1).mean(1)
    torch.testing.assert_close(found.prior, expected, rtol=1e-6, atol=1e-9)


def test_the_exact_likelihood_of_a_mixture():
    denoiser, x = mixture(), 0.5 * randn(6, 2, seed=2)
    parts = torch.distributions.Normal(denoiser.means, denoiser.variances.sqrt()).log_prob(x[:, None]).sum(2)
    log_p = torch.logsumexp(parts + denoiser.weights.log(), 1)
    found = likelihood.exact(flow(denoiser), x, 0, range(6), None)
    torch.testing.assert_close(found, -log_p / 2, rtol=0, atol=1e-5)


def test_hutchinson_has_the_right_mean():
    """The mixture's flow has a Jacobian off the diagonal, so that probes matter."""
    x = torch.tensor([[0.1, 0.3]], dtype=torch.float64).expand(200, 2)
    sampler = flow(mixture(), SOLVERS["rk45"](rtol=1e-4, atol=1e-4))
    exact = likelihood.exact(sampler, x[:1], 0, range(1), None)
    tried = likelihood.exact(sampler, x, 0, range(200), 1)
    assert tried.std() > 1e-3
    assert abs(tried.mean() - exact) < 4 * tried.std() / math.sqrt(200)
    fewer = likelihood.exact(sampler, x, 0, range(200), 8)
    assert fewer.std() < 0.6 * tried.std()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ddpm", "ddpm_large", "analytic"])
@pytest.mark.parametrize("schedule", [Cosine(), Linear()], ids=["cosine", "linear"])
def test_the_bound_s_parts_have_closed_forms(name, schedule):
    """For isotropic data every E|x_0 - E[x_0 | x_t]|^2 is known, so the mean of each L_t is too."""
    denoiser, count, steps = isotropic(schedule=schedule), 4000, 5
    solver = SOLVERS[name]()
    solver = solver.with_gamma(exact_gamma(denoiser)) if name == "analytic" else solver
    path = uniform(steps)
    x = denoiser.mean + denoiser.variance.sqrt() * randn(count, 2, 3, seed=9)
    found = likelihood.bound(Sampler(denoiser, solver, path), x, 3, range(count))
    for k, (t, s) in enumerate(path.pairs[:-1]):
        (at, st), (a0, s0) = ([float(f(torch.tensor([u]))) for f in (schedule.alpha, schedule.sigma)] for u in (t, s))
        cov = 0.05 * st**2 / (at**2 * 0.05 + st**2)
        large = st**2 - (at / a0) ** 2 * s0**2
        small = large * s0**2 / st**2
        away = (a0 - math.sqrt(s0**2 - small) * at / st) ** 2 * cov
        model = {"ddpm": small, "ddpm_large": large, "analytic": small + away}[name]
        expected = 0.5 * ((small + away) / model - 1 + math.log(model / small))
        per = found.jumps[k]
        assert abs(per.mean() - expected) < 4 * per.std() / math.sqrt(count) + 1e-9, (k, float(per.mean()), expected)
    a1, s1 = float(schedule.alpha(torch.tensor([1.0]))), float(schedule.sigma(torch.tensor([1.0])))
    expected = 0.5 * (a1**2 * x.square() + s1**2 - 1 - math.log(s1**2)).flatten(1).mean(1)
    torch.testing.assert_close(found.prior, expected, rtol=0, atol=1e-9)


def test_the_optimal_variance_bounds_best_and_nothing_is_below_the_entropy():
    denoiser, count = isotropic(), 400
    x = images(denoiser, count)
    exact = likelihood.estimate(flow(denoiser, SOLVERS["rk45"](rtol=1e-5, atol=1e-5)), x, 0)
    entropy = 0.5 * math.log2(2 * math.pi * math.e * 0.05) - math.log2(likelihood.BIN)
    assert abs(exact.mean - entropy) < 5 * exact.se
    told = {}
    for name in ("ddpm", "ddpm_large", "analytic"):
        solver = SOLVERS[name]()
        solver = solver.with_gamma(exact_gamma(denoiser)) if name == "analytic" else solver
        for steps in (4, 32):
            told[name, steps] = likelihood.estimate(Sampler(denoiser, solver, uniform(steps)), x, 0)
    assert all(bits.mean > exact.mean - 4 * bits.se for bits in told.values())
    for steps in (4, 32):
        assert told["analytic", steps].mean < min(told["ddpm", steps].mean, told["ddpm_large", steps].mean)
    assert told["analytic", 32].mean < told["analytic", 4].mean
    assert told["analytic", 32].mean < exact.mean + 0.2


def test_the_decoder_is_a_distribution_over_the_bins():
    levels = torch.arange(256, dtype=torch.float64) / 127.5 - 1
    for middle, std in ((0.0, 0.3), (0.97, 0.05), (-3.0, 0.01), (0.2, 1e-4), (0.5, 5.0)):
        total = likelihood.decoder(levels, torch.full_like(levels, middle), torch.tensor(std)).exp().sum()
        assert abs(total - 1) < 1e-12, (middle, std)
    far = likelihood.decoder(torch.ones(1), -torch.ones(1), torch.tensor(1e-3, dtype=torch.float64))
    assert far.isfinite()
    assert far < -1e6


def test_a_decoder_without_a_variance_takes_that_of_the_step_before():
    denoiser, x = isotropic(), images(isotropic(), 3)
    one = likelihood.bound(Sampler(denoiser, SOLVERS["ddpm"](), uniform(1)), x, 0, range(3))
    large = likelihood.bound(Sampler(denoiser, SOLVERS["ddpm_large"](), uniform(1)), x, 0, range(3))
    assert torch.equal(one.decoder, large.decoder)
    assert one.jumps.shape == (0, 3)


@pytest.mark.parametrize("name", ["ddpm", "ddpm_large", "rk45"])
def test_bits_are_those_of_each_part_of_the_images_with_all_that_was_asked(name):
    """The last part is smaller; classes, rows, range, probes and seed are its own."""
    from tests.test_condition import TwoBlobs

    x, labels, within = 0.3 * randn(5, 2), torch.tensor([0, -1, 1, 0, -1]), (-2.0, 3.0)  # of no class, probes matter
    sampler = Sampler(TwoBlobs(), SOLVERS[name](), uniform(3))
    asked = {"seed": 4, "probes": 3, "condition": of_classes(labels), "within": within}
    found, parts = likelihood.estimate(sampler, x, batch=2, **asked), []
    for rows in (range(0, 2), range(2, 4), range(4, 5)):
        here = Sampler(TwoBlobs(labels[rows.start : rows.stop]), SOLVERS[name](), uniform(3))
        images = x[rows.start : rows.stop]
        if name == "rk45":
            noisy = likelihood.dequantised(images, 4, rows, within)
            parts.append(likelihood.exact(here, noisy, 4, rows, 3) - math.log(5 / 255))
        else:
            parts.append(likelihood.bound(here, images, 4, rows, within).total)
    torch.testing.assert_close(found.values, torch.cat(parts) / math.log(2), rtol=1e-9, atol=1e-12)
    assert len(set(found.values.tolist())) == 5


def test_the_last_of_several_steps_has_the_variance_of_the_one_before_it():
    """Of four steps the third's, neither the first's nor that of the forward process; a variance of its own stays."""
    denoiser, x = isotropic(), images(isotropic(), 3)
    sampler = Sampler(denoiser, SOLVERS["ddpm"](), uniform(4))
    levels = [denoiser.schedule.level(torch.full((3,), k / 4).double(), x) for k in range(4)]
    seen = []
    denoiser.register_forward_hook(lambda module, inputs, belief: seen.append(belief.x0))
    likelihood.bound(sampler, x, 0, range(3))
    for name, variance in (
        ("ddpm", posterior_variance(levels[2], levels[1])),
        ("ddpm_large", forward_variance(levels[1], levels[0])),
    ):
        found = likelihood.bound(Sampler(denoiser, SOLVERS[name](), uniform(4)), x, 0, range(3))
        right = -likelihood.decoder(x, seen[3], variance.sqrt()).flatten(1).mean(1)
        torch.testing.assert_close(found.decoder, right, rtol=1e-12, atol=0)


def test_of_dice_and_of_samplers_without_a_likelihood():
    denoiser, x = isotropic(), images(isotropic(), 9)
    for solver in (SOLVERS["ddpm"](), SOLVERS["rk45"]()):
        sampler = Sampler(denoiser, solver, uniform(4))
        whole, parts = likelihood.estimate(sampler, x, 7), likelihood.estimate(sampler, x, 7, batch=4)
        torch.testing.assert_close(whole.values, parts.values, rtol=0, atol=1e-12)
        assert not torch.equal(whole.values, likelihood.estimate(sampler, x, 8).values)
    for name in ("ddim", "heun", "dpmpp_2m", "multistep_consistency"):
        assert likelihood.estimate(Sampler(denoiser, SOLVERS[name](), uniform(4)), x, 7) is None
    assert likelihood.estimate(Sampler(denoiser, SOLVERS["ddim"](eta=1.0), uniform(4)), x, 7) is not None


def test_a_condition_reaches_the_denoiser():
    from tests.test_condition import TwoBlobs

    labels = torch.tensor([0, 1])
    x = TwoBlobs().means[labels]
    right = likelihood.estimate(flow(TwoBlobs(), SOLVERS["rk45"]()), x, 0, condition=of_classes(labels))
    wrong = likelihood.estimate(flow(TwoBlobs(), SOLVERS["rk45"]()), x, 0, condition=of_classes(1 - labels))
    assert right.mean < wrong.mean


def test_the_searched_trajectory_has_the_better_bound():
    from diffcore.search import least_cost

    denoiser = gaussian()
    known = exact_gamma(denoiser, 100)
    between = {3: [1, 50, 100], 6: [1, 20, 40, 60, 80, 100]}
    paths = least_cost.shortest(least_cost.cost(known.sigma2.numpy(), known.covariance("residual").values.numpy()), 6)
    solver = SOLVERS["analytic"]().with_gamma(known)
    x = denoiser.mean + denoiser.variance.sqrt() * randn(1500, 2, 3, seed=3)
    for steps in (3, 6):
        best, plain = (
            likelihood.bound(Sampler(denoiser, solver, path), x, 0, range(1500))
            for path in (trajectory.nodes(found, 100) for found in (paths.nodes(steps), between[steps]))
        )
        assert best.total.mean() < plain.total.mean()


def test_a_network_in_float32_is_asked_in_float32():
    from tests.conftest import toy_denoiser

    x = images(isotropic(), 2)[:, None].float().expand(2, 1, 2, 3)
    for solver in (SOLVERS["ddpm"](), SOLVERS["rk45"]()):
        assert likelihood.estimate(Sampler(toy_denoiser(), solver, uniform(3)), x, 0).values.isfinite().all()


def test_the_standard_error_by_hand():
    values = torch.tensor([1.0, 2.0, 4.0, 9.0], dtype=torch.float64)
    assert likelihood.Bits(values).se == pytest.approx(float(values.std()) / 2)


def test_every_image_is_dequantised_by_noise_of_its_own_as_wide_as_a_bin():
    x = torch.zeros(200, 2, 3).double()
    noise = likelihood.dequantised(x, 5, range(200)) / likelihood.BIN
    assert len({round(float(value), 12) for value in noise.flatten()}) == noise.numel()
    assert float(noise.abs().max()) <= 0.5
    assert float(noise.var()) == pytest.approx(1 / 12, rel=0.1)


def test_every_step_of_the_bound_has_noise_of_its_own():
    from tests.test_rk45 import Spy

    seen, schedule, x = [], Cosine(), torch.zeros(3, 2, 3).double()
    spy = Spy(isotropic())
    spy.register_forward_pre_hook(lambda module, inputs: seen.append(inputs))
    likelihood.bound(Sampler(spy, SOLVERS["ddpm"](), uniform(6)), x, 0, range(3))
    eps = torch.stack([x_t / schedule.level(t, x_t).sigma for x_t, t in seen])
    for one, two in itertools.combinations(eps.flatten(0, 1), 2):
        assert not torch.allclose(one, two, atol=0.1)


@pytest.mark.parametrize("within", [(0.0, 1.0), (-0.5, 3.5)])
def test_in_another_range_the_decoder_is_a_distribution_and_dequantisation_as_wide_as_its_bins(within):
    low, high = within
    levels = torch.linspace(low, high, 256, dtype=torch.float64)
    for middle, std in ((0.3, 0.2), (low, 0.01), (high + 1, 0.3)):
        total = likelihood.decoder(levels, torch.full_like(levels, middle), torch.tensor(std).double(), within)
        assert abs(float(total.exp().sum()) - 1) < 1e-12
    noise = likelihood.dequantised(torch.zeros(200, 6).double(), 0, range(200), within)
    assert 0.49 < float(noise.abs().max()) * 255 / (high - low) <= 0.5


def test_bits_do_not_depend_on_the_range_that_images_are_told_in():
    """The same pictures in [0, 1], where everything is half as wide: under the flow, exactly."""
    small = GaussianDenoiser(0.6 * torch.ones(2, 3).double(), 0.0125 * torch.ones(2, 3).double(), Cosine())
    x = images(isotropic(), 20)
    one = likelihood.estimate(flow(isotropic()), x, 0, probes=1)
    two = likelihood.estimate(flow(small), (x + 1) / 2, 0, probes=1, within=(0.0, 1.0))
    torch.testing.assert_close(one.values, two.values, rtol=0, atol=1e-4)


def test_each_batch_is_told_the_classes_of_its_own_images():
    from tests.test_condition import TwoBlobs

    labels = torch.tensor([0, 1, 1, 0, 0])
    x, known = TwoBlobs().means[labels], of_classes(labels)
    for solver in (SOLVERS["ddpm"](), SOLVERS["rk45"]()):
        sampler = Sampler(TwoBlobs(), solver, uniform(4))
        whole = likelihood.estimate(sampler, x, 7, condition=known)
        parts = likelihood.estimate(sampler, x, 7, batch=2, condition=known)
        torch.testing.assert_close(whole.values, parts.values, rtol=0, atol=1e-6)


def test_as_many_probes_are_thrown_as_were_asked_for(monkeypatch):
    thrown, real = [], likelihood._probes
    monkeypatch.setattr(likelihood, "_probes", lambda *words: thrown.append(words[3]) or real(*words))
    for probes in (1, 3):
        likelihood.estimate(flow(isotropic(), SOLVERS["rk45"]()), images(isotropic(), 2), 7, probes=probes)
    assert thrown == [1, 3]
