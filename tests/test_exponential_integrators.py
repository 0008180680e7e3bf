"""Exponential integrators are exact where what they expand is a polynomial in lambda of less than their order.

With u = lambda - lambda_t the exact step is alpha_s/alpha_t x - sigma_s e^h int_0^h e^-u eps(u) du for eps, and
sigma_s/sigma_t x + alpha_s e^-h int_0^h e^u x_0(u) du for x_0 (arXiv 2206.00927, eq. 3.4; 2211.01095, eq. 8).
"""

import math

import pytest
import torch

from diffcore.core.errors import UserError
from diffcore.denoisers.denoiser import Denoiser, per_sample
from diffcore.denoisers.meter import Meter, Metered
from diffcore.denoisers.node import Node, node, predict_at
from diffcore.denoisers.prediction import Prediction, from_eps, from_x0
from diffcore.noise.schedule import VE, Cosine
from diffcore.noise.trajectory import Trajectory, uniform
from diffcore.sampling.sampler import Sampler
from diffcore.sampling.solvers import adaptive
from diffcore.sampling.solvers.adaptive import DPM12, DPM23, Adaptive
from diffcore.sampling.solvers.dpm_solver import DPM2, DPM2M, DPM3, DPM3M, DPMpp2M, DPMpp2S, DPMpp3M, DPMpp3S, Multistep
from diffcore.sampling.solvers.rk45 import RK45
from diffcore.sampling.solvers.unipc import UniPC
from tests.conftest import gaussian, mixture, randn

pytestmark = pytest.mark.usefixtures("without_shape_checks")

BELIEF = (0.7, -0.4, 0.3)
"""The coefficients of 1, lambda and lambda^2."""
PREDICTS = pytest.mark.parametrize("predicts", ["eps", "x0"])


class Polynomial(Denoiser):
    """Believes in a polynomial of lambda, whatever x is."""

    def __init__(self, degree: int, predicts: str):
        super().__init__()
        self.schedule, self.grid, self.predicts = Cosine(), None, predicts
        self.coefficients = BELIEF[: degree + 1]

    def forward(self, x_t, t):
        lam, level = self.schedule.half_logsnr(t), self.schedule.level(t, x_t)
        value = sum(c * lam**k for k, c in enumerate(self.coefficients))[:, None].expand(x_t.shape).to(x_t.dtype)
        return (from_eps if self.predicts == "eps" else from_x0)(x_t, level, value)

    def exact(self, x: torch.Tensor, at: Node, to: Node) -> torch.Tensor:
        """By Gauss-Legendre quadrature of the integral, to rounding."""
        nodes, weights = (torch.tensor(part) for part in _gauss(24))
        h = to.lam - at.lam
        u, w = h * (nodes + 1) / 2, h * weights / 2
        value = sum(c * (at.lam + u) ** k for k, c in enumerate(self.coefficients))
        if self.predicts == "eps":
            return to.alpha / at.alpha * x - to.sigma * float((w * torch.exp(h - u) * value).sum())
        return to.sigma / at.sigma * x + to.alpha * float((w * torch.exp(u - h) * value).sum())


def _gauss(count: int):
    from numpy.polynomial.legendre import leggauss

    return leggauss(count)


def nodes(*lams: float) -> list[Node]:
    return [node(Cosine(), float(Cosine().time(torch.tensor([lam]).double()))) for lam in lams]


def beliefs(denoiser: Denoiser, x: torch.Tensor, *lams: float) -> list[tuple[Node, Prediction]]:
    """What was believed at earlier times, the latest first."""
    return [(at, predict_at(denoiser, x, at)) for at in nodes(*lams)]


def no_noise() -> torch.Tensor:
    raise AssertionError("a deterministic solver drew noise")


CASES: list[tuple[Multistep, str, int]] = [
    (DPMpp2M(solver_type="heun"), "x0", 1),
    (DPM2M(solver_type="heun"), "eps", 1),
    (DPMpp3M(corrected=True), "x0", 2),
    (DPM3M(corrected=True), "eps", 2),
]


