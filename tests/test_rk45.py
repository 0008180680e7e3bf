"""The adaptive integrator against closed forms and scipy's, sample by sample."""

import itertools
import math

import numpy as np
import pytest
import torch

from diffcore.core.errors import UserError
from diffcore.denoisers.denoiser import Denoiser, per_sample
from diffcore.denoisers.exact import GaussianDenoiser
from diffcore.noise.schedule import Cosine, Discrete
from diffcore.noise.trajectory import Trajectory, karras, uniform
from diffcore.sampling import ode
from diffcore.sampling.drift import flow_drift
from diffcore.sampling.ode import ERROR, A, C, integrate
from diffcore.sampling.sampler import Sampler
from diffcore.sampling.solvers.rk45 import RK45
from tests.conftest import gaussian, make_schedule, mixture, randn

pytestmark = pytest.mark.usefixtures("without_shape_checks")

WHOLE = Trajectory((1.0, 0.0))


class Spy(Denoiser):
    """Keeps the times at which each sample was asked about, and how many samples were asked in all."""

    def __init__(self, inner: Denoiser, rows=None, seen=None):
        super().__init__()
        self.inner, self.schedule, self.grid = inner, inner.schedule, None
        self.rows, self.seen = rows, {} if seen is None else seen

    def forward(self, x_t, t):
        for row, time in zip(range(len(t)) if self.rows is None else self.rows, t.tolist()):
            self.seen.setdefault(int(row), []).append(time)
        return self.inner(x_t, t)

    def select(self, rows):
        return Spy(self.inner, rows, self.seen)


# the integrator


def test_the_table_meets_the_conditions_of_its_order():
    """Rows sum to their places; sums of b c^(k-1) are 1/k to k = 5, and the error's weights see nothing before k = 5."""
    for place, row in zip(C, A):
        assert sum(row) == pytest.approx(place, abs=1e-14)
    for k in range(1, 6):
        assert sum(b * c ** (k - 1) for b, c in zip(A[6], C)) == pytest.approx(1 / k, abs=1e-14)
    for k in range(1, 5):
        assert sum(e * c ** (k - 1) for e, c in zip(ERROR, C)) == pytest.approx(0, abs=1e-14)
    assert abs(sum(e * c**4 for e, c in zip(ERROR, C))) > 1e-4


@pytest.mark.parametrize(("start", "end"), [(0.0, 2.0), (2.0, 0.0), (-1.0, 0.5)])
def test_a_polynomial_of_fifth_degree_is_exact(start, end):
    """Whatever the tolerance: y' = 5 u^4 - 3 u^2, and each sample a multiple of it."""
    times = torch.tensor([[1.0], [-3.0], [0.0]]).double()
    found = integrate(
        lambda y, u, rows: times[rows] * (5 * u**4 - 3 * u**2)[:, None], 7 + times, start, end, 1e-3, 1e-3
    )
    expected = 7 + times * (1 + (end**5 - end**3) - (start**5 - start**3))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_a_nonlinear_problem_within_its_tolerance():
    """y' = y cos u has y = y0 exp(sin u), and z' = -z^2 has z0/(1 + z0 u); the two as samples of one batch."""
    y0 = torch.tensor([[2.0, 0.5], [1.0, 3.0]]).double()

    def rate(y, u, rows):
        return torch.where(rows[:, None] == 0, y * u.cos()[:, None], -(y**2))

    exact = torch.stack([y0[0] * math.exp(math.sin(4)), y0[1] / (1 + 4 * y0[1])])
    errors = []
    for tolerance in (1e-4, 1e-6, 1e-8, 1e-10):
        found = integrate(rate, y0, 0.0, 4.0, tolerance, tolerance)
        errors.append(float((found - exact).abs().max()))
        assert errors[-1] < 20 * tolerance
    assert all(b < a / 20 for a, b in itertools.pairwise(errors)), errors


def test_a_step_that_fails_is_made_again():
    """y' = -200 (y - cos u): its slopes grow wherever a step is too long, and no result is made of a refused one."""
    asked, stiff = [], 200.0

    def rate(y, u, rows):
        asked.append(float(u))
        return -stiff * (y - u.cos()[:, None])

    found = integrate(rate, torch.zeros(1, 1).double(), 0.0, 2.0, 1e-6, 1e-6)
    settled = (stiff**2 * math.cos(2) + stiff * math.sin(2)) / (stiff**2 + 1)
    assert float(found) == pytest.approx(settled, abs=1e-5)
    assert any(b < a for a, b in itertools.pairwise(asked[2::6]))  # of each step the first look: some go back


