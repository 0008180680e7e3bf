"""A watched training: what a look sees, that looking changes nothing, which state is kept, and what raises an alarm."""

import dataclasses
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from diffcore.core import processes, rng
from diffcore.core.errors import UserError
from diffcore.core.shapes import CLASS
from diffcore.data.feed import ResidentFeed, to_float
from diffcore.data.read import Images
from diffcore.denoisers.condition import of_classes
from diffcore.denoisers.guidance import Guided
from diffcore.denoisers.network import NetDenoiser
from diffcore.methods import Method
from diffcore.metrics import bootstrap, features
from diffcore.metrics.frechet import Moments, Sway, frechet
from diffcore.noise.schedule import Cosine
from diffcore.noise.trajectory import Trajectory, uniform
from diffcore.sampling.sampler import Sampler
from diffcore.sampling.solvers import SOLVERS
from diffcore.training import loop
from diffcore.training.config import Training
from diffcore.training.loop import Diverged, Fitted, Job, Stopped, fit
from diffcore.training.resume import Resume
from diffcore.watching import alarms, begin, gauge
from diffcore.watching import watcher as watching
from diffcore.watching.config import Watch
from diffcore.watching.gauge import Gauge, spread
from diffcore.watching.look import Look, Reading
from diffcore.watching.samples import FixedSamples
from diffcore.watching.watcher import Watcher
from tests.conftest import labels_like, randn
from tests.test_features import ONE, QUICK, bars
from tests.test_fit import COMPUTE, same, stop_at
from tests.test_methods import CASES
from tests.test_precision import EACH, denoiser, job
from tests.test_quality import Flat, normal_images

SHAPE = (1, 4, 4)
IMAGES = Images(normal_images(400), None, None)
DEVIATION = float(to_float(IMAGES.pixels).std())


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch, without_shape_checks):
    """Others check the shapes of the same functions."""
    monkeypatch.setattr(bootstrap, "RESAMPLES", 40)


@pytest.fixture(scope="module")
def pixels() -> Gauge:
    """Looks at the pixels themselves."""
    return Gauge.of(IMAGES, Flat())


# ------------------------------------------------------------------------------------------- the samples


@CASES
def test_a_look_draws_what_the_student_s_own_sampler_draws(name, config):
    """Bit for bit, at the method's own times where it has such; a sample does not depend on the others."""
    reading = denoiser()
    samples = FixedSamples(config, reading, SHAPE, 5, 3, None if config.grid else 3)
    trajectory = config.grid or uniform(3)
    own = reading.with_network(reading.net)
    own.grid = config.grid
    sampler = Sampler(own, SOLVERS[config.sampler](), trajectory)
    assert torch.equal(samples.draw(reading.net), sampler.draw(SHAPE, 5, 3))
    assert samples.trajectory == trajectory
    assert samples.calls == 5 * sampler.nfe
    usual = FixedSamples(config, reading, SHAPE, 5, 3)
    assert usual.trajectory == (config.grid or uniform(16 if config.is_velocity else 1))


@EACH
def test_samples_are_of_the_classes_and_weights_that_the_network_takes(name, config):
    labels, weights = torch.tensor([0, 2, 1, 1]), torch.full((4,), 1.5).double()
    reading = denoiser(conditional=True)
    samples = FixedSamples(config, reading, SHAPE, 4, 3, None if config.grid else 2, {CLASS: labels}, 1.5)
    own = reading.with_network(reading.net)
    sampler = Sampler(own, SOLVERS[config.sampler](), config.grid or uniform(2))
    assert torch.equal(samples.draw(reading.net), sampler.draw(SHAPE, 4, 3, condition=of_classes(labels, weights)))


def test_samples_are_the_same_in_batches_of_any_size(monkeypatch):
    reading = denoiser()
    samples = FixedSamples(denoising(), reading, SHAPE, 7, 3, 2)
    whole = samples.draw(reading.net)
    monkeypatch.setattr("diffcore.watching.samples.BATCH", 3)
    torch.testing.assert_close(samples.draw(reading.net), whole, rtol=1e-5, atol=1e-6)


