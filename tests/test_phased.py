"""Phased consistency: edges, targets and re-noising against closed forms, the critic's part, the real trainer."""

import dataclasses
import itertools
import math
from fractions import Fraction

import pytest
import torch
from torch import nn

from diffcore.core.errors import UserError
from diffcore.core.rng import Draw, draw
from diffcore.denoisers.denoiser import Denoiser
from diffcore.denoisers.exact import GaussianDenoiser
from diffcore.denoisers.network import NetDenoiser
from diffcore.denoisers.prediction import Prediction, from_v
from diffcore.denoisers.reading import Reading
from diffcore.methods import Roles, consistency, phased
from diffcore.methods.parts.discriminator import Discriminator, fooling, hinge
from diffcore.methods.phased import Phased, aim, renoise
from diffcore.noise.angle import diffuse
from diffcore.noise.schedule import Cosine
from diffcore.noise.trajectory import uniform
from diffcore.sampling.sampler import Sampler
from diffcore.sampling.solvers import SOLVERS
from diffcore.training.config import Training
from diffcore.training.loop import Job, Stopped, fit
from diffcore.training.resume import Resume
from tests import test_methods as laws
from tests.conftest import gaussian, make_schedule, randn, toy_denoiser
from tests.test_consistency_training import GaussianFeed
from tests.test_fit import COMPUTE, job, run, same, stop_at
from tests.test_methods import Exact, roles, spied, toss

pytestmark = pytest.mark.usefixtures("without_shape_checks")

GRIDS = [(1, 1), (4, 1), (4, 4), (8, 4), (6, 3), (12, 3), (50, 5), (49, 7), (64, 4), (96, 6), (1000, 8)]
ADVERSARIAL = Phased(steps=8, phases=2, adversarial=0.1)


def every(config: Phased) -> phased.Times:
    """The times of k = 1..N, from the middles of N equal cells."""
    return config.times((torch.arange(config.steps).double() + 0.5) / config.steps)


def below(phases: int):
    """The edge that a point of the flow is taken to."""
    return lambda t: ((t * phases - 1e-9).ceil() - 1) / phases


# ------------------------------------------------------------------------------------------- edges


def test_eight_steps_in_four_phases():
    at = every(Phased(steps=8, phases=4))
    assert (8 * at.t).tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert (8 * at.u).tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    assert (4 * at.s).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


@pytest.mark.parametrize(("n", "m"), GRIDS)
def test_the_edge_of_a_point_is_the_nearest_below_it(n, m):
    """Even of a point that is an edge itself. Times are those of the grids to the last bit: a student is sampled on edges."""
    at = every(Phased(steps=n, phases=m))
    for k in range(1, n + 1):
        edge = max(Fraction(j, m) for j in range(m) if Fraction(j, m) < Fraction(k, n))
        found = tuple(float(time[k - 1]) for time in (at.t, at.u, at.s))
        assert found == (k / n, (k - 1) / n, edge.numerator / edge.denominator)
    assert all(time.dtype == torch.float64 for time in (at.t, at.u, at.s))
    own, teacher = Phased(steps=n, phases=m).grid, uniform(n)
    assert own == uniform(m)
    assert set(at.s.tolist()) == set(own.times[1:])
    assert set(own.times) <= set(teacher.times)
    assert set(at.t.tolist()) == set(teacher.times[:-1])


def test_a_grid_that_is_no_multiple_of_the_phases_is_refused_with_the_nearest():
    for n, m in itertools.product(range(1, 31), repeat=2):
        if n % m == 0:
            Phased(steps=n, phases=m)
            continue
        with pytest.raises(ValueError, match=f"phases must divide steps, but {m} does not divide {n}; ") as caught:
            Phased(steps=n, phases=m)
        nearest = int(str(caught.value).rpartition(" ")[2])
        assert abs(nearest - n) == min(abs(j * m - n) for j in range(1, 31))
    with pytest.raises(ValueError, match="4 does not divide 50; the nearest steps is 52"):
        Phased(steps=50, phases=4)


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": 0},
        {"phases": 0},
        {"target_ema": 1.0},
        {"adversarial": -0.1},
        {"huber": 0.0},
        {"critic_lr": 0.0},
    ],
)
def test_impossible_numbers_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Phased(**wrong)


