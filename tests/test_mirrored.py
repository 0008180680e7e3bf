"""A watched training on spread workers as a real MLflow server shows it while it goes on: asked by REST, on 127.0.0.1.

Two clones with a worker each, a worker for the parent run, Prefect's server and MLflow's. Trainings are held at their looks,
so what is seen while they go on is no matter of time: in the clones the record of a look waits for a file, its gate.
"""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
from ruamel.yaml import YAML

from diffcore.core import disk
from tasks import live
from tests.test_flows import free_port

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.server
LIMIT_SECONDS = 600.0
STARTED: list[subprocess.Popen] = []
MARK = "DISTILL_MIRRORED"
"""In the environment of all that is started here."""

WATCH = "{every: 10, images: 50}"
CHANGES = (
    "distill.pd4.watch=" + WATCH,
    "distill.cd.watch=" + WATCH,
    "teachers.teacher.iterations=20",
    "features.iterations=20",
)
LINES = ("pd4", "cd")
EXPERIMENT = "distill-smoke-live"
LOOKS = [10, 20, 30]
"""Updates after which the trainings are looked at; the last is their end."""

END = LOOKS[-1] + 1
"""A gate that holds no training."""

PNG = b"\x89PNG"

GATE = """

# of tests/test_mirrored.py: after a look a training waits until its gate, a file, names a later update
_look = Record.look


def _held(self, look, *words):
    import os
    from pathlib import Path

    _look(self, look, *words)
    gate = Path(os.environ["GATES"]) / self.about["name"]
    while gate.exists() and int(gate.read_text()) <= look.step:
        time.sleep(0.05)


Record.look = _held
"""


def until(what: str, reached: Callable[[], Any]) -> Any:
    """What `reached` gives as soon as that is true."""
    limit = time.monotonic() + LIMIT_SECONDS
    while not (answer := reached()):
        assert time.monotonic() < limit, f"waited {LIMIT_SECONDS:.0f} s for {what}"
        time.sleep(0.2)
    return answer


def ask(url: str, body: Any = None) -> Any:
    """The answer to a GET, or with a body to a POST; None if there is none."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    straight = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with contextlib.suppress(OSError, ValueError), straight.open(request, timeout=30) as answer:
        return json.loads(answer.read())
    return None


def answer(url: str, body: Any = None) -> Any:
    """The same, asked again until there is one: a busy server has none now and then."""
    answers: list[Any] = []
    until(f"an answer of {url}", lambda: answers.append(ask(url, body)) or answers[-1] is not None)
    return answers[-1]


@dataclass
class Mlflow:
    """An MLflow server that can be killed and started again, and its REST API."""

    folder: Path
    port: int = field(default_factory=free_port)
    process: subprocess.Popen | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        words = ["server", "--host", "127.0.0.1", "--port", str(self.port), "--workers", "1", "--serve-artifacts"]
        places = [
            "--backend-store-uri",
            f"sqlite:///{self.folder}/mlflow.db",
            "--artifacts-destination",
            f"{self.folder}/files",
        ]
        self.process = spawn(
            self.folder, "mlflow", ["mlflow", *words, *places], MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false"
        )
        until("MLflow's answer", self._answers)

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.url}/health", timeout=30) as answer:
            return answer.read() == b"OK"
        return False

    def kill(self) -> None:
        """By SIGKILL, with its workers, which would outlive it and hold the port."""
        family = [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)]
        for process in family:
            process.kill()
        psutil.wait_procs(family)

    def api(self, verb: str, body: Any = None, **words: Any) -> Any:
        return answer(f"{self.url}/api/2.0/mlflow/{verb}?{urllib.parse.urlencode(words)}", body)

    def runs(self, line: str) -> list[dict[str, Any]]:
        """The live runs of a line, the newest first."""
        wanted = {"filter": f"name = '{EXPERIMENT}'", "max_results": 1}
        experiments = [each["experiment_id"] for each in self.api("experiments/search", wanted).get("experiments", [])]
        if not experiments:
            return []
        order = {"filter": f"attributes.run_name = 'live/{line}'", "order_by": ["attributes.start_time DESC"]}
        return self.api("runs/search", {"experiment_ids": experiments, **order}).get("runs", [])

    def run(self, line: str) -> dict[str, Any] | None:
        return next(iter(self.runs(line)), None)

    def status(self, line: str) -> str | None:
        run = self.run(line)
        return run["info"]["status"] if run else None

    def steps(self, line: str, metric: str) -> list[int]:
        """The updates of which the newest run has a metric, as often as it has it."""
        run = self.run(line)
        history = self.api("metrics/get-history", run_id=run["info"]["run_id"], metric_key=metric) if run else {}
        return sorted(each["step"] for each in history.get("metrics", []))

    def strips(self, line: str) -> dict[int, str]:
        """The pictures of samples of the newest run, by update: their paths."""
        run = self.run(line)
        listed = self.api("artifacts/list", run_id=run["info"]["run_id"], path="images") if run else {}
        paths = [each["path"] for each in listed.get("files", []) if each["path"].endswith(".png")]
        return {int(re.search(r"samples\Wstep\W(\d+)", path)[1]): path for path in paths}

    def file(self, line: str, path: str) -> bytes:
        words = urllib.parse.urlencode({"run_uuid": self.run(line)["info"]["run_id"], "path": path})
        with urllib.request.urlopen(f"{self.url}/get-artifact?{words}", timeout=30) as answer:
            return answer.read()


def spawn(folder: Path, name: str, words: list[str], cwd: Path | None = None, **more: str) -> subprocess.Popen:
    """A module of Python's in a session of its own, that writes to logs/NAME."""
    (folder / "logs").mkdir(exist_ok=True)
    with open(folder / "logs" / name, "ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", *words],
            cwd=cwd or folder,
            env={**os.environ, MARK: str(folder), "PYTHONPATH": "", "DO_NOT_TRACK": "true", **more},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    STARTED.append(process)
    return process


