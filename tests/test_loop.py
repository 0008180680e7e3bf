"""What the training loop does between two losses, by hand: averages, clipping, decay, random numbers, divergence, what
is kept."""

import contextlib
import dataclasses
import itertools
import math
import re
import types
from functools import partial

import pytest
import torch
from torch import nn

from diffcore.core import processes, rng
from diffcore.core.errors import UserError
from diffcore.denoisers.condition import of_classes
from diffcore.denoisers.denoiser import Denoiser
from diffcore.denoisers.guidance import Guided
from diffcore.denoisers.network import NetDenoiser
from diffcore.methods import (
    Method,
    Roles,
    consistency,
    continuous,
    denoising,
    distribution_matching,
    phased,
)
from diffcore.methods.parts.discriminator import Discriminator
from diffcore.nets.dropout import Masks
from diffcore.noise.angle import diffuse
from diffcore.noise.schedule import Cosine
from diffcore.noise.trajectory import uniform
from diffcore.training import learner
from diffcore.training.config import Training
from diffcore.training.loop import Diverged, Job, Loop, Stopped, fit, local
from diffcore.training.resume import Resume
from tests.conftest import ToyNet, randn, seeded, toy_denoiser
from tests.test_condition import net as conditional_net
from tests.test_fit import COMPUTE, same, stop_at
from tests.test_methods import spied
from tests.test_precision import denoiser, feed, job, run

SHORT = Training(iterations=5, batch=8, lr=1e-2, ema=0.9)
PLAIN = denoising.Denoising()
PARTED = dataclasses.replace(SHORT, iterations=3, batch=16)
OFTEN = dataclasses.replace(COMPUTE, save_seconds=1e-9)


def watched(method: Method, look, **instead) -> Method:
    """The method, with a look at what its loss is given."""

    def loss(self, roles, x0, drawn, progress):
        look(roles)
        return method.loss(roles, x0, drawn, progress)

    return spied(method, loss=loss, **instead)


def weights(denoiser_: Denoiser) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in denoiser_.parameters()])


def flat(net: nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in net.parameters()])


def train(config: Training = SHORT, method: Method = PLAIN, look=lambda roles: None, compute=COMPUTE, **more):
    work = Job(watched(method, look), config, feed(batch=config.batch), 0)
    return fit(work, toy_denoiser(), toy_denoiser(1), compute, **more)


@pytest.mark.parametrize("decay", [0.3, 0.95])
def test_the_target_is_the_average_of_the_student_by_its_own_decay(decay):
    """Not by that of the average which is the result, nor of that average; whatever `ema` is."""
    seen = []

    def look(cast: Roles) -> None:
        seen.append((weights(cast.student), weights(cast.target)))

    for ema in (0.0, 0.9):
        seen.clear()
        train(dataclasses.replace(SHORT, ema=ema), consistency.Consistency(8, decay), look)
        assert torch.equal(*seen[0])
        for (_, target), (student, later) in itertools.pairwise(seen):
            torch.testing.assert_close(later, decay * target + (1 - decay) * student, rtol=1e-5, atol=1e-7)
            assert (student - target).abs().max() > 1e-3


@pytest.mark.parametrize("ema", [0.0, 0.15, 0.999])
def test_the_result_is_the_average_of_the_weights_ramped_up(ema, tmp_path):
    """(1 + n)/(10 + n) after n updates until that is `ema`; the weights themselves for 0."""
    seen, resume = [], Resume(tmp_path, "x", {"job": "f"})
    found = train(
        dataclasses.replace(SHORT, ema=ema), look=lambda cast: seen.append(weights(cast.student)), resume=resume
    )
    last = resume.load().tensors()
    seen.append(torch.cat([last[f"net/{name}"].flatten() for name, _ in found.net.named_parameters()]))
    average = seen[0]
    for number, student in enumerate(seen[1:], 1):
        decay = min(ema, (1 + number) / (10 + number))
        average = decay * average + (1 - decay) * student
    torch.testing.assert_close(flat(found.net), average, rtol=1e-5, atol=1e-7)
    assert torch.equal(flat(found.net), seen[-1]) == (ema == 0)


def moments(tmp_path, clip: float | None) -> tuple[torch.Tensor, float]:
    """(the first moment after one update, a tenth of the gradient; the gradient's norm)."""
    resume = Resume(tmp_path, "x", {"clip": clip})
    found = train(dataclasses.replace(SHORT, iterations=1, clip=clip), resume=resume)
    tensors = resume.load().tensors()
    return torch.cat([tensors[f"exp_avg/{name}"].flatten() for name, _ in found.net.named_parameters()]), found.curve[
        0
    ].grad_norm