def test_what_a_teacher_must_be():
    Phased().check(None)
    Phased(steps=16).check(uniform(16))
    with pytest.raises(UserError, match=r"steps 16 needs a teacher of 16 steps .* has 8; name another teacher"):
        Phased(steps=16).check(uniform(8))
    ADVERSARIAL.check(None)
    with pytest.raises(
        UserError,
        match="needs a teacher valid at any time, but this one is valid only on its own 8 steps; set adversarial to 0 or",
    ):
        ADVERSARIAL.check(uniform(8))


# ------------------------------------------------------------------------------------------- the target


def exact_roles(n: int, m: int) -> Roles:
    """Everyone knows the flow: the teacher to the next time, student and target to the edge."""
    student = Exact(below(m))
    return Roles(student, Exact(lambda t: t - 1 / n), student)


@pytest.mark.parametrize("m", [1, 2, 3, 8])
def test_phases_of_the_exact_flow_are_the_whole_flow(m):
    """One call for each phase, by the student's own solver on its own grid."""
    start = randn(5, 2, 3)
    sampler = Sampler(Exact(below(m)), SOLVERS[phased.Phased.sampler](), Phased(steps=24, phases=m).grid)
    whole = gaussian().flow(start, torch.ones(5).double(), torch.zeros(5).double())
    torch.testing.assert_close(sampler.sample(start), whole, rtol=0, atol=1e-12)


@pytest.mark.parametrize("weight", ["one", "endpoint"])
@pytest.mark.parametrize(("n", "m"), [(16, 4), (16, 1), (12, 3), (8, 8)])
def test_the_exact_phase_map_has_no_residual(n, m, weight):
    config = Phased(steps=n, phases=m, distance="squared", weight=weight)
    x0, u = randn(n, 2, 3, seed=1), (torch.arange(n).double() + 0.5) / n
    drawn = Draw(u, randn(n, 2, 3, seed=2))
    assert float(config.loss(exact_roles(n, m), x0, drawn, 0.0).max()) < 1e-24
    whole = Exact(torch.zeros_like)
    other = config.loss(dataclasses.replace(exact_roles(n, m), student=whole), x0, drawn, 0.0)
    first = n // m  # only below the first edge does the map to the data end a phase
    assert float(other[:first].max()) < 1e-24
    assert m == 1 or float(other[first:].min()) > 1e-6


@pytest.mark.parametrize("place", [0.75, 0.5])
def test_one_ddim_hop_leaves_a_residual_of_local_order_two(place):
    """In the middle of a phase, and on the edge that it begins at."""
    residuals = []
    for n in (64, 128, 256):
        config = Phased(steps=n, phases=2, distance="squared")
        drawn = Draw(torch.tensor([place - 0.5 / n]).double(), randn(1, 2, 3, seed=2))
        cast = dataclasses.replace(exact_roles(n, 2), teacher=gaussian())
        residuals.append(float(config.loss(cast, randn(1, 2, 3, seed=1), drawn, 0.0)) ** 0.5)
    assert [math.log2(a / b) for a, b in itertools.pairwise(residuals)] == pytest.approx([2, 2], abs=0.1)


class Nowhere(Denoiser):
    """Not a number at the times given; elsewhere another denoiser."""

    def __init__(self, inner: Denoiser, where: torch.Tensor):
        super().__init__()
        self.inner, self.where, self.schedule, self.grid = inner, where, inner.schedule, None

    def forward(self, x_t, t):
        bad = torch.isin(t, self.where)[:, None, None]
        return from_v(x_t, self.schedule.level(t, x_t), torch.where(bad, torch.nan, self.inner(x_t, t).v))


