"""How networks are fed and read: every input, time and parameterization against closed forms, in float64."""

import dataclasses
import math
import re

import pytest
import torch
from torch import Tensor, nn

from diffcore import checkpoints
from diffcore.checkpoints.roles import roles
from diffcore.core.errors import UserError
from diffcore.denoisers.denoiser import Denoiser, per_sample
from diffcore.denoisers.network import NetDenoiser
from diffcore.denoisers.node import ddim_step, node
from diffcore.denoisers.prediction import PARAMETERIZATIONS
from diffcore.denoisers.reading import INPUTS, KINDS, TIMES, VP, Reading
from diffcore.noise.schedule import EDM, SCHEDULES, VE, Cosine, Flow, Level, Linear, variance_preserving
from tests.conftest import ToyNet, gaussian, make_schedule, randn

TIMES_IN = torch.tensor([0.05, 0.3, 0.5, 0.8, 0.95], dtype=torch.float64)
FINITE = [word for word in PARAMETERIZATIONS if word not in ("x0", "eps", "score")]


def close(a: Tensor, b: Tensor, atol: float = 1e-12) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


class Exact(nn.Module):
    """A network that says what is true of N(mean, variance): it undoes the input by what it is told of it at this time."""

    def __init__(self, exact: Denoiser, reading: Reading, t: float):
        super().__init__()
        self.exact, self.reading, self.t = exact, reading, t

    def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
        t, schedule = per_sample(self.t, x), self.exact.schedule
        level = schedule.level(t, x)
        factor, own = self.reading.seen(torch.ones_like(level.alpha), level)
        belief = self.exact(x / factor, t)
        # in the network's own words: of x_0 / sigma_data, at the level of what it sees
        said = dataclasses.replace(belief, x0=belief.x0 / self.reading.sigma_data, level=own)
        return getattr(said, self.reading.parameterization)


READINGS = [
    Reading(parameterization, 1000, input, "index", sigma_data)
    for parameterization in PARAMETERIZATIONS
    for input in INPUTS
    for sigma_data in (1.0, 0.5)
    # what is merged of two outputs is merged by the angle alone, whatever the scale; it is read like the others
]


@pytest.mark.parametrize("reading", READINGS, ids=lambda r: f"{r.parameterization}-{r.input}-{r.sigma_data}")
@pytest.mark.parametrize("word", SCHEDULES)
def test_every_reading_gives_the_exact_belief_on_every_schedule(word, reading):
    exact, x = gaussian(make_schedule(word)), randn(3, 2, 3)
    for t in (0.05, 0.4, 0.9):
        belief = exact(x, per_sample(t, x))
        read = NetDenoiser(Exact(exact, reading, t), exact.schedule, reading)(x, per_sample(t, x))
        scale = max(1.0, *(float(part.abs().max()) for part in (belief.x0, belief.eps)))
        # eps / alpha at much noise and x_0 / sigma at little lose digits, and only they
        bound = 1e-12 if reading.parameterization in FINITE else 1e-9
        close(read.x0 / scale, belief.x0 / scale, bound)
        close(read.eps / scale, belief.eps / scale, bound)
        close(read.level.alpha, belief.level.alpha, 0)


@pytest.mark.parametrize("input", [word for word in INPUTS if word != "same"])
@pytest.mark.parametrize("sigma_data", [1.0, 0.5])
def test_what_a_network_sees_at_one_log_snr_is_the_same_on_every_schedule(input, sigma_data):
    x0, eps, reading = randn(5, 2), randn(5, 2, seed=1), Reading("v", 1000, input, "sigma", sigma_data)
    lam = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0], dtype=torch.float64)
    seen = []
    for word in SCHEDULES:
        for kind in (make_schedule(word), variance_preserving(make_schedule(word))):
            t = kind.time(lam)
            level = kind.level(t, x0)
            seen.append(reading.fed(level.alpha * x0 + level.sigma * eps, t, kind))
    for x, told in seen:
        close(x, seen[0][0], 1e-9)
        close(told.double(), torch.exp(-lam), 1e-5)


