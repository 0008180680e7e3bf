"""What params.yaml says is what the engine is told: every argument that a stage hands on, with no two numbers alike."""

import contextlib
import dataclasses
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from diffcore import checkpoints
from diffcore.core import disk, rng
from diffcore.core.errors import UserError
from diffcore.core.shapes import CLASS
from diffcore.data import pixels, read, write
from diffcore.data.cache import Cache
from diffcore.data.feed import to_float
from diffcore.data.ledger import Unfinished
from diffcore.data.manifest import Manifest
from diffcore.data.read import load_resident
from diffcore.denoisers.network import NetDenoiser
from diffcore.metrics import bootstrap
from diffcore.metrics.estimate import Estimate
from diffcore.metrics.frechet import Moments, frechet
from diffcore.metrics.frontier import Frontier
from diffcore.metrics.judge import Judge
from diffcore.metrics.judge_file import JudgeFile
from diffcore.metrics.point import Point
from diffcore.metrics.recommendation import bar
from diffcore.metrics.reference import Reference, to_8bit
from diffcore.nets import unet
from diffcore.noise.schedule import Cosine
from diffcore.noise.trajectory import uniform
from diffcore.search import gamma as estimates
from tasks import (
    features,
    frontier,
    gamma,
    graph,
    measure,
    params,
    paths,
    progress,
    publish,
    report,
    search,
    shard,
    statistics,
)
from tasks.pictures import charts, grids, page
from tasks.pictures.page import is_whole
from tasks.tracking import publishing
from tests import test_encoders, test_frontier, test_measure
from tests.conftest import labels_like
from tests.test_measure import FIT, FROM, make, measure_all, names
from tests.test_unet import stirred

PLAIN = {"sampler": "ddim", "trajectory": "uniform", "steps": [2]}
DISTINCT = {
    "seed": 5,
    "compute": {"threads": 1, "save_seconds": 7.0, "memory_gb": 0.5, "cache_gb": 3.0},
    "features": {"channels": 8, "dimension": 4, "iterations": 2, "batch": 4, "seed": 17},
    "distill": {
        "v": {"method": "denoising", **FROM, **FIT},
        "g": {"method": "guided", **FROM, "guidance": 2.0, **FIT},
        "pd": {"method": "progressive", **FROM, "steps": 2, **FIT},
    },
    "gamma": {"steps": 6, "images": 5, "batch": 7, "seed": 11},
    "search": {"most": 3},
    "evaluate": {
        "images": 12,
        "seed": 3,
        "batch": 5,
        "likelihood": {"images": 4, "probes": 2, "seed": 19},
        "fitted": {"points": 4, "images": 5, "batch": 2, "seed": 13, "late": 1.3},
        "teacher": [
            {**PLAIN, "steps": [3, 2]},
            {**PLAIN, "sampler": "analytic"},
            {**PLAIN, "steps": [4], "deepcache": {"interval": 2}},
            {**PLAIN, "guidance": 2.0, "negative": "class1"},
            {**PLAIN, "skip": {"bottom": 0.9}},
        ],
        "any_time_students": [PLAIN],
    },
    "publish": {"tolerance": 1.7},
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A project with classes and images held out, up to its search; one student is guided, one has steps of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bootstrap, "RESAMPLES", 10)
        patch.setattr(test_measure, "SMALL", {**test_measure.SMALL, **DISTINCT})
        patch.setattr(gamma, "estimate", lambda _: None)
        with patch.context() as later:
            later.setattr(search, "find", lambda _: None)
            found = make(tmp_path_factory.mktemp("wiring"), patch, 2, True, split={"holdout": 0.4})
        for name, about, grid in (("g", {"guidance": {"low": 2.0, "high": 2.0}}, None), ("pd", {}, uniform(2))):
            save(name, about, grid)
        home = paths.PARAMS.resolve().parent
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        gamma.estimate(found)
        search.find(found)
    return home, found


ABOUT = ("name", "method", "solver", "weights", "parent", "teacher", "data", "parameters", "seed", "code", "torch")


def save(name: str, about: dict, grid=None, seed: int = 9) -> checkpoints.Card:
    """The checkpoint NAME once more, with other facts."""
    old = checkpoints.read_card(paths.CHECKPOINTS / name)
    classes = len(old.classes) if old.classes else None
    net = stirred(unet.default_config((1, 4, 4), (8,), classes=classes, layers=1, groups=4), seed=seed)
    kept = {key: getattr(old, key) for key in (*ABOUT, "classes", "cost")}
    denoiser = NetDenoiser(net, Cosine(), grid=grid, classes=classes)
    return checkpoints.save(paths.CHECKPOINTS / name, denoiser, tuple(old.image), {**kept, **about})


def heard(monkeypatch, place, name: str, answer) -> list[SimpleNamespace]:
    """What `place.name` is called with from now on; it answers what it is told to, or does what it did."""
    calls, real = [], getattr(place, name)

    def call(*words, **named):
        calls.append(SimpleNamespace(words=words, named=named))
        return real(*words, **named) if answer is ... else answer

    monkeypatch.setattr(place, name, call)
    return calls