def test_clipping_shortens_long_gradients_and_leaves_short_ones_alone(tmp_path):
    free, norm = moments(tmp_path, None)
    assert torch.equal(moments(tmp_path, 2 * norm)[0], free)
    torch.testing.assert_close(moments(tmp_path, 0.5 * norm)[0], 0.5 * free, rtol=1e-4, atol=1e-8)
    assert float(free.norm()) == pytest.approx(0.1 * norm, rel=1e-4)


@pytest.mark.parametrize("decay", [0.01, 0.5])
def test_weights_decay_by_the_rate_beside_the_gradients_step(decay):
    one = dataclasses.replace(SHORT, iterations=1, ema=0.0)
    assert SHORT.weight_decay == 0.01
    plain, decayed = (flat(train(dataclasses.replace(one, weight_decay=w)).net) for w in (0.0, decay))
    torch.testing.assert_close(decayed - plain, -one.lr * decay * flat(toy_denoiser().net), rtol=1e-2, atol=1e-7)


def test_labels_and_guidance_have_dice_of_their_own_in_every_update(monkeypatch):
    """Else a class would be dropped just where the weight is low."""
    asked, conditions, make = [], [], rng.generator
    monkeypatch.setattr("diffcore.training.loop.generator", lambda *words: asked.append(words) or make(*words))
    config = dataclasses.replace(SHORT, batch=64, label_dropout=0.4)
    method = watched(PLAIN, lambda cast: conditions.append(cast.condition))
    work = Job(method, config, feed(True, 64), 0, guidance=(1.0, 3.0))
    fit(work, denoiser(True), None, COMPUTE)
    assert len(set(asked)) == len(asked) == 2 * SHORT.iterations
    dropped = torch.cat([condition.class_labels < 0 for condition in conditions]).double()
    weight = torch.cat([condition.guidance for condition in conditions])
    assert float(dropped.mean()) == pytest.approx(0.4, abs=0.08)
    assert 1 <= float(weight.min()) < 1.1 < 2.9 < float(weight.max()) <= 3
    assert abs(float(torch.corrcoef(torch.stack([dropped, weight]))[0, 1])) < 0.15
    assert len({tuple(condition.guidance.tolist()) for condition in conditions}) == SHORT.iterations
    assert len({tuple((condition.class_labels < 0).tolist()) for condition in conditions}) == SHORT.iterations


def test_a_parameter_a_buffer_and_a_count_go_on_where_they_were(tmp_path):
    """As those of a network from elsewhere would: kept in its state_dict or not, in the student, target and average."""

    class Counting(ToyNet):
        def __init__(self):
            super().__init__()
            self.register_buffer("mean", torch.zeros(1))
            self.register_buffer("calls", torch.zeros((), dtype=torch.int64), persistent=False)

        def forward(self, x, timestep):
            if self.training:
                self.mean.lerp_(x.detach().mean(), 0.3)
                self.calls += 1
            return super().forward(x + self.mean + 0.1 * self.calls, timestep)

    def train(**more):
        work = Job(consistency.Consistency(8, 0.5), SHORT, feed(), 0)
        return fit(work, NetDenoiser(Counting(), Cosine()), toy_denoiser(1), COMPUTE, **more)

    whole, resume = train(), Resume(tmp_path, "x", {"job": "f"})
    with pytest.raises(Stopped):
        train(resume=resume, stop=stop_at(3))
    resumed = train(resume=resume)
    assert same(whole, resumed)
    assert int(whole.net.calls) == int(resumed.net.calls) == SHORT.iterations
    assert float(whole.net.mean) == float(resumed.net.mean) != 0


def test_a_critic_learns_as_often_as_its_method_says_from_dice_and_gradients_of_each_time():
    """At its own rate: Adam's first step moves every weight by that. While the student learns, it does not."""
    seen, own = [], distribution_matching.DistributionMatching(critic_updates=3, critic_lr=1e-3)

    def look(cast: Roles) -> None:
        assert not any(parameter.requires_grad or parameter.grad is not None for parameter in cast.critic.parameters())

    def critic_loss(self, roles, x0, drawn, progress):
        assert all(parameter.requires_grad and parameter.grad is None for parameter in roles.critic.parameters())
        seen.append((flat(roles.critic), drawn.noise, progress))
        return own.critic_loss(roles, x0, drawn, progress)

    fit(Job(watched(own, look, critic_loss=critic_loss), SHORT, feed(), 0), toy_denoiser(), toy_denoiser(1), COMPUTE)
    assert len(seen) == 3 * SHORT.iterations
    moved = (seen[1][0] - seen[0][0]).abs()
    torch.testing.assert_close(moved, torch.full_like(moved, 1e-3), rtol=2e-2, atol=1e-6)
    assert [progress for *_, progress in seen] == [step / 5 for step in range(5) for _ in range(3)]
    noises = [noise for _, noise, _ in seen]
    assert all(not torch.equal(one, two) for k, one in enumerate(noises) for two in noises[:k])
    assert torch.equal(noises[4], rng.draw(torch.zeros(8, 1, 4, 4), 0, "critic", 1, 1).noise)


