"""The process behind a schedule against closed forms, and what it must do to the marginals."""

import math

import pytest
import torch

from diffcore.denoisers.denoiser import per_sample
from diffcore.noise.process import rates, transition
from diffcore.noise.schedule import EDM, VE, Cosine, Discrete, Flow, Linear, SubVP
from diffcore.noise.trajectory import Trajectory
from diffcore.sampling.drift import flow_drift, reverse_drift
from diffcore.sampling.sampler import Sampler
from diffcore.sampling.solvers import SOLVERS
from diffcore.sampling.solvers.adaptive import Adaptive
from tests.conftest import DDPM_BETAS, gaussian, make_schedule, make_solver, mixture, randn

NODES = torch.tensor([1, 2, 20, 500, 999, 1000], dtype=torch.float64) / 1000
"""Of the discrete schedule, where its angle has a kink, and where every sampler of an adopted teacher looks."""

# none of these among them
TIMES = torch.tensor([0.02345, 0.20345, 0.50015, 0.77775, 0.99875], dtype=torch.float64)
EXACT = {"rtol": 1e-10, "atol": 1e-12}


def beta(t):
    return 0.1 + 19.9 * t


def integral(t):
    """Of beta from 0 to t."""
    return 0.1 * t + 19.9 * t**2 / 2


def ve_rate(t):
    """d sigma^2/dt of the variance-exploding schedule (arXiv 2011.13456, eq. 30)."""
    return 2 * math.log(5000) * (0.01 * 5000**t) ** 2


CLOSED = [
    (Linear(), lambda t: -beta(t) / 2, beta),  # eq. 32
    (Flow(), lambda t: -1 / (1 - t), lambda t: 2 * t / (1 - t)),
    (EDM(rho=1.0), lambda t: 0 * t, lambda t: 2 * 79.998 * (0.002 + 79.998 * t)),
    (SubVP(), lambda t: -beta(t) / 2, lambda t: beta(t) * (1 - (-2 * integral(t)).exp())),  # eq. 29
    (VE(0.01, 50.0), torch.zeros_like, ve_rate),
    (Cosine(), lambda t: -math.pi / 2 * (math.pi / 2 * t).tan(), lambda t: math.pi * (math.pi / 2 * t).tan()),
]


@pytest.mark.parametrize(("known", "f", "g2"), CLOSED)
def test_rates_in_closed_form(known, f, g2):
    found = rates(known, TIMES)
    torch.testing.assert_close(found.f, f(TIMES), **EXACT)
    torch.testing.assert_close(found.g2, g2(TIMES), **EXACT)


def test_ddpms_betas_are_the_rates_of_its_schedule():
    """Over one of N steps, beta = g^2/N = -2 f/N but for terms of order beta^2 and for how fast beta changes."""
    n = torch.arange(100, 1000, 50)
    found, betas = rates(Discrete(DDPM_BETAS), (n - 0.5) / 1000), torch.tensor(DDPM_BETAS, dtype=torch.float64)[n - 1]
    torch.testing.assert_close(found.g2 / 1000, betas, rtol=0.015, atol=0)
    torch.testing.assert_close(found.g2, -2 * found.f, **EXACT)


@pytest.mark.parametrize("miss", [0.0, -1e-13, 1e-13])
def test_at_a_node_the_rates_are_those_of_the_step_that_ends_there(miss):
    """The angle is linear in a step: f = -tan(phi) phi' and g^2 = 2 tan(phi) phi'. t = n/N may miss its n by a rounding."""
    schedule, n = Discrete(DDPM_BETAS), torch.tensor([1, 2, 20, 500, 999, 1000])
    bar = torch.cat([torch.ones(1).double(), (1 - torch.tensor(DDPM_BETAS, dtype=torch.float64)).cumprod(0)])
    phi = torch.atan2((1 - bar).sqrt(), bar.sqrt())
    slope = 1000 * (phi[n] - phi[n - 1])
    found = rates(schedule, n.double() / 1000 + miss)
    torch.testing.assert_close(found.f, -phi[n].tan() * slope, rtol=1e-9, atol=0)
    torch.testing.assert_close(found.g2, 2 * phi[n].tan() * slope, rtol=1e-9, atol=0)