def compute(found: params.Params, **changes) -> params.Params:
    return dataclasses.replace(found, compute=dataclasses.replace(found.compute, **changes))


def of_the_teacher(found: params.Params) -> None:
    measure.measure(found, "teacher")


@pytest.mark.parametrize("stage", [features.train, gamma.estimate, search.find, of_the_teacher])
def test_a_stage_computes_with_the_threads_of_the_file(stage, project, monkeypatch):
    def use(threads: int) -> None:
        raise InterruptedError(threads)

    monkeypatch.setattr("diffcore.core.threads.use", use)
    with pytest.raises(InterruptedError, match=r"^3$"):
        stage(compute(project, threads=3))


def test_a_checkpoint_is_opened_on_the_device_of_the_run(project, monkeypatch):
    moved = heard(monkeypatch, checkpoints.Checkpoint, "to", ...)
    monkeypatch.setattr(type(project.compute), "device", torch.device("cpu", 0))
    for stage, opened in (
        (gamma.estimate, ["teacher"]),
        (search.find, []),
        (lambda found: measure.Bench(found, "teacher").fitted, ["teacher"]),
        (lambda found: measure.Bench(found, "v").fitted, ["v", "teacher"]),
    ):
        moved.clear()
        stage(project)
        assert [(call.words[0].card.name, call.words[1]) for call in moved] == [
            (name, torch.device("cpu", 0)) for name in opened
        ]


# --- shard, features


def test_images_are_sharded_as_the_file_says(project, monkeypatch, capsys):
    manifest = dataclasses.replace(
        Manifest.read(paths.DATA), images=7, shape=(3, 5, 6), classes=None, quarantined=({}, {}), digest="d" * 64
    )
    calls = heard(monkeypatch, write, "write", manifest)
    monkeypatch.setattr(shard.joblib, "cpu_count", lambda: 5)
    shard.shard(project)
    (call,) = calls
    assert call.words[:3] == (project.data, paths.DATA, 5)
    assert call.named["start"] is pixels.processes
    assert call.named["drawn"] == paths.DRAWN
    unfinished = call.named["unfinished"]
    assert unfinished == Unfinished(paths.RESUME / "shard", graph.code_digest("shard"))
    assert call.named["cache"] == Cache(paths.RESUME / "remote", 3 * 2**30)
    call.named["tell"]("a line")
    said = capsys.readouterr().out
    assert said.startswith("shard: 7 images of 5x6, 3 channels, no labels, 2 quarantined; data dddddddddddd\n")
    assert said.endswith("shard: a line\n")


def test_the_feature_network_is_trained_and_saved_as_the_file_says(project, monkeypatch, capsys):
    calls = heard(monkeypatch, features.features, "train", ...)
    opened = heard(monkeypatch, read, "open_images", ...)
    shutil.rmtree(paths.FEATURES)
    features.train(project)
    (call,) = calls
    assert call.words[1] == project.features
    assert [each.words for each in opened] == [(paths.DATA, 2**29)]
    network = features.features.load(paths.FEATURES)
    call.words[2](2, 0.12345)
    said = capsys.readouterr().out
    assert "features         2/2  loss 0.123\n" in said
    told = f"features: classes accuracy {network.card.accuracy:.3f} on held-out images; network {network.digest[:12]}\n"
    assert told in said
    assert (f"features: warning: {network.card.skill.warning}\n" in said) == bool(network.card.skill.warning)


# --- gamma


def test_gamma_is_estimated_as_the_file_says_and_its_file_tells_of_what(project, monkeypatch):
    """Of images held out, with their classes, from the teacher."""
    paths.GAMMA.unlink()
    calls = heard(monkeypatch, estimates, "estimate", ...)
    opened = heard(monkeypatch, read, "open_images", ...)
    gamma.estimate(project)
    whole = json.loads(paths.GAMMA.read_text())
    (call,) = calls
    denoiser, images, config, _ = call.words
    teacher, held = checkpoints.load(paths.CHECKPOINTS / "teacher"), load_resident(paths.HOLDOUT)
    chosen = estimates.pick(len(held), project.gamma)
    assert all(
        torch.equal(part, denoiser.net.state_dict()[key]) for key, part in teacher.denoiser.net.state_dict().items()
    )
    assert torch.equal(images, to_float(held.pixels[chosen]))
    assert config == project.gamma
    assert call.named["inputs"][CLASS].tolist() == held.labels[chosen].tolist()
    assert (call.named["begun"], call.named["seconds"]) == (None, 7.0)
    assert [each.words for each in opened] == [(paths.HOLDOUT, 2**29)]
    card = teacher.card
    assert whole["about"] == {"checkpoint": "teacher", "checkpoint_digest": card.digest, "data": card.data}
    ends = ((held.pixels == 0) | (held.pixels == 255)).double().mean()
    assert whole["edges"] == pytest.approx(float(ends))
    assert (whole["schema"], whole["steps"], whole["images"], whole["seed"]) == (estimates.SCHEMA, 6, 5, 11)


