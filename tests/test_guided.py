"""Guided distillation: its target against a mixture with known scores, and the real trainer with weights as an input."""

import dataclasses
import math

import pytest
import torch
from torch import nn

from diffcore.core.errors import UserError
from diffcore.core.rng import Draw
from diffcore.denoisers.condition import CLASS, of_classes
from diffcore.denoisers.denoiser import Denoiser
from diffcore.denoisers.exact import GaussianDenoiser
from diffcore.denoisers.guidance import Guided
from diffcore.denoisers.network import NetDenoiser
from diffcore.denoisers.prediction import from_v
from diffcore.methods import Roles
from diffcore.methods.guided import GuidedDistillation
from diffcore.noise.angle import diffuse
from diffcore.noise.schedule import Cosine
from diffcore.noise.trajectory import uniform
from diffcore.training.config import Training
from diffcore.training.loop import Fitted, Job, fit
from tests.conftest import randn, seeded
from tests.test_condition import TwoBlobs
from tests.test_fit import COMPUTE

LABELS, WEIGHTS = torch.tensor([0, 1, 1, 0]), torch.tensor([1.0, 3.0, 0.0, 4.5], dtype=torch.float64)
TIMES = torch.tensor([0.9, 0.5, 0.2, 0.3], dtype=torch.float64)


def velocity_by_scores(z, t, labels=LABELS, weights=WEIGHTS):
    """v of score_u + g (score_c - score_u), each the gradient of a log density of the mixture's: no denoiser is asked."""
    blobs, schedule = TwoBlobs(), Cosine()
    alpha, sigma = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]
    z = z.clone().requires_grad_()
    logs = [
        torch.distributions.Normal(alpha * mean, (alpha**2 * variance + sigma**2).sqrt()).log_prob(z).sum(1)
        for mean, variance in zip(blobs.means, blobs.variances)
    ]
    whole = torch.logsumexp(torch.stack([weight.log() + log for weight, log in zip(blobs.weights, logs)]), 0)
    own = torch.where(labels == 0, *logs)
    of_none, of_class = (torch.autograd.grad(log.sum(), z, retain_graph=True)[0] for log in (whole, own))
    score = of_none + weights[:, None] * (of_class - of_none)
    eps, z = -sigma * score, z.detach()
    return alpha * eps - sigma * (z - sigma * eps) / alpha


def teacher() -> Denoiser:
    """As the trainer makes it: guided, and told the batch's classes and weights."""
    return Guided(TwoBlobs()).with_condition(of_classes(LABELS, WEIGHTS))


class Fixed(Denoiser):
    """Says one v, whatever it is asked, plus a parameter."""

    def __init__(self, v):
        super().__init__()
        self.v, self.schedule, self.grid = v, Cosine(), None
        self.shift = nn.Parameter(torch.zeros(2, dtype=torch.float64))

    def forward(self, x_t, t):
        return from_v(x_t, self.schedule.level(t, x_t), self.v + self.shift)


@pytest.mark.parametrize("weight", ["one", "truncated_snr"])
def test_the_loss_against_a_mixture_with_known_conditional_scores(weight):
    student, x0, noise = TwoBlobs(), randn(4, 2), randn(4, 2, seed=1)
    z = diffuse(x0, noise, math.pi / 2 * TIMES)
    square = (student(z, TIMES).v - velocity_by_scores(z, TIMES)).square().mean(1)
    angle = math.pi / 2 * TIMES
    factor = torch.stack([angle.cos() ** 2, angle.sin() ** 2]).max(0).values if weight == "truncated_snr" else 1
    found = GuidedDistillation(weight).loss(Roles(student, teacher(), student), x0, Draw(TIMES, noise), 0.0)
    torch.testing.assert_close(found, factor * square, rtol=1e-9, atol=1e-14)
    assert (found > 0.1).tolist() == [True, True, False, True]  # of no class itself, which is what a weight of 0 says