@pytest.mark.parametrize(("solver", "predicts", "degree"), CASES)
def test_a_multistep_step_is_exact_on_polynomials(solver, predicts, degree):
    denoiser, x = Polynomial(degree, predicts), randn(3, 2)
    known, (to,) = beliefs(denoiser, x, 0.3, -0.2, -0.9)[: degree + 1], nodes(0.9)
    found = solver._step(x, to, known, no_noise)
    torch.testing.assert_close(found, denoiser.exact(x, known[0][0], to), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", [DPMpp3M, DPM3M])
def test_published_third_order_misses_half_of_the_second_difference(kind):
    """Why `corrected` exists: without it the step is off by what that half amounts to."""
    predicts, x = kind.predicts, randn(3, 2)
    denoiser, (to,) = Polynomial(2, predicts), nodes(0.9)
    known = beliefs(denoiser, x, 0.3, -0.2, -0.9)
    h = to.lam - known[0][0].lam
    step, scale = (h, to.sigma) if predicts == "eps" else (-h, to.alpha)
    half = scale * ((math.expm1(step) / step - 1) / step - 0.5) * BELIEF[2] * h**2
    missed = kind()._step(x, to, known, no_noise) - denoiser.exact(x, known[0][0], to)
    torch.testing.assert_close(missed, torch.full_like(x, half), rtol=0, atol=1e-12)


@pytest.mark.parametrize("spacing", ["half_logsnr", "time"])
@pytest.mark.parametrize(
    ("kind", "solver_type", "degree"),
    [
        *((kind, "heun", 1) for kind in (DPM2, DPMpp2S)),
        *((kind, "midpoint", 1) for kind in (DPM3, DPMpp3S)),
        *((kind, "heun", 2) for kind in (DPM3, DPMpp3S)),
    ],
)
def test_a_single_step_is_exact_on_polynomials(kind, solver_type, degree, spacing):
    denoiser, x, (at, to) = Polynomial(degree, kind.predicts), randn(3, 2), nodes(-0.2, 0.9)
    found = Sampler(denoiser, kind(solver_type, spacing), Trajectory((at.t, to.t))).sample(x)
    torch.testing.assert_close(found, denoiser.exact(x, at, to), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", [DPM2, DPM3])
def test_looks_lie_at_equal_parts_of_the_time_where_asked(kind):
    steps = Trajectory((0.8, 0.5, 0.2))
    found = Sampler(gaussian(), kind(spacing="time"), steps).evaluation_times
    expected = [t - k * 0.3 / kind.calls for t in (0.8, 0.5) for k in range(kind.calls)]
    assert found == pytest.approx(expected)


@PREDICTS
@pytest.mark.parametrize("uses", [1, 2, 3])
@pytest.mark.parametrize("variant", ["bh1", "bh2", "vary_coeff"])
def test_unipc_is_exact_on_polynomials(predicts, uses, variant):
    """The predictor of degree uses - 1, the corrector of one more; where B(h) takes 1/2 for a weight, of one less."""
    x, lams, (to,) = randn(3, 2), (0.3, -0.2, -0.9), nodes(0.9)
    solver = UniPC(uses=uses, variant=variant, predicts=predicts)
    halved = variant != "vary_coeff"
    for degree, corrects in ((uses - 1 - (halved and uses == 2), False), (uses - (halved and uses == 1), True)):
        denoiser = Polynomial(min(degree, 2), predicts)
        known = beliefs(denoiser, x, *lams)[:uses]
        found = solver._predict(known[0], known, to)
        if corrects:
            found = solver._correct(known[0], known, to, predict_at(denoiser, found, to))
        torch.testing.assert_close(found, denoiser.exact(x, known[0][0], to), rtol=0, atol=1e-11)


@PREDICTS
@pytest.mark.parametrize(("kind", "degree"), [(DPM12, 0), (DPM23, 1)])
def test_an_adaptive_step_is_exact_on_polynomials(kind, degree, predicts):
    """Of the two it makes, the higher on degree k - 1 but for the 1/2 of order 2; both on a constant."""
    x, (at, to) = randn(3, 2), nodes(-0.2, 0.9)
    lam, end = (torch.full((3,), m.lam).double() for m in (at, to))
    for known in {0, degree}:
        denoiser = Polynomial(known, predicts)
        lower, higher = kind(predicts=predicts)._step(denoiser, x, lam, end)
        torch.testing.assert_close(higher, denoiser.exact(x, at, to), rtol=0, atol=1e-11)
        if known == 0:
            torch.testing.assert_close(lower, higher, rtol=0, atol=1e-11)


def interior() -> Trajectory:
    return Trajectory(tuple(Cosine().time(torch.tensor([-2.5, 3.0]).double()).tolist()))


@PREDICTS
@pytest.mark.parametrize("kind", [DPM12, DPM23])
def test_a_tighter_tolerance_is_nearer_the_flow_and_costs_more(kind, predicts):
    start = 0.6 * node(Cosine(), interior().times[0]).alpha * randn(8, 2) + randn(8, 2, seed=1)
    exact, found = Sampler(mixture(), RK45(1e-9, 1e-9), interior()).sample(start), []
    for tolerance in (1e-2, 1e-3, 1e-4):
        meter, solver = Meter(), kind(rtol=tolerance, atol=tolerance / 6, predicts=predicts)
        ended = Sampler(Metered(mixture(), meter), solver, interior()).sample(start)
        found.append((float((ended - exact).square().mean().sqrt()), meter.settle()))
    errors, calls = zip(*found)
    assert errors[0] > 3 * errors[1] > 9 * errors[2]
    assert errors[2] < 1e-4
    assert calls[0] < calls[1] < calls[2]


@PREDICTS
@pytest.mark.parametrize("kind", [DPM12, DPM23])
def test_a_sample_takes_steps_of_its_own(kind, predicts):
    """An easy one beside a hard one pays for itself alone, and ends where it ends alone."""
    solver, x = kind(predicts=predicts), torch.cat([3 * randn(1, 2), 0.01 * randn(1, 2, seed=1)])

    def run(rows: torch.Tensor) -> tuple[torch.Tensor, float]:
        meter = Meter()
        return Sampler(Metered(mixture(), meter), solver, interior()).sample(rows), meter.settle()

    together, calls = run(x)
    alone = [run(x[k : k + 1]) for k in range(2)]
    torch.testing.assert_close(together, torch.cat([ended for ended, _ in alone]), rtol=0, atol=1e-12)
    assert calls == sum(spent for _, spent in alone)
    assert alone[0][1] != alone[1][1]


@PREDICTS
@pytest.mark.parametrize("kind", [DPM12, DPM23])
def test_a_refused_step_is_tried_again_from_where_it_began(kind, predicts):
    """With so large a first step that it must be refused, the result is as near as with a small one."""
    start = randn(4, 2, 3)
    exact = gaussian().flow(start, *(per_sample(interior().times[k], start) for k in (0, -1)))
    refusing = type("Refusing", (kind,), {"FIRST": 5.0})(rtol=1e-3, atol=1e-4, predicts=predicts)
    tries = []
    step = refusing._step
    object.__setattr__(refusing, "_step", lambda d, x, lam, to: tries.append((lam, to)) or step(d, x, lam, to))
    ended = Sampler(gaussian(), refusing, interior()).sample(start)
    assert len(tries) > 1
    torch.testing.assert_close(tries[1][0], tries[0][0])
    torch.testing.assert_close(ended, exact, rtol=0, atol=5e-3)


@pytest.mark.parametrize("kind", [DPM12, DPM23])
def test_ends_without_a_finite_lambda_are_one_ddim_step_each(kind):
    """The calls are in the middle: one at t = 1, one at the last finite time, the rest between."""
    seen: list[float] = []

    class Spy(Denoiser):
        def __init__(self):
            super().__init__()
            self.schedule, self.grid, self.inner = Cosine(), None, gaussian()

        def forward(self, x_t, t):
            seen.extend(t.tolist())
            return self.inner(x_t, t)

    Sampler(Spy(), kind(), uniform(4)).sample(randn(1, 2, 3))
    ratios = torch.tan(math.pi / 2 * torch.tensor(seen, dtype=torch.float64))
    assert seen[0] == 1.0
    assert float(ratios[1]) == pytest.approx(80.0)
    assert float(ratios[-1]) == pytest.approx(0.002)
    assert seen[-1] > 0


class Nan(Denoiser):
    """For samples above `least` at the start."""

    def __init__(self, least: float):
        super().__init__()
        self.schedule, self.grid, self.least = Cosine(), None, least

    def forward(self, x_t, t):
        return Prediction(torch.where(x_t > self.least, math.nan, x_t), x_t, self.schedule.level(t, x_t))


@pytest.mark.parametrize("least", [-9.0, 0.0])
@pytest.mark.parametrize("kind", [DPM12, DPM23])
def test_an_adaptive_solver_stops_at_numbers_that_are_not_finite(kind, least):
    """Of all samples, or of one among others."""
    with pytest.raises(UserError, match="not finite"):
        Sampler(Nan(least), kind(), interior()).sample(torch.tensor([[-1.0], [1.0]]).double())


@pytest.mark.parametrize("option", ["rtol", "atol"])
def test_a_tolerance_is_positive(option):
    with pytest.raises(ValueError, match="positive"):
        Adaptive(**{option: 0.0})


def test_the_error_is_measured_as_the_paper_says():
    """rms(difference / max(atol, rtol max(|lower|, |before|))) for each sample."""
    difference, lower, before = randn(2, 3), randn(2, 3, seed=1), randn(2, 3, seed=2)
    solver = DPM12(rtol=0.5, atol=0.4)
    allowed = torch.maximum(0.5 * torch.maximum(lower.abs(), before.abs()), torch.tensor(0.4).double())
    expected = (difference / allowed).square().mean(1).sqrt()
    torch.testing.assert_close(solver._size(difference, lower, before), expected)


@PREDICTS
@pytest.mark.parametrize(("kind", "order"), [(DPM12, 2), (DPM23, 3)])
@pytest.mark.parametrize("known", [Cosine(), VE(0.05, 20.0)], ids=["cosine", "ve"])
def test_steps_are_chosen_as_the_paper_says(kind, order, predicts, known):
    """Appendix C, algorithm 1: what is allowed is relative to the lower result of the step that was accepted before; the
    next step is 0.9 h E^(-1/k), whether this one is accepted or not. One sample at a time, the steps themselves as above."""
    path = Trajectory(tuple(known.time(torch.tensor([-2.5, 2.5]).double()).tolist()))
    solver, model = kind(rtol=0.02, atol=1e-4, predicts=predicts), mixture(known)
    start = randn(3, 2) * torch.hypot(*(f(torch.tensor([path.times[0]])) for f in (known.alpha, known.sigma)))
    ends, refused = [], 0
    for x in start[:, None]:
        before, h = x, torch.tensor([0.05]).double()
        lam, end = (known.half_logsnr(torch.tensor([t]).double()) for t in path.times)
        while lam < end - 1e-9:
            h = torch.minimum(h, end - lam)
            lower, higher = solver._step(model, x, lam, lam + h)
            allowed = torch.maximum(0.02 * torch.maximum(lower.abs(), before.abs()), torch.tensor(1e-4).double())
            error = ((higher - lower) / allowed).square().mean().sqrt()
            if error <= 1:
                x, before, lam = higher, lower, lam + h
            refused += int(error > 1)
            h = 0.9 * h * error ** (-1 / order)
        ends.append(x)
    assert refused
    torch.testing.assert_close(Sampler(model, solver, path).sample(start), torch.cat(ends), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("kind", "name"), [(DPM12, "dpm_solver_12"), (DPM23, "dpm_solver_23")])
def test_an_adaptive_solver_that_does_not_arrive_gives_up(kind, name, monkeypatch):
    monkeypatch.setattr(adaptive, "MOST_STEPS", 5)
    with pytest.raises(UserError, match=f"{name} took 5 steps without arriving; raise rtol"):
        Sampler(mixture(), kind(rtol=1e-6, atol=1e-9), interior()).sample(randn(2, 2))
