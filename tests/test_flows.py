"""Orchestration on a toy pipeline: the order, the slots, the words of a failure, and that nothing is left running.

The quick tests need no server. The slow ones start the real Prefect server, MLflow server and worker on free ports.
"""

import contextlib
import ctypes
import dataclasses
import http.server
import inspect
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import tomllib
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from dvc.lock import LockError
from prefect.cache_policies import NO_CACHE
from prefect.logging import disable_run_logger
from prefect.states import Cancelled, Completed, Crashed, Failed, Pending
from ruamel.yaml import YAML

from console.start import ask
from diffcore.core import disk
from diffcore.core.errors import UserError
from flows import distill, pages, planning, ready, services, watch
from flows.service import MARK, NAMES, Folder, Record, Service
from tasks import alone, command, locks, stages
from tasks.running import SUPERVISOR, Ended, Running, Stopped, surroundings

ROOT = Path(__file__).resolve().parents[1]
pytestmark = [
    pytest.mark.filterwarnings("ignore:_NoneStep.value will soon raise:DeprecationWarning"),  # DVC's own
]

# a stage does what params.yaml says of it: ok, exit N, faults N, kill once, sleep SECONDS
TOY_TASKS = """
import json, os, pathlib, shutil, signal, subprocess, sys, time

def check():
    if "typo" in json.loads(pathlib.Path("params.yaml").read_text()):
        print("error: params.yaml: typo: unknown key, did you mean 'work'?")
        sys.exit(2)

def workspace(folder, _, preset):
    if preset != "smoke":
        print(f"error: no preset {preset!r}: there is smoke")
        sys.exit(2)
    for part in ("tasks", ".dvc", "dvc.yaml", "params.yaml"):
        copy = shutil.copytree if pathlib.Path(part).is_dir() else shutil.copy
        pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
        copy(part, pathlib.Path(folder, part), **({"dirs_exist_ok": True} if copy is shutil.copytree else {}))

def work(name, out):
    action, *more = json.loads(pathlib.Path("params.yaml").read_text())["work"][name].split()
    print(f"{name} begins with GPU {os.environ.get('CUDA_VISIBLE_DEVICES')}", flush=True)
    with open("log.txt", "a") as log:
        log.write(f"{name} {time.time()}\\n")
    if action == "exit":
        print(f"error: {name} fails on purpose", file=sys.stderr)
        sys.exit(int(more[0]))
    if action == "faults":
        print("error: netwrok: unknown key, did you mean 'network'?\\nerror: network: missing", file=sys.stderr)
        print("error: http://me:s3same@h/ is down", file=sys.stderr)
        sys.exit(int(more[0]))
    if action == "kill" and not pathlib.Path("killed").exists():
        pathlib.Path("killed").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if action in ("sleep", "deaf"):
        if action == "deaf":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        own = subprocess.Popen([sys.executable, "-c", f"import time; time.sleep({more[0]})"], start_new_session=True)
        pathlib.Path("pids.txt").write_text(f"{os.getpid()} {own.pid}\\n")
        time.sleep(float(more[0]))
    pathlib.Path(out).parent.mkdir(parents=True, exist_ok=True)
    pathlib.Path(out).write_text("name,fd\\nteacher,1.5\\n")

{"check": check, "workspace": workspace, "work": work}[sys.argv[1]](*sys.argv[2:])
"""

TOY_PIPELINE = {
    "stages": {
        "shard": {
            "cmd": "python -m tasks work shard artifacts/shard",
            "params": ["work.shard"],
            "outs": ["artifacts/shard"],
        },
        "arm": {
            "foreach": ["left", "right"],
            "do": {
                "cmd": "python -m tasks work ${item} artifacts/${item}",
                "params": ["work.${item}"],
                "deps": ["artifacts/shard"],
                "outs": ["artifacts/${item}"],
            },
        },
        "evaluate": {
            "cmd": "python -m tasks work evaluate artifacts/frontier.csv",
            "params": ["work.evaluate"],
            "deps": ["artifacts/left", "artifacts/right"],
            "outs": ["artifacts/frontier.csv"],
        },
    }
}

CONFIG = "[core]\n    analytics = false\n    check_update = false\n    no_scm = true\n"


def toy(folder: Path, **actions: str) -> Path:
    """A project of four stages: shard, two arms on it, and evaluate on both."""
    (folder / "tasks").mkdir(parents=True)
    (folder / "tasks" / "__init__.py").touch()  # else a `tasks` further down Python's path hides it
    (folder / "tasks" / "__main__.py").write_text(TOY_TASKS)
    (folder / ".dvc").mkdir()
    (folder / ".dvc" / "config").write_text(CONFIG)
    (folder / "dvc.yaml").write_text(json.dumps(TOY_PIPELINE))
    behave(folder, **actions)
    return folder


def behave(folder: Path, **actions: str) -> None:
    work = dict.fromkeys(("shard", "left", "right", "evaluate"), "ok") | actions
    (folder / "params.yaml").write_text(json.dumps({"work": work}))


def starts(folder: Path) -> list[str]:
    """The names of the stages in the order in which they began."""
    log = folder / "log.txt"
    return [line.split()[0] for line in log.read_text().splitlines()] if log.exists() else []


def until(true, seconds: float = 60.0) -> bool:
    limit = time.monotonic() + seconds
    while not (found := true()) and time.monotonic() < limit:
        time.sleep(0.05)
    return bool(found)  # asked once where once is enough: what is asked may start a run


@contextlib.contextmanager
def at_work(**options) -> Iterator[subprocess.Popen]:
    """A process that does nothing, and ends with the block however that is left."""
    with subprocess.Popen(["sleep", "300"], **options) as process:
        try:
            yield process
        finally:
            process.kill()


def gone(pid: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    return True


def pids(folder: Path) -> list[int]:
    assert until(lambda: len((folder / "pids.txt").read_text().split()) == 2 if (folder / "pids.txt").exists() else 0)
    return [int(word) for word in (folder / "pids.txt").read_text().split()]


# ---- the graph


def test_the_graph_is_dvc_s_and_every_stage_comes_after_those_it_needs(tmp_path):
    found = stages.graph(toy(tmp_path))
    assert {name: stage.after for name, stage in found.items()} == {
        "shard": (),
        "arm@left": ("shard",),
        "arm@right": ("shard",),
        "evaluate": ("arm@left", "arm@right"),
    }
    order = list(found)
    assert all(order.index(above) < order.index(name) for name, stage in found.items() for above in stage.after)
    assert found["evaluate"].outs == ("artifacts/frontier.csv",)


def test_targets_bring_what_they_depend_on_and_no_more(tmp_path):
    found = stages.graph(toy(tmp_path))
    assert list(stages.chosen(found, ["arm@left"])) == ["shard", "arm@left"]
    assert set(stages.chosen(found, ["arm"])) == {"shard", "arm@left", "arm@right"}
    assert stages.chosen(found, []) == found
    with pytest.raises(UserError, match=r"no stage 'evaluat': did you mean 'evaluate'\?"):
        stages.chosen(found, ["evaluat"])


@pytest.mark.parametrize("broken", ["no repository", "no stages", "bad yaml"])
def test_a_workspace_that_dvc_cannot_read_is_a_mistake_in_one_line(tmp_path, broken):
    if broken != "no repository":
        (toy(tmp_path) / "dvc.yaml").write_text("stages: {}" if broken == "no stages" else "stages: {a: {cmd: ")
    with pytest.raises(UserError) as caught:
        stages.graph(tmp_path)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


# ---- one stage


def task(folder: Path, name: str, running: Running | None = None, **environment: str):
    slots = locks.Slots([locks.Slot(folder / ".dvc" / "tmp" / "slot.lock", environment)])
    with disable_run_logger():
        return distill.run_stage.fn(name, folder, running or Running(), slots)


def test_a_stage_runs_once_and_is_then_cached_without_a_process(tmp_path, monkeypatch):
    toy(tmp_path)
    assert task(tmp_path, "shard").name == "Completed"
    monkeypatch.setattr(Running, "run", lambda *a, **k: pytest.fail("a process was started"))
    state = task(tmp_path, "shard")
    assert (state.name, state.is_completed()) == ("Cached", True)
    assert starts(tmp_path) == ["shard"]


@pytest.mark.parametrize(
    "shell", ["/bin/sh", pytest.param("/bin/bash", marks=pytest.mark.slow)]
)  # DVC takes $SHELL, and they remark differently
@pytest.mark.parametrize(
    ("action", "error", "line"),
    [
        ("exit 2", UserError, "shard: shard fails on purpose"),
        ("exit 1", stages.StageFailed, "shard exited with 1: shard fails on purpose"),
        ("kill", stages.StageFailed, "shard was ended by SIGKILL: shard begins with GPU None"),
    ],
)
def test_a_failed_stage_tells_its_own_code_and_its_own_last_line(tmp_path, monkeypatch, action, error, line, shell):
    monkeypatch.setenv("SHELL", shell)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with pytest.raises(error) as caught:
        task(toy(tmp_path, shard=action), "shard")
    assert str(caught.value) == line


def test_only_a_crash_is_tried_again():
    def again(error: Exception) -> bool:
        return distill._may_help(None, None, Failed(data=error))

    assert again(stages.StageFailed("was ended by SIGKILL"))
    assert not again(UserError("a typo"))
    assert not again(Stopped("the run is cancelled"))


def test_the_cause_when_dvc_itself_fails():
    lines = ("Running stage 'a':", "ERROR: 'artifacts/x' is busy", "see the documentation")
    assert stages.cause(Ended(255, lines)) == (255, "ERROR: 'artifacts/x' is busy")
    assert stages.cause(Ended(255, ())) == (255, "it said nothing")
    refused = ("Running stage 'a':", "error: dvc.lock: no space left on the disk", "ERROR: other")
    assert stages.cause(Ended(2, refused)) == (2, "dvc.lock: no space left on the disk")


# ---- processes


def start(function, *arguments):
    """Runs a function in a thread: gives the future."""
    pool = ThreadPoolExecutor(1)
    future = pool.submit(function, *arguments)
    pool.shutdown(wait=False)
    return future


@pytest.mark.slow
@pytest.mark.parametrize("action", ["sleep 60", "deaf 60"])
def test_lines_stream_and_stop_ends_the_whole_tree(tmp_path, action):
    toy(tmp_path, shard=action)
    running, heard = Running(grace=2), []
    future = start(stages.reproduce, "shard", tmp_path, running, heard.append, {"CUDA_VISIBLE_DEVICES": "GPU-7"})
    tree = pids(tmp_path)  # the stage, and a process of its own session below it
    assert until(lambda: "shard begins with GPU GPU-7" in heard)
    assert not future.done()
    running.stop()
    assert isinstance(future.exception(120), Stopped)
    assert all(map(gone, tree))
    with pytest.raises(Stopped):
        running.run(["true"], tmp_path, heard.append)
    behave(tmp_path)
    assert task(tmp_path, "shard").name == "Completed"  # no lock of DVC's is left behind


def test_all_faults_of_a_stage_are_told_and_a_password_is_not(tmp_path):
    toy(tmp_path, shard="faults 2")
    heard = []
    with pytest.raises(UserError) as caught:
        stages.reproduce("shard", tmp_path, Running(), heard.append)
    assert (
        str(caught.value) == "shard: netwrok: unknown key, did you mean 'network'?; network: missing; http://h/ is down"
    )
    assert "error: network: missing" in heard
    assert "s3same" not in "\n".join(heard)


def test_faults_are_bounded_and_the_rest_counted():
    lines = [f"error: fault {k} {'x' * 80}" for k in range(200)]
    told = stages.faults(["Running stage 'a':", *lines])
    assert len(told) < stages.FAULTS + 40
    assert told.startswith("fault 0 xxx")
    shown = told.count("fault ")
    assert told.endswith(f"; and {200 - shown} more in the log")
    assert stages.faults(["error: " + "x" * 9999]) == "x" * stages.FAULTS
    assert stages.faults(["no fault"]) == ""


def test_a_stage_waits_for_another_command_that_holds_its_files_and_says_who(tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "BUSY_SECONDS", 0.1)
    toy(tmp_path)
    heard = []
    with at_work() as other:
        held = {"pid": other.pid, "cmd": "/bin/dvc repro"}
        (tmp_path / ".dvc" / "tmp").mkdir()
        (tmp_path / ".dvc" / "tmp" / "rwlock").write_text(
            json.dumps({"write": {str(tmp_path / "artifacts/shard"): held}})
        )
        future = start(stages.reproduce, "shard", tmp_path, Running(), heard.append)
        assert until(lambda: any("waiting" in line for line in heard), 60)
        assert not future.done()
    assert future.result(120) is None
    assert (tmp_path / "artifacts/shard").is_file()
    waiting = f"waiting: shard needs files on which another command is at work: /bin/dvc repro (pid {other.pid})"
    assert heard.count(waiting) == 1
    assert not [line for line in heard if "manually remove" in line or "is busy" in line]


def test_a_stage_that_waits_for_another_command_can_be_stopped(tmp_path):
    toy(tmp_path)
    running, heard = Running(), []
    held = {"pid": os.getpid(), "cmd": "dvc repro"}
    (tmp_path / ".dvc" / "tmp").mkdir()
    (tmp_path / ".dvc" / "tmp" / "rwlock").write_text(json.dumps({"write": {str(tmp_path / "artifacts/shard"): held}}))
    future = start(stages.reproduce, "shard", tmp_path, running, heard.append)
    assert until(lambda: any("waiting" in line for line in heard), 60)
    running.stop()
    assert isinstance(future.exception(120), Stopped)


def test_when_dvc_cannot_look_at_a_stage_another_try_may_help(tmp_path, monkeypatch):
    def locked(*_) -> bool:
        raise LockError("Unable to acquire lock.\nMost likely another DVC process is running")

    monkeypatch.setattr(stages, "_unchanged", locked)
    with pytest.raises(
        stages.StageFailed, match=r"^shard: DVC cannot look at it: Unable to acquire lock\. Most likely"
    ):
        stages.up_to_date(tmp_path, "shard")


def test_a_stopped_stage_is_cancelled_not_failed(tmp_path):
    toy(tmp_path, shard="sleep 60")
    running = Running(grace=2)
    future = start(task, tmp_path, "shard", running)
    pids(tmp_path)
    running.stop()
    assert future.result(120).is_cancelled()


HOLDER = """
import sys
from pathlib import Path
from tasks import locks
from tasks.running import Running
folder = Path(sys.argv[1])
descriptor = locks.take(folder / "lock")
Running(keep=[descriptor], grace=2).run([sys.executable, "-m", "tasks", "work", "shard", "out"], folder, print)
"""


@pytest.mark.slow
@pytest.mark.parametrize("action", ["sleep 60", "deaf 60"])
def test_a_flow_killed_with_9_leaves_no_process_and_its_lock_lasts_as_long_as_they_do(tmp_path, action):
    toy(tmp_path, shard=action)
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], cwd=ROOT, stdout=subprocess.DEVNULL) as flow:
        stage, own = pids(tmp_path)
        flow.kill()
    freed = None
    while freed is None:  # whenever the lock is free, the processes are gone
        freed = locks.take(tmp_path / "lock")
        time.sleep(0.02)
    os.close(freed)
    assert gone(stage)
    assert gone(own)


