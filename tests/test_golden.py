"""Every option of every part, and what came out when closed forms and papers had last been held against it.

The laws say that the parts are right; these numbers say that nothing moved since, also where no law looks. They are written
by `python -m tests.test_golden`, into tests/golden.json: whoever changes one says in the commit which and why.
"""

import dataclasses
import functools
import itertools
import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from diffcore import methods
from diffcore.core import rng
from diffcore.core.errors import UserError
from diffcore.data.feed import ResidentFeed
from diffcore.data.read import Images
from diffcore.denoisers.clipping import Clip, Clipped, Threshold
from diffcore.denoisers.condition import CLASS, Condition, of_classes
from diffcore.denoisers.exact import MixtureDenoiser
from diffcore.denoisers.guidance import Guided
from diffcore.denoisers.network import NetDenoiser
from diffcore.denoisers.prediction import PARAMETERIZATIONS
from diffcore.denoisers.reading import Reading
from diffcore.denoisers.rescaling import Rescaled
from diffcore.metrics import features, likelihood, measures
from diffcore.metrics.estimate import Estimate
from diffcore.metrics.halvings import floor
from diffcore.metrics.measures.accuracy import accuracy
from diffcore.metrics.measures.rmse_teacher import rmse
from diffcore.metrics.metric import Subject
from diffcore.metrics.reference import Reference, look
from diffcore.nets import unet
from diffcore.noise.angle import min_snr, snr, truncated_snr
from diffcore.noise.schedule import SCHEDULES, Cosine, Discrete, Schedule
from diffcore.noise.trajectory import TRAJECTORIES, Trajectory
from diffcore.sampling.deepcache import Config as CacheConfig
from diffcore.sampling.deepcache import DeepCached, full_calls
from diffcore.sampling.sampler import Sampler
from diffcore.sampling.skip_tuning import Config as SkipConfig
from diffcore.sampling.skip_tuning import skip_tuned
from diffcore.sampling.solvers import SOLVERS
from diffcore.sampling.solvers.analytic import Analytic
from diffcore.search import fitted, gamma, least_cost
from diffcore.training.config import Compute, Training
from diffcore.training.loop import Job, fit
from tests import test_losses, test_solver
from tests.conftest import labels_like
from tests.test_unet import stirred

pytestmark = pytest.mark.usefixtures("without_shape_checks")

GOLDEN = Path(__file__).with_name("golden.json")
SHAPE = (3, 6, 4)
BETAS = tuple(1e-4 + (0.2 - 1e-4) * k / 39 for k in range(40))
NOISES = {name: Discrete(BETAS) if kind is Discrete else kind() for name, kind in SCHEDULES.items()}
MEASURED: dict[str, Callable[[], Iterable[Any]]] = {}
"""By name: what is worked out, tensors or numbers."""


def measured(*words: object) -> Callable[[Callable[[], Iterable[Any]]], None]:
    return lambda work: MEASURED.__setitem__(" ".join(map(str, words)), work) or work


def told(work: Callable[[], Iterable[Any]]) -> list[float] | str:
    """Of each value its mean, its size and a sum in which every place counts differently; `refused` is kept too."""
    found: list[float] = []
    try:
        values = list(work())
    except UserError:
        return "refused"
    for value in values:
        flat = torch.as_tensor(value, dtype=torch.float64).detach().flatten()
        place = torch.arange(len(flat), dtype=torch.float64)
        several = (flat.mean(), flat.abs().mean(), (flat * (place + 1).cos()).sum())
        found += [float(f"{float(each):.10g}") for each in (several if len(flat) > 1 else flat)]
    return found


def waves(*shape: int, phase: float = 0.0) -> Tensor:
    """Numbers in [-1, 1] without a generator, no two alike."""
    return (torch.arange(math.prod(shape), dtype=torch.float64) * 0.7548776662 + phase).mul(3.1).sin().reshape(shape)


def lines(kind: type, pairs: Iterable[tuple[dict, dict]]) -> list[dict]:
    """Of pairs of what is said and what is said instead of a part: every line that they make, once, also where it only says
    what is so by default."""
    every = [line for base, change in pairs for line in (base, base | change)]
    made = [kind(**line) for line in every]
    return [line for k, line in enumerate(every) if made[k] not in made[:k]]


# --------------------------------------------------------------------------------------------- schedules and times

