"""A run whose stages spread over the workers of several clones: the same content or a refusal, and files by DVC's remote.

Prefect is stood in for; bench/two_workers.py starts real workers and kills one.
"""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from uuid import UUID, uuid4

import httpx
import pytest
from dvc.exceptions import DvcException
from dvc.repo import Repo
from prefect.logging import disable_run_logger
from prefect.states import Cancelled, Completed, Crashed, Failed
from prefect.states import Running as Going
from ruamel.yaml import YAML

from diffcore.core.errors import UserError
from flows import distill, exchange, pages, ready, spread, stage, watch
from tasks import dvc_content, dvc_files, dvc_remote, locks, stages, surroundings
from tasks.running import Running, Stopped
from tests.test_flows import at_work, behave, start, starts, toy, until

ROOT = Path(__file__).resolve().parents[1]
pytestmark = [
    pytest.mark.filterwarnings("ignore:_NoneStep.value will soon raise:DeprecationWarning"),  # DVC's own
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
ARMS = ("arm@left", "arm@right")
OUTPUTS = {
    "shard": "artifacts/shard",
    "arm@left": "artifacts/left",
    "arm@right": "artifacts/right",
    "evaluate": "artifacts/frontier.csv",
}


def clone(folder: Path, remote: Path | None = None, **actions: str) -> Path:
    """A toy whose default DVC remote is a folder."""
    toy(folder, **actions)
    if remote is not None:
        remote.mkdir(exist_ok=True)
        with open(folder / ".dvc/config", "a") as file:
            file.write(f"    remote = store\n['remote \"store\"']\n    url = {remote}\n")
    return folder


def with_outputs(folder: Path, *paths: str) -> Path:
    """The outputs at `paths` as if their stages had run, in DVC's cache and in dvc.lock, without a process."""
    for path in paths:
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_text(f"{path}\n")
    with Repo(str(folder)) as repo, repo.lock:
        for one in [one for one in repo.index.stages if one.outs[0].def_path in paths]:
            one.save(allow_missing=True, run_cache=False)
            one.commit(allow_missing=True)
            one.dump(update_pipeline=False)
    return folder


def job(folder: Path, name: str) -> dvc_content.Job:
    return json.loads(json.dumps(dvc_content.job(exchange.contents(folder)[name], exchange.read_lock(folder))))


def depends_on(folder: Path, path: str) -> None:
    """The stage `shard` of the toy depends on one more path."""
    pipeline = json.loads((folder / "dvc.yaml").read_text())
    pipeline["stages"]["shard"]["deps"] = [path]
    (folder / "dvc.yaml").write_text(json.dumps(pipeline))


# ---- a stage by content


def test_a_stage_is_its_command_its_code_its_parameters_and_what_it_needs_of_others(tmp_path):
    depends_on(with_outputs(clone(tmp_path), "artifacts/shard", "artifacts/left", "artifacts/right"), "tasks")
    contents = exchange.contents(tmp_path)
    assert list(contents["shard"].code) == ["tasks"]
    assert contents["shard"].params == {"params.yaml": {"work.shard": "ok"}}
    assert contents["evaluate"].needs == {"arm@left": ("artifacts/left",), "arm@right": ("artifacts/right",)}
    assert {name for name, content in contents.items() if not content.cached} == set()
    left = job(tmp_path, "arm@left")
    assert left["above"]["shard"]["outs"][0]["path"] == "artifacts/shard"
    assert dvc_content.differences(contents["arm@left"], left) == []


def test_a_folder_that_holds_what_others_write_needs_all_of_them(tmp_path):
    pipeline = json.loads((clone(tmp_path) / "dvc.yaml").read_text())
    pipeline["stages"]["evaluate"]["deps"] = ["artifacts"]
    pipeline["stages"]["evaluate"]["outs"] = [{"frontier.csv": {"cache": False}}]
    (tmp_path / "dvc.yaml").write_text(json.dumps(pipeline))
    evaluate = exchange.contents(tmp_path)["evaluate"]
    assert (set(evaluate.needs), evaluate.code, evaluate.cached) == ({"shard", *ARMS}, {}, False)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda folder: (folder / "tasks/more.py").write_text("x = 1\n"), ["tasks"]),
        (lambda folder: behave(folder, shard="sleep 1"), ["params.yaml work.shard"]),
        (lambda folder: shutil.rmtree(folder / "tasks"), ["tasks"]),
    ],
    ids=["code", "a parameter", "code that is not there"],
)
def test_what_is_other_in_a_clone_is_named(tmp_path, change, line):
    for name in ("here", "there"):
        depends_on(clone(tmp_path / name), "tasks")
    wanted = job(tmp_path / "there", "shard")
    assert dvc_content.differences(exchange.contents(tmp_path / "here")["shard"], wanted) == []
    change(tmp_path / "here")
    assert dvc_content.differences(exchange.contents(tmp_path / "here")["shard"], wanted) == line