def test_every_update_has_the_rate_of_its_step_and_a_gradient_of_its_own():
    """With no momentum left to see, the first updates move by the rate; whatever was in the gradient before is gone."""
    seen, config = [], dataclasses.replace(SHORT, warmup=4, weight_decay=0.0)
    train(config, look=lambda cast: seen.append((weights(cast.student), [p.grad for p in cast.student.parameters()])))
    first = (seen[1][0] - seen[0][0]).abs()
    torch.testing.assert_close(first, torch.full_like(first, config.rate(0)), rtol=2e-2, atol=1e-6)
    assert config.rate(0) == SHORT.lr / 4
    assert all(gradient is None for _, gradients in seen for gradient in gradients)


def test_the_grid_of_a_student_binds_its_sampling_and_not_its_training():
    seen = []
    student = NetDenoiser(ToyNet(), Cosine(), grid=uniform(4))
    method = watched(PLAIN, lambda cast: seen.append((cast.student.grid, cast.target.grid)))
    fit(Job(method, SHORT, feed(), 0), student, None, COMPUTE)
    assert set(seen) == {(None, None)}
    assert student.grid == uniform(4)


def test_parts_of_a_batch_add_up_whatever_they_are_told():
    """Classes, weights and the critic's part too: each part has its own rows of them."""
    own = distribution_matching.DistributionMatching(2, 2, adversarial=0.1)
    whole, parts = (
        run("distribution_matching", own, True, fitting=dataclasses.replace(PARTED, accumulate=count))
        for count in (1, 4)
    )
    for one, other in zip(whole.curve, parts.curve, strict=True):
        assert other.loss == pytest.approx(one.loss, rel=1e-4)
        assert other.critic_loss == pytest.approx(one.critic_loss, rel=1e-4)
    assert whole.calls == parts.calls
    torch.testing.assert_close(flat(parts.net), flat(whole.net), rtol=1e-3, atol=1e-5)


def test_what_a_training_took_is_all_of_its_calls():
    """As each method says for an image, and the critic's: one forward of the student, three of its own network, for each."""
    own = distribution_matching.DistributionMatching(1, 2)
    found = fit(Job(own, SHORT, feed(), 0), toy_denoiser(), toy_denoiser(1), COMPUTE)
    images = SHORT.iterations * SHORT.batch
    assert found.calls == images * (own.network_calls + 1 + 2 * (1 + 3))  # the fake belief in the loss
    assert train().calls == images * PLAIN.network_calls


def test_the_teacher_that_was_given_is_left_as_it_was():
    """Others may train it or ask it on: it is copied, then frozen and without its dropout."""
    teacher = toy_denoiser(1).train()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    work = Job(consistency.Consistency(8, 0.5), SHORT, feed(), 0)
    fit(work, toy_denoiser(), teacher, COMPUTE)
    assert teacher.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in teacher.parameters())
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize(
    ("own", "betas"),
    [
        (distribution_matching.DistributionMatching(critic_lr=3e-4), (0.0, 0.99)),
        (distribution_matching.DistributionMatching(critic_lr=3e-4, adversarial=0.1), (0.0, 0.99)),
        (phased.Phased(8, 2, adversarial=0.1, critic_lr=3e-4), (0.0, 0.999)),
    ],
)
def test_what_each_optimizer_is_told(own, betas, dropout):
    """The student's by the line, the critic's by its method, whatever the other's are; each learns its own network."""
    config = dataclasses.replace(SHORT, lr=2e-3, weight_decay=0.07)
    teacher = toy_denoiser(1)
    teacher.net.drop = nn.Dropout(dropout)
    loop = Loop(Job(own, config, feed(), 0), toy_denoiser(), teacher, COMPUTE)
    for optimizer, net, told in (
        (loop.student.optimizer, loop.student.net, ((0.9, 0.99), 0.07)),
        (loop.critic.optimizer, loop.critic.net, (betas, 0.0)),
    ):
        assert (optimizer.betas, optimizer.weight_decay) == told
        assert [id(one) for one in optimizer.parameters] == [id(one) for one in net.parameters() if one.requires_grad]
        assert net.training
    assert all(layer.p == 0 for layer in loop.critic.net.modules() if isinstance(layer, nn.Dropout))
    assert loop.roles.critic is loop.critic.net