TIMES = torch.tensor([0.02, 0.11, 0.37, 0.5, 0.83, 0.97], dtype=torch.float64)
for _name, _schedule in NOISES.items():

    @measured("schedule", _name)
    def _(schedule: Schedule = _schedule):
        phi = schedule.angle(TIMES)
        yield from (schedule.alpha(TIMES), schedule.sigma(TIMES), schedule.half_logsnr(TIMES), phi)
        yield schedule.time(schedule.half_logsnr(TIMES))
        yield from (snr(phi), truncated_snr(phi), min_snr(phi, 2.5))

    for _word, _steps in itertools.product(TRAJECTORIES, (1, 2, 5)):

        @measured("times", _word, _steps, _name)
        def _(word: str = _word, steps: int = _steps, schedule: Schedule = _schedule):
            return [TRAJECTORIES[word](steps, schedule).times]


# ---------------------------------------------------------------------------------------------------------- solvers


def mixture(schedule: Schedule) -> MixtureDenoiser:
    return MixtureDenoiser(torch.tensor([0.3, 0.7]).double(), waves(2, 5), 0.05 + waves(2, 5, phase=1.0) ** 2, schedule)


@functools.cache
def known() -> gamma.Gamma:
    config = gamma.Config(steps=12, images=9, batch=7, seed=4)
    return gamma.estimate(mixture(NOISES["linear"]), waves(9, 5, phase=2.0), config)


def solved(solver: Any, schedule: Schedule, trajectory: Trajectory) -> Tensor:
    if isinstance(solver, Analytic):
        solver = solver.with_gamma(known())
    return Sampler(mixture(schedule), solver, trajectory).draw((5,), 4, 6, batch=3)


AT = {
    "begins late": (0.9, 0.62, 0.41, 0.18, 0.05, 0.0),
    "ends early": (0.95, 0.7, 0.5, 0.2, 0.11, 0.03),
}
for _word, _kind in SOLVERS.items():
    for _line, (_name, _schedule), (_which, _times) in itertools.product(
        lines(_kind, [({}, {}), *test_solver.CHANGES.get(_word, [])]), NOISES.items(), AT.items()
    ):
        if _name != "linear" and (_which == "ends early" or (_line and _name != "ve")):
            continue

        @measured("solver", _word, _line, _name, _which)
        def _(
            word: str = _word,
            line: dict[str, Any] = _line,
            schedule: Schedule = _schedule,
            times: tuple[float, ...] = _times,
        ):
            return [solved(SOLVERS[word](**line), schedule, Trajectory(times))]


# ---------------------------------------------------------------------------------------------------------- networks


@functools.cache
def network(
    classes: int | None = None,
    seed: int = 0,
    parameterization: str = "v",
    takes_guidance: bool = False,
    channels: tuple[int, ...] = (8, 8),
) -> NetDenoiser:
    config = unet.default_config(SHAPE, channels, classes=classes and classes + 1, layers=1, groups=4)
    net = stirred(dataclasses.replace(config, out_channels=6) if parameterization == "x0_eps" else config, seed=seed)
    if takes_guidance:
        net = unet.with_guidance(net)
        with torch.no_grad():
            for part in net.guidance_embedding.parameters():
                part.copy_(0.3 * waves(*part.shape))
    return NetDenoiser(net.eval(), Cosine(), Reading(parameterization), classes=classes, takes_guidance=takes_guidance)


def told_to(count: int, weight: bool = True) -> Condition:
    labels = torch.arange(count) % 4 - 1
    return of_classes(labels, 1 + waves(count) if weight else None, (labels + 2) % 3 if weight else None)


WRAPPED = {
    "plain": lambda: network(3).with_condition(told_to(5, weight=False)),
    "takes_guidance": lambda: network(3, takes_guidance=True).with_condition(told_to(5)),
    "guided": lambda: Guided(network(3)).with_condition(told_to(5)),
    "clipped": lambda: Clipped(network(), Clip(0.4)),
    "threshold": lambda: Clipped(network(), Threshold(0.7, 1.4)),
    "skip": lambda: skip_tuned(network(), SkipConfig(0.6, 1.3)),
    "rescaled": lambda: Rescaled(network(), NOISES["ve"]),
    **{
        f"parameterization {parameterization}": lambda parameterization=parameterization: network(
            parameterization=parameterization
        )
        for parameterization in PARAMETERIZATIONS
        if parameterization != "score"
    },
}
for _name, _make in WRAPPED.items():

    @measured("belief", _name)
    def _(make: Callable[[], Any] = _make):
        with torch.no_grad():
            found = make()(waves(5, *SHAPE).float(), torch.linspace(0.05, 0.95, 5).double())
        return [found.x0, found.eps, found.v, found.cost]


