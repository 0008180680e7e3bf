"""What the table says of a point, against what a hand counts and computes: no part of the engine stands in for itself."""

import dataclasses
import itertools
import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from diffcore import checkpoints
from diffcore.core import rng
from diffcore.core.shapes import CLASS
from diffcore.data.feed import to_float
from diffcore.data.read import load_resident
from diffcore.denoisers.network import NetDenoiser
from diffcore.metrics import bootstrap, likelihood, measures
from diffcore.metrics.metric import Subject
from diffcore.metrics.reference import to_8bit
from diffcore.nets.unet import UNet, with_guidance
from diffcore.noise.schedule import Cosine
from diffcore.sampling.sampler import Sampler
from diffcore.sampling.solvers import SOLVERS
from diffcore.sampling.solvers.ancestral import Posterior
from diffcore.sampling.solvers.rk45 import RK45
from tasks import measure, params, paths, search
from tests import test_measure
from tests.conftest import labels_like
from tests.test_measure import FIT, FROM, make, names
from tests.test_unet import stirred

SHAPE, STEPS, COUNT, SEED = (3, 6, 4), 4, 12, 3
LATER = ("edm", "euler_maruyama", "langevin", "predictor_corrector")  # cannot begin at t = 1
PLAIN = {"sampler": "ddim", "trajectory": "uniform", "steps": [STEPS]}
GUIDED = [
    {"guidance": 2.5},
    {"guidance": 0.0},
    {"guidance": 2.5, "negative": "class2"},
    {"guidance": 2.5, "negative": "class0"},
]
CHANGED = [{"clip": 0.6}, {"threshold": {"quantile": 0.7, "max": 1.4}}, {"skip": {"bottom": 0.7}}]
CACHES = [{"deepcache": {"interval": 2}}, {"deepcache": {"interval": 3}, "guidance": 2.5, "steps": [5]}]
SETTINGS = {
    "distill": {
        "v": {"method": "denoising", **FROM, **FIT},
        "g": {"method": "guided", **FROM, "guidance": [1.0, 4.0], **FIT},
        "built_in": {"method": "guided", **FROM, "guidance": 2.0, **FIT},
        "pd": {"method": "progressive", **FROM, "steps": 2, **FIT},
    },
    "evaluate": {
        "images": COUNT,
        "seed": SEED,
        "batch": 5,
        "likelihood": {"images": 4, "probes": 2, "seed": 19},
        "teacher": [
            PLAIN,
            *(
                {**PLAIN, "sampler": word, "trajectory": "karras" if word in LATER else "uniform"}
                for word in SOLVERS
                if word != "ddim"
            ),
            *({**PLAIN, **each} for each in (*GUIDED, *CHANGED, *CACHES)),
        ],
        "any_time_students": [PLAIN],
        "students": {"g": [{**PLAIN, "guidance": [1.5, 3.0]}]},
    },
}


