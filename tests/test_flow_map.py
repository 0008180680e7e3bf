"""Flow maps: the exact one is what training leaves as it is, and hops of every length are learned."""

import dataclasses
import math

import pytest
import torch

from diffcore.core.rng import draw
from diffcore.denoisers.exact import GaussianDenoiser, GaussianFlowMap
from diffcore.methods import Roles
from diffcore.methods.flow_map import FlowMap, aim
from diffcore.noise.schedule import Cosine
from tests.conftest import gaussian, randn, seeded
from tests.test_losses import SCHEDULES

CHOICES = [
    FlowMap(),
    FlowMap(steps=1, first=0.01),
    FlowMap(steps=1000, velocity=0.9, first=0.5),
    FlowMap(steps=6, velocity=0.01, target_ema=0.9, distance="pseudo_huber", huber=0.1),
]


class Learner(GaussianFlowMap):
    """The exact flow map of data whose mean it has to learn."""

    def __init__(self, exact: GaussianDenoiser, off: float = 0.0):
        mean = torch.nn.Parameter(exact.mean + off)
        torch.nn.Module.__init__(self)
        self.mean, self.variance, self.schedule, self.grid = mean, exact.variance, exact.schedule, None

    def toward(self, s):
        own = GaussianFlowMap.__new__(GaussianFlowMap)
        torch.nn.Module.__init__(own)
        own.mean, own.variance, own.schedule, own.grid, own.s = self.mean, self.variance, self.schedule, None, s
        return own


def tossed(exact: GaussianDenoiser, count: int = 200):
    x0 = exact.mean + exact.variance.sqrt() * randn(count, 2, 3, seed=1)
    drawn = draw(torch.zeros(count, 2, 3), 0)
    return x0, dataclasses.replace(drawn, noise=drawn.noise.double())


@pytest.mark.parametrize("config", CHOICES, ids=str)
@pytest.mark.parametrize("word", SCHEDULES)
def test_the_exact_flow_map_has_no_loss_and_no_gradient(word, config):
    """Whatever is chosen; and of another one there is both."""
    exact = gaussian(SCHEDULES[word])
    x0, drawn = tossed(exact)
    for off, right in ((0.0, True), (0.1, False)):
        student = Learner(exact, off)
        found = config.loss(Roles(student, exact, student), x0, drawn, 0.0)
        found.mean().backward()
        assert (float(found.detach().max()) < 1e-20) == right
        assert (float(student.mean.grad.abs().max()) < 1e-10) == right


@pytest.mark.parametrize("config", CHOICES, ids=str)
def test_hops_are_of_all_lengths_and_at_all_places(config):
    """A share of the velocities, one in 1 + log2 N of the rest from 1 to 0, and as many between each length and its half."""
    u = torch.rand(2**18, generator=seeded(), dtype=torch.float64)
    at = config.times(u)
    share = at.at_once.double().mean()
    assert float(share) == pytest.approx(config.velocity, abs=0.01)
    t, m, s = (time[~at.at_once] for time in (at.t, at.m, at.s))
    assert ((s >= 0) & (s < m) & (m < t) & (t <= 1)).all()
    torch.testing.assert_close(t - m, config.first * (t - s), rtol=0, atol=1e-12)
    length, levels = t - s, 1 + math.log2(config.steps)
    assert float((length == 1).double().mean()) == pytest.approx(1 / levels, abs=0.02)
    for k in range(int(math.log2(config.steps))):
        found = ((length <= 2.0**-k * (1 - 1e-12)) & (length > 2.0 ** -(k + 1))).double().mean()
        assert float(found) == pytest.approx(1 / levels, abs=0.02)
    assert float(length.min()) >= 1 / config.steps - 1e-12
    places = (s / (1 - length))[length < 0.99]
    if len(places):
        quarters = torch.tensor([0.25, 0.5, 0.75]).double()
        torch.testing.assert_close(places.quantile(quarters), quarters, rtol=0, atol=0.02)
    assert torch.equal(at.end, torch.where(at.at_once, at.t, at.s))


def test_the_target_lands_where_two_hops_land_and_the_velocity_is_the_teacher_s():
    """By networks that are wrong each in their own way, so that whose belief it is can be seen."""
    exact = gaussian()
    other, teacher = (GaussianFlowMap(exact.mean + shift, exact.variance, Cosine()) for shift in (0.4, -0.3))
    at = FlowMap().times(tossed(exact, 64)[1].u)
    assert 0 < int(at.at_once.sum()) < 64
    z = randn(64, 2, 3, seed=4)
    found = aim(Roles(exact, teacher, other), z, at)
    once = at.at_once[:, None, None]
    angle = Cosine().angle
    d = (angle(at.t) - angle(at.s))[:, None, None]
    landed = d.cos() * z - d.sin() * found
    right = other.flow(z, at.t, at.s)
    torch.testing.assert_close(torch.where(once, 0, landed), torch.where(once, 0, right), rtol=0, atol=1e-12)
    torch.testing.assert_close(
        torch.where(once, found, 0), torch.where(once, teacher(z, at.t).v, 0), rtol=0, atol=1e-15
    )


def test_a_student_that_is_told_one_time_cannot_tell_hops_apart():
    """What the second time is for: an otherwise exact student that is not told it has a loss."""
    exact = gaussian()
    x0, drawn = tossed(exact)
    found = FlowMap().loss(Roles(exact, exact, exact), x0, drawn, 0.0)
    at = FlowMap().times(drawn.u)
    assert float(found[at.at_once].max()) < 1e-20
    assert float(found[~at.at_once].max()) > 1e-3


WRONG = [
    ("steps", 0),
    ("first", 0.0),
    ("first", 1.0),
    ("velocity", 0.0),
    ("velocity", 1.0),
    ("target_ema", 1.0),
    ("huber", 0.0),
]


@pytest.mark.parametrize(("name", "wrong"), WRONG)
def test_impossible_numbers_are_refused(name, wrong):
    with pytest.raises(ValueError, match=name):
        FlowMap(**{name: wrong})
