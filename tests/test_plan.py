"""`distill plan` and `distill cost`: what is counted, what is calibrated, and how stages share the slots."""

import dataclasses
import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from diffcore import methods
from diffcore.core import disk
from diffcore.core.errors import UserError
from diffcore.data import read
from diffcore.denoisers.network import NetDenoiser
from diffcore.metrics import bootstrap, judge_trial, judges, measured
from diffcore.metrics.judge import BATCH, Judge
from diffcore.sampling.deepcache import Config as CacheConfig
from diffcore.sampling.recipe import Recipe
from diffcore.sampling.solvers import SOLVERS
from tasks import calibration, command, measure, params, paths, places, plan, train
from tasks.calibration import Networks
from tasks.plan import Cost, Plan
from tasks.planned_data import planned_data
from tests.test_judges import Flat
from tests.test_measure import up_to_frontier
from tests.test_programs import Means, scripted


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("project")
    return folder, up_to_frontier(folder, 2, True)


@pytest.fixture
def here(project, monkeypatch) -> params.Params:
    monkeypatch.chdir(project[0])
    monkeypatch.setattr(calibration, "ENOUGH_SECONDS", 0.0)
    return project[1]


# ------------------------------------------------------------------------------- what is counted


@pytest.mark.slow
def test_the_calls_of_every_point_are_those_that_measuring_counted(here):
    for name in here.lines:
        points = measured.read(paths.POINTS / name, "")[1]
        planned = list(plan._points(here, name))
        assert len(planned) == len(points)
        whole = sorted(point.nfe for point in points if "cache" not in point.name)
        rest = sorted(planned)
        for calls in whole:
            rest.remove(calls)
        assert len(rest) == sum("cache" in point.name for point in points)


def test_a_cached_call_costs_its_share_and_a_guided_one_twice(here):
    cached = Recipe(SOLVERS["ddim"](), deepcache=CacheConfig(4))
    assert plan._calls(cached, 16, here, "teacher") == 4 + plan.CACHED * 12
    assert plan._calls(Recipe(SOLVERS["ddim"](), guidance=2.0), 16, here, "teacher") == 32


def test_a_network_is_timed_with_what_it_is_told_and_nothing_else(here, tmp_path):
    data = dataclasses.replace(planned_data(here), classes=tuple("01"), inputs={"text": (4, 8), "text_mask": (4,)})
    own = Networks(here, data, tmp_path).roles("teacher")[0]

    def named(**told) -> set[str]:
        return set(data.of(NetDenoiser(own.net, own.schedule, own.reading, **told)).known(3))

    assert named() == set()
    assert named(classes=2) == {"class_labels"}
    assert named(nothing={"text": None, "text_mask": None}) == {"text", "text_mask"}


def test_an_update_counts_the_calls_that_its_method_says_and_the_state_holds_all_it_reads(here, tmp_path):
    networks = Networks(here, planned_data(here), tmp_path)
    for name in here.lines:
        line = here.line(name)
        outcome = calibration.training(here, networks, name, 1)
        assert outcome["calls"] == line.method.network_calls * line.fit.batch, name
        numbers = sum(part.numel() for part in networks.roles(name)[0].net.parameters())
        copies = 4 + bool(line.method.target_decay)  # the network, its average, two moments, and the target's
        assert outcome["state"] >= 4 * copies * numbers
        assert outcome["state"] <= 4 * copies * numbers * 1.05 + 2**16  # names and places of the tensors, the curve
        assert outcome["seconds"] > 0


def test_lines_that_differ_in_numbers_alone_are_tried_once(here):
    raw = json.loads(json.dumps(here.raw))
    raw["distill"]["w"] = raw["distill"]["v"] | {"iterations": 7, "lr": 0.5}
    raw["distill"]["x"] = raw["distill"]["v"] | {"batch": 6}
    more = params.parse(raw, "test")
    kinds = {name: calibration.kind_of(more, name) for name in more.lines}
    assert kinds["v"] == kinds["w"] != kinds["x"]
    assert len({kinds["v"], kinds["x"], kinds["cd"], kinds["teacher"]}) == 4


def test_what_forks_measure_comes_back_and_one_that_dies_is_one_line():
    outcome = calibration.forked(lambda: {"seconds": 2.0}, 2)
    assert outcome["seconds"] == 2.0
    assert outcome["bytes"] > 10**7
    with pytest.raises(UserError, match="as where memory is short; set accumulate or a smaller batch"):
        calibration.forked(lambda: __import__("os")._exit(9), 1)


