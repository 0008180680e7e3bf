"""A line that is trained several times: the first training is the line's, the others say how far trainings lie apart."""

import csv
import dataclasses
import io
import json
import os
import shutil
import signal
from pathlib import Path

import pytest

from diffcore import checkpoints
from diffcore.core import disk
from diffcore.core.errors import UserError
from diffcore.metrics import bootstrap, measured
from diffcore.metrics.frontier import Frontier
from diffcore.metrics.point import Point
from diffcore.noise.trajectory import Trajectory
from diffcore.training import loop
from tasks import gamma, measure, params, paths, search, train
from tasks.params import Params
from tasks.pictures import charts
from tasks.plan import _training
from tasks.tracking.models import _shippable
from tasks.tracking.run_specs import _numbers
from tests import test_frontier
from tests.test_measure import make

UPDATES = 3


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A project whose consistency student has a few updates; its folder and its parameters."""
    with pytest.MonkeyPatch.context() as patch:
        home = tmp_path_factory.mktemp("seeds")
        parameters = make(home, patch, 0, False)
        yield home, parameters


KINDS = ("cd", "teacher")
"""A student and a teacher that is trained here."""


def lines(parameters: Params, name: str = "cd", **changes) -> Params:
    """The same project with other keys in one line."""
    section = "teachers" if name in parameters.raw["teachers"] else "distill"
    line = {**parameters.raw[section][name], "iterations": UPDATES, **changes}
    raw = {**parameters.raw, section: {**parameters.raw[section], name: line}}
    raw["compute"] = {**raw["compute"], "save_seconds": 0.001}
    return params.parse(raw, "test")


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def the_line_s(files: dict[str, bytes]) -> dict[str, bytes]:
    return {name: content for name, content in files.items() if not name.startswith("seeds/")}


@pytest.mark.parametrize("path", ["distill.cd", "teachers.teacher"])
@pytest.mark.parametrize("value", [0, -1, "x", 2.5, True, [1], None])
def test_what_is_no_number_of_trainings_is_refused(value, path, finished):
    with pytest.raises(UserError) as refused:
        lines(finished[1], path.split(".")[1], seeds=value)
    assert str(refused.value) == (
        f"test: {path}.seeds: how often the line is trained, a whole number of at least 1, got {value!r}"
    )


@pytest.mark.parametrize("path", ["distill.cd", "teachers.teacher"])
def test_too_many_trainings_are_refused(path, finished):
    with pytest.raises(UserError, match=rf"{path}.seeds: 101 is more than 100: each of them is a training"):
        lines(finished[1], path.split(".")[1], seeds=101)


def test_an_adopted_teacher_has_no_training_to_repeat(finished):
    raw = json.loads(json.dumps(finished[1].raw))
    raw["teachers"]["other"] = {"from": "somewhere", "seeds": 3}
    with pytest.raises(
        UserError, match=r"teachers.other: give from or the numbers of a training, not both; leave out seeds"
    ):
        params.parse(raw, "test")


@pytest.mark.parametrize("name", KINDS)
def test_a_line_without_seeds_is_trained_once(name, finished):
    assert finished[1].trainings(name) == 1
    assert lines(finished[1], name, seeds=3).trainings(name) == 3


@pytest.fixture(params=KINDS)
def once(request, project):
    """A line that is trained once: its name, its files, its curve and its cost."""
    name = request.param
    train.train(lines(project, name), name)
    cost = disk.read_sealed(paths.COST / f"{name}.json", None, "x")
    outcome = name, tree(paths.CHECKPOINTS / name), (paths.CURVES / f"{name}.csv").read_bytes(), cost
    shutil.rmtree(paths.RESUME)
    return outcome


@pytest.mark.slow
def test_the_first_training_is_that_of_a_line_without_seeds_to_the_byte(project, once):
    name, files, curve, _ = once
    train.train(lines(project, name, seeds=3), name)
    assert the_line_s(tree(paths.CHECKPOINTS / name)) == files
    assert (paths.CURVES / f"{name}.csv").read_bytes() == curve
    cards = [checkpoints.load(paths.training(name, number)).card for number in range(3)]
    assert len({card.digest for card in cards}) == 3
    parent = None if name == "teacher" else checkpoints.load(paths.CHECKPOINTS / "teacher").card.digest
    for number, card in enumerate(cards[1:], start=1):
        assert (card.name, card.parent, card.parameters["training"]) == (name, parent, number)
        assert "seeds" not in card.parameters
        rows = disk.read_summed(paths.training(name, number) / "curve.csv", "x")
        assert len(rows.splitlines()) == len(curve.splitlines())
        assert rows != curve.decode()


def test_a_teacher_s_trainings_begin_with_weights_of_their_own(project, monkeypatch):
    begun = []
    monkeypatch.setattr(train, "_train", lambda name, job, _, params, others: begun.extend([job, *others]))
    train.train(lines(project, "teacher", seeds=3), "teacher")
    assert [job.number for job in begun] == [0, 1, 2]
    assert len({next(job.student.net.parameters()).flatten()[0].item() for job in begun}) == 3


def test_the_cost_is_the_sum_and_lists_each(project, once):
    name, _, _, of_one = once
    train.train(lines(project, name, seeds=3), name)
    cost = disk.read_sealed(paths.COST / f"{name}.json", None, "x")
    assert [each["iterations"] for each in cost["seeds"]] == [UPDATES] * 3
    for key in ("iterations", "images", "network_calls"):
        assert cost[key] == sum(each[key] for each in cost["seeds"]) == 3 * of_one[key]
    assert cost["seconds"] == pytest.approx(sum(each["seconds"] for each in cost["seeds"]), abs=0.051)
    assert "seeds" not in of_one


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_a_kill_in_the_third_training_costs_no_update_of_the_first_two(name, project, monkeypatch, capfd):
    """kill -9 after the second update of the third training; the same command then makes its last one, and the same bytes."""
    several = lines(project, name, seeds=3)
    train.train(several, name)
    whole = tree(paths.CHECKPOINTS / name)
    shutil.rmtree(paths.RESUME)
    shutil.rmtree(paths.CHECKPOINTS / name)
    update, steps = loop.Loop.update, []

    def counted(self):
        steps.append(self.step)
        if len(steps) == 2 * UPDATES + 3:  # the state of the second update is saved
            os.kill(os.getpid(), signal.SIGKILL)
        return update(self)

    monkeypatch.setattr(loop.Loop, "update", counted)
    if (child := os.fork()) == 0:
        train.train(several, name)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert not (paths.CHECKPOINTS / name).exists()
    assert steps == []
    train.train(several, name)
    assert steps == [UPDATES - 1]
    output = capfd.readouterr().out
    for label, updates in ((name, UPDATES), (f"{name}.1", UPDATES), (f"{name}.2", UPDATES - 1)):
        assert f"{label}: goes on after {updates} of {UPDATES} updates" in output
    again = tree(paths.CHECKPOINTS / name)
    assert {name: content for name, content in again.items() if not name.endswith("card.json")} == {
        name: content for name, content in whole.items() if not name.endswith("card.json")
    }
    assert again["card.json"] == whole["card.json"]


def test_a_line_that_was_trained_once_is_not_trained_again_for_seeds(project, monkeypatch):
    train.train(lines(project), "cd")
    update, steps = loop.Loop.update, []
    monkeypatch.setattr(loop.Loop, "update", lambda self: steps.append(self.step) or update(self))
    train.train(lines(project, seeds=2), "cd")
    assert len(steps) == UPDATES


def test_every_training_is_watched_where_one_is(project):
    watched = lines(project, seeds=2, watch={"every": 2, "images": 12})
    train.train(watched, "cd")
    curves = [paths.CURVES / "cd.csv", paths.training("cd", 1) / "curve.csv"]
    seen = [[row["fd"] for row in csv.DictReader(io.StringIO(path.read_text())) if row["fd"]] for path in curves]
    assert [len(each) for each in seen] == [2, 2]
    assert seen[0] != seen[1]
    assert checkpoints.load(paths.training("cd", 1)).card.watch is not None


# --- measured


def points(name: str = "cd") -> list[Point]:
    return measured.read(paths.POINTS / name, "x")[1]


@pytest.mark.slow
def test_each_training_of_a_teacher_is_measured_at_its_points(project):
    several = lines(project, "teacher", seeds=3)
    train.train(several, "teacher")
    gamma.estimate(several)
    search.find(several)
    measure.measure(several, "teacher")
    many = points("teacher")
    assert len(many) > 1
    for point in many:
        assert point.trainings[0] == point.fd
        assert len(set(point.trainings)) == 3


def test_each_training_is_measured_as_the_line_is(project, monkeypatch):
    several = lines(project, seeds=3)
    train.train(several, "cd")
    measure.measure(several, "cd")
    (point,) = points()
    assert point.trainings[0] == point.fd
    assert len(set(point.trainings)) == 3
    # the third in the line's own place, at the times that were fitted to the first
    shutil.copytree(paths.training("cd", 2), "other")
    shutil.rmtree(paths.CHECKPOINTS / "cd")
    Path("other").rename(paths.CHECKPOINTS / "cd")
    monkeypatch.setattr(measure.Bench, "times", lambda *_: Trajectory(point.times))
    measure.measure(lines(project), "cd")
    (alone,) = points()
    assert alone.trainings is None
    assert alone.fd == point.trainings[2]


def test_a_training_that_is_not_there_is_named(project):
    train.train(lines(project), "cd")
    with pytest.raises(UserError, match=r"checkpoints/cd/seeds/1 is missing; run the stage `train cd` again"):
        measure.measure(lines(project, seeds=2), "cd")


def test_a_point_of_other_trainings_is_measured_again(project, capsys):
    train.train(lines(project, seeds=2), "cd")
    measure.measure(lines(project), "cd")
    first = points()[0]
    measure.measure(lines(project, seeds=2), "cd")
    second = points()[0]
    assert (first.trainings, second.trainings[0], second.metrics) == (None, first.fd, first.metrics)
    assert "measured already" not in capsys.readouterr().out


# --- reported

SPREAD = test_frontier.point("pd1", 1, 1.3, fd_se=0.05, trainings=(1.3, 1.5, 1.55))


def with_spread(*others: Point) -> Frontier:
    whole = test_frontier.frontier(test_frontier.teacher(64, 1.0), SPREAD, *others)
    return dataclasses.replace(whole, recommended=whole.recommend(1.5))


def test_a_row_has_the_mean_and_the_standard_deviation_over_trainings():
    whole = with_spread(test_frontier.point("pd2", 2, 1.2))
    rows = {row["name"]: row for row in csv.DictReader(io.StringIO(whole.to_csv()))}
    assert float(rows["pd1"]["fd_trainings"]) == pytest.approx(1.45)
    assert float(rows["pd1"]["fd_trainings_sd"]) == pytest.approx((0.0175) ** 0.5)  # (0.15^2 + 0.05^2 + 0.1^2) / 2
    assert rows["pd1"]["trainings"] == "3"
    assert float(rows["pd1"]["fd"]) == 1.3
    assert [rows["pd2"][key] for key in ("fd_trainings", "fd_trainings_sd", "trainings")] == [""] * 3
    assert Frontier.from_json(json.loads(json.dumps(whole.to_json()))) == whole


def test_it_is_said_where_trainings_lie_further_apart_than_the_error_says():
    near = test_frontier.point("pd2", 2, 1.2, fd_se=0.2, trainings=(1.2, 1.3))
    words = " ".join(with_spread(near).table().split())
    assert (
        "trainings lie further apart than the error over samples, mean and standard deviation of fd: "
        "pd1 1.45+-0.13 of 3 where +- is 0.05" in words
    )
    assert "pd2 1.25" not in words
    assert "trainings lie" not in test_frontier.DIGITS.table()


def test_the_recommendation_and_mlflow_say_it_too():
    assert with_spread().recommended.reason.endswith(
        " Over 3 trainings its fd is 1.45 in the mean with standard deviation 0.13."
    )
    numbers = _numbers(SPREAD)
    assert (numbers["fd_trainings"], numbers["fd_trainings_sd"]) == (SPREAD.spread.value, SPREAD.spread.se)
    assert "fd_trainings" not in _numbers(test_frontier.point("pd2", 2, 1.2))


def test_the_picture_has_a_whisker_of_its_own(tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(charts, "_save", lambda figure, path: drawn.update({path.name: figure}))
    alone = dataclasses.replace(SPREAD, trainings=None)
    for name, point in (("with", SPREAD), ("without", alone)):
        whole = test_frontier.frontier(test_frontier.teacher(64, 1.0), point)
        charts.frontier(dataclasses.replace(whole, recommended=whole.recommend(1.5)), tmp_path / name)
    texts = {
        name: [text.get_text().replace("\n", " ") for text in figure.axes[0].get_legend().get_texts()]
        for name, figure in drawn.items()
    }
    assert [text for text in texts["with"] if text not in texts["without"]] == ["mean and deviation over trainings"]
    (whisker,) = [
        each
        for each in drawn["with"].axes[0].collections
        if len(each.get_linewidth()) == 1 and each.get_linewidth()[0] == 5
    ]
    ((low, high),) = [path.vertices[:, 1] for path in whisker.get_paths()]
    assert (low + high) / 2 == pytest.approx(SPREAD.spread.value)
    assert (high - low) / 2 == pytest.approx(SPREAD.spread.se)


# --- shipped and planned


def test_further_trainings_are_not_shipped(project):
    train.train(lines(project, seeds=2), "cd")
    folder = paths.CHECKPOINTS / "cd"
    with _shippable(folder) as shipped:
        assert shipped.name == "cd"
        assert tree(shipped) == the_line_s(tree(folder))
    train.train(lines(project), "cd")
    assert not (folder / "seeds").exists()
    with _shippable(folder) as shipped:
        assert shipped == folder


def test_a_plan_counts_every_training(finished):
    own = {"seconds": 2.0, "calls": 7.0, "bytes": 100, "checkpoint": 10, "state": 20}

    class Slots:
        def width(self, name):
            return 1

    one, three = (
        _training("distill@cd", "cd", lines(finished[1], **seeds), own, 1.5, Slots()) for seeds in ({}, {"seeds": 3})
    )
    assert (three.seconds - 1.5, three.calls, three.disk) == (3 * (one.seconds - 1.5), 3 * one.calls, 3 * one.disk)
    assert three.bytes == one.bytes


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    monkeypatch.setattr(bootstrap, "RESAMPLES", 10)
