"""The real trainer against closed forms: every method, on data and with a student simple enough to know where it must end.

Pixels are independent N(MEAN, STD^2), for which every velocity, hop and flow is affine in z. The student
has a gain and a shift at each of 16 times and is linear between them, or smooth, where a method differentiates it by time.
So what a method should learn is known at every time. The author of a new method gives it a line in CASES.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diffcore import methods
from diffcore.denoisers.exact import GaussianDenoiser
from diffcore.denoisers.network import ANY, NetDenoiser
from diffcore.denoisers.reading import Reading
from diffcore.methods import (
    consistency,
    consistency_training,
    continuous,
    denoising,
    distribution_matching,
    flow_map,
    guided,
    phased,
    progressive,
)
from diffcore.noise.angle import between, heun, hop
from diffcore.noise.schedule import Cosine
from diffcore.training.config import Compute, Training
from diffcore.training.loop import Job, fit
from diffcore.training.resume import Resume
from tests.test_consistency_training import Affine as Smooth
from tests.test_consistency_training import GaussianFeed

pytestmark = pytest.mark.usefixtures("without_shape_checks")

MEAN, STD, KNOTS = 0.2, 0.5, 16
COMPUTE = Compute(threads=1, precision="no", compile=False, save_seconds=1e9, memory_gb=1.0)
Map = Callable[[Tensor, Tensor], Tensor]
"""(z [n, 1, 1, 1], t [n]) -> v at z, float64."""


def exact(dtype: torch.dtype = torch.float64) -> GaussianDenoiser:
    return GaussianDenoiser(*(torch.full((1, 1, 1), number, dtype=dtype) for number in (MEAN, STD**2)), Cosine())


class Affine(nn.Module):
    """v = gain(t) z + shift(t), both linear between their values at t = k/KNOTS."""

    def __init__(self):
        super().__init__()
        self.gain, self.shift = nn.Parameter(torch.zeros(KNOTS + 1)), nn.Parameter(torch.zeros(KNOTS + 1))

    def at(self, t):
        hats = (1 - (t[:, None] * KNOTS - torch.arange(KNOTS + 1)).abs()).clamp(min=0)
        return hats @ self.gain, hats @ self.shift

    def forward(self, x, timestep):
        gain, shift = (part[:, None, None, None] for part in self.at((timestep + 1) / 1024))
        return gain * x + shift


class Rising(Affine):
    """Its image rises with the noise from the start: a method that looks at distributions alone would allow either."""

    def __init__(self):
        super().__init__()
        with torch.no_grad():
            self.gain -= 0.2


class TwoTimes(nn.Module):
    """v = gain(t, s) z + shift(t, s), both polynomials of the fourth degree; s is where its hop lands."""

    def __init__(self):
        super().__init__()
        self.powers = [(i, j) for i in range(5) for j in range(5 - i)]
        self.gain, self.shift = (nn.Parameter(torch.zeros(len(self.powers))) for _ in range(2))

    def at(self, t, s=None):
        s = torch.zeros_like(t) if s is None else s
        terms = torch.stack([t**i * s**j for i, j in self.powers], 1)
        return terms @ self.gain, terms @ self.shift

    def forward(self, x, timestep, end_timestep):
        gain, shift = (part[:, None, None, None] for part in self.at((timestep + 1) / 1024, (end_timestep + 1) / 1024))
        return gain * x + shift


# ------------------------------------------------------------------------------------------- where methods must end


def posterior(z: Tensor, t: Tensor) -> Tensor:
    """The denoiser itself."""
    return exact()(z, t).v


def flow(z: Tensor, t: Tensor) -> Tensor:
    """The exact flow to the data."""
    return between(z, exact().flow(z, t, torch.zeros_like(t)), t * math.pi / 2)


def steps_down(fine: int, to: int, step: Map | None = None) -> Map:
    """Plain steps of length 1/fine from t down to the next multiple of 1/to below it, which is not t itself."""

    def v(z: Tensor, t: Tensor) -> Tensor:
        at, k = z, (t * fine).round()
        edge = ((k * to / fine).ceil() - 1) * fine / to
        phi, phi_edge = (x / fine * math.pi / 2 for x in (k, edge))
        while bool((k > edge).any()):
            short = torch.full_like(t, math.pi / 2 / fine)
            there = hop(at, (step or posterior)(at, k.clamp(min=1) / fine), short)
            at, k = torch.where((k > edge)[:, None, None, None], there, at), torch.where(k > edge, k - 1, k)
        return between(z, at, phi - phi_edge)

    return v


def heuns(fine: int) -> Map:
    """One of Heun's steps of length 1/fine."""
    return lambda z, t: heun(posterior, z, t, t - 1 / fine, Cosine())


