"""Distribution matching where every belief is known."""

import dataclasses

import torch

from diffcore.core.rng import draw
from diffcore.denoisers.condition import of_classes
from diffcore.denoisers.exact import GaussianDenoiser
from diffcore.denoisers.guidance import Guided
from diffcore.methods import Roles
from diffcore.methods import distribution_matching as dm
from diffcore.methods.parts.discriminator import Discriminator
from diffcore.noise.schedule import Cosine
from diffcore.noise.trajectory import uniform
from diffcore.sampling.sampler import Sampler
from diffcore.sampling.solvers import SOLVERS
from tests.conftest import gaussian, randn, toy_denoiser

ONE, TWO = dm.DistributionMatching(), dm.DistributionMatching(steps=3)


class Known(torch.nn.Module):
    """A critic that knows the student's samples exactly."""

    def __init__(self, denoiser):
        super().__init__()
        self.denoiser, self.heads = denoiser, None


def cast(student, teacher, critic) -> Roles:
    return Roles(student, teacher, student, Known(critic))


def drawn(count: int = 5):
    made = draw(randn(count, 2, 3), "dice")
    return dataclasses.replace(made, noise=made.noise.double())


def test_where_the_student_makes_the_data_nothing_is_left_to_learn():
    found = ONE.loss(cast(gaussian(), gaussian(), gaussian()), randn(5, 2, 3), drawn(), 0.0)
    assert torch.equal(found, torch.zeros(5))


def test_the_gradient_at_a_sample_is_the_difference_of_the_beliefs_over_its_size():
    """And so points from the student's samples to the data: an update, which goes against it, raises what is too low."""
    teacher, shifted = gaussian(), gaussian()
    shifted.mean = teacher.mean - 1.0  # what the critic knows of the student: too low everywhere
    rolls, x = drawn(), randn(5, 2, 3, seed=8).requires_grad_(True)

    class Student(GaussianDenoiser):
        def forward(self, x_t, t):
            return dataclasses.replace(super().forward(x_t, t), x0=x)

    student = Student(teacher.mean, teacher.variance, teacher.schedule)
    ONE.loss(cast(student, teacher, shifted), x.detach(), rolls, 0.0).sum().backward()
    level = rolls.fork("level")
    t = 0.02 + 0.96 * level.u
    at = teacher.schedule.level(t, x)
    noisy = at.alpha * x.detach() + at.sigma * level.noise
    real, fake = teacher(noisy, t).x0, shifted(noisy, t).x0
    size = (x.detach() - real).flatten(1).abs().mean(1)
    torch.testing.assert_close(x.grad, (fake - real) / size[:, None, None] / 6, rtol=1e-12, atol=1e-12)
    assert (x.grad < 0).all()


def test_a_student_of_several_steps_learns_on_its_own_inputs():
    """The sample of step k is what `multistep_consistency` gives after k + 1 steps, told to stop there."""
    student, rolls = gaussian(), drawn(9)
    path = uniform(3)
    made = TWO.generate(cast(student, student, student), rolls)
    k = (rolls.u * 3).floor().long()
    assert set(k.tolist()) == {0, 1, 2}

    def noise(number: int) -> torch.Tensor:
        return rolls.fork(f"step {number}").noise if number < 2 else torch.zeros_like(rolls.noise)

    whole = Sampler(student, SOLVERS["multistep_consistency"](), path).sample(rolls.noise, noise)
    torch.testing.assert_close(made[k == 2], whole[k == 2], rtol=1e-12, atol=1e-12)
    first = student(rolls.noise, torch.ones(9).double()).x0
    torch.testing.assert_close(made[k == 0], first[k == 0], rtol=1e-12, atol=1e-12)


def test_only_the_last_step_has_a_gradient():
    student, calls = toy_denoiser(), []
    student.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    TWO.generate(Roles(student, None, student), draw(torch.zeros(4, 1, 4, 4), "dice"))
    assert calls == [False, False, True]


def test_the_critic_learns_the_samples_and_starts_as_the_student():
    """Of an exact denoiser of what the student makes, the critic's loss is the least there is."""
    student, rolls, config = (
        toy_denoiser(),
        draw(torch.zeros(4, 1, 4, 4), "dice"),
        dm.DistributionMatching(adversarial=0.1),
    )
    roles = Roles(student, student, student)
    made = config.critic(roles, 0)
    assert all(torch.equal(a, b) for a, b in zip(made.denoiser.net.parameters(), student.net.parameters()))
    assert made.heads is not None
    assert ONE.critic(roles, 0).heads is None
    # a student whose every image is one number: the critic that says it has no error
    point = GaussianDenoiser(torch.full((2, 3), 0.3).double(), torch.zeros(2, 3).double(), Cosine())
    right = ONE.critic_loss(cast(point, point, point), randn(5, 2, 3), drawn(), 0.0)
    wrong = ONE.critic_loss(cast(point, point, gaussian()), randn(5, 2, 3), drawn(), 0.0)
    assert right.max() < 1e-12 < wrong.min()
    assert config.critic_loss(dataclasses.replace(roles, critic=made), torch.zeros(4, 1, 4, 4), rolls, 0.0).shape == (
        4,
    )


def test_the_critic_knows_the_class():
    from tests.test_condition import TwoBlobs

    known = of_classes(torch.tensor([0, 1, 0]))
    roles = Roles(TwoBlobs(), TwoBlobs(), TwoBlobs(), Known(TwoBlobs())).with_condition(known)
    rolls = draw(torch.zeros(3, 2).double(), "dice")
    rolls = dataclasses.replace(rolls, noise=rolls.noise.double())
    assert torch.equal(ONE.loss(roles, randn(3, 2), rolls, 0.0), torch.zeros(3))