# ------------------------------------------------------------------------------------------- what they are worth


def test_the_spread_of_normal_rows_is_that_of_theory():
    """The distance of two of N(0, I_d) is 2 Gamma((d + 1)/2) / Gamma(d/2) in the mean; its error is that over fresh rows."""
    d, n = 6, 120
    right = 2 * math.gamma((d + 1) / 2) / math.gamma(d / 2)
    drawn = [spread(randn(n, d, seed=seed)) for seed in range(200)]
    values = torch.tensor([each.value for each in drawn])
    assert float(values.mean()) == pytest.approx(right, rel=0.005)
    assert sum(each.se for each in drawn) / 200 == pytest.approx(float(values.std()), rel=0.15)
    assert spread(torch.tensor([[0.0], [3.0], [7.0]])).value == pytest.approx((3 + 7 + 4) / 3)


def test_a_reading_by_hand(pixels):
    """Half as bright and shifted: FD in closed form, half the diversity and contrast; two of 800 values far beyond."""
    x = to_float(normal_images(400, seed=1))
    grey = to_float(torch.full((1, *SHAPE), 128).to(torch.uint8))
    half = 0.5 * x + 0.5 * grey
    reading, moved = pixels.read(half)
    exact = frechet(Moments.of(4 * to_float(((half + 1) * 127.5).round().to(torch.uint8)).flatten(1)), pixels.real)
    assert reading.fd == pytest.approx(exact, rel=1e-9)
    assert reading.diversity == pytest.approx(0.5, rel=0.03)
    assert reading.contrast == pytest.approx(0.5 * float(x.std()) / DEVIATION, rel=1e-3)
    assert reading.beyond == 0
    some = torch.zeros(50, *SHAPE)
    some[0, 0, 0, :3] = torch.tensor([1.2, -1.11, 1.09])
    assert pixels.read(some + 1e-3 * x[:50])[0].beyond == pytest.approx(2 / 800)
    assert (len(moved.slopes), len(moved.bends)) == (400, 40)
    assert reading.fd_se == moved.se


def test_real_images_are_their_own_kind(pixels):
    reading, _ = pixels.read(to_float(normal_images(400, seed=2)))
    assert abs(reading.diversity - 1) < 4 * reading.diversity_se < 0.1
    assert reading.contrast == pytest.approx(1, abs=0.03)


def test_a_large_data_set_is_compared_by_some_of_it(pixels, monkeypatch):
    monkeypatch.setattr(gauge, "REAL", 100)
    some = Gauge.of(IMAGES, Flat())
    rows = rng.some(100, 400, "watch", "real")
    torch.testing.assert_close(some.real.mean, 4 * to_float(IMAGES.take(rows)).flatten(1).double().mean(0))
    assert some.deviation == pytest.approx(float(to_float(IMAGES.take(rows)).double().std(correction=0)))


# ------------------------------------------------------------------------------------------- which look is the best


def reading(fd: float, *slopes: float) -> tuple[dict[str, float], Sway]:
    """Of a distance that is a mean over the samples."""
    moved = Sway(torch.tensor(slopes, dtype=torch.float64), torch.zeros(5).double())
    return dataclasses.asdict(Reading(fd, 0.1, 1.0, 0.01, 1.0, 0.0, None, None)), moved


def watcher(pixels: Gauge | None = None, config: Watch | None = None, iterations: int = 100, **more) -> Watcher:
    reading = NetDenoiser(Affine(), Cosine())
    config = config or Watch(10, 60)
    samples = FixedSamples(Towards(), reading, SHAPE, config.images, 0)
    return Watcher(config, iterations, samples, pixels, **more)