@dataclass(frozen=True)
class Case:
    """config: the method's. right: what the student must be. within: of its gain and shift, at each of `times`.

    student: Affine or Smooth. fit: what differs from the harness's own training.
    """

    config: Any
    right: Map
    within: float
    times: tuple[float, ...] = tuple(k / KNOTS for k in range(1, KNOTS + 1))
    iterations: int = 300
    student: type[nn.Module] = Affine
    fit: dict[str, Any] = field(default_factory=dict)


QUARTERS = (0.25, 0.5, 0.75, 1.0)
SLOWLY = {"batch": 512, "lr": 0.01, "ema": 0.99}

CASES: dict[str, list[Case]] = {
    "consistency": [
        Case(consistency.Consistency(16, 0.0, "squared"), steps_down(16, 1), 0.01, iterations=500),
        Case(consistency.Consistency(16, 0.5), steps_down(16, 1), 0.02, iterations=500),
        Case(
            consistency.Consistency(16, 0.0, "squared", hop="heun"), steps_down(16, 1, heuns(16)), 0.005, iterations=500
        ),
        Case(consistency.Consistency(8, 0.0, "squared", hop="substeps", substeps=8), steps_down(64, 1), 0.01, QUARTERS),
        Case(consistency.Consistency(2, 0.0, "squared", steps_end=16), steps_down(16, 1), 0.02, iterations=800),
    ],
    "consistency_training": [
        Case(consistency_training.ConsistencyTraining(), flow, 0.1, iterations=600, student=Smooth, fit=SLOWLY)
    ],
    "continuous": [Case(continuous.Continuous(), flow, 0.1, iterations=300, student=Smooth, fit=SLOWLY)],
    "denoising": [
        Case(denoising.Denoising(), posterior, 0.06),
        Case(denoising.Denoising("min_snr"), posterior, 0.06, times=QUARTERS[:3]),
    ],
    "distribution_matching": [
        Case(
            distribution_matching.DistributionMatching(1, 2, 0.02), flow, 0.03, times=(1.0,), student=Rising, fit=SLOWLY
        )
    ],
    "flow_map": [
        Case(flow_map.FlowMap(target_ema=0.5), flow, 0.03, QUARTERS, 1000, TwoTimes, fit={"lr": 0.1, "ema": 0.97})
    ],
    "guided": [Case(guided.GuidedDistillation(), posterior, 0.03)],
    "phased": [Case(phased.Phased(steps=16), steps_down(16, 4), 0.01)],
    "progressive": [
        Case(progressive.Progressive(4), steps_down(8, 4), 0.005, QUARTERS),
        Case(progressive.Progressive(4, "one", factor=3), steps_down(12, 4), 0.005, QUARTERS),
    ],
}
"""By the method's name. The lists may hold several choices of one method."""

LONG = {"consistency", "consistency_training", "continuous", "distribution_matching", "flow_map"}
"""Their trainings take seconds."""

CASES_BY_NAME = [
    pytest.param(name, number, id=f"{name}-{number}", marks=[pytest.mark.slow] if number or name in LONG else [])
    for name in methods.names()
    for number in range(len(CASES.get(name, [0])))
]
"""The first of each method in the fast suite, but for the long ones."""


def trained(name: str, case: Case, resume: Resume | None = None) -> nn.Module:
    setting = {"batch": 256, "lr": 0.05, "ema": 0.0, "weight_decay": 0.0, **case.fit}
    feed = GaussianFeed(MEAN, STD, setting["batch"])
    job = Job(case.config, Training(iterations=case.iterations, **setting), feed, 0)
    student = NetDenoiser(case.student(), Cosine(), end=ANY if case.config.two_times else None)
    return fit(job, student, exact(torch.float32), COMPUTE, resume).net


