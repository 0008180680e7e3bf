"""Laws that every method in diffcore/methods/ obeys because it is there, then each method's own."""

import dataclasses
import itertools
import math
from pathlib import Path

import pytest
import torch

from diffcore import methods
from diffcore.angle import between, compose, hop
from diffcore.denoiser import Denoiser, NetDenoiser, Prediction, from_v
from diffcore.draw import Draw, draw
from diffcore.methods import Roles, consistency, denoising, progressive
from diffcore.mistake import Mistake
from diffcore.sampler import Sampler
from diffcore.schedule import Cosine
from diffcore.solvers import SOLVERS
from diffcore.trajectory import even
from tasks import params
from tests.conftest import ToyNet, gaussian, randn

ROOT = Path(__file__).parent.parent


def configs() -> list:
    """(method, config) for every line of params.yaml, and for methods whose Config needs no numbers."""
    lines = params.read(ROOT / "params.yaml").distill.values()
    found = {(methods.word(line.method), line.config) for line in lines}
    for name in methods.names():
        kind = methods.load(name).Config
        if all(field.default is not dataclasses.MISSING for field in dataclasses.fields(kind)):
            found.add((name, kind()))
    return sorted(found, key=str)


CASES = pytest.mark.parametrize(("name", "config"), configs(), ids=lambda value: str(value))


def roles(channels: int = 3, method=None, config=None) -> Roles:
    teacher, student, target = (NetDenoiser(ToyNet(channels, seed=s).double(), Cosine()) for s in (1, 2, 3))
    cast = Roles(student, teacher.requires_grad_(False), target.requires_grad_(False))
    critic = method.critic(config, cast, 0) if hasattr(method, "critic") else None
    return cast if critic is None else dataclasses.replace(cast, critic=critic.double().requires_grad_(False))


def toss(b: int = 3) -> tuple[torch.Tensor, Draw]:
    x0 = randn(b, 3, 3, 3)
    u = torch.rand(b, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    return x0, Draw(u, randn(b, 3, 3, 3, seed=6), ("test",))


def cast_of(name: str, config) -> tuple:
    """(method, roles, x0, dice)."""
    method = methods.load(name)
    return method, roles(3, method, config), *toss()


def test_every_method_has_a_case():
    assert {name for name, _ in configs()} == set(methods.names()), "give the new method a line in params.yaml"


@CASES
def test_the_batch_law(name, config):
    method, cast, x0, dice = cast_of(name, config)
    parts = [method.loss(config, cast, x0[i : i + 1], dice[i : i + 1], 0.5) for i in range(3)]
    whole = method.loss(config, cast, x0, dice, 0.5)
    assert whole.shape == (3,)
    torch.testing.assert_close(whole, torch.cat(parts), rtol=1e-10, atol=1e-14)


@CASES
def test_a_loss_is_a_pure_function_and_only_the_student_learns(name, config):
    method, cast, x0, dice = cast_of(name, config)
    before = torch.get_rng_state()
    first = method.loss(config, cast, x0, dice, 0.5)
    assert torch.equal(first, method.loss(config, cast, x0, dice, 0.5))
    assert torch.equal(before, torch.get_rng_state())
    cast.target.requires_grad_(True)  # a method must stop the gradient itself: the target may be the student
    method.loss(config, cast, x0, dice, 0.5).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in cast.student.parameters())
    assert all(p.grad is None for p in cast.target.parameters())


@CASES
def test_network_calls_are_what_a_spy_counts(name, config):
    method, cast, x0, dice = cast_of(name, config)
    calls = dict.fromkeys(("student", "teacher", "target"), 0)
    for role in calls:
        getattr(cast, role).register_forward_hook(lambda *_, role=role: calls.update({role: calls[role] + 1}))
    method.loss(config, cast, x0, dice, 0.5)
    assert method.network_calls(config) == 3 * calls["student"] + calls["teacher"] + calls["target"]


