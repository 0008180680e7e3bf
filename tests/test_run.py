"""`distill run`: stages side by side where the graph allows, and what becomes of the others when one fails or is stopped.

On a toy pipeline whose stages are files of a few lines: a `root`, two arms on it, a `join` of both.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from diffcore.core.errors import UserError
from tasks import locks, paths, pipeline, places, stages
from tasks.stages import Stage

pytestmark = pytest.mark.filterwarnings("ignore:_NoneStep.value will soon raise:DeprecationWarning")  # DVC's own

ROOT = Path(__file__).parent.parent
CONFIG = "[core]\n    analytics = false\n    check_update = false\n    no_scm = true\n    site_cache_dir = .site\n"
PATIENCE = 120.0

STAGE = """
import pathlib, sys, time
name, action = sys.argv[1:3]
with open("log.txt", "a") as log:
    log.write(f"{name} begins\\n")
print(f"{name} at work", flush=True)
if action == "meet":  # goes on when the other arm has begun too
    until = time.monotonic() + 120
    while "left begins" not in (text := pathlib.Path("log.txt").read_text()) or "right begins" not in text:
        if time.monotonic() > until:
            sys.exit(1)
        time.sleep(0.02)
if action == "refuse":
    print(f"error: {name} cannot", file=sys.stderr)
    sys.exit(2)
if action == "crash":
    sys.exit(3)
if action == "hang":
    time.sleep(600)
with open("log.txt", "a") as log:
    log.write(f"{name} ends\\n")