def command(process: psutil.Process) -> list[str]:
    with contextlib.suppress(psutil.Error):
        return process.cmdline()
    return []


def marked(folder: Path) -> list[psutil.Process]:
    """All processes that were started here, whoever their parent is by now."""
    processes = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(MARK) == str(folder) and process.pid != os.getpid():
                processes.append(process)
    return processes


@dataclass
class Pool:
    """Two clones with a worker each, the parent's worker, Prefect's server and MLflow's."""

    folder: Path
    mlflow: Mlflow
    port: int = field(default_factory=free_port)
    workers: dict[str, subprocess.Popen] = field(default_factory=dict)

    @property
    def clones(self) -> dict[str, Path]:
        return {name: self.folder / name for name in ("one", "other")}

    @property
    def environment(self) -> dict[str, str]:
        return {
            "PREFECT_API_URL": f"http://127.0.0.1:{self.port}/api",
            "PREFECT_HOME": str(self.folder / "prefect"),
            "PREFECT_PROFILES_PATH": str(self.folder / "prefect/profiles.toml"),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "MLFLOW_TRACKING_URI": self.mlflow.url,
            "DISTILL_RESUME": str(self.folder / "states"),
            "GATES": str(self.folder / "gates"),
        }

    def clone(self) -> None:
        """A workspace has the code but for the flows; a training's record of a look waits for its gate."""
        for name in ("remote", "states", "gates"):
            (self.folder / name).mkdir()
        for clone in self.clones.values():
            words = [word for change in CHANGES for word in ("--set", change)]
            make = [sys.executable, "-m", "tasks", "workspace", str(clone), "--preset", "smoke", *words]
            subprocess.run(make, cwd=ROOT, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
            shutil.copytree(ROOT / "flows", clone / "flows", ignore=shutil.ignore_patterns("__pycache__"))
            for name in ("prefect.toml", "prefect.spread.yaml"):
                shutil.copy(ROOT / name, clone)
            with open(clone / "tasks/recording.py", "a") as code:
                code.write(GATE)
            with open(clone / ".dvc/config.local", "a") as config:
                config.write(f"[core]\n    remote = store\n['remote \"store\"']\n    url = {self.folder / 'remote'}\n")

    def start(self) -> None:
        clone, pools = self.clones["one"], {"gpu": "stage", "parents": "spread"}
        spawn(
            self.folder, "server", ["prefect", "server", "start", "--port", str(self.port)], clone, **self.environment
        )
        until("Prefect's answer", lambda: self.api("health") is True)
        for pool in pools:
            self.prefect("work-pool", "create", pool, "--type", "process")
        self.prefect("--no-prompt", "deploy", "--all", "--prefect-file", "prefect.spread.yaml")
        for name in self.clones:
            self.workers[name] = self.worker(name, name, "gpu", "--limit", "1")
        self.workers["parent"] = self.worker("parent", "one", "parents")

    def prefect(self, *words: str) -> None:
        ended = spawn(self.folder, "prefect", ["prefect", *words], self.clones["one"], **self.environment)
        assert ended.wait(LIMIT_SECONDS) == 0, (self.folder / "logs/prefect").read_text()

    def worker(self, name: str, clone: str, pool: str, *words: str) -> subprocess.Popen:
        place = self.clones[clone]
        command = ["prefect", "worker", "start", "--pool", pool, "--name", name, *words]
        more = {"DISTILL_ROOT": str(place), "PYTHONPATH": str(place)}
        return spawn(self.folder, name, command, place, **{**self.environment, **more})

    def api(self, path: str, body: Any = None) -> Any:
        return answer(f"http://127.0.0.1:{self.port}/api/{path}", body)

    def gate(self, line: str, step: int) -> None:
        """The training of a line goes no further than its first look after so many updates or more."""
        disk.write(self.folder / "gates" / line, f"{step}")

    def go(self, *targets: str) -> str:
        """Starts a spread run of these stages and gives its id."""
        deployment = self.api("deployments/name/distill/spread")["id"]
        body = {
            "parameters": {"targets": targets, "retries": 2, "spread": True},
            "idempotency_key": f"{time.time_ns()}",
        }
        return self.api(f"deployments/{deployment}/create_flow_run", body)["id"]

    def state(self, run: str) -> str:
        return (self.api(f"flow_runs/{run}")["state"] or {}).get("type", "")

    def stage(self, run: str, name: str) -> dict[str, Any] | None:
        """The last run of a stage of a run."""
        wanted = {"flow_runs": {"parent_flow_run_id": {"any_": [run]}}, "sort": "EXPECTED_START_TIME_DESC"}
        return next((each for each in self.api("flow_runs/filter", wanted) if each["name"] == name), None)

    def completed(self, run: str, name: str) -> bool:
        stage = self.stage(run, name) or {"state": {"type": ""}}
        assert stage["state"]["type"] not in ("FAILED", "CANCELLED"), stage["state"]
        return stage["state"]["type"] == "COMPLETED"

    def until_seen(self, run: str, line: str, step: int) -> None:
        """Waits until MLflow shows a line's look after so many updates, as the last, with its strip."""

        def seen() -> bool:
            assert self.state(run) not in ("FAILED", "CRASHED", "CANCELLED", "COMPLETED"), self.api(f"flow_runs/{run}")
            return self.mlflow.steps(line, "watch_fd")[-1:] == [step] and step in self.mlflow.strips(line)

        until(f"the look of {line} after {step} updates", seen)

    def last_look(self, line: str) -> int:
        """As the training itself has written it."""
        training = live.read(live.folder(self.folder / "states") / f"{line}.jsonl")
        return training.looks[-1]["step"] if training and training.looks else 0

    def change(self, line: str, **numbers: float) -> None:
        """Other parameters of a line, in all clones: so it is trained once more."""
        for clone in self.clones.values():
            path = clone / "params.yaml"
            parameters = YAML(typ="safe").load(path)
            parameters["distill"][line] |= numbers
            with open(path, "w") as file:
                YAML(typ="safe").dump(parameters, file)

    def held(self, line: str, look: int, **numbers: float) -> tuple[int, str]:
        """(how many runs MLflow has of the line then, the run of Prefect): with these numbers, seen until it waits after a
        look."""
        runs = len(self.mlflow.runs(line)) + 1
        self.change(line, **numbers)
        self.gate(line, look)
        run = self.go(f"distill@{line}")
        self.until_seen(run, line, look)
        return runs, run

    def kill_worker(self) -> None:
        """Kills the worker in whose place a stage is at work, and the process of the stage's run; another worker comes."""
        for name in self.clones:
            worker = psutil.Process(self.workers[name].pid)
            engines = [one for one in worker.children(recursive=True) if "prefect.engine" in command(one)]
            if engines:
                for process in (worker, *engines):
                    process.kill()
                self.workers[name].wait()
                self.workers[name] = self.worker(name, name, "gpu", "--limit", "1")
                return
        raise AssertionError("no worker has a stage at work")

    def follow(self, line: str) -> None:
        """`distill follow`, in a clone, until all is shown."""
        place = self.clones["one"]
        words = ["tasks", "follow", line]
        ended = spawn(self.folder, "follow", words, place, **{**self.environment, "PYTHONPATH": str(place)})
        assert ended.wait(LIMIT_SECONDS) == 0, (self.folder / "logs/follow").read_text()

    def artifacts(self, stage: str) -> list[str]:
        rows = self.api("artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [stage]}}})
        return [row["key"] for row in rows]

    def log(self, stage: str) -> list[str]:
        rows = self.api("logs/filter", {"logs": {"flow_run_id": {"any_": [stage]}}, "limit": 200})
        return [row["message"] for row in rows]

    def end(self) -> None:
        """All that was started here, by its process ids; twice, for what was starting meanwhile."""
        for _ in range(2):
            processes = marked(self.folder)
            for process in processes:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(processes, timeout=60)
        while STARTED:
            STARTED.pop().wait()


@pytest.fixture(scope="module")
def pool(fresh_store, tmp_path_factory) -> Iterator[Pool]:
    folder = tmp_path_factory.mktemp("mirrored")
    shutil.copy(fresh_store, folder / "mlflow.db")
    pool = Pool(folder, Mlflow(folder))
    try:
        pool.clone()
        pool.mlflow.start()
        pool.start()
        yield pool
    finally:
        pool.end()
    assert marked(folder) == []


def is_whole(mlflow: Mlflow, line: str, runs: int = 1) -> None:
    """A run for each job of the line, of which the newest has each point and look of its training once, and has ended."""
    assert len(mlflow.runs(line)) == runs
    assert mlflow.status(line) == "FINISHED"
    assert mlflow.steps(line, "train_loss") == [*range(1, LOOKS[-1] + 1)]
    for metric in ("watch_fd", "watch_diversity"):
        assert mlflow.steps(line, metric) == LOOKS, metric
    assert max(mlflow.strips(line)) == LOOKS[-1]  # of looks that are seen at once there is the last one's


def test_two_trainings_side_by_side_are_seen_while_they_go_on_and_each_ends_for_itself(pool):
    """One worker's training ends while the other's goes on, of which nothing changes by that."""
    mlflow = pool.mlflow
    for line in LINES:
        pool.gate(line, LOOKS[0])
    run = pool.go("distill@pd4", "distill@cd")
    for line in LINES:
        pool.until_seen(run, line, LOOKS[0])
        assert mlflow.status(line) == "RUNNING"
        assert mlflow.steps(line, "train_loss") == [*range(1, LOOKS[0] + 1)]
        (strip,) = mlflow.strips(line).values()
        assert mlflow.file(line, strip).startswith(PNG)
    pool.gate("pd4", END)
    until("the end of pd4", lambda: pool.completed(run, "distill@pd4"))
    is_whole(mlflow, "pd4")
    assert mlflow.status("cd") == "RUNNING"
    assert mlflow.steps("cd", "watch_fd") == LOOKS[:1]
    pool.gate("cd", END)
    until("the end of the run", lambda: pool.state(run) == "COMPLETED")
    for line in LINES:
        is_whole(mlflow, line)
        stage = pool.stage(run, f"distill@{line}")["id"]
        (follows,) = (row for row in pool.log(stage) if row.startswith("follow: "))  # its own, none of the other's
        assert follows.startswith(f"follow: {line}: {mlflow.url}/#/experiments/")
        assert f"live-{line}-samples" in pool.artifacts(stage)


def test_a_server_that_dies_and_comes_back_shows_all_and_no_training_waits_for_it(pool):
    mlflow = pool.mlflow
    runs, run = pool.held("pd4", LOOKS[0], lr=1e-3)
    mlflow.kill()
    pool.gate("pd4", LOOKS[1])
    until("the training's second look", lambda: pool.last_look("pd4") == LOOKS[1])
    stage = pool.stage(run, "distill@pd4")["id"]
    until("a line that it is not shown", lambda: any("follow: not shown: MLflow at " in row for row in pool.log(stage)))
    mlflow.start()
    pool.until_seen(run, "pd4", LOOKS[1])
    assert mlflow.status("pd4") == "RUNNING"
    mlflow.kill()
    pool.gate("pd4", END)
    until("the end of the run", lambda: pool.state(run) == "COMPLETED")
    remedy = "follow: not shown to its end; once MLflow answers, `distill follow pd4` shows it"
    until("the remedy in the log", lambda: pool.log(stage).count(remedy) == 1)
    assert pool.log(stage).count("follow: shown again") == 1
    mlflow.start()
    assert mlflow.status("pd4") == "RUNNING"
    pool.follow("pd4")
    is_whole(mlflow, "pd4", runs)


def test_what_a_worker_that_dies_leaves_is_killed_until_another_goes_on_with_it(pool):
    mlflow = pool.mlflow
    runs, run = pool.held("pd4", LOOKS[1], lr=3e-3)
    stage = pool.stage(run, "distill@pd4")["id"]
    pool.kill_worker()
    until("the end of the run in MLflow", lambda: mlflow.status("pd4") == "KILLED")
    # as the automation does once there was no heartbeat for two minutes
    crashed = {"type": "CRASHED", "name": "Crashed", "message": "no heartbeat"}
    pool.api(f"flow_runs/{stage}/set_state", {"state": crashed, "force": True})
    until("MLflow's run to go on", lambda: mlflow.status("pd4") == "RUNNING")
    pool.gate("pd4", END)
    until("the end of the run", lambda: pool.state(run) == "COMPLETED")
    is_whole(mlflow, "pd4", runs)
    assert pool.stage(run, "distill@pd4")["id"] != stage
