"""Continuous-time consistency: tangents against closed forms, differences and the discrete method; the real trainer."""

import dataclasses
import math

import pytest
import torch

from diffcore.core.errors import UserError
from diffcore.denoisers.denoiser import Denoiser
from diffcore.denoisers.exact import GaussianDenoiser
from diffcore.denoisers.network import NetDenoiser
from diffcore.denoisers.prediction import from_v
from diffcore.methods import Roles, consistency_training, continuous
from diffcore.methods.continuous import Continuous, normalised, tangent
from diffcore.nets import unet
from diffcore.noise.angle import compose, diffuse, hop, velocity
from diffcore.noise.schedule import Cosine, Discrete, Linear
from diffcore.noise.trajectory import uniform
from tests.conftest import DDPM_BETAS, ToyNet, gaussian, randn
from tests.test_consistency_training import Consistent, posterior, trained
from tests.test_methods import roles, toss

EVERYWHERE = torch.cat([torch.tensor([-700.0, -40.0, 37.0]), torch.linspace(-8, 8, 33)]).double()
"""log tan(phi), from where sin(phi) is 1e-304 to where cos(phi) is 1e-16."""


def only(denoiser: Denoiser, teacher: Denoiser | None = None) -> Roles:
    return Roles(denoiser, teacher, denoiser)


def time(log_tan):
    return log_tan.exp().atan() * 2 / math.pi


# ------------------------------------------------------------------------------------------- the tangent


def test_the_exact_flow_map_has_no_tangent_up_to_the_very_ends():
    exact, z = gaussian(), randn(len(EVERYWHERE), 2, 3)
    found = tangent(only(Consistent(exact)), z, EVERYWHERE, exact(z, time(EVERYWHERE)).v, 1.0)
    assert float(found.abs().max()) < 1e-12
    wrong = tangent(only(exact), z, EVERYWHERE, exact(z, time(EVERYWHERE)).v, 1.0)
    assert float(wrong.abs().max()) > 0.1  # the denoiser itself is no flow map


@pytest.mark.parametrize("schedule", [Linear(), Discrete(DDPM_BETAS)], ids=["linear", "discrete"])
def test_time_is_a_function_of_the_angle_on_every_schedule(schedule):
    exact, log_tan = gaussian(schedule), torch.linspace(-6, 4.5, 22).double()
    z = randn(len(log_tan), 2, 3)
    found = tangent(only(Consistent(exact)), z, log_tan, exact(z, schedule.time(-log_tan)).v, 1.0)
    assert float(found.abs().max()) < 1e-9


def test_a_sample_s_own_arc_gives_the_tangent_in_expectation():
    exact, log_tan = gaussian(), torch.linspace(-5, 5, 11).double()
    phi, z = log_tan.exp().atan(), randn(11, 2, 3)
    arcs = [velocity(x0, eps, phi) for x0, eps in posterior(exact, z, phi)]
    first, second = (tangent(only(Consistent(exact)), z, log_tan, arc, 1.0) for arc in arcs)
    assert float((first + second).abs().max() / 2) < 1e-11
    assert float(first.abs().max()) > 0.1


def test_the_derivative_is_that_of_finite_differences():
    """Along the trajectory, at timesteps that float32 holds exactly; the error falls with the square of the step."""
    net, timesteps = NetDenoiser(ToyNet(3).double(), Cosine()), torch.tensor([128.0, 512.0, 896.0]).double()
    phi, z, arc = timesteps / 1024 * math.pi / 2, randn(3, 3, 3, 3), randn(3, 3, 3, 3, seed=1)
    shape = (-1, 1, 1, 1)
    cos, sin = phi.cos().reshape(shape), phi.sin().reshape(shape)

    def difference(step: float):
        ahead, behind = (
            net(z + way * step * math.pi / 2048 * arc, (timesteps + way * step) / 1024).v for way in (1, -1)
        )
        return (ahead - behind) / (step * math.pi / 1024)

    change = (4 * difference(4.0) - difference(8.0)) / 3  # the next order too
    by_hand = -(cos**2) * (net(z, timesteps / 1024).v - arc) - 0.7 * cos * sin * (z + change)
    found = tangent(only(net), z, phi.tan().log(), arc, 0.7)
    torch.testing.assert_close(found, by_hand, rtol=0, atol=1e-7)