pathlib.Path(name).write_text(name)
"""


def project(folder: Path, **actions: str) -> Path:
    """root -> left, right -> join; by stage what it does: "meet", "refuse", "crash", "hang", else nothing but its output."""
    after = {"root": [], "left": ["root"], "right": ["root"], "join": ["left", "right"]}
    (folder / ".dvc").mkdir()
    (folder / ".dvc/config").write_text(CONFIG)
    (folder / "stage.py").write_text(STAGE)
    body = {
        name: {"cmd": f"{sys.executable} stage.py {name} {actions.get(name, 'pass')}", "deps": deps, "outs": [name]}
        for name, deps in after.items()
    }
    (folder / "dvc.yaml").write_text(json.dumps({"stages": body}))
    return folder


def slots(folder: Path, count: int) -> locks.Slots:
    return locks.Slots([locks.Slot(folder / f".dvc/tmp/slot-{number}.lock", {}) for number in range(count)])


def events(folder: Path) -> list[str]:
    log = folder / "log.txt"
    return log.read_text().splitlines() if log.exists() else []


@pytest.mark.slow
def test_two_stages_that_need_each_other_not_run_at_the_same_time(tmp_path, capsys):
    """Each arm waits for the other to begin: one after the other they would both fail."""
    assert pipeline.reproduce(project(tmp_path, left="meet", right="meet"), slots(tmp_path, 2)) == 0
    assert events(tmp_path)[:2] == ["root begins", "root ends"]
    assert events(tmp_path)[-2:] == ["join begins", "join ends"]
    told = capsys.readouterr().out.splitlines()
    assert told[0] == "4 stages, 4 of them to run or to look at, 2 at a time"
    assert {"left  | left at work", "right | right at work"} <= set(told)
    assert not [line for line in told if "dvc.lock" in line]


@pytest.mark.slow
def test_with_one_slot_they_come_one_after_the_other_and_lines_are_as_they_were(tmp_path, capsys):
    assert pipeline.reproduce(project(tmp_path), slots(tmp_path, 1)) == 0
    assert [line.split()[1] for line in events(tmp_path)] == ["begins", "ends"] * 4
    assert "left at work" in capsys.readouterr().out.splitlines()


@pytest.mark.slow
def test_what_is_up_to_date_starts_no_process_and_what_needs_something_new_runs(tmp_path, monkeypatch, capsys):
    folder = project(tmp_path)
    assert pipeline.reproduce(folder, slots(tmp_path, 2)) == 0
    before = events(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(stages, "reproduce", lambda *_, **__: pytest.fail("a stage was started"))
        assert pipeline.reproduce(folder, slots(tmp_path, 2)) == 0
    assert "4 stages, 0 of them to run" in capsys.readouterr().out
    (tmp_path / "right").unlink()
    assert stages.stale(folder)[1] == {"right", "join"}
    assert pipeline.reproduce(folder, slots(tmp_path, 2)) == 0
    assert events(tmp_path) == before  # DVC restored it
    assert (tmp_path / "right").read_text() == "right"


@pytest.mark.slow
@pytest.mark.parametrize(("action", "code"), [("refuse", 2), ("crash", pipeline.FAILED)])
def test_a_failed_stage_takes_those_that_need_it_and_the_others_finish(tmp_path, action, code, capsys):
    folder = project(tmp_path, left=action)
    assert pipeline.reproduce(folder, slots(tmp_path, 1)) == code
    out, err = capsys.readouterr()
    assert "not run: join" in out
    assert err.splitlines() == ["error: left: left cannot" if code == 2 else "error: left exited with 3: left at work"]
    assert {"left begins", "right ends"} <= set(events(tmp_path))
    assert "join begins" not in events(tmp_path)
    assert stages.stale(folder)[1] == {"left", "join"}


def test_what_needs_a_stale_stage_is_stale_too(tmp_path, monkeypatch):
    """DVC, asked without running anything, speaks of each stage by itself."""
    monkeypatch.chdir(tmp_path)
    folder = project(tmp_path)
    assert stages.stale(folder)[1] == {"root", "left", "right", "join"}
    monkeypatch.setattr(stages.Repo, "status", lambda repo: {"right": ["always changed"], "none.dvc": []})
    graph, changed = stages.stale(folder)
    assert changed == {"right", "join"}
    assert graph == stages.graph(folder)


GRAPH = {name: Stage(name, after, ()) for name, after in
         {"root": (), "left": ("root",), "right": ("root",), "join": ("left", "right")}.items()}  # fmt: skip


@pytest.mark.parametrize("failing", [None, "left", "root"])
def test_arms_run_at_the_same_time_after_what_they_need_and_none_after_what_failed(
    tmp_path, monkeypatch, capsys, failing
):
    """The arms meet: one after the other they would wait for ever."""
    meeting, done = threading.Barrier(2, timeout=PATIENCE), []

    def reproduce(name, workspace, running, log, environment, keep):
        assert set(GRAPH[name].after) <= set(done)
        if name in ("left", "right"):
            meeting.wait()
        if name == failing:
            raise UserError(f"{name}: no")
        done.append(name)
        log(f"{name} in {environment['SLOT']}")

    monkeypatch.setattr(stages, "stale", lambda workspace: (GRAPH, set(GRAPH)))
    monkeypatch.setattr(stages, "reproduce", reproduce)
    two = locks.Slots([locks.Slot(tmp_path / name, {"SLOT": name}) for name in "ab"])
    assert pipeline.reproduce(tmp_path, two) == (2 if failing else 0)
    finished = {None: set(GRAPH), "left": {"root", "right"}, "root": set()}[failing]
    out, err = capsys.readouterr()
    assert err == (f"error: {failing}: no\n" if failing else "")
    assert set(done) == finished
    assert {line.split()[0] for line in out.splitlines() if "|" in line} == finished
    if failing:
        assert f"not run: {'join' if failing == 'left' else 'left, right, join'}" in out.splitlines()


def test_an_unforeseen_fault_is_not_lost_and_the_rest_is_stopped(tmp_path, monkeypatch):
    def reproduce(name, workspace, running, log, environment, keep):
        if name == "left":
            raise ZeroDivisionError(name)

    monkeypatch.setattr(stages, "stale", lambda workspace: (GRAPH, set(GRAPH)))
    monkeypatch.setattr(stages, "reproduce", reproduce)
    with pytest.raises(ZeroDivisionError):
        pipeline.reproduce(tmp_path, slots(tmp_path, 2))


def test_a_wide_stage_has_its_slots_alone(tmp_path, monkeypatch):
    """No stage starts beside it that would take one of them, and none before it that it stands before."""
    most = {"running": 0}
    guard = threading.Lock()

    def reproduce(name, workspace, running, log, environment, keep):
        width = int(environment[locks.MOST])
        assert width == (2 if name == "left" else 1) == len(keep)
        with guard:
            most["running"] += width
            assert most["running"] <= 2
        time.sleep(0.02)
        with guard:
            most["running"] -= width

    monkeypatch.setattr(stages, "stale", lambda workspace: (GRAPH, set(GRAPH)))
    monkeypatch.setattr(stages, "reproduce", reproduce)
    two = locks.Slots(slots(tmp_path, 2).all, {"left": 2})
    monkeypatch.delattr(locks.Slots, "_wait")  # none is started for which no slot is free
    assert pipeline.reproduce(tmp_path, two) == 0


@pytest.mark.parametrize(("given", "count"), [(None, 2), ("1", 1), ("2", 2), ("3", 2), ("x", None), ("0", None)])
def test_a_training_in_parts_has_as_many_processes_as_the_run_gives_it_or_the_machine(given, count, monkeypatch):
    monkeypatch.setattr(places.joblib, "cpu_count", lambda: 5)
    line = SimpleNamespace(fit=SimpleNamespace(cores=4))
    params = SimpleNamespace(compute=SimpleNamespace(threads=2), line=lambda name: line)
    monkeypatch.delenv(locks.MOST, raising=False)
    if given is not None:
        monkeypatch.setenv(locks.MOST, given)
    if count is not None:
        assert places.processes(params, "teacher") == count
        return
    with pytest.raises(UserError, match=rf"^DISTILL_PROCESSES is '{given}' in the environment, no number of processes"):
        places.processes(params, "teacher")


def test_those_for_which_most_wait_come_first():
    graph = {name: Stage(name, tuple(after), ()) for name, after in
             {"a": (), "b": (), "c": ("b",), "d": ("c", "a"), "e": ("d",)}.items()}  # fmt: skip
    assert pipeline.in_order(graph) == {"b": 3, "a": 2, "c": 2, "d": 1, "e": 0}


RUN = """
import signal, sys
from pathlib import Path
from tasks import locks, pipeline
signal.signal(signal.SIGINT, signal.default_int_handler)  # which what is started in the background ignores
try:
    sys.exit(pipeline.reproduce(Path(), locks.Slots([locks.Slot(Path(f".dvc/tmp/slot-{n}.lock"), {}) for n in range(2)])))
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_run_that_is_ended_leaves_no_process_and_the_next_goes_on(tmp_path, number):
    folder = project(tmp_path, left="hang", right="hang")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.Popen([sys.executable, "-c", RUN], cwd=folder, env=environment, stdout=subprocess.DEVNULL)
    family = []
    try:
        until(lambda: {"left begins", "right begins"} <= set(events(folder)))
        family = psutil.Process(run.pid).children(recursive=True)
        assert len(family) > 4
        run.send_signal(number)
        assert run.wait(PATIENCE) == (130 if number == signal.SIGINT else -number)
        assert psutil.wait_procs(family, PATIENCE)[1] == []
    finally:
        for process in (run, *family):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        run.wait()
    for name in ("left", "right"):
        (folder / "dvc.yaml").write_text((folder / "dvc.yaml").read_text().replace(f"{name} hang", f"{name} pass"))
    assert pipeline.reproduce(folder, slots(folder, 2)) == 0
    assert events(folder).count("root begins") == 1