def test_a_state_is_saved_once_for_so_much_work(tmp_path, monkeypatch):
    """Every step takes ten seconds here, and 25 may be lost: after three steps, after three more, and at the end. What a
    run took, in seconds and in calls, is that of all the processes that worked at it in turn."""
    clock, saved, config = [0.0], [], dataclasses.replace(SHORT, iterations=8)
    monkeypatch.setattr("diffcore.training.loop.time", types.SimpleNamespace(monotonic=lambda: clock[0]))

    def look(cast: Roles) -> None:
        clock[0] += 10

    class Watched(Resume):
        def save(self, step, *more):
            saved.append(step)
            super().save(step, *more)

    compute, resume = dataclasses.replace(COMPUTE, save_seconds=25.0), Watched(tmp_path, "x", {"job": "f"})
    whole = train(config, look=look, compute=compute, resume=resume)
    assert saved == [3, 6, 8]
    assert whole.seconds == 80
    again = Resume(tmp_path, "y", {"job": "f"})
    with pytest.raises(Stopped, match="after 3 of 8 steps"):
        train(config, look=look, compute=compute, resume=again, stop=stop_at(3))
    resumed = train(config, look=look, compute=compute, resume=again)
    assert (resumed.seconds, resumed.calls) == (80, whole.calls)


def test_who_is_asked_to_stop_at_the_end_has_finished_and_who_begins_has_not_resumed(tmp_path):
    resume, starts = Resume(tmp_path, "x", {"job": "f"}), []
    found = train(resume=resume, stop=stop_at(SHORT.iterations), on_resume=starts.append)
    assert found.curve[-1].step == SHORT.iterations
    assert starts == []
    with pytest.raises(Stopped, match="after 1 of 5 steps"):  # with nothing to save it to as well
        train(stop=stop_at(1))


def test_a_point_of_the_curve_is_the_mean_since_the_one_before_at_the_rate_of_its_step():
    """Seven steps in three parts: after every second, and the last one alone."""
    losses, config = [], dataclasses.replace(SHORT, iterations=7, warmup=2)

    def loss(self, roles, x0, drawn, progress):
        losses.append((2.0 ** len(losses), progress))
        return losses[-1][0] + 0 * roles.student(x0, drawn.u).v.flatten(1).sum(1)

    heard = []
    work = Job(spied(PLAIN, loss=loss), config, feed(), 0, events=3)
    found = fit(work, toy_denoiser(), None, COMPUTE, on_event=heard.append)
    assert [(point.step, point.images, point.loss, point.lr) for point in found.curve] == [
        (2, 16, 1.5, config.rate(1)),
        (4, 32, 6.0, config.rate(3)),
        (6, 48, 24.0, config.rate(5)),
        (7, 56, 64.0, config.rate(6)),
    ]
    assert heard == found.curve
    assert all(point.critic_loss is None for point in found.curve)
    assert [progress for _, progress in losses] == [step / 7 for step in range(7)]


def test_a_point_of_the_curve_has_the_critic_s_losses_since_the_one_before():
    """Two updates a step, a point after every second step."""
    told, own = [], distribution_matching.DistributionMatching(critic_updates=2)

    def critic_loss(self, roles, x0, drawn, progress):
        told.append(2.0 ** len(told))
        return told[-1] + 0 * roles.critic.denoiser(x0, drawn.u).v.flatten(1).sum(1)

    work = Job(spied(own, critic_loss=critic_loss), dataclasses.replace(SHORT, iterations=4), feed(), 0)
    found = fit(dataclasses.replace(work, events=2), toy_denoiser(), toy_denoiser(1), COMPUTE)
    assert [point.critic_loss for point in found.curve] == [sum(told[:4]) / 4, sum(told[4:]) / 4]


def test_threads_are_those_asked_for():
    train(dataclasses.replace(SHORT, iterations=1), compute=dataclasses.replace(COMPUTE, threads=2))
    assert torch.get_num_threads() == 2


def test_a_gigabyte_is_one_of_memory():
    assert dataclasses.replace(COMPUTE, memory_gb=1.5).memory_bytes == 3 * 2**29


@pytest.mark.parametrize("wrong", [{"threads": 0}, {"save_seconds": 0.0}, {"memory_gb": -1.0}])
def test_impossible_ways_to_compute_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        dataclasses.replace(COMPUTE, **wrong)


@pytest.mark.parametrize("seed", [0, 3])
def test_masks_are_thrown_anew_for_every_pass_of_every_part(monkeypatch, seed):
    """By the seed, whose turn it is, the step, which of the critic's updates, for the rows of the part."""
    thrown, throw = [], Masks.throw

    def note(self, *key, rows, count):
        thrown.append((*key, rows.start, rows.stop, count))
        throw(self, *key, rows=rows, count=count)

    monkeypatch.setattr(Masks, "throw", note)
    config = dataclasses.replace(SHORT, iterations=2, accumulate=2)
    work = Job(distribution_matching.DistributionMatching(critic_updates=2), config, feed(), seed)
    fit(work, toy_denoiser(), toy_denoiser(1), COMPUTE)
    assert thrown == [
        (seed, *words[:-1], words[-1], words[-1] + 4, 8)
        for step in (0, 1)
        for words in (
            *(("critic", step, number, first) for number in (0, 1) for first in (0, 4)),
            *(("train", step, first) for first in (0, 4)),
        )
    ]