@pytest.mark.parametrize(("n", "m"), [(8, 4), (8, 8), (6, 1)])
def test_where_the_hop_ends_on_the_edge_the_target_is_the_hop_itself(n, m):
    """Whatever the target says there: at the data the velocity of some networks is not a number."""
    at = every(Phased(steps=n, phases=m))
    z, on_edge = randn(n, 2, 3), at.u == at.s
    found = aim(Roles(gaussian(), gaussian(), Nowhere(gaussian(), at.s)), z, at)
    assert int(on_edge.sum()) == m
    torch.testing.assert_close(found[on_edge], gaussian()(z, at.t).v[on_edge], rtol=0, atol=1e-15)
    assert found.isfinite().all()
    assert m == n or float((found - gaussian()(z, at.t).v)[~on_edge].abs().max()) > 1e-3


def test_a_student_that_says_x0_has_a_finite_loss():
    cast = roles()
    cast = Roles(
        *(NetDenoiser(role.net, Cosine(), Reading("x0")) for role in (cast.student, cast.teacher, cast.target))
    )
    x0, noise = randn(8, 3, 3, 3), randn(8, 3, 3, 3, seed=6)
    per = Phased(steps=8, phases=2).loss(cast, x0, Draw((torch.arange(8).double() + 0.5) / 8, noise), 0.0)
    per.sum().backward()
    assert per.isfinite().all()
    assert all(p.grad.isfinite().all() for p in cast.student.parameters())


@pytest.mark.parametrize("distance", ["squared", "pseudo_huber"])
@pytest.mark.parametrize("weight", ["one", "endpoint"])
def test_one_phase_is_consistency(distance, weight):
    """To the last bit with weight one; with the endpoint's it is the distance of two beliefs about x_0, as published."""
    cast, (x0, drawn) = roles(), toss()
    found = Phased(steps=16, phases=1, distance=distance, weight=weight).loss(cast, x0, drawn, 0.0)
    if weight == "one":
        other = consistency.Consistency(steps=16, target_ema=0.0, distance=distance)
        assert torch.equal(found, other.loss(cast, x0, drawn, 0.0))
        return
    at = Phased(steps=16, phases=1).times(drawn.u)
    z = diffuse(x0, drawn.noise, math.pi / 2 * at.t)
    ddim = SOLVERS["ddim"]().step
    aimed = cast.target(ddim(cast.teacher, z, at.t, at.u, None), at.u).x0
    square, c = (cast.student(z, at.t).x0 - aimed).square().flatten(1).sum(1), 0.00054 * math.sqrt(27)
    by_hand = square / 27 if distance == "squared" else (square + c**2).sqrt() - c
    torch.testing.assert_close(found, by_hand, rtol=1e-10, atol=0)


@pytest.mark.parametrize("distance", ["squared", "pseudo_huber"])
def test_the_loss_by_hand(distance):
    """Three DDIM steps land on the edge: the teacher's and the target's two, and the student's one."""
    n, m = 12, 3
    cast, x0, noise = roles(), randn(n, 3, 3, 3), randn(n, 3, 3, 3, seed=6)
    at, ddim = every(Phased(steps=n, phases=m)), SOLVERS["ddim"]().step
    phi_t, phi_s = math.pi / 2 * at.t, math.pi / 2 * at.s
    z = diffuse(x0, noise, phi_t)
    middle = ddim(cast.teacher, z, at.t, at.u, None)
    goal = torch.where((at.u > at.s)[:, None, None, None], ddim(cast.target, middle, at.u, at.s, None), middle)
    apart = (ddim(cast.student, z, at.t, at.s, None) - goal).square().flatten(1).sum(1)
    for weight, square in (("endpoint", apart), ("one", apart / (phi_t - phi_s).sin() ** 2)):
        c = 0.01 * math.sqrt(27)
        by_hand = square / 27 if distance == "squared" else (square + c**2).sqrt() - c
        config = Phased(steps=n, phases=m, distance=distance, weight=weight, huber=0.01)
        found = config.loss(cast, x0, Draw((torch.arange(n).double() + 0.5) / n, noise), 0.0)
        torch.testing.assert_close(found, by_hand, rtol=1e-9, atol=1e-14)


