"""Consistency training: the ladder and the times of both papers, the target against closed forms, the real trainer."""

import dataclasses
import math

import pytest
import torch
from torch import nn

from diffcore.core.rng import Draw
from diffcore.denoisers.denoiser import Denoiser
from diffcore.denoisers.exact import GaussianDenoiser
from diffcore.denoisers.network import NetDenoiser
from diffcore.denoisers.prediction import from_v
from diffcore.denoisers.reading import Reading
from diffcore.methods import Roles, consistency_training
from diffcore.methods.consistency_training import ConsistencyTraining, aim, ict_levels
from diffcore.noise.angle import compose, diffuse, hop
from diffcore.noise.schedule import Cosine, Linear
from diffcore.training.config import Compute, Training
from diffcore.training.loop import Job, fit
from tests.conftest import ToyNet, gaussian, randn, seeded
from tests.test_methods import roles, toss

SCHEDULES = pytest.mark.parametrize("word", ["ict", "ect"])
FINE = (torch.arange(20_000).double() + 0.5) / 20_000
"""The middles of as many equal cells: stratified numbers without chance."""


class Consistent(Denoiser):
    """The exact consistency function of Gaussian data, f = mean + (c / s) (z - C mean) with s^2 = C^2 c^2 + S^2.

    Its v = (C z - f) / S is written without the division, so it and its derivatives are exact at both ends.
    """

    def __init__(self, inner: GaussianDenoiser):
        super().__init__()
        self.inner, self.schedule, self.grid = inner, inner.schedule, None

    def forward(self, x_t, t):
        level, mean, c = self.schedule.level(t, x_t), self.inner.mean, self.inner.variance.sqrt()
        v = gain(level.alpha, level.sigma, c) * (x_t - level.alpha * mean) - level.sigma * mean
        return from_v(x_t, level, v)


def gain(cos, sin, c):
    """dv/dz of the exact consistency function of data with standard deviation c."""
    s = (cos**2 * c**2 + sin**2).sqrt()
    return sin * (cos**2 - c**2 * (1 + cos**2)) / (s * (cos * s + c))


class Point(Denoiser):
    """All data are one image, so every trajectory ends there."""

    schedule, grid = Cosine(), None

    def __init__(self, where):
        super().__init__()
        self.where = where

    def forward(self, x_t, t):
        level = self.schedule.level(t, x_t)
        eps = torch.where(level.sigma > 0, (x_t - level.alpha * self.where) / level.sigma, 0)
        return from_v(x_t, level, level.alpha * eps - level.sigma * self.where)


def posterior(exact: GaussianDenoiser, z, phi):
    """Two equally likely x_0 with the mean and the variance of x_0 given z, and their eps: means of what is affine in x_0
    are exact."""
    cos, sin = phi.cos()[:, None, None], phi.sin()[:, None, None]
    total = cos**2 * exact.variance + sin**2
    mean = exact.mean + cos * exact.variance / total * (z - cos * exact.mean)
    spread = (exact.variance * sin**2 / total).sqrt()
    return [(x0, (z - cos * x0) / sin) for x0 in (mean - spread, mean + spread)]


# ------------------------------------------------------------------------------------------- times


def test_the_ladder_doubles_in_equal_parts():
    found = [ConsistencyTraining().intervals(part / 8 + late) for part in range(8) for late in (0.0, 0.1249)]
    assert found == [n for n in (10, 20, 40, 80, 160, 320, 640, 1280) for _ in range(2)]
    assert all(type(n) is int for n in found)
    assert [ConsistencyTraining(first=10, last=25).intervals(progress) for progress in (0.0, 1 / 3, 2 / 3, 0.999)] == [
        10,
        20,
        25,
        25,
    ]
    assert ConsistencyTraining(first=18, last=18).intervals(0.999) == 18


def test_ict_levels_are_karras_down_to_the_data():
    levels = ict_levels(10)
    by_hand = [(0.002 ** (1 / 7) + i / 10 * (80 ** (1 / 7) - 0.002 ** (1 / 7))) ** 7 for i in range(11)]
    assert levels.tolist() == pytest.approx([0.0, *by_hand[1:]], rel=1e-12)
    assert float(ict_levels(10, most=20.0)[-1]) == pytest.approx(20)


def test_ict_draws_each_interval_as_often_as_the_log_normal():
    t, _ = ConsistencyTraining().pair(FINE, 0.0)
    levels = ict_levels(10)
    log = torch.tensor([math.log(0.002), *levels[1:].log().tolist()])
    mass = torch.distributions.Normal(-1.1, 2.0).cdf(log).diff()
    share = torch.stack([(t == level).double().mean() for level in levels[1:]])
    torch.testing.assert_close(share, (mass / mass.sum()).double(), rtol=0, atol=1e-4)