def test_a_job_is_another_one_as_soon_as_what_it_needs_is(tmp_path):
    first = job(with_outputs(clone(tmp_path), "artifacts/shard"), "arm@left")
    lock = exchange.read_lock(tmp_path)
    lock["shard"]["outs"][0]["md5"] = "0" * 32
    other = dvc_content.job(exchange.contents(tmp_path)["arm@left"], lock)
    assert dvc_content.key(first) == dvc_content.key(job(tmp_path, "arm@left")) != dvc_content.key(other)


def test_no_parameter_s_value_is_sent(tmp_path):
    """Prefect keeps what is sent, and a value may hold a password."""
    assert "s3same" not in json.dumps(job(clone(tmp_path, shard="https://me:s3same@h"), "shard"))


def test_a_stage_that_ran_with_other_dependencies_than_the_job_s_is_noticed(tmp_path):
    wanted = job(with_outputs(clone(tmp_path), "artifacts/shard", "artifacts/left"), "arm@left")
    entry = exchange.read_lock(tmp_path)["arm@left"]
    assert dvc_content.strays(wanted, entry) == []
    entry["deps"][0]["md5"] = "0" * 32
    assert dvc_content.strays(wanted, entry) == ["artifacts/shard"]


# ---- by the remote


@pytest.fixture
def pair(tmp_path, monkeypatch):
    """Two clones with one remote; the first has made `shard` and sent it."""
    monkeypatch.delenv("DISTILL_RESUME", raising=False)
    one, other = (clone(tmp_path / name, tmp_path / "remote") for name in ("one", "other"))
    monkeypatch.chdir(with_outputs(one, "artifacts/shard"))
    dvc_remote.push(["shard"])
    monkeypatch.chdir(other)
    return one, other


def test_what_a_job_needs_comes_by_the_remote_and_nothing_else(pair):
    one, other = pair
    (other / "artifacts").mkdir()
    (other / "artifacts/mine").write_text("kept")
    dvc_remote.fetch(job(one, "arm@left"))
    assert (other / "artifacts/shard").read_text() == (one / "artifacts/shard").read_text()
    assert sorted(path.name for path in (other / "artifacts").iterdir()) == ["mine", "shard"]
    assert set(exchange.read_lock(other)) == {"shard"}


def test_what_another_run_has_left_is_replaced_and_a_fuller_entry_of_the_same_content_stays(pair):
    one, other = pair
    with_outputs(other, "artifacts/shard")
    before = (other / "dvc.lock").read_bytes()
    (other / "artifacts/shard").write_text("of another run\n")
    dvc_remote.fetch(job(one, "arm@left"))
    assert (other / "artifacts/shard").read_text() == "artifacts/shard\n"
    assert (other / "dvc.lock").read_bytes() == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda one, other: behave(other, left="sleep 1"),
            r"^error: arm@left is another stage in this clone than in the run's: params\.yaml work\.left; bring ",
        ),
        (
            lambda one, other: (other / ".dvc/config").write_text("[core]\n    no_scm = true\n"),
            "dvc remote add --default",
        ),
        (
            lambda one, other: shutil.rmtree(one.parent / "remote/files"),
            "store does not hold artifacts/shard; is it the",
        ),
    ],
    ids=["a parameter", "no remote", "a remote without it"],
)
def test_what_keeps_a_stage_from_running_here_is_one_line(pair, capfd, change, words):
    one, other = pair
    path = other / "job.json"
    path.write_text(json.dumps(job(one, "arm@left")))
    change(one, other)
    assert dvc_remote.main(["fetch", str(path)]) == 2
    (line,) = [line for line in capfd.readouterr().err.splitlines() if "error" in line.lower()]
    assert line.startswith("error: ")
    assert re.search(words, line)