def test_a_critic_whose_loss_is_not_finite_learns_nothing_from_it():
    """Its second update is the bad one: neither that is made, nor the third."""
    asked, own = [], distribution_matching.DistributionMatching(critic_updates=3)

    def critic_loss(self, roles, x0, drawn, progress):
        asked.append(flat(roles.critic))
        found = own.critic_loss(roles, x0, drawn, progress)
        return found * (math.nan if len(asked) == 2 else 1.0)

    method = watched(own, lambda cast: pytest.fail("the student must not learn from it"), critic_loss=critic_loss)
    work = Job(method, SHORT, feed(), 0)
    loop = Loop(work, toy_denoiser(), toy_denoiser(1), COMPUTE)
    with pytest.raises(Diverged, match=r"step 1: the critic's loss is nan; .*Lower critic_lr"):
        loop.update()
    assert len(asked) == 2
    assert torch.equal(flat(loop.critic.net), asked[1])


@pytest.mark.parametrize(
    "own", [distribution_matching.DistributionMatching(adversarial=0.1), phased.Phased(8, 2, adversarial=0.1)]
)
def test_a_critic_s_heads_come_from_the_job_s_seed_and_are_the_paper_s_four_for_each_map_of_the_teacher(own):
    teacher = NetDenoiser(ToyNet(width=12, seed=1), Cosine())
    for seed in (0, 5):
        loop = Loop(Job(own, SHORT, feed(), seed), toy_denoiser(), teacher, COMPUTE)
        found = loop.critic.net if isinstance(own, phased.Phased) else loop.critic.net.heads
        right = Discriminator((12,), 4, seed).state_dict()
        assert found.state_dict().keys() == right.keys()
        assert all(torch.equal(value, right[name]) for name, value in found.state_dict().items())


# ------------------------------------------------------------------------------------------- several processes


@pytest.mark.parametrize(
    ("processes", "accumulate", "cores", "each"),
    [
        *((1, 1, 1, 1), (1, 4, 1, 4), (2, 1, 1, 1), (2, 2, 1, 2), (4, 2, 1, 2), (8, 1, 1, 1)),
        *((1, 1, 2, 2), (2, 1, 2, 1), (4, 1, 2, 1), (2, 1, 8, 4), (2, 2, 2, 2), (1, 2, 4, 8)),
    ],
)
def test_the_parts_of_a_batch_are_all_of_it_in_its_order_whoever_has_them(processes, accumulate, cores, each):
    config = dataclasses.replace(SHORT, batch=16, accumulate=accumulate, cores=cores)
    parts = [config.parts(rank, processes) for rank in range(processes)]
    assert [len(own) for own in parts] == [each] * processes
    assert len(config.parts(0, processes, torch.device("cuda"))) == accumulate
    images = [[list(range(16))[part] for part in own] for own in parts]
    assert [image for own in images for part in own for image in part] == list(range(16))
    assert len({len(part) for own in images for part in own}) == 1
    for own, seen in zip(parts, images):
        mine = [image for part in seen for image in part]
        assert [mine[local(part, own)] for part in own] == seen
    match = rf"^batch 17 does not divide into \d+ parts, for 5 processes, accumulate {accumulate} and cores {cores}$"
    with pytest.raises(UserError, match=match):
        dataclasses.replace(config, batch=17).parts(0, 5)


SHARED = [
    ("denoising", denoising.Denoising()),
    ("consistency", consistency.Consistency(8, 0.5)),
    ("distribution_matching", distribution_matching.DistributionMatching(2, 1, adversarial=0.1)),
]


@pytest.mark.parametrize(("name", "own"), SHARED)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_what_two_processes_make_of_their_parts_is_what_one_makes_of_the_whole(name, own, accumulate):
    """Their images, noise, classes and weights: the mean of their gradients, and of their critics' losses, is the whole's."""

    def loop(processes: int, rank: int = 0) -> Loop:
        parts = dataclasses.replace(SHORT, batch=16, accumulate=accumulate, cores=2)
        teacher = Guided(denoiser(True, seed=2, whose="teacher"))
        made = Loop(job(name, own, True, parts), denoiser(True), teacher, COMPUTE)
        made.parts = parts.parts(rank, processes)
        made.step = 3
        return made

    def gradient(made: Loop) -> tuple[float, torch.Tensor]:
        loss, _ = made._gradient()
        return float(loss), torch.cat([parameter.grad.flatten() for parameter in made.student.net.parameters()])

    whole, halves = loop(1), [loop(2, rank) for rank in (0, 1)]
    right, found = gradient(whole), [gradient(half) for half in halves]
    if whole.critic:
        assert sum(half.curve.critic[0] for half in halves) / 2 == pytest.approx(whole.curve.critic[0], rel=1e-5)
        return  # each has its own half of the critic's gradient here
    assert (found[0][0] + found[1][0]) / 2 == pytest.approx(right[0], rel=1e-5)
    torch.testing.assert_close((found[0][1] + found[1][1]) / 2, right[1], rtol=1e-4, atol=1e-6)