def test_sums_that_were_kept_are_those_of_the_same_job_alone(project):
    """Each part of what they depend on makes another key."""

    def key(found=project, teacher="1", data="2") -> str:
        return disk.digest(gamma._job(found, SimpleNamespace(card=SimpleNamespace(digest=teacher)), data))

    config = project.gamma
    others = [
        dataclasses.replace(project, gamma=dataclasses.replace(config, **{each.name: getattr(config, each.name) + 1}))
        for each in dataclasses.fields(config)
    ]
    keys = [key(), *map(key, others), key(compute(project, threads=3)), key(teacher="3"), key(data="3")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gamma.graph, "code_digest", lambda stage: f"other code of {stage}")
        keys.append(key())
        assert (
            gamma._job(project, SimpleNamespace(card=SimpleNamespace(digest="")), "")["code"] == "other code of gamma"
        )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(project.compute), "device", torch.device("meta"))
        keys.append(key())
    assert len(set(keys)) == len(keys) == 10


def test_gamma_s_job_knows_its_images(project, monkeypatch):
    """Where some were held out their digest counts, not that of those which are trained on."""
    jobs = heard(monkeypatch, gamma, "_job", ...)
    gamma.estimate(project)
    shutil.rmtree(paths.HOLDOUT)
    gamma.estimate(project)
    digests = [call.words[2] for call in jobs]
    assert digests[1] == Manifest.read(paths.DATA).digest != digests[0]
    assert [call.words[1].card.name for call in jobs] == ["teacher", "teacher"]


# --- search


def test_times_are_searched_as_the_file_says_and_its_file_tells_from_what(project, monkeypatch):
    """From Gamma alone: no checkpoint is opened, and no image."""
    monkeypatch.setattr(checkpoints, "load", lambda *_: pytest.fail("a checkpoint was opened"))
    monkeypatch.setattr(read, "open_images", lambda *_: pytest.fail("images were opened"))
    covariances = heard(monkeypatch, estimates.Gamma, "covariance", ...)
    decoded = heard(monkeypatch, search.least_cost, "decoded", ...)
    changed = dataclasses.replace(project, search=dataclasses.replace(project.search, estimator="norm", repair=False))
    search.find(changed)
    found = json.loads(paths.TRAJECTORY.read_text())
    assert [call.words[1:] for call in covariances] == [("norm", False)]
    assert [call.words[1] for call in decoded] == [json.loads(paths.GAMMA.read_text())["edges"]]
    assert set(found["nodes"]) == {"1", "2", "3"}
    assert found["about"]["steps"] == 6
    told = estimates.read(paths.GAMMA, None, "x")
    assert found["from"] == {"gamma": disk.digest(told), "checkpoint": told["about"]["checkpoint_digest"]}
    with pytest.raises(UserError, match=r"search\.most is 7, but gamma\.steps is only 6"):
        search.find(dataclasses.replace(project, search=dataclasses.replace(project.search, most=7)))


def test_times_are_fitted_as_the_file_says(project, monkeypatch, capsys):
    """To the teacher's path, with classes drawn as the file says; for a sampling that asks for them and not else."""
    calls, fits = heard(monkeypatch, measure.fitted, "hop_errors", ...), heard(monkeypatch, measure.fitted, "fit", ...)
    real = read.load_resident(paths.DATA).labels
    for name in ("teacher", "v"):
        bench = measure.Bench(project, name)
        list(measure.plan(bench))
        assert calls == fits == []
        assert bench.times("fitted", 2) == bench.fitted[2]
        (call,), (fit,) = calls, fits
        assert call.words[2:] == (project.evaluate.fitted, (1, 4, 4))
        assert call.named["condition"].class_labels.tolist() == labels_like(real, 5, 13).tolist()
        assert fit.words[1] == 1.3
        for meant, role in ((name, call.words[0]), ("teacher", call.words[1])):
            weights = checkpoints.load(paths.CHECKPOINTS / meant).denoiser.net.state_dict()
            assert all(torch.equal(part, weights[key]) for key, part in role.net.state_dict().items())
        assert f"measure {name}: times fitted to the teacher's path; with 4 steps: 1, " in capsys.readouterr().out
        calls.clear()
        fits.clear()


@pytest.mark.parametrize("decoder", [False, True])
def test_costs_of_a_search_stand_by_the_steps_they_are_of(decoder, project):
    """As many nodes as steps, the last at 1; more steps never cost more."""
    found = search._bound(
        dataclasses.replace(project, search=dataclasses.replace(project.search, decoder=decoder)),
        estimates.read(paths.GAMMA, None, "x"),
    )
    assert {steps: len(nodes) for steps, nodes in found["nodes"].items()} == {"1": 1, "2": 2, "3": 3}
    assert all(nodes[-1] == 6 for nodes in found["nodes"].values())
    costs = list(found["cost"].values())
    assert list(found["cost"]) == (["1", "2", "3"] if decoder else ["2", "3"])
    assert costs == pytest.approx(sorted(costs, reverse=True))
    assert found["about"]["decoder"] == decoder


# --- evaluate