CACHES = [
    CacheConfig(2),
    CacheConfig(3, 1),
    CacheConfig(3, 0, "quadratic", 4.0, 2.0),
    CacheConfig(4, 0, "quadratic", 2.0, 1.4),
]
for _cache in CACHES:

    @measured("cache", dataclasses.astuple(_cache))
    def _(cache: CacheConfig = _cache):
        sampler = Sampler(DeepCached(network(3), cache), SOLVERS["ddim"](), TRAJECTORIES["uniform"](7, Cosine()))
        labels = of_classes(torch.arange(4) % 3)
        yield sampler.draw(SHAPE, 4, 2, 3, labels)
        yield sorted(full_calls(cache, 11))
        yield sampler.denoiser.share(SHAPE)


# --------------------------------------------------------------------------------------------------------- trainings

TRAINED = {"iterations": 3, "batch": 4, "lr": 3e-3, "ema": 0.7}
FITTED: dict[str, dict[str, Any]] = {
    "": {},
    **{
        f"{key}={value}": {key: value}
        for key, value in {
            "warmup": 2,
            "decay": "none",
            "weight_decay": 3.0,
            "clip": 0.05,
            "accumulate": 2,
            "label_dropout": 0.5,
            "ema": 0.0,
            "lr": 1e-3,
            "batch": 3,
        }.items()
    },
}


@functools.cache
def pictures() -> Images:
    pixels = (waves(26, *SHAPE, phase=0.3) * 127 + 128).round().to(torch.uint8)
    return Images(pixels, torch.arange(26) * 7 % 3, ("a", "b", "c"), (10, 9, 7))


def taught(
    name: str,
    config: Any,
    changed: dict[str, Any],
    classes: int | None = None,
    weights: tuple[float, float] | None = None,
    schedule: Schedule | None = None,
    flip: bool = False,
    dropout: float = 0.0,
) -> Iterator[Any]:
    """Losses, gradients, rates, and how far the average went from where it began."""
    start, images, schedule = (
        network(classes, 3, takes_guidance=bool(weights), channels=(8,)),
        pictures(),
        schedule or Cosine(),
    )
    if not classes:
        images = dataclasses.replace(images, labels=None, classes=None)
    net = start.net.with_dropout(dropout)
    student = NetDenoiser(net, schedule, classes=classes, takes_guidance=bool(weights))
    teacher = NetDenoiser(network(classes, 1, channels=(8,)).net, schedule, classes=classes)
    training = Training(**{**TRAINED, **changed})
    job = Job(config, training, ResidentFeed(images, training.batch, 5, flip), 5, 9, weights)
    compute = Compute(threads=1, precision="no", compile=False, save_seconds=1e9, memory_gb=1.0)
    found = fit(job, student, Guided(teacher) if weights else teacher, compute)
    for event in found.curve:
        yield from (event.loss, event.grad_norm, event.lr, event.critic_loss or 0.0)
    yield found.calls
    moved = (a - b for a, b in zip(found.net.parameters(), net.parameters()))
    yield torch.cat([part.detach().flatten() for part in moved]).norm()


for _name, _pairs in test_losses.CHANGES.items():
    _weights = (1.0, 4.0) if _name == "guided" else None
    _all = lines(methods.load(_name), _pairs)
    for _line in _all:

        @measured("method", _name, _line)
        def _(name: str = _name, line: dict[str, Any] = _line, weights: Any = _weights):
            return taught(name, methods.load(name)(**line), {}, 3, weights)

    for _noise in ("linear", "discrete", "subvp"):

        @measured("method", _name, "on", _noise)
        def _(name: str = _name, line: dict[str, Any] = _all[0], noise: str = _noise, weights: Any = _weights):
            config = methods.load(name)(**line)
            return taught(name, config, {}, 3 if weights else None, weights, NOISES[noise])