def test_gradients_travel_once_a_step_with_the_last_part(monkeypatch):
    """Of each update; what all have is the mean of their losses, of the critic's too, and of their critics' gradients."""
    asked = []
    accelerate = learner.Accelerator
    monkeypatch.setattr(accelerate, "no_sync", lambda self, net: asked.append("kept") or contextlib.nullcontext())
    backward = accelerate.backward
    monkeypatch.setattr(accelerate, "backward", lambda self, loss: asked.append("backward") or backward(self, loss))
    train(dataclasses.replace(SHORT, iterations=2, accumulate=4))
    assert asked == [*["kept", "backward"] * 3, "backward"] * 2


def test_a_loss_is_the_mean_of_all_processes(monkeypatch):
    own = distribution_matching.DistributionMatching(critic_updates=1)
    one = dataclasses.replace(SHORT, iterations=1)
    alone = train(one, own).curve[0]
    how = []
    monkeypatch.setattr(learner.Accelerator, "reduce", lambda self, tensor, way: how.append(way) or tensor + 1)
    among = train(one, own).curve[0]
    assert how == ["mean", "mean"]
    assert among.loss == pytest.approx(alone.loss + 1, rel=1e-5)
    assert among.critic_loss == pytest.approx(alone.critic_loss + 1, rel=1e-5)
    assert among.grad_norm == pytest.approx(alone.grad_norm, rel=1e-5)