def test_what_all_points_are_measured_with_is_what_the_file_says(project, monkeypatch):
    """Compared with the images that were trained on; the floor is of those held out."""
    opened, referred = heard(monkeypatch, read, "open_images", ...), heard(monkeypatch, Reference, "of", ...)
    looked, floors = heard(monkeypatch, measure, "look", ...), heard(monkeypatch, measure.halvings, "floor", ...)
    bench = measure.Bench(project, "teacher")
    assert floors == []
    bench.floor()
    held, real = load_resident(paths.HOLDOUT), load_resident(paths.DATA)
    assert [call.words for call in opened] == [(paths.DATA, 2**29), (paths.HOLDOUT, 2**29)]
    (call,) = referred
    assert torch.equal(call.words[0].pixels, real.pixels)
    assert call.words[1] is bench.network
    (call,) = looked
    assert torch.equal(call.words[0].pixels, held.pixels)
    assert call.words[1] is bench.network
    (call,) = floors
    assert call.words[:3] == (bench.reference, 12, 3)
    assert len(call.words[3]) == len(held)
    assert bench.prompts[CLASS].tolist() == labels_like(real.labels, 12, 3).tolist()
    assert bench.prompts[CLASS].tolist() != labels_like(real.labels, 12, 5).tolist()
    shutil.rmtree(paths.HOLDOUT)
    assert measure.Bench(project, "teacher").floor().real == "halves"
    assert floors[-1].words == (*floors[-1].words[:1], 12, 3, None)


