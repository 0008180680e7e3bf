"""Trainings seen while they go on: the file they write, MLflow's run of it, the page in Prefect, and who follows."""

import contextlib
import io
import itertools
import re
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from diffcore.core.errors import UserError
from diffcore.training.curve import Event
from diffcore.training.loop import Stopped
from diffcore.watching.look import Look
from flows import live as pages
from tasks import follow, follower, live, paths, recording
from tasks.tracking import live as mirrors

ROOT = Path(__file__).parent.parent
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # MLflow's and its libraries'
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:unclosed database:ResourceWarning"),
]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


def event(step: int) -> Event:
    return Event(step, 8 * step, 1.0 / step, 0.5, 0.25)


def look(step: int, fd: float = 0.5) -> Look:
    return Look(fd, 0.25, 0.9, 0.125, 1.0, 0.0, 0.01, 0.005, step=step, best=step)


def test_what_a_look_could_not_tell_is_no_metric():
    numbers = {**look(10).columns(), "memorised": None, "memorised_se": None}
    logged = [metric.key for metric in mirrors._metrics({"look": numbers, "step": 10, "at": 0})]
    assert logged == [f"watch_{key}" for key in numbers if not key.startswith("memorised")]


def samples(value: float = 0.0) -> torch.Tensor:
    return torch.full((20, 1, 4, 4), value)


def record(
    steps: range,
    after: int = 0,
    fingerprint: str = "a",
    ends: type[Exception] | None = None,
    name="pd",
    alarms: Sequence[str] = (),
) -> None:
    """A training that goes on after an update, has a point at each of these and a look at each tenth, all with alarms."""
    own = recording.Record(name, 100, 8)
    with own.kept(fingerprint, True):
        if after:
            own.go_on(after)
        for step in steps:
            own.point(event(step))
            if step % 10 == 0:
                own.look(look(step), samples(), alarms)
        if ends:
            raise ends


def seen(name: str = "pd") -> live.Seen:
    return live.read(live.folder() / f"{name}.jsonl")


# ------------------------------------------------------------------------------- what a training writes


def test_a_file_says_each_point_and_look_once_and_how_it_ended():
    record(range(5, 25, 5))
    own = seen()
    assert (own.name, own.fingerprint, own.iterations, own.watched, own.ended) == ("pd", "a", 100, True, "finished")
    assert [line["step"] for line in own.points] == [5, 10, 15, 20]
    assert [line["step"] for line in own.looks] == [10, 20]
    assert own.points[1]["point"] == {"loss": 0.1, "grad_norm": 0.5, "lr": 0.25}
    assert own.looks[0]["look"] == look(10).columns()
    assert own.samples().shape == (16, 4, 4, 1)
    assert own.samples().dtype == np.uint8
    assert (own.samples() == 128).all()


def test_a_resumed_training_goes_on_in_its_file_and_redoes_what_a_kill_took():
    with pytest.raises(Stopped):
        record(range(5, 35, 5), ends=Stopped)
    assert seen().ended == "stopped"
    before = seen().lines
    record(range(25, 45, 5), after=20)
    own = seen()
    assert [line["step"] for line in own.points] == [5, 10, 15, 20, 25, 30, 35, 40]
    assert [line["step"] for line in own.looks] == [10, 20, 30, 40]
    assert own.lines[:6] == before[:6]  # what was before is as it was
    seconds = [line["seconds"] for line in own.lines]
    assert seconds == sorted(seconds)
    assert own.ended == "finished"


def test_another_job_of_the_name_begins_anew():
    record(range(5, 35, 5))
    record(range(5, 15, 5), fingerprint="b")
    assert [line["step"] for line in seen().points] == [5, 10]


def test_a_finished_training_that_is_begun_again_keeps_its_lines():
    record(range(5, 35, 5))
    record(range(0), after=100)
    assert [line["step"] for line in seen().points] == [5, 10, 15, 20, 25, 30]


