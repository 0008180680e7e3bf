"""The stages that measure, on projects of a few tiny images whose networks nobody trained."""

import dataclasses
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from diffcore import checkpoints
from diffcore.core import disk
from diffcore.core.errors import UserError
from diffcore.core.shapes import CLASS
from diffcore.data.feed import to_float, to_uint8
from diffcore.data.manifest import Manifest
from diffcore.data.read import load_resident
from diffcore.denoisers.clipping import Threshold
from diffcore.denoisers.condition import of_classes
from diffcore.denoisers.network import NetDenoiser
from diffcore.metrics import bootstrap
from diffcore.metrics.estimate import Estimate
from diffcore.metrics.point import Point
from diffcore.noise.schedule import Cosine
from diffcore.noise.trajectory import Trajectory, karras, uniform
from diffcore.sampling.deepcache import Config as CacheConfig
from diffcore.sampling.recipe import Recipe
from diffcore.sampling.skip_tuning import Config as SkipConfig
from diffcore.sampling.solvers import SOLVERS
from diffcore.sampling.solvers.analytic import Analytic
from diffcore.search import fitted
from diffcore.search.gamma import estimate, pick
from tasks import features, frontier, gamma, measure, params, paths, search, sections, shard, workspace
from tasks.pictures import charts
from tests.conftest import ToyNet, labels_like
from tests.test_frontier import FLOOR, JUDGE
from tests.test_frontier import point as some_point
from tests.test_params import ROOT
from tests.test_unet import stirred

SHAPE = {"channels": [8], "layers": 1, "groups": 4}
FROM = {"init": "teacher", "teacher": "teacher"}
FITTED = {"points": 4, "images": 5, "batch": 2}
FIT = {"iterations": 1, "batch": 4, "lr": 1e-3, "ema": 0.9}
SAMPLINGS = {
    "teacher": [
        {"sampler": "ddim", "trajectory": ["uniform", "fitted"], "steps": [3, 2]},
        {"sampler": "analytic", "trajectory": "least_cost", "steps": [2]},
        {"sampler": "ddim", "trajectory": "uniform", "steps": [4], "deepcache": [{"interval": 2}, {"interval": 4}]},
    ],
    "any_time_students": [{"sampler": "multistep_consistency", "trajectory": "fitted", "steps": [2]}],
}
SMALL = {
    "compute": {"threads": 1},
    "features": {"channels": 8, "dimension": 4, "iterations": 2, "batch": 4},
    "teachers": {"teacher": {"network": SHAPE}},
    "distill": {
        "v": {"method": "denoising", **FROM, **FIT},
        "cd": {"method": "consistency", **FROM, "steps": 4, "target_ema": 0.5, "distance": "squared", **FIT},
    },
    "gamma": {"steps": 6, "images": 5, "batch": 7},
    "search": {"most": 3},
    "evaluate": {"images": 12, "batch": 5, "likelihood": {"images": 4}, "fitted": FITTED, **SAMPLINGS},
}  # fmt: skip


def pngs(folder, classes: int, count: int = 24) -> None:
    """Noise on a ramp that leans as the class says; in a flat folder if there are no classes."""
    rng = np.random.default_rng(0)
    for number in range(count):
        kind = number % max(classes, 1)
        tilt = np.add.outer(np.arange(4) * 20 * (kind + 1), np.arange(4) * 30)
        home = folder / (f"class{kind}" if classes else "")
        home.mkdir(parents=True, exist_ok=True)
        Image.fromarray((tilt + rng.integers(0, 60, (4, 4))).astype(np.uint8)).save(home / f"{number:02d}.png")


def make(folder, monkeypatch, classes: int, conditional: bool, **data) -> params.Params:
    """A project whose working directory is `folder`, up to its checkpoints."""
    monkeypatch.chdir(ROOT)
    raw = params.load_yaml(paths.PARAMS)
    data = {"source": f"folder:{folder / 'images'}", "labels": "folders" if classes else None, **data}
    for changes in (SMALL, {"data": data, "teachers": {"teacher": {"network": {"conditional": conditional}}}}):
        workspace._merge(raw, changes, "test")
    for name in ("dvc.yaml", "diffcore", "tasks"):
        (folder / name).symlink_to(ROOT / name)
    monkeypatch.chdir(folder)
    params.dump_yaml(json.loads(json.dumps(raw)), paths.PARAMS)
    pngs(folder / "images", classes)
    found = params.read()
    shard.shard(found)
    features.train(found)
    manifest = Manifest.read(paths.DATA)
    known = manifest.classes if conditional else None
    for number, name in enumerate(("teacher", *found.distill)):
        net = stirred(found.teachers["teacher"].network.config(manifest.shape, known and len(known)), seed=number)
        denoiser = NetDenoiser(net, Cosine(), classes=known and len(known))
        about = dict.fromkeys(("parent", "teacher")) | {"name": name, "weights": "ema", "solver": "ddim", "torch": "2"}
        method = "denoising" if name == "teacher" else found.raw["distill"][name]["method"]
        about |= {"method": method, "data": manifest.digest, "parameters": {}, "seed": 0, "code": "", "cost": {}}
        checkpoints.save(paths.CHECKPOINTS / name, denoiser, manifest.shape, about | {"classes": known and list(known)})
    gamma.estimate(found)
    search.find(found)
    refer(found, manifest.shape)
    return found


