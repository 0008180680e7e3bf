"""Losses that are read late, as on a GPU: the same training, and no bad state is ever saved."""

import dataclasses
import math

import pytest
import torch

from diffcore.methods import denoising, distribution_matching
from diffcore.training import learner
from diffcore.training.curve import Curve
from diffcore.training.loop import Diverged, Job, Loop, Stopped, fit
from diffcore.training.resume import Resume
from tests.conftest import toy_denoiser
from tests.test_fit import COMPUTE, SHORT, feed, same, stop_at
from tests.test_methods import spied
from tests.test_precision import EACH, run

LONG = dataclasses.replace(SHORT, iterations=12)
OFTEN = dataclasses.replace(COMPUTE, save_seconds=1e-9)


@pytest.fixture
def late(monkeypatch):
    """Trainings take the CPU for a GPU."""
    make = Loop.__init__

    def made(self, *given):
        make(self, *given)
        assert not self.late
        self.late = True

    monkeypatch.setattr(Loop, "__init__", made)


@pytest.mark.slow
@EACH
def test_a_training_whose_losses_are_read_late_is_the_same(name, config, tmp_path, request):
    """To the last bit: its weights, its curve, whatever it is stopped at."""
    right = run(name, config, fitting=LONG)
    request.getfixturevalue("late")
    assert same(run(name, config, fitting=LONG), right)
    resume = Resume(tmp_path, "x", {"job": "f"})
    with pytest.raises(Stopped, match="after 5 of 12"):
        run(name, config, fitting=LONG, resume=resume, stop=stop_at(5))
    assert same(run(name, config, fitting=LONG, resume=resume), right)


def turning_bad(at: int):
    """Denoising whose loss is no number at one step, and as ever after it."""
    calls = iter(range(1, 1000))

    def loss(self, roles, x0, drawn, progress):
        return denoising.Denoising().loss(roles, x0, drawn, progress) * (math.nan if next(calls) == at else 1.0)

    return spied(denoising.Denoising(), loss=loss)


def updates(loop: Loop, count: int) -> None:
    for _ in range(count):
        loop.update()


def work(method, events: int = 2, training=LONG) -> Job:
    return Job(method, training, feed(), 0, events=events)


@pytest.mark.parametrize("bad", [1, 4, 6, 7, 12])
def test_the_first_bad_step_is_named_though_it_is_read_later(bad, late):
    """Where the curve has its next point, after the sixth step or the twelfth."""
    loop = Loop(work(turning_bad(bad)), toy_denoiser(), None, COMPUTE)
    with pytest.raises(Diverged, match=f"step {bad}: the loss is nan and the gradient norm nan; nothing was updated"):
        updates(loop, 12)
    assert loop.step == (6 if bad <= 6 else 12)


@pytest.mark.parametrize("bad", [3, 4])
def test_nothing_is_saved_after_a_bad_step_that_nobody_has_read(bad, late, tmp_path):
    """Whenever a state is due."""
    resume = Resume(tmp_path, "x", {"job": "f"})
    with pytest.raises(Diverged, match=f"step {bad}: .*goes back to step {bad - 1} and comes here again"):
        fit(work(turning_bad(bad), 1), toy_denoiser(), None, OFTEN, resume)
    assert resume.load().step == bad - 1
    loop = Loop(work(turning_bad(1), 1), toy_denoiser(), None, COMPUTE)
    loop.update()
    with pytest.raises(Diverged, match="step 1: "):
        loop.save(resume)
    assert resume.load().step == bad - 1
    with pytest.raises(Diverged, match=r"step 2: .* begins anew"):
        fit(work(turning_bad(2), 1), toy_denoiser(), None, COMPUTE, Resume(tmp_path, "y", {}), stop=stop_at(3))


def test_a_critic_that_turned_bad_is_named_by_its_step(late):
    own, calls = distribution_matching.DistributionMatching(critic_updates=2), iter(range(1, 100))

    def critic_loss(self, *given):
        return own.critic_loss(*given) * (math.nan if next(calls) == 4 else 1.0)

    with pytest.raises(
        Diverged, match=r"step 2: the critic's loss is nan; nothing was updated with it\. Lower critic_lr"
    ):
        fit(work(spied(own, critic_loss=critic_loss)), toy_denoiser(), toy_denoiser(1), COMPUTE)


def test_a_step_with_a_bad_gradient_changes_no_weight(late):
    loop = Loop(work(turning_bad(2)), toy_denoiser(), None, COMPUTE)
    loop.update()
    before = {name: tensor.clone() for name, tensor in loop.student.tensors("net").items()}
    loop.update()
    for name, tensor in loop.student.tensors("net").items():
        assert torch.equal(tensor, before[name]) or name.startswith("ema/"), name


def test_what_is_added_is_read_at_once_and_in_its_order():
    curve = Curve()
    curve.add(1, torch.tensor(5.0))
    curve.add(1, torch.tensor(1.5), torch.tensor(2.0, dtype=torch.float64))
    assert (curve.since, curve.critic) == ([], [])
    assert curve.read() is None
    assert (curve.since, curve.critic) == ([(1.5, 2.0)], [5.0])
    curve.add(2, torch.tensor(1.0), torch.tensor(torch.inf))
    curve.add(3, torch.tensor(torch.nan))
    reading = curve.read()
    assert (reading.step, reading.numbers) == (2, (1.0, math.inf))
    assert learner.not_finite({"a": torch.ones(2), "b": torch.tensor([1.0, torch.nan])}) == "b"