# ------------------------------------------------------------------------------------------- noise anew


PAIRS = [(0.0, 0.3), (0.0, 1.0), (0.25, 0.5), (0.5, 0.75), (0.75, 1.0), (0.75, 0.9), (0.5, 0.5 + 1e-9)]


@pytest.mark.parametrize(("s", "t"), PAIRS)
@pytest.mark.parametrize("name", ["cosine", "linear", "discrete"])
def test_a_renoised_image_has_the_marginals_of_its_time(name, s, t):
    """Signal and noise of it one by one, then the variance of Gaussian data."""
    schedule, one, none = make_schedule(name), torch.ones(1, 1).double(), torch.zeros(1, 1).double()
    phi_s, phi = (schedule.angle(torch.tensor([time]).double()) for time in (s, t))
    kept, added = renoise(one, none, phi_s, phi), renoise(none, one, phi_s, phi)
    torch.testing.assert_close(kept * phi_s.cos(), phi.cos()[:, None], rtol=1e-14, atol=1e-15)
    noise = (kept * phi_s.sin()) ** 2 + added**2
    torch.testing.assert_close(noise, (phi.sin() ** 2)[:, None], rtol=1e-14, atol=0)
    before, after = (p.cos() ** 2 * 0.3 + p.sin() ** 2 for p in (phi_s, phi))
    torch.testing.assert_close(kept**2 * before + added**2, after[:, None], rtol=1e-14, atol=0)


def test_the_noise_of_a_short_way_keeps_its_digits():
    """sin^2 phi - (cos phi / cos phi_s)^2 sin^2 phi_s is 2 d tan phi_s up to d^2, but its two terms are near one."""
    phi_s, d = torch.tensor([0.3, 0.8, 1.5]).double(), 2.0**-40
    std = renoise(torch.zeros(3, 1).double(), torch.ones(3, 1).double(), phi_s, phi_s + d)[:, 0]
    torch.testing.assert_close(std**2, 2 * d * phi_s.tan(), rtol=1e-9, atol=0)


def test_in_two_ways_as_in_one():
    """Variances add up: further noise on noise is one way of the process."""
    none, one = torch.zeros(1, 1).double(), torch.ones(1, 1).double()
    phi = [torch.tensor([angle]).double() for angle in (0.2, 0.9, 1.4)]
    first, second, whole = (renoise(none, one, *way) for way in (phi[:2], phi[1:], phi[::2]))
    kept = renoise(one, none, *phi[1:])
    torch.testing.assert_close((kept * first) ** 2 + second**2, whole**2, rtol=1e-14, atol=0)


# ------------------------------------------------------------------------------------------- the critic


def adversaries(config: Phased = ADVERSARIAL) -> Roles:
    return roles(3, config)


@pytest.mark.parametrize(
    "law",
    [
        laws.test_the_batch_law,
        laws.test_a_loss_is_a_pure_function_and_only_the_student_learns,
        laws.test_network_calls_are_what_a_spy_counts,
        laws.test_float32_losses_agree_with_float64,
        laws.test_a_critic_learns_alone_and_obeys_the_batch_law,
    ],
    ids=lambda law: law.__name__,
)
@pytest.mark.parametrize("config", [ADVERSARIAL, dataclasses.replace(ADVERSARIAL, phases=1, weight="endpoint")])
def test_the_laws_hold_with_a_critic(law, config):
    law("phased", config)


def test_without_an_adversarial_part_there_is_no_critic():
    assert Phased().critic(roles(), 0) is None
    nothing = dataclasses.replace(roles(), teacher=gaussian())  # which has no features, nor is asked for any
    assert Phased().critic(nothing, 0) is None
    with pytest.raises(UserError, match="no features to show"):
        ADVERSARIAL.critic(nothing, 0)
    made = ADVERSARIAL.critic(roles(), 3)
    assert isinstance(made, Discriminator)
    assert (made.widths, made.count) == ((8,), 4)
    training = dataclasses.replace(ADVERSARIAL, critic_lr=0.25).critic_training
    assert (training.updates, training.lr, training.betas) == (1, 0.25, (0.0, 0.999))