class Shows(GaussianDenoiser):
    """Exact beliefs, and features that are the image itself, remembered."""

    seen = ()

    def features(self, x_t, t):
        self.seen = (*self.seen, (x_t, t))
        return [x_t]


def test_the_heads_learn_which_images_are_real_and_the_student_hears_what_they_say():
    """Both losses by hand, with heads that say the mean of what they see: real comes first, noised as the samples are."""
    exact, config, x0, rolls = gaussian(), dm.DistributionMatching(adversarial=0.25), randn(5, 2, 3), drawn()
    teacher = Shows(exact.mean, exact.variance, exact.schedule)
    roles = Roles(exact, teacher, exact, Known(exact))
    roles.critic.heads = lambda features: [3 * part.mean((1, 2), keepdim=True) for part in features]
    plain = cast(exact, exact, exact)
    sample, level = config.generate(roles, rolls), rolls.fork("level")
    t = 0.02 + 0.96 * level.u
    at = exact.schedule.level(t, x0)
    real, fake = (at.alpha * image + at.sigma * level.noise for image in (x0, sample))

    found = config.critic_loss(roles, x0, rolls, 0.0) - ONE.critic_loss(plain, x0, rolls, 0.0)
    told = [3 * image.mean((1, 2)) for image in (real, fake)]
    by_hand = (1 - told[0]).clamp(min=0) + (1 + told[1]).clamp(min=0)
    torch.testing.assert_close(found, by_hand, rtol=1e-9, atol=1e-12)
    exchanged = (1 - told[1]).clamp(min=0) + (1 + told[0]).clamp(min=0)
    assert float((by_hand - exchanged).abs().max()) > 0.1
    assert [torch.equal(when, t) for _, when in teacher.seen] == [True, True]

    found = config.loss(roles, x0, rolls, 0.0) - ONE.loss(plain, x0, rolls, 0.0)
    torch.testing.assert_close(found, 0.25 * (1 - told[1]).clamp(min=0), rtol=1e-9, atol=1e-12)
    assert torch.equal(teacher.seen[2][1], t)


def test_whom_the_critic_begins_as_and_what_its_heads_are_made_of():
    """The network within a guided teacher; the student where the teacher is none of ours. It is valid at every time, a copy
    that learns, and its heads, four for each of the teacher's maps, come from the seed."""
    config, student, teacher = (
        dm.DistributionMatching(adversarial=0.1),
        toy_denoiser(1),
        toy_denoiser(2).requires_grad_(False),
    )
    student.grid = teacher.grid = uniform(4)
    for given, start in ((teacher, teacher), (Guided(teacher), teacher), (gaussian(), student)):
        made = (ONE if start is student else config).critic(Roles(student, given, student), 5)
        assert all(torch.equal(a, b) for a, b in zip(made.denoiser.net.parameters(), start.net.parameters()))
        assert not {id(one) for one in made.parameters()} & {id(one) for one in start.parameters()}
        assert all(parameter.requires_grad for parameter in made.parameters())
        assert made.denoiser.grid is None
        if start is teacher:
            found, right = made.heads.state_dict(), Discriminator((8,), 4, 5).state_dict()
            assert found.keys() == right.keys()
            assert all(torch.equal(value, right[name]) for name, value in found.items())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert teacher.grid == student.grid == uniform(4)


def test_where_the_teacher_believes_just_the_sample_the_size_of_the_error_is_no_zero():
    point = GaussianDenoiser(torch.full((2, 3), 0.5).double(), torch.zeros(2, 3).double(), Cosine())
    found = ONE.loss(cast(point, point, point), randn(5, 2, 3), drawn(), 0.0)
    assert torch.equal(found, torch.zeros(5).double())


def test_how_the_critic_is_trained_and_what_an_image_costs():
    made = dm.DistributionMatching(steps=3, critic_updates=4, critic_lr=0.25)
    training = made.critic_training
    assert (training.updates, training.lr, training.betas) == (4, 0.25, (0.0, 0.99))
    assert made.grid == uniform(3)
    assert [dm.DistributionMatching(steps=steps).network_calls for steps in (1, 3)] == [4, 6]
    assert dm.DistributionMatching(steps=3, adversarial=0.1).network_calls == 7


def test_roles_are_told_of_a_batch_and_nothing_else_of_them_changes():
    class Told(GaussianDenoiser):
        def with_condition(self, condition):
            made = Told(self.mean, self.variance, self.schedule)
            made.told = (self, condition)
            return made

    exact = gaussian()
    student, teacher, target = (Told(exact.mean, exact.variance, exact.schedule) for _ in range(3))
    known, critic = of_classes(torch.tensor([0, 1])), Known(exact)
    found = Roles(student, teacher, target, critic).with_condition(known)
    told = [role.told for role in (found.student, found.teacher, found.target)]
    assert told == [(student, known), (teacher, known), (target, known)]
    assert (found.critic, found.condition) == (critic, known)
    assert Roles(student, None, target).with_condition(known).teacher is None


def test_a_few_step_teacher_is_refused():
    import pytest

    from diffcore.core.errors import UserError

    with pytest.raises(UserError, match="valid at any time"):
        ONE.check(uniform(4))
    for wrong in ({"steps": 0}, {"critic_updates": 0}, {"critic_lr": 0.0}, {"adversarial": -1.0}):
        with pytest.raises(ValueError, match="must be"):
            dm.DistributionMatching(**wrong)