def until(condition) -> None:
    limit = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.02)


# ---- how many at a time


def parameters(
    threads: int = 1, source: str = "digits", memory_gb: float = 4.0, processes: int | str = "auto"
) -> SimpleNamespace:
    compute = SimpleNamespace(threads=threads, processes=processes, memory_bytes=int(memory_gb * 2**30))
    return SimpleNamespace(compute=compute, data=SimpleNamespace(source=source))


@pytest.mark.parametrize(
    ("processors", "threads", "free", "source", "count"),
    [
        (8, 1, 64, "digits", 8),
        (8, 2, 64, "digits", 4),
        (2, 2, 64, "digits", 1),
        (1, 4, 64, "digits", 1),
        (8, 1, 3.5, "digits", 3),
        (8, 1, 0.5, "digits", 1),
        (8, 1, 16, "folder:x", 3),  # of data that nobody has counted yet, a stage may keep memory_gb
    ],
)
def test_as_many_as_processors_and_memory_allow(
    tmp_path, monkeypatch, capsys, processors, threads, free, source, count
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(places.locks, "gpus", list)
    monkeypatch.setattr(places.joblib, "cpu_count", lambda: processors)
    monkeypatch.setattr(places.psutil, "virtual_memory", lambda: SimpleNamespace(available=int(free * 2**30)))
    assert len(places.of(tmp_path, parameters(threads, source), None).all) == count
    assert ("--slots chooses" in capsys.readouterr().out) == (count < max(1, processors // threads))
    assert len(places.of(tmp_path, parameters(threads, source), 5).all) == 5
    several = parameters(threads, source, processes=2)
    assert len(places.of(tmp_path, several, None).all) == min(count, max(1, processors // (2 * threads)))


def test_images_that_are_there_are_counted(tmp_path, monkeypatch):
    manifest = SimpleNamespace(images=2**20, shape=(1, 32, 32))
    monkeypatch.setattr(places.Manifest, "read", lambda folder, verify: manifest if folder == paths.DATA else None)
    assert places._kept_bytes(parameters(source="folder:x")) == 2**30
    assert places._kept_bytes(parameters(source="folder:x", memory_gb=0.5)) == 2**29


@pytest.mark.parametrize("devices", [["GPU-a", "GPU-b"], []])
def test_the_host_is_asked_once_for_its_gpus(tmp_path, monkeypatch, devices):
    """`nvidia-smi` takes a second where the driver sleeps."""
    asked = []
    monkeypatch.setattr(places.locks, "gpus", lambda: asked.append("nvidia-smi") or devices)
    places.of(tmp_path, parameters(), 1)
    assert len(asked) == 1


def test_a_gpu_takes_one_stage_and_no_more_are_promised(tmp_path, monkeypatch):
    monkeypatch.setattr(places.locks, "gpus", lambda: ["GPU-a", "GPU-b"])
    two = places.of(tmp_path, parameters(), None).all
    assert [slot.environment for slot in two] == [{"CUDA_VISIBLE_DEVICES": "GPU-a"}, {"CUDA_VISIBLE_DEVICES": "GPU-b"}]
    assert places.of(tmp_path, parameters(), 1).all == two[:1]
    with pytest.raises(UserError, match=r"^--slots: there are GPUs for 2 stages at a time, got 3$"):
        places.of(tmp_path, parameters(), 3)
