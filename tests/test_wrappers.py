"""What wraps a denoiser: each carries what the inner one says of itself, and is told to it whatever it is told itself."""

import dataclasses
import importlib
import pkgutil

import pytest
import torch

import diffcore
from diffcore.denoisers.bfloat16 import BFloat16
from diffcore.denoisers.clipping import Clip, Clipped, Threshold
from diffcore.denoisers.condition import of_classes
from diffcore.denoisers.denoiser import Denoiser, Wrapper
from diffcore.denoisers.guidance import Guided
from diffcore.denoisers.meter import Meter, Metered
from diffcore.denoisers.network import NetDenoiser
from diffcore.denoisers.reading import Reading
from diffcore.denoisers.rescaling import Rescaled
from diffcore.nets import unet
from diffcore.noise.schedule import VE, Cosine
from diffcore.noise.trajectory import uniform
from diffcore.sampling.deepcache import Config, DeepCached
from tests.conftest import gaussian, seeded

METER, SIGMAS = Meter(), VE(0.01, 50.0)
WRAPPERS = {
    BFloat16: (BFloat16, {}),
    Clipped: (lambda inner: Clipped(inner, Threshold(0.9, 2.0)), {"limit": Threshold(0.9, 2.0)}),
    Guided: (Guided, {}),
    Metered: (lambda inner: Metered(inner, METER, learns=True), {"meter": METER, "learns": True}),
    Rescaled: (lambda inner: Rescaled(inner, SIGMAS), {"schedule": SIGMAS}),
}
"""Each wrapper: how it is put around a denoiser, and what of itself it must keep."""

CACHED = "DeepCached"
"""Wraps our U-Net alone, see below."""

CONDITION = of_classes(torch.tensor([1, 0]), torch.tensor([2.0, 3.0], dtype=torch.float64))
ENDS = torch.tensor([0.1, 0.3], dtype=torch.float64)
ASKED = {
    "start_run": lambda denoiser: denoiser.start_run(7),
    "with_condition": lambda denoiser: denoiser.with_condition(CONDITION),
    "select": lambda denoiser: denoiser.select(slice(1, 2)),
    "toward": lambda denoiser: denoiser.toward(ENDS),
}


class Inner(Denoiser):
    """Valid on a few steps only; remembers what it was told."""

    def __init__(self, told: tuple = ()):
        super().__init__()
        self.schedule, self.grid, self.told = Cosine(), uniform(4), told

    def forward(self, x_t, t):
        return gaussian()(x_t, t)

    def start_run(self, calls):
        return Inner((*self.told, ("start_run", calls)))

    def with_condition(self, condition):
        return Inner((*self.told, ("with_condition", condition)))

    def select(self, rows):
        return Inner((*self.told, ("select", rows)))

    def toward(self, s):
        return Inner((*self.told, ("toward", s)))


def wrappers() -> set[str]:
    for module in pkgutil.walk_packages(diffcore.__path__, "diffcore."):
        importlib.import_module(module.name)

    def below(kind: type) -> set[type]:
        return {kind}.union(*map(below, kind.__subclasses__()))

    return {kind.__name__ for kind in below(Wrapper) if kind.__module__.startswith("diffcore.")}


def test_no_wrapper_is_left_out():
    assert wrappers() == {"Wrapper", CACHED, *(kind.__name__ for kind in WRAPPERS)}


@pytest.mark.parametrize("kind", WRAPPERS, ids=lambda kind: kind.__name__)
def test_a_wrapper_says_where_its_inner_one_is_valid_and_in_which_times(kind):
    """Without the grid a student of a few steps would be sampled, and measured, on any trajectory."""
    make, own = WRAPPERS[kind]
    inner = Inner()
    wrapped = make(inner)
    assert wrapped.grid is inner.grid
    assert wrapped.schedule is own.get("schedule", inner.schedule)


@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize("kind", WRAPPERS, ids=lambda kind: kind.__name__)
def test_what_a_wrapper_is_told_its_inner_one_is_told_and_all_else_is_kept(kind, asked):
    make, own = WRAPPERS[kind]
    wrapped = make(Inner())
    if kind is Guided:  # it keeps the condition itself, and tells it to the inner one at each call
        wrapped = wrapped.with_condition(CONDITION)
    found = ASKED[asked](wrapped)
    assert type(found) is kind
    assert {name: getattr(found, name) for name in own} == own
    assert found.grid == uniform(4)
    if kind is Guided and asked == "toward":  # it tells both halves of its batch, at each call
        assert found.inner.told == ()
        assert found.s is ENDS
    elif kind is Rescaled and asked == "toward":
        [(word, s)] = found.inner.told
        assert word == "toward"
        torch.testing.assert_close(Cosine().half_logsnr(s), SIGMAS.half_logsnr(ENDS))
    elif kind is Guided and asked != "start_run":
        rows = slice(1, 2) if asked == "select" else slice(None)
        assert found.inner.told == ()
        assert torch.equal(found.condition.class_labels, CONDITION.class_labels[rows])
        assert torch.equal(found.condition.guidance, CONDITION.guidance[rows])
    else:
        expected = {"start_run": 7, "with_condition": CONDITION, "select": slice(1, 2), "toward": ENDS}[asked]
        assert found.inner.told == ((asked, expected),)
        assert kind is not Guided or found.condition is wrapped.condition