for _told, _changed in FITTED.items():

    @measured("fit", _told)
    def _(changed: dict[str, Any] = _changed):
        return taught("denoising", methods.load("denoising")(), changed, 3)


@measured("fit flip")
def _():
    return taught("denoising", methods.load("denoising")(), {}, 3, flip=True)


@measured("fit dropout")
def _():
    module = methods.load("consistency")
    return taught("consistency", module(steps=8, target_ema=0.9), {}, 3, dropout=0.4)


# ----------------------------------------------------------------------------------------------- what is measured


@measured("gamma")
def _():
    found = known()
    yield from (found.moments.total, found.moments.square, found.gamma, found.gamma_stderr)
    for estimator, repair, within in itertools.product(("norm", "residual"), (False, True), ((-1.0, 1.0), (0.0, 1.0))):
        covariance = found.covariance(estimator, repair, within)
        yield from (covariance.values, covariance.below, covariance.above, covariance.repaired or 0)


@measured("gamma of classes")
def _():
    config = gamma.Config(steps=5, images=9, batch=7, seed=4)
    labels = torch.arange(9) % 3
    yield gamma.estimate(network(3), waves(9, *SHAPE).float(), config, inputs={CLASS: labels}).moments.total


@measured("search")
def _():
    found = known()
    share = (found.sigma2 / (found.alpha2 + found.sigma2)).numpy()
    values = found.covariance("residual", True).values.numpy()
    for data in (None, least_cost.decoded(values, 0.1), least_cost.decoded(values, 0.1, (0.0, 1.0))):
        result = least_cost.cheapest(share, values, 6, data=data)
        for steps in range(2, 7):
            yield from (result.nodes(steps), result.cost(steps))
    rough = values * (1 + 0.9 * waves(12).numpy())  # no longer such that the quick way serves
    for data in (None, least_cost.decoded(rough, 0.1)):
        result = least_cost.cheapest(share, rough, 6, data=data)
        yield from (part for k in range(2, 7) for part in (result.nodes(k), result.cost(k)))
    costs = least_cost.cost(share, values)
    yield costs[np.isfinite(costs)]
    yield from (least_cost.is_monge(share, values), least_cost.is_monge(share, rough))
    jumps = np.abs(waves(7, 7).numpy()) + 0.1
    for growth in (1.0, 1.3):
        result = least_cost.shortest(jumps, 5, growth)
        yield from (part for k in range(2, 6) for part in (result.nodes(k), result.cost(k)))


@measured("hops")
def _():
    config = fitted.Config(points=5, images=7, batch=3, seed=8)
    found = fitted.hop_errors(network(3, 2), network(3), config, SHAPE, condition=of_classes(torch.arange(7) % 3))
    yield found[np.isfinite(found)]
    for late in (1.0, 1.15, 2.0):
        yield from (path.times for path in fitted.fit(found, late).values())


for (_name, _schedule), _word, _within in itertools.product(
    NOISES.items(), ("ddpm", "ddpm_large", "analytic", "rk45"), ((-1.0, 1.0), (0.0, 1.0))
):

    @measured("bits", _word, _name, _within)
    def _(word: str = _word, schedule: Schedule = _schedule, within: tuple[float, float] = _within):
        solver = SOLVERS[word]().with_gamma(known()) if word == "analytic" else SOLVERS[word]()
        low, high = within
        x0 = ((waves(7, 5) + 1) / 2 * 255).round() / 255 * (high - low) + low
        for times in ((0.95, 0.5, 0.1, 0.0), (0.9, 0.3, 0.02)):
            sampler = Sampler(mixture(schedule), solver, Trajectory(times))
            yield likelihood.estimate(sampler, x0, 3, probes=2, batch=3, within=within).values


@functools.cache
def judge(labelled: bool) -> features.Features:
    images = pictures() if labelled else dataclasses.replace(pictures(), labels=None, classes=None)
    return features.train(images, features.Config(channels=8, dimension=4, iterations=3, batch=5, lr=3e-3, seed=2))


for _labelled in (True, False):

    @measured("features", _labelled)
    def _(labelled: bool = _labelled):
        found = judge(labelled)
        yield features.extract(found, waves(7, *SHAPE).float(), batch=3)
        yield found.logits(waves(7, *SHAPE).float())
        yield from (found.card.accuracy, found.card.chance)