def test_a_look_is_the_best_where_it_is_lower_by_more_than_the_error_of_the_difference():
    """Which is small where both rise and fall together, however large each one's own is."""
    own = watcher()
    together, apart = (5.0, 9.0, 1.0), (9.0, 1.0, 5.0)
    first = own._add(10, *reading(2.0, *together))
    assert (first.best, first.behind, first.behind_se) == (10, 0, 0)
    noisy = own._add(20, *reading(1.0, *apart))
    assert noisy.behind_se == pytest.approx(torch.tensor([4.0, -8.0, 4.0]).double().std().item() / math.sqrt(3))
    assert (noisy.behind, noisy.best) == (-1.0, 10)
    lower = own._add(30, *reading(1.5, *(value - 0.5 for value in together)))
    assert (lower.behind, lower.behind_se, lower.best) == (-0.5, 0.0, 30)
    after = own._add(40, *reading(1.9, *(value - 0.1 for value in together)))
    assert (after.behind, after.best) == (pytest.approx(0.4), 30)
    assert after.behind_se == pytest.approx(0, abs=1e-12)
    assert [look.is_worse for look in own.looks] == [False, False, False, True]


def test_patience_counts_looks_in_a_row_that_are_worse_by_more_than_their_error():
    own = watcher(config=Watch(10, 60, patience=2))
    over = []
    for step, fd in enumerate((2.0, 3.0, 2.0, 3.0, 4.0), 1):
        own._add(step, *reading(fd, fd, fd + 0.5, fd + 1.0))
        over.append(own.is_over)
    assert over == [False, False, False, False, True]
    assert not watcher().is_over


def test_looks_are_due_every_so_many_updates_and_at_the_end():
    own = watcher(iterations=25)
    assert [step for step in range(1, 26) if own.is_due(step)] == [10, 20, 25]


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        ({"every": 0}, "every must be at least 1, got 0"),
        ({"images": 9}, "images must be at least 10, got 9"),
        ({"patience": 0}, "patience must be at least 1, got 0"),
        ({"steps": -1}, "steps must be at least 1, got -1"),
    ],
)
def test_numbers_that_make_no_watch(bad, why):
    with pytest.raises(ValueError, match=why):
        Watch(**{"every": 1, "images": 10, **bad})


# ------------------------------------------------------------------------------------------- it changes nothing


def denoising() -> Method:
    from diffcore.methods.denoising import Denoising

    return Denoising()


def run(name: str, config: Method, conditional: bool, fitting: Training, watch: Watcher | None, **more) -> Fitted:
    reading, teacher = denoiser(conditional), denoiser(conditional, seed=2, whose="teacher")
    cast = Guided(teacher) if conditional else teacher
    work = dataclasses.replace(job(name, config, conditional, fitting), watcher=watch)
    return fit(work, reading, cast, COMPUTE, **more)


def looking(pixels: Gauge, config: Method, conditional: bool, iterations: int, **keys) -> Watcher:
    known = {CLASS: torch.arange(12) % 3} if conditional else {}
    samples = FixedSamples(config, denoiser(conditional), SHAPE, 12, 0, None if config.grid else 1, known)
    return Watcher(Watch(1, 12, **keys), iterations, samples, pixels)


@pytest.mark.slow
@EACH
@pytest.mark.parametrize("keep", ["last", "best"])
def test_looking_changes_no_bit_of_a_training(name, config, keep, pixels, tmp_path):
    """Of the weights, averages, moments, critics and the curve, with classes, parts and a look at every update."""
    fitting = Training(iterations=3, batch=8, lr=1e-2, ema=0.9, accumulate=2)
    conditional = keep == "best"
    plain, seen = (Resume(tmp_path, word, {"job": word}) for word in ("plain", "seen"))
    own, after = looking(pixels, config, conditional, 3, keep=keep), []
    for watch, resume in ((None, plain), (own, seen)):
        torch.manual_seed(0)
        after.append((run(name, config, conditional, fitting, watch, resume=resume), torch.get_rng_state()))
    (alone, rng_alone), (watched, rng_watched) = after
    assert torch.equal(rng_alone, rng_watched)
    assert [look.step for look in own.looks] == [1, 2, 3]
    assert alone.curve == watched.curve
    assert alone.calls == watched.calls
    one, other = plain.load().tensors(), seen.load().tensors()
    assert {key for key in other if key not in one} == {key for key in other if key.startswith("best/")}
    assert bool(other.keys() - one.keys()) == (keep == "best")
    assert all(torch.equal(one[key], other[key]) for key in one)