class Dear(Inner):
    """A call costs two and a half; features are what was asked, after a mark."""

    def forward(self, x_t, t):
        return dataclasses.replace(super().forward(x_t, t), cost=2.5)

    def with_condition(self, condition):
        return Dear((*self.told, ("with_condition", condition)))

    def features(self, x_t, t):
        return [x_t, t, torch.tensor(float(len(self.told)))]


@pytest.mark.parametrize("kind", WRAPPERS, ids=lambda kind: kind.__name__)
def test_what_a_call_cost_is_told_on(kind):
    """A guided one makes two; whoever limits, rescales or counts makes none besides. A backward pass counts as two more."""
    x, t = torch.zeros(2, 2, 3).double(), torch.tensor([0.2, 0.4]).double()
    found = WRAPPERS[kind][0](Dear()).with_condition(CONDITION)
    spent = METER.settle()
    assert found(x, t).cost == (5.0 if kind is Guided else 2.5)
    assert METER.settle() - spent == (3 * 2 * 2.5 if kind is Metered else 0.0)
    with torch.no_grad():
        found(x, t)
    assert METER.settle() - spent == (4 * 2 * 2.5 if kind is Metered else 0.0)


@pytest.mark.parametrize("kind", WRAPPERS, ids=lambda kind: kind.__name__)
def test_features_are_the_inner_one_s_of_the_very_images(kind):
    """At the very times, told the classes; each image counts as a call. Of another schedule they are scaled to the time at
    which the inner one has as much noise beside as much of the image."""
    x, t = torch.randn(2, 2, 3, generator=seeded()).double(), torch.tensor([0.2, 0.4]).double()
    spent = METER.settle()
    seen, when, told = WRAPPERS[kind][0](Dear()).with_condition(CONDITION).features(x, t)
    if kind is Rescaled:
        ratio = SIGMAS.sigma(t) / SIGMAS.alpha(t)
        torch.testing.assert_close(Cosine().sigma(when) / Cosine().alpha(when), ratio)
        torch.testing.assert_close(seen, x / (1 + ratio**2).sqrt()[:, None, None])
    else:
        assert torch.equal(seen, x)
        assert torch.equal(when, t)
    assert float(told) == 1
    assert METER.settle() - spent == (2 if kind is Metered else 0)


def net(**more) -> NetDenoiser:
    return NetDenoiser(unet.build(unet.default_config((1, 8, 8), (8, 16), groups=4, classes=4), 0), Cosine(), **more)


MORE = {"reading": Reading("eps", 1000), "grid": uniform(4), "classes": 3}


def test_a_cached_network_says_the_same_of_itself():
    inner = net(**MORE)
    cached = DeepCached(inner, Config(interval=2, branch=0))
    for found in (
        cached,
        cached.start_run(4),
        cached.with_condition(CONDITION),
        cached.start_run(4).with_condition(CONDITION),
    ):
        assert found.grid is inner.grid
        assert found.schedule is inner.schedule
    run = cached.with_condition(CONDITION).start_run(4)
    assert {name: getattr(run.inner, name) for name in MORE} == MORE
    assert run.inner.condition is CONDITION


@pytest.mark.parametrize("takes_guidance", [False, True])
def test_a_network_s_reading_is_kept_whatever_it_is_told(takes_guidance):
    whole = net(**MORE, takes_guidance=takes_guidance)
    for found in (
        whole.with_condition(CONDITION),
        whole.with_condition(CONDITION).select(slice(0, 1)),
        whole.with_network(whole.net),
        whole.start_run(3),
    ):
        assert {name: getattr(found, name) for name in (*MORE, "takes_guidance")} == {
            **MORE,
            "takes_guidance": takes_guidance,
        }
        assert found.schedule is whole.schedule


def test_a_clip_of_a_clip_takes_both():
    inner = Clipped(gaussian(), Clip(0.5))
    x, t = torch.full((2, 2, 3), 3.0).double(), torch.tensor([0.2, 0.4]).double()
    assert float(Clipped(inner, Clip(0.2))(x, t).x0.abs().max()) == 0.2
    assert float(Clipped(inner, Clip(0.9))(x, t).x0.abs().max()) == 0.5


@pytest.mark.parametrize("steps", [1000, 1024])
def test_features_are_of_the_time_that_the_network_is_told_there(steps):
    """An adopted network counts in steps of its own, for its features as for its answers."""
    told = []

    class Shows(torch.nn.Module):
        def forward(self, x_t, timestep, *known):
            told.append(timestep)
            return x_t

        def features(self, x_t, timestep, *known):
            told.append(timestep)
            return [x_t]

    x, t = torch.zeros(3, 1, 2, 2), torch.tensor([0.25, 0.5, 1.0]).double()
    denoiser = NetDenoiser(Shows(), Cosine(), Reading(num_timesteps=steps))
    denoiser(x, t)
    denoiser.features(x, t)
    assert torch.equal(told[0], (t * steps - 1).float())
    assert torch.equal(told[1], told[0])
