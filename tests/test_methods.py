"""Laws that every method in diffcore/methods/ obeys because it is there, then each method's own."""

import dataclasses
import itertools
import math
from pathlib import Path

import pytest
import torch

from diffcore import methods
from diffcore.core.errors import UserError
from diffcore.core.rng import Draw, draw
from diffcore.denoisers.denoiser import Denoiser
from diffcore.denoisers.exact import GaussianDenoiser
from diffcore.denoisers.network import NetDenoiser
from diffcore.denoisers.prediction import Prediction, from_v
from diffcore.denoisers.reading import Reading
from diffcore.methods import Method, Roles, consistency, denoising, progressive
from diffcore.noise.angle import WEIGHTS, between, hop, min_snr
from diffcore.noise.schedule import Cosine
from diffcore.noise.trajectory import uniform
from diffcore.sampling.sampler import Sampler
from diffcore.sampling.solvers import SOLVERS
from tasks import params
from tests.conftest import ToyNet, gaussian, randn

ROOT = Path(__file__).parent.parent

OPTIONS = [
    ("denoising", denoising.Denoising(weight="min_snr", gamma=2.0)),
    ("progressive", progressive.Progressive(steps=3, weight="snr", factor=3, clip=True)),
    ("consistency", consistency.Consistency(8, 0.0, "perceptual")),
    ("consistency", consistency.Consistency(8, 0.9, hop="heun", steps_end=32, anneal=0.8)),
    ("consistency", consistency.Consistency(8, 0.0, hop="substeps", substeps=3)),
]
"""Choices that neither params.yaml nor a default makes."""


def configs() -> list:
    """(name, method) for every line of params.yaml, for methods that need no numbers, and the OPTIONS."""
    lines = params.read(ROOT / "params.yaml").distill.values()
    found = {(methods.word(line.method), line.method) for line in lines} | set(OPTIONS)
    for name in methods.names():
        kind = methods.load(name)
        if all(field.default is not dataclasses.MISSING for field in dataclasses.fields(kind)):
            found.add((name, kind()))
    return sorted(found, key=str)


CASES = pytest.mark.parametrize(("name", "config"), configs(), ids=lambda value: str(value))


def roles(channels: int = 3, method: Method | None = None) -> Roles:
    teacher, student, target = (NetDenoiser(ToyNet(channels, seed=s).double(), Cosine()) for s in (1, 2, 3))
    cast = Roles(student, teacher.requires_grad_(False), target.requires_grad_(False))
    critic = method and method.critic(cast, 0)
    if critic is None:
        return cast
    for number, parameter in enumerate(critic.double().requires_grad_(False).parameters()):
        parameter += 0.05 * randn(*parameter.shape, seed=number)  # it has learned something already
    return dataclasses.replace(cast, critic=critic)


def spied(method: Method, **instead) -> Method:
    """The method with some of its functions replaced."""
    kind = type(method)
    return type(kind.__name__, (kind,), {"__module__": kind.__module__, **instead})(**vars(method))


def toss(b: int = 3) -> tuple[torch.Tensor, Draw]:
    x0 = randn(b, 3, 3, 3)
    u = torch.rand(b, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    return x0, Draw(u, randn(b, 3, 3, 3, seed=6), ("test",))


def cast_of(method: Method) -> tuple:
    """(roles, x0, drawn)."""
    return roles(3, method), *toss()


def test_every_method_has_a_case():
    assert {name for name, _ in configs()} == set(methods.names()), "give the new method a line in params.yaml"


@CASES
def test_the_batch_law(name, config):
    cast, x0, drawn = cast_of(config)
    parts = [config.loss(cast, x0[i : i + 1], drawn[i : i + 1], 0.5) for i in range(3)]
    whole = config.loss(cast, x0, drawn, 0.5)
    assert whole.shape == (3,)
    torch.testing.assert_close(whole, torch.cat(parts), rtol=1e-10, atol=1e-14)


@CASES
def test_a_loss_is_a_pure_function_and_only_the_student_learns(name, config):
    cast, x0, drawn = cast_of(config)
    before = torch.get_rng_state()
    first = config.loss(cast, x0, drawn, 0.5)
    assert torch.equal(first, config.loss(cast, x0, drawn, 0.5))
    assert torch.equal(before, torch.get_rng_state())
    cast.target.requires_grad_(True)  # a method must stop the gradient itself: the target may be the student
    config.loss(cast, x0, drawn, 0.5).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in cast.student.parameters())
    assert all(p.grad is None for p in cast.target.parameters())