def test_what_a_command_leaves_running_is_ended(tmp_path):
    script = "import subprocess, sys; print(subprocess.Popen(['sleep', '60'], start_new_session=True).pid)"
    ended = Running().run([sys.executable, "-c", script], tmp_path, lambda line: None)
    assert ended.code == 0
    assert gone(int(ended.lines[-1]))


def test_a_silent_command_does_not_make_the_runner_deaf(tmp_path):
    """Prefect's time-outs and cancellations are exceptions raised into the thread; they must arrive in time."""
    running = Running(grace=2)
    thread_id: list[int] = []

    def run():
        thread_id.append(threading.get_ident())
        running.run(["sleep", "60"], tmp_path, lambda line: None)

    future = start(run)
    assert until(lambda: running._supervisors)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread_id[0]), ctypes.py_object(TimeoutError))
    assert isinstance(future.exception(120), TimeoutError)
    assert not running._supervisors


def test_the_exit_code_is_passed_on(tmp_path):
    codes = [Running().run(["sh", "-c", word], tmp_path, print).code for word in ("exit 7", "kill -9 $$", "true")]
    assert codes == [7, 137, 0]


# ---- locks and slots


def test_the_second_waits_says_so_once_and_goes_on(tmp_path):
    said = []

    def second():
        with locks.hold(tmp_path / "lock", said.append, "waiting: another run"):
            return "inside"

    with locks.hold(tmp_path / "lock", said.append, "waiting: another run"):
        assert said == []
        future = start(second)
        assert until(lambda: said)
        time.sleep(3 * locks.POLL_SECONDS)
        assert not future.done()
    assert future.result(120) == "inside"
    assert said == ["waiting: another run"]


def test_no_more_stages_than_slots_and_each_has_its_own(tmp_path):
    slots = locks.Slots([locks.Slot(tmp_path / name, {"CUDA_VISIBLE_DEVICES": name}) for name in "ab"])
    said, inside, most = [], [], []

    def stage(_):
        with slots.taken("any", said.append, lambda: None) as (environment, _):
            inside.append(environment["CUDA_VISIBLE_DEVICES"])
            most.append(sorted(inside))
            time.sleep(0.2)
            inside.remove(environment["CUDA_VISIBLE_DEVICES"])

    with ThreadPoolExecutor(5) as pool:
        list(pool.map(stage, range(5)))
    assert max(most, key=len) == ["a", "b"]
    assert all(len(names) == len(set(names)) for names in most)
    assert set(said) == {"waiting: all 2 slots are taken"}


def test_a_stage_that_waits_for_a_slot_can_be_stopped(tmp_path):
    running = Running()
    slots = locks.Slots([locks.Slot(tmp_path / "slot", {})])
    toy(tmp_path / "toy")
    with slots.taken("any", print, lambda: None), disable_run_logger():
        future = start(distill.run_stage.fn, "shard", tmp_path / "toy", running, slots)
        time.sleep(0.5)
        running.stop()
        assert future.result(120).is_cancelled()
    assert starts(tmp_path / "toy") == []