def refer(found: params.Params, shape) -> None:
    """Stands in for the teacher's own samples, which measuring it writes."""
    card = checkpoints.read_card(paths.CHECKPOINTS / "teacher")
    samples = torch.zeros(found.evaluate.images, *shape)
    measure.measured.write_reference(paths.REFERENCE / "teacher", card.digest, "first", samples)


def names(found: params.Params) -> list[str]:
    return [*found.teachers, *found.distill]


def measure_all(found: params.Params) -> None:
    """All stages that measure, and the one that merges."""
    for name in names(found):
        measure.measure(found, name)
    frontier.merge(found)


def up_to_frontier(folder, classes: int, conditional: bool, **data) -> params.Params:
    """`make`, then all of it measured with few resamples."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bootstrap, "RESAMPLES", 10)
        parameters = make(folder, patch, classes, conditional, **data)
        measure_all(parameters)
    return parameters


KINDS = {"no labels": (0, False), "classes nobody is told": (2, False), "one class": (1, True), "classes": (2, True)}


@pytest.fixture(params=KINDS)
def project(request, tmp_path, monkeypatch) -> params.Params:
    monkeypatch.setattr(bootstrap, "RESAMPLES", 10)
    return make(tmp_path, monkeypatch, *KINDS[request.param])


@pytest.mark.slow
def test_gamma_and_fitted_times_are_those_of_the_classes(project, monkeypatch):
    """What the stages wrote is what the mathematics says of images whose classes the network is told."""
    opened = checkpoints.load(paths.CHECKPOINTS / "teacher")
    images, config = load_resident(paths.DATA), project.gamma
    chosen = pick(len(images), config)
    known = {CLASS: images.labels[chosen]} if opened.denoiser.classes else {}
    found = estimate(opened.denoiser, to_float(images.pixels[chosen]), config, inputs=known)
    total = torch.tensor(json.loads(paths.GAMMA.read_text())["total"], dtype=torch.float64)
    torch.testing.assert_close(total, found.moments.total, rtol=1e-4, atol=0)
    fitting = project.evaluate.fitted
    drawn = labels_like(images.labels, fitting.images, fitting.seed) if opened.denoiser.classes else None
    condition = None if drawn is None else of_classes(drawn)
    told = []
    measured_ = fitted.hop_errors
    monkeypatch.setattr(
        fitted, "hop_errors", lambda *words, condition: told.append((*words, condition)) or measured_(*words)
    )
    for name in ("teacher", "v", "cd"):
        student = checkpoints.load(paths.CHECKPOINTS / name)
        hop_errors = measured_(student.denoiser, opened.denoiser, fitting, opened.shape, condition=condition)
        told.clear()
        bench = measure.Bench(project, name)
        bench.fitted  # noqa: B018  (which asks with the condition, and answers without it)
        monkeypatch.setattr(fitted, "hop_errors", measured_)
        assert measure.Bench(project, name).fitted == fitted.fit(hop_errors, fitting.late)
        monkeypatch.setattr(
            fitted, "hop_errors", lambda *words, condition: told.append((*words, condition)) or measured_(*words)
        )
        ((student, teacher, *_, asked),) = told
        assert (asked and asked.class_labels.tolist()) == (None if drawn is None else drawn.tolist())
        for meant, role in ((name, student), ("teacher", teacher)):
            weights = checkpoints.load(paths.CHECKPOINTS / meant).denoiser.net.state_dict()
            assert all(torch.equal(part, weights[key]) for key, part in role.net.state_dict().items())


@pytest.mark.slow
def test_every_point_is_measured_whatever_the_labels(project):
    benches = [measure.Bench(project, name) for name in names(project)]
    points = [bench.measure(each)[1] for bench in benches for each in measure.plan(bench)]
    assert {point.trajectory for point in points} == {"uniform", "fitted", "least_cost"}
    assert {point.checkpoint for point in points} == {"teacher", "v", "cd"}
    assert any("bits" in point.metrics for point in points)
    told = bool(benches[0].opened.card.classes) and benches[0].network.card.task == "classes"
    assert all(("accuracy" in point.metrics) == told for point in points)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("last", "told"),
    [(None, ""), (1e9, "  last 1e+09 lowers nothing"), (1e-9, "  last 1e-09 lowers the noise of one step")],
)
def test_whether_a_limit_on_the_last_noise_acts_is_told(plain, last, told):
    bench = measure.Bench(plain, "teacher")
    each = next(each for each in measure.plan(bench) if isinstance(each.recipe.solver, Analytic))
    solver = dataclasses.replace(each.recipe.solver, last=last)
    assert bench.noted(dataclasses.replace(each, recipe=dataclasses.replace(each.recipe, solver=solver))) == told


@pytest.fixture
def plain(tmp_path, monkeypatch) -> params.Params:
    """Two classes that nobody is told."""
    monkeypatch.setattr(bootstrap, "RESAMPLES", 10)
    return make(tmp_path, monkeypatch, 2, False)


# --- latency


class Clock:
    """Time as counted by network calls: the first with a network in a batch of its size costs a thousand."""

    def __init__(self, monkeypatch):
        self.now, self.calls, self.met = 0.0, 0, set()
        forward, clock = NetDenoiser.forward, self

        def slow(denoiser, x_t, t):
            kind = id(getattr(denoiser.net, "net", denoiser.net)), len(x_t)  # a cache wraps it anew in each run
            clock.now += 1 if kind in clock.met else 1000
            clock.calls += len(x_t)
            clock.met.add(kind)
            return forward(denoiser, x_t, t)

        monkeypatch.setattr(NetDenoiser, "forward", slow)
        monkeypatch.setattr(measure.time, "perf_counter", lambda: clock.now)


@pytest.mark.slow
def test_latency_holds_no_first_call_and_a_warm_up_is_two_calls(plain, monkeypatch):
    """12 samples in batches of 5, 5 and 2: three calls a step, after two of 5 and two of 2 for each checkpoint or cache."""
    monkeypatch.setattr(measure.Bench, "_model", lambda *_: None)
    benches = [measure.Bench(plain, name) for name in names(plain)]
    plans = [(bench, each) for bench in benches for each in measure.plan(bench)]
    clock = Clock(monkeypatch)
    warm, steps = 0, 0
    for bench, each in plans:
        before = clock.calls
        _, point = bench.measure(each)
        calls = point.ms_per_image * 12 / 1000
        assert calls == 3 * each.times.steps
        steps += 12 * each.times.steps
        warm += clock.calls - before - 12 * each.times.steps
    caches = sum(each.recipe.deepcache is not None for _, each in plans)
    assert warm == (3 + caches) * 2 * (5 + 2)


# --- killed and started again


class Killed(Exception):
    """Stands in for kill -9: nothing that follows is done."""


def die_after(monkeypatch, points: int) -> None:
    real = measure.Bench.measure

    def counted(bench, plan):
        nonlocal points
        if points == 0:
            raise Killed
        points -= 1
        return real(bench, plan)

    monkeypatch.setattr(measure.Bench, "measure", counted)


def result() -> tuple[dict, dict[str, bytes]]:
    """What the stage wrote, but for times."""
    table = json.loads(paths.FRONTIER.read_text())
    table.pop("seal")
    return timeless(table), {path.name: path.read_bytes() for path in paths.SAMPLES.iterdir()}


def timeless(table: dict) -> dict:
    return {**table, "points": [{**point, "ms_per_image": 0.0} for point in table["points"]]}


@pytest.fixture
def no_picture(monkeypatch):
    monkeypatch.setattr(charts, "frontier", lambda *_: None)
    monkeypatch.setattr(charts, "curves", lambda *_: None)


@pytest.mark.slow
def test_a_killed_measurement_goes_on_where_it_was(plain, no_picture, monkeypatch, capsys):
    with monkeypatch.context() as patched:
        die_after(patched, 3)
        with pytest.raises(Killed):
            measure_all(plain)
    assert not paths.POINTS.exists()
    first = {path.name for path in (paths.RESUME / "measure-teacher.points").glob("*.json")}
    assert len(first) == 3
    capsys.readouterr()
    count = {name: len(list(measure.plan(measure.Bench(plain, name)))) for name in names(plain)}
    with monkeypatch.context() as patched:
        die_after(patched, sum(count.values()) - 3)  # no point is measured twice
        measure_all(plain)
    assert f"measure teacher: 3 of {count['teacher']} points are measured already\n" in capsys.readouterr().out
    resumed = result()
    for name in names(plain):
        shutil.rmtree(paths.RESUME / f"measure-{name}.points")
    measure_all(plain)
    assert result() == resumed


@pytest.mark.slow
def test_a_point_is_measured_once(plain, no_picture, monkeypatch, capsys):
    """With a sampling more, or one less, it is those that are left; what nobody asks for any more is forgotten."""
    measure_all(plain)
    before = result()
    with monkeypatch.context() as patched:
        die_after(patched, 0)
        measure_all(plain)
        assert result() == before
        less = change(plain, teacher=plain.evaluate.teacher[:1])
        measure.measure(less, "teacher")
    kept = list((paths.RESUME / "measure-teacher.points").glob("*.json"))
    assert len(kept) == len(list(measure.plan(measure.Bench(less, "teacher"))))
    with monkeypatch.context() as patched:
        die_after(patched, 1)
        measure.measure(
            change(less, teacher=[*less.evaluate.teacher, sections.Sampling("unipc", "uniform", [2])]), "teacher"
        )


@pytest.mark.slow
def test_points_of_checkpoints_that_were_measured_with_other_things_are_no_frontier(plain, no_picture):
    measure_all(plain)
    other = change(plain, seed=9)
    measure.measure(other, "teacher")
    with pytest.raises(
        UserError, match=r"points/v was measured with another teacher than .*points/teacher; run .*`measure v`"
    ):
        frontier.merge(other)
    shutil.rmtree(paths.POINTS / "cd")
    with pytest.raises(UserError, match="run the stage `measure cd`"):
        frontier.merge(plain)


COMMON = {"data": "d", "real": "r", "gamma": "g", "teacher": "t"}


def write_points(name: str, **changes: str) -> None:
    """Points of a checkpoint that was measured with what all share, but for `changes`."""
    is_root = name in ("teacher", "second")
    value = {"about": COMMON | changes} | ({"floor": FLOOR.to_json(), "judge": vars(JUDGE)} if is_root else {})
    measure.measured.write(paths.POINTS / name, value, [some_point(name, 4, 1.0)], {name: torch.zeros(1, 2, 2, 1)})


@pytest.mark.parametrize("key", COMMON)
def test_what_points_are_measured_with_is_one_on_a_frontier_but_for_a_teacher_s_own_samples(key, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("teacher", "second", "student"):
        write_points(name)
    found, shown = frontier._read(["teacher", "second", "student"])
    assert [each.name for each in found.points] == list(shown) == ["teacher", "second", "student"]
    for name in ("student", "second"):
        write_points(name, **{key: "another"})
        if (name, key) == ("second", "teacher"):
            assert len(frontier._read(["teacher", "second"])[0].points) == 2
            continue
        told = f"points/{name} was measured with another {key} than .*points/teacher; run .*`measure {name}`"
        with pytest.raises(UserError, match=told):
            frontier._read(["teacher", name])


def test_a_student_is_compared_with_the_samples_of_the_teacher_there_is(plain):
    samples = torch.randn(12, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    digest = checkpoints.read_card(paths.CHECKPOINTS / "teacher").digest
    measure.measured.write_reference(paths.REFERENCE / "teacher", digest, "first", samples)
    bench = measure.Bench(plain, "v")
    assert torch.equal(bench.teacher, samples)
    drawn, point = bench.measure(next(measure.plan(bench)))
    apart = (drawn - samples).flatten(1).square().mean(1).mean().sqrt()
    assert point.metrics["rmse_teacher"].value == pytest.approx(float(apart), rel=1e-4)
    measure.measured.write_reference(paths.REFERENCE / "teacher", "another", "first", samples)
    with pytest.raises(UserError, match="holds samples of another checkpoint; run the stage `measure teacher` again"):
        measure.Bench(plain, "v")


def test_another_teacher_has_no_fidelity_for_its_own_samples_are_not_what_the_column_compares_with(plain, no_picture):
    shutil.copytree(paths.CHECKPOINTS / "teacher", paths.CHECKPOINTS / "second")
    both = dataclasses.replace(plain, teachers=plain.teachers | {"second": plain.teachers["teacher"]})
    both = change(both, teacher=[dataclasses.replace(plain.evaluate.teacher[0], trajectory="uniform", steps=(4, 2))])
    for name, expected in (("teacher", [False, True]), ("second", [False, False])):
        measure.measure(both, name)
        points = measure.measured.read(paths.POINTS / name, "x")[1]
        assert ["rmse_teacher" in point.metrics for point in points] == expected


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["json", "safetensors"])
def test_a_damaged_point_is_told_and_measured_again(plain, no_picture, monkeypatch, capsys, damage):
    with monkeypatch.context() as patched:
        die_after(patched, 2)
        with pytest.raises(Killed):
            measure_all(plain)
    for path in (paths.RESUME / "measure-teacher.points").glob(f"*.{damage}"):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    capsys.readouterr()
    measure.measure(plain, "teacher")
    told = capsys.readouterr().out
    assert told.count("; it is worked out again") == 2
    assert "measured already" not in told


@pytest.mark.slow
@pytest.mark.parametrize("name", ["points.json", "points.safetensors"])
def test_damaged_points_are_named_and_so_is_the_stage_that_makes_them(plain, no_picture, name):
    measure_all(plain)
    path = paths.POINTS / "v" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="`measure v`"):
        frontier.merge(plain)


@pytest.mark.slow
def test_another_tolerance_measures_nothing(plain, no_picture, monkeypatch):
    measure_all(plain)
    monkeypatch.setattr(measure, "measure", lambda *_: pytest.fail("measured"))
    before = json.loads(paths.FRONTIER.read_text())
    generous = dataclasses.replace(plain, publish=dataclasses.replace(plain.publish, tolerance=1e6))
    frontier.merge(generous)
    after = json.loads(paths.FRONTIER.read_text())
    assert after["points"] == before["points"]
    nfe = {point["name"]: point["nfe"] for point in after["points"]}
    assert nfe[after["recommended"]["name"]] == min(nfe.values())


def change(params_: params.Params, **evaluate_: object) -> params.Params:
    raw = params_.raw | {"evaluate": params_.raw["evaluate"] | evaluate_}
    return dataclasses.replace(params_, evaluate=dataclasses.replace(params_.evaluate, **evaluate_), raw=raw)


def test_the_first_point_is_the_first_way_s_with_the_most_steps(plain):
    """It is what fidelity compares with."""
    sampling = dataclasses.replace(plain.evaluate.teacher[0], trajectory="uniform", steps=(2, 8, 4))
    changed = change(plain, teacher=[sampling])
    plans = list(measure.plan(measure.Bench(changed, "teacher")))
    assert [each.times.steps for each in plans] == [8, 4, 2]


@pytest.mark.slow
def test_points_of_another_job_are_not_taken(plain, no_picture, monkeypatch, capsys):
    """Of other images, seeds or code; and with another point to compare with none is left."""
    with monkeypatch.context() as patched:
        die_after(patched, 3)
        with pytest.raises(Killed):
            measure.measure(plain, "teacher")

    def found(job: params.Params) -> int:
        bench = measure.Bench(job, "teacher")
        return len(measure.Measured(bench, list(measure.plan(bench))).saved)

    assert found(plain) == 3
    for other in ({"images": 13}, {"seed": 1}, {"batch": 4}):
        assert found(change(plain, **other)) == 0
    threads = dataclasses.replace(plain, compute=dataclasses.replace(plain.compute, threads=2))
    assert found(threads) == 0
    turned = change(plain, teacher=plain.evaluate.teacher[::-1])
    assert found(turned) == 0
    monkeypatch.setattr(measure.graph, "code_digest", lambda stage: "other code")
    assert found(plain) == 0


def test_a_killed_gamma_goes_on_where_it_was(plain, monkeypatch, capsys):
    """Broken off after its third batch of seven, with everything kept at once: the same bytes."""
    whole = paths.GAMMA.read_bytes()
    impatient = dataclasses.replace(plain, compute=dataclasses.replace(plain.compute, save_seconds=1e-9))
    shown = gamma.Progress.__call__

    def stop(progress, done, total, note=""):
        shown(progress, done, total, note)
        if done == 21:
            raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(gamma.Progress, "__call__", stop)
        with pytest.raises(Killed):
            gamma.estimate(impatient)
    (kept,) = (paths.RESUME / "gamma.sums").glob("*.json")
    assert json.loads(kept.read_text())["value"] == {"pairs": 14}
    paths.GAMMA.unlink()
    capsys.readouterr()
    gamma.estimate(plain)
    assert "gamma: goes on after 14 of 30 calls\n" in capsys.readouterr().out
    assert paths.GAMMA.read_bytes() == whole
    assert not (paths.RESUME / "gamma.sums").exists()


def test_what_was_kept_of_a_gamma_is_kept_until_its_file_is_written(plain, monkeypatch, capsys):
    """A full disk at the very end costs nothing but what had not been kept."""
    whole = paths.GAMMA.read_bytes()
    impatient = dataclasses.replace(plain, compute=dataclasses.replace(plain.compute, save_seconds=1e-9))
    write = disk.write_sealed

    def full(path, value):
        if path == paths.GAMMA:
            raise OSError(28, "No space left")
        write(path, value)

    with monkeypatch.context() as patched:
        patched.setattr(disk, "write_sealed", full)
        with pytest.raises(OSError, match="No space left"):
            gamma.estimate(impatient)
    capsys.readouterr()
    gamma.estimate(plain)
    assert "gamma: goes on after " in capsys.readouterr().out
    assert paths.GAMMA.read_bytes() == whole


@pytest.mark.slow
@pytest.mark.parametrize(("points", "most"), [(2, 6), (3, 1)])
def test_the_fewest_times_and_the_most_nodes_that_the_file_may_ask_for_are_searched(points, most, plain):
    """Of 6 times of gamma 6 nodes; fitted times of 2 points, the fewest that are."""
    search.find(dataclasses.replace(plain, search=dataclasses.replace(plain.search, most=most)))
    found = json.loads(paths.TRAJECTORY.read_text())
    assert list(found["nodes"]) == [str(k) for k in range(1, most + 1)]
    few = change(plain, fitted=dataclasses.replace(plain.evaluate.fitted, points=points))
    assert all(list(measure.Bench(few, name).fitted) == list(range(1, points + 1)) for name in names(few))


@pytest.mark.parametrize("damage", ["changed", "cut", "gone", "empty"])
@pytest.mark.parametrize(("name", "stage"), [("v", "train v"), ("teacher", "train teacher")])
def test_a_damaged_training_curve_is_named_and_so_is_the_stage_that_makes_it(
    name, stage, damage, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for each in ("teacher", "v"):
        disk.write_summed(paths.CURVES / f"{each}.csv", "step,images,loss\n1,4,0.5\n2,8,0.25\n")
    path = paths.CURVES / f"{name}.csv"
    assert set(frontier.curves()) == {"teacher", "v"}
    whole = path.read_bytes()
    path.unlink()
    if damage == "empty":
        disk.write_summed(path, "")
    elif damage != "gone":
        path.write_bytes(whole[:-3] if damage == "cut" else whole.replace(b"0.25", b"0.35"))
    with pytest.raises(UserError, match=rf"{name}\.csv.*`{stage}`"):
        frontier.curves()


# --- data larger than memory, and images held out


@pytest.mark.slow
def test_data_that_do_not_fit_into_memory_are_measured_alike(plain, no_picture, monkeypatch):
    measure_all(plain)
    whole, made = result(), (paths.GAMMA.read_bytes(), (paths.FEATURES / "card.json").read_bytes())
    streamed = dataclasses.replace(plain, compute=dataclasses.replace(plain.compute, memory_gb=1e-9))
    monkeypatch.setattr("diffcore.data.read.load_resident", lambda *_: pytest.fail("everything was loaded"))
    features.train(streamed)
    gamma.estimate(streamed)
    assert (paths.GAMMA.read_bytes(), (paths.FEATURES / "card.json").read_bytes()) == made
    measure_all(streamed)
    assert result() == whole


@pytest.mark.slow
def test_images_held_out_are_what_floor_bits_and_gamma_are_of(tmp_path, no_picture, monkeypatch):
    monkeypatch.setattr(bootstrap, "RESAMPLES", 10)
    found = make(tmp_path, monkeypatch, 2, True, split={"holdout": 0.4})
    held, real = (load_resident(folder) for folder in (paths.HOLDOUT, paths.DATA))
    assert 5 <= len(held) == 24 - len(real)
    told = []
    for module, name in ((measure.likelihood, "estimate"), (gamma.gamma, "estimate")):
        measured_ = getattr(module, name)
        spy = lambda *words, m=measured_, **named: told.append(words[1]) or m(*words, **named)  # noqa: E731
        monkeypatch.setattr(module, name, spy)
    judged = []
    monkeypatch.setattr(features.features, "train", lambda images, *_: judged.append(images) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        features.train(found)
    assert torch.equal(judged[0].pixels, real.pixels)  # what judges has seen none of those held out
    gamma.estimate(found)
    search.find(found)
    measure_all(found)
    assert len(told) > 1
    known = {tuple(row) for row in to_float(held.pixels).flatten(1).tolist()}
    assert all({tuple(row) for row in images.flatten(1).tolist()} <= known for images in told)
    table = json.loads(paths.FRONTIER.read_text())
    assert table["floor"]["real"] == "held-out"
    assert table["floor"]["compared"] == [len(held), len(real)]
    assert table["floor"]["n"] == [12, len(real)]


# --- what a kept point is keyed by, and what is kept of it


def planned(**changes) -> measure.Plan:
    facts = {"name": "n", "curve": "w", "checkpoint": "v", "method": "m", "trajectory": "uniform"}
    return measure.Plan(**{**facts, "recipe": Recipe(SOLVERS["ddim"]()), "times": uniform(2), **changes})


def fake_bench(samples=None, **changes) -> SimpleNamespace:
    """What `Measured` asks of a bench, whose points are numbered as they are measured."""
    facts = {
        "checkpoint": "c",
        "gamma": "g",
        "real": "r",
        "config": {},
        "threads": 1,
        "device": "cpu",
        "teacher": None,
        "judged": "",
        "trainings": (),
        "texts": None,
        **changes,
    }
    config = {
        "images": 12,
        "seed": 3,
        "batch": 5,
        "likelihood": {"images": 4, "seed": 7},
        "teacher": [],
        **facts["config"],
    }
    card = SimpleNamespace(digest=facts["checkpoint"])
    bench = SimpleNamespace(
        params=SimpleNamespace(
            raw={"evaluate": config},
            compute=SimpleNamespace(threads=facts["threads"], device=torch.device(facts["device"])),
        ),
        opened=SimpleNamespace(card=card),
        texts=None if facts["texts"] is None else SimpleNamespace(digest=facts["texts"]),
        name="v",
        gamma=SimpleNamespace(to_json=lambda: facts["gamma"]),
        reference=SimpleNamespace(digest=facts["real"]),
        teacher=facts["teacher"],
        judged=facts["judged"],
        others=[SimpleNamespace(card=SimpleNamespace(digest=digest)) for digest in facts["trainings"]],
        asked=[],
    )
    bench.gamma_digest = measure.Bench.gamma_digest.func(bench)
    bench.about = lambda plan: measure.Bench.about(bench, plan)

    def measured_(plan):
        bench.asked.append(plan.name)
        point = Point(
            nfe=1.5,
            metrics=dict.fromkeys(("fd", "kid", "fd_pixels"), Estimate(1.5, 1.5)),
            **dict.fromkeys(("recipe", "sampler", "weights", "features", "checkpoint_digest"), "x"),
            **{key: getattr(plan, key) for key in ("name", "curve", "method", "checkpoint", "trajectory")},
            **{"best": True, "ms_per_image": 2.0, "n": 12, "seed": 3, "times": plan.times.times},
        )
        return samples + len(bench.asked), point

    bench.measure = measured_
    return bench


OTHER_JOBS = {
    "name": {"name": "other"},
    "curve": {"curve": "other"},
    "checkpoint": {"checkpoint": "teacher"},
    "method": {"method": "other"},
    "trajectory": {"trajectory": "karras"},
    "sampler": {"recipe": Recipe(SOLVERS["unipc"]())},
    "guidance": {"recipe": Recipe(SOLVERS["ddim"](), guidance=2.0)},
    "times": {"times": Trajectory((1.0, 0.25, 0.0))},
}
OTHER_BENCHES = {
    "weights": {"checkpoint": "other"},
    "gamma": {"gamma": "other"},
    "real": {"real": "other"},
    "judges": {"judged": "inception 0123"},
    "trainings": {"trainings": ("second",)},
    "another training": {"trainings": ("third",)},
    "captions": {"texts": "t"},
    "other captions": {"texts": "u"},
    "threads": {"threads": 2},
    "device": {"device": "cuda"},
    "compared with": {"teacher": torch.ones(3)},
    "images": {"config": {"images": 13}},
    "seed": {"config": {"seed": 4}},
    "batch": {"config": {"batch": 6}},
    "precision": {"config": {"precision": "bf16"}},
    "likelihood": {"config": {"likelihood": {"images": 4, "seed": 8}}},
}


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(measure.graph, "code_digest", lambda stage: f"the code of {stage}")


def keyed(bench: SimpleNamespace, plan: measure.Plan, first: measure.Plan | None = None) -> str:
    return disk.digest(measure.Measured(bench, [first or planned(name="first"), plan])._job(plan))


def test_a_kept_point_is_keyed_by_all_that_its_numbers_depend_on(elsewhere, monkeypatch):
    """Each alone makes another key; samplings that others are sampled by do not."""
    usual = keyed(fake_bench(), planned())
    keys = {name: keyed(fake_bench(), planned(**change)) for name, change in OTHER_JOBS.items()}
    keys |= {name: keyed(fake_bench(**change), planned()) for name, change in OTHER_BENCHES.items()}
    keys["the first point"] = keyed(fake_bench(), planned(), planned(name="another"))
    monkeypatch.setattr(measure.graph, "code_digest", lambda stage: f"other code of {stage}")
    keys["code"] = keyed(fake_bench(), planned())
    assert len({usual, *keys.values()}) == len(keys) + 1
    monkeypatch.setattr(measure.graph, "code_digest", lambda stage: f"the code of {stage}")
    assert (
        keyed(fake_bench(config={"teacher": [1], "any_time_students": [2], "students": {"v": []}}), planned()) == usual
    )
    monkeypatch.setattr(measure.graph, "code_digest", lambda stage: "x" if stage == "measure" else 1 / 0)
    assert keyed(fake_bench(), planned()) != usual


def test_a_kept_point_is_the_point_and_the_first_one_s_samples_are_compared_with(elsewhere, capsys):
    """After a kill as well: the same point, the same first images, and the samples of the first sampling alone are kept."""
    samples = torch.arange(20 * 8).reshape(20, 2, 2, 2) / 100 - 0.9
    plans = [planned(name=name, times=uniform(2)) for name in ("first", "second", "third")]
    bench = fake_bench(samples)
    measured_ = measure.Measured(bench, plans)
    made = [measured_.point(plan) for plan in plans[:2]]
    assert torch.equal(bench.teacher, samples + 1)
    for number, (_, shown) in enumerate(made):
        assert shown.tolist() == to_uint8(samples[:16] + 1 + number).permute(0, 2, 3, 1).tolist()
    sizes = sorted(path.stat().st_size for path in (paths.RESUME / "measure-v.points").glob("*.safetensors"))
    assert sizes[1] - sizes[0] > samples.numel() * 4 - 200
    again = fake_bench(samples)
    capsys.readouterr()
    resumed = measure.Measured(again, plans)
    assert capsys.readouterr().out == "measure v: 2 of 3 points are measured already\n"
    for plan, (point, shown) in zip(plans, made):
        found, first = resumed.point(plan)
        assert found == point
        assert first.tolist() == shown.tolist()
    assert torch.equal(again.teacher, samples + 1)
    assert again.asked == []
    assert resumed.point(plans[2])[0].name == "third"
    assert again.asked == ["third"]


# --- which points there are, and what they are called


def opened_as(method: str, grid=None, **sampling) -> checkpoints.Checkpoint:
    """With only those facts on its card that a plan asks for."""
    card = object.__new__(checkpoints.Card)
    vars(card).update(method=method, parameters={"sampling": sampling})
    return checkpoints.Checkpoint(card, NetDenoiser(ToyNet(), Cosine(), grid=grid))


def bench_of(name: str, opened: checkpoints.Checkpoint, **facts) -> SimpleNamespace:
    """With only those facts that a plan asks for."""
    bench = SimpleNamespace(name=name, opened=opened, is_root=name == "teacher", **facts)
    bench.times = lambda kind, steps: measure.Bench.times(bench, kind, steps)
    return bench


CACHES = [CacheConfig(2), CacheConfig(3, 1, "quadratic", 4.0, 2.0)]
NAMED = [
    (sections.Sampling("ddim", "uniform", [2, 8]), ["ddim-uniform-8", "ddim-uniform-2"], "ddim uniform"),
    (sections.Sampling("ddim", ["karras", "uniform"], [4]), ["ddim-karras-4", "ddim-uniform-4"], "ddim best grid"),
    (
        sections.Sampling("ddim", "uniform", [2], {"eta": 1 / 3}),
        ["ddim-eta0.333333-uniform-2"],
        "ddim eta0.333333 uniform",
    ),
    (sections.Sampling("dpmpp_2m", "uniform", [2]), ["dpmpp-2m-uniform-2"], "dpmpp_2m uniform"),
    (
        sections.Sampling("ddim", "uniform", [4], deepcache=CACHES),
        ["ddim-cache2b0-uniform-4", "ddim-cache3b1c4p2-uniform-4"],
        "ddim deepcache uniform",
    ),
    (
        sections.Sampling("ddim", "uniform", [4], deepcache=CACHES[0]),
        ["ddim-cache2b0-uniform-4"],
        "ddim cache2b0 uniform",
    ),
    (
        sections.Sampling("ddim", "uniform", [4], skip=SkipConfig(0.8, 1.1)),
        ["ddim-skip0.8to1.1-uniform-4"],
        "ddim skip0.8to1.1 uniform",
    ),
    (
        sections.Sampling("ddim", "uniform", [4], skip=[SkipConfig(0.8)]),
        ["ddim-skip0.8to1-uniform-4"],
        "ddim skip uniform",
    ),
    (sections.Sampling("ddim", "uniform", [4], clip=1.5), ["ddim-clip1.5-uniform-4"], "ddim clip1.5 uniform"),
    (sections.Sampling("ddim", "uniform", [4], clip=False), ["ddim-unclipped-uniform-4"], "ddim unclipped uniform"),
    (
        sections.Sampling("ddim", "uniform", [4], threshold=Threshold(0.9, 1.5)),
        ["ddim-threshold0.9to1.5-uniform-4"],
        "ddim threshold0.9to1.5 uniform",
    ),
    (
        sections.Sampling("ddim", "uniform", [4], guidance=2.5, negative="an odd/one"),
        ["ddim-g2.5-not-an-odd-one-uniform-4"],
        "ddim g2.5 not-an-odd-one uniform",
    ),
]


@pytest.mark.parametrize(("sampling", "names", "curve"), NAMED)
def test_a_point_is_called_by_all_that_it_is_sampled_with_and_its_curve_by_all_but_what_is_tried(
    sampling, names, curve
):
    found = list(measure._points(bench_of("v", opened_as("guided")), sampling, usual=False))
    assert [plan.name for plan in found] == [f"v-{name}" for name in names]
    assert {plan.curve for plan in found} == {f"guided {curve}"}
    assert {(plan.checkpoint, plan.method) for plan in found} == {("v", "guided")}
    usual = measure._points(bench_of("v", opened_as("guided")), sampling, usual=True)
    assert {plan.curve for plan in usual} == {"guided"}
    teacher = next(measure._points(bench_of("teacher", opened_as("denoising")), sampling, usual=False))
    assert (teacher.method, teacher.curve) == ("teacher", f"teacher {curve}")


def test_two_weights_are_two_curves_and_a_limit_of_an_adopted_teacher_s_own_is_named():
    two = sections.Sampling("ddim", "uniform", [4], guidance=[1.0, 2.0])
    plans = measure._points(bench_of("v", opened_as("m")), two, usual=False)
    assert [plan.curve for plan in plans] == ["m ddim g1 uniform", "m ddim g2 uniform"]
    theirs = opened_as("adopted", clip=1.0)
    (plan,) = measure._points(bench_of("teacher", theirs), sections.Sampling("ddim", "uniform", [4]), usual=False)
    assert (plan.name, plan.curve, plan.recipe.clip) == (
        "teacher-ddim-clip1-uniform-4",
        "teacher ddim clip1 uniform",
        1.0,
    )


def test_times_are_those_of_their_kind_for_their_checkpoint():
    least_cost = {"nodes": {"2": [30, 100]}, "about": {"steps": 100}}
    bench = bench_of("v", opened_as("m"), least_cost=least_cost, fitted={2: Trajectory((1.0, 0.7, 0.0))})
    assert bench.times("karras", 3) == karras(3, Cosine())
    assert bench.times("fitted", 2).times == (1.0, 0.7, 0.0)
    assert bench.times("least_cost", 2).times == (1.0, 0.3, 0.0)
    for kind, told in (
        ("fitted", "no fitted trajectory of 3 steps; raise evaluate.fitted.points to 3"),
        ("least_cost", "no least_cost trajectory of 3 steps; raise search.most to at least 3"),
    ):
        with pytest.raises(UserError, match=told):
            bench.times(kind, 3)
    own = bench_of("pd", opened_as("pd", uniform(4)))
    (plan,) = measure._points(own, sections.Sampling("ddim", "own"), usual=True)
    assert (plan.name, plan.curve, plan.trajectory, plan.times) == ("pd-ddim", "pd", "own", uniform(4))


def test_students_are_sampled_by_their_own_ways_or_as_all_are_and_called_so(monkeypatch):
    """One with steps of its own is on its method's curve, unless it has samplings of its own."""
    samplings = {
        "pd": sections.Sampling("ddim", "own"),
        "cd": sections.Sampling("multistep_consistency", "uniform", [2, 1]),
        "own": sections.Sampling("ddim", "own"),
    }
    samplings["teacher"] = sections.Sampling("ddim", "uniform", [1, 4])
    monkeypatch.setattr(measure, "samplings_of", lambda name, asked, lines: [("path", samplings[name])])
    asked = SimpleNamespace(students={"own": [samplings["own"]]})
    opened = {"teacher": opened_as("denoising"), "cd": opened_as("consistency")}
    opened |= {name: opened_as("progressive", uniform(4)) for name in ("pd", "own")}
    told = SimpleNamespace(evaluate=asked, lines=None)
    found = [
        plan
        for name in ("teacher", "pd", "cd", "own")
        for plan in measure.plan(bench_of(name, opened[name], params=told))
    ]
    assert [(plan.name, plan.curve) for plan in found] == [
        ("teacher-ddim-uniform-4", "teacher ddim uniform"),
        ("teacher-ddim-uniform-1", "teacher ddim uniform"),
        ("pd-ddim", "progressive"),
        ("cd-multistep-consistency-uniform-2", "consistency multistep_consistency uniform"),
        ("cd-multistep-consistency-uniform-1", "consistency multistep_consistency uniform"),
        ("own-ddim", "progressive ddim"),
    ]