@CASES
def test_network_calls_are_what_a_spy_counts(name, config):
    cast, x0, drawn = cast_of(config)
    calls = dict.fromkeys(("student", "teacher", "target"), 0)
    for role in calls:
        getattr(cast, role).register_forward_hook(lambda *_, role=role: calls.update({role: calls[role] + 1}))
    config.loss(cast, x0, drawn, 0.5)
    assert config.network_calls == 3 * calls["student"] + calls["teacher"] + calls["target"]


@CASES
def test_a_loss_of_one_graph_looks_at_no_progress_and_forks_no_draw(name, config, monkeypatch):
    """Which would be another graph each time; and a loss that does neither, nor takes a derivative, says that it is one."""
    forked, fork, changes = [], Draw.fork, name == "continuous"
    monkeypatch.setattr(Draw, "fork", lambda self, word: forked.append(word) or fork(self, word))
    cast, x0, drawn = cast_of(config)
    losses = [config.loss(cast, x0, drawn, progress) for progress in (0.0, 0.3, 0.6)]
    changes |= any(not torch.equal(losses[0], loss) for loss in losses)
    assert config.one_graph == (not changes and not forked)


@CASES
def test_the_rest_of_the_contract(name, config):
    assert config.sampler in SOLVERS
    assert config.grid is None or config.grid.times[-1] == 0
    assert type(config).__doc__
    assert methods.load(name) is type(config)
    assert methods.word(config) == name


@CASES
def test_float32_losses_agree_with_float64(name, config):
    x0, drawn = toss(8)
    exact = config.loss(roles(3, config), x0, drawn, 0.5)
    cast = roles(3, config)
    for role in (cast.student, cast.teacher, cast.target, cast.critic):
        if role is not None:
            role.float()
    single = config.loss(cast, x0.float(), dataclasses.replace(drawn, noise=drawn.noise.float()), 0.5)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), exact, rtol=1e-4, atol=1e-5)


@CASES
def test_a_critic_learns_alone_and_obeys_the_batch_law(name, config):
    cast, x0, drawn = cast_of(config)
    if cast.critic is None:
        return
    assert config.critic_training.updates >= 1
    cast.critic.requires_grad_(True)
    whole = config.critic_loss(cast, x0, drawn, 0.5)
    parts = [config.critic_loss(cast, x0[i : i + 1], drawn[i : i + 1], 0.5) for i in range(3)]
    torch.testing.assert_close(whole, torch.cat(parts), rtol=1e-10, atol=1e-14)
    whole.sum().backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in cast.critic.parameters())
    assert all(p.grad is None for role in (cast.student, cast.teacher, cast.target) for p in role.parameters())
    again = config.critic(cast, 0).state_dict()
    assert all(torch.equal(again[key], value) for key, value in config.critic(cast, 0).state_dict().items())


def test_an_unknown_method_lists_the_known():
    with pytest.raises(UserError, match=r"known: consistency.*denoising"):
        methods.load("progresive")


def test_dice_are_stratified_and_named():
    x = torch.zeros(64, 1)
    one, same, other = draw(x, 0, "train", 5), draw(x, 0, "train", 5), draw(x, 0, "train", 6)
    assert torch.equal(one.u, same.u)
    assert torch.equal(one.noise, same.noise)
    assert not torch.equal(one.noise, other.noise)
    assert sorted((one.u * 64).long().tolist()) == list(range(64))


# ------------------------------------------------------------------------------------------- denoising