def test_nothing_computes_with_several_threads_before_it_is_forked(here, monkeypatch):
    """A fork of a process whose threads have computed waits for them for ever."""
    several = dataclasses.replace(here, compute=dataclasses.replace(here.compute, threads=2))
    seen = []

    def measured(*words) -> dict[str, float]:
        seen.append(torch.get_num_threads())
        return {"seconds": 0.0, "calls": 0.0, "state": 0, "bytes": 0}

    monkeypatch.setattr(calibration, "measured", measured)
    torch.set_num_threads(2)
    calibration.calibrate(several, 1, ["teacher", "v"])
    assert set(seen) == {1}


def test_what_trains_the_feature_network_takes_no_more_than_what_measures_too(here):
    outcome = calibration.forked(lambda: calibration.judging(here, planned_data(here)), 1)
    assert 10**7 < outcome["trained_bytes"] <= outcome["bytes"]


def test_images_that_nobody_has_counted_are_refused(here, monkeypatch, tmp_path):
    monkeypatch.setattr(paths, "DATA", tmp_path / "none")
    with pytest.raises(UserError, match="run `distill shard` first"):
        planned_data(here)
    digits = dataclasses.replace(here, data=dataclasses.replace(here.data, source="digits", labels=None))
    assert planned_data(digits).images == 1797


# ------------------------------------------------------------------------------- looks


@pytest.fixture
def watched(project, here, tmp_path, monkeypatch) -> Callable[..., params.Params]:
    """In a copy: the parameters where `v`, `cd` and `pd`, which is trained twice, are watched."""
    shutil.copytree(project[0], tmp_path / "copy", symlinks=True)
    monkeypatch.chdir(tmp_path / "copy")
    monkeypatch.setattr(bootstrap, "RESAMPLES", 10)

    def change(**watch) -> params.Params:
        raw = json.loads(json.dumps(here.raw))
        raw["distill"]["pd"] = raw["distill"]["v"] | {"method": "progressive", "steps": 2, "seeds": 2}
        for name in ("v", "cd", "pd"):
            raw["distill"][name] |= {"iterations": 5, "watch": {"every": 2, "images": 12, **watch}}
        raw["distill"]["v"]["watch"]["steps"] = 3
        return params.parse(raw, "test")

    return change


def planned(parameters: params.Params, *names: str) -> dict[str, Cost]:
    """Of the trainings of these lines, in this order."""
    calibrated = calibration.calibrate(parameters, 1, list(names))
    slots, todo = places.of(Path(), parameters, 1), {f"distill@{name}": stage() for name in names}
    costs = {
        each: plan._training(each, each[8:], parameters, calibrated["lines"][each[8:]], 1.0, slots) for each in todo
    }
    return {**costs, **plan._looked_by(costs, parameters, calibrated, todo)}


@pytest.mark.slow
@pytest.mark.usefixtures("without_shape_checks")
@pytest.mark.parametrize("keep", ["last", "best"])
@pytest.mark.parametrize(("name", "each"), {"v": 3, "cd": 1, "pd": 2 * 2}.items())
def test_the_calls_of_a_watched_training_are_those_that_it_counted(name, each, keep, watched, capsys):
    """Of 5 updates the second, the fourth and the last are looked at, in the steps of the watch (`v`), in one jump (`cd`), in
    the method's own two, twice (`pd`)."""
    parameters = watched(keep=keep, patience=None)
    cost = planned(parameters, name)[f"distill@{name}"]
    train.train(parameters, name)
    spent = disk.read_sealed(paths.COST / f"{name}.json", None, "")
    assert spent["watch_calls"] == 3 * 12 * each
    assert cost.calls == spent["network_calls"] + spent["watch_calls"]
    disk.write_sealed(plan.KEPT, Plan((cost,), (), 1, 1.0).to_json())
    capsys.readouterr()
    plan.cost(parameters)
    line = capsys.readouterr().out.splitlines()[-1].split()
    assert line[0] == name
    assert line[3] == line[4] == f"{cost.calls:.6g}"