class Pixels(torch.nn.Module):
    """Features that are the pixels; stands in for a network that was trained elsewhere."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(1 / 64))

    def forward(self, images):
        return images.flatten(1) * self.scale


def test_judges_of_the_file_measure_every_point_and_are_named_in_it(project, monkeypatch):
    """Under names of their own; the other numbers are what they are without them, to the bit."""
    Path("weights.pth").touch()
    loaded = []

    def load(name, file):
        loaded.append((name, file))
        return Judge(name, Pixels(), "ab" * 32, "none")

    monkeypatch.setattr(measure.judges, "load", load)
    with_judge = replace(project, evaluate=replace(project.evaluate, judges={"inception": "weights.pth"}))
    plain, bench = measure.Bench(project, "teacher"), measure.Bench(with_judge, "teacher")
    assert loaded == [("inception", JudgeFile("weights.pth"))]
    plan = next(iter(measure.plan(bench)))
    (samples, point), (_, bare) = bench.measure(plan), plain.measure(plan)
    own, real = ((each + 1) * 127.5 / 64 for each in (to_8bit(samples), to_float(load_resident(paths.DATA).pixels)))
    want = frechet(Moments.of(own.flatten(1)), Moments.of(real.flatten(1)))
    assert point.metrics["fd_inception"].value == pytest.approx(want, rel=1e-5)
    assert list(point.metrics) == [*bare.metrics, "fd_inception", "kid_inception"]
    assert bare.metrics.items() <= point.metrics.items()
    assert (point.judges, bare.judges) == ("inception abababababab (none)", "")
    assert bench.about(plan) == plain.about(plan) | {"judges": point.judges}  # what kept points are told apart by


def test_a_judge_s_folder_measures_a_point_whose_words_say_what_its_config_does(project):
    folder = test_encoders.write(Path("clip"), test_encoders.CLIP)
    bench = measure.Bench(replace(project, evaluate=replace(project.evaluate, judges={"clip": str(folder)})), "teacher")
    _, point = bench.measure(next(iter(measure.plan(bench))))
    assert list(point.metrics)[-2:] == ["fd_clip", "kid_clip"]
    assert point.judges.startswith(f"clip {disk.sha256(folder / 'model.safetensors')[:12]} (square in the middle, ")
    assert point.judges.endswith(", ViT/8 of 2 blocks 24 wide, 2 heads, quick_gelu, eps 1e-05)")
    assert Point.from_json(json.loads(json.dumps(point.to_json()))) == point


class Counted(Pixels):
    """Counts the images that it looks at."""

    def __init__(self):
        super().__init__()
        self.looked = 0

    def forward(self, images):
        self.looked += len(images)
        return super().forward(images)


@pytest.fixture
def network(monkeypatch) -> Counted:
    """That of the judge `inception`, whatever is in its file."""
    Path("weights.pth").touch()
    network = Counted()
    monkeypatch.setattr(measure.judges, "load", lambda name, file: Judge(name, network, "ab" * 32, "none"))
    return network


def with_judge(project: params.Params, value) -> params.Params:
    return replace(project, evaluate=replace(project.evaluate, judges={"inception": value}))


def test_a_judge_looks_at_the_real_images_once_for_all_checkpoints(project, network):
    """Until they, the threads or the code are others."""
    judged = with_judge(project, "weights.pth")
    first = measure.Bench(judged, "teacher").judges[0]
    count = len(load_resident(paths.DATA))
    assert network.looked == count
    again = measure.Bench(judged, "pd").judges[0]
    assert network.looked == count
    assert torch.equal(first.moments.covariance, again.moments.covariance)
    assert torch.equal(first.rows, again.rows)
    about = measure.courts(judged, "x").about
    manifest = Manifest.read(paths.DATA)
    assert about == {"images": manifest.digest, "code": graph.code_digest("measure"), "device": "cpu", "threads": 1}
    measure.Bench(compute(judged, threads=2), "pd")
    assert network.looked == 2 * count


def test_statistics_that_are_written_are_a_reference(project, network, capsys):
    """Of the images of the training; a target that exists is not replaced, and a file of other features is refused."""
    judged = with_judge(project, "weights.pth")
    statistics.write(judged, "inception", Path("stats.npz"))
    count = len(load_resident(paths.DATA))
    assert capsys.readouterr().out.splitlines()[-1] == (
        f"stats.npz: mu and sigma of {count} images by inception abababababab (none)"
    )
    assert network.looked == count
    content = Path("stats.npz").read_bytes()
    for name, target, words in (
        ("inception", "stats.npz", "stats.npz exists and is not replaced"),
        ("inception", "stats.npy", "stats.npy: statistics are an .npz"),
        ("incepton", "new.npz", "evaluate.judges names no judge 'incepton'; did you mean 'inception'?"),
    ):
        with pytest.raises(UserError, match=re.escape(words)):
            statistics.write(judged, name, Path(target))
    assert Path("stats.npz").read_bytes() == content
    assert not Path("new.npz").exists()
    held = with_judge(judged, {"file": "weights.pth", "reference": "stats.npz"})
    bench, usual = measure.Bench(held, "teacher"), measure.Bench(judged, "teacher")
    plan = next(iter(measure.plan(bench)))
    (_, point), (_, whole) = bench.measure(plan), usual.measure(plan)
    assert "kid_inception" not in point.metrics
    assert point.metrics["fd_inception"].value == pytest.approx(whole.metrics["fd_inception"].value, rel=1e-9)
    assert point.judges == f"{whole.judges} against stats.npz {disk.sha256(Path('stats.npz'))[:12]}"
    with pytest.raises(UserError, match="differ in judges"):
        Frontier((point, replace(whole, name="other")), test_frontier.FLOOR, "d" * 64, test_frontier.JUDGE)


def test_without_a_judge_no_statistics_are_written(project):
    with pytest.raises(UserError, match="names no judge 'inception'; name it there with its file of weights"):
        statistics.write(project, "inception", Path("stats.npz"))


@pytest.mark.parametrize("held_out", [True, False])
def test_a_point_is_measured_as_the_file_says_and_says_so(held_out, project, monkeypatch):
    """Of each sampling: who is sampled and how, what it is compared with, and under which name each number stands."""
    if not held_out:
        shutil.rmtree(paths.HOLDOUT)
    clock, drawn, warmed = [100.0], [], []
    benches = [measure.Bench(project, name) for name in names(project)]
    plans = [(bench, plan) for bench in benches for plan in measure.plan(bench)]
    samples = torch.arange(12 * 16).reshape(12, 1, 4, 4) / 96 - 1

    def draws(sampler, *words):
        drawn.append((sampler, *words))
        words[5].add(30)
        clock[0] += 6.0
        return samples

    def warm(sampler, *words):
        warmed.append((sampler, *words))
        clock[0] += 1000.0

    monkeypatch.setattr(measure.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(measure.Sampler, "draw", draws)
    monkeypatch.setattr(measure.Sampler, "warm_up", warm)
    score = {"fd": Estimate(1.0, 0.1), "kid": Estimate(2.0, 0.2), "accuracy": Estimate(0.5, 0.05)}
    subjects = heard(monkeypatch, measure.measures, "measure", score)
    real, asked = load_resident(paths.DATA), load_resident(paths.HOLDOUT if held_out else paths.DATA)
    chosen, found = rng.some(4, len(asked), 19, "likelihood"), {}
    for bench, plan in plans:
        bench.teacher = samples + 1 if found else None
        for calls in (drawn, warmed, subjects):
            calls.clear()
        opened, cached = bench.opened, plan.recipe.deepcache is not None
        returned, point = bench.measure(plan)
        assert returned is samples
        (sampler, *words), made = drawn[0], plan.recipe.sampler(opened, plan.times, bench.gamma)
        assert words == [(1, 4, 4), 12, 3, 5, words[4], words[5], bench.headroom]
        known = plan.recipe.condition(opened, bench.prompts)
        for part in (
            lambda c: c.class_labels,
            lambda c: c.guidance,
            lambda c: c.negative and c.negative["class_labels"],
        ):
            one, other = part(words[4]), part(known)
            assert (one is None) == (other is None)
            assert one is None or one.tolist() == other.tolist()
        assert (sampler.trajectory, sampler.denoiser.grid) == (plan.times, opened.denoiser.grid)
        assert repr(sampler.solver) == repr(made.solver)
        assert type(sampler.denoiser) is type(made.denoiser)
        ((subject,),) = (call.words for call in subjects)
        assert subject.samples is samples
        assert (subject.teacher is None) == (bench.teacher is None)
        assert subject.teacher is None or torch.equal(subject.teacher, bench.teacher)
        assert (subject.reference, subject.features, subject.seed) == (bench.reference, bench.network, 3)
        assert torch.equal(subject.classes, bench.prompts[CLASS])
        assert torch.equal(subject.real_classes, real.labels)
        assert (subject.model is None) == cached
        if model := subject.model:
            assert (model.sampler.trajectory, model.seed, model.probes, model.batch) == (plan.times, 19, 2, 5)
            assert torch.equal(model.images, to_float(asked.pixels[chosen]))
            assert model.condition.class_labels.tolist() == asked.labels[chosen].tolist()
        found[plan.name] = vars(point), [words[1:3] for words in warmed]
        assert vars(point) == {
            "name": plan.name,
            "curve": plan.curve,
            "best": True,
            "method": plan.method,
            "checkpoint": plan.checkpoint,
            "sampler": plan.recipe.to_json()["sampler"],
            "trajectory": plan.trajectory,
            "recipe": json.dumps(plan.recipe.to_json(), sort_keys=True),
            "nfe": 2.5,
            "metrics": score,
            "ms_per_image": 500.0,
            "n": 12,
            "seed": 3,
            "weights": opened.card.weights,
            "features": bench.network.digest,
            "checkpoint_digest": opened.card.digest,
            "times": plan.times.times,
            "precision": "float32",
            "check": "",
            "judges": "",
            "halves": subject.halves,
            "halves_se": subject.halves_se,
            "crossfit": None,
            "trainings": None,
        }
    # once for a checkpoint and what is done to its network, each cache anew: in batches of 5 and 2
    warm_ones = [name for name, (_, sizes) in found.items() if sizes]
    assert all(sorted(sizes) == [((1, 4, 4), 2), ((1, 4, 4), 5)] for _, sizes in found.values() if sizes)
    assert warm_ones == [
        "teacher-ddim-uniform-3",
        "teacher-ddim-cache2b0-uniform-4",
        "teacher-ddim-g2-not-class1-uniform-2",
        "teacher-ddim-skip0.9to1-uniform-2",
        "v-ddim-uniform-3",
        "g-ddim-uniform-3",
        "pd-ddim",
    ]
    assert [call["checkpoint"] for call, _ in found.values()] == ["teacher"] * 6 + ["v"] * 2 + ["g"] * 2 + ["pd"]


def test_no_bits_are_asked_for_where_no_images_are(project, monkeypatch):
    none = dataclasses.replace(project.evaluate.likelihood, images=0)
    changed = dataclasses.replace(project, evaluate=dataclasses.replace(project.evaluate, likelihood=none))
    bench = measure.Bench(changed, "teacher")
    plan = next(plan for plan in measure.plan(bench) if plan.recipe.to_json()["sampler"] == "analytic")
    assert bench._model(plan, bench.sampler(plan)) is None


def few(project: params.Params) -> params.Params:
    """Two curves of the teacher, one of which tries a sweep, and a student."""
    samplings = project.evaluate.teacher
    sweep = dataclasses.replace(
        samplings[4], skip=[samplings[4].skip, dataclasses.replace(samplings[4].skip, bottom=0.5)]
    )
    changed = dataclasses.replace(project.evaluate, teacher=[samplings[0], sweep])
    return dataclasses.replace(project, evaluate=changed, distill={"pd": project.distill["pd"]})


def test_what_the_evaluation_writes_and_shows(project, monkeypatch, capsys):
    """The first samples of each point, of several tries the best beside the real images, and the table in three forms."""
    monkeypatch.setattr(measure, "SHOWN", 4)
    disk.write_summed(paths.CURVES / "pd.csv", "step,images,loss,grad_norm,lr\n1,4,0.5,1.0,0.001\n")
    drawn_grids, sheets = heard(monkeypatch, grids, "grid", ...), heard(monkeypatch, grids, "contact_sheet", ...)
    drawn, curves = heard(monkeypatch, charts, "frontier", None), heard(monkeypatch, charts, "curves", None)
    disk.write_sealed(paths.COST / "pd.json", {"seconds": 1.5})
    pages = heard(monkeypatch, page, "html_of", ...)
    chosen = heard(monkeypatch, frontier.Frontier, "recommend", ...)
    kept = heard(monkeypatch, measure.Kept, "clear_but", ...)
    measured = heard(monkeypatch, measure.Bench, "measure", ...)
    measure_all(few(project))
    table = json.loads(paths.FRONTIER.read_text())
    table.pop("seal")
    names = [point["name"] for point in table["points"]]
    sweep = ["teacher-ddim-skip0.9to1-uniform-2", "teacher-ddim-skip0.5to1-uniform-2"]
    assert names == ["teacher-ddim-uniform-3", "teacher-ddim-uniform-2", *sweep, "pd-ddim"]
    assert [call.words[1].name for call in drawn_grids] == [f"{name}.png" for name in names]
    shown = {name: grids.tiles(paths.SAMPLES / f"{name}.png") for name in names}
    for number, point in enumerate(table["points"]):
        assert shown[point["name"]].shape == (4, 4, 4, 1)
        assert ("rmse_teacher" in point["metrics"]) == (number > 0)
    (call,) = sheets
    best = [point["name"] for point in table["points"] if point["best"]]
    assert [label for label, _ in call.words[0]] == [*best, "real"]
    assert len(best) == 4
    assert all((images == shown[label]).all() for label, images in call.words[0][:-1])
    real = load_resident(paths.DATA).pixels[:4].permute(0, 2, 3, 1)
    assert call.words[0][-1][1].tolist() == real.tolist()
    assert {path.name for path in paths.SAMPLES.iterdir()} == {"all.png", *(f"{name}.png" for name in names)}
    written = Frontier.read(paths.FRONTIER, "x")
    assert [call.words for call in drawn] == [(written, paths.ARTIFACTS / "frontier.png")]
    of_curves = {"pd": "step,images,loss,grad_norm,lr\n1,4,0.5,1.0,0.001\n"}, paths.ARTIFACTS / "curves.png", {"pd": {}}
    assert [call.words for call in curves] == [of_curves]
    assert [call.words[1:] for call in chosen] == [(1.7,)]
    whole = pages[0].words[0]
    assert (whole.frontier, whole.bar) == (written, bar(written.points, written.floor, 1.7))
    assert set(whole.samples) == {*names, "real"}
    assert [(line.name, line.init, line.teacher, line.cost) for line in whole.lines] == [
        ("teacher", None, None, {}),
        ("pd", "teacher", "teacher", {"seconds": 1.5}),
    ]
    assert whole.curves == {"pd": (paths.CURVES / "pd.csv").read_text()}
    assert is_whole(paths.REPORT.read_text())
    assert (paths.ARTIFACTS / "frontier.csv").read_text() == chosen[0].words[0].to_csv()
    assert written == dataclasses.replace(chosen[0].words[0], recommended=chosen[0].words[0].recommend(1.7))
    quality = json.loads(paths.QUALITY.read_text())
    chosen_point = written.recommended.point
    assert quality["recommended"]["name"] == chosen_point.name
    assert quality["recommended"]["fd_se"] == chosen_point.fd_se
    assert quality["floor"] == {"fd": written.floor.fd, "fd_se": written.floor.fd_se}
    least = {who: min(p.fd for p in written.points if p.checkpoint == who) for who in ("teacher", "pd")}
    assert {who: numbers["fd"] for who, numbers in quality["checkpoints"].items()} == least
    assert table["about"]["data"] == checkpoints.read_card(paths.CHECKPOINTS / "teacher").data
    forgets = [call.words[0].folder.name for call in kept]
    assert forgets == [name for who in ("teacher", "pd") for name in (f"measure-{who}.points", "judges.courts")]
    said = capsys.readouterr().out.splitlines()
    lines = [line.split()[1:3] for line in said if line.startswith("measure  ") and "fd" in line]
    numbers = ["1/4", "2/4", "3/4", "4/4", "1/1"]
    assert lines == [[number, name] for number, name in zip(numbers, names)]
    assert said[-1] == "frontier: 5 points of 2 checkpoints; `distill report` prints them"
    assert len(measured) == 5
    # the first point's samples are what all are compared with, and all start from one noise
    first = measure.Measured(bench := measure.Bench(few(project), "teacher"), plans := list(measure.plan(bench)))
    first.point(plans[0])
    assert torch.equal(bench.teacher, measure.Bench(few(project), "pd").teacher)
    assert len(measured) == 5


def test_what_cannot_be_sampled_or_stands_there_twice_is_told_before_anything_is_measured(project, monkeypatch):
    measured = heard(monkeypatch, measure.Bench, "measure", None)
    samplings = [*project.evaluate.teacher, project.evaluate.teacher[1]]
    twice = dataclasses.replace(project, evaluate=dataclasses.replace(project.evaluate, teacher=samplings))
    with pytest.raises(UserError, match=r"evaluate names 'teacher-analytic-uniform-2' twice; leave one"):
        measure.measure(twice, "teacher")
    sampling = dataclasses.replace(project.evaluate.teacher[0], guidance=3.0)
    other = dataclasses.replace(project.evaluate, students={"g": [sampling]})
    with pytest.raises(UserError, match="guidance weight of 2 alone, not for 3"):
        measure.measure(dataclasses.replace(project, evaluate=other), "g")
    assert measured == []
    assert not paths.POINTS.exists()


# --- publish


def test_what_is_published_is_what_the_file_names_and_the_receipt_is_kept(project, monkeypatch, capsys):
    receipt = {"runs": {"a": "1", "b": "2"}, "tracking_uri": "sqlite:///here.db", "ui": "#"}
    calls = heard(monkeypatch, publishing, "publish", receipt)
    found = dataclasses.replace(project, publish=dataclasses.replace(project.publish, experiment="e", model="m"))
    publish.publish(found)
    assert [call.words for call in calls] == [(paths.ARTIFACTS, "e", "m", project.raw)]
    assert disk.read_sealed(paths.PUBLISHED, None, "x") == receipt
    assert capsys.readouterr().out == "publish: 2 runs in experiment 'e' at sqlite:///here.db\n"


# --- the whole pipeline in one command


@pytest.fixture
def steps(project, monkeypatch) -> list:
    """The order in which `run` does what it does, with DVC's exit codes taken from `codes`."""
    order = []
    for place, name in (
        (report.params, "read"),
        (report.dvc_environment, "check"),
        (report.dvc_files, "mend"),
        (report.dvc_files, "wait_for_others"),
        (report.dvc_files, "keep"),
        (report, "report"),
        (report.places, "of"),
    ):
        monkeypatch.setattr(place, name, lambda *_, n=name: order.append(n))

    @contextlib.contextmanager
    def alone():
        order.append("alone")
        yield
        order.append("others may")

    monkeypatch.setattr(report, "alone", alone)
    return order