@CASES
def test_the_rest_of_the_contract(name, config):
    method = methods.load(name)
    assert method.SOLVER in SOLVERS
    assert method.grid(config) is None or method.grid(config).times[-1] == 0
    assert method.__doc__


@CASES
def test_float32_losses_agree_with_float64(name, config):
    method, (x0, dice) = methods.load(name), toss(8)
    exact = method.loss(config, roles(3, method, config), x0, dice, 0.5)
    cast = roles(3, method, config)
    for role in (cast.student, cast.teacher, cast.target, cast.critic):
        if role is not None:
            role.float()
    single = method.loss(config, cast, x0.float(), dataclasses.replace(dice, noise=dice.noise.float()), 0.5)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), exact, rtol=1e-4, atol=1e-5)


@CASES
def test_a_critic_learns_alone_and_obeys_the_batch_law(name, config):
    method, cast, x0, dice = cast_of(name, config)
    if cast.critic is None:
        return
    assert method.critic_training(config).updates >= 1
    cast.critic.requires_grad_(True)
    whole = method.critic_loss(config, cast, x0, dice, 0.5)
    parts = [method.critic_loss(config, cast, x0[i : i + 1], dice[i : i + 1], 0.5) for i in range(3)]
    torch.testing.assert_close(whole, torch.cat(parts), rtol=1e-10, atol=1e-14)
    whole.sum().backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in cast.critic.parameters())
    assert all(p.grad is None for role in (cast.student, cast.teacher, cast.target) for p in role.parameters())
    again = method.critic(config, cast, 0).state_dict()
    assert all(torch.equal(again[key], value) for key, value in method.critic(config, cast, 0).state_dict().items())


def test_an_unknown_method_lists_the_known():
    with pytest.raises(Mistake, match=r"known: consistency.*denoising"):
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
    dice = Draw(
        torch.rand(20_000, generator=torch.Generator().manual_seed(2), dtype=torch.float64), randn(20_000, 2, 3, seed=3)
    )

    class Shifted(Denoiser):
        schedule, grid = Cosine(), None

        def forward(self, x_t, t):
            return from_v(x_t, self.schedule.level(t, x_t), exact(x_t, t).v + 0.5)

    best = denoising.loss(denoising.Config(), Roles(exact, None, exact), x0, dice, 0.0).mean()
    worse = denoising.loss(denoising.Config(), Roles(Shifted(), None, exact), x0, dice, 0.0).mean()
    assert float(worse - best) == pytest.approx(0.25, abs=0.02)


# ------------------------------------------------------------------------------------------- progressive


class OnGrid(Denoiser):
    """A denoiser affine in z at each of N times: v = gain z + shift, one pair per time."""

    def __init__(self, gains: torch.Tensor, shifts: torch.Tensor):
        super().__init__()
        self.gains, self.shifts, self.schedule = gains, shifts, Cosine()
        self.grid = even(len(gains))

    def forward(self, x_t, t):
        i = (t * len(self.gains)).round().long() - 1
        return from_v(x_t, self.schedule.level(t, x_t), self.gains[i] * x_t + self.shifts[i])


def on_grid(exact, steps: int) -> OnGrid:
    """The exact Gaussian denoiser written as an affine map at each of its times."""
    t = torch.arange(1, steps + 1, dtype=torch.float64) / steps
    zero, one = torch.zeros(steps, 2, 3).double(), torch.ones(steps, 2, 3).double()
    shifts = exact(zero, t).v
    return OnGrid(exact(one, t).v - shifts, shifts)


def halved(teacher: OnGrid) -> OnGrid:
    """The exact student of one round: the target is affine in z, so two points fix it."""
    n = len(teacher.gains) // 2
    i = torch.arange(1, n + 1, dtype=torch.float64)
    phi_t, phi_m, phi_s = (math.pi / 2 * x / n for x in (i, i - 0.5, i - 1))

    def aim(z):
        va = teacher(z, i / n).v
        vb = teacher(hop(z, va, phi_t - phi_m), (i - 0.5) / n).v
        return compose(z, va, vb, phi_t - phi_m, phi_m - phi_s)

    shifts = aim(torch.zeros(n, 2, 3).double())
    return OnGrid(aim(torch.ones(n, 2, 3).double()) - shifts, shifts)