def test_who_knows_the_guided_velocity_has_no_loss_and_its_slope_is_the_error_s():
    x0, noise = randn(4, 2), randn(4, 2, seed=1)
    z = diffuse(x0, noise, math.pi / 2 * TIMES)
    right = Fixed(velocity_by_scores(z, TIMES))
    cast = Roles(right, teacher(), right)
    assert float(GuidedDistillation().loss(cast, x0, Draw(TIMES, noise), 0.0).detach().max()) < 1e-22
    off = Fixed(velocity_by_scores(z, TIMES) + 0.5)
    GuidedDistillation("one").loss(dataclasses.replace(cast, student=off), x0, Draw(TIMES, noise), 0.0).sum().backward()
    torch.testing.assert_close(off.shift.grad, torch.full((2,), 4 * 0.5).double())  # four samples, a mean over two
    other = dataclasses.replace(cast, student=Fixed(velocity_by_scores(z, TIMES, weights=WEIGHTS + 1)))
    assert float(GuidedDistillation().loss(other, x0, Draw(TIMES, noise), 0.0).detach().max()) > 1e-3


def test_a_part_of_the_batch_keeps_its_classes_and_weights():
    x0, drawn = randn(4, 2), Draw(TIMES, randn(4, 2, seed=1))
    cast = Roles(TwoBlobs(), Guided(TwoBlobs()), TwoBlobs())
    known = of_classes(LABELS, WEIGHTS)
    whole = GuidedDistillation().loss(cast.with_condition(known), x0, drawn, 0.0)
    rows = [slice(k, k + 1) for k in range(4)]
    parts = [GuidedDistillation().loss(cast.with_condition(known[part]), x0[part], drawn[part], 0.0) for part in rows]
    torch.testing.assert_close(whole, torch.cat(parts), rtol=1e-10, atol=1e-14)


def test_what_a_teacher_and_a_line_must_have():
    GuidedDistillation().check(None)
    with pytest.raises(UserError, match="valid only on its own 4 steps; name the teacher it was distilled from"):
        GuidedDistillation().check(uniform(4))
    GuidedDistillation().check_guidance((1.0, 4.0))
    GuidedDistillation().check_guidance((2.0, 2.0))
    with pytest.raises(UserError, match="guided needs weights to learn; say `guidance: "):
        GuidedDistillation().check_guidance(None)
    assert GuidedDistillation().grid is None


# ------------------------------------------------------------------------------------------- the trainer

MEANS, STD = (-0.4, 0.6, 0.1), 0.5
"""Of the pixels of each class, and of no class."""


class TwoKinds(Denoiser):
    """Gaussian images whose mean depends on the class; of no class, a Gaussian as well, so that guidance is affine."""

    def __init__(self, labels=None):
        super().__init__()
        self.labels, self.schedule, self.grid = labels, Cosine(), None

    def with_condition(self, condition):
        return TwoKinds(condition.class_labels)

    def select(self, rows):
        return TwoKinds(self.labels[rows])

    def forward(self, x_t, t):
        mean = torch.tensor(MEANS, dtype=x_t.dtype)[self.labels][:, None, None, None]
        level, base = self.schedule.level(t, x_t), GaussianDenoiser(torch.zeros(1), torch.tensor(STD**2), Cosine())
        belief = base(x_t - level.alpha * mean, t)
        return from_v(x_t, level, belief.v - level.sigma * mean)


@dataclasses.dataclass(frozen=True)
class KindsFeed:
    """Images of both classes, with their labels."""

    size: int
    images: int = 10**6
    shape: tuple[int, int, int] = (1, 4, 4)
    classes: tuple[str, ...] | None = ("dark", "bright")

    def batch(self, step, rows=slice(None)):
        labels = torch.arange(self.size) % 2
        x0 = STD * torch.randn((self.size, *self.shape), generator=seeded(step))
        return (x0 + torch.tensor(MEANS)[labels][:, None, None, None])[rows], {CLASS: labels[rows]}