@pytest.mark.parametrize(
    ("first", "again", "ends"), [(0, 0, 0), (0, 3, 3), (2, None, 2), (-15, None, 143), (-9, None, 137)]
)
def test_a_run_mends_first_keeps_afterwards_and_reports_only_what_is_whole(
    first, again, ends, steps, monkeypatch, capsys
):
    """Whatever ended DVC, what stands is kept, and the exit code tells it; nothing is published again after a failure."""
    monkeypatch.setattr(report.pipeline, "reproduce", lambda *_: steps.append("repro") or first)
    monkeypatch.setattr(report, "_published_again", lambda: steps.append("again") or again)
    assert report.run() == ends
    done = ["repro"] if first else ["repro", "again"]
    told = [] if ends else ["report"]
    assert steps == ["read", "alone", "check", "mend", "wait_for_others", "of", *done, "keep", "others may", *told]
    said = capsys.readouterr().out
    assert ("the same command goes on from there" in said) == bool(ends)
    assert (f"(exit {first or again})" in said) == bool(ends)


def test_dvc_is_started_with_its_words_and_the_surroundings_it_needs(project, monkeypatch):
    calls = heard(monkeypatch, report.subprocess, "run", SimpleNamespace(returncode=4))
    monkeypatch.setattr(report.dvc_environment, "of", lambda folder: {"MINE": str(folder), "THEIRS": "new"})
    monkeypatch.setenv("THEIRS", "old")
    monkeypatch.setenv("KEPT", "1")
    assert report._repro("--force", "x") == 4
    (call,) = calls
    assert call.words[0] == [report.sys.executable, "-m", "tasks.dvc_repro", "--force", "x"]
    found = call.named["env"]
    assert (found["MINE"], found["THEIRS"], found["KEPT"]) == (".", "new", "1")
    assert call.named["preexec_fn"] is report.parent.die_with_parent