LISTING = """GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-aaaa-1)
GPU 1: NVIDIA H100 80GB HBM3 (UUID: GPU-bbbb-2)
  MIG 1g.10gb     Device  0: (UUID: MIG-cccc-3)
  MIG 1g.10gb     Device  1: (UUID: MIG-dddd-4)
"""


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (None, ["GPU-aaaa-1", "MIG-cccc-3", "MIG-dddd-4"]),
        ("", []),
        ("0", ["GPU-aaaa-1"]),
        ("MIG-dddd-4, GPU-aaaa", ["MIG-dddd-4", "GPU-aaaa-1"]),
        ("0,-1,1", ["GPU-aaaa-1"]),
        ("9", []),
    ],
)
def test_the_devices_are_those_that_cuda_would_show(wanted, expected, tmp_path, monkeypatch):
    assert locks.visible(LISTING, wanted) == expected
    command = tmp_path / "nvidia-smi"
    command.write_text(f"#!/bin/sh\n[ \"$1\" = -L ] && cat <<'.'\n{LISTING}.\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("NVIDIA_VISIBLE_DEVICES", "all")  # a container's, which CUDA does not read
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if wanted is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", wanted)
    assert locks.gpus() == expected
    command.write_text("#!/bin/sh\nexit 9\n")
    assert locks.gpus() == []


def test_without_a_gpu_there_are_as_many_slots_as_asked(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "gpus", list)
    assert len(locks.here(tmp_path, 3).all) == 3
    with pytest.raises(UserError, match="slots must be at least 1"):
        locks.here(tmp_path, 0)


# ---- the flow's own parts


def test_a_typo_in_the_parameters_stops_the_flow_before_any_stage(tmp_path):
    toy(tmp_path)
    (tmp_path / "params.yaml").write_text('{"typo": 1}')
    with pytest.raises(UserError, match=r"^params.yaml: typo: unknown key"), ready.ready(tmp_path, None, print):
        pytest.fail("it went on")


def test_a_preset_works_in_a_workspace_of_its_own(tmp_path):
    toy(tmp_path)
    with ready.ready(tmp_path, "smoke", print) as (workspace, _):
        assert workspace == tmp_path / ".workspaces" / "smoke"
        assert set(stages.graph(workspace)) == {"shard", "arm@left", "arm@right", "evaluate"}
    assert set(stages.graph(tmp_path)) == set(stages.graph(workspace))
    with pytest.raises(UserError, match="no preset 'smok': there is smoke"), ready.ready(tmp_path, "smok", print):
        pytest.fail("it went on")


def test_a_run_mends_what_a_kill_left_of_dvc_s_files_and_keeps_what_is_whole(tmp_path):
    toy(tmp_path)
    with ready.ready(tmp_path, None, print):
        assert task(tmp_path, "shard").name == "Completed"
    whole = (tmp_path / "dvc.lock").read_bytes()
    (tmp_path / "dvc.lock").write_bytes(b"")
    (tmp_path / ".dvc" / "tmp" / "rwlock").write_text("{")
    said = []
    with ready.ready(tmp_path, None, said.append):
        assert (tmp_path / "dvc.lock").read_bytes() == whole
        assert task(tmp_path, "shard").name == "Cached"
    assert any("dvc.lock was damaged" in line for line in said)
    assert any("rwlock was damaged" in line for line in said)


@pytest.mark.parametrize("preset", [None, "smoke"])
def test_two_runs_in_one_workspace_come_one_after_the_other(tmp_path, preset):
    toy(tmp_path)
    said = []

    def second():
        with ready.ready(tmp_path, preset, said.append):
            return time.monotonic()

    with ready.ready(tmp_path, preset, lambda line: None) as (workspace, _):
        future = start(second)
        assert until(lambda: f"waiting: another run works in {workspace}" in said)
        time.sleep(0.5)
        end = time.monotonic()
    assert future.result(120) > end


def test_a_flow_and_run_keep_out_of_each_other_s_way(tmp_path, monkeypatch):
    """`python -m tasks run` refuses where a flow is at work, and a flow waits for it."""
    monkeypatch.chdir(toy(tmp_path))
    with ready.ready(tmp_path, None, lambda line: None), pytest.raises(UserError, match="another run is at work"):
        alone.alone().__enter__()
    said = []

    def flow():
        with ready.ready(tmp_path, None, said.append):
            return (tmp_path / "ended").exists()

    with alone.alone():
        future = start(flow)
        assert until(lambda: f"waiting: another run works in {tmp_path}" in said)
        (tmp_path / "ended").touch()
    assert future.result(120)


def test_the_verdict_keeps_the_words_of_what_failed_and_names_what_did_not_run():
    crash, typo = stages.StageFailed("left exited with 1: out of memory"), UserError("right: no such key")
    failed = {"shard": Completed(name="Cached"), "left": Failed(data=crash), "right": Failed(data=typo)}
    state = distill.verdict({**failed, "evaluate": Pending(name="NotReady")})
    assert state.is_failed()
    assert state.message == "left exited with 1: out of memory; right: no such key; not run: evaluate"
    done = distill.verdict({"shard": Completed(name="Cached"), "left": Completed()})
    assert done.is_completed()
    assert done.message == "2 stages: 1 up to date, 1 run or restored"
    assert distill.verdict({"shard": Cancelled()}).is_cancelled()
    crashed = distill.verdict({"shard": Completed(), "left": Crashed(message="its process died"), "right": Cancelled()})
    assert crashed.is_failed()
    assert crashed.message == "its process died"


def test_the_frontier_is_shown_only_by_a_run_that_made_it(tmp_path, monkeypatch):
    tables, images = [], []
    monkeypatch.setattr(pages, "create_table_artifact", lambda table, **_: tables.append(table))
    monkeypatch.setattr(pages, "create_image_artifact", lambda url, **_: images.append(url))
    (tmp_path / "artifacts").mkdir()
    (tmp_path / "artifacts" / "frontier.csv").write_text("name,fd\nteacher,1.5\n")
    (tmp_path / "artifacts" / "frontier.png").write_bytes(b"png")
    pages.show(tmp_path, [stages.Stage("shard", (), ("artifacts/data",))])
    assert (tables, images) == ([], [])
    pages.show(tmp_path, [stages.Stage("evaluate", (), ("artifacts/frontier.csv", "artifacts/frontier.png"))])
    assert tables == [[{"name": "teacher", "fd": "1.5"}]]
    assert images == ["data:image/png;base64,cG5n"]


def test_the_run_s_page_says_what_is_recommended_and_why_with_the_table_s_first_columns_first(tmp_path, monkeypatch):
    from tests.test_pictures import small_table

    artifacts = {}
    for kind in ("table", "image", "markdown"):
        monkeypatch.setattr(
            pages,
            f"create_{kind}_artifact",
            lambda content, key, description: artifacts.update({key: (content, description)}),
        )
    frontier = small_table()
    (tmp_path / "artifacts").mkdir()
    (tmp_path / pages.FRONTIER).write_text(frontier.to_csv())
    (tmp_path / pages.PICTURE).write_bytes(b"png")
    (tmp_path / pages.REPORT).write_text("page")
    disk.write_sealed(tmp_path / pages.RECOMMENDED, frontier.to_json())
    receipt = {"tracking_uri": "http://h:1/", "experiment_id": "3", "frontier": "r1"}
    disk.write_sealed(tmp_path / pages.RECEIPT, receipt)
    stage = stages.Stage("frontier", (), pages.SHOWN)
    publish = stages.Stage("publish", (), (pages.RECEIPT,))
    sentence = pages.show(tmp_path, [stage, publish])
    assert sentence == "recommended: pd4-ddim-uniform-4, the checkpoint artifacts/checkpoints/pd4"
    rows, why = artifacts["frontier"]
    assert why == frontier.recommended.reason
    assert list(rows[0])[:4] == ["name", "nfe", "fd", "fd_se"]
    assert [row["name"] for row in rows][:3] == ["cd-ddim-uniform-1", "pd1-ddim-uniform-1", "teacher-ddim-uniform-1"]
    assert {len(row) for row in rows} == {len(frontier.points[0].row()) + 1}
    assert next(row["fd"] for row in rows if row["name"] == "cd-ddim-uniform-2") == "1.787"  # 2.2 / 2^0.3
    words, why = artifacts["recommendation"]
    assert frontier.recommended.reason in words
    assert f"`{tmp_path / 'artifacts/report.html'}`" in words
    assert f"`{tmp_path / 'artifacts/checkpoints/pd4'}`" in words
    assert "http://h:1/#/experiments/3/runs/r1/artifacts/report.html" in words
    pages.show(tmp_path, [stage])  # what was published is another frontier's
    assert "http" not in artifacts["recommendation"][0]
    done = distill.verdict({"shard": Completed()}, sentence)
    assert done.message == f"1 stages: 0 up to date, 1 run or restored; {sentence}"
    (tmp_path / pages.RECOMMENDED).write_text("{")
    with pytest.raises(UserError, match=r"frontier\.json is damaged"):
        pages.show(tmp_path, [stage])


@pytest.mark.parametrize(
    ("before", "after", "told"), [(None, "1", True), ("1", "2", True), ("1", "1", False), (None, None, False)]
)
@pytest.mark.parametrize("fails", [False, True])
def test_a_new_challenger_is_told_of_once(before, after, told, fails, tmp_path, monkeypatch):
    """Whether the run that published it then failed or not: the version is there."""

    def publish(version: str | None) -> None:
        if version is not None:
            content = {"version": {"name": "sampler", "version": version, "point": "pd4-ddim", "alias": "challenger"}}
            disk.write_sealed(tmp_path / pages.RECEIPT, content)

    events = []
    monkeypatch.setattr(pages, "emit_event", lambda name, resource, payload: events.append((name, resource, payload)))
    (tmp_path / "artifacts").mkdir()
    publish(before)
    with contextlib.suppress(ZeroDivisionError), pages.challenger_told(tmp_path):
        publish(after)
        if fails:
            raise ZeroDivisionError
    resource = {"prefect.resource.id": "distill.model.sampler", "prefect.resource.name": "sampler"}
    payload = {"model": "sampler", "version": after, "point": "pd4-ddim"}
    assert events == [("distill.challenger", resource, payload)] * told


# ---- what is handed on


@dataclass
class Submitted:
    """A stage's future, and what it was submitted with."""

    name: str
    given: tuple
    after: list
    retries: int
    state: object = None


def flow(monkeypatch, folder: Path, verdict=Completed, **given):
    """Runs the flow without Prefect: (what was submitted, its state, what was shown)."""
    submitted, shown, waited = [], [], []

    def with_options(retries):
        def submit(name, *words, wait_for):
            submitted.append(Submitted(name, words, [one.name for one in wait_for], retries, verdict()))
            return submitted[-1]

        return SimpleNamespace(submit=submit)

    monkeypatch.setattr(distill, "run_stage", SimpleNamespace(with_options=with_options))
    monkeypatch.setattr(distill, "wait", waited.extend)
    monkeypatch.setattr(pages, "show", lambda *what: shown.append(what))
    monkeypatch.setattr(locks, "gpus", list)
    with disable_run_logger():
        state = distill.distill.fn(workspace=str(folder), **given)
    assert [one.name for one in waited] == [one.name for one in submitted]
    return submitted, state, shown


def test_the_flow_submits_each_stage_after_those_it_needs_with_all_it_was_given(tmp_path, monkeypatch):
    monkeypatch.chdir(toy(tmp_path / "toy").parent)
    submitted, state, shown = flow(monkeypatch, Path("toy"), targets=("arm",), retries=5, slots=3)
    assert {one.name: one.after for one in submitted} == {
        "shard": [],
        "arm@left": ["shard"],
        "arm@right": ["shard"],
    }
    assert {one.retries for one in submitted} == {5}
    workspace, running, slots = submitted[0].given
    assert all(one.given == (workspace, running, slots) for one in submitted)
    assert workspace == tmp_path / "toy"
    assert [slot.lock for slot in slots.all] == [workspace / f".dvc/tmp/slot-{number}.lock" for number in range(3)]
    assert running.stopped  # once all is done
    assert state.message == "3 stages: 0 up to date, 3 run or restored"
    assert shown == [(workspace, [stages.graph(workspace)[one.name] for one in submitted])]


def test_unless_told_otherwise_the_flow_takes_all_stages_one_at_a_time_and_tries_once_more(tmp_path, monkeypatch):
    submitted, state, shown = flow(monkeypatch, toy(tmp_path), verdict=lambda: Failed(data=UserError("no")))
    assert [one.name for one in submitted] == list(stages.graph(tmp_path))
    assert {one.retries for one in submitted} == {1}
    assert len(submitted[0].given[2].all) == 1
    assert state.is_failed()
    assert shown == [(tmp_path, [])]
    assert inspect.signature(distill.distill.fn).parameters["workspace"].default == "."


def test_a_mistake_of_the_user_s_is_a_failed_run_in_its_own_words(tmp_path, monkeypatch):
    (toy(tmp_path) / "params.yaml").write_text('{"typo": 1}')
    submitted, state, _ = flow(monkeypatch, tmp_path)
    assert submitted == []
    assert state.is_failed()
    assert state.message.startswith("params.yaml: typo: unknown key")
    assert flow(monkeypatch, tmp_path / "nowhere")[1].message.endswith("start in the project's root")


def test_prefect_keeps_no_results_and_tries_a_crash_again_soon():
    """A cache of Prefect's would take a stage for done that DVC knows to be stale."""
    task = distill.run_stage
    assert task.cache_policy == NO_CACHE
    assert (task.persist_result, distill.distill.persist_result) == (False, False)
    assert (task.retry_condition_fn, task.retry_delay_seconds) == (distill._may_help, 2)
    assert (task.name, task.task_run_name, distill.distill.name) == ("stage", "{name}", "distill")


def test_a_stage_gets_its_slot_and_holds_it_until_it_has_ended(tmp_path, monkeypatch):
    toy(tmp_path)
    slot, seen, running = locks.Slot(tmp_path / "slot", {"CUDA_VISIBLE_DEVICES": "GPU-7"}), [], Running()

    def reproduce(*words, keep):
        assert locks.take(slot.lock) is None
        (descriptor,) = keep
        assert os.path.samestat(os.fstat(descriptor), slot.lock.stat())
        seen.append((*words[:3], words[4]))

    monkeypatch.setattr(stages, "reproduce", reproduce)
    monkeypatch.setattr(stages, "up_to_date", lambda *words: seen.append(words))
    with disable_run_logger():
        assert distill.run_stage.fn("shard", tmp_path, running, locks.Slots([slot])).name == "Completed"
    environment = {"CUDA_VISIBLE_DEVICES": "GPU-7", locks.MOST: "1"}
    assert seen == [(tmp_path, "shard"), ("shard", tmp_path, running, environment)]
    os.close(locks.take(slot.lock))


def test_a_workspace_is_locked_then_mended_then_checked_and_at_its_end_stopped_before_it_is_kept(tmp_path, monkeypatch):
    toy(tmp_path)
    seen = []
    lock = tmp_path / ".dvc/tmp/flow.lock"

    def note(what: str, *more) -> None:
        assert locks.take(lock) is None
        seen.append((what, *more))

    monkeypatch.setattr(ready.dvc_files, "mend", lambda: note("mend", Path.cwd()))
    monkeypatch.setattr(ready.dvc_files, "keep", lambda: note("keep", Path.cwd()))
    monkeypatch.setattr(Running, "stop", lambda self: note("stop"))
    monkeypatch.setattr(ready, "run_verb", lambda folder, running, say, *words: note(*words, folder, running._keep))
    with contextlib.suppress(ZeroDivisionError), ready.ready(tmp_path, None, print) as (workspace, running):
        assert workspace == tmp_path
        (kept,) = running._keep
        assert os.path.samestat(os.fstat(kept), lock.stat())
        raise ZeroDivisionError
    assert seen == [("mend", tmp_path), ("check", tmp_path, (kept,)), ("stop",), ("keep", tmp_path)]
    os.close(locks.take(lock))


def test_the_copy_of_a_preset_is_made_under_a_lock_that_its_stages_hold_too(tmp_path, monkeypatch):
    toy(tmp_path)
    seen, run_verb = [], ready.run_verb

    def noted(folder, running, say, *words):
        seen.append((folder, words, len(running._keep)))
        assert locks.take(tmp_path / ".workspaces/.smoke.lock") is None
        run_verb(folder, running, say, *words)

    monkeypatch.setattr(ready, "run_verb", noted)
    with ready.ready(tmp_path, "smoke", print) as (workspace, running):
        held = [os.fstat(descriptor).st_ino for descriptor in running._keep]
        assert held == [
            (tmp_path / ".workspaces/.smoke.lock").stat().st_ino,
            (workspace / ".dvc/tmp/flow.lock").stat().st_ino,
        ]
    made = ("workspace", ".workspaces/smoke", "--preset", "smoke")
    assert seen == [(tmp_path, made, 1), (workspace, ("check",), 2)]


@pytest.mark.parametrize("preset", ["../smoke", "a/b", "/tmp", "smoke/"])
def test_a_preset_leads_to_no_other_folder(tmp_path, preset):
    with pytest.raises(UserError, match="a preset is the name of a file in presets/"):
        ready.ready(toy(tmp_path), preset, print).__enter__()
    assert not (tmp_path / ".workspaces").exists()


def test_a_command_of_tasks_that_fails_is_told_by_what_it_reported(tmp_path, monkeypatch):
    ended = []
    monkeypatch.setattr(Running, "run", lambda self, command, folder, say: ended[-1])
    for code, lines, words in (
        (2, ("noise", "error: one", "error: two"), "^one; two$"),
        (1, ("error: one", "Killed"), r"^python -m tasks check failed: Killed$"),
        (2, (), r"^python -m tasks check failed: it said nothing$"),
    ):
        ended.append(Ended(code, lines))
        with pytest.raises(UserError, match=words):
            ready.run_verb(tmp_path, Running(), print, "check")
    ended.append(Ended(0, ("error: it did not matter",)))
    ready.run_verb(tmp_path, Running(), print, "check")


def test_a_run_that_was_stopped_says_where_and_one_that_failed_too_is_failed():
    stopped = {"shard": Completed(), "left": Cancelled(), "right": Cancelled()}
    assert distill.verdict(stopped).message == "stopped: left, right"
    assert distill.verdict({**stopped, "shard": Failed(data=UserError("no"))}).is_failed()
    assert distill.verdict({"shard": Failed(message="odd", data=ValueError("x"))}).message == "odd"
    assert distill.verdict({}).is_completed()


def test_the_frontier_is_shown_under_its_own_name_whatever_folder_the_stage_writes(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(pages, "create_table_artifact", lambda table, **about: shown.append(about["key"]))
    monkeypatch.setattr(pages, "create_image_artifact", lambda url, **about: shown.append(about["key"]))
    (tmp_path / "artifacts").mkdir()
    (tmp_path / "artifacts/frontier.csv").write_text("name,fd\n")
    pages.show(tmp_path, [stages.Stage("evaluate", (), ("artifacts",))])
    assert shown == ["frontier"]  # there is no picture
    (tmp_path / "artifacts/frontier.png").write_bytes(b"png")
    pages.show(tmp_path, [stages.Stage("evaluate", (), ("artifacts",))])
    assert shown[1:] == ["frontier", "frontier-picture"]


@pytest.mark.parametrize(
    ("state", "code", "end"),
    [
        (Completed(message="4 stages"), 0, "out"),
        (Completed(name="Cached", message="x"), 0, "out"),
        (Failed(message="no"), 1, "err"),
        (Cancelled(message="stopped"), 1, "err"),
        (Crashed(message="died"), 1, "err"),
    ],
)
def test_the_flow_s_command_hands_on_its_words_and_ends_with_the_state_s_code(monkeypatch, capsys, state, code, end):
    asked = []
    monkeypatch.setattr(distill, "_server", contextlib.nullcontext)
    monkeypatch.setattr(distill, "distill", lambda **given: asked.append(given) or state)
    assert distill.main(["--preset", "smoke", "shard", "arm"]) == code
    assert asked == [{"preset": "smoke", "targets": ("shard", "arm"), "return_state": True}]
    assert getattr(capsys.readouterr(), end) == f"{state.name}: {state.message}\n"
    distill.main([])
    assert asked[-1] == {"preset": None, "targets": (), "return_state": True}


def test_a_server_that_is_none_is_a_mistake_without_a_password(monkeypatch, capsys):
    from prefect.settings import PREFECT_API_URL, temporary_settings

    monkeypatch.setattr(distill, "distill", lambda **given: pytest.fail("it went on"))
    for address, words in (
        ("garbage", "PREFECT_API_URL is garbage, no address"),
        (f"http://me:s3same@127.0.0.1:{free_port()}/api", "does not answer: "),
    ):
        monkeypatch.setenv("PREFECT_API_URL", address)
        with temporary_settings({PREFECT_API_URL: address}):
            assert distill.main([]) == 2
        said = capsys.readouterr()
        assert said.out == ""
        assert words in said.err
        assert "s3same" not in said.err


def test_a_server_that_answers_anything_is_one_and_its_refusal_is_a_mistake(monkeypatch):
    from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings
    from prefect.settings import PREFECT_SERVER_ALLOW_EPHEMERAL_MODE as OWN

    with answering(lambda path, body: (401, "no")) as (address, asked):
        assert distill._dumb(f"{address}/api/") is None
        assert asked == [("GET", "/api/health", None)]
        with temporary_settings({PREFECT_API_URL: f"{address}/api", PREFECT_API_AUTH_STRING: "own:word"}):
            with distill._server():
                assert PREFECT_API_URL.value() == f"{address}/api"
                assert PREFECT_API_AUTH_STRING.value() == "own:word"
                assert OWN.value()
            refused = pytest.raises(UserError, match=f"^Prefect at {address}/api refuses: 401")
            with refused, distill._server():
                raise distill.httpx.HTTPError("401\nfor more")
    assert "refused" in distill._dumb(address)


@contextlib.contextmanager
def answering(answer):
    """A server on this host: `answer(path, body)` gives code and text. Gives its address and what was asked of it."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            length = int(self.headers.get("Content-Length", 0))
            body = json.loads(self.rfile.read(length)) if length else None
            asked.append((self.command, self.path, body))
            code, text = answer(self.path, body)
            self.send_response(code)
            self.end_headers()
            self.wfile.write(text.encode())

        do_POST = do_GET

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()


def test_what_runs_no_command_is_no_stage_and_a_stage_of_another_file_is_known_by_it(tmp_path):
    toy(tmp_path)
    (tmp_path / "data").write_text("x")
    (tmp_path / "data.dvc").write_text("outs:\n- md5: 9dd4e461268c8034f5c8564e155c67a6\n  size: 1\n  path: data\n")
    (tmp_path / "more").mkdir()
    more = {"mine": {"cmd": "true", "deps": ["../data", "../artifacts/shard"], "outs": ["made"]}}
    (tmp_path / "more/dvc.yaml").write_text(json.dumps({"stages": more}))
    found = stages.graph(tmp_path)
    assert set(found) == {"shard", "arm@left", "arm@right", "evaluate", "more/dvc.yaml:mine"}
    assert found["more/dvc.yaml:mine"] == stages.Stage("more/dvc.yaml:mine", ("shard",), ("more/made",))
    assert stages.up_to_date(tmp_path, "more/dvc.yaml:mine") is False


def test_dvc_is_asked_by_one_thread_at_a_time(tmp_path, monkeypatch):
    """Of two arms that ask at once one would fail now and then."""
    held = []

    class Repo:
        root_dir = str(tmp_path)

        def __enter__(self):
            return note(self)

        def __exit__(self, *_):
            note(None)

        def status(self, targets):
            return note({})

        @property
        def index(self):
            return note(SimpleNamespace(graph=()))

    def note(answer):
        held.append(stages._asking.locked())
        return answer

    monkeypatch.setattr(stages, "_repo", lambda *_, **__: note(Repo()))
    assert stages.up_to_date(tmp_path, "shard")
    with pytest.raises(UserError, match="has no stages"):
        stages.graph(tmp_path)
    assert held == [True] * 8
    assert not stages._asking.locked()


def test_dvc_finds_a_name_for_a_user_who_has_none(tmp_path, monkeypatch):
    monkeypatch.setenv("A_NAME", "before")
    monkeypatch.setattr(stages.dvc_environment, "nameless", lambda folder: {"A_NAME": f"uid-1 in {folder}"})
    stages.graph(toy(tmp_path))
    assert os.environ["A_NAME"] == f"uid-1 in {tmp_path}"


def test_dvc_is_asked_to_wait_for_its_own_lock(tmp_path, monkeypatch):
    asked, repo = [], stages._repo
    monkeypatch.setattr(stages, "_repo", lambda *words, **options: asked.append(options) or repo(*words, **options))
    assert not stages.up_to_date(toy(tmp_path), "shard")
    assert asked == [{"_wait_for_lock": True}]


def test_dvc_gets_the_stage_alone_the_slot_s_environment_and_the_locks_at_every_try(tmp_path, monkeypatch):
    busy = Ended(255, ("ERROR: 'x' is busy, it is being blocked by:", "  (PID 7): dvc repro", "  (PID 8): dvc gc"))
    asked, left, paused, heard = [], [busy, busy, Ended(0, ())], [], []
    running = SimpleNamespace(run=lambda *words: asked.append(words) or left.pop(0), pause=paused.append)
    stages.reproduce("arm@left", toy(tmp_path), running, heard.append, {"A": "1"}, [3, 4])
    assert len(asked) == 3
    command = [sys.executable, "-m", "tasks.dvc_repro", "--single-item", "arm@left"]
    environment = {**stages.dvc_environment.of(tmp_path), "A": "1"}
    assert environment["DVC_SITE_CACHE_DIR"] == str(tmp_path / ".dvc-site-cache")
    for words in asked:
        assert (*words[:2], *words[3:]) == (command, tmp_path, environment, [3, 4])
    assert paused == [stages.BUSY_SECONDS] * 2
    assert heard == [
        "waiting: arm@left needs files on which another command is at work: dvc gc (pid 8), dvc repro (pid 7)"
    ]
    own = stages.dvc_environment.of(tmp_path)
    left.append(Ended(0, ()))
    stages.reproduce("shard", tmp_path, running, print, {"DVC_SITE_CACHE_DIR": "/chosen"})
    assert asked[-1][3] == {**own, "DVC_SITE_CACHE_DIR": "/chosen"}


def reproduced(code: int, *lines: str) -> Ended:
    return Ended(255, (*lines, f"ERROR: failed to reproduce 'a': failed to run: x, exited with {code}"))


@pytest.mark.parametrize(
    ("ended", "error", "words"),
    [
        (reproduced(3, "x", "last"), stages.StageFailed, "a exited with 3: last"),
        (reproduced(-9, "last"), stages.StageFailed, "a was ended by SIGKILL: last"),
        (reproduced(143, "last"), stages.StageFailed, "a was ended by SIGTERM: last"),
        (reproduced(2, "error: one", "x"), UserError, "a: one"),
        (reproduced(2, "x"), UserError, "a: x"),
        (reproduced(1, "error: one", "x"), stages.StageFailed, "a exited with 1: x"),
        (Ended(2, ("error: no space",)), UserError, "a: no space"),
        (Ended(137, ("begun",)), stages.StageFailed, "a was ended by SIGKILL: begun"),
        (Ended(255, ("begun", "ERROR: it broke", "help")), stages.StageFailed, "a exited with 255: ERROR: it broke"),
    ],
)
def test_how_a_stage_ended_is_told_by_its_own_code_and_words(tmp_path, ended, error, words):
    with pytest.raises(error) as caught:
        stages.reproduce("a", tmp_path, SimpleNamespace(run=lambda *_: ended), print)
    assert str(caught.value) == words


# ---- a command and its supervisor


def test_a_command_finds_this_python_first_and_tells_nobody(monkeypatch):
    monkeypatch.setenv("PATH", "/a:/b")
    monkeypatch.setenv("MINE", "kept")
    monkeypatch.delenv("DISTILL_PYTHON", raising=False)
    found = surroundings()
    assert found == {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:/a:/b",
        "DISTILL_PYTHON": sys.executable,
        "PYTHONUNBUFFERED": "1",
        "DO_NOT_TRACK": "true",
        "DVC_NO_ANALYTICS": "1",
    }
    monkeypatch.setenv("DISTILL_PYTHON", "/own/python")
    monkeypatch.setenv("DO_NOT_TRACK", "false")
    monkeypatch.delenv("PATH")
    found = surroundings()
    assert (found["DISTILL_PYTHON"], found["DO_NOT_TRACK"]) == ("/own/python", "true")
    assert found["PATH"] == f"{Path(sys.executable).parent}:{os.defpath}"


def test_both_outputs_come_as_lines_whatever_bytes_and_the_last_of_them_are_kept(tmp_path):
    seen = "os.getcwd(), os.readlink('/proc/self/fd/0'), os.getsid(0) == os.getppid()"
    script = f"import os; os.write(2, b'bad \\xff\\n\\n'); print({seen})"
    script += "; [print(k) for k in range(250)]"
    heard = []
    ended = Running().run([sys.executable, "-c", script], tmp_path, heard.append)
    assert heard == ["bad \ufffd", f"{tmp_path} /dev/null True", *map(str, range(250))]
    assert ended == Ended(0, tuple(map(str, range(50, 250))))


def test_a_command_has_the_environment_laid_over_and_the_locks_that_it_holds(tmp_path, monkeypatch):
    monkeypatch.setenv("A", "0")  # as CUDA_VISIBLE_DEVICES may be set already, and a slot has one of these
    kept, more = (os.open(tmp_path / name, os.O_CREAT) for name in "ab")
    held = (
        "*(os.readlink(f'/proc/{os.getppid()}/fd/{n}') for n in sys.argv[1:])"  # by its supervisor, which outlives it
    )
    script = f"import os, sys; print(os.environ['A'], {held})"
    words = [sys.executable, "-c", script, str(kept), str(more)]
    ended = Running(keep=[kept]).run(words, tmp_path, print, {"A": "1"}, [more])
    assert ended.lines == (f"1 {tmp_path / 'a'} {tmp_path / 'b'}",)
    for descriptor in (kept, more):
        os.close(descriptor)


def test_python_s_own_modules_are_not_hidden_by_those_beside_the_supervisor(tmp_path):
    """Python would look first in the folder of the script, which is that of the flows."""
    running = Running()
    supervisor = running._start(["true"], tmp_path, surroundings(), ())
    running._end(supervisor)
    supervisor.stdout.close()
    assert supervisor.args[:3] == [sys.executable, "-P", str(SUPERVISOR)]


UNLOCKS = """
import pathlib, signal, sys, time
print(signal.getsignal(signal.SIGINT) == signal.default_int_handler, flush=True)
try:
    time.sleep(60)
except KeyboardInterrupt:
    pathlib.Path("unlocked").touch()
"""


@pytest.mark.parametrize(
    "ignored", [False, True], ids=["as it is", "a worker that ignores SIGINT, as a shell's & makes it"]
)
def test_dvc_at_work_by_itself_is_interrupted_so_that_it_frees_its_locks(tmp_path, ignored):
    running, heard = Running(grace=20), []
    before = signal.getsignal(signal.SIGINT)
    if ignored:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        future = start(running.run, [sys.executable, "-c", UNLOCKS], tmp_path, heard.append)
        assert until(lambda: heard, 60)
    finally:
        signal.signal(signal.SIGINT, before)
    running.stop()
    assert isinstance(future.exception(60), Stopped)
    assert heard == ["True"]
    assert (tmp_path / "unlocked").exists()


SAVES = """
import pathlib, signal, sys, time
def save(*_):
    time.sleep(0.3)
    pathlib.Path("saved").touch()
    sys.exit()
signal.signal(signal.SIGTERM, save)
print("ready", flush=True)
time.sleep(60)
"""
LEAVES = f"""
import subprocess, sys
left = subprocess.Popen([sys.executable, "-c", {SAVES!r}], stdout=subprocess.PIPE, start_new_session=True)
left.stdout.readline()
"""


def test_what_a_command_left_running_has_the_time_to_save(tmp_path):
    assert Running(grace=20).run([sys.executable, "-c", LEAVES], tmp_path, print).code == 0
    assert (tmp_path / "saved").exists()


DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); time.sleep(60)"
LEAVES_DEAF = f"""
import subprocess, sys
quiet = {{"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}}
left = subprocess.Popen([sys.executable, "-c", {DEAF!r}], start_new_session=True, **quiet)
left.stdout.readline()
print(left.pid, flush=True)
"""


def test_what_a_command_left_running_and_is_deaf_is_killed(tmp_path):
    """It would hold the GPU and the locks that it was given."""
    ended = Running(grace=0.1).run([sys.executable, "-c", LEAVES_DEAF], tmp_path, print)
    left = int(ended.lines[-1])
    try:
        assert ended.code == 0
        assert until(lambda: gone(left))
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(left, signal.SIGKILL)


OUTLIVED = f"""
import subprocess, sys
saves = subprocess.Popen([sys.executable, "-c", {SAVES!r}], stdout=subprocess.PIPE)
saves.stdout.readline()
own = subprocess.Popen(["sleep", "60"])
print("both", flush=True)
own.wait()
"""


def test_what_outlives_a_stopped_command_has_the_time_to_save_too(tmp_path):
    """DVC ends as soon as its stage has; what that one has started may be at work still."""
    running, heard = Running(grace=20), []
    future = start(running.run, [sys.executable, "-c", OUTLIVED], tmp_path, heard.append)
    assert until(lambda: heard, 60)
    running.stop()
    assert isinstance(future.exception(60), Stopped)
    assert (tmp_path / "saved").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP], ids=lambda number: number.name)
def test_a_supervisor_that_is_told_to_end_stops_its_command_and_says_so_by_its_code(tmp_path, number):
    words = [sys.executable, str(SUPERVISOR), "20", str(os.getpid()), sys.executable, "-c", SAVES]
    with subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.PIPE) as supervisor:
        assert supervisor.stdout.readline() == b"ready\n"
        (child,) = psutil.Process(supervisor.pid).children()
        supervisor.send_signal(number)
        assert supervisor.wait(60) == 143
    assert gone(child.pid)


ALL_DEAF = f"""
import signal, subprocess, sys, time
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, signal.SIG_IGN)
below = sys.argv[1:] and subprocess.Popen([sys.executable, "-c", {DEAF!r}], stdout=subprocess.PIPE)
if below:
    below.stdout.readline()
    print(below.pid, flush=True)
print("ready", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("below", [[], ["one"]], ids=["alone", "with one below"])
def test_a_command_that_is_deaf_is_killed_with_all_that_is_below_it(below, tmp_path):
    """When the grace is over: the command itself too, which no list of what is below it has."""
    words = [sys.executable, str(SUPERVISOR), "0.2", str(os.getpid()), sys.executable, "-c", ALL_DEAF, *below]
    with subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as supervisor:
        told = [line.strip() for line in iter(supervisor.stdout.readline, "ready\n")]
        family = [supervisor.pid, *(process.pid for process in psutil.Process(supervisor.pid).children(recursive=True))]
        assert len(family) == 2 + len(told) == 2 + len(below)
        try:
            supervisor.send_signal(signal.SIGTERM)
            assert supervisor.wait(30) == 143
            assert until(lambda: all(map(gone, family)))
        finally:
            for pid in family:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def test_a_command_does_not_outlive_a_supervisor_that_was_killed(tmp_path):
    words = [sys.executable, str(SUPERVISOR), "20", str(os.getpid()), sys.executable, "-c", SAVES]
    with subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.PIPE) as supervisor:
        assert supervisor.stdout.readline() == b"ready\n"
        (child,) = psutil.Process(supervisor.pid).children()
        supervisor.kill()
    assert until(lambda: gone(child.pid), 60)
    assert (tmp_path / "saved").exists()  # it was asked, not killed


def test_a_supervisor_that_does_not_end_is_killed_with_all_of_its_group(tmp_path, monkeypatch):
    killed = []
    monkeypatch.setattr(os, "killpg", lambda *words: killed.append(words))

    class Deaf:
        pid = 4711
        waited = ()

        def poll(self):
            return None

        def terminate(self):
            killed.append("asked")

        def wait(self, timeout=None):
            self.waited += (timeout,)
            if timeout is not None:
                raise subprocess.TimeoutExpired("supervisor", timeout)

    supervisor, running = Deaf(), Running(grace=3)
    running._supervisors.add(supervisor)
    running._end(supervisor)
    assert killed == ["asked", (4711, signal.SIGKILL)]
    assert supervisor.waited == (8, None)
    assert running._supervisors == set()


def test_all_commands_are_asked_to_end_before_the_first_is_waited_for(tmp_path):
    """One after the other, the last would have had no time left when Prefect kills the run."""
    running, seen = Running(), []
    for name in "ab":
        supervisor = type(name, (), {"terminate": lambda self: seen.append(("asked", type(self).__name__))})
        running._supervisors.add(supervisor())
    running._end = lambda supervisor: seen.append(("waited", type(supervisor).__name__))
    running.stop()
    assert [word for word, _ in seen] == ["asked", "asked", "waited", "waited"]
    assert {name for _, name in seen} == {"a", "b"}
    with pytest.raises(Stopped):
        running.pause(0)
    Running().pause(0)


def test_looking_at_a_lock_that_is_held_leaves_nothing_open(tmp_path):
    """A run that waits looks three times a second, for hours."""
    held = locks.take(tmp_path / "lock")
    before = sorted(os.listdir("/proc/self/fd"))
    assert [locks.take(tmp_path / "lock") for _ in range(5)] == [None] * 5
    assert sorted(os.listdir("/proc/self/fd")) == before
    os.close(held)
    os.close(locks.take(tmp_path / "lock"))


def test_a_lock_is_made_for_everybody_and_another_user_s_is_only_opened(tmp_path, monkeypatch):
    """In a folder like /tmp, Linux refuses to create what another user made."""
    path, asked, real = tmp_path / "deep" / "lock", [], os.open
    monkeypatch.setattr(os, "open", lambda *words, **more: asked.append(words[1:]) or real(*words, **more))
    before = os.umask(0)
    try:
        os.close(locks.take(path))
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o666
    asked.clear()
    os.close(locks.take(path))
    assert asked == [(os.O_RDONLY,)]
    path.chmod(0o444)
    os.close(locks.take(path))


def test_the_slots_are_the_gpus_of_the_host_or_places_of_the_workspace(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "gpus", lambda: ["GPU-a", "MIG-b"])
    monkeypatch.setattr(locks.tempfile, "gettempdir", lambda: "/shared")
    for count in (1, 5):
        assert locks.here(tmp_path, count).all == tuple(
            locks.Slot(Path(f"/shared/distill-{name}.lock"), {"CUDA_VISIBLE_DEVICES": name})
            for name in ("GPU-a", "MIG-b")
        )
    monkeypatch.setattr(locks, "gpus", list)
    places = tuple(locks.Slot(tmp_path / f".dvc/tmp/slot-{k}.lock", {}) for k in range(2))
    assert locks.here(tmp_path, 2).all == places


def test_a_stage_of_several_processes_has_as_many_gpus(tmp_path, monkeypatch):
    """All of them or none, whoever else is there; those that are left over serve no stage."""
    monkeypatch.setattr(locks, "gpus", lambda: ["a", "b", "c", "d", "e"])
    monkeypatch.setattr(locks.tempfile, "gettempdir", lambda: str(tmp_path))
    (tmp_path / "params.yaml").write_text("compute: {processes: 2}\nteachers: {teacher: {cores: 4}}\n")
    slots = locks.here(tmp_path, 1)
    assert [slot.environment for slot in slots.all] == [{"CUDA_VISIBLE_DEVICES": name} for name in ("a,b", "c,d")]
    taken = locks.take(tmp_path / "distill-b.lock")
    with slots.taken("teachers@teacher", print, lambda: None) as (environment, held):
        assert environment == {"CUDA_VISIBLE_DEVICES": "c,d", locks.MOST: "1"}
        assert len(held) == 2
        assert [locks.take(tmp_path / f"distill-{name}.lock") for name in "cd"] == [None, None]
    for name in "acd":
        os.close(locks.take(tmp_path / f"distill-{name}.lock"))
    os.close(taken)
    (tmp_path / "params.yaml").write_text("compute: {processes: 6}\n")
    with pytest.raises(UserError, match=r"^compute.processes is 6 and there are 5 GPUs here; lower it$"):
        locks.here(tmp_path, 1)


PARTED = """
compute: {processes: auto}
teachers: {four: {cores: 4}, three: {cores: 3}, whole: {accumulate: 2}, adopted: {from: x}, wrong: [1]}
distill: {two: {cores: 2}}
"""


@pytest.mark.parametrize(
    ("count", "widths"),
    [(1, (1, 1, 1, 1)), (2, (2, 1, 1, 2)), (3, (2, 3, 1, 2)), (4, (4, 3, 1, 2)), (9, (4, 3, 1, 2))],
)
def test_a_training_in_parts_takes_as_many_slots_as_share_them_alike(count, widths, tmp_path, monkeypatch):
    """All of them or none. Where the number of processes is set, a slot is for all of them."""
    monkeypatch.setattr(locks, "gpus", list)
    (tmp_path / "params.yaml").write_text(PARTED)
    slots = locks.here(tmp_path, count)
    names = "teachers@four", "teachers@three", "teachers@whole", "distill@two"
    assert tuple(map(slots.width, names)) == widths
    assert [slots.width(name) for name in ("teachers@adopted", "teachers@wrong", "gamma")] == [1, 1, 1]
    with slots.taken("distill@two", print, lambda: None) as (environment, held):
        assert environment == {locks.MOST: f"{widths[-1]}"}
        assert len(held) == widths[-1]
        free = [locks.take(slot.lock) for slot in slots.all]
        assert sum(descriptor is None for descriptor in free) == widths[-1]
        for descriptor in filter(None, free):
            os.close(descriptor)
    (tmp_path / "params.yaml").write_text(PARTED.replace("auto", "2"))
    assert {locks.here(tmp_path, count).width(name) for name in names} == {1}


def test_who_needs_several_slots_waits_without_holding_any(tmp_path):
    slots = locks.Slots([locks.Slot(tmp_path / name, {}) for name in "ab"], {"wide": 2})
    taken, lines = locks.take(tmp_path / "b"), []

    def give_up() -> None:
        os.close(locks.take(tmp_path / "a"))  # nobody holds it
        os.close(taken)

    with slots.taken("wide", lines.append, give_up) as (_, held):
        assert lines == ["waiting: 2 slots are needed and not free"]
        assert len(held) == 2


@pytest.mark.parametrize(("text", "count"), [("4", 4), ("auto", 1), ("none at all", 1)])
def test_a_workspace_says_how_many_gpus_its_stages_have(text, count, tmp_path):
    assert locks.processes_of(tmp_path) == 1
    (tmp_path / "params.yaml").write_text(f"compute: {{processes: {text}}}\n")
    assert locks.processes_of(tmp_path) == count


def test_a_lock_and_a_slot_are_free_again_after_an_error(tmp_path):
    slots = locks.Slots([locks.Slot(tmp_path / "slot", {})])
    for held, path in (
        (locks.hold(tmp_path / "lock", print, "x"), "lock"),
        (slots.taken("any", print, lambda: None), "slot"),
    ):
        with contextlib.suppress(ZeroDivisionError), held:
            assert locks.take(tmp_path / path) is None
            raise ZeroDivisionError
        os.close(locks.take(tmp_path / path))


# ---- the services


@pytest.fixture(autouse=True)
def no_others(monkeypatch):
    """Servers of other folders, which the machine may run meanwhile, are not told of."""
    monkeypatch.setattr(services, "elsewhere", lambda root: [])


def console(words: list[str]) -> int:
    return command.main(words, ask)


def services_command(folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "console", *words]
    return subprocess.run(command, cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True)


def project(folder: Path, **actions: str) -> Path:
    """The toy with the real flows, and all of the real tasks but their command line."""
    toy(folder, **actions)
    for part in ("console", "flows", "diffcore", "prefect.yaml", "prefect.toml"):
        (folder / part).symlink_to(ROOT / part)
    for part in (ROOT / "tasks").glob("*.py"):
        if part.name not in ("__init__.py", "__main__.py"):
            (folder / "tasks" / part.name).symlink_to(part)
    (folder / ".services").mkdir()  # as a clone has it
    return folder


def test_a_port_in_other_hands_is_one_line_and_starts_nothing(tmp_path):
    project(tmp_path)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        ended = services_command(tmp_path, "up", "--prefect-port", str(free_port()), "--mlflow-port", str(port))
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert re.fullmatch(
        rf"error: port {port} is taken by .*: end that, or choose another by --mlflow-port\n", ended.stderr
    )
    assert not list((tmp_path / ".services").glob("*.json"))


def test_a_recycled_pid_is_never_killed(tmp_path, capsys):
    with at_work() as stranger:
        born = psutil.Process(stranger.pid).create_time()
        folder = Folder(tmp_path)
        folder.write("worker", Record(stranger.pid, born - 100, "http://127.0.0.1:1/api"))
        services.down(tmp_path)
        assert stranger.poll() is None
        assert capsys.readouterr().out == "nothing is up\n"
        folder.write("worker", Record(stranger.pid, born, "http://127.0.0.1:1/api"))
        services.down(tmp_path)
        assert f"ended (pid {stranger.pid})" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")  # they are to outlive us
def test_what_dies_at_its_start_is_reported_and_the_rest_ended_again(tmp_path, monkeypatch):
    project(tmp_path)
    born = []

    def plan(root, *_):
        lives = Service("prefect-server", ("sleep", "60"), "http://a", lambda: True, dict(os.environ))
        dies = Service("mlflow-server", ("sh", "-c", "echo no memory; exit 3"), "", lambda: False, {})
        return [lives, dies, lives]

    real = services._start
    monkeypatch.setattr(services, "planned", plan)
    monkeypatch.setattr(services, "_start", lambda *a: (real(*a), born.append(a[1].record(a[0].name).pid)))
    with pytest.raises(UserError, match="mlflow-server ended at its start: no memory"):
        services.up(tmp_path, 1, 2)
    assert len(born) == 2
    assert all(map(gone, born))
    assert not list((tmp_path / ".services").glob("*.json"))


def test_a_worker_can_be_ended_though_its_starter_ignored_interrupts():
    """A script's background jobs ignore SIGINT; Prefect turns a worker's SIGTERM into SIGINT, so it would never end."""
    script = "import signal; print(signal.getsignal(signal.SIGINT) == signal.default_int_handler)"
    command = "import signal, subprocess, sys; from flows import services; signal.signal(signal.SIGINT, signal.SIG_IGN)"
    command += f"; subprocess.run([sys.executable, '-c', {script!r}], preexec_fn=services._hear_interrupts)"
    ended = subprocess.run([sys.executable, "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert ended.stdout == "True\n"


@pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")
def test_every_service_is_started_so_that_it_hears_interrupts_and_the_log_of_an_earlier_start_stays(tmp_path):
    folder = Folder(tmp_path)
    folder.path.mkdir()
    folder.log("worker").write_text("before\n")
    script = "import signal; print(signal.getsignal(signal.SIGINT) == signal.default_int_handler)"
    service = Service("worker", (sys.executable, "-c", script), "http://a", lambda: True, dict(os.environ))
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        services._start(service, folder, [])
    finally:
        signal.signal(signal.SIGINT, before)
    assert until(lambda: folder.log("worker").read_text().count("\n") == 2, 60)
    assert folder.log("worker").read_text() == "before\nTrue\n"
    services._end("worker", folder)


def test_nobody_who_never_answers_is_waited_for_long(monkeypatch):
    heard = []

    def silent(*_, timeout=None, **__):
        heard.append(timeout)
        raise TimeoutError("timed out")

    monkeypatch.setattr(urllib.request.OpenerDirector, "open", silent)
    monkeypatch.setattr(distill.httpx, "get", silent)
    assert planning.ask("http://h") is None
    assert distill._dumb("http://h") == "timed out"
    assert heard == [5, 5]


def test_nothing_committed_names_a_folder_of_this_machine():
    for name in ("prefect.yaml", "prefect.toml", ".dvc/config", ".dvcignore"):
        assert str(ROOT) not in (ROOT / name).read_text()
    assert "__pycache__/" in (ROOT / ".dvcignore").read_text().splitlines()


ORPHANS = """
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"], start_new_session=True)
print("ready", flush=True)
time.sleep(300)
"""


def orphaned(folder: Folder) -> list[psutil.Process]:
    """A service that was killed: its two children live, one of them in a session of its own."""
    service = Service("mlflow-server", (sys.executable, "-c", ORPHANS), "http://a", lambda: True, dict(os.environ))
    services._start(service, folder, [])
    leader = folder.alive("mlflow-server")
    assert until(lambda: "ready" in folder.log("mlflow-server").read_text(), 60)
    left = leader.children()
    leader.kill()
    leader.wait()
    assert len(left) == 2
    return left


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")
@pytest.mark.parametrize("verb", ["down", "up"])
def test_what_a_killed_service_left_is_ended_and_nothing_else(tmp_path, capsys, verb):
    folder = Folder(tmp_path)
    folder.path.mkdir()
    with at_work(start_new_session=True) as stranger:
        left = orphaned(folder)
        if verb == "down":
            services.down(tmp_path)
        else:  # its port would be taken by them
            services._clear(Service("mlflow-server", (), "http://a", lambda: True, {}), folder)
        assert all(gone(process.pid) for process in left)
        assert stranger.poll() is None
    said = capsys.readouterr().out
    assert all(str(process.pid) in said for process in left)
    assert folder.record("mlflow-server") is None
    services.down(tmp_path)
    assert capsys.readouterr().out == "nothing is up\n"


ANSWERS = """
import os, signal, subprocess, sys, time
def answer(*_):
    own = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
    open("own", "w").write(str(own.pid))
    os._exit(0)
signal.signal(signal.SIGTERM, answer if sys.argv[1] == "starts another" else signal.SIG_IGN)
print("ready", flush=True)
time.sleep(60)
"""


@pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")
@pytest.mark.parametrize("how", ["starts another", "hears nothing"])
def test_however_a_service_answers_sigterm_nothing_of_it_lives_on(tmp_path, monkeypatch, how):
    monkeypatch.setattr(services, "END_SECONDS", 0.5 if how == "hears nothing" else 20)
    monkeypatch.setattr(services, "POLL_SECONDS", 0.05)
    folder = Folder(tmp_path)
    folder.path.mkdir()
    command = (sys.executable, "-c", ANSWERS, how)
    services._start(Service("worker", command, "http://a", lambda: True, dict(os.environ)), folder, [])
    left = [folder.alive("worker")]
    assert until(lambda: "ready" in folder.log("worker").read_text(), 60)
    try:
        assert services._end("worker", folder)
        if how == "starts another":
            left.append(int((tmp_path / "own").read_text()))
        assert until(lambda: gone(left[0].pid) and all(map(gone, left[1:])))
    finally:
        for pid in (left[0].pid, *left[1:]):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    assert folder.record("worker") is None


TORN = [
    "",
    "{",
    "garbage",
    "[]",
    "3",
    "null",
    "{}",
    '{"pid": 1, "born": 0.0}',
    '{"pid": 1, "born": 0.0, "url": "", "x": 1}',
]


@pytest.mark.parametrize("content", [*TORN, b"\xff\xfe"])
def test_a_record_that_cannot_be_read_is_none(tmp_path, capsys, content):
    """As a kill or another version of this project leaves it: the service counts as down and can be started."""
    folder = Folder(tmp_path)
    folder.path.mkdir()
    (folder.path / "worker.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    assert (folder.record("worker"), folder.alive("worker"), folder.family("worker")) == (None, None, [])
    assert not services.status(tmp_path)
    services.down(tmp_path)
    assert capsys.readouterr().out.endswith("nothing is up\n")


def test_the_last_words_of_a_service_are_told_and_not_those_of_an_earlier_start(tmp_path):
    log = tmp_path / "a.log"
    for text, told in (
        (b"old\nwhy\n", "why"),
        (b"old\n  why \n\n \n", "why"),
        (b"old\nw\xffhy", "w\ufffdhy"),
        (b"\n \n", "it said nothing"),
    ):
        log.write_bytes(text)
        assert services._last_line(log) == f"{told} (see {log})"
    assert services._last_line(tmp_path / "none") == f"it said nothing (see {tmp_path / 'none'})"


def test_a_service_of_another_clone_is_not_of_the_family(tmp_path):
    ours, theirs = (Record(2**22 + 1, 0.0, "http://a", mark) for mark in ("one", "other"))
    with at_work(env={**os.environ, MARK: "other"}) as process:
        assert until(lambda: theirs.family())
        assert [each.pid for each in theirs.family()] == [process.pid]
        assert ours.family() == []
        assert Record(2**22 + 1, 0.0, "http://a").family() == []


def test_each_clone_has_a_prefect_home_of_its_own_whatever_the_environment_says(tmp_path, monkeypatch):
    for name in planning.AIMS:
        monkeypatch.setenv(name, "/elsewhere")
    for folder in (tmp_path / "one", tmp_path / "other"):
        for service in planning.planned(folder, 4300, 5100):
            assert service.environment["PREFECT_HOME"] == str(folder / ".services/prefect")
            assert service.environment["PREFECT_PROFILES_PATH"] == str(folder / ".services/prefect/profiles.toml")
            assert service.environment["PREFECT_API_URL"] == "http://127.0.0.1:4300/api"
            assert "PREFECT_PROFILE" not in service.environment


@pytest.mark.slow
def test_a_prefect_command_in_the_root_finds_this_clone_s_server(tmp_path, monkeypatch):
    for name in planning.AIMS:
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "prefect.toml").symlink_to(ROOT / "prefect.toml")
    services._aim(tmp_path, "http://127.0.0.1:4711/api")
    script = "from prefect import settings; s = settings.get_current_settings(); print(s.api.url, s.home.resolve())"
    said = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert said.stdout == f"http://127.0.0.1:4711/api {tmp_path / '.services/prefect'}\n", said.stderr


def test_the_profile_gets_the_address_and_keeps_the_rest(tmp_path):
    path = tmp_path / planning.HOME / "profiles.toml"
    services._aim(tmp_path, "http://a/api")
    assert tomllib.loads(path.read_text()) == {
        "active": "project",
        "profiles": {"project": {"PREFECT_API_URL": "http://a/api"}},
    }
    mine = (
        '[profiles.mine]\nPREFECT_LOGGING_LEVEL = "DEBUG"\nPREFECT_API_URL = "x"\n[profiles.other]\nA = "b \\"c\\""\n'
    )
    path.write_text('active = "mine"\n' + mine)
    services._aim(tmp_path, "http://b/api")
    assert tomllib.loads(path.read_text()) == {
        "active": "mine",
        "profiles": {
            "mine": {"PREFECT_LOGGING_LEVEL": "DEBUG", "PREFECT_API_URL": "http://b/api"},
            "other": {"A": 'b "c"'},
        },
    }
    path.write_text("not = [toml")
    with pytest.raises(UserError, match=r"profiles\.toml is damaged"):
        services._aim(tmp_path, "http://c/api")


@pytest.mark.parametrize(
    "address", ["postgresql://me:s3same@h/db", "sqlite:///own.db", "https://me:s3same@h:1/a", None]
)
def test_a_password_is_in_no_command_and_in_nothing_that_up_says(tmp_path, monkeypatch, capsys, address):
    if address is None:
        monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    else:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    planned = planning.planned(tmp_path, 4300, 5100)
    assert not [word for service in planned for word in service.command if "s3same" in word]
    services._tell(planned)
    assert "s3same" not in capsys.readouterr().out
    stores = [service.environment[planning.STORE] for service in planned if service.name == "mlflow-server"]
    where = {None: "sqlite:///" + str(tmp_path / "mlflow.db"), "sqlite:///own.db": f"sqlite:///{tmp_path / 'own.db'}"}
    assert stores == ([] if address and address.startswith("http") else [where.get(address, address)])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_up_refuses_a_damaged_database_in_one_line_and_starts_nothing(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    project(tmp_path)
    (tmp_path / "mlflow.db").write_bytes(b"this is no database" * 500)
    with pytest.raises(UserError, match=r"mlflow.db is damaged: file is not a database; move it away") as caught:
        services.up(tmp_path, free_port(), free_port())
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / ".services").glob("*.json"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("address", "line"),
    [
        ("garbage", "error: PREFECT_API_URL is garbage, no address: it must be http://HOST .*"),
        ("http://[", "error: PREFECT_API_URL is no address: .* or unset it"),
        (
            "http://me:s3same@127.0.0.1:{}/api",
            r"error: Prefect at http://127.0.0.1:\d+/api does not answer: .*refused; run `distill up` .*",
        ),
    ],
)
def test_a_server_of_prefect_that_is_none_is_one_line(tmp_path, address, line):
    command = [sys.executable, "-m", "flows.distill"]
    surroundings = {**os.environ, "PREFECT_API_URL": address.format(free_port())}
    done = subprocess.run(command, cwd=project(tmp_path), env=surroundings, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(line, done.stderr.strip()), done.stderr


def test_a_password_goes_to_prefect_by_its_own_setting(tmp_path, monkeypatch):
    from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, PREFECT_HOME, temporary_settings

    monkeypatch.setattr(distill, "_dumb", lambda address: None)
    with temporary_settings({PREFECT_API_URL: "https://me:s3same%40x@h/api"}), distill._server():
        assert PREFECT_API_URL.value() == "https://h/api"
        assert PREFECT_API_AUTH_STRING.value() == "me:s3same@x"
    monkeypatch.setattr(distill, "_dumb", lambda address: "refused")
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    settings = {PREFECT_API_URL: "http://once-up/api", PREFECT_HOME: tmp_path / "new" / "home"}
    with temporary_settings(settings), distill._server():
        assert PREFECT_API_URL.value() is None  # then one for as long as the process
        assert (tmp_path / "new" / "home").is_dir()


# ---- what the services are


@pytest.fixture
def plain(monkeypatch):
    for name in (*planning.AIMS, "MLFLOW_TRACKING_URI", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)


def test_the_services_listen_here_alone_and_are_told_all_that_they_need(tmp_path, plain, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "intranet")
    prefect, mlflow, worker = planning.planned(tmp_path, 4300, 5100)
    python = (sys.executable, "-m")
    assert prefect.command == (*python, "prefect", "server", "start", "--host", "127.0.0.1", "--port", "4300")
    assert mlflow.command == (
        *(*python, "mlflow", "server", "--host", "127.0.0.1", "--port", "5100", "--workers", "1"),
        *("--no-serve-artifacts", "--default-artifact-root", str(tmp_path / "mlruns")),
    )
    assert worker.command[:-1] == (
        *(*python, "prefect", "worker", "start", "--pool", "gpu", "--type", "process", "--name"),
    )
    assert [(each.name, each.url, each.port) for each in (prefect, mlflow, worker)] == [
        ("prefect-server", "http://127.0.0.1:4300", 4300),
        ("mlflow-server", "http://127.0.0.1:5100", 5100),
        ("worker", "http://127.0.0.1:4300/api", None),
    ]
    assert (
        prefect.environment
        == worker.environment
        == {
            **surroundings(),
            "PREFECT_HOME": str(tmp_path / ".services/prefect"),
            "PREFECT_PROFILES_PATH": str(tmp_path / ".services/prefect/profiles.toml"),
            "PREFECT_API_URL": "http://127.0.0.1:4300/api",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "MLFLOW_TRACKING_URI": "http://127.0.0.1:5100",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "DISTILL_ROOT": str(tmp_path),
            "NO_PROXY": "intranet,127.0.0.1",
            "no_proxy": "intranet,127.0.0.1",
        }
    )
    assert mlflow.environment == {**worker.environment, planning.STORE: f"sqlite:///{tmp_path / 'mlflow.db'}"}
    monkeypatch.delenv("NO_PROXY")
    time.sleep(0.002)
    again = planning.planned(tmp_path, 4300, 5100)
    assert again[2].command[-1] != worker.command[-1]  # the server remembers old ones
    assert again[0].environment["NO_PROXY"] == "127.0.0.1"


@pytest.mark.parametrize("address", ["http://h:5000", "https://h/a", "databricks", "databricks://profile"])
def test_where_mlflow_is_served_already_no_other_is_started(tmp_path, plain, monkeypatch, address):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    planned = planning.planned(tmp_path, 4300, 5100)
    assert [service.name for service in planned] == ["prefect-server", "worker"]
    assert {service.environment["MLFLOW_TRACKING_URI"] for service in planned} == {address}
    assert not any(planning.STORE in service.environment for service in planned)


def test_a_service_works_once_it_says_so_itself(tmp_path, plain):
    filtered = "/api/work_pools/gpu/workers/filter"
    says = {"/api/health": "true", "/health": "OK"}

    with answering(lambda path, body: (200, says[path])) as (address, asked):
        port = int(address.rpartition(":")[2])
        prefect, mlflow, worker = planning.planned(tmp_path, port, port)
        assert prefect.healthy()
        assert mlflow.healthy()
        says |= {"/api/health": '"true"', "/health": "OK, soon"}
        assert not prefect.healthy()
        assert not mlflow.healthy()
        name = worker.command[-1]
        for there, up in (
            ([], False),
            ([{"name": "other", "status": "ONLINE"}], False),
            ([{"name": name, "status": "OFFLINE"}], False),
            ([{"name": "other", "status": "OFFLINE"}, {"name": name, "status": "ONLINE"}], True),
        ):
            says[filtered] = json.dumps(there)
            assert worker.healthy() is up
        assert asked[-1] == ("POST", filtered, {})
    assert not any(service.healthy() for service in (prefect, mlflow, worker))


def test_what_is_asked_comes_from_this_host_whatever_the_proxy_and_no_answer_is_none(monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    codes = {"/a": (200, '{"x": 1}'), "/b": (200, "no json"), "/c": (503, "{}")}
    with answering(lambda path, body: codes[path]) as (address, asked):
        assert planning.ask(f"{address}/a") == {"x": 1}
        assert planning.ask(f"{address}/a", {"y": [2]}) == {"x": 1}
        assert planning.ask(f"{address}/a", {}) == {"x": 1}
        assert [planning.ask(f"{address}/b"), planning.ask(f"{address}/b", plain=True)] == [None, "no json"]
        assert planning.ask(f"{address}/c") is None
    assert asked[:3] == [("GET", "/a", None), ("POST", "/a", {"y": [2]}), ("POST", "/a", {})]
    assert planning.ask(f"{address}/a") is None


def test_runs_under_way_are_cancelled_and_waited_for(monkeypatch, capsys):
    """A worker that just ends leaves its runs "Running" on the server for ever."""
    monkeypatch.setattr(services, "POLL_SECONDS", 0.01)
    one, two = ({"id": name, "name": f"run {name}", "state_type": "RUNNING"} for name in "ab")
    going = [[one, two], None, [{**one, "state_type": "CANCELLING"}, two], [two], []]
    told = []

    def answer(path, body):
        if path == "/api/flow_runs/filter":
            assert body == {
                "flow_runs": {"state": {"type": {"any_": ["RUNNING", "PENDING", "CANCELLING"]}}},
                "work_pools": {"name": {"any_": ["gpu"]}},
            }
            found = going.pop(0)
            return (503, "") if found is None else (200, json.dumps(found))
        told.append((path, body))
        return 200, "{}"

    with answering(answer) as (address, _):
        services._cancel(f"{address}/api")
    cancelling = {"state": {"type": "CANCELLING", "name": "Cancelling"}}
    assert told == [(f"/api/flow_runs/{name}/set_state", cancelling) for name in "abbb"]
    assert capsys.readouterr().out == "cancelling the run run a\ncancelling the run run b\n"
    assert going == []


def test_a_run_that_never_ends_is_not_waited_for_for_ever(monkeypatch):
    clock = iter([0.0, 1.0, 39.0, 41.0])
    asked = []
    monkeypatch.setattr(services.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(services.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(services, "ask", lambda url, body=None: asked.append(url))
    services._cancel("http://h/api")
    assert len(asked) == 3


def test_down_cancels_then_ends_the_worker_first_and_the_servers_last(tmp_path, monkeypatch):
    folder, seen = Folder(tmp_path), []
    folder.path.mkdir()

    def held() -> bool:
        assert locks.take(folder.path / "lock") is None
        return True

    up = set(NAMES)
    monkeypatch.setattr(Folder, "alive", lambda self, name: name in up)
    monkeypatch.setattr(Folder, "environment", lambda self, name: {})
    monkeypatch.setattr(services, "_cancel", lambda api: seen.append(api))
    monkeypatch.setattr(services, "_end", lambda name, folder: seen.append(name) or held())
    for name in NAMES:
        folder.write(name, Record(1, 0.0, f"http://{name}"))
    services.down(tmp_path)
    assert seen == ["http://worker", "worker", "mlflow-server", "prefect-server"]
    for gone_one in ("worker", "prefect-server"):  # nobody to ask, or nothing to cancel
        up = set(NAMES) - {gone_one}
        seen.clear()
        services.down(tmp_path)
        assert seen == ["worker", "mlflow-server", "prefect-server"]


@pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")
def test_what_is_up_is_seen_kept_and_not_started_elsewhere(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder, started = Folder(tmp_path), []
    folder.path.mkdir()
    assert console(["status"]) == 1
    assert capsys.readouterr().out == "".join(f"{name:<15} down\n" for name in NAMES)
    seen = "os.environ['A'], os.getcwd(), os.getsid(0) == os.getpid(), os.readlink('/proc/self/fd/0')"
    script = f"import os; print({seen}, flush=True)"
    sleeping = (sys.executable, "-c", f"{script}; import time; time.sleep(300)")
    try:
        for name in NAMES:
            service = Service(name, sleeping, f"http://{name}", lambda: True, {"A": name}, 1)
            services._start(service, folder, started)
            assert until(folder.log(name).read_text)
            assert folder.log(name).read_text() == f"{name} {tmp_path} True /dev/null\n"
        assert started == list(NAMES)
        process = folder.alive("worker")
        record = folder.record("worker")
        assert (record.pid, record.born, record.url) == (process.pid, process.create_time(), "http://worker")
        assert process.environ()[MARK] == record.mark
        assert len({folder.record(name).mark for name in NAMES}) == 3
        capsys.readouterr()
        assert console(["status"]) == 0
        assert capsys.readouterr().out.splitlines()[2] == f"{'worker':<15} up    pid {process.pid:<8} http://worker"
        services._start(service, folder, started)  # is kept
        assert (folder.alive("worker").pid, len(started)) == (process.pid, 3)
        services._clear(service, folder)
        services._check(service, folder)
        assert folder.alive("worker")
        moved = dataclasses.replace(service, url="http://other")
        with pytest.raises(UserError, match="worker is up already at http://worker: end it with"):
            services._check(moved, folder)
        process.kill()
        assert until(lambda: folder.alive("worker") is None)
        assert console(["status"]) == 1
    finally:
        services.down(tmp_path)
    assert not list(folder.path.glob("*.json"))


def test_a_port_is_free_until_somebody_listens_there(tmp_path):
    folder, port = Folder(tmp_path), free_port()
    service = Service("mlflow-server", (), "http://h", lambda: True, {}, port)
    services._check(service, folder)
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))
        other.listen()
        with pytest.raises(UserError, match=rf"port {port} is taken by .*\(pid {os.getpid()}\): .*--mlflow-port$"):
            services._check(service, folder)
        services._check(dataclasses.replace(service, port=None), folder)
    services._check(service, folder)


def test_one_that_never_answers_is_given_up_in_time(tmp_path, monkeypatch, capsys):
    folder = Folder(tmp_path)
    clock = iter([0.0, 4.0, 6.0, 7.0, 180.0, 181.0])
    monkeypatch.setattr(services.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(services.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(Folder, "alive", lambda self, name: True)
    service = Service("worker", (), "http://h", lambda: False, {})
    with pytest.raises(UserError, match=r"^worker does not answer after 180 s: see .*worker\.log$"):
        services._await(service, folder)
    assert capsys.readouterr().out == "worker          is starting, 6 s\nworker          is starting, 180 s\n"


@pytest.fixture
def raised(tmp_path, monkeypatch):
    """`up` without processes: (the folder, what is done, in its order, who is up, what fails)."""
    seen, up, faults = [], set(), {}
    (tmp_path / "prefect.yaml").touch()

    def note(what: str, name: str) -> None:
        seen.append((what, name))
        free = locks.take(tmp_path / ".services/lock")  # no other up or down at the same time
        assert (free is None) == (what != "tell")
        if free is not None:
            os.close(free)
        if (what, name) in faults:
            raise faults[what, name]

    def start(service, folder, started):
        note("start", service.name)
        if service.name not in up:
            started.append(service.name)

    @contextlib.contextmanager
    def prepared(store, waiting):
        note("prepare", store)
        yield
        note("prepared", store)

    for name in ("_clear", "_check", "_await", "_end"):
        monkeypatch.setattr(services, name, lambda one, folder, name=name: note(name, getattr(one, "name", one)))
    monkeypatch.setattr(services, "_start", start)
    monkeypatch.setattr(services, "_deploy", lambda worker, folder: note("deploy", worker.name))
    monkeypatch.setattr(services, "_aim", lambda root, api: note("aim", api))
    monkeypatch.setattr(services, "_tell", lambda planned: note("tell", planned[0].url))
    monkeypatch.setattr(services.client, "prepared", prepared)
    monkeypatch.setattr(Folder, "alive", lambda self, name: name in up)
    monkeypatch.setattr(Folder, "environment", lambda self, name: {})
    return tmp_path, seen, up, faults


def test_up_checks_all_starts_the_servers_with_a_whole_database_then_aims_works_and_deploys(raised, plain):
    root, seen, up, _ = raised
    services.up(root, 4300, 5100)
    names, store = ("prefect-server", "mlflow-server"), f"sqlite:///{root / 'mlflow.db'}"
    checks = [(word, name) for name in NAMES for word in ("_clear", "_check")]
    wanted = [
        *checks,
        ("prepare", store),
        *(("start", name) for name in names),
        *(("_await", name) for name in names),
        ("prepared", store),
        ("aim", "http://127.0.0.1:4300/api"),
        ("start", "worker"),
        ("_await", "worker"),
        ("deploy", "worker"),
        ("tell", "http://127.0.0.1:4300"),
    ]
    assert seen == wanted
    up |= set(NAMES)
    seen.clear()
    services.up(root, 4300, 5100)  # the database is the server's; a worker that is up has another name
    assert seen == [one for one in wanted if one[0] not in ("prepare", "prepared") and one != ("_await", "worker")]


def test_where_mlflow_is_served_elsewhere_up_does_the_rest(raised, plain, monkeypatch):
    root, seen, _, _ = raised
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://h:5000")
    services.up(root, 4300, 5100)
    assert [one for one in seen if one[0].startswith(("prep", "mlflow"))] == []
    assert [name for word, name in seen if word == "start"] == ["prefect-server", "worker"]
    assert seen[-1] == ("tell", "http://127.0.0.1:4300")


@pytest.mark.parametrize("error", [UserError("no"), KeyboardInterrupt()])
@pytest.mark.parametrize(
    "where", [("_await", "mlflow-server"), ("deploy", "worker"), ("aim", "http://127.0.0.1:1/api")]
)
def test_whatever_fails_in_up_what_it_started_is_ended_in_reverse_and_nothing_else(raised, plain, where, error):
    root, seen, up, faults = raised
    up.add("prefect-server")
    faults[where] = error
    with pytest.raises(type(error)):
        services.up(root, 1, 2)
    started = [name for word, name in seen if word == "start" and name not in up]
    assert [name for word, name in seen if word == "_end"] == started[::-1] != []


def test_up_belongs_in_the_project_s_root(tmp_path):
    with pytest.raises(UserError, match=r"there is no prefect\.yaml in"):
        services.up(tmp_path, 1, 2)
    assert list(tmp_path.iterdir()) == []


def test_both_flows_are_deployed_with_the_worker_s_own_surroundings(tmp_path, monkeypatch):
    folder = Folder(tmp_path)
    folder.path.mkdir()
    program = tmp_path / "python"
    program.write_text('#!/bin/sh\necho "$PWD: $* for $A"; read line; exit ${CODE:-0}\n')
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    worker = Service("worker", (), "http://h", lambda: True, {"A": "us", "CODE": ""})
    monkeypatch.setattr(services.deploying, "ask", lambda *_: [])
    services._deploy(worker, folder)
    said = f"{tmp_path}: -m prefect --no-prompt deploy --all for us"
    assert folder.log("deploy").read_text() == f"{said}\n"
    with pytest.raises(UserError, match=r"^prefect deploy --all failed: ") as caught:
        services._deploy(dataclasses.replace(worker, environment={"A": "us", "CODE": "3"}), folder)
    assert str(caught.value).endswith(f"{said} (see {folder.log('deploy')})")


def test_what_comes_next_is_said_with_the_address_where_the_environment_leads_elsewhere(
    tmp_path, plain, monkeypatch, capsys
):
    command = os.path.relpath(Path(sys.executable).with_name("prefect"))
    planned = planning.planned(tmp_path, 4300, 5100)
    for name in (None, *planning.AIMS):
        with monkeypatch.context() as patch:
            if name:
                patch.setenv(name, "x")
            services._tell(planned)
        told = "PREFECT_API_URL=http://127.0.0.1:4300/api " if name else ""
        assert capsys.readouterr().out.splitlines() == [
            "",
            "Prefect  http://127.0.0.1:4300",
            "MLflow   http://127.0.0.1:5100",
            f"next     {told}{command} deployment run distill/smoke --watch    (or distill/full)",
        ]


def test_the_command_of_the_services_hands_on_its_ports_and_its_mistakes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    seen = []
    for verb in ("up", "down"):
        monkeypatch.setattr(services, verb, lambda *words, verb=verb: seen.append((verb, *words)))
    assert console(["up"]) == console(["down"]) == 0
    assert console(["up", "--mlflow-port", "7", "--prefect-port", "8"]) == 0
    here = "127.0.0.1"
    assert seen == [("up", tmp_path, 4200, 5000, here), ("down", tmp_path), ("up", tmp_path, 8, 7, here)]

    def refuse(*_):
        raise UserError("http://me:s3same@h/ is down")

    monkeypatch.setattr(services, "down", refuse)
    assert console(["down"]) == 2
    assert capsys.readouterr().err == "error: http://h/ is down\n"


def test_what_is_deployed_is_the_flow_in_the_project_s_folder_on_the_worker_s_pool():
    found = YAML(typ="safe").load((ROOT / "prefect.yaml").read_text())
    assert found["name"] == distill.distill.name
    (step,) = found["pull"]
    assert step == {"prefect.deployments.steps.set_working_directory": {"directory": "{{ $DISTILL_ROOT }}"}}
    full, smoke = ({key: one[key] for key in one if key != "description"} for one in found["deployments"])
    pool = {"name": planning.POOL, "job_variables": {"env": {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30"}}}
    shared = {"entrypoint": "flows/distill.py:distill", "tags": [watch.TAG], "work_pool": pool}
    assert full == {"name": "full", **shared}
    assert smoke == {"name": "smoke", "parameters": {"preset": "smoke"}, **shared}
    assert (ROOT / "presets/smoke.yaml").is_file()


def test_prefect_keeps_all_of_this_project_in_it_and_tells_nobody():
    found = tomllib.loads((ROOT / "prefect.toml").read_text())
    assert found["home"] == str(planning.HOME)
    assert found["profiles_path"] == str(planning.HOME / "profiles.toml")
    assert found["client"] == {"server_version_check_enabled": False}
    assert found["server"] == {
        "analytics_enabled": False,
        "ephemeral": {"startup_timeout_seconds": 120},
        "ui": {"show_promotional_content": False},
    }


# ---- with the real servers


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def ports() -> dict[str, str]:
    return {"--prefect-port": str(free_port()), "--mlflow-port": str(free_port())}


@pytest.fixture(scope="module")
def live(tmp_path_factory):
    """A toy project that is up; at the end `down` must leave none of its processes."""
    folder = project(tmp_path_factory.mktemp("live") / "project")
    monkey = pytest.MonkeyPatch()
    monkey.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkey.setattr(planning, "TALK_SECONDS", 60)  # a request that is given up on a busy machine is still carried out
    places = ports()
    monkey.setenv("PREFECT_API_URL", f"http://127.0.0.1:{places['--prefect-port']}/api")
    words = ["up", *(word for pair in places.items() for word in pair)]
    try:
        ended = services_command(folder, *words)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        yield Live(folder, words)
    finally:
        leaders = [Folder(folder).alive(name) for name in NAMES]
        family = [process for leader in leaders if leader for process in (leader, *leader.children(recursive=True))]
        ended = services_command(folder, "down")
        monkey.undo()
    assert len(family) >= 3
    assert "ended" in ended.stdout
    assert until(lambda: all(gone(process.pid) for process in family))
    assert all(_free_now(int(port)) for port in places.values())


def _free_now(port: int) -> bool:
    return until(lambda: services._free(port), 5)


@dataclass(frozen=True)
class Live:
    folder: Path
    words: list[str]

    def api(self, path: str, body=None):
        answers: list = []  # a busy SQLite makes Prefect's server answer 503 now and then
        url = f"{os.environ['PREFECT_API_URL']}/{path}"
        assert until(lambda: answers.append(planning.ask(url, body)) or answers[-1] is not None), f"no answer: {path}"
        return answers[-1]

    def go(self, name: str, **parameters) -> str:
        """Starts a deployment and gives the id of its run."""
        deployment = self.api(f"deployments/name/distill/{name}")
        run = self.api(f"deployments/{deployment['id']}/create_flow_run", {"parameters": parameters})
        return run["id"]

    def state(self, run: str) -> dict:
        return self.api(f"flow_runs/{run}")["state"]

    def done(self, run: str) -> dict:
        final = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
        assert until(lambda: self.state(run)["type"] in final, 120), self.state(run)
        return self.state(run)

    def stages(self, run: str) -> dict[str, str]:
        """The state's name of each stage; the server hears of them a moment after the run's end."""
        asked = {"flow_runs": {"id": {"any_": [run]}}}
        time.sleep(2)
        return {one["name"]: one["state"]["name"] for one in self.api("task_runs/filter", asked)}


ALL = ("shard", "arm@left", "arm@right", "evaluate")


@pytest.mark.server
def test_a_deployed_run_completes_shows_the_frontier_and_the_next_one_finds_all_cached(live):
    behave(live.folder)
    run = live.go("full")
    state = live.done(run)
    assert (state["type"], state["message"]) == ("COMPLETED", "4 stages: 0 up to date, 4 run or restored")
    assert live.stages(run) == dict.fromkeys(ALL, "Completed")
    order = starts(live.folder)
    assert (order[0], set(order[1:3]), order[3]) == ("shard", {"left", "right"}, "evaluate")
    assert live.api("artifacts/frontier/latest")["data"] == '[{"name": "teacher", "fd": "1.5"}]'
    again = live.go("full")
    assert live.done(again)["message"] == "4 stages: 4 up to date, 0 run or restored"
    assert live.stages(again) == dict.fromkeys(ALL, "Cached")


@pytest.mark.server
def test_up_again_keeps_all_and_status_sees_them(live):
    before = {name: Folder(live.folder).alive(name).pid for name in NAMES}
    assert services_command(live.folder, *live.words).returncode == 0
    assert {name: Folder(live.folder).alive(name).pid for name in NAMES} == before
    assert services_command(live.folder, "status").returncode == 0


@pytest.mark.server
def test_a_failed_arm_fails_what_needs_it_and_the_other_arm_finishes(live):
    behave(live.folder, left="exit 2", right="kill", shard="ok again")
    (live.folder / "killed").unlink(missing_ok=True)
    begun = len(starts(live.folder))
    run = live.go("full")
    state = live.done(run)
    assert state["type"] == "FAILED"
    assert state["message"] == "arm@left: left fails on purpose; not run: evaluate"
    seen = live.stages(run)
    assert (seen["arm@left"], seen["arm@right"], seen["evaluate"]) == ("Failed", "Completed", "NotReady")
    tried = starts(live.folder)[begun:]
    assert (tried.count("left"), tried.count("right")) == (1, 2)  # a mistake is not tried again, a killed stage is


@pytest.mark.server
def test_cancelling_a_run_ends_the_training_process(live):
    behave(live.folder, shard="sleep 300")
    (live.folder / "pids.txt").unlink(missing_ok=True)
    run = live.go("full")
    assert until((live.folder / "pids.txt").exists, 60)
    tree = pids(live.folder)
    live.api(f"flow_runs/{run}/set_state", {"state": {"type": "CANCELLING", "name": "Cancelling"}})
    assert live.done(run)["type"] == "CANCELLED"
    assert all(map(gone, tree))
    behave(live.folder)
    assert live.done(live.go("full"))["type"] == "COMPLETED"  # no lock is left behind


@pytest.mark.server
def test_the_smoke_deployment_works_in_its_workspace(live):
    behave(live.folder)
    assert live.done(live.go("smoke"))["type"] == "COMPLETED"
    assert (live.folder / ".workspaces" / "smoke" / "artifacts" / "frontier.csv").is_file()


@pytest.mark.server
def test_down_cancels_what_is_under_way_and_a_later_up_starts_clean(live):
    behave(live.folder, shard="sleep 300")
    (live.folder / "pids.txt").unlink(missing_ok=True)
    run = live.go("full")
    assert until((live.folder / "pids.txt").exists, 60)
    tree = pids(live.folder)
    ended = services_command(live.folder, "down")
    assert "cancelling the run" in ended.stdout
    assert all(map(gone, tree))
    assert services_command(live.folder, "down").stdout.startswith("nothing is up\n")
    assert services_command(live.folder, "status").returncode == 1
    assert services_command(live.folder, *live.words).returncode == 0
    assert live.state(run)["type"] == "CANCELLED"


@pytest.mark.server
def test_two_clones_never_meet(live, tmp_path):
    """Both up at the same time: each has its own runs, and `down` in one leaves those of the other alone."""
    behave(live.folder, shard="sleep 300")
    (live.folder / "pids.txt").unlink(missing_ok=True)
    other = project(tmp_path / "other")
    words = ["up", *(word for pair in ports().items() for word in pair)]
    surroundings = {name: "" for name in planning.AIMS}
    try:
        ended = services_command(other, *words, **surroundings)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        command = re.search(r"next +(\S+) deployment run", ended.stdout)[1]
        run = live.go("full")
        assert until((live.folder / "pids.txt").exists, 120)
        tree = pids(live.folder)
        # as documented: no address, in the project's root
        empty = {name: value for name, value in os.environ.items() if name not in planning.AIMS}
        before = live.api("flow_runs/count", {})
        deployment = [str(other / command), "deployment", "run", "distill/full", "--watch"]
        watched = subprocess.run(deployment, cwd=other, env=empty, capture_output=True, text=True)
        assert watched.returncode == 0, watched.stdout + watched.stderr
        assert (other / "artifacts/frontier.csv").is_file()
        assert live.api("flow_runs/count", {}) == before
        assert str(other) not in json.dumps(live.api("deployments/filter", {}))
    finally:
        ended = services_command(other, "down", **surroundings)
    assert "cancelling" not in ended.stdout
    assert live.state(run)["type"] == "RUNNING"
    assert not any(map(gone, tree))
    live.api(f"flow_runs/{run}/set_state", {"state": {"type": "CANCELLING", "name": "Cancelling"}})
    assert live.done(run)["type"] == "CANCELLED"


@pytest.mark.server
def test_mlflow_killed_with_9_comes_back(live):
    """Its worker outlives it and holds the port; the next `up` ends that first."""
    folder = Folder(live.folder)
    left = folder.alive("mlflow-server").children(recursive=True)
    folder.alive("mlflow-server").kill()
    assert [process for process in left if not gone(process.pid)]
    ended = services_command(live.folder, *live.words)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert all(gone(process.pid) for process in left)
    assert folder.alive("mlflow-server")


@pytest.mark.server
def test_what_a_stage_says_reaches_the_server_without_a_password(live):
    behave(live.folder, shard="faults 2")
    state = live.done(live.go("full"))
    assert state["message"] == (
        "shard: netwrok: unknown key, did you mean 'network'?; network: missing; http://h/ is down"
        "; not run: arm@left, arm@right, evaluate"
    )
    time.sleep(3)  # the logs come in batches
    assert any("http://h/ is down" in one["message"] for one in live.api("logs/filter", {"sort": "TIMESTAMP_DESC"}))
    for path in (live.folder / ".services").rglob("*"):
        if path.is_file():
            assert b"s3same" not in path.read_bytes(), path