@torch.no_grad()
def errors(net: nn.Module, case: Case) -> tuple[float, float]:
    """The largest error of gain and of shift over the case's times."""
    t = torch.tensor(case.times, dtype=torch.float64)
    zero, one = torch.zeros(len(t), 1, 1, 1).double(), torch.ones(len(t), 1, 1, 1).double()
    shift = case.right(zero, t).flatten()
    gain = case.right(one, t).flatten() - shift
    found = net.at(t.float())
    return float((found[0] - gain).abs().max()), float((found[1] - shift).abs().max())


@pytest.mark.slow
@pytest.mark.parametrize(("name", "number"), CASES_BY_NAME)
def test_the_trainer_finds_the_closed_form(name, number):
    assert name in CASES, (
        f"the method {name!r} has no closed form yet: say in CASES, with a config for this student and Gaussian data, which "
        "velocity it must end with (posterior, flow, steps_down or another), and within how much"
    )
    case = CASES[name][number]
    assert max(errors(case.student(), case)) > 4 * case.within, "the start is no answer"
    found = errors(trained(name, case), case)
    assert max(found) < case.within, found


class Says(Affine):
    """What else a network may say: x_0 alone, or beside it an eps of its own."""

    def __init__(self, parameterization: str):
        super().__init__()
        self.eps = Affine() if parameterization == "x0_eps" else None

    def forward(self, x, timestep):
        x0 = super().forward(x, timestep)
        return x0 if self.eps is None else torch.cat([x0, self.eps(x, timestep)], 1)


PARAMETERIZED = [
    ("x0_eps", "denoising", 0),
    ("x0_eps", "progressive", 0),
    ("flow", "denoising", 0),
    ("flow", "progressive", 0),
    ("x0", "denoising", 1),
    ("x0", "progressive", 0),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("parameterization", "name", "number"),
    [PARAMETERIZED[0], *(pytest.param(*each, marks=pytest.mark.slow) for each in PARAMETERIZED[1:])],
)
def test_every_parameterization_finds_the_closed_form(parameterization, name, number):
    """The velocity read from what the network says is the right one."""
    case, start = CASES[name][number], NetDenoiser(Says(parameterization), Cosine(), Reading(parameterization))
    feed = GaussianFeed(MEAN, STD, 256)
    job = Job(case.config, Training(400, 256, 0.05, 0.0, weight_decay=0.0), feed, 0)
    learned = start.with_network(fit(job, start, exact(torch.float32), COMPUTE).net)
    t = torch.tensor([time for time in case.times if time < 1], dtype=torch.float64)

    @torch.no_grad()
    def error(denoiser: NetDenoiser) -> float:
        ends = (torch.full((len(t), 1, 1, 1), z).double() for z in (0, 1))
        return max(float((denoiser(z, t).v - case.right(z, t)).abs().max()) for z in ends)

    assert error(start) > 4 * case.within
    assert error(learned) < case.within


@pytest.mark.slow
def test_one_flow_map_hops_from_any_time_to_any_other():
    """Of the same training: in between, and the velocity where the hop has no length."""
    case = CASES["flow_map"][0]
    net = trained("flow_map", case)
    learned = NetDenoiser(net, Cosine(), end=ANY)
    t = torch.tensor([1.0, 1.0, 0.75, 0.6, 0.9, 0.5]).double()
    s = torch.tensor([0.5, 0.25, 0.25, 0.1, 0.9, 0.5]).double()
    right = exact().flow(z := torch.ones(6, 1, 1, 1).double(), t, s)
    d = ((t - s) * math.pi / 2)[:, None, None, None]
    right = torch.where(d > 0, between(z, right, (t - s) * math.pi / 2), posterior(z, t))
    with torch.no_grad():
        assert float((learned.toward(s)(z.float(), t).v - right).abs().max()) < 2 * case.within


def test_no_case_is_left_behind():
    assert set(CASES) <= set(methods.names())


def test_without_an_average_the_result_is_the_last_weights(tmp_path):
    """`ema: 0`: what teaches the next round of progressive distillation is the student itself, as in the paper."""
    resume = Resume(tmp_path, "x", {"job": "f"})
    case = Case(progressive.Progressive(4), posterior, 0.0, iterations=5)
    net, tensors = trained("progressive", case, resume), resume.load().tensors()
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, tensors[f"net/{name}"])
    averaged = trained("progressive", Case(progressive.Progressive(4), posterior, 0.0, iterations=5, fit={"ema": 0.9}))
    assert not torch.equal(averaged.gain, net.gain)