def test_what_dvc_fails_at_may_go_better_at_another_try(pair, capfd, monkeypatch):
    monkeypatch.setattr(Repo, "push", lambda *_, **__: (_ for _ in ()).throw(DvcException("the line\nwas cut")))
    assert dvc_remote.main(["push", "shard"]) == 1
    assert "ERROR: the line was cut" in capfd.readouterr().err


def test_an_output_is_not_replaced_while_a_stage_reads_it(pair, monkeypatch):
    one, other = pair
    heard: list[str] = []
    monkeypatch.setattr(dvc_remote, "log", heard.append)
    with_outputs(other, "artifacts/shard")
    (other / "artifacts/shard").write_text("of another run\n")
    wanted = job(one, "arm@left")
    monkeypatch.setattr(dvc_remote, "BUSY_SECONDS", 0.05)
    with at_work() as reader:
        held = {"read": {str(other / "artifacts/shard"): [{"pid": reader.pid, "cmd": "dvc repro"}]}}
        (other / ".dvc/tmp").mkdir(exist_ok=True)
        (other / ".dvc/tmp/rwlock").write_text(json.dumps(held))
        future = start(dvc_remote.fetch, wanted)
        assert until(lambda: any("waiting: " in line for line in heard))
        assert (other / "artifacts/shard").read_text() == "of another run\n"
    future.result(60)
    assert (other / "artifacts/shard").read_text() == "artifacts/shard\n"


def test_entries_are_merged_in_dvc_s_own_order_beside_those_there_are(tmp_path):
    with_outputs(clone(tmp_path), "artifacts/shard")
    left = {"path": "artifacts/left", "md5": "1"}
    entry = {"outs": [left], "note": 1, "cmd": "x", "deps": [{**left, "path": "x"}], "params": {}}
    exchange.merge(tmp_path, {"arm@left": entry})
    lock = YAML().load((tmp_path / "dvc.lock").read_text())
    assert list(lock["stages"]) == ["shard", "arm@left"]
    assert list(lock["stages"]["arm@left"]) == ["cmd", "deps", "outs"]
    assert dvc_files.read(tmp_path / "dvc.lock") is not None
    (tmp_path / "dvc.lock").write_text("sche")
    with pytest.raises(UserError, match=r"dvc\.lock is damaged; `distill check` mends it"):
        exchange.merge(tmp_path, {"arm@left": entry})
    assert (tmp_path / "dvc.lock").read_text() == "sche"


def test_a_preset_s_workspace_gets_the_remote_of_the_project(tmp_path):
    root, workspace = clone(tmp_path / "root", tmp_path / "remote"), clone(tmp_path / "workspace")
    with pytest.raises(UserError, match="dvc remote add --default"):
        exchange.remote(workspace)
    dvc_remote.share(root, workspace)
    assert exchange.remote(workspace) == "store"
    before = (workspace / ".dvc/config.local").stat().st_mtime_ns
    dvc_remote.share(root, workspace)
    assert (workspace / ".dvc/config.local").stat().st_mtime_ns == before


# ---- what is finished


def test_a_stage_is_finished_by_content_and_only_while_the_remote_has_it(pair, tmp_path):
    one, _ = pair
    sent = []
    finished = exchange.Finished(one, sent.append)
    shard = job(one, "shard")
    assert finished(shard)  # done here, as `distill run` does it: it is sent
    assert sent == ["shard"]
    (one / "artifacts/shard").unlink()  # as where another host has made it
    assert finished(shard)
    assert not finished({**shard, "code": {"x": "1"}})
    entry = exchange.read_lock(one)["shard"]
    exchange.merge(one, {"shard": {**entry, "outs": [{**entry["outs"][0], "md5": "0" * 32}]}})
    assert not finished(shard)
    exchange.merge(one, {"shard": entry})
    assert finished(shard)
    shutil.rmtree(tmp_path / "remote")
    assert not finished(shard)
    assert sent == ["shard"]
    (one / ".dvc/tmp/finished.json").write_text("[")
    assert not finished(shard)


# ---- the parent