# ------------------------------------------------------------------------------------------- toys that are made to fail


class Affine(nn.Module):
    """v = -(scale x + shift), whose x_0 at t = 1 is scale x + shift."""

    def __init__(self, scale: float = 1.0, shift: float = 0.0):
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.tensor(scale)), nn.Parameter(torch.tensor(shift))

    def forward(self, x, timestep):
        return -(self.scale * x + self.shift)


@dataclass(frozen=True)
class Towards(Method):
    """A generator of one step that learns noise of a width and a mean, which the progress may change."""

    width: Callable[[float], float] = lambda progress: DEVIATION
    mean: Callable[[float], float] = lambda progress: 0.0

    asks_teacher = False
    network_calls = 3

    @property
    def grid(self) -> Trajectory:
        return uniform(1)

    def loss(self, roles, x0, draw, progress):
        sample = roles.student(draw.noise, torch.ones(len(x0)).double()).x0
        goal = self.width(progress) * draw.noise + self.mean(progress)
        return (sample - goal).flatten(1).square().mean(1)


def late(before: float, after: float) -> Callable[[float], float]:
    return lambda progress: before if progress < 0.5 else after


FAST = Training(iterations=40, batch=8, lr=0.01, ema=0.5, decay="none", weight_decay=0.0)
SHORT = dataclasses.replace(FAST, iterations=16)
WORSE = Towards(mean=late(0.0, 1.0))


def toy(
    pixels: Gauge,
    method: Method,
    config: Watch,
    start: float = 0.25,
    seed: int = 0,
    fitting: Training = FAST,
    log: Callable[[str], None] = lambda line: None,
    **more,
) -> tuple[Watcher, Fitted]:
    own = watcher(pixels, config, fitting.iterations, log=log)
    work = Job(method, fitting, ResidentFeed(IMAGES, 8, seed, flip=False), seed, watcher=own)
    return own, fit(work, NetDenoiser(Affine(start), Cosine()), None, COMPUTE, **more)


def looks_at(pixels: Gauge, nets: dict[int, Affine], iterations: int) -> tuple[Watcher, list[str]]:
    """A watcher that has looked at these networks, by their updates; and its warnings."""
    lines, shown = [], []
    own = watcher(
        pixels, Watch(1, 60), iterations, log=lines.append, show=lambda look, drawn, wrong: shown.append(wrong)
    )
    for step, net in nets.items():
        own.look(step, net)
        assert shown.pop() == list(alarms.alarms(own.looks, iterations).values())
    return own, [line.removeprefix("warning: ") for line in lines if line.startswith("warning: ")]


GOOD = Affine(DEVIATION)
FAILURES = {
    "collapsing: diversity 0.2 of the data's since update 60": lambda k: Affine((0.2 if k >= 60 else 1.0) * DEVIATION),
    "saturating: contrast 1.97": lambda k: Affine((2.0 if k >= 60 else 1.0) * DEVIATION),
    "getting worse: fd ": lambda k: Affine(DEVIATION, 0.5 if k >= 60 else 0.0),
}


@pytest.mark.parametrize("text", FAILURES)
@pytest.mark.parametrize("iterations", [100, 1000], ids=["past the middle", "early"])
def test_a_training_that_goes_wrong_after_an_update_is_named_for_what_it_is(text, iterations, pixels):
    """Once, at the first look at which it is so, with its numbers and the update since when."""
    own, warnings = looks_at(pixels, {k: FAILURES[text](k) for k in range(10, 101, 10)}, iterations)
    assert warnings == own.alarms()
    (warning,) = [each for each in warnings if each.startswith(text.partition(":")[0])]
    assert warning.startswith(text)
    assert warning.endswith("since update 60") or "getting worse" in warning
    assert "getting worse" not in warning or re.search(r" against [\d.e-]+ at update [1-5]0$", warning)
    assert list(alarms.alarms(own.looks[:5], iterations)) == []