@pytest.mark.parametrize("data", ["distillation", "training"])
def test_the_discrete_target_becomes_the_tangent(data):
    """(aim - v) sin cos / d of a hop d: its distance from the tangent halves with d."""
    student, teacher = (GaussianDenoiser(0.5 * gaussian().mean + k, gaussian().variance, Cosine()) for k in (0.3, 0.0))
    log_tan, x0, eps = torch.tensor([-2.0, -0.5, 0.5, 2.0]).double(), randn(4, 2, 3), randn(4, 2, 3, seed=1)
    phi, cast = log_tan.exp().atan(), Roles(student, teacher, student)
    z, t = diffuse(x0, eps, phi), time(log_tan)
    arc = teacher(z, t).v if data == "distillation" else velocity(x0, eps, phi)
    limit, errors = tangent(cast, z, log_tan, arc, 1.0), []
    for d in (1e-3, 5e-4, 2.5e-4):
        below = phi - d
        if data == "distillation":
            vb = student(hop(z, arc, phi - below), below * 2 / math.pi).v
            aim = compose(z, arc, vb, phi - below, below)
        else:
            aim = consistency_training.aim(cast, x0, eps, phi.tan(), below.tan())
        slope = (aim - student(z, t).v) * (phi.sin() * phi.cos() / d)[:, None, None]
        errors.append(float((slope - limit).abs().max()))
    assert errors[0] < 0.02
    assert [errors[0] / errors[1], errors[1] / errors[2]] == pytest.approx([2, 2], abs=0.02)


@pytest.mark.parametrize("attention", [False, True])
def test_our_u_net_has_a_derivative_as_it_is_trained(attention):
    """Torch's forward mode refuses both fused attention and group norms of channels_last, the trainer's memory format."""
    net = unet.build(unet.default_config((1, 8, 8), (8, 16), attention=attention, groups=4), 0).double()
    with torch.no_grad():
        for number, parameter in enumerate(net.parameters()):
            if (
                parameter.ndim == 4 and not parameter.any()
            ):  # last convolutions start at zero, which would hide all others
                parameter.copy_(0.1 * randn(*parameter.shape, seed=number))
    student = NetDenoiser(net.to(memory_format=torch.channels_last), Cosine())
    z, arc, half = randn(2, 1, 8, 8), randn(2, 1, 8, 8, seed=1), torch.full((2,), 0.5).double()
    with torch.no_grad():
        found = tangent(only(student), z, torch.zeros(2).double(), arc, 1.0)

        def difference(step: int):
            ahead, behind = (
                student(z + way * step * math.pi / 2048 * arc, half + way * step / 1024).v for way in (1, -1)
            )
            return (ahead - behind) / (step * math.pi / 1024)

        change = (4 * difference(2) - difference(4)) / 3
        by_hand = -0.5 * (student(z, half).v - arc) - 0.5 * (z + change)
    torch.testing.assert_close(found, by_hand, rtol=0, atol=1e-4)  # sinusoids of the timestep are float32