def test_denoising_is_least_at_the_posterior_mean():
    """The exact denoiser's loss is the data's own spread, and any shift of v makes it larger by the shift's square."""
    exact = gaussian()
    x0 = exact.mean + exact.variance.sqrt() * randn(20_000, 2, 3, seed=1)
    drawn = Draw(
        torch.rand(20_000, generator=torch.Generator().manual_seed(2), dtype=torch.float64), randn(20_000, 2, 3, seed=3)
    )

    class Shifted(Denoiser):
        schedule, grid = Cosine(), None

        def forward(self, x_t, t):
            return from_v(x_t, self.schedule.level(t, x_t), exact(x_t, t).v + 0.5)

    best = denoising.Denoising().loss(Roles(exact, None, exact), x0, drawn, 0.0).mean()
    worse = denoising.Denoising().loss(Roles(Shifted(), None, exact), x0, drawn, 0.0).mean()
    assert float(worse - best) == pytest.approx(0.25, abs=0.02)


@pytest.mark.parametrize(
    ("weight", "on_x0"),
    [
        ("one", lambda snr: snr + 1),
        ("snr_plus_one", lambda snr: snr + 1),
        ("truncated_snr", lambda snr: snr.clamp(min=1)),
        ("snr", lambda snr: snr),
        ("min_snr", lambda snr: snr.clamp(max=3)),
    ],
)
def test_a_weight_is_the_published_one_on_the_error_of_x0(weight, on_x0):
    exact, x0, noise = gaussian(), randn(9, 2, 3), randn(9, 2, 3, seed=1)
    t = torch.linspace(0.05, 0.95, 9).double()
    alpha, sigma = (part[:, None, None] for part in ((t * math.pi / 2).cos(), (t * math.pi / 2).sin()))
    error = (exact(alpha * x0 + sigma * noise, t).x0 - x0).square().mean((1, 2))
    config = denoising.Denoising(weight, gamma=3.0)
    found = config.loss(Roles(exact, None, exact), x0, Draw(t, noise), 0.0)
    torch.testing.assert_close(found, on_x0((alpha / sigma).flatten() ** 2) * error, rtol=1e-10, atol=0)


def test_weights_are_finite_at_both_ends():
    ends = torch.tensor([0.0, math.pi / 2], dtype=torch.float64)
    found = {word: weight(ends).tolist() for word, weight in WEIGHTS.items()}
    assert found["truncated_snr"] == found["one"] == found["snr_plus_one"] == [1, 1]
    assert found["snr"] == pytest.approx([1, 0], abs=1e-30)
    assert min_snr(ends, 5.0).tolist() == pytest.approx([0, 0], abs=1e-30)


# ------------------------------------------------------------------------------------------- progressive


class OnGrid(Denoiser):
    """A denoiser affine in z at each of N times: v = gain z + shift, one pair per time."""

    def __init__(self, gains: torch.Tensor, shifts: torch.Tensor):
        super().__init__()
        self.gains, self.shifts, self.schedule = gains, shifts, Cosine()
        self.grid = uniform(len(gains))

    def forward(self, x_t, t):
        i = (t * len(self.gains)).round().long() - 1
        return from_v(x_t, self.schedule.level(t, x_t), self.gains[i] * x_t + self.shifts[i])


def on_grid(exact, steps: int) -> OnGrid:
    """The exact Gaussian denoiser written as an affine map at each of its times."""
    t = torch.arange(1, steps + 1, dtype=torch.float64) / steps
    zero, one = torch.zeros(steps, 2, 3).double(), torch.ones(steps, 2, 3).double()
    shifts = exact(zero, t).v
    return OnGrid(exact(one, t).v - shifts, shifts)