def test_a_training_that_diverges_after_an_update_is_named_by_it(pixels):
    """Step by step further away, and never not finite."""
    nets = {k: Affine(DEVIATION, 0.02 * max(0, k - 60)) for k in range(10, 101, 10)}
    own, warnings = looks_at(pixels, nets, 100)
    (warning,) = [each for each in warnings if each.startswith("getting worse")]
    assert re.search(r"at update [1-6]0$", warning)
    assert own.kept.step == 100
    assert own.looks[-1].best <= 60


@pytest.mark.slow
@pytest.mark.parametrize("start", [0.1, 0.4], ids=["begins as a blur", "begins as noise"])
@pytest.mark.parametrize("seed", range(5))
def test_a_healthy_training_raises_no_alarm(start, seed, pixels):
    """Ten of them, whatever they begin as; and each is at the data's numbers in the end."""
    own, _ = toy(pixels, Towards(), Watch(8, 60), start, seed)
    assert own.alarms() == []
    assert own.looks[-1].diversity == pytest.approx(1, abs=0.15)
    assert own.looks[0].diversity != pytest.approx(1, abs=0.15)


@dataclass(frozen=True)
class Copyist:
    """Samples of which a share are training images, moved by a little noise, the others new ones."""

    share: Callable[[int], float]

    def looks(self, pixels: Gauge, steps: range) -> tuple[Watcher, list[str]]:
        lines: list[str] = []
        own = watcher(pixels, Watch(1, 200), 1000, log=lines.append)
        for step in steps:
            copied = round(200 * self.share(step))
            new = to_float(normal_images(200, seed=step + 1))[copied:]
            old = to_float(IMAGES.pixels[:copied]) + 0.01 * randn(copied, *SHAPE, seed=step)
            own._add(step, *own._read(torch.cat([old, new])))
            lines += [f"warning: {text}" for text in own._begun(len(own.looks) - 1)]
        return own, [line for line in lines if "copying" in line]


def test_a_student_that_copies_training_images_is_an_alarm(pixels):
    """From the look at which it does, though its distance is the better for it; new images are none, nor are a few copies."""
    own, warnings = Copyist(lambda step: 0.6 if step >= 60 else 0.0).looks(pixels, range(10, 101, 10))
    assert len(warnings) == 1
    assert re.match(r"warning: copying: 0\.6\d? of the samples are training images since update 60$", warnings[0])
    assert own.looks[-1].memorised == pytest.approx(0.6, abs=0.03)
    for share in (0.0, 0.05):
        assert Copyist(lambda step, share=share: share).looks(pixels, range(10, 101, 10))[1] == []
    few = Gauge.of(Images(normal_images(99), None, None), Flat())
    assert few.read(to_float(normal_images(99)))[0].memorised is None


def test_what_never_was_right_is_an_alarm_past_the_middle(pixels):
    own, warnings = looks_at(pixels, {k: Affine(0.1 * DEVIATION) for k in range(10, 101, 10)}, 100)
    assert len(warnings) == 1
    assert warnings[0].startswith("collapsing: diversity 0.099")
    assert warnings[0].endswith("of the data's since update 10")
    assert alarms.alarms(own.looks[:5], 100) == {}
    assert list(alarms.alarms(own.looks[:6], 100)) == ["collapsing"]


def test_noise_that_becomes_a_blur_and_then_images_raises_no_alarm(pixels):
    """As a network does that learns from nothing."""
    nets = {10: Affine(1.0), 20: Affine(0.6), 30: Affine(0.05), 40: Affine(0.15), 50: GOOD, 100: GOOD}
    assert looks_at(pixels, nets, 100)[1] == []