class Shown(NetDenoiser):
    """Remembers which images it was asked to look at."""

    def features(self, x_t, t):
        self.seen = [*getattr(self, "seen", []), (x_t, t)]
        return super().features(x_t, t)


def landings(cast: Roles, x0, drawn, config: Phased = ADVERSARIAL):
    """(real, fake) on the edge, by DDIM steps."""
    at, ddim = config.times(drawn.u), SOLVERS["ddim"]().step
    z = diffuse(x0, drawn.noise, math.pi / 2 * at.t)
    middle = ddim(cast.teacher, z, at.t, at.u, None)
    real = torch.where((at.u > at.s)[:, None, None, None], ddim(cast.target, middle, at.u, at.s, None), middle)
    return at, real, ddim(cast.student, z, at.t, at.s, None)


def by_hand_noise(x, drawn, s, t):
    """The process from s to t, from its levels."""
    schedule, other = Cosine(), drawn.fork("adversary")
    ratio = schedule.alpha(t) / schedule.alpha(s)
    std = (schedule.sigma(t) ** 2 - (ratio * schedule.sigma(s)) ** 2).sqrt()
    return ratio[:, None, None, None] * x + std[:, None, None, None] * other.noise


def test_the_critic_compares_landings_noised_alike_within_the_phase_above():
    cast, (x0, drawn) = adversaries(), toss()
    teacher = Shown(cast.teacher.net, Cosine())
    cast = dataclasses.replace(cast, teacher=teacher)
    whole = ADVERSARIAL.critic_loss(cast, x0, drawn, 0.5)
    (real, t), (fake, again) = teacher.seen
    at, on_edge, landed = landings(cast, x0, drawn)
    assert torch.equal(t, again)
    assert torch.equal(t, at.s + drawn.fork("adversary").u / 2)
    assert bool(((at.s < t) & (t < at.s + 0.5)).all())
    assert len(set((2 * at.s).tolist())) == 2
    torch.testing.assert_close(real, by_hand_noise(on_edge, drawn, at.s, t), rtol=0, atol=1e-12)
    torch.testing.assert_close(fake, by_hand_noise(landed, drawn, at.s, t), rtol=0, atol=1e-12)
    looks = [cast.critic(NetDenoiser(teacher.net, Cosine()).features(image, t)) for image in (real, fake)]
    torch.testing.assert_close(whole, hinge(*looks), rtol=1e-12, atol=0)
    assert float((hinge(*looks) - hinge(*reversed(looks))).abs().max()) > 1e-3


def test_the_student_is_told_what_the_critic_says_of_its_landing_and_no_more():
    cast, (x0, drawn) = adversaries(), toss()
    teacher = Shown(cast.teacher.net, Cosine())
    cast = dataclasses.replace(cast, teacher=teacher)
    plain = dataclasses.replace(ADVERSARIAL, adversarial=0.0).loss(cast, x0, drawn, 0.5)
    assert not hasattr(teacher, "seen")
    whole = ADVERSARIAL.loss(cast, x0, drawn, 0.5)
    ((image, t),) = teacher.seen
    at, _, fake = landings(cast, x0, drawn)
    torch.testing.assert_close(image, by_hand_noise(fake, drawn, at.s, t), rtol=0, atol=1e-12)
    says = fooling(cast.critic(NetDenoiser(teacher.net, Cosine()).features(image, t)))
    torch.testing.assert_close(whole, plain + 0.1 * says, rtol=1e-12, atol=0)