def distilled(teacher: OnGrid, factor: int) -> OnGrid:
    """The exact student of one round: where it lands is affine in z, so two points fix it."""
    fine = len(teacher.gains)
    n = fine // factor
    i = torch.arange(1, n + 1, dtype=torch.float64)

    def aim(z):
        at, step = z, torch.full((n,), math.pi / 2 / fine, dtype=torch.float64)
        for j in range(factor):
            at = hop(at, teacher(at, (factor * i - j) / fine).v, step)
        return between(z, at, factor * step)

    shifts = aim(torch.zeros(n, 2, 3).double())
    return OnGrid(aim(torch.ones(n, 2, 3).double()) - shifts, shifts)


@pytest.mark.slow
@pytest.mark.parametrize("factors", [[2] * 10, [4] * 5, [4, 2, 8, 16], [3, 5, 2]], ids=str)
def test_a_chain_of_exact_students_is_the_teachers_ddim(factors):
    """1024 -> 512 -> ... -> 1, each round exact: one call of the last equals 1024 DDIM steps of the first."""
    total = math.prod(factors)
    first = teacher = on_grid(gaussian(), total)
    start = randn(6, 2, 3)
    slow = Sampler(first, SOLVERS["ddim"](), uniform(total)).sample(start)
    for factor in factors:
        student = distilled(teacher, factor)
        x0, drawn = randn(64, 2, 3, seed=7), draw(randn(64, 2, 3).float(), 0)
        config = progressive.Progressive(steps=len(student.gains), factor=factor)
        config.check(teacher.grid)
        loss = config.loss(Roles(student, teacher, student), x0, Draw(drawn.u, drawn.noise.double()), 0.0)
        assert float(loss.max()) < 1e-20  # the method's own target agrees, at every time that was drawn
        teacher = student
    fast = Sampler(teacher, SOLVERS["ddim"](), uniform(1)).sample(start)
    torch.testing.assert_close(fast, slow, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("i", "weight"), [(1, math.cos(math.pi / 8) ** 2), (4, 1.0)])
def test_progressive_loss_by_hand(i, weight):
    """N = 4: at t = 1/4 the SNR is above 1, at t = 1 below; the weight is taken at t."""
    exact, n = gaussian(), 4
    x0, noise = randn(1, 2, 3, seed=1), randn(1, 2, 3, seed=2)
    t, m, s = (torch.tensor([j / n]).double() for j in (i, i - 0.5, i - 1))
    phi_t, phi_s = math.pi / 2 * i / n, math.pi / 2 * (i - 1) / n
    z = math.cos(phi_t) * x0 + math.sin(phi_t) * noise
    ddim = SOLVERS["ddim"]().step
    z_s = ddim(exact, ddim(exact, z, t, m, None), m, s, None)
    ratio = math.sin(phi_s) / math.sin(phi_t)
    x_aim = (z_s - ratio * z) / (math.cos(phi_s) - ratio * math.cos(phi_t))
    x_student = exact(z, t).x0
    by_hand = weight * ((x_student - x_aim) / math.sin(phi_t)).square().mean()
    u = torch.tensor([(i - 0.5) / n]).double()
    loss = progressive.Progressive(steps=n).loss(Roles(exact, exact, exact), x0, Draw(u, noise), 0.0)
    assert float(loss) == pytest.approx(float(by_hand), rel=1e-9)


def test_a_round_needs_a_teacher_of_twice_its_steps():
    progressive.Progressive(steps=8).check(uniform(16))
    progressive.Progressive(steps=8).check(None)
    with pytest.raises(UserError, match=r"steps 8 needs a teacher of 16 steps .* has 8; set steps to 4"):
        progressive.Progressive(steps=8).check(uniform(8))


def test_a_round_of_another_factor_needs_a_teacher_to_match():
    progressive.Progressive(steps=4, factor=4).check(uniform(16))
    with pytest.raises(UserError, match=r"steps 4 needs a teacher of 16 steps .* has 12; set steps to 3 or"):
        progressive.Progressive(steps=4, factor=4).check(uniform(12))
    with pytest.raises(UserError, match=r"has 9; name another teacher"):
        progressive.Progressive(steps=4, factor=4).check(uniform(9))


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"factor": 1}, {"weight": "snr"}])
def test_impossible_rounds_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        progressive.Progressive(**{"steps": 1, **wrong})