class Pool:
    """Stands in for Prefect and its workers: what was sent, and how each run of a stage ends."""

    def __init__(self, monkeypatch, folder: Path, ends: dict[str, list]):
        self.folder, self.ends = folder, ends
        self.sent: list[str] = []
        self.together: list[set[str]] = []
        self.runs: dict[UUID, str] = {}
        self.cancelled = 0
        monkeypatch.setattr(spread, "run_deployment", self.send)
        monkeypatch.setattr(spread, "_runs", self.look)
        monkeypatch.setattr(spread, "_entry", self.entry)
        monkeypatch.setattr(spread, "up_to_date", lambda name, return_state: Completed(name="Cached"))
        monkeypatch.setattr(spread, "POLL_SECONDS", 0)
        monkeypatch.setattr(watch, "ensure", lambda deployment, log: None)
        monkeypatch.setattr(dvc_remote, "holds", lambda repo, entry: True)

    def send(self, deployment, *, parameters, flow_run_name, work_queue_name, tags, timeout):
        assert (deployment, tags, timeout) == ("distill/stage", [watch.TAG], 0)
        assert parameters["job"]["stage"] == flow_run_name
        self.sent.append(flow_run_name)
        self.parameters, self.queue = parameters, work_queue_name
        run = uuid4()
        self.runs[run] = flow_run_name
        return SimpleNamespace(id=run)

    def look(self, sent):
        self.together.append(set(sent))
        states = {name: (self.ends.get(name) or [Completed(message="done")]).pop(0) for name in sent}
        for name, state in states.items():
            if state.is_completed():
                with_outputs(
                    self.folder, {"evaluate": "artifacts/frontier.csv"}.get(name, f"artifacts/{name[-5:].strip('@')}")
                )
        return {name: SimpleNamespace(id=sent[name], state=state) for name, state in states.items()}

    def entry(self, run):
        entry = exchange.read_lock(self.folder)[self.runs[run]]
        return {"entry": {part: entry[part] for part in entry if part != "params"}, "host": "h", "folder": "f"}

    def cancel(self):
        self.cancelled += 1

    def spread(self, targets=(), retries=1, here=None, running=None):
        todo = stages.chosen(stages.graph(self.folder), targets)
        place = spread.Place("sub", None, "first")
        self.logged: list[str] = []
        running = running or Running()
        return spread.Spread(todo, self.folder, place, running, here, self.cancel, retries, self.logged.append).run()


@pytest.fixture
def parent(tmp_path):
    return clone(tmp_path / "parent", tmp_path / "remote")


def test_each_stage_is_sent_when_those_above_it_are_done_and_arms_go_side_by_side(parent, monkeypatch):
    pool = Pool(monkeypatch, parent, {"arm@left": [Going(), Completed()]})
    states = pool.spread()
    assert pool.sent == ["shard", *ARMS, "evaluate"]
    assert pool.together == [{"shard"}, set(ARMS), {"arm@left"}, {"evaluate"}]
    assert all(state.is_completed() for state in states.values())
    lock = exchange.read_lock(parent)
    assert lock["arm@left"]["params"] == {"params.yaml": {"work.left": "ok"}}
    assert (pool.parameters["workspace"], pool.parameters["preset"], pool.queue) == ("sub", None, "first")
    assert pool.cancelled == 0
    again = Pool(monkeypatch, parent, {})
    assert {state.name for state in again.spread().values()} == {"Cached"}
    assert again.sent == []


def test_of_stages_that_can_begin_that_comes_first_for_which_most_others_wait(parent, monkeypatch):
    pipeline = json.loads((parent / "dvc.yaml").read_text())
    pipeline["stages"]["evaluate"]["deps"] = ["artifacts/right"]
    (parent / "dvc.yaml").write_text(json.dumps(pipeline))
    pool = Pool(monkeypatch, parent, {})
    pool.spread()
    assert pool.sent == ["shard", "arm@right", "arm@left", "evaluate"]


def test_a_lost_stage_is_sent_again_a_refused_one_is_not_and_what_needs_it_does_not_run(parent, monkeypatch):
    lost = [Crashed(message="no heartbeat"), Completed()]
    refused = [Failed(name=stage.REFUSED, message="arm@right: a typo")]
    pool = Pool(monkeypatch, parent, {"arm@left": lost, "arm@right": refused})
    states = pool.spread()
    assert sorted(pool.sent) == ["arm@left", "arm@left", "arm@right", "shard"]
    assert states["arm@left"].is_completed()
    assert (states["arm@right"].message, states["evaluate"].name) == ("arm@right: a typo", "NotReady")
    assert "arm@left: no heartbeat; it is tried again (1 of 1)" in pool.logged