def test_ect_times_are_log_normal_and_its_lower_times_by_hand():
    log = ConsistencyTraining(schedule="ect").pair(FINE, 0.3)[0].log()
    assert float(log.mean()) == pytest.approx(-1.1, abs=1e-3)
    assert float(log.std()) == pytest.approx(2.0, rel=1e-3)
    config, t = (
        ConsistencyTraining(schedule="ect", q=2.0, k=8.0, b=1.0, stages=8),
        torch.tensor([0.0, 0.5, 5.0]).double(),
    )
    in_stage = [config.ect_lower(t, stage / 8).tolist() for stage in (0, 2)]
    near = [1 + 8 / (1 + math.exp(time)) for time in (0.5, 5.0)]
    assert in_stage[0] == pytest.approx([0, 0, 5 * (1 - near[1] / 2)], rel=1e-12)
    assert in_stage[1] == pytest.approx([0, 0.5 * (1 - near[0] / 8), 5 * (1 - near[1] / 8)], rel=1e-12)


@SCHEDULES
@pytest.mark.parametrize("progress", [0.0, 0.4, 0.999])
def test_the_lower_time_is_lower_but_not_below_the_data(word, progress):
    u = torch.cat([torch.tensor([1e-12, 1 - 1e-12], dtype=torch.float64), FINE])
    t, r = ConsistencyTraining(schedule=word).pair(u, progress)
    assert t.dtype == r.dtype == torch.float64
    assert bool(((r >= 0) & (r < t) & t.isfinite()).all())


@SCHEDULES
def test_no_time_is_beyond_the_schedules_end(word):
    seen = []

    class Spy(NetDenoiser):
        def forward(self, x_t, t):
            seen.append(t)
            return super().forward(x_t, t)

    spy = Spy(ToyNet().double(), Linear(beta_max=5.0))  # sigma/alpha is 3.4 at its end
    u = torch.tensor([0.5, 0.999, 1 - 1e-12], dtype=torch.float64)
    found = ConsistencyTraining(schedule=word).loss(
        Roles(spy, None, spy), randn(3, 1, 4, 4), Draw(u, randn(3, 1, 4, 4)), 0.9
    )
    assert found.isfinite().all()
    assert all(float(t.max()) <= 1 + 1e-12 for t in seen)
    assert float(seen[-1].max()) == pytest.approx(1)


# ------------------------------------------------------------------------------------------- the target


@SCHEDULES
@pytest.mark.parametrize("weight", ["gap", "one"])
def test_the_loss_is_the_published_one(word, weight):
    """The distance of two beliefs about x_0 over the gap in sigma, each belief at its own noisy image."""
    cast, (x0, drawn) = roles(), toss()
    config = ConsistencyTraining(schedule=word, weight=weight)
    t, r = config.pair(drawn.u, 0.5)
    phi, phi_r = t.atan(), r.atan()
    ours = cast.student(diffuse(x0, drawn.noise, phi), phi * 2 / math.pi).x0
    theirs = cast.target(diffuse(x0, drawn.noise, phi_r), phi_r * 2 / math.pi).x0
    error = (ours - theirs).flatten(1).norm(dim=1) / (phi.sin() if weight == "one" else 1)
    c = 0.00054 * math.sqrt(27) if word == "ict" else 0.0
    by_hand = ((error**2 + c**2).sqrt() - c) / (t - r if weight == "gap" else 1)
    found = config.loss(cast, x0, drawn, 0.5)
    torch.testing.assert_close(found, by_hand, rtol=1e-6, atol=0)  # the timestep of t is float32


@SCHEDULES
@pytest.mark.parametrize("progress", [0.0, 0.9])
def test_data_of_one_image_leave_no_residual(word, progress):
    where, config = randn(1, 2, 3), ConsistencyTraining(schedule=word, huber=0.0)
    u = torch.cat([torch.tensor([1e-6, 1 - 1e-6], dtype=torch.float64), FINE[::400]])
    x0, noise = where.expand(len(u), 2, 3), randn(len(u), 2, 3, seed=1)
    cast = Roles(Point(where), None, Point(where))
    assert float(config.loss(cast, x0, Draw(u, noise), progress).max()) < 1e-9
    lower = config.pair(u, progress)[1]
    assert progress == 0.9 or bool((lower == 0).any())


def test_the_target_is_distillations_in_expectation():
    """Given z, the mean of the target is consistency distillation's with one DDIM hop of the exact denoiser."""
    exact = gaussian()
    consistent = Consistent(exact)
    t, r = torch.tensor([0.01, 0.3, 2.0, 60.0]).double(), torch.tensor([0.0, 0.25, 1.0, 55.0]).double()
    phi, phi_r, z = t.atan(), r.atan(), randn(4, 2, 3)
    va = exact(z, phi * 2 / math.pi).v
    vb = consistent(hop(z, va, phi - phi_r), phi_r * 2 / math.pi).v
    distilled = compose(z, va, vb, phi - phi_r, phi_r)
    samples = [aim(Roles(consistent, None, consistent), x0, eps, t, r) for x0, eps in posterior(exact, z, phi)]
    torch.testing.assert_close((samples[0] + samples[1]) / 2, distilled, rtol=0, atol=1e-12)
    assert float((samples[0] - samples[1]).abs().max()) > 0.1  # a single one is far off