def test_a_clipped_target_by_hand():
    """Two DDIM steps whose x_0 is clipped and whose eps is made again from it; clipping what is within changes nothing."""
    exact, x0, noise = gaussian(), 2 * randn(4, 2, 3), randn(4, 2, 3, seed=1)
    i, n = torch.arange(1, 5).double(), 4
    t, m, s = i / n, (i - 0.5) / n, (i - 1) / n

    def angle(t):
        return (t * math.pi / 2)[:, None, None]

    z = at = angle(t).cos() * x0 + angle(t).sin() * noise
    for here, there in ((t, m), (m, s)):
        x = exact(at, here).x0.clamp(-1, 1)
        eps = (at - angle(here).cos() * x) / angle(here).sin()
        at = angle(there).cos() * x + angle(there).sin() * eps
    aim = between(z, at, (t - s) * math.pi / 2)
    by_hand = (exact(z, t).v - aim).square().mean((1, 2))
    config, drawn = progressive.Progressive(steps=n, weight="one", clip=True), Draw((i - 0.5) / n, noise)
    cast = Roles(exact, exact, exact)
    found = config.loss(cast, x0, drawn, 0.0)
    torch.testing.assert_close(found, by_hand, rtol=1e-9, atol=1e-12)
    plain = dataclasses.replace(config, clip=False)
    assert not torch.allclose(found, plain.loss(cast, x0, drawn, 0.0), rtol=1e-2)
    small = Roles(*[GaussianDenoiser(torch.zeros(2, 3).double(), torch.full((2, 3), 1e-4).double(), Cosine())] * 3)
    one, other = (c.loss(small, 0.01 * x0, drawn, 0.0) for c in (config, plain))
    assert torch.equal(one, other)


# ------------------------------------------------------------------------------------------- consistency


class Exact(Denoiser):
    """On Gaussian data: the average velocity of the exact flow from t to `to(t)`."""

    def __init__(self, to):
        super().__init__()
        self.inner, self.to, self.schedule, self.grid = gaussian(), to, Cosine(), None

    def forward(self, x_t, t) -> Prediction:
        s = self.to(t)
        v = between(x_t, self.inner.flow(x_t, t, s), self.schedule.angle(t) - self.schedule.angle(s))
        # a hop of no length has no average velocity; compose gives it no weight
        v = torch.where((t > s)[:, None, None], v, torch.zeros_like(v))
        return from_v(x_t, self.schedule.level(t, x_t), v)


def test_the_exact_consistency_function_has_no_residual():
    n, consistent = 16, Exact(lambda t: torch.zeros_like(t))
    teacher = Exact(lambda t: t - 1 / 16)
    x0, drawn = randn(64, 2, 3, seed=1), draw(torch.zeros(64, 2, 3), 0)
    config = consistency.Consistency(steps=n, target_ema=0.0, distance="squared")
    loss = config.loss(Roles(consistent, teacher, consistent), x0, Draw(drawn.u, drawn.noise.double()), 0.0)
    assert float(loss.max()) < 1e-24


ORDERS = [("ddim", 2), ("substeps", 2), ("heun", 3)]