def test_a_stage_is_tried_no_more_often_than_asked_and_one_that_was_cancelled_not_again(parent, monkeypatch):
    crashes = [Crashed(message="lost") for _ in range(9)]
    pool = Pool(monkeypatch, parent, {"shard": crashes})
    assert pool.spread(retries=2)["shard"].message == "shard: lost"
    assert pool.sent == ["shard"] * 3
    pool = Pool(monkeypatch, parent, {"shard": [Cancelled(message="by hand")]})
    assert pool.spread()["shard"].is_cancelled()
    assert pool.sent == ["shard"]


def test_a_run_that_is_left_cancels_what_it_has_sent(parent, monkeypatch):
    running = Running()
    pool = Pool(monkeypatch, parent, {"shard": [Going()] * 99})
    monkeypatch.setattr(running, "pause", lambda seconds: running.stop() or (_ for _ in ()).throw(Stopped("stopped")))
    with pytest.raises(Stopped):
        pool.spread(running=running)
    assert (pool.sent, pool.cancelled) == (["shard"], 1)


def test_a_server_that_does_not_answer_for_a_while_is_asked_again(parent, monkeypatch):
    pool = Pool(monkeypatch, parent, {})
    busy = httpx.HTTPStatusError("busy", request=None, response=SimpleNamespace(status_code=503))
    refusals = {"send": [httpx.ConnectError("refused"), busy], "look": [busy], "entry": [httpx.ReadTimeout("slow")]}

    def unsteady(what, ask):
        def call(*words, **more):
            if refusals[what]:
                raise refusals[what].pop()
            return ask(*words, **more)

        return call

    for name, what in (("run_deployment", "send"), ("_runs", "look"), ("_entry", "entry")):
        monkeypatch.setattr(spread, name, unsteady(what, getattr(pool, what)))
    assert all(state.is_completed() for state in pool.spread(targets=("shard",)).values())
    assert pool.sent == ["shard"]
    assert "waiting: Prefect's server does not answer (HTTPStatusError)" in pool.logged
    refusals["send"].append(httpx.HTTPStatusError("no", request=None, response=SimpleNamespace(status_code=422)))
    with pytest.raises(httpx.HTTPStatusError):
        pool.spread()


def test_what_this_host_cannot_see_a_worker_looks_at(parent, monkeypatch):
    with_outputs(parent, "artifacts/shard")
    pool = Pool(monkeypatch, parent, {})
    monkeypatch.setattr(exchange, "push", lambda *what: (_ for _ in ()).throw(stages.StageFailed("the remote is away")))
    assert pool.spread(targets=("shard",))["shard"].is_completed()
    assert pool.sent == ["shard"]


def test_what_is_of_one_host_alone_runs_on_the_parent_s(parent, monkeypatch):
    pipeline = json.loads((parent / "dvc.yaml").read_text())
    pipeline["stages"]["evaluate"]["outs"] = [{"artifacts/frontier.csv": {"cache": False}}]
    (parent / "dvc.yaml").write_text(json.dumps(pipeline))
    pool, here = Pool(monkeypatch, parent, {}), []
    states = pool.spread(here=lambda *what: here.append(what) or SimpleNamespace(state=Completed(message="here")))
    assert pool.sent == ["shard", *ARMS]
    assert pool.parameters["job"]["stage"] in ARMS
    ((name, sent),) = here
    assert (name, set(sent["above"])) == ("evaluate", set(ARMS))
    assert states["evaluate"].message == "here"


def test_a_run_without_a_remote_is_refused_before_anything_is_sent(tmp_path, monkeypatch):
    pool = Pool(monkeypatch, clone(tmp_path), {})
    with pytest.raises(UserError, match=r"^DVC has no default remote here, .*: dvc remote add --default NAME URL"):
        pool.spread()
    assert pool.sent == []