def test_edm_is_fed_and_read_as_published():
    """Table 1 of arXiv 2206.00364: c_in, c_noise, c_skip and c_out for sigma_data 0.5, on its own schedule."""
    kind, reading, data = EDM(), Reading.of("edm", "edm", sigma_data=0.5), 0.5
    x, F = randn(5, 2, 3), randn(5, 2, 3, seed=1)
    sigma = kind.sigma(TIMES_IN)[:, None, None]
    seen, told = reading.fed(x, TIMES_IN, kind)
    close(seen, x / (sigma**2 + data**2).sqrt())
    close(told.double(), kind.sigma(TIMES_IN).log() / 4, 1e-6)
    skip, out = data**2 / (sigma**2 + data**2), sigma * data / (sigma**2 + data**2).sqrt()
    belief = reading.belief(x, TIMES_IN, kind, F)
    close(belief.x0, skip * x + out * F)
    close(belief.eps * sigma, x - belief.x0, 1e-11)


def test_a_flow_network_sees_the_straight_line_and_is_told_its_time():
    kind, reading = variance_preserving(Flow(3.0)), Reading.of("flow", "flow", 1000)
    x0, eps = randn(5, 2, 3), randn(5, 2, 3, seed=1)
    level, s = kind.level(TIMES_IN, x0), Flow(3.0).sigma(TIMES_IN)
    seen, told = reading.fed(level.alpha * x0 + level.sigma * eps, TIMES_IN, kind)
    close(seen, (1 - s)[:, None, None] * x0 + s[:, None, None] * eps)
    close(told.double(), 1000 * s, 1e-4)
    belief = reading.belief(level.alpha * x0 + level.sigma * eps, TIMES_IN, kind, eps - x0)
    close(belief.x0, x0)
    close(belief.eps, eps)


@pytest.mark.parametrize("time", TIMES)
@pytest.mark.parametrize("input", INPUTS)
def test_what_a_model_card_says_of_it_is_what_it_does(input, time):
    """Its words, as Python."""
    reading, kind, t = Reading("v", 1000, input, time, 0.5), Flow(3.0), 0.3
    numbers = {"x_t": 1.7, "t": t, "log": math.log, "sqrt": math.sqrt}
    numbers |= {"alpha": float(kind.alpha(torch.tensor([t]))), "sigma": float(kind.sigma(torch.tensor([t])))}
    at = torch.tensor([t], dtype=torch.float64)
    seen, told = reading.fed(torch.full((1, 1), 1.7, dtype=torch.float64), at, kind)
    words = dict(part.split(" is ") for part in reading.words.split(", "))
    for word, value in {"x": seen, "timestep": told}.items():
        text = re.sub(r"(\d) (t|alpha|sigma)", r"\1 * \2", words.get(word, "x_t")).replace("^", "**")
        assert eval(text, numbers) == pytest.approx(float(value), rel=1e-6)


def test_the_usual_reading_neither_scales_nor_rounds():
    """Its numbers are those of before there were others, to the last bit."""
    x, t = randn(5, 2, 3).float(), TIMES_IN
    seen, told = VP.fed(x, t, Cosine())
    assert seen is x
    assert torch.equal(told, (t * 1024 - 1).float())
    out = randn(5, 2, 3, seed=2).float()
    level = Cosine().level(t, x)
    found, by_hand = VP.belief(x, t, Cosine(), out), PARAMETERIZATIONS["v"](x, level, out)
    assert torch.equal(found.x0, by_hand.x0)
    assert torch.equal(found.eps, by_hand.eps)


@pytest.mark.parametrize("time", TIMES)
def test_what_is_told_is_a_function_of_time_that_never_turns(time):
    kind = EDM()
    told = Reading(time=time).timestep(torch.linspace(0, 1, 100), kind)
    assert told.dtype == torch.float32
    assert (told.diff() > 0).all()
    assert Reading(time=time).span(kind) == pytest.approx(
        1024 if time in ("index", "time") else float(told[-1] - told[0])
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [1, 4, 16])
def test_an_euler_step_of_each_is_a_ddim_step(kind, steps):
    """In the scale that the network sees: x + (s' - s) d x/d s, the ODE of arXiv 2206.00364, eq. 1, in each."""
    schedule = {"flow": Flow(), "edm": EDM(), "ve": VE()}.get(kind, Cosine())
    exact, x = gaussian(schedule), randn(4, 2, 3)
    for k in range(steps, 0, -1):
        at, to = (node(schedule, max(j / steps, 0.01)) for j in (k, k - 1))
        belief = exact(x, per_sample(at.t, x))
        if schedule.alpha(torch.zeros(1)) == schedule.alpha(torch.ones(1)):
            by_hand = x + (to.sigma - at.sigma) * (x - belief.x0) / at.sigma
        elif kind == "flow":
            by_hand = x + (to.sigma - at.sigma) * belief.flow
        else:
            turn = math.atan2(at.sigma, at.alpha) - math.atan2(to.sigma, to.alpha)
            by_hand = math.cos(turn) * x - math.sin(turn) * belief.v
        x = ddim_step(belief, to)
        close(by_hand, x, 1e-10)