def test_a_training_that_fails_says_so_and_its_own_fault_is_raised(monkeypatch):
    with pytest.raises(UserError):
        record(range(5, 15, 5), ends=UserError)
    assert seen().ended == "failed"
    monkeypatch.setattr(recording.Record, "_write", lambda *words: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(UserError), recording.Record("pd", 1, 1).kept("a", False):
        raise UserError("the first")


def test_a_file_that_is_cut_anywhere_is_read_as_far_as_it_is_whole():
    """As a reader sees it while a line is written, and after kill -9."""
    record(range(5, 25, 5))
    path = live.folder() / "pd.jsonl"
    whole, own = path.read_bytes(), seen()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        part = live.read(path)
        if part is None:
            assert b"\n" not in whole[:length]
        else:
            assert part.lines == own.lines[: len(part.lines)]
            assert len(part.lines) == max(0, whole[:length].count(b"\n") - 1)
            assert part.ended is None


@pytest.mark.parametrize("text", ["", "x\n", "[]\n", "{}\n", '{"name": 1}\n', "\0\n", "[" * 9999 + "\n"])
def test_a_file_of_something_else_is_no_training(text):
    live.folder().mkdir(parents=True)
    (live.folder() / "pd.jsonl").write_text(text)
    assert live.everything() == []


def test_only_the_main_one_of_several_processes_writes(monkeypatch):
    monkeypatch.setattr(recording.processes, "is_main", lambda: False)
    record(range(5, 15, 5))
    assert not (live.folder() / "pd.jsonl").exists()


# ------------------------------------------------------------------------------- MLflow


@pytest.fixture
def store(here, fresh_store, monkeypatch) -> str:
    shutil.copy(fresh_store, here / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{here}/mlflow.db")
    return f"sqlite:///{here}/mlflow.db"


def runs() -> dict[str, list]:
    import mlflow

    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("distill-live")
    return {} if experiment is None else by_name(client.search_runs([experiment.experiment_id]))


def by_name(found: list) -> dict[str, list]:
    grouped: dict[str, list] = {}
    for run in found:
        grouped.setdefault(run.info.run_name, []).append(run)
    return grouped


def history(run, key: str) -> list[tuple[int, float]]:
    import mlflow

    return [(each.step, each.value) for each in mlflow.MlflowClient().get_metric_history(run.info.run_id, key)]


def test_a_training_is_a_run_that_grows_with_it_and_ends_with_it(store):
    mirror = mirrors.Mirror("distill")
    mirror.show(live.everything())  # of nothing there is nothing
    with pytest.raises(Stopped):
        record(range(5, 25, 5), ends=Stopped)
    mirror.show(live.everything())
    ((run,),) = runs().values()
    assert (run.info.run_name, run.info.status, run.data.tags["live"]) == ("live/pd", "KILLED", "true")
    assert history(run, "train_loss") == [(step, 1 / step) for step in (5, 10, 15, 20)]
    assert history(run, "watch_fd") == [(10, 0.5), (20, 0.5)]
    record(range(15, 45, 5), after=10)  # a kill took the points from 15 on, which are computed again
    mirror.show(live.everything())
    ((again,),) = runs().values()
    assert again.info.run_id == run.info.run_id
    assert again.info.status == "FINISHED"
    assert history(again, "train_loss") == [(step, 1 / step) for step in range(5, 45, 5)]
    assert history(again, "watch_diversity") == [(step, 0.9) for step in range(10, 50, 10)]
    images = Path(again.info.artifact_uri.removeprefix("file://")) / "images"
    assert any("step%40" in path.name or "step" in path.name for path in images.rglob("*.png"))


def test_what_is_wrong_is_a_tag_and_the_description_of_the_run_until_it_is_so_no_more(store):
    """Also for a follower that comes later."""
    wrong = ["collapsing: diversity 0.2 of the data's since update 10", "copying: 0.3 of the samples"]
    shown = []
    for after, alarms in ((0, ()), (10, wrong[:1]), (20, wrong), (30, ()), (40, ())):
        record(range(after + 10, after + 15, 10), after, alarms=alarms)
        mirrors.Mirror("distill").show(live.everything())
        tags = runs()["live/pd"][0].data.tags
        shown.append((tags.get("alarms"), tags.get("mlflow.note.content", "")))
    both = "; ".join(wrong)
    gone = ("none any more", "")
    assert shown == [(None, ""), (wrong[0], f"**{wrong[0]}**"), (both, f"**{both}**"), gone, gone]


def test_another_follower_goes_on_where_one_was_killed_and_doubles_nothing(store):
    record(range(5, 25, 5))
    mirrors.Mirror("distill").show(live.everything())
    record(range(25, 35, 5), after=20)
    for _ in range(2):
        mirrors.Mirror("distill").show(live.everything())
    ((run,),) = runs().values()
    assert history(run, "train_loss") == [(step, 1 / step) for step in range(5, 35, 5)]
    assert run.info.status == "FINISHED"


def test_a_training_that_goes_on_is_running_until_its_follower_ends(store):
    own = recording.Record("pd", 100, 8)
    mirror = mirrors.Mirror("distill")
    with own.kept("a", True):
        own.point(event(5))
        mirror.show(live.everything())
        assert runs()["live/pd"][0].info.status == "RUNNING"
        mirror.end()
        assert runs()["live/pd"][0].info.status == "KILLED"
        own.point(event(10))
        mirrors.Mirror("distill").show(live.everything())
        assert runs()["live/pd"][0].info.status == "RUNNING"


def test_a_run_that_ended_is_left_as_it_is_and_where_a_run_is_seen_is_a_line(store, monkeypatch):
    record(range(5, 25, 5))
    said: list[str] = []
    mirrors.Mirror("distill", said.append).show(live.everything())
    assert said == []  # a file shows nothing by itself
    before = runs()["live/pd"][0].info
    monkeypatch.setattr(mirrors, "address", lambda: "http://me:secret@host:5000/")
    monkeypatch.setattr(mirrors, "signed_in", lambda uri: contextlib.nullcontext(store))
    mirror = mirrors.Mirror("distill", lambda line: print(line))
    with contextlib.redirect_stdout(io.StringIO()) as output:
        mirror.show(live.everything())
        mirror.show(live.everything())
    (line,) = output.getvalue().splitlines()
    assert re.fullmatch(rf"pd: http://.*host:5000/#/experiments/\d+/runs/{before.run_id}/model-metrics.*", line)
    assert "secret" not in line
    after = runs()["live/pd"][0].info
    assert (after.status, after.end_time) == ("FINISHED", before.end_time)


def test_what_publish_shows_is_in_another_experiment(store):
    record(range(5, 10, 5))
    mirrors.Mirror("distill").show(live.everything())
    import mlflow

    assert mlflow.MlflowClient().get_experiment_by_name("distill") is None


# ------------------------------------------------------------------------------- who follows


def told(capsys) -> list[str]:
    return capsys.readouterr().out.splitlines()


class Flag:
    """A stop that comes after so many looks."""

    def __init__(self, looks: int):
        self.left = looks

    def __call__(self) -> bool:
        self.left -= 1
        return self.left < 0


def following(
    monkeypatch, names: list[str], looks: int, show, trainings: int = 1, since: int | None = None
) -> SimpleNamespace:
    mirror = SimpleNamespace(show=show, end=lambda: mirror.ended.append(True), ended=[])
    monkeypatch.setattr(follow, "Mirror", lambda experiment, say: mirror)
    monkeypatch.setattr(follow.signals, "StopFlag", lambda: Flag(looks))
    monkeypatch.setattr(follow, "_pause", lambda stop, seconds: None)
    publish = SimpleNamespace(experiment="distill")
    parameters = SimpleNamespace(publish=publish, line=lambda name: None, trainings=lambda name: trainings)
    follow.follow(parameters, names, since=since)
    return mirror


def test_a_server_that_does_not_answer_is_named_once_and_asked_again(monkeypatch, capsys):
    answers = iter([UserError("no answer"), UserError("no answer"), None, UserError("no answer"), None, None])

    def show(trainings):
        if (answer := next(answers)) is not None:
            raise answer

    mirror = following(monkeypatch, [], 5, show)
    line = "not shown: no answer; it is tried again, and no training waits for it"
    assert told(capsys) == [line, "shown again", line, "shown again"]
    assert mirror.ended == [True]


def test_named_trainings_are_followed_until_all_have_ended(monkeypatch):
    shown = []
    steps = iter(
        [lambda: record(range(5, 10, 5), name="a"), lambda: record(range(5, 10, 5), name="b", fingerprint="b")]
    )

    def show(trainings):
        shown.append([each.name for each in trainings])
        next(steps, lambda: None)()

    following(monkeypatch, ["a", "b"], 9, show)
    assert shown == [[], ["a"], ["a", "b"], ["a", "b"]]


def test_without_names_what_had_ended_before_is_not_shown(monkeypatch):
    record(range(5, 10, 5), name="old")
    shown = []

    def show(trainings):
        shown.append([each.name for each in trainings])
        if len(shown) == 1:
            record(range(5, 10, 5), name="new", fingerprint="b")

    following(monkeypatch, [], 3, show)
    assert shown == [[], ["new"], ["new"], ["new"]]


def test_a_line_that_is_trained_several_times_is_followed_to_the_end_of_the_last(monkeypatch):
    labels = [paths.label("a", number) for number in range(3)]
    shown = []
    steps = iter([*labels, "b"])

    def show(trainings):
        shown.append(sorted(each.name for each in trainings))
        if name := next(steps, None):
            record(range(5, 10, 5), name=name, fingerprint=name)

    following(monkeypatch, ["a"], 9, show, trainings=3)
    assert shown == [[], labels[:1], labels[:2], labels, labels]


def test_what_had_ended_before_and_is_done_again_is_shown_to_its_end(monkeypatch):
    """The same job, whose checkpoint was lost say: else its run would be left as that of a killed one."""
    record(range(5, 15, 5))
    again = recording.Record("pd", 100, 8)
    shown = []

    def show(trainings):
        shown.append([(each.name, each.ended) for each in trainings])
        if len(shown) == 1:
            with again.kept("a", True):
                again.point(event(5))
                show(live.everything())

    following(monkeypatch, [], 2, show)
    assert shown == [[], [("pd", None)], [("pd", "finished")], [("pd", "finished")]]


@pytest.mark.parametrize("ends", [None, Stopped], ids=["finished", "stopped"])
def test_a_follower_beside_a_run_shows_its_lines_from_then_on_until_it_is_ended(monkeypatch, ends):
    """Workers share saved states: another's trainings are another's, and those of long ago nobody's."""
    with contextlib.suppress(Stopped):
        record(range(5, 15, 5), name="a", ends=ends)
    since = seen("a").at + 1
    monkeypatch.setattr(recording.time, "time", lambda: since / 1000)
    steps = iter(["b", "a", "c", None])
    shown = []

    def show(trainings):
        shown.append([each.name for each in trainings])
        if name := next(steps):
            record(range(5, 10, 5), name=name, fingerprint="new")

    following(monkeypatch, ["a"], 3, show, since=since)
    assert shown == [[], [], ["a"], ["a"]]


def test_what_a_follower_could_not_show_to_its_end_it_names_with_the_remedy(monkeypatch, capsys):
    record(range(5, 10, 5), name="a")
    record(range(5, 10, 5), name="a.1", fingerprint="b")

    def show(trainings):
        raise UserError("no answer")

    mirror = following(monkeypatch, ["a"], 2, show, trainings=2)
    missing, last = told(capsys)
    assert missing == "not shown: no answer; it is tried again, and no training waits for it"
    assert last == "not shown to its end; once MLflow answers, `distill follow a` shows it"
    assert mirror.ended == []


def write_params(watch: str) -> None:
    line = "{method: progressive" + watch + "}"
    Path("params.yaml").write_text(f"teachers: {{teacher: {{}}}}\ndistill: {{a: {line}, b: {{}}}}\n")


def test_only_watched_lines_are_followed_beside_a_run_and_without_a_server_a_line_says_so(monkeypatch):
    monkeypatch.setattr(follower.subprocess, "Popen", lambda *words, **more: pytest.fail("nobody is to be followed"))
    said: list[str] = []
    stages = ["shard", "teachers@teacher", "distill@a", "distill@b"]
    write_params("")
    with follower.beside(Path(), stages, said.append):
        assert said == []
    write_params(", watch: {every: 1}")
    with follower.beside(Path(), ["distill@b"], said.append):
        assert said == []
    with follower.beside(Path(), stages, said.append):
        assert said == ["a: watched, and not shown in MLflow while in training: MLFLOW_TRACKING_URI names no server"]


def test_a_run_s_follower_has_the_lines_that_the_run_trains_and_what_it_leaves_is_named(monkeypatch):
    """Also those that are not watched; another run's never."""
    write_params(", watch: {every: 1}")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setattr(follower, "GRACE_SECONDS", 0.1)
    popen, commands = subprocess.Popen, []

    def start(command, **options):
        commands.append(command)
        return popen(["sh", "-c", "trap '' TERM; echo a line; while true; do sleep 0.1; done"], **options)

    monkeypatch.setattr(follower.subprocess, "Popen", start)
    said: list[str] = []
    with follower.beside(Path(), ["shard", "teachers@teacher", "distill@a", "measure@b"], said.append):
        until = time.monotonic() + 60
        while not said and time.monotonic() < until:
            time.sleep(0.01)
    ((*_, verb, option, since, first, second),) = commands
    assert (verb, option, first, second) == ("follow", "--since", "teacher", "a")
    assert abs(int(since) - 1000 * time.time()) < 3.6e6  # milliseconds
    assert said == ["follow: a line", "a: not shown to its end, MLflow is slow; `distill follow a` shows it"]


@pytest.mark.slow
def test_a_follower_of_a_dead_server_says_so_once_and_ends_with_the_run_and_the_remedy(here, monkeypatch):
    shutil.copy(ROOT / "params.yaml", here)
    content = (here / "params.yaml").read_text()
    (here / "params.yaml").write_text(
        content.replace("    steps: 1\n", "    steps: 1\n    watch: {every: 10, images: 50}\n", 1)
    )
    for name in ("tasks", "diffcore", "dvc.yaml"):
        (here / name).symlink_to(ROOT / name)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    record(range(5, 10, 5), name="pd1", ends=None)
    said: list[str] = []
    started = []
    popen = subprocess.Popen
    monkeypatch.setattr(follower.subprocess, "Popen", lambda *w, **m: started.append(popen(*w, **m)) or started[-1])
    with follower.beside(Path(), ["distill@pd1"], said.append):
        own = recording.Record("pd1", 100, 8)
        with own.kept("b", True):
            own.point(event(5))
            until = time.monotonic() + 120
            while not said and time.monotonic() < until:
                time.sleep(0.1)
    assert said[0].startswith("follow: not shown: MLflow at http://127.0.0.1:9 does not answer")
    assert said[1:] == ["follow: not shown to its end; once MLflow answers, `distill follow pd1` shows it"]
    assert started[0].poll() is not None


# ------------------------------------------------------------------------------- Prefect's page


@pytest.fixture
def artifacts(monkeypatch) -> list[tuple]:
    made: list[tuple] = []
    numbers = itertools.count()

    def making(kind):
        def make(*words, key, description):
            made.append((kind, key, words[0], description))
            return next(numbers)

        return make

    for kind in ("image", "markdown", "progress"):
        monkeypatch.setattr(pages, f"create_{kind}_artifact", making(kind))
    monkeypatch.setattr(
        pages,
        "update_progress_artifact",
        lambda number, share, description: made.append(("update", number, share, description)),
    )
    monkeypatch.setattr(pages, "SECONDS_BETWEEN", -1.0)
    return made


def test_the_page_says_in_words_what_is_wrong(artifacts):
    page = pages.Page("distill@pd", Path(), lambda line: None)
    record(range(10, 15, 10), alarms=["saturating: contrast 1.97", "getting worse: fd 2"])
    page.update()
    (table,) = (made[2] for made in artifacts if made[0] == "markdown")
    head, _, rest = table.partition("| update")
    assert head == "# pd\n\n**saturating: contrast 1.97**\n\n**getting worse: fd 2**\n\n"
    assert "| 10 (best) | 0.1 |" in rest


def test_a_page_has_progress_looks_and_samples_of_what_was_written_since_the_stage_began(artifacts):
    said: list[str] = []
    record(range(5, 10, 5))  # of another time
    page = pages.Page("distill@pd", Path(), said.append)
    page("a line")
    assert (said, artifacts) == (["a line"], [])
    record(range(5, 15, 5), fingerprint="b")
    page("another")
    progress, markdown, image = artifacts
    assert progress == ("progress", "live-pd", 10.0, "pd: update 10 of 100")
    assert markdown[:2] == ("markdown", "live-pd-looks")
    assert "| 10 (best) | 0.1 | 0.5 ± 0.25 | 0.90 | 1.00 |" in markdown[2]
    assert image[2].startswith("data:image/png;base64,")
    page("nothing new")
    assert len(artifacts) == 3
    record(range(15, 20, 5), after=10, fingerprint="b")
    page.update()
    assert artifacts[3:] == [("update", 0, 15.0, "pd: update 15 of 100")]


def test_other_stages_and_trainings_that_are_not_watched_have_no_page(artifacts):
    shard, page = pages.Page("shard", Path(), print), pages.Page("distill@pd", Path(), print)
    own = recording.Record("pd", 100, 8)
    with own.kept("a", False):
        own.point(event(5))
    shard.update()
    page.update()
    assert artifacts == []


def test_what_prefect_refuses_is_told_once_and_ends_nothing(artifacts, monkeypatch):
    def refuse(*words, **more):
        raise RuntimeError("no server at http://me:secret@host/")

    monkeypatch.setattr(pages, "create_progress_artifact", refuse)
    said: list[str] = []
    page = pages.Page("distill@pd", Path(), said.append)
    for last in (10, 20, 30):
        record(range(last - 5, last + 5, 5), after=last - 10, fingerprint="b")
        page.update()
    (line,) = said
    assert line.startswith("the page of pd is not brought up to date: RuntimeError: no server at ")
    assert "secret" not in line