def test_the_flow_spreads_what_it_was_asked_for_and_shows_what_came_of_it(parent, monkeypatch):
    calls = []

    class Spread:
        def __init__(self, todo, folder, place, running, here, cancel, retries, log):
            assert locks.take(folder / ".dvc/tmp/spread.lock") is None
            calls.append((list(todo), folder, dataclasses.astuple(place), retries, here("shard", {"stage": "shard"})))

        def run(self):
            return {"shard": Completed(), "evaluate": Completed(), "arm@left": Cancelled()}

    def submit(*words):
        return words[0], words[1], words[4]

    monkeypatch.setattr(spread, "Spread", Spread)
    monkeypatch.setattr(
        distill, "run_stage", SimpleNamespace(with_options=lambda retries: SimpleNamespace(submit=submit))
    )
    monkeypatch.setattr(exchange, "pull", lambda paths, *_: calls.append(paths))
    monkeypatch.setattr(pages, "show", lambda folder, completed: calls.append([each.name for each in completed]))
    with disable_run_logger():
        state = distill.distill.fn(workspace=str(parent), retries=3, spread=True, queue="urgent")
    here = ("shard", parent, {"stage": "shard"})
    assert calls == [
        (list(stages.graph(parent)), parent, (str(parent), None, "urgent"), 3, here),
        ["artifacts/frontier.csv"],
        ["shard", "evaluate"],
    ]
    assert state.message == "stopped: arm@left"


def test_a_stage_of_the_parent_s_own_host_gets_its_inputs_by_the_remote(parent, monkeypatch):
    calls = []
    monkeypatch.setattr(exchange, "fetch", lambda job, *_: calls.append(job))
    monkeypatch.setattr(stages, "up_to_date", lambda *_: calls.append("look") or True)
    with disable_run_logger():
        distill.run_stage.fn("shard", parent, Running(), None, {"stage": "shard"})
        distill.run_stage.fn("shard", parent, Running(), None)
    assert calls == [{"stage": "shard"}, "look", "look"]


# ---- the worker


@pytest.mark.slow
def test_two_clones_that_take_turns_make_what_one_makes(tmp_path, monkeypatch):
    """The whole way of each stage but for Prefect: compared, fetched, run, sent, and its entry merged by the parent."""
    monkeypatch.delenv("DISTILL_RESUME", raising=False)
    clones = [clone(tmp_path / name, tmp_path / "remote") for name in ("parent", "one", "other")]
    parent, *workers = clones
    for turn, name in enumerate(("shard", *ARMS, "evaluate")):
        sent = []
        monkeypatch.setattr(
            stage, "Artifact", lambda sent=sent, **what: SimpleNamespace(create=lambda: sent.append(what))
        )
        with disable_run_logger():
            state = stage.stage.fn(job(parent, name), str(workers[turn % 2]))
        assert state.is_completed(), state.message
        ((what),) = sent
        assert "params" not in what["data"]["entry"]
        params = exchange.contents(parent)[name].params
        exchange.merge(parent, {name: {**what["data"]["entry"], "params": params}})
    assert (starts(workers[0]), starts(workers[1])) == (["shard", "right"], ["left", "evaluate"])
    plain = clone(tmp_path / "plain")
    for name in ("shard", *ARMS, "evaluate"):
        stages.reproduce(name, plain, Running(), print)
    assert exchange.read_lock(plain) == exchange.read_lock(parent)


def test_a_stage_that_was_given_up_for_lost_is_not_done_beside_itself(pair, monkeypatch):
    one, other = pair
    shard, logged = job(one, "arm@left"), []
    lock = other / ".resume/locks" / f"arm@left-{dvc_content.key(shard)[:16]}"
    monkeypatch.setattr(exchange, "fetch", lambda *what: logged.append("fetch"))
    monkeypatch.setattr(stages, "reproduce", lambda *what, **how: logged.append(len(how["keep"])))
    monkeypatch.setattr(exchange, "push", lambda *what: logged.append("push"))
    monkeypatch.setattr(exchange, "read_lock", lambda folder: {"arm@left": {}})
    held = locks.take(lock)
    future = start(stage._run, shard, other, Running(), logged.append, *exchange.store(other, None))
    assert until(lambda: "waiting: arm@left is being done already, by one who was given up for lost" in logged)
    assert "fetch" not in logged
    os.close(held)
    future.result(60)
    assert logged[-3:] == ["fetch", 2, "push"]  # both locks last as long as its processes