def test_a_report_shows_the_table_the_recommendation_its_warnings_and_where_to_look(project, monkeypatch, capsys):
    card = checkpoints.read_card(paths.CHECKPOINTS / "v")
    point = SimpleNamespace(name="b", checkpoint="v", checkpoint_digest=card.digest)
    chosen = SimpleNamespace(point=point, reason="it is best", warnings=("one", "two"))
    with pytest.raises(UserError, match=r"frontier\.json is missing; run the pipeline first"):
        report.report()
    paths.FRONTIER.touch()
    shown = SimpleNamespace(table=lambda: "the table", recommended=chosen)
    read = heard(monkeypatch, report.Frontier, "read", shown)
    pictures_ = "pictures: artifacts/frontier.png, samples of every point: artifacts/samples/all.png"
    lines = ["the table", "recommended: b", "  it is best", "  warning: one", "  warning: two"]
    lines += ["  the checkpoint is artifacts/checkpoints/v", "", pictures_]
    lines += ["all on one page, for a browser: artifacts/report.html"]
    report.report()
    none = f"MLflow: nothing is published, there is no {paths.PUBLISHED}; run the stage `publish` again"
    assert capsys.readouterr().out.splitlines() == [*lines, none]
    assert [call.words for call in read] == [(paths.FRONTIER, paths.again("frontier"))]
    disk.write_sealed(paths.PUBLISHED, {"tracking_uri": "http://127.0.0.1:5", "ui": "#x"})
    report.report()
    assert capsys.readouterr().out.splitlines() == [*lines, "MLflow: http://127.0.0.1:5/#x"]