@pytest.mark.slow
def test_a_watch_takes_seconds_for_its_looks_and_disk_for_its_best_state(watched):
    line = {"seconds": 2.0, "calls": 8.0, "state": 100, "bytes": 7, "checkpoint": 10, "call": 0.5}
    line |= {"read": 30.0, "once": 40.0, "look_calls": 24}
    parameters = watched()
    slots = places.of(Path(), parameters, 1)
    cost = plan._training("distill@v", "v", parameters, line, 1.0, slots)
    assert (cost.calls, cost.begin) == (5 * 8 + 3 * 24, 1 + 40)
    assert cost.seconds == 1 + 40 + 5 * 2 + 3 * (30 + 24 * 0.5)
    assert [plan._share(images, 2) for images in (12, 500, 750)] == [1, 1 / 2, 2 / 3]
    tried = {keep: calibration.calibrate(watched(keep=keep), 1, ["v"])["lines"]["v"] for keep in ("last", "best")}
    network = Networks(parameters, planned_data(parameters), Path("networks")).roles("v")[0].net
    more, weights = tried["best"]["state"] - tried["last"]["state"], sum(each.numel() for each in network.parameters())
    assert 4 * weights <= more <= 4 * weights * 1.05 + 2**14


def test_the_first_watched_training_trains_the_feature_network_unless_it_is_kept(watched):
    parameters, costs = (
        watched(),
        {name: Cost(name, 20.0, 1, 4 * 10**8, 0, begin=3.0) for name in ("distill@v", "distill@cd")},
    )
    todo = {"distill@cd": stage("distill@v"), "distill@v": stage()}
    judging = {"rest": 5.0, "update": 0.5, "trained_bytes": 5 * 10**8}
    outcome = plan._looked_by(costs, parameters, {"has_network": False, "judging": judging}, todo)
    seconds = 5 + 0.5 * parameters.features.iterations
    assert outcome == {"distill@v": Cost("distill@v", 20 + seconds, 1, 5 * 10**8, 0, begin=3 + seconds)}
    assert plan._looked_by(costs, parameters, {"has_network": True}, todo) == {}
    assert not calibration._has_network(parameters)
    train.train(parameters, "v")
    assert calibration._has_network(parameters)
    other = dataclasses.replace(parameters, features=dataclasses.replace(parameters.features, iterations=3))
    assert not calibration._has_network(other)


# ------------------------------------------------------------------------------- judges

JUDGED = {
    **{"image": 0.5, "point": 3.0, "once": 7.0, "look": 1000.0},
    **{"kept": 10**6, "more": 10**5, "bytes": 9 * 10**8},
}
"""Of all judges, as the calibration has it."""


def test_judges_cost_a_look_at_each_sample_and_one_at_the_real_images(here):
    """The first stage that measures looks at the real images; those that wait for it find what was seen."""
    todo = {"measure_teachers@teacher": stage("gamma"), "measure@v": stage("distill@v", "measure_teachers@teacher")}
    calibration = {"base": 2 * 10**8, "judges": JUDGED}
    for name, look in (("measure_teachers@teacher", 1), ("measure@v", 0)):
        before = Cost(name, 20.0, 64.0, 4 * 10**8, 5)
        after = plan._judged(before, here, calibration, todo)
        points = len(list(plan._points(here, name.partition("@")[2])))
        assert after.seconds == 20 + 7 + points * (3 + 0.5 * here.evaluate.images) + look * 1000
        assert after.disk == 5 + look * 10**6
        assert after.bytes == 4 * 10**8 + 7 * 10**8 + 10**5
        assert after.calls == before.calls
    del todo["measure_teachers@teacher"]
    assert plan._judged(before, here, calibration, todo).disk == 5 + 10**6
    assert plan._judged(before, here, {"judges": None}, todo) == before


class Slow(Flat):
    """Takes a second an image."""

    def __init__(self):
        super().__init__()
        self.now = 0.0

    def forward(self, images: Tensor) -> Tensor:
        self.now += len(images)
        return super().forward(images)


@pytest.mark.usefixtures("without_shape_checks")
def test_a_trial_asks_the_network_for_a_look_and_not_for_every_sample(monkeypatch):
    slow = Slow()
    outcome = judge_trial.trial(Judge("slow", slow, "5" * 64, "none"), (3, 4, 4), 5000, 300, None, lambda: slow.now)
    assert (outcome.image, outcome.point, outcome.once) == (1.0, 0.0, 0.0)
    assert slow.now == 2 * BATCH
    assert outcome.kept == 8 * 48 * (300 + 48 + 1)  # of each image 48 features, and their mean and scatter
    assert outcome.more == 2 * 8 * 48 * 3000
    assert outcome.court.rows.shape == (300, 48)
    assert outcome.court.rows.std() == pytest.approx(1, abs=0.05)
    ticks = iter([0.0, 8.0, 10.0, 12.0])  # the first point works out what the court keeps
    monkeypatch.setattr(judge_trial, "looking", lambda *words: (0.25, 48))
    outcome = judge_trial.trial(Judge("slow", slow, "5" * 64, "none"), (3, 4, 4), 5000, 300, None, lambda: next(ticks))
    assert (outcome.image, outcome.point, outcome.once) == (0.25, 2 * 5000 / 2000, 6.0)