class AffineInBoth(nn.Module):
    """v = gain(t) z + shift(t, class) + g slope(t, class): series in t, nothing else known."""

    def __init__(self, terms: int = 10):
        super().__init__()
        self.gain = nn.Parameter(torch.zeros(terms))
        self.shift, self.slope = nn.Parameter(torch.zeros(3, terms)), nn.Parameter(torch.zeros(3, terms))

    def at(self, t, labels, g):
        angles = torch.arange(len(self.gain)) * (2 * t - 1).clamp(-1, 1).acos()[:, None]
        series = angles.cos()
        return series @ self.gain, (series * (self.shift[labels] + g.float()[:, None] * self.slope[labels])).sum(1)

    def forward(self, x, timestep, class_labels, guidance):
        gain, shift = self.at((timestep + 1) / 1024, class_labels, guidance)
        return gain[:, None, None, None] * x + shift[:, None, None, None]


def exact(t, labels, g):
    """(gain, shift) of the guided velocity: all have one spread, so guidance moves the mean alone."""
    cos, sin = (math.pi / 2 * t).cos(), (math.pi / 2 * t).sin()
    gain = cos * sin * (1 - STD**2) / (cos**2 * STD**2 + sin**2)
    of_class, of_none = torch.tensor(MEANS)[labels], MEANS[2]
    return gain, -(sin + gain * cos) * (of_none + g * (of_class - of_none))


def train(low: float, high: float, **more) -> Fitted:
    setting = Training(**{"iterations": 400, "batch": 256, "lr": 0.1, "ema": 0.97, "weight_decay": 0.0, **more})
    work = Job(GuidedDistillation(), setting, KindsFeed(setting.batch), 0, guidance=(low, high))
    student = NetDenoiser(AffineInBoth(), Cosine(), classes=2, takes_guidance=True)
    return fit(work, student, Guided(TwoKinds()), COMPUTE)


def error(net: AffineInBoth, g: float) -> float:
    """Of the gain and the shift, over t in (0, 1] and both classes."""
    t, labels = torch.arange(1, 51).repeat(2) / 50, torch.arange(2).repeat_interleave(50)
    weights = torch.full((100,), g)
    with torch.no_grad():
        pairs = zip(net.at(t, labels, weights), exact(t, labels, weights))
        return max(float((found - right).abs().max()) for found, right in pairs)


def test_the_closed_form_is_the_guided_teacher_s():
    t, labels, g = torch.tensor([0.2, 0.5, 0.9]), torch.tensor([0, 1, 1]), torch.tensor([1.0, 2.5, 4.0]).double()
    z = randn(3, 1, 4, 4)
    slope, shift = exact(t.double(), labels, g)
    v = Guided(TwoKinds()).with_condition(of_classes(labels, g))(z, t.double()).v
    by_hand = slope[:, None, None, None] * z + shift[:, None, None, None]
    torch.testing.assert_close(v, by_hand, rtol=1e-6, atol=1e-6)  # the means are float32


@pytest.mark.slow
def test_the_trainer_finds_the_guided_velocity_at_every_weight():
    """From nothing; what is left is what a series of ten terms cannot say."""
    net = train(1.0, 4.0).net
    assert [error(net, g) < 0.005 for g in (1.0, 2.5, 4.0)] == [True] * 3, [error(net, g) for g in (1.0, 2.5, 4.0)]
    assert error(AffineInBoth(), 1.0) > 0.5


@pytest.mark.slow
def test_weights_outside_those_trained_for_are_not_learned():
    """One weight is built in: at it the student is right, elsewhere it cannot know."""
    net = train(3.0, 3.0).net
    assert error(net, 3.0) < 0.005
    assert error(net, 1.0) > 0.1


def test_parts_of_a_batch_add_up_to_the_whole():
    whole, parts = (train(1.0, 4.0, iterations=1, accumulate=parts) for parts in (1, 4))
    assert whole.curve[0].loss == pytest.approx(parts.curve[0].loss, rel=1e-6)
    assert whole.curve[0].grad_norm == pytest.approx(parts.curve[0].grad_norm, rel=1e-5)
    assert whole.calls == parts.calls == (3 + 2) * 256  # the guided teacher makes two