def residual(n: int, x0, noise, **options) -> float:
    """Of the exact consistency function, at t = 1/2, with an exact denoiser for a teacher."""
    consistent = Exact(lambda t: torch.zeros_like(t))
    config = consistency.Consistency(steps=n, target_ema=0.0, distance="squared", **options)
    drawn = Draw(torch.full((1,), (n // 2 - 0.5) / n, dtype=torch.float64), noise)
    return float(config.loss(Roles(consistent, gaussian(), consistent), x0, drawn, 0.0)) ** 0.5


@pytest.mark.parametrize(("word", "order"), ORDERS)
def test_a_hop_leaves_a_residual_of_its_local_order(word, order):
    x0, noise = randn(1, 2, 3, seed=1), randn(1, 2, 3, seed=2)
    left = [residual(n, x0, noise, hop=word) for n in (64, 128, 256)]
    assert [math.log2(a / b) for a, b in itertools.pairwise(left)] == pytest.approx([order] * 2, abs=0.1)


def test_more_substeps_leave_less():
    x0, noise = randn(1, 2, 3, seed=1), randn(1, 2, 3, seed=2)
    one, *more = (
        residual(16, x0, noise, **options)
        for options in ({}, {"hop": "substeps", "substeps": 4}, {"hop": "substeps", "substeps": 64})
    )
    assert more == pytest.approx([one / 4, one / 64], rel=0.1)


def test_substeps_are_the_solvers_and_heun_is_its_own_step():
    """All three velocities land where plain steps from k/N to (k-1)/N land; the last hop of Heun's is DDIM's."""
    teacher, n, k = gaussian(), 8, torch.arange(1, 9).double()
    z, t, u = randn(8, 2, 3), k / n, (k - 1) / n
    phi_t, phi_u = t * math.pi / 2, u * math.pi / 2
    d = (phi_t - phi_u)[:, None, None]

    def landing(**options):
        config = consistency.Consistency(n, 0.0, **options)
        return hop(z, config.taught(teacher, z, k, n), phi_t - phi_u)

    one = hop(z, teacher(z, t).v, phi_t - phi_u)
    torch.testing.assert_close(landing(), one, rtol=0, atol=1e-14)
    slow, substep = z, torch.full((8,), math.pi / 2 / 24, dtype=torch.float64)
    for j in range(3):
        slow = hop(slow, teacher(slow, t - j / 24).v, substep)
    torch.testing.assert_close(landing(hop="substeps", substeps=3), slow, rtol=0, atol=1e-13)
    first = teacher(z, t).v
    heun = z - d * (first + teacher(z - d * first, u).v) / 2
    found = landing(hop="heun")
    torch.testing.assert_close(found[1:], heun[1:], rtol=0, atol=1e-13)
    torch.testing.assert_close(found[0], one[0], rtol=0, atol=1e-14)


@pytest.mark.parametrize("word", [word for word, _ in ORDERS])
@pytest.mark.parametrize("n", [64, 8192])
def test_float32_targets_of_every_hop_keep_their_digits(word, n):
    exact = gaussian()
    single = GaussianDenoiser(exact.mean.float(), exact.variance.float(), Cosine())
    k = torch.tensor([1, 2, 3, n // 2, n - 1, n]).double()
    z, config = randn(6, 2, 3), consistency.Consistency(n, 0.0, hop=word)
    found = config.taught(single, z.float(), k, n)
    assert found.dtype == torch.float32
    assert float((found.double() - config.taught(exact, z.float().double(), k, n)).abs().max()) < 1e-6


def test_the_grid_grows_log_linearly():
    config = consistency.Consistency(64, 0.0, steps_end=1280, anneal=0.5)
    found = [config.intervals(progress) for progress in (0.0, 0.125, 0.25, 0.4999, 0.5, 0.9)]
    assert found == [64, 135, 286, 1279, 1280, 1280]
    assert all(type(n) is int for n in found)
    assert consistency.Consistency(64, 0.0).intervals(0.7) == 64
    cast, (x0, drawn) = roles(), toss()
    grown, fixed = (consistency.Consistency(n, 0.0, steps_end=end, anneal=0.5) for n, end in ((8, 32), (16, None)))
    assert torch.equal(grown.loss(cast, x0, drawn, 0.25), fixed.loss(cast, x0, drawn, 0.25))


def test_an_x0_head_is_not_asked_for_its_v_at_the_data():
    x0_head = NetDenoiser(ToyNet(3).double(), Cosine(), Reading("x0"))
    cast, drawn = Roles(x0_head, x0_head, x0_head), Draw(torch.tensor([0.01, 0.5]).double(), randn(2, 3, 3, 3))
    for word, _ in ORDERS:
        loss = consistency.Consistency(8, 0.0, hop=word).loss(cast, randn(2, 3, 3, 3), drawn, 0.0)
        assert loss.isfinite().all()


WRONG = {"steps": 1, "target_ema": 1.0, "huber": 0.0, "floor": 0.0, "substeps": 1, "steps_end": 1, "anneal": 0.0}


@pytest.mark.parametrize("wrong", WRONG)
def test_impossible_numbers_are_refused(wrong):
    with pytest.raises(ValueError, match=wrong):
        consistency.Consistency(**{"steps": 8, "target_ema": 0.0, wrong: WRONG[wrong]})


def test_the_perceptual_distance_by_hand():
    """Cosines of the channels at each pixel, in the teacher's features of both beliefs about x_0 with one noise; a floor."""
    cast, (x0, drawn) = roles(), toss()
    config = consistency.Consistency(8, 0.0, "perceptual", floor=0.3)
    squared = dataclasses.replace(config, distance="squared").loss(cast, x0, drawn, 0.0)
    found = config.loss(cast, x0, drawn, 0.0) - 0.3 * squared
    t = (drawn.u * 8).floor() / 8 + 1 / 8
    phi, phi_u = t * math.pi / 2, (t - 1 / 8) * math.pi / 2
    lifted = phi[:, None, None, None]
    z = lifted.cos() * x0 + lifted.sin() * drawn.noise
    landing = hop(z, cast.teacher(z, t).v, phi - phi_u)
    x = [cast.student(z, t).x0, cast.target(landing, t - 1 / 8).x0]
    small, noise = math.pi / 2 * 0.05, drawn.fork("features").noise
    seen = [cast.teacher.features(math.cos(small) * x + math.sin(small) * noise, torch.full((3,), 0.05))[0] for x in x]
    by_hand = 2 - 2 * torch.nn.functional.cosine_similarity(*seen, dim=1)
    torch.testing.assert_close(found, by_hand.mean((1, 2)), rtol=1e-6, atol=1e-9)


def test_the_perceptual_distance_is_the_teachers_and_leads_to_its_target():
    """It is 0 where the beliefs agree, and a step down its gradient brings them together; the target gets no gradient."""
    cast, drawn = roles(), toss()[1]
    one, other = randn(3, 3, 3, 3).requires_grad_(), randn(3, 3, 3, 3, seed=1).requires_grad_()
    assert consistency.seen_apart(cast.teacher, one, one, drawn).abs().max() == 0
    apart = consistency.seen_apart(cast.teacher, one, other, drawn)
    apart.sum().backward()
    assert other.grad is None
    closer = consistency.seen_apart(cast.teacher, one.detach() - 0.01 * one.grad, other, drawn)
    assert bool((closer < apart).all())
    with pytest.raises(UserError, match="features"):
        consistency.Consistency(8, 0.0, "perceptual").loss(Roles(*[gaussian()] * 3), *toss_like(), 0.0)


def toss_like() -> tuple[torch.Tensor, Draw]:
    """Random numbers for samples of `gaussian`."""
    return randn(3, 2, 3), Draw(toss()[1].u, randn(3, 2, 3, seed=6), ("test",))


def test_pseudo_huber_by_hand():
    """sqrt(|e|^2 + c^2) - c with c = 0.00054 sqrt(d), of the same error whose mean square the squared distance is."""
    cast, (x0, drawn) = roles(), toss()
    squared = consistency.Consistency(8, 0.0, "squared").loss(cast, x0, drawn, 0.0)
    huber = consistency.Consistency(8, 0.0, "pseudo_huber").loss(cast, x0, drawn, 0.0)
    c = 0.00054 * math.sqrt(27)
    torch.testing.assert_close(huber, (27 * squared + c * c).sqrt() - c, rtol=1e-10, atol=0)


def test_a_progressive_student_cannot_teach_consistency():
    consistency.Consistency(8, 0.0).check(None)
    with pytest.raises(UserError, match="valid only on its own 4 steps"):
        consistency.Consistency(8, 0.0).check(uniform(4))