def test_outside_of_its_nodes_the_discrete_schedules_end_steps_go_on():
    schedule, h = Discrete((0.1, 0.2, 0.3)), 0.05
    times = ([0.0, h, 1 - h, 1.0], [-h, 1 + h])
    inside, outside = (schedule.angle(torch.tensor(t, dtype=torch.float64)) for t in times)
    torch.testing.assert_close(outside[1] - inside[3], inside[3] - inside[2], rtol=0, atol=1e-12)
    found, ends = (rates(schedule, torch.tensor(t, dtype=torch.float64)) for t in ([0.0, 1 + h], [h, 1 - h]))
    slope = (inside[[1, 3]] - inside[[0, 2]]) / h
    torch.testing.assert_close(found.f, -torch.stack([inside[0], outside[1]]).tan() * slope, **EXACT)
    torch.testing.assert_close(ends.f, -inside[1:3].tan() * slope, **EXACT)


@pytest.mark.parametrize("size", [1e-6, 1e-7])
def test_at_every_schedules_times_the_rates_are_a_short_transition_from_below(schedule, size):
    """Also at the nodes, for the reverse of the step that ends there is what a sampler takes."""
    t = (
        torch.cat([NODES[:-1], TIMES]) if schedule in (Cosine(), Flow()) else torch.cat([NODES, TIMES])
    )  # whose f is infinite at 1
    (scale, variance), found = transition(schedule, t - size, t), rates(schedule, t)
    torch.testing.assert_close((scale - 1) / size, found.f, rtol=2e3 * size, atol=1e-6)
    torch.testing.assert_close(variance / size, found.g2, rtol=2e3 * size, atol=1e-6)


def test_rates_of_a_batch_are_those_of_each_alone_and_need_no_gradients(schedule):
    with torch.inference_mode():
        whole, parts = rates(schedule, TIMES), [rates(schedule, t[None]) for t in TIMES]
    torch.testing.assert_close(whole.f, torch.cat([part.f for part in parts]), rtol=0, atol=0)
    torch.testing.assert_close(whole.g2, torch.cat([part.g2 for part in parts]), rtol=0, atol=0)


TRANSITIONS = [
    (
        Linear(),
        lambda s, t: (-(integral(t) - integral(s)) / 2).exp(),
        lambda s, t: 1 - (integral(s) - integral(t)).exp(),
    ),
    (
        SubVP(),
        lambda s, t: (-(integral(t) - integral(s)) / 2).exp(),
        # the integral of exp(B(u) - B(t)) g^2(u) from s to t
        lambda s, t: (
            1 + (-2 * integral(t)).exp() - (integral(s) - integral(t)).exp() - (-integral(s) - integral(t)).exp()
        ),
    ),
    (Flow(), lambda s, t: (1 - t) / (1 - s), lambda s, t: t**2 - ((1 - t) / (1 - s) * s) ** 2),
    (EDM(rho=1.0), lambda s, t: torch.ones_like(t), lambda s, t: 79.998 * (t - s) * (0.004 + 79.998 * (t + s))),
    (VE(0.01, 50.0), lambda s, t: torch.ones_like(t), lambda s, t: 1e-4 * (5000 ** (2 * t) - 5000 ** (2 * s))),
]


@pytest.mark.parametrize(("known", "scale", "variance"), TRANSITIONS)
def test_transition_in_closed_form(known, scale, variance):
    s, t = TIMES[:-1], TIMES[1:]
    found = transition(known, s, t)
    torch.testing.assert_close(found[0], scale(s, t), **EXACT)
    torch.testing.assert_close(found[1], variance(s, t), **EXACT)


def test_transitions_compose_and_begin_at_the_data(schedule):
    r, s, t = TIMES[:-2], TIMES[1:-1], TIMES[2:]
    first, second, both = transition(schedule, r, s), transition(schedule, s, t), transition(schedule, r, t)
    torch.testing.assert_close(both[0], first[0] * second[0], **EXACT)
    torch.testing.assert_close(both[1], second[0] ** 2 * first[1] + second[1], **EXACT)
    scale, variance = transition(schedule, torch.zeros_like(t), t)
    at_zero = schedule.sigma(torch.zeros_like(t)) ** 2  # not 0 where the variance explodes
    torch.testing.assert_close(scale, schedule.alpha(t), **EXACT)
    torch.testing.assert_close(variance, schedule.sigma(t) ** 2 - schedule.alpha(t) ** 2 * at_zero, **EXACT)