@pytest.mark.parametrize("end", [k / 7 for k in range(1, 13)])
@pytest.mark.parametrize("speed", [-1.0, 0.0])
def test_the_places_asked_for_reach_the_end_and_never_pass_it(end, speed):
    """Exactly: a schedule may be singular beside it."""
    seen = []

    def rate(y, u, rows):
        seen.append(u.clone())
        return speed * y

    integrate(rate, torch.ones(2, 1).double(), 0.1, end, 1e-6, 1e-6)
    places = torch.cat(seen)
    assert places.max() == max(0.1, end)
    assert places.min() == min(0.1, end)
    assert (seen[-1] == end).all()


def test_it_gives_up(monkeypatch):
    monkeypatch.setattr(ode, "MOST_STEPS", 20)
    with pytest.raises(UserError, match="20 steps without arriving"):
        integrate(lambda y, u, rows: -y, torch.ones(1, 1).double(), 0.0, 1.0, 1e-14, 1e-14)


@pytest.mark.parametrize("broken", [(0, 1), (0,), (1,)])
def test_a_rate_that_is_not_finite_is_told(broken):
    """Of one sample among others too, and at once."""
    factor, calls = torch.tensor([[torch.nan if k in broken else 1.0] for k in range(2)], dtype=torch.float64), []
    with pytest.raises(UserError, match="not finite"):
        integrate(
            lambda y, u, rows: calls.append(u) or y * factor[rows], torch.ones(2, 1).double(), 0.0, 1.0, 1e-3, 1e-3
        )
    assert len(calls) == 8


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_solution_that_stands_still_takes_one_step(sign):
    seen = []
    found = integrate(lambda y, u, rows: seen.append(u) or 0 * y, torch.ones(2, 3).double(), 0.0, sign, 1e-3, 1e-3)
    assert (found == 1).all()
    assert len(seen) == 8  # the first slope, a look for the step's length, and six


# the solver


@pytest.mark.parametrize("word", ["cosine", "linear", "subvp", "ve"])
def test_the_exact_gaussian_flow_as_the_tolerance_tightens(word):
    schedule = make_schedule(word)
    denoiser, errors = gaussian(schedule), []
    start = randn(4, 2, 3) * torch.hypot(*(f(torch.ones(1)) for f in (schedule.alpha, schedule.sigma)))
    exact = denoiser.flow(start, per_sample(1.0, start), per_sample(0.0, start))
    for tolerance in (1e-3, 1e-5, 1e-7, 1e-9):
        found = Sampler(denoiser, RK45(tolerance, tolerance), WHOLE).sample(start)
        errors.append(float((found - exact).abs().max()))
        assert errors[-1] < 40 * tolerance
    assert all(b < a / 20 for a, b in itertools.pairwise(errors)), errors


def test_ddpms_betas_from_end_to_end():
    """Their angle has a kink at each of the thousand steps, but v of the angle has none."""
    denoiser, start = gaussian(make_schedule("discrete")), randn(3, 2, 3)
    exact = denoiser.flow(start, per_sample(1.0, start), per_sample(0.0, start))
    spy = Spy(denoiser)
    torch.testing.assert_close(Sampler(spy, RK45(1e-8, 1e-8), WHOLE).sample(start), exact, rtol=0, atol=1e-7)
    assert len(spy.seen[0]) < 1000


def test_cosine_from_pure_noise_to_the_data():
    """alpha(1) = 0 and sigma(0) = 0 exactly, and these very times are asked for."""
    spy, start = Spy(gaussian()), randn(4, 2, 3)
    found = Sampler(spy, RK45(1e-9, 1e-9), WHOLE).sample(start)
    torch.testing.assert_close(found, spy.inner.mean + spy.inner.variance.sqrt() * start, rtol=0, atol=1e-8)
    for times in spy.seen.values():
        assert times[0] == 1.0
        assert times[-1] == 0.0
        assert all(0 <= t <= 1 for t in times)


def test_a_zero_terminal_snr():
    """A discrete schedule may end at alpha = 0 as well."""
    denoiser, start = gaussian(Discrete((0.1, 0.3, 0.7, 1.0))), randn(4, 2, 3)
    found = Sampler(denoiser, RK45(1e-9, 1e-9), WHOLE).sample(start)
    torch.testing.assert_close(found, denoiser.mean + denoiser.variance.sqrt() * start, rtol=0, atol=1e-7)


def test_data_of_no_variance():
    """All the flow ends at one point, which is reached to the tolerance."""
    denoiser = GaussianDenoiser(torch.full((3,), 0.4).double(), torch.zeros(3).double(), Cosine())
    found = Sampler(denoiser, RK45(1e-7, 1e-7), Trajectory((1.0, 1e-3))).sample(randn(4, 3))
    exact = denoiser.flow(randn(4, 3), per_sample(1.0, found), per_sample(1e-3, found))
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-6)