def test_a_chain_of_exact_students_is_the_teachers_ddim():
    """1024 -> 512 -> ... -> 1, each round exact: one call of the last equals 1024 DDIM steps of the first."""
    first = teacher = on_grid(gaussian(), 1024)
    start = randn(6, 2, 3)
    slow = Sampler(first, SOLVERS["ddim"](), even(1024)).sample(start)
    while len(teacher.gains) > 1:
        student = halved(teacher)
        x0, dice = randn(64, 2, 3, seed=7), draw(randn(64, 2, 3).float(), 0)
        config = progressive.Config(steps=len(student.gains))
        loss = progressive.loss(config, Roles(student, teacher, student), x0, Draw(dice.u, dice.noise.double()), 0.0)
        assert float(loss.max()) < 1e-20  # the method's own target agrees, at every time that was drawn
        teacher = student
    fast = Sampler(teacher, SOLVERS["ddim"](), even(1)).sample(start)
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
    loss = progressive.loss(progressive.Config(steps=n), Roles(exact, exact, exact), x0, Draw(u, noise), 0.0)
    assert float(loss) == pytest.approx(float(by_hand), rel=1e-9)


def test_a_round_needs_a_teacher_of_twice_its_steps():
    progressive.check(progressive.Config(steps=8), even(16))
    progressive.check(progressive.Config(steps=8), None)
    with pytest.raises(Mistake, match=r"steps 8 needs a teacher of 16 steps .* has 8; set steps to 4"):
        progressive.check(progressive.Config(steps=8), even(8))


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
    x0, dice = randn(64, 2, 3, seed=1), draw(torch.zeros(64, 2, 3), 0)
    config = consistency.Config(steps=n, target_ema=0.0, distance="squared")
    loss = consistency.loss(config, Roles(consistent, teacher, consistent), x0, Draw(dice.u, dice.noise.double()), 0.0)
    assert float(loss.max()) < 1e-24


def test_one_ddim_hop_leaves_a_residual_of_local_order_two():
    consistent, residuals = Exact(lambda t: torch.zeros_like(t)), []
    for n in (64, 128, 256):
        k = torch.full((1,), n // 2)
        x0, noise = randn(1, 2, 3, seed=1), randn(1, 2, 3, seed=2)
        config = consistency.Config(steps=n, target_ema=0.0, distance="squared")
        dice = Draw((k - 0.5).double() / n, noise)
        residuals.append(
            float(consistency.loss(config, Roles(consistent, gaussian(), consistent), x0, dice, 0.0)) ** 0.5
        )
    assert [math.log2(a / b) for a, b in itertools.pairwise(residuals)] == pytest.approx([2, 2], abs=0.1)


def test_pseudo_huber_by_hand():
    """sqrt(|e|^2 + c^2) - c with c = 0.00054 sqrt(d), of the same error whose mean square the squared distance is."""
    cast, (x0, dice) = roles(), toss()
    squared = consistency.loss(consistency.Config(8, 0.0, "squared"), cast, x0, dice, 0.0)
    huber = consistency.loss(consistency.Config(8, 0.0, "pseudo_huber"), cast, x0, dice, 0.0)
    c = 0.00054 * math.sqrt(27)
    torch.testing.assert_close(huber, (27 * squared + c * c).sqrt() - c, rtol=1e-10, atol=0)


def test_a_progressive_student_cannot_teach_consistency():
    consistency.check(consistency.Config(8, 0.0), None)
    with pytest.raises(Mistake, match="valid only on its own 4 steps"):
        consistency.check(consistency.Config(8, 0.0), even(4))