def test_a_short_transition_is_the_rates(schedule):
    h = 1e-6
    (scale, variance), found = transition(schedule, TIMES - h, TIMES + h), rates(schedule, TIMES)
    torch.testing.assert_close((scale - 1) / (2 * h), found.f, rtol=2e-3, atol=1e-8)
    torch.testing.assert_close(variance / (2 * h), found.g2, rtol=2e-3, atol=1e-8)


def slope(function, t, h: float = 1e-6):
    return (function(t + h) - function(t - h)) / (2 * h)


def test_flow_drift_is_the_exact_flows_time_derivative(schedule):
    denoiser, x = gaussian(schedule), 3 * randn(len(TIMES), 2, 3)
    expected = slope(lambda s: denoiser.flow(x, TIMES, s), TIMES)
    torch.testing.assert_close(flow_drift(denoiser, x, TIMES), expected, rtol=1e-5, atol=1e-5)


def test_the_flow_carries_a_mixtures_density(schedule):
    """Continuity: d log p/dt + drift . score + div drift = 0, with the density written out here."""
    denoiser, x = mixture(schedule), randn(len(TIMES), 2).requires_grad_(True)

    def log_density(t):
        level = schedule.level(t, x)
        total = (level.alpha**2 * denoiser.variances[0] + level.sigma**2).unsqueeze(1)
        away = x.unsqueeze(1) - level.alpha.unsqueeze(1) * denoiser.means
        parts = -0.5 * (away**2 / total + total.log()).sum(2)
        return torch.logsumexp(parts + denoiser.weights.log(), 1)

    drift = flow_drift(denoiser, x, TIMES)
    divergence = sum(torch.autograd.grad(drift[:, i].sum(), x, retain_graph=True)[0][:, i] for i in range(2))
    (score,) = torch.autograd.grad(log_density(TIMES).sum(), x)
    change = slope(log_density, TIMES)
    torch.testing.assert_close(change + (drift * score).sum(1) + divergence, torch.zeros(5).double(), rtol=0, atol=1e-4)


def test_the_reverse_sde_keeps_the_marginals(schedule):
    """On Gaussian data its drift is A x + b, and mean and variance run as dm/dt = A m + b and dP/dt = 2 A P - g^2."""
    denoiser, zero = gaussian(schedule), torch.zeros(len(TIMES), 2, 3).double()

    def mean(t):
        return schedule.level(t, zero).alpha * denoiser.mean

    def variance(t):
        level = schedule.level(t, zero)
        return level.alpha**2 * denoiser.variance + level.sigma**2

    b = reverse_drift(denoiser, zero, TIMES)
    a = reverse_drift(denoiser, zero + 1, TIMES) - b
    g2 = rates(schedule, TIMES).g2[:, None, None]
    torch.testing.assert_close(a * mean(TIMES) + b, slope(mean, TIMES), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(2 * a * variance(TIMES) - g2, slope(variance, TIMES), rtol=1e-5, atol=1e-5)


# but those whose tolerance is in the unit of x
DETERMINISTIC = [
    name for name, kind in SOLVERS.items() if not make_solver(name).stochastic and not issubclass(kind, Adaptive)
]


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_a_deterministic_solvers_answer_is_the_same_in_every_scaling(name):
    """At the same sigma/alpha the processes differ only in the unit of x, so x/alpha comes out the same."""
    lam, bar = torch.linspace(-2.5, 3.0, 9, dtype=torch.float64), 10 * randn(4, 2)

    def answer(word):
        schedule = make_schedule(word)
        path = Trajectory(tuple(schedule.time(lam).tolist()))
        start, end = (schedule.alpha(per_sample(path.times[k], bar))[:, None] for k in (0, -1))
        return Sampler(mixture(schedule), make_solver(name), path).sample(start * bar) / end

    known = answer("cosine")
    for word in ("linear", "subvp", "discrete", "ve"):
        torch.testing.assert_close(answer(word), known, rtol=1e-8, atol=1e-8)