def test_nothing_is_published_again_where_nothing_was_or_another_s_address_is_asked(project, monkeypatch):
    calls = heard(monkeypatch, report, "_repro", 5)
    assert report._published_again() == 0
    disk.write_sealed(paths.PUBLISHED, {"tracking_uri": "http://127.0.0.1:5", "frontier": "1"})
    assert report._published_again() == 0
    assert calls == []


# --- lines that show long work moving


def test_progress_speaks_at_most_every_two_seconds_and_at_the_end(monkeypatch, capsys):
    """What a resumed run had done before counts as no speed; the time left is that of what is left."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    shown = progress.Progress("name", "it")
    told = []
    for at, done, note in ((1, 10, "a"), (4, 20, "b"), (5, 25, "c"), (6, 30, "d"), (6.5, 50, "e")):
        now[0] = 100.0 + at
        shown(done, 50, note)
        told.append(capsys.readouterr().out)
    assert told[0] == told[2] == ""
    assert told[1] == "name            20/50  b  2.5 it/s  12 s left\n"
    assert told[3] == "name            30/50  d  3.33 it/s  6 s left\n"
    assert told[4] == "name            50/50  e\n"


def test_the_stage_of_a_checkpoint_is_called_as_a_person_calls_it():
    assert (paths.train("pd4"), paths.measure("teachers")) == ("train pd4", "measure teachers")
    assert paths.again(paths.train("pd4")) == "run the stage `train pd4` again"