def in_time(denoiser: Denoiser, x: np.ndarray, path: Trajectory, method: str, tolerance: float):
    """scipy's solution for one sample, of dx/dt = f x - g^2/2 score."""
    solve_ivp = pytest.importorskip("scipy.integrate").solve_ivp

    def rate(t, y):
        return flow_drift(denoiser, torch.from_numpy(y)[None], torch.tensor([t]).double())[0].numpy()

    ends = (path.times[0], path.times[-1])
    return solve_ivp(rate, ends, x, method=method, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("word", ["cosine", "ve"])
def test_the_mixtures_flow_is_scipys(word):
    """Another method, in t and not in the angle, one sample at a time; and from both sides of the parting."""
    schedule = make_schedule(word)
    denoiser, path = mixture(schedule), Trajectory((0.9, 0.2))
    start = randn(4, 2, seed=4) * float(
        torch.hypot(*(f(torch.tensor([0.9])) for f in (schedule.alpha, schedule.sigma)))
    )
    expected = torch.stack(
        [torch.from_numpy(in_time(denoiser, x.numpy(), path, "DOP853", 1e-9).y[:, -1]) for x in start]
    )
    found = Sampler(denoiser, RK45(1e-8, 1e-8), path).sample(start)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    assert len({float(x) > 0 for x in found[:, 0]}) == 2


@pytest.mark.parametrize(("rtol", "atol"), [(1e-3, 1e-3), (1e-6, 1e-6), (1e-7, 1e-2), (1e-2, 1e-7)])
def test_each_samples_steps_are_those_of_scipys_method_for_it_alone(rtol, atol):
    """As many calls, and the same answer, of the flow in the angle."""
    solve_ivp = pytest.importorskip("scipy.integrate").solve_ivp
    spy, start = Spy(mixture()), randn(8, 2, seed=3)
    found = Sampler(spy, RK45(rtol=rtol, atol=atol), WHOLE).sample(start)

    def rate(phi, y):
        t = torch.tensor([phi * 2 / math.pi]).double()
        return spy.inner(torch.from_numpy(y)[None], t).v[0].numpy()

    theirs = [solve_ivp(rate, (math.pi / 2, 0.0), x.numpy(), rtol=rtol, atol=atol) for x in start]
    assert [len(spy.seen[i]) for i in range(8)] == [solution.nfev for solution in theirs]
    expected = torch.stack([torch.from_numpy(solution.y[:, -1]) for solution in theirs])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-8)


def test_samples_of_mixed_difficulty_do_not_touch_each_other():
    """Near the line that parts the blobs steps must be short: those samples get more calls, the others no more than alone."""
    denoiser, solver = mixture(), RK45(1e-7, 1e-7)
    start = torch.tensor([[3.0, 0.0], [-0.5, 0.0], [-0.53, 0.1], [0.0, -4.0], [0.5, 0.5]]).double()
    spy = Spy(denoiser)
    whole = Sampler(spy, solver, WHOLE).sample(start)
    for i in range(len(start)):
        alone = Spy(denoiser)
        found = Sampler(alone, solver, WHOLE).sample(start[i : i + 1])
        torch.testing.assert_close(whole[i : i + 1], found, rtol=0, atol=1e-12)
        assert len(alone.seen[0]) == len(spy.seen[i])
    calls = [len(spy.seen[i]) for i in range(len(start))]
    assert max(calls) > 1.2 * min(calls), calls


def test_the_times_between_are_not_needed():
    start = randn(3, 2)
    found = [
        Sampler(mixture(), RK45(), path).sample(start) for path in (WHOLE, uniform(7), Trajectory((1.0, 0.3, 0.0)))
    ]
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=0, atol=0)


def test_two_halves_make_a_whole():
    start, solver = randn(3, 2), RK45(1e-9, 1e-9)
    half = Sampler(mixture(), solver, Trajectory((1.0, 0.4))).sample(start)
    found = Sampler(mixture(), solver, Trajectory((0.4, 0.0))).sample(half)
    torch.testing.assert_close(found, Sampler(mixture(), solver, WHOLE).sample(start), rtol=0, atol=1e-7)


def test_single_precision_stays_single():
    start = randn(3, 2)
    found = Sampler(mixture(), RK45(1e-4, 1e-4), WHOLE).sample(start.float())
    assert found.dtype == torch.float32
    exact = Sampler(mixture(), RK45(1e-9, 1e-9), WHOLE).sample(start)
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=2e-3)


def test_karras_ends_where_every_other_does():
    start = randn(3, 2, 3)
    path = karras(5, Cosine())
    exact = gaussian().flow(start, per_sample(path.times[0], start), per_sample(0.0, start))
    torch.testing.assert_close(Sampler(gaussian(), RK45(1e-8, 1e-8), path).sample(start), exact, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("rtol", "atol"), [(0.0, 1e-3), (1e-3, 0.0), (-1.0, 1.0)])
def test_impossible_tolerances_are_refused(rtol, atol):
    with pytest.raises(ValueError, match="must be positive"):
        RK45(rtol, atol)