def test_what_judges_saw_of_the_real_images_is_not_looked_at_again(here, monkeypatch, tmp_path):
    monkeypatch.setattr(judge_trial, "ENOUGH_SECONDS", 0.0)
    monkeypatch.setattr(paths, "RESUME", tmp_path / ".resume")
    mine = {
        "file": str(scripted(Means(), tmp_path / "mine.pt")),
        "size": 16,
        "mean": [0.5],
        "std": [0.5],
        "trusted": True,
    }
    judged = params.parse(here.raw | {"evaluate": here.raw["evaluate"] | {"judges": {"mine": mine}}}, "test")
    data = planned_data(judged)
    outcome = calibration.judged(judged, data)
    assert outcome["look"] == pytest.approx(outcome["image"] * data.images)
    assert outcome["kept"] == 8 * 2 * (data.images + 2 + 1)
    assert min(outcome["image"], outcome["point"]) > 0
    seen = judges.load("mine", judged.evaluate.judge_files["mine"])
    measure.courts(judged, "test").court(seen, read.open_images(paths.DATA, 10**9))
    again = calibration.judged(judged, data)
    assert (again["look"], again["kept"]) == (0, 0)
    assert again["image"] > 0
    tried = calibration.calibrate(judged, 1, ["v"])
    assert tried["judges"].keys() == outcome.keys() | {"bytes"}


# ------------------------------------------------------------------------------- slots, memory, disk


def stage(*after: str) -> SimpleNamespace:
    return SimpleNamespace(after=after)


def costs(**seconds: float) -> dict[str, Cost]:
    return {name: Cost(name, each, 0, 0, 0) for name, each in seconds.items()}


@pytest.mark.parametrize(("slots", "wall"), [(1, 10.0), (2, 8.0), (3, 8.0)])
def test_stages_share_the_slots(slots, wall):
    """a, then b and c at once, then d."""
    todo = {"a": stage(), "b": stage("a"), "c": stage("a"), "d": stage("b", "c")}
    assert plan._wall(todo, costs(a=1.0, b=2.0, c=3.0, d=4.0), slots) == wall


def test_a_stage_of_two_slots_waits_for_both():
    todo = {"a": stage(), "b": stage()}
    both = costs(a=2.0, b=3.0)
    assert plan._wall(todo, both, 2) == 3.0
    both["b"] = dataclasses.replace(both["b"], width=2)
    assert plan._wall(todo, both, 2) == 5.0


def test_what_is_cached_is_not_waited_for():
    assert plan._wall({"b": stage("a")}, costs(b=2.0), 1) == 2.0


def test_where_memory_or_disk_does_not_suffice_it_is_said_what_would(monkeypatch):
    monkeypatch.setattr(plan.psutil, "virtual_memory", lambda: SimpleNamespace(available=10**9))
    monkeypatch.setattr(plan.psutil, "disk_usage", lambda path: SimpleNamespace(free=10**6))
    few = {"a": Cost("a", 1, 0, 6 * 10**8, 0), "b": Cost("b", 1, 0, 7 * 10**8, 0)}
    assert list(plan._warnings(few, 2)) == ["2 stages at a time need 1.3 GB of memory and 1 GB are free; --slots 1"]
    (line,) = plan._warnings({"a": Cost("a", 1, 0, 3 * 10**9, 0)}, 2)
    assert line.startswith("a needs 3 GB of memory and 1 GB are free; accumulate: 8 of its line, a smaller batch")
    (line,) = plan._warnings({"a": Cost("a", 1, 0, 1, 2 * 10**6)}, 2)
    assert line == "2 MB are needed on the disk and 1 MB are free; free some first"
    assert list(plan._warnings({"a": Cost("a", 1, 0, 1, 1)}, 2)) == []


# ------------------------------------------------------------------------------- as a person sees it

PLAN = Plan(
    (Cost("distill@v", 15.5, 640.0, 4 * 10**8, 10**6, begin=3.5), Cost("teachers@teacher", 30.0, 1000.0, 10**8, 10, 2)),
    ("shard",),
    2,
    42.0,
)