def test_the_critics_gradients_are_averaged_each_in_its_own_place(monkeypatch):
    def all_reduce(tensor):
        assert tensor.ndim == 1
        tensor += 2

    monkeypatch.setattr(processes, "count", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    gradients = [randn(2, 3), randn(4, seed=1), randn(1, 2, 2, seed=2)]
    before = [gradient.clone() for gradient in gradients]
    processes.average(gradients)
    for gradient, was in zip(gradients, before):
        torch.testing.assert_close(gradient, was / 2 + 1)


@pytest.mark.parametrize("main", [True, False])
def test_one_process_writes_the_state_and_all_wait_for_it(main, monkeypatch, tmp_path):
    """And what all of them took is the work of all."""
    loop = Loop(Job(denoising.Denoising(), SHORT, feed(), 0), toy_denoiser(), None, COMPUTE)
    loop.update()
    waited, resume = [], Resume(tmp_path, "x", {"job": "f"})
    monkeypatch.setattr(processes, "rank", lambda: 0 if main else 2)
    monkeypatch.setattr(processes, "total", lambda number: 3 * number)
    monkeypatch.setattr(processes, "wait", lambda: waited.append(len(list(tmp_path.rglob("step-000000001")))))
    loop.save(resume)
    assert waited == [int(main)]
    assert loop.kept == 1
    monkeypatch.setattr(processes, "rank", lambda: 0)
    state = resume.load()
    assert (state and state.facts["calls"]) == (3 * 8 * 3.0 if main else None)


@pytest.mark.parametrize("gpu", [True, False])
def test_a_process_computes_on_its_gpu_where_there_is_one(gpu, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    assert COMPUTE.device.type == ("cuda" if gpu else "cpu")


def test_a_frozen_student_in_evaluation_learns_all_the_same():
    """As it is opened from a checkpoint; it itself stays as it is."""
    student = toy_denoiser()
    student.net.drop = nn.Dropout(0.5)
    student.eval().requires_grad_(False)
    loop = Loop(Job(denoising.Denoising(), SHORT, feed(), 0), student, None, COMPUTE)
    assert all(parameter.requires_grad for parameter in loop.student.net.parameters())
    assert all(part.training for part in loop.student.net.modules())
    assert not any(part.training for part in loop.ema.modules())
    assert not any(parameter.requires_grad for parameter in (*loop.ema.parameters(), *student.parameters()))
    assert not student.net.training


def test_a_teacher_and_an_averaged_target_answer_as_they_do_in_evaluation():
    teacher, seen = toy_denoiser(1).train(), []
    teacher.net.drop = nn.Dropout(0.5)
    method = watched(consistency.Consistency(8, 0.5), lambda cast: seen.append((cast.teacher, cast.target)))
    fit(Job(method, SHORT, feed(), 0), toy_denoiser(), teacher, COMPUTE)
    for role in seen[0]:
        nets = [part for part in role.modules() if isinstance(part, (ToyNet, nn.Dropout))]
        assert nets
        assert not any(net.training for net in nets)
        assert not any(parameter.requires_grad for parameter in role.parameters())


# ------------------------------------------------------------------------------------------- divergence


def test_weights_that_overflow_are_neither_kept_nor_given(tmp_path):
    """The loss before the update was finite; nobody could go on from what it left."""
    for iterations in (1, 3):
        resume = Resume(tmp_path, "x", {"iterations": iterations})
        with pytest.raises(
            Diverged, match=r"step 1: \S+ is not finite after the update, and such a state is not kept\. Lower lr"
        ):
            train(dataclasses.replace(SHORT, iterations=iterations, lr=1e39), compute=OFTEN, resume=resume)
        assert resume.load() is None
    with pytest.raises(Diverged):
        train(dataclasses.replace(SHORT, iterations=1, lr=1e39))


def test_a_divergence_says_where_the_same_command_would_go_on(tmp_path):
    resume, config, starts = Resume(tmp_path, "x", {"job": "f"}), dataclasses.replace(SHORT, iterations=50, lr=1e20), []
    with pytest.raises(Diverged) as first:
        train(config, compute=OFTEN, resume=resume)
    step = int(re.search(r"step (\d+): the loss is", str(first.value))[1])
    assert f"with nothing changed the same command goes back to step {step - 1} and comes here again" in str(
        first.value
    )
    assert resume.load().step == step - 1
    with pytest.raises(Diverged) as second:
        train(config, compute=OFTEN, resume=resume, on_resume=starts.append)
    assert str(second.value) == str(first.value)
    assert starts == [step - 1]
    with pytest.raises(Diverged, match="the same command begins anew"):
        train(config)


def test_a_critic_that_diverges_says_so():
    config = distribution_matching.DistributionMatching(critic_updates=2, critic_lr=1e20)
    with pytest.raises(
        Diverged, match=r"step \d: the critic's loss is .*; nothing was updated with it\. Lower critic_lr"
    ):
        train(dataclasses.replace(SHORT, iterations=9), config)


# ------------------------------------------------------------------------------------------- what a critic sees


class Seeing(Denoiser):
    """A teacher whose features are the image itself; notes what it was shown, and when."""

    def __init__(self):
        super().__init__()
        self.inner, self.schedule, self.grid, self.shown = toy_denoiser(1).double(), Cosine(), None, []

    def forward(self, x_t, t):
        return self.inner(x_t, t)

    def features(self, x_t, t):
        self.shown.append((x_t, t))
        return [x_t]


def cast(method: Method) -> tuple[Roles, torch.Tensor, rng.Draw]:
    student, teacher = toy_denoiser(0).double(), Seeing()
    x0, drawn = randn(6, 1, 4, 4), rng.draw(torch.zeros(6, 1, 4, 4), 3, "critic", 0, 0)
    drawn = dataclasses.replace(drawn, noise=drawn.noise.double())
    heads = Discriminator((1,), 1, 0).double()
    known = (
        distribution_matching.FakeScore(teacher.inner, heads)
        if isinstance(method, distribution_matching.DistributionMatching)
        else heads
    )
    return Roles(student, teacher, student, known), x0, drawn


def test_heads_see_real_images_and_the_student_s_under_one_noise_at_one_time():
    config = distribution_matching.DistributionMatching(1, adversarial=0.1)
    roles, x0, drawn = cast(config)
    config.critic_loss(roles, x0, drawn, 0.0)
    (real, t), (fake, when) = roles.teacher.shown
    level = drawn.fork("level")
    assert torch.equal(t, when)
    torch.testing.assert_close(t, 0.02 + 0.96 * level.u)
    sample = roles.student(drawn.noise, torch.ones(6).double()).x0
    for found, clean in ((real, x0), (fake, sample)):
        torch.testing.assert_close(found, diffuse(clean, level.noise, t * torch.pi / 2), rtol=1e-9, atol=1e-9)
    roles.teacher.shown.clear()
    config.loss(roles, x0, drawn, 0.0)
    ((shown, when),) = roles.teacher.shown
    torch.testing.assert_close(shown, fake, rtol=1e-9, atol=1e-9)
    assert torch.equal(when, t)


def test_heads_see_both_landings_under_one_noise_past_the_edge():
    """sqrt(1 - kept^2 sin^2 / ...) of `renoise`: alpha falls by cos(phi)/cos(phi_s), and both get the same noise on top."""
    config = phased.Phased(16, 4, adversarial=0.1)
    roles, x0, drawn = cast(config)
    config.critic_loss(roles, x0, drawn, 0.0)
    (real, t), (fake, when) = roles.teacher.shown
    at, extra = config.times(drawn.u), drawn.fork("adversary")
    assert torch.equal(t, when)
    torch.testing.assert_close(t, at.s + extra.u / 4)
    phi_t, phi_s, phi = (x[:, None, None, None] * torch.pi / 2 for x in (at.t, at.s, t))
    z = phi_t.cos() * x0 + phi_t.sin() * drawn.noise
    goal, v = phased.aim(roles, z, at), roles.student(z, at.t).v
    kept = phi.cos() / phi_s.cos()
    std = (phi.sin() ** 2 - (kept * phi_s.sin()) ** 2).sqrt()
    for found, velocity in ((real, goal), (fake, v)):
        landing = (phi_t - phi_s).cos() * z - (phi_t - phi_s).sin() * velocity
        torch.testing.assert_close(found, kept * landing + std * extra.noise, rtol=1e-7, atol=1e-7)


def test_guided_features_are_those_of_the_samples_own_classes():
    net, x, t = conditional_net(), randn(3, 1, 8, 8).float(), torch.tensor([0.3, 0.6, 0.9])
    known = of_classes(torch.tensor([0, 2, 1]), torch.full((3,), 2.0))
    own = NetDenoiser(net, Cosine(), classes=3)
    found = Guided(own).with_condition(known).features(x, t)
    for one, right, null in zip(found, own.with_condition(known).features(x, t), own.features(x, t), strict=True):
        assert torch.equal(one, right)
        assert not torch.equal(one, null)


# ------------------------------------------------------------------------------------------- compiled


class Plain(ToyNet):
    """Counts how often Python itself runs its forward."""

    def __init__(self, seed: int = 0):
        super().__init__(seed=seed)
        self.table, self.drop = nn.Embedding(4, 8), nn.Dropout(0.0)
        with torch.no_grad():
            self.table.weight.normal_(generator=seeded(seed))

    def forward(self, x, timestep, class_labels):
        if not torch.compiler.is_compiling():
            UNCOMPILED.append(1)
        return self.drop(self.conv_out(self.features(x, timestep)[0] * self.table(class_labels)[..., None, None]))

    def features(self, x, timestep, class_labels=None):
        return super().features(x, timestep)


UNCOMPILED: list[int] = []
COMPILED = {
    "a target that is an average": (consistency.Consistency(8, 0.5, steps_end=8), 3),
    "a student that is its own target": (consistency.Consistency(8, 0.0, steps_end=8), 3),
    "a critic": (distribution_matching.DistributionMatching(1, 2), 2 * 2 + 3),
    "a derivative": (continuous.Continuous(), 2),
}


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor"
)  # torch's own, as it looks at an input that has a past
@pytest.mark.parametrize("case", COMPILED)
def test_every_network_is_compiled_once_and_runs_so_in_every_update(case, monkeypatch, tmp_path):
    """Where the loss is no one graph (tests/test_compiled.py). Told of classes and guided, for which denoisers are made anew
    for every batch. The derivative alone is taken of the network as it is."""
    method, calls = COMPILED[case]
    graphs, runs, counts = [], [], []

    def backend(graph, inputs):
        graphs.append(graph)
        return lambda *given: runs.append(1) or graph.forward(*given)

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    torch._dynamo.reset()

    def train(compile: bool, **more):
        work = Job(method, SHORT, feed(True), 0, guidance=(1.0, 3.0))
        student, teacher = (NetDenoiser(Plain(seed), Cosine(), classes=3) for seed in (0, 1))
        compute = dataclasses.replace(COMPUTE, compile=compile)
        return fit(work, student, Guided(teacher), compute, **more)

    UNCOMPILED.clear()
    found = train(True, on_event=lambda event: counts.append((len(graphs), len(runs))))
    assert len({compiled for compiled, _ in counts}) == 1, counts  # nothing is compiled after the first update
    assert [after - before for (_, before), (_, after) in itertools.pairwise(counts)] == [calls] * (
        SHORT.iterations - 1
    )
    assert len(UNCOMPILED) == (SHORT.iterations if case == "a derivative" else 0)
    assert found.net.state_dict().keys() == Plain().state_dict().keys()
    plain = train(False)
    for name, tensor in plain.net.state_dict().items():
        torch.testing.assert_close(found.net.state_dict()[name], tensor, rtol=1e-4, atol=1e-6)
    resume = Resume(tmp_path, "x", {"job": "f"})
    with pytest.raises(Stopped):
        train(True, resume=resume, stop=stop_at(2))
    assert same(found, train(True, resume=resume))