def test_the_finest_targets_keep_their_digits_in_float32():
    exact, config = gaussian(), ConsistencyTraining()
    single = GaussianDenoiser(exact.mean.float(), exact.variance.float(), Cosine())
    t, r = config.pair(FINE[::200], 0.999)
    x0, eps = randn(len(t), 2, 3), randn(len(t), 2, 3, seed=1)
    whole = aim(Roles(exact, None, Consistent(exact)), x0, eps, t, r)
    half = aim(Roles(single, None, Consistent(single)), x0.float(), eps.float(), t, r)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half.double(), whole, rtol=0, atol=2e-6)


def test_a_network_that_says_x0_is_not_asked_for_its_v_at_the_data():
    net = NetDenoiser(ToyNet().double(), Cosine(), Reading("x0"))
    found = aim(
        Roles(net, None, net), randn(2, 1, 4, 4), randn(2, 1, 4, 4), torch.ones(2).double(), torch.zeros(2).double()
    )
    assert found.isfinite().all()


@pytest.mark.parametrize(
    ("word", "given", "c"),
    [("ict", None, 0.00054), ("ict", 0.0, 0.0), ("ict", 0.1, 0.1), ("ect", None, 0.0), ("ect", 0.1, 0.1)],
)
def test_huber_is_what_is_given_0_too_and_the_paper_s_where_nothing_is(word, given, c):
    error, c = randn(4, 3) / 100, c * math.sqrt(3)
    found = ConsistencyTraining(schedule=word, huber=given)._distance(error)
    torch.testing.assert_close(found, (error.square().sum(1) + c**2).sqrt() - c, rtol=1e-6, atol=1e-9)


def test_the_plain_norm_has_a_slope_of_zero_at_zero():
    error = torch.zeros(2, 3, requires_grad=True)
    ConsistencyTraining(schedule="ect")._distance(error).sum().backward()
    assert torch.equal(error.grad, torch.zeros(2, 3))


@pytest.mark.parametrize(
    "wrong",
    [{"std": 0.0}, {"first": 0}, {"last": 5}, {"q": 1.0}, {"k": -1.0}, {"b": -1.0}, {"stages": 0}, {"huber": -1.0}],
)
def test_impossible_numbers_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ConsistencyTraining(**wrong)


# ------------------------------------------------------------------------------------------- the trainer


@dataclasses.dataclass(frozen=True)
class GaussianFeed:
    """Images of independent pixels ~ N(mean, std^2)."""

    mean: float
    std: float
    size: int
    images: int = 10**6
    shape: tuple[int, int, int] = (1, 8, 8)
    classes: tuple[str, ...] | None = None

    def batch(self, step, rows=slice(None)):
        x0 = torch.randn((self.size, *self.shape), generator=seeded(step))
        return (self.mean + self.std * x0)[rows], {}


class Affine(nn.Module):
    """Gain and shift are smooth functions of t: Chebyshev series of a few terms."""

    def __init__(self, terms: int = 5):
        super().__init__()
        self.gain, self.shift = nn.Parameter(torch.zeros(terms)), nn.Parameter(torch.zeros(terms))

    def at(self, t):
        series = [torch.ones_like(t), 2 * t - 1]
        while len(series) < len(self.gain):
            series.append(2 * (2 * t - 1) * series[-1] - series[-2])
        series = torch.stack(series, 1)
        return series @ self.gain, series @ self.shift

    def forward(self, x, timestep):
        gain, shift = self.at((timestep + 1) / 1024)
        return gain[:, None, None, None] * x + shift[:, None, None, None]


def trained(method, config, teacher=None, iterations: int = 800, lr=0.01, mean=0.2, std=0.5):
    """The largest error of gain and of shift over t in (0, 1] of a student trained from nothing, ema and all."""
    setting = Training(iterations, 512, lr, ema=0.99, weight_decay=0.0)
    compute = Compute(threads=1, precision="no", compile=False, save_seconds=1e9, memory_gb=1.0)
    job = Job(config, setting, GaussianFeed(mean, std, 512), 0)
    net = fit(job, NetDenoiser(Affine(), Cosine()), teacher, compute).net
    t = torch.arange(1, 51).float() / 50
    cos, sin = (math.pi / 2 * t).cos(), (math.pi / 2 * t).sin()
    right = gain(cos, sin, torch.tensor(std))
    with torch.no_grad():
        found = net.at(t)
    return [float((a - b).abs().max()) for a, b in zip(found, (right, -mean * (sin + cos * right)))]


@pytest.mark.slow  # tests/test_trainable.py has a shorter one
@pytest.mark.parametrize(("word", "within"), [("ict", 0.09), ("ect", 0.16)])
def test_the_trainer_finds_the_flow_map_of_gaussian_data(word, within):
    """From nothing and from data alone: a start off by 0.5 in gain, as the denoiser is. What is left is chance."""
    errors = trained(consistency_training, ConsistencyTraining(schedule=word))
    assert max(errors) < within, errors