def test_the_plan_is_kept_and_the_cost_stands_beside_it(here, monkeypatch, capsys):
    monkeypatch.setattr(plan, "plan_of", lambda parameters: PLAN)
    plan.show(here, as_json=True)
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(PLAN.to_json()))
    assert PLAN.seconds == 75.5
    plan.show(here)
    text = capsys.readouterr().out
    assert "30 x 2" in text
    assert "2 stages, 2 at a time: about 42 s, 76 s of computing, 1 MB on the disk" in text
    disk.write_sealed(paths.COST / "v.json", {"seconds": 11.04, "network_calls": 640.0})
    plan.cost(here)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["seconds", "planned", "network", "calls", "planned"]
    assert [line.split() for line in lines[1:]] == [["v", "11.0", "12.0", "640", "640"]]
    (paths.COST / "v.json").unlink()
    with pytest.raises(UserError, match="nothing is trained yet"):
        plan.cost(here)


def test_where_all_is_cached_nothing_is_tried(here, monkeypatch, capsys):
    graph = {"shard": stage(), "gamma": stage("shard")}
    monkeypatch.setattr(plan.stages, "stale", lambda folder: (graph, set()))
    monkeypatch.setattr(plan, "calibrated", lambda *words: pytest.fail("nothing would run"))
    plan.show(here)
    assert capsys.readouterr().out == "all 2 stages are cached; nothing would run\n"


@pytest.mark.parametrize(
    ("script", "words"),
    {
        "print('warning', file=e); print('error: set accumulate', file=e); sys.exit(2)": "set accumulate",
        "1/0": "the calibration failed: ZeroDivisionError: division by zero",
        "sys.exit(1)": "the calibration failed: it said nothing",
        "os.kill(os.getpid(), 9)": "the calibration was ended by SIGKILL, as where memory is short; set accumulate or a "
        "smaller batch, or end what else takes memory",
    }.items(),
    ids=["a mistake", "a fault", "silent", "killed"],
)
def test_a_calibration_that_fails_is_one_line(script, words, here, monkeypatch, capsys, tmp_path):
    instead(script, monkeypatch, tmp_path)
    with pytest.raises(UserError, match=f"^{re.escape(words)}$"):
        plan.calibrated(1, ["v"])
    assert capsys.readouterr().err == "trying v\n"


def test_a_calibration_says_what_it_tries_and_what_it_says_at_length_is_read(here, monkeypatch, capsys, tmp_path):
    instead("print('x', file=e); print('[' + '1, ' * 10**5 + '1]')", monkeypatch, tmp_path)
    assert len(plan.calibrated(1, ["v"])) == 10**5 + 1
    assert capsys.readouterr().err == "trying v\n"


def instead(script: str, monkeypatch, tmp_path) -> None:
    """Runs a script in the calibration's place, which says at first that it tries something."""
    python = tmp_path / "python"
    python.write_text(
        f"#!{sys.executable}\nimport os, sys\ne = sys.stderr\nprint('trying v', file=e, flush=True)\n{script}\n"
    )
    python.chmod(0o755)
    monkeypatch.setattr(plan.sys, "executable", str(python))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of a library below DVC
def test_a_whole_plan_of_a_fresh_workspace(tmp_path, monkeypatch, capsys):
    from tests.test_params import ROOT

    monkeypatch.chdir(ROOT)
    assert command.main(["workspace", str(tmp_path / "w"), "--preset", "smoke"]) == 0
    monkeypatch.chdir(tmp_path / "w")
    capsys.readouterr()
    assert command.main(["plan", "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    parameters = params.read()
    planned = {each["name"]: each for each in value["stages"]}
    for name, line in {**parameters.teachers, **parameters.distill}.items():
        kind = "teachers" if name in parameters.teachers else "distill"
        each = line.method.network_calls
        if (
            methods.word(line.method) == "distribution_matching"
        ):  # its critic generates, and learns of it, twice an update
            each += line.method.critic_updates * (line.method.steps + 3.5)
        wanted = each * line.fit.batch * line.fit.iterations
        assert planned[f"{kind}@{name}"]["calls"] == pytest.approx(wanted), methods.word(line.method)
    assert 0 < value["wall"] <= sum(each["seconds"] for each in value["stages"])
    assert disk.read_sealed(plan.KEPT, None, "")["wall"] == value["wall"]