def test_its_slope_reaches_the_student_through_the_landing_and_the_frozen_network():
    """Against differences of the loss along every output of the student; target and teacher stay where they are."""
    config = dataclasses.replace(ADVERSARIAL, adversarial=10.0, distance="squared")
    cast, (x0, drawn) = adversaries(config), toss()

    class Shifted(Denoiser):
        schedule, grid = Cosine(), None

        def __init__(self):
            super().__init__()
            self.inner, self.shift = cast.student, nn.Parameter(torch.zeros(3, 3, 3, dtype=torch.float64))

        def forward(self, x_t, t) -> Prediction:
            return from_v(x_t, self.schedule.level(t, x_t), self.inner(x_t, t).v + self.shift)

    student = Shifted()
    cast = dataclasses.replace(cast, student=student)

    def loss(config=config):
        return config.loss(cast, x0, drawn, 0.5).sum()

    slope = torch.autograd.grad(loss(), student.shift)[0]
    for place in [(0, 0, 0), (1, 2, 0), (2, 1, 1)]:
        values = []
        for way in (1e-6, -1e-6):
            with torch.no_grad():
                student.shift.zero_()[place] = way
                values.append(float(loss()))
        assert (values[0] - values[1]) / 2e-6 == pytest.approx(float(slope[place]), rel=1e-5, abs=1e-7)
    with torch.no_grad():
        student.shift.zero_()
    plain = torch.autograd.grad(loss(dataclasses.replace(config, adversarial=0.0)), student.shift)[0]
    assert float((slope - plain).abs().max()) > 1e-2


# ------------------------------------------------------------------------------------------- the trainer


class Table(nn.Module):
    """A gain and a shift at each of N times."""

    def __init__(self, steps: int):
        super().__init__()
        self.gain, self.shift = nn.Parameter(torch.zeros(steps)), nn.Parameter(torch.zeros(steps))

    def forward(self, x, timestep):
        row = ((timestep + 1) / 1024 * len(self.gain)).round().long() - 1
        return self.gain[row][:, None, None, None] * x + self.shift[row][:, None, None, None]


@pytest.mark.slow
@pytest.mark.parametrize(
    "config",
    [
        Phased(steps=12, phases=3, distance="squared"),
        Phased(steps=12, phases=3, weight="endpoint", target_ema=0.5),
        Phased(steps=6, phases=6, distance="squared"),
    ],
    ids=["squared", "endpoint", "one step a phase"],
)
def test_the_trainer_makes_m_steps_of_the_teachers_n(config):
    """The only student without a residual: from nothing, its M calls land where N DDIM steps of the teacher do."""
    teacher = GaussianDenoiser(torch.full((1, 4, 4), 0.2), torch.full((1, 4, 4), 0.25), Cosine())
    setting = Training(300, 48, 0.1, ema=0.9, weight_decay=0.0)
    line = Job(config, setting, GaussianFeed(0.2, 0.5, 48, shape=(1, 4, 4)), 0)
    student = NetDenoiser(fit(line, NetDenoiser(Table(config.steps), Cosine()), teacher, COMPUTE).net, Cosine())
    start = randn(6, 1, 4, 4).float()
    fast, slow = (
        Sampler(denoiser, SOLVERS["ddim"](), uniform(steps)).sample(start)
        for denoiser, steps in ((student, config.phases), (teacher, config.steps))
    )
    torch.testing.assert_close(fast, slow, rtol=0, atol=1e-3)
    few = Sampler(teacher, SOLVERS["ddim"](), uniform(config.phases)).sample(start)
    assert config.phases == config.steps or float((few - slow).abs().max()) > 0.1


def work(**more) -> Job:
    """Two points of the curve for six steps: a stop finds losses not yet reported."""
    return dataclasses.replace(job(dataclasses.replace(ADVERSARIAL, **more)), events=2)