def coloured(folder, classes: int) -> None:
    """Images higher than wide, in colour, of classes that are not equally frequent."""
    rng = np.random.default_rng(5)
    for number in range(26):
        kind = min(number % 5, classes - 1)
        home = folder / f"class{kind}"
        home.mkdir(parents=True, exist_ok=True)
        base = np.array([60 * kind, 90, 200 - 50 * kind]) + np.arange(24).reshape(6, 4, 1) * 2
        Image.fromarray((base + rng.integers(0, 40, (6, 4, 3))).clip(0, 255).astype(np.uint8)).save(
            home / f"{number:02d}.png"
        )


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """A project of every solver, of guided and changed networks, and of students that take or hold the weight."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bootstrap, "RESAMPLES", 10)
        patch.setattr(test_measure, "SMALL", {**test_measure.SMALL, **SETTINGS})
        patch.setattr(test_measure, "pngs", coloured)
        project = make(tmp_path_factory.mktemp("points"), patch, 3, True)
        for name, weights in (("g", (1.0, 4.0)), ("built_in", (2.0, 2.0)), ("pd", None)):
            again(project, name, weights)
        search.find(project)
        yield project, measured(project)


def again(project: params.Params, name: str, weights: tuple[float, float] | None) -> None:
    """The student once more, as its method makes it."""
    card = checkpoints.read_card(paths.CHECKPOINTS / name)
    about = {
        field: getattr(card, field) for field in ("name", "method", "solver", "weights", "parent", "teacher", "data")
    }
    about |= {field: getattr(card, field) for field in ("parameters", "seed", "code", "torch", "classes", "cost")}
    net = stirred(project.teachers["teacher"].network.config(SHAPE, 3), seed=len(name))
    if is_input := bool(weights and weights[0] < weights[1]):
        net = with_guidance(net)
        with torch.no_grad():
            for part in net.guidance_embedding.parameters():
                part.normal_(0, 0.3, generator=torch.Generator().manual_seed(part.numel()))
    grid = project.distill[name].method.grid
    made = NetDenoiser(net.eval(), Cosine(), grid=grid, classes=3, takes_guidance=is_input)
    told = {"guidance": {"low": weights[0], "high": weights[1]}} if weights else {}
    checkpoints.save(paths.CHECKPOINTS / name, made, SHAPE, {**about, **told})


@dataclasses.dataclass
class One:
    """A measured point. calls: how many rows its networks were shown while samples were drawn, each row one image."""

    plan: measure.Plan
    point: measure.Point
    samples: torch.Tensor
    calls: int
    opened: checkpoints.Checkpoint
    bench: measure.Bench


def measured(project: params.Params) -> dict[str, One]:
    embed, drawing, calls, found = UNet.embed, Sampler.draw, [False, 0], {}
    benches = [measure.Bench(project, name) for name in names(project)]

    def counted(net, timestep, *words, **inputs):
        calls[1] += len(timestep) * calls[0]
        return embed(net, timestep, *words, **inputs)

    def while_drawing(*words):
        calls[0] = True
        try:
            return drawing(*words)
        finally:
            calls[0] = False

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(UNet, "embed", counted)
        patch.setattr(Sampler, "draw", while_drawing)
        for bench, plan in [(each, plan) for each in benches for plan in measure.plan(each)]:
            calls[1] = 0
            samples, point = bench.measure(plan)
            if not found:  # the teacher's first ones are what all others are compared with
                for each in benches:
                    each.teacher = samples
            found[plan.name] = One(plan, point, samples, calls[1], bench.opened, bench)
    return found


@pytest.mark.slow
def test_every_solver_s_and_every_guided_sampler_s_cost_is_what_its_network_did(found):
    """Of samples alone: no call of the warm-up, none of the likelihood."""
    _, points = found
    assert {one.point.sampler for one in points.values()} == set(SOLVERS)
    for name, one in points.items():
        if not one.plan.recipe.deepcache:
            assert one.calls == round(one.point.nfe * COUNT) > 0, name
    for name, one in points.items():
        if one.point.sampler == "ddim" and not one.plan.recipe.deepcache:
            twice = one.plan.checkpoint == "teacher" and one.plan.recipe.guidance is not None
            assert one.point.nfe == one.plan.times.steps * (1 + twice), name


def test_a_cache_s_cost_is_whole_calls_and_shares(found):
    """Of four calls two are whole, of five calls three apart two; what a share is, test_deepcache asks."""
    _, points = found
    for one in points.values():
        if cache := one.plan.recipe.deepcache:
            share = (
                measure.Recipe(one.plan.recipe.solver, cache).sampler(one.opened, one.plan.times).denoiser.share(SHAPE)
            )
            calls, twice = one.plan.times.steps, 1 + (one.plan.recipe.guidance is not None)
            whole = math.ceil(calls / cache.interval)
            assert 0 < share < 1
            assert one.point.nfe == pytest.approx(twice * (whole + (calls - whole) * share))


def belief(one: One, x: torch.Tensor, t: float, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(x_0, eps) as the recipe means it, from the network's own output."""
    recipe, net = one.plan.recipe, one.opened.denoiser.net
    phi, timestep = math.pi / 2 * t, torch.full((len(x),), 1024 * t - 1)

    def says(classes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        weight = (
            (torch.full((len(x),), recipe.guidance, dtype=torch.float64),) if one.opened.denoiser.takes_guidance else ()
        )
        v = net(x, timestep, classes, *weight)
        return math.cos(phi) * x - math.sin(phi) * v, math.sin(phi) * x + math.cos(phi) * v

    if recipe.guidance is None or one.opened.guidance:
        return says(labels)
    away = {None: 3, "class2": 2, "class0": 0}[recipe.negative]
    with_, without = says(labels), says(torch.full_like(labels, away))
    return tuple(b + recipe.guidance * (a - b) for a, b in zip(with_, without))


def test_samples_of_ddim_are_those_of_its_formula_with_classes_weights_and_limits(found):
    """x_s = alpha_s x_0 + sigma_s eps, of each image its own noise and its own class, whatever the batch."""
    _, points = found
    labels = labels_like(load_resident(paths.DATA).labels, COUNT, SEED)
    assert len(set(labels.tolist())) == 3
    tried = [one for one in points.values() if one.point.sampler == "ddim" and not one.plan.recipe.deepcache]
    assert len(tried) >= 12
    for one in tried:
        if one.plan.recipe.skip or one.plan.recipe.threshold:
            continue
        x, times = rng.noises(SHAPE, SEED, range(COUNT), "start"), one.plan.times.times
        with torch.inference_mode():
            for t, s in itertools.pairwise(times):
                x0, eps = belief(one, x, t, labels)
                if limit := one.plan.recipe.clip:
                    clipped = x0.clamp(-limit, limit)
                    angle = math.pi / 2 * t
                    eps = (x - math.cos(angle) * clipped) / math.sin(angle)
                    x0 = clipped
                x = math.cos(math.pi / 2 * s) * x0 + math.sin(math.pi / 2 * s) * eps
        torch.testing.assert_close(one.samples, x, rtol=0, atol=2e-4 * float(x.abs().max()), msg=one.plan.name)
    samples = [tuple(one.samples.flatten().tolist()) for one in tried]
    assert len(set(samples)) == len(tried)  # no two ways to sample are one


def test_what_is_said_of_a_point_s_quality_is_of_its_own_samples(found):
    project, points = found
    images = load_resident(paths.DATA)
    labels = labels_like(images.labels, COUNT, SEED)
    first = next(iter(points.values()))
    assert first.plan.name == f"teacher-ddim-uniform-{STEPS}"
    assert "rmse_teacher" not in first.point.metrics
    for name, one in points.items():
        score = measures.measure(Subject(one.samples, one.bench.reference, one.bench.network, SEED))
        assert {"fd", "kid", "fd_pixels", "recall", "coverage"} <= score.keys()
        for key, each in score.items():  # not their errors: the fixture's ten resamples are over
            assert one.point.metrics[key].value == pytest.approx(each.value, rel=1e-9), (name, key)
        assert one.point.n == len(one.samples)
        if one is not first:
            away = (one.samples.double() - first.samples.double()).square().mean().sqrt()
            assert one.point.metrics["rmse_teacher"].value == pytest.approx(float(away), rel=1e-6), name
        asked = one.bench.network.logits(to_8bit(one.samples)).argmax(1) == labels
        assert one.point.metrics["accuracy"].value == pytest.approx(float(asked.double().mean())), name
    assert project.evaluate.images == COUNT


def test_bits_are_those_of_the_classes_and_weights_of_the_images(found):
    project, points = found
    images, asked = load_resident(paths.DATA), project.evaluate.likelihood
    chosen = rng.some(asked.images, len(images), asked.seed, "likelihood")
    x0, labels, some = to_float(images.pixels[chosen]), images.labels[chosen], set()
    for name, one in points.items():
        solver = one.plan.recipe.solver
        has = isinstance(solver, RK45 | Posterior) and solver.stochastic | isinstance(solver, RK45)
        assert ("bits" in one.point.metrics) == bool(has), name
        if has:
            sampler, condition = one.bench.sampler(one.plan), one.plan.recipe.condition(one.opened, {CLASS: labels})
            assert condition.class_labels.tolist() == labels.tolist()
            whole = likelihood.estimate(sampler, x0, asked.seed, asked.probes, 99, condition)
            assert one.point.metrics["bits"].value == pytest.approx(whole.mean, rel=1e-4), name
            some.add(round(one.point.metrics["bits"].value, 6))
    assert len(some) >= 4


def test_every_name_and_every_recipe_is_one_of_its_own(found):
    _, points = found
    assert len({one.point.recipe for one in points.values() if one.plan.checkpoint == "teacher"}) == sum(
        one.plan.checkpoint == "teacher" for one in points.values()
    )
    for name in ("g2.5", "g0", "g2.5-not-class2", "g2.5-not-class0"):
        assert f"teacher-ddim-{name}-uniform-{STEPS}" in points
    for one in points.values():
        assert json.loads(one.point.recipe) == one.plan.recipe.to_json()
