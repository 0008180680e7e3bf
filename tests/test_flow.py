"""Rectified flow, u = eps - x_0 with alpha = 1 - t and sigma = t (arXiv 2209.03003), in the words of the angle."""

import pytest
import torch
from torch import Tensor

from diffcore.denoisers.denoiser import Denoiser, per_sample
from diffcore.denoisers.node import ddim_step, node
from diffcore.denoisers.prediction import Prediction, from_flow, from_v
from diffcore.noise.angle import Velocity, compose, hop
from diffcore.noise.schedule import SCHEDULES, Flow, Schedule, variance_preserving
from tests.conftest import gaussian, make_schedule, mixture, randn

SHIFTS = pytest.mark.parametrize("flow", [Flow(), Flow(3.0), Flow(0.5)], ids=["plain", "3", "half"])
TIMES = torch.tensor([0.0, 0.05, 0.3, 0.5, 0.8, 1.0], dtype=torch.float64)


def close(a: Tensor, b: Tensor, atol: float = 1e-12) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


@pytest.mark.parametrize("make", [gaussian, mixture])
@SHIFTS
def test_an_euler_step_of_the_flow_is_our_ddim_step(make, flow):
    """x_s = x_t + (sigma_s - sigma_t) u."""
    denoiser, shape = make(flow), (2, 3) if make is gaussian else (2,)
    for t, s in ((1.0, 0.75), (0.5, 0.1), (0.3, 0.0)):
        x, at, to = randn(5, *shape), node(flow, t), node(flow, s)
        belief = denoiser(x, per_sample(t, x))
        close(x + (to.sigma - at.sigma) * belief.flow, ddim_step(belief, to))


@SHIFTS
def test_the_velocity_of_the_angle_is_affine_in_that_of_the_flow(flow):
    """r v = (1 - 2 sigma) x_t + r^2 u with r^2 = (1 - sigma)^2 + sigma^2."""
    x = randn(6, 2, 3)
    belief, sigma = gaussian(flow)(x, TIMES), flow.sigma(TIMES)[:, None, None]
    r2 = (1 - sigma) ** 2 + sigma**2
    close(r2.sqrt() * belief.v, (1 - 2 * sigma) * x + r2 * belief.flow)


@SHIFTS
def test_from_the_flow_to_the_angle_and_back(flow):
    """Both ends of time included, where neither is singular."""
    x, u, level = randn(6, 2, 3), randn(6, 2, 3, seed=1), flow.level(TIMES, randn(6, 2, 3))
    close(from_v(x, level, from_flow(x, level, u).v).flow, u)


@pytest.mark.parametrize("make", [gaussian, mixture])
def test_the_flow_is_the_slope_of_what_is_expected(make):
    """u = d x_t/dt along the probability flow: (d alpha/dt) E[x_0] + (d sigma/dt) E[eps], here E[eps - x_0]."""
    flow, t, h = Flow(), 0.4, 1e-5
    denoiser, x = make(flow), randn(5, *((2, 3) if make is gaussian else (2,)))
    u = denoiser(x, per_sample(t, x)).flow
    ahead = denoiser(x + h * u, per_sample(t + h, x)).flow
    behind = denoiser(x - h * u, per_sample(t - h, x)).flow
    drift = u + h / 2 * (ahead - behind) / 2  # of the step from t to t + h in second order
    if make is gaussian:
        close(x + h * drift, denoiser.flow(x, per_sample(t, x), per_sample(t + h, x)), 1e-9)
    score = denoiser(x, per_sample(t, x)).score
    close(u, -(x + t * score) / (1 - t))  # f x - g^2 score / 2 with f = -1/(1 - t) and g^2 = 2 t/(1 - t)


def halved(teacher: Velocity, schedule: Schedule, steps: int) -> Velocity:
    """The exact student: one of its `steps` steps is two of its teacher's."""

    def velocity(z: Tensor, t: Tensor) -> Tensor:
        middle, end = t - 1 / (2 * steps), (t - 1 / steps).clamp(min=0)
        phi, between, to = (schedule.angle(time) for time in (t, middle, end))
        first = teacher(z, t)
        second = teacher(hop(z, first, phi - between), middle)
        return compose(z, first, second, phi - between, between - to)

    return velocity


def velocity_of(denoiser: Denoiser) -> Velocity:
    return lambda z, t: denoiser(z, t).v


@pytest.mark.slow
@pytest.mark.parametrize(
    "word", [pytest.param(word, marks=[pytest.mark.slow] * (word != "flow")) for word in SCHEDULES]
)
def test_a_chain_of_exact_students_from_1024_steps_to_one(word):
    """The last lands where 1024 DDIM steps of the teacher land: on the schedule that networks are trained on."""
    trained = variance_preserving(make_schedule(word))
    denoiser, z = gaussian(trained), randn(3, 2, 3)
    velocity = velocity_of(denoiser)
    for rounds in range(10):
        velocity = halved(velocity, trained, 512 >> rounds)
    one, nothing = torch.ones(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    landed = hop(z, velocity(z, one), trained.angle(one) - trained.angle(nothing))
    x = z
    for k in range(1024, 0, -1):
        x = ddim_step(denoiser(x, per_sample(k / 1024, x)), node(trained, (k - 1) / 1024))
    close(landed, x, 1e-11)
    close(landed, denoiser.flow(z, one, nothing), 0.1)


@SHIFTS
def test_a_network_says_the_flow_on_every_schedule_alike(flow):
    """What is said at one log-SNR is one belief, whatever the scale of x_t."""
    angle = variance_preserving(flow)
    x, level, other = randn(6, 2, 3), flow.level(TIMES, randn(6, 2, 3)), angle.level(TIMES, randn(6, 2, 3))
    size = torch.hypot(level.alpha, level.sigma)
    belief: Prediction = gaussian(flow)(x, TIMES)
    again = from_flow(x / size, other, belief.flow)
    close(again.x0, belief.x0)
    close(again.eps, belief.eps)