def test_with_keep_best_a_training_that_gets_worse_after_its_middle_ends_at_the_state_of_its_middle(pixels, tmp_path):
    """Its averaged weights then, bit for bit; the last state lies beside them, as without a watch."""
    resume = Resume(tmp_path, "x", {"job": "f"})
    own, best = toy(pixels, WORSE, Watch(4, 60, keep="best"), 0.4, resume=resume)
    middle = own.kept.step
    assert 12 <= middle <= 20
    assert own.summary()["kept"] == middle
    half = Resume(tmp_path, "y", {"job": "f"})
    with pytest.raises(Stopped):
        toy(pixels, WORSE, Watch(4, 60), 0.4, resume=half, stop=stop_at(middle))
    state = half.load().tensors()
    assert all(torch.equal(value, state[f"ema/{name}"]) for name, value in best.net.named_parameters())
    _, last = toy(pixels, WORSE, Watch(4, 60), 0.4)
    kept = resume.load().tensors()
    assert all(torch.equal(value, kept[f"ema/{name}"]) for name, value in last.net.named_parameters())
    assert abs(float(best.net.shift.detach())) < 0.03 < 0.1 < float(last.net.shift.detach())


@pytest.mark.parametrize("stopped_after", [3, 8, 13])
def test_a_resumed_training_has_every_look_once(stopped_after, pixels, tmp_path):
    method, config = Towards(mean=late(0.0, 1.0)), Watch(4, 30, keep="best")
    whole, right = toy(pixels, method, config, fitting=SHORT)
    resume = Resume(tmp_path, "x", {"job": "f"})
    with pytest.raises(Stopped):
        toy(pixels, method, config, fitting=SHORT, resume=resume, stop=stop_at(stopped_after))
    own, resumed = toy(pixels, method, config, fitting=SHORT, resume=resume)
    assert own.looks == whole.looks
    assert same(right, resumed)
    assert own.seconds > 0


def test_a_look_says_the_seconds_of_training_without_those_of_looks_over_all_runs(pixels, tmp_path, monkeypatch):
    """By a clock on which an update takes 1 s and a look 100 s; between two runs nothing passes."""
    clock = SimpleNamespace(now=0.0)
    for module in (loop, watching):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock.now))
    draw, update = FixedSamples.draw, loop.Loop.update

    def slow_draw(self, net):
        clock.now += 100
        return draw(self, net)

    def slow_update(self):
        clock.now += 1
        return update(self)

    monkeypatch.setattr(FixedSamples, "draw", slow_draw)
    monkeypatch.setattr(loop.Loop, "update", slow_update)
    method, config, resume = Towards(), Watch(4, 30), Resume(tmp_path, "x", {"job": "f"})
    with pytest.raises(Stopped):
        toy(pixels, method, config, fitting=SHORT, resume=resume, stop=stop_at(9))
    clock.now += 10_000
    own, _ = toy(pixels, method, config, fitting=SHORT, resume=resume)
    assert [look.seconds for look in own.looks] == [float(look.step) for look in own.looks]
    assert "seconds" not in own.looks[0].columns()


def test_a_kill_after_a_look_that_was_not_saved_yet_loses_none_and_doubles_none(pixels, tmp_path):
    """The look is made again from the state before it."""
    method, config, resume = Towards(), Watch(4, 30, keep="best"), Resume(tmp_path, "x", {"job": "f"})

    def killed(event):
        if event.step == 13:
            raise KeyboardInterrupt

    asked = iter(range(1, 1000))
    with pytest.raises(Stopped):
        toy(pixels, method, config, fitting=SHORT, resume=resume, stop=lambda: next(asked) == 10)
    with pytest.raises(KeyboardInterrupt):
        toy(pixels, method, config, fitting=SHORT, resume=resume, on_event=killed)
    assert resume.load().step == 10
    own, resumed = toy(pixels, method, config, fitting=SHORT, resume=resume)
    whole, right = toy(pixels, method, config, fitting=SHORT)
    assert own.looks == whole.looks
    assert same(right, resumed)