@pytest.mark.parametrize("target_ema", [0.0, 0.5])
@pytest.mark.parametrize("stopped_after", [1, 3, 4])
def test_a_stopped_run_goes_on_to_the_same_bytes_critic_and_all(stopped_after, target_ema, tmp_path):
    whole = Resume(tmp_path / "whole", "x", {"job": "f"})
    halved = Resume(tmp_path / "halved", "x", {"job": "f"})
    fitted, states = run(work(target_ema=target_ema), whole), []
    with pytest.raises(Stopped, match=f"after {stopped_after} of 6"):
        run(work(target_ema=target_ema), halved, stop=stop_at(stopped_after))
    state = halved.load()
    step, facts = state.step, state.facts
    assert (step, len(facts["critic"])) == (stopped_after, stopped_after % 3)
    resumed = run(work(target_ema=target_ema), halved)
    assert same(fitted, resumed)
    assert fitted.calls == resumed.calls
    assert [event.step for event in fitted.curve] == [3, 6]
    assert all(event.critic_loss > 0 for event in fitted.curve)
    for resume in (whole, halved):
        state = resume.load()
        step, tensors, facts = state.step, state.tensors(), state.facts
        facts.pop("seconds")
        states.append((step, facts, tensors))
    assert states[0][:2] == states[1][:2]
    assert set(states[0][2]) == set(states[1][2])
    assert all(torch.equal(tensor, states[1][2][name]) for name, tensor in states[0][2].items())


def test_a_killed_run_goes_on_from_its_last_state(tmp_path):
    """It died in the middle of a step, with no time to save: the state before it counts."""
    resume, often = Resume(tmp_path, "x", {"job": "f"}), dataclasses.replace(COMPUTE, save_seconds=1e-9)

    def die(event):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(work(), resume, often, on_event=die)
    assert resume.load().step == 2
    begun = []
    assert same(run(work()), run(work(), resume, on_resume=begun.append))
    assert begun == [2]


def test_a_state_holds_all_that_the_critic_has_learned(tmp_path):
    resume = Resume(tmp_path, "x", {"job": "f"})
    run(work(), resume)
    tensors = resume.load().tensors()
    start = ADVERSARIAL.critic(Roles(toy_denoiser(), toy_denoiser(1), toy_denoiser()), 0).state_dict()
    for name, value in start.items():
        assert not torch.equal(tensors[f"critic/{name}"], value), name
        assert float(tensors[f"critic step/{name}"]) == 6
        assert tensors[f"critic exp_avg_sq/{name}"].any()
    assert not any("critic" in name for name in run_state(tmp_path, work(adversarial=0.0)))


def run_state(folder, job: Job) -> dict[str, torch.Tensor]:
    resume = Resume(folder / "other", "x", {"job": "f"})
    assert run(job, resume).curve[0].critic_loss is None
    return resume.load().tensors()


def test_in_the_trainer_the_critic_learns_and_the_student_hears_it():
    """A critic of a student that stands still learns to tell it; and a student pulled by the critic goes another way."""
    setting = Training(50, 32, 1e-9, ema=0.0, weight_decay=0.0)
    still = dataclasses.replace(
        work(steps=2, critic_lr=3e-3), training=setting, feed=GaussianFeed(0.2, 0.5, 32), events=5
    )
    curve = run(still).curve
    assert curve[0].critic_loss > 1.5
    assert curve[-1].critic_loss < 1.0
    pulled, free = (run(work(adversarial=part)).net.state_dict() for part in (0.1, 0.0))
    assert not any(torch.equal(pulled[name], free[name]) for name in pulled)


def test_parts_of_a_batch_add_up_for_the_critic_too():
    whole, parts = (
        run(dataclasses.replace(work(), training=Training(1, 8, 1e-2, 0.9, weight_decay=0.0, accumulate=parts)))
        for parts in (1, 4)
    )
    assert whole.curve[0].critic_loss == pytest.approx(parts.curve[0].critic_loss, rel=1e-5)
    assert whole.curve[0].loss == pytest.approx(parts.curve[0].loss, rel=1e-5)


def test_the_critic_s_dice_are_its_own_at_every_step():
    seen, own = [], work().method

    def critic_loss(self, roles, x0, drawn, progress):
        seen.append((drawn.u, drawn.noise, progress))
        return own.critic_loss(roles, x0, drawn, progress)

    run(dataclasses.replace(work(), method=spied(own, critic_loss=critic_loss), seed=7))
    assert len(seen) == 6
    for step, (u, noise, progress) in enumerate(seen):
        expected = draw(torch.zeros(8, 1, 4, 4), 7, "critic", step, 0)
        assert torch.equal(u, expected.u)
        assert torch.equal(noise, expected.noise)
        assert progress == step / 6