def test_without_a_gpu_there_are_as_many_places_as_processors_that_may_be_used(pair, monkeypatch):
    """A container's share of them, not the machine's."""
    one, other = pair

    def here(workspace, count):
        raise Stopped(f"{count} places")

    monkeypatch.setattr(stage.joblib, "cpu_count", lambda: 3)
    monkeypatch.setattr(locks, "here", here)
    monkeypatch.setattr(exchange, "fetch", lambda *what: None)
    with pytest.raises(Stopped, match=r"^3 places$"):
        stage._run(job(one, "arm@left"), other, Running(), print, *exchange.store(other, None))


def test_the_states_lie_where_hosts_share_them_and_the_log_says_whether(pair, monkeypatch, tmp_path):
    _, other = pair
    assert exchange.store(other, None) == (other / ".resume", False)
    monkeypatch.setenv("DISTILL_RESUME", str(tmp_path))
    assert exchange.store(other, None) == (tmp_path, True)
    assert exchange.store(other, "smoke") == (tmp_path / "smoke", True)
    for wrong in ("states", str(tmp_path / "nowhere")):
        monkeypatch.setenv("DISTILL_RESUME", wrong)
        with pytest.raises(UserError, match=f"^DISTILL_RESUME is {wrong}, no folder by its whole path"):
            surroundings.check()


def test_a_stage_saves_where_the_variable_says(tmp_path):
    command = [sys.executable, "-c", "from tasks import paths; print(paths.RESUME)"]
    for value, place in (("", ".resume"), (str(tmp_path), str(tmp_path))):
        environment = {**os.environ, "DISTILL_RESUME": value}
        assert subprocess.check_output(command, cwd=ROOT, env=environment, text=True).strip() == place


def test_stages_share_a_workspace_and_a_plain_run_waits_for_them(tmp_path):
    logged = []
    with ready.shared(toy(tmp_path), None, print), ready.shared(tmp_path, None, logged.append, check=False):
        assert logged == []
        assert locks.take(tmp_path / ".dvc/tmp/flow.lock") is None
    os.close(locks.take(tmp_path / ".dvc/tmp/flow.lock"))


@pytest.mark.parametrize(
    ("error", "name", "kind"),
    [
        (UserError("no"), stage.REFUSED, "FAILED"),
        (stages.StageFailed("died"), "Failed", "FAILED"),
        (Stopped("x"), "Cancelled", "CANCELLED"),
    ],
)
def test_how_a_stage_ends_says_whether_another_try_may_help(pair, monkeypatch, error, name, kind):
    def fail(*_):
        raise error

    monkeypatch.setattr(stage, "_run", fail)
    with disable_run_logger():
        state = stage.stage.fn({"stage": "shard"}, str(pair[1]))
    assert (state.name, state.type.value, state.message) == (name, kind, str(error))


# ---- what is deployed


def deployed(file: str) -> dict[str, dict]:
    return {one["name"]: one for one in YAML(typ="safe").load(ROOT / file)["deployments"]}


def test_the_parent_has_a_pool_of_its_own():
    ours = deployed(watch.FILE)
    assert set(ours) == {"stage", "spread"}
    assert ours["stage"]["work_pool"]["name"] != ours["spread"]["work_pool"]["name"]
    assert ours["spread"]["parameters"] == {"spread": True}
    assert f"distill/{ours['stage']['name']}" == spread.DEPLOYMENT


@pytest.mark.parametrize("file", ["prefect.yaml", watch.FILE])
def test_every_deployment_is_watched_by_its_heartbeat(file):
    for one in deployed(file).values():
        assert one["tags"] == [watch.TAG]
        beat = int(one["work_pool"]["job_variables"]["env"]["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"])
        assert watch.SILENCE.total_seconds() >= 3 * beat >= 90


def test_a_silent_run_and_one_that_was_not_started_are_set_to_crashed():
    silent, unstarted = watch.automations()
    for one, after in ((silent, "prefect.flow-run.heartbeat"), (unstarted, "prefect.flow-run.Pending")):
        assert (one.trigger.after, one.trigger.expect) == ({after}, {"prefect.flow-run.*"})
        assert one.trigger.posture.value == "Proactive"
        assert one.trigger.match_related.root["prefect.resource.id"] == f"prefect.tag.{watch.TAG}"
        assert [action.state.value for action in one.actions] == ["CRASHED"]
        assert one.trigger.for_each == {"prefect.resource.id"}  # else one run's heartbeats keep all others alive
    assert unstarted.trigger.within > silent.trigger.within == watch.SILENCE
