"""In which numbers a training computes: every method, parameterization and kind of network in bfloat16, which a CPU has
too."""

import dataclasses
from typing import ClassVar

import pytest
import torch
from torch import nn

from diffcore import methods
from diffcore.data.feed import ResidentFeed
from diffcore.data.read import Images
from diffcore.denoisers.guidance import Guided
from diffcore.denoisers.network import NetDenoiser
from diffcore.denoisers.reading import Reading
from diffcore.methods import consistency, distribution_matching, phased
from diffcore.noise.schedule import Cosine, Linear
from diffcore.training.config import Compute, Training
from diffcore.training.loop import Fitted, Job, fit
from tests.conftest import ToyNet, seeded
from tests.test_methods import configs

FULL = Compute(threads=1, precision="no", compile=False, save_seconds=1e9, memory_gb=1.0)
HALF = dataclasses.replace(FULL, precision="bf16")
SHORT = Training(iterations=2, batch=8, lr=1e-3, ema=0.9)
WITH_A_CRITIC = [
    ("distribution_matching", distribution_matching.DistributionMatching(2, 1, adversarial=0.1)),
    ("phased", phased.Phased(16, 4, target_ema=0.5, adversarial=0.1)),
]


def one_of_each() -> list:
    """A config of every method; of one with a critic, of one whose target is an average, and the perceptual distance."""
    plain = {name: (name, config) for name, config in configs() if name not in dict(WITH_A_CRITIC)}
    return [*plain.values(), *WITH_A_CRITIC, ("consistency", consistency.Consistency(8, 0.0, "perceptual"))]


EACH = pytest.mark.parametrize(("name", "config"), one_of_each(), ids=lambda value: str(value))


class Told(ToyNet):
    """A toy that may be told a class, and may say twice as much. Notes for whom it computes in which numbers."""

    notes: ClassVar[list[tuple[str, torch.dtype]]] = []

    def __init__(self, classes: int | None = None, outputs: int = 1, seed: int = 0, whose: str = "student"):
        super().__init__(seed=seed)
        self.whose, self.embed = whose, nn.Linear(8, 8)
        self.table = None if classes is None else nn.Embedding(classes + 1, 8)
        self.conv_out = nn.Conv2d(8, outputs, 3, padding=1)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=seeded(seed)))

    def forward(self, x, timestep, class_labels=None):
        told = (timestep / 1024)[:, None].expand(-1, 8)
        told = self.embed(told if self.table is None else told + self.table(class_labels))
        out = self.conv_out(self.features(x, timestep)[0] * (1 + told[..., None, None]))
        Told.notes.append((self.role(), out.dtype))
        return out

    def features(self, x, timestep, class_labels=None):
        return super().features(x, timestep)

    def role(self) -> str:
        if self.whose == "teacher":  # of whom a critic is a copy that learns
            return "critic" if self.training else "teacher"
        return "student" if torch.is_grad_enabled() else "target"


def denoiser(conditional: bool = False, parameterization: str = "v", **more) -> NetDenoiser:
    """An eps parameterization on a schedule that ends before pure noise, where it would have no image."""
    classes, schedule = (3 if conditional else None), Linear() if parameterization == "eps" else Cosine()
    return NetDenoiser(
        Told(classes, 2 if parameterization == "x0_eps" else 1, **more),
        schedule,
        Reading(parameterization),
        classes=classes,
    )


def feed(conditional: bool = False, batch: int = 8) -> ResidentFeed:
    pixels = torch.randint(0, 256, (40, 1, 4, 4), generator=seeded(9)).to(torch.uint8)
    images = Images(pixels, torch.arange(40) % 3, ("a", "b", "c")) if conditional else Images(pixels, None, None)
    return ResidentFeed(images, batch, 0, flip=False)


def job(name: str, config, conditional: bool = False, fitting: Training = SHORT) -> Job:
    """A conditional one has label dropout and guidance weights too."""
    fitting = dataclasses.replace(fitting, label_dropout=0.2) if conditional else fitting
    weights = (1.0, 3.0) if conditional else None
    return Job(config, fitting, feed(conditional, fitting.batch), 0, guidance=weights)


def run(
    name: str,
    config,
    conditional: bool = False,
    parameterization: str = "v",
    compute: Compute = FULL,
    fitting: Training = SHORT,
    **more,
) -> Fitted:
    """A student and another network as its teacher, guided where there are classes."""
    student, teacher = (
        denoiser(conditional, parameterization),
        denoiser(conditional, parameterization, seed=2, whose="teacher"),
    )
    cast = Guided(teacher) if conditional else teacher
    return fit(job(name, config, conditional, fitting), student, cast, compute, **more)


def takes(name: str, parameterization: str) -> bool:
    """Whether params.yaml would take it."""
    return parameterization != "x0" or name == "denoising" or methods.load(name).off_the_data


KINDS = [(False, "v"), (True, "v"), (False, "x0"), (False, "x0_eps"), (True, "x0_eps"), (False, "flow")]


@pytest.mark.slow
@EACH
def test_every_method_trains_in_bfloat16(name, config):
    """Its losses are float32's but for the rounding, of which a difference of two close beliefs keeps the most; the weights,
    the average and the moments stay float32."""
    within = 0.15 if name == "consistency_training" else 0.06
    for conditional, parameterization in KINDS:
        if not takes(name, parameterization):
            continue
        whole, half = (run(name, config, conditional, parameterization, compute) for compute in (FULL, HALF))
        assert half.curve != whole.curve, (conditional, parameterization)
        for one, other in zip(whole.curve, half.curve, strict=True):
            assert other.loss == pytest.approx(one.loss, rel=within), (conditional, parameterization)
            assert (other.critic_loss or 0) == pytest.approx(one.critic_loss or 0, rel=within), (
                conditional,
                parameterization,
            )
        assert all(value.dtype == torch.float32 for value in half.net.state_dict().values())


@EACH
def test_an_eps_head_is_full_precision_forth_and_back(name, config):
    """All of its training then is float32's, bit for bit; but for features, from which no image is read."""
    whole, half = (run(name, config, False, "eps", compute) for compute in (FULL, HALF))
    if "perceptual" in str(config) or getattr(config, "adversarial", 0):
        assert half.curve[0].loss == pytest.approx(whole.curve[0].loss, rel=1e-3)
        return
    assert half.curve == whole.curve
    pairs = zip(whole.net.state_dict().values(), half.net.state_dict().values(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def watched(name: str, config, conditional: bool = False, parameterization: str = "v", compute: Compute = HALF) -> set:
    """Who computed in which numbers."""
    Told.notes.clear()
    run(name, config, conditional, parameterization, compute)
    return set(Told.notes)


@EACH
def test_every_network_computes_in_bfloat16_but_where_full_precision_is_asked_for(name, config):
    """Student, target, teacher and critic, told of classes or not; in full for an eps parameterization, and for a
    derivative."""
    for conditional in (False, True):
        found = watched(name, config, conditional)
        target = {torch.float32} if name == "continuous" else {torch.bfloat16}
        assert {dtype for who, dtype in found if who == "target"} in (set(), target)
        assert {dtype for who, dtype in found if who != "target"} == {torch.bfloat16}
    for found in (watched(name, config, parameterization="eps"), watched(name, config, compute=FULL)):
        assert {dtype for _, dtype in found} == {torch.float32}


def test_every_role_is_watched():
    seen = {
        who
        for name, config in (*WITH_A_CRITIC, ("consistency", consistency.Consistency(8, 0.9)))
        for who, _ in watched(name, config)
    }
    assert seen == {"student", "target", "teacher", "critic"}