def test_a_tangent_is_never_taken_in_bfloat16():
    net, log_tan = NetDenoiser(ToyNet(), Cosine()), torch.tensor([-1.0, 1.0]).double()
    z, arc = randn(2, 1, 4, 4).float(), randn(2, 1, 4, 4, seed=1).float()
    whole = tangent(only(net), z, log_tan, arc, 1.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert net(z, time(log_tan)).v.dtype == torch.float32
        assert torch.equal(tangent(only(net), z, log_tan, arc, 1.0), whole)


# ------------------------------------------------------------------------------------------- the loss


def test_the_warm_up_turns_the_second_term_on():
    assert [Continuous(warmup=0.2).warm(progress) for progress in (0.0, 0.05, 0.2, 0.9)] == [0, 0.25, 1, 1]
    assert Continuous(warmup=0.0).warm(0.0) == 1
    exact, log_tan, z, arc = gaussian(), torch.zeros(3).double(), randn(3, 2, 3), randn(3, 2, 3, seed=1)
    cold = tangent(only(exact), z, log_tan, arc, 0.0)
    torch.testing.assert_close(cold, (arc - exact(z, time(log_tan)).v) / 2, rtol=0, atol=1e-14)


def test_a_tangent_is_normalised_alike_at_every_size():
    g = randn(2, 1, 4, 4)
    found = normalised(g, 0.1)
    rms = found.square().flatten(1).mean(1).sqrt()
    size = g.square().flatten(1).mean(1).sqrt()
    torch.testing.assert_close(rms, size / (size + 0.1))
    torch.testing.assert_close(normalised(g.repeat(1, 1, 3, 3), 0.1), found.repeat(1, 1, 3, 3))
    assert torch.equal(normalised(torch.zeros(1, 2), 0.1), torch.zeros(1, 2))


def test_times_are_log_normal_and_end_with_the_schedule():
    u = (torch.arange(10_000).double() + 0.5) / 10_000
    found = Continuous(mean=-1.0, std=1.4).log_tans(u, Cosine())
    assert found.dtype == torch.float64
    assert float(found.mean()) == pytest.approx(-1, abs=1e-6)
    assert float(found.std()) == pytest.approx(1.4, rel=1e-3)
    short = Linear(beta_max=5.0)
    assert float(short.time(-Continuous().log_tans(u, short)).max()) == pytest.approx(1)


class Shifted(Denoiser):
    """Some denoiser's v, plus a parameter."""

    def __init__(self, inner: Denoiser):
        super().__init__()
        self.inner, self.schedule, self.grid = inner, inner.schedule, None
        self.shift = torch.nn.Parameter(torch.zeros(3, 3, 3, dtype=torch.float64))

    def forward(self, x_t, t):
        return from_v(x_t, self.schedule.level(t, x_t), self.inner(x_t, t).v + self.shift)


@pytest.mark.parametrize("weight", ["one", "inverse_tan"])
@pytest.mark.parametrize("data", ["distillation", "training"])
def test_the_student_s_gradient_is_against_the_normalised_tangent(data, weight):
    config, cast, (x0, drawn) = Continuous(data=data, weight=weight), roles(), toss()
    student = Shifted(cast.student)
    cast = dataclasses.replace(cast, student=student)
    config.loss(cast, x0, drawn, 0.5).sum().backward()
    log_tan = -1.0 + 1.4 * torch.distributions.Normal(0.0, 1.0).icdf(drawn.u)
    phi = log_tan.exp().atan()
    z = diffuse(x0, drawn.noise, phi)
    arc = cast.teacher(z, time(log_tan)).v if data == "distillation" else velocity(x0, drawn.noise, phi)
    g = normalised(tangent(cast, z, log_tan, arc, 1.0), 0.1)
    scale = 1 / phi.tan() if weight == "inverse_tan" else torch.ones(3).double()
    by_hand = -2 / 27 * (scale[:, None, None, None] * g).sum(0)
    torch.testing.assert_close(student.shift.grad, by_hand, rtol=1e-6, atol=1e-9)


def test_the_teacher_is_asked_only_to_distil():
    cast, (x0, drawn) = roles(), toss()
    alone = dataclasses.replace(cast, teacher=None)
    assert Continuous(data="training").loss(alone, x0, drawn, 0.5).isfinite().all()
    calls = []
    for role in ("student", "teacher", "target"):
        getattr(cast, role).register_forward_hook(lambda *_, role=role: calls.append(role))
    for data, count in (("distillation", 5), ("training", 4)):
        calls.clear()
        Continuous(data=data).loss(cast, x0, drawn, 0.5)
        assert len(calls) + 2 == count == Continuous(data=data).network_calls  # a backward pass counts as two
        assert calls.count("target") == 1  # one product gives both v and its derivative


def test_a_student_of_few_steps_cannot_teach_but_may_start_a_training():
    Continuous().check(None)
    Continuous(data="training").check(uniform(4))
    with pytest.raises(UserError, match=r"valid only on its own 4 steps; .* or set data to training"):
        Continuous().check(uniform(4))


@pytest.mark.parametrize("wrong", [{"std": 0.0}, {"warmup": -0.1}, {"warmup": 1.1}, {"norm": 0.0}])
def test_impossible_numbers_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Continuous(**wrong)


@pytest.mark.slow  # tests/test_trainable.py has a shorter one
@pytest.mark.parametrize(("data", "iterations", "within"), [("distillation", 400, 0.1), ("training", 600, 0.12)])
def test_the_trainer_finds_the_flow_map_of_gaussian_data(data, iterations, within):
    """From nothing, whose gain is off by 0.5. What is left is chance: the sample's own arc has more of it."""
    mean, std = (torch.full((1, 8, 8), number) for number in (0.2, 0.5))
    errors = trained(continuous, Continuous(data=data), GaussianDenoiser(mean, std**2, Cosine()), iterations)
    assert max(errors) < within, errors