@measured("quality")
def _():
    network, images = judge(True), pictures()
    reference = Reference.of(images, network)
    samples = 1.2 * waves(9, *SHAPE, phase=4.0).float()

    def numbers(metrics: dict[str, Estimate]) -> list[float]:
        return [number for each in metrics.values() for number in (each.value, each.se)]

    yield from numbers(measures.measure(Subject(samples, reference, network, 3)))
    yield len(samples)
    held = look(Images(images.pixels[:8].flip(0), None, None), network)
    for found in (floor(reference, 9, 3), floor(reference, 9, 3, held)):
        yield from (*numbers(found.metrics), found.n, found.compared)
    share = accuracy(samples, torch.arange(9) % 3, images.labels, network)
    yield from (share.value, share.se)
    apart = rmse(samples, samples.flip(0))
    yield from (apart.value, apart.se)


@measured("rng")
def _():
    like = waves(4, 5)
    found = rng.draw(like, 3, "train", 7, count=9)
    yield from (found.u, found.noise, found.fork("again").u, found[2:4].noise, found[2:4].fork("x").noise)
    yield from (rng.noises(SHAPE, 3, range(2, 5)), rng.noises(SHAPE, 3, range(2), "step 1"), rng.some(4, 20, 3, "a"))
    yield from (labels_like(pictures().labels, 11, 3), rng.seed("a", 1) % 10007, rng.seed("a1") % 10007)


@measured("feed")
def _():
    for flip, batch in ((False, 6), (True, 4)):
        feed = ResidentFeed(pictures(), batch, 5, flip)
        for step in (0, 3, 9):
            x0, inputs = feed.batch(step)
            yield from (x0, inputs.get(CLASS), feed.batch(step, slice(1, 3))[0])


# ------------------------------------------------------------------------------------------------------------------

WITHIN = {"method": 2e-3, "fit": 2e-3, "features": 2e-3, "quality": 2e-3, "belief": 1e-4, "cache": 1e-4, "hops": 1e-3}
"""How far a number may be from the one that is kept, relative to the largest beside it. float32, several steps: machines
round differently. What is not named is worked out in float64."""


@functools.cache
def kept() -> dict[str, list[float] | str]:
    return json.loads(GOLDEN.read_text())


@pytest.mark.parametrize("name", MEASURED)
def test_nothing_moved(name):
    found, right = told(MEASURED[name]), kept()[name]
    if "refused" in (found, right):
        assert found == right
        return
    assert len(found) == len(right)
    scale = max(1e-3, *(abs(each) for each in right)) if len(right) > 40 else 1e-3
    within = WITHIN.get(name.split()[0], 1e-6)
    for k, (one, other) in enumerate(zip(found, right)):
        assert one == pytest.approx(other, rel=10 * within, abs=within * min(1.0, scale)), f"number {k}"


def test_every_number_that_is_kept_is_worked_out():
    assert list(kept()) == list(MEASURED)


def test_every_change_changes_the_numbers():
    """Of what is compared here no two are alike: an option that did nothing would be held to its nothing."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for name, numbers in kept().items():
        kind, *words = name.split(" ")
        whose = {"method": 1, "fit": 0, "solver": 1, "bits": 1, "cache": 0, "belief": 0}.get(kind)
        if whose is not None and numbers != "refused":
            groups.setdefault((kind, *words[:whose], *(words[-3:] if kind == "solver" else ())), []).append(name)
    alike = []
    for names in groups.values():
        for one, other in itertools.combinations(names, 2):
            if kept()[one] == kept()[other]:
                alike.append((one, other))
    known = (
        ("'spacing': 'time'", " ve "),  # whose half log-SNR is even in time
        ("'lower_order_final': False", "late"),  # a step to sigma 0 is of first order all the same
        ("'atol': 1e-09", " ve "),  # where rtol is what binds
    )
    assert [pair for pair in alike if not any(a in pair[1] and b in pair[1] for a, b in known)] == []
    assert all(any(a in pair[1] for pair in alike) for a, _ in known)


if __name__ == "__main__":
    torch.set_num_threads(1)
    numbers = {name: told(work) for name, work in MEASURED.items()}
    GOLDEN.write_text("{\n" + ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in numbers.items()) + "\n}\n")
    sys.stdout.write(f"{GOLDEN}: {sum(map(len, numbers.values()))} numbers under {len(numbers)} names\n")