@pytest.mark.parametrize("kind", ["flow", "edm"])
def test_the_same_student_comes_of_the_same_teacher_in_other_words(kind):
    """One belief, written as eps, v, flow and EDM: the velocity that a student regresses is one, so is every DDIM step."""
    schedule, x, t = variance_preserving(EDM() if kind == "edm" else Flow()), randn(4, 2, 3), 0.6
    exact = gaussian(schedule)
    want = exact(x, per_sample(t, x)).v
    for word in ("eps", "v", "flow", "edm", "x0", "score"):
        for reading in (Reading(word), Reading.of(kind, word, 1000, 0.7)):
            close(NetDenoiser(Exact(exact, reading, t), schedule, reading)(x, per_sample(t, x)).v, want, 1e-11)


@pytest.mark.parametrize(
    ("kind", "schedule"), [("edm", Cosine()), ("edm", Linear()), ("ve", Cosine()), ("edm", Flow())]
)
def test_a_schedule_whose_ends_cannot_be_told_is_refused(kind, schedule):
    with pytest.raises(UserError, match=r"has nothing to be told at t = [01] of this schedule; take edm or ve"):
        Reading.of(kind, "v").check(schedule)


@pytest.mark.parametrize(
    ("kind", "schedule"), [("vp", Cosine()), ("flow", Cosine()), ("flow", Flow(2.0)), ("edm", EDM()), ("ve", VE())]
)
def test_a_schedule_that_can_be_told_is_taken(kind, schedule):
    Reading.of(kind, "v").check(variance_preserving(schedule))


@pytest.mark.parametrize("wrong", [{"input": "x"}, {"time": "x"}, {"parameterization": "x"}, {"sigma_data": 0.0}])
def test_a_reading_of_unknown_words_is_none(wrong):
    with pytest.raises(ValueError, match=r"known: |must be a positive number"):
        Reading(**wrong)


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_and_the_batch_law(kind):
    schedule = variance_preserving(EDM() if kind in ("edm", "ve") else Flow())
    denoiser, x = NetDenoiser(ToyNet(3), schedule, Reading.of(kind, "v", 1000, 0.5)), randn(5, 3, 4, 4).float()
    whole = denoiser(x, TIMES_IN)
    parts = [denoiser(x[k : k + 1], TIMES_IN[k : k + 1]).v for k in range(5)]
    torch.testing.assert_close(whole.v, torch.cat(parts), rtol=1e-5, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        low = denoiser(x, TIMES_IN)
    assert low.x0.dtype == torch.float32
    torch.testing.assert_close(low.v, whole.v, rtol=0.05, atol=0.1)


ABOUT = {
    "name": "s", "method": "denoising", "solver": "ddim", "weights": "ema", "parent": None, "teacher": None,
    "data": "d", "parameters": {}, "seed": 0, "code": "c", "torch": "t", "cost": {},
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_keeps_its_reading_and_so_does_its_student(tmp_path, kind):
    from diffcore.nets import unet

    reading = Reading.of(kind, "v", 1000, 0.5 if kind == "edm" else 1.0)
    schedule = variance_preserving(EDM() if kind in ("edm", "ve") else Flow())
    net = unet.build(unet.default_config((1, 8, 8), (8, 16)), 0)
    card = checkpoints.save(tmp_path / "s", NetDenoiser(net, schedule, reading), (1, 8, 8), ABOUT)
    assert ("reading" in card.to_json()) == (kind != "vp")
    opened = checkpoints.load(tmp_path / "s")
    assert opened.denoiser.reading == reading
    assert roles(opened, None)[0].reading == reading
    assert roles(opened, None, "v")[0].reading == reading
    assert roles(opened, None, "flow")[0].reading == dataclasses.replace(reading, parameterization="flow")


def test_the_level_a_network_sees_is_that_of_what_it_sees():
    x0, eps = randn(5, 2, 3), randn(5, 2, 3, seed=1)
    level = Flow().level(TIMES_IN, x0)
    for input in INPUTS:
        reading = Reading("v", 1000, input, "flow", 0.5)
        seen, own = reading.seen(level.alpha * x0 + level.sigma * eps, level)
        assert isinstance(own, Level)
        close(seen, own.alpha * x0 / 0.5 + own.sigma * eps)