def test_a_training_whose_patience_ends_stops_there_and_stays_so(pixels, tmp_path):
    """Its curve ends with it, between two points too, and the same command again only reads."""
    lines, resume = [], Resume(tmp_path, "x", {"job": "f"})
    method, config = Towards(mean=late(0.0, 1.0)), Watch(9, 60, keep="best", patience=2)
    fitting = dataclasses.replace(FAST, iterations=60)
    few = {"fitting": fitting, "resume": resume}
    own, ended = toy(pixels, method, config, log=lines.append, **few)
    assert own.looks[-1].step == 45
    assert ended.curve[-1].step == own.looks[-1].step == own.summary()["updates"]
    assert own.worse == 2
    assert [
        line for line in lines if line.startswith(f"ends after {own.looks[-1].step} of 60 updates: 2 looks in a row")
    ]
    again, read = toy(pixels, method, config, log=lambda line: pytest.fail(line), **few)
    assert again.looks == own.looks
    assert same(ended, read)


def test_samples_that_are_not_finite_end_a_training_in_one_line(pixels):
    with pytest.raises(Diverged, match=r"^step 10: 60 of 60 samples are not finite; lower lr or set clip$"):
        watcher(pixels).look(10, Affine(math.inf))


# ------------------------------------------------------------------------------------------- the feature network


def test_it_looks_through_the_network_of_the_stage_features_and_is_trained_once(tmp_path):
    pictures, labels = bars()
    images, lines = Images(pictures, labels, ("a", "b")), []
    own = gauge.network(lambda: images, ONE, tmp_path / "network", lines.append)
    assert own.digest == features.train(images, ONE).digest
    again = gauge.network(lambda: pytest.fail("it is there"), ONE, tmp_path / "network", lines.append)
    assert again.digest == own.digest
    (tmp_path / "network" / features.WEIGHTS).write_bytes(b"x")
    assert gauge.network(lambda: images, ONE, tmp_path / "network", lines.append).digest == own.digest
    assert [line.partition(",")[0][:40] for line in lines if "trained again" in line]


def test_who_looks_is_made_of_what_the_line_says(tmp_path):
    """The classes are as frequent as in the data, the weight is the middle of the range, the noise no evaluation's."""
    pictures, labels = bars()
    images, reading = Images(pictures, labels, ("a", "b")), denoiser(conditional=True)
    reading.takes_guidance = True
    config, store = Watch(5, 40, steps=3), Resume(tmp_path, "watch.features", {"job": "f"})
    training = begin.Watched(denoising(), reading, 50, 7, (1.0, 4.0))
    own, digest = begin.begin(config, training, lambda: images, QUICK, store, COMPUTE, lambda line: None)
    assert digest == own.gauge.network.digest == features.load(store.folder / "network").digest
    assert (own.samples.weight, own.samples.steps, own.samples.shape) == (2.5, 3, (1, 8, 8))
    assert (own.config, own.iterations) == (config, 50)
    seed = rng.seed(7, "watch")
    assert own.samples.seed == seed
    assert own.samples.inputs[CLASS].tolist() == labels_like(labels, 40, seed).tolist()
    alone = begin.begin(
        config, dataclasses.replace(training, student=denoiser()), lambda: images, QUICK, store, COMPUTE, print
    )
    assert not alone[0].samples.inputs
    assert alone[0].samples.weight is None


def test_a_process_may_work_alone_among_several(monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with processes.alone():
        assert (processes.rank(), processes.count(), processes.is_main()) == (0, 1, True)
        assert list(processes.dealt([1, 2, 3], lambda item: torch.tensor(item))) == [1, 2, 3]
    assert (processes.rank(), processes.count(), processes.is_main()) == (1, 2, False)


def test_a_look_s_columns_are_its_numbers():
    look = Look(2.0, 0.1, 0.9, 0.02, 1.1, 0.03, 0.01, 0.002, step=30, best=20, behind=0.5, behind_se=0.1)
    numbers = {"fd": 2.0, "fd_se": 0.1, "diversity": 0.9, "diversity_se": 0.02, "contrast": 1.1, "beyond": 0.03}
    assert look.columns() == {**numbers, "memorised": 0.01, "memorised_se": 0.002}
    assert not look.is_best


def test_a_reading_of_too_few_channels_is_refused(pixels):
    with pytest.raises(UserError, match="channels"):
        pixels.read(torch.zeros(12, 3, 4, 4))
