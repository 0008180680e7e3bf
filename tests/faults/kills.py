"""kill -9: of stages, of whole pipelines, in DVC's and MLflow's own writes; then the same command again."""

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from tests.faults import pipeline, verdict
from tests.faults.desk import HANG_SECONDS, Blow, Ended, remove
from tests.faults.strike import Strike
from tests.faults.trial import Case, Trial
from tests.faults.verdict import Outcome

SHARES = {
    "stages": 0.56,
    "pipelines": 0.13,
    "writes of DVC": 0.12,
    "writes of MLflow": 0.12,
    "real processes": 0.05,
    "flows": 0.02,
}
"""How the trials are dealt out."""


def rehearse(trial: Trial) -> dict[str, list[str]]:
    """What each process does to the disk, undisturbed: the instants at which it may be killed."""
    folder, seen = trial.begin(), {}
    for stage in pipeline.STAGES:
        pipeline.unfinish(folder, stage)
        trial.call(*stage.split(), strikes={stage: Strike(None)})
        seen[stage] = trial.desk.events(folder)
    trial.end()
    trial.begin()
    make_stale(folder, "search")
    trial.call("run", strikes={"dvc": Strike(None)})
    seen["dvc"] = trial.desk.events(folder)
    trial.end()
    trial.begin()
    _other_experiment(folder)
    trial.call("publish", strikes={"publish": Strike(None)})
    seen["publish again"] = trial.desk.events(folder)
    trial.end()
    return seen


def cases(seed: int, count: int, seen: Mapping[str, list[str]]) -> list[Case]:
    """`count` trials, dealt out by SHARES; each is made of (seed, number) alone."""
    makers = {
        "stages": _stage,
        "pipelines": _pipeline,
        "writes of DVC": _dvc,
        "writes of MLflow": _mlflow,
        "real processes": _real,
        "flows": _flow,
    }
    found = []
    for kind, share in SHARES.items():
        for number in range(round(count * share)):
            rng = random.Random(f"{seed}/{kind}/{number}")
            found.append(makers[kind](rng, seen, f"kills: {kind}"))
    return found


def _stage(rng: random.Random, seen: Mapping[str, list[str]], kind: str) -> Case:
    """One stage by itself, killed at an event or at any instant, over an earlier result or over none."""
    quick = [name for name in pipeline.STAGES if name not in ("measure teacher", "publish")]
    stage = rng.choice([*quick, *quick, "measure teacher"])
    fresh, instant = rng.random() < 0.6, rng.random() < 0.2
    at, seconds = rng.randint(1, max(1, len(seen[stage]))), rng.uniform(0.05, 2.0)
    where = f"after {seconds:.2f} s" if instant else _told(seen[stage], at)

    def run(trial: Trial) -> Outcome:
        folder = trial.begin()
        if fresh:
            pipeline.unfinish(folder, stage)
        else:
            remove(folder / ".resume")
        struck = {} if instant else {stage: Strike(at)}
        blow = Blow(seconds, at) if instant else None
        ended = trial.call(*stage.split(), strikes=struck, blow=blow)
        if found := verdict.fault(ended):
            return trial.record.outcome(*found)
        return trial.again(*stage.split(), among=pipeline.STAGES[stage])

    return Case(kind, f"./stage {stage} ({'nothing' if fresh else 'an earlier result'} there), killed {where}", run)


def _pipeline(rng: random.Random, seen: Mapping[str, list[str]], kind: str) -> Case:
    """`./stage run` from some stage on, killed in DVC, in a stage, or everything at once."""
    names = list(pipeline.STAGES)
    first = rng.choice(names[2:-1])
    later = names[names.index(first) :]
    victim = rng.choice(["dvc", "everything", "any", *later])
    at, seconds = rng.randint(1, 60), rng.uniform(0.3, 9.0)

    def run(trial: Trial) -> Outcome:
        folder = trial.begin()
        make_stale(folder, first)
        timed = victim in ("everything", "any")
        k = 1 + at % max(1, len(seen.get(victim, [])))
        struck = {} if timed else {victim: Strike(k)}
        blow = Blow(seconds, at, victim == "everything") if timed else None
        ended = trial.call("run", strikes=struck, blow=blow)
        if found := verdict.fault(ended):
            return trial.record.outcome(*found)
        return trial.again("run")

    how = f"{seconds:.1f} s after the start" if victim in ("everything", "any") else f"at its event {at}"
    return Case(kind, f"./stage run from {first} on, {victim} killed {how}", run)


def _dvc(rng: random.Random, seen: Mapping[str, list[str]], kind: str) -> Case:
    """DVC alone, at one of its own writes: dvc.lock, its cache, its run cache, its locks."""
    at = _some_event(rng, seen["dvc"])

    def run(trial: Trial) -> Outcome:
        folder = trial.begin()
        make_stale(folder, "search")
        ended = trial.call("run", strikes={"dvc": Strike(at)})
        if found := verdict.fault(ended):
            return trial.record.outcome(*found)
        return trial.again("run")

    return Case(kind, f"./stage run from search on, dvc killed {_told(seen['dvc'], at)}", run)


def _some_event(rng: random.Random, events: list[str]) -> int:
    """Any event, but each sort of them as likely as another: dvc.lock alone is written in thousands of small pieces."""
    sorts: dict[str, list[int]] = {}
    for k, event in enumerate(events, 1):
        sorts.setdefault(re.sub(r"[0-9a-f]{6,}|\d+", "*", event), []).append(k)
    return rng.choice(sorts[rng.choice(list(sorts))]) if sorts else 1


def _mlflow(rng: random.Random, seen: Mapping[str, list[str]], kind: str) -> Case:
    """`publish`, while mlflow.db is made, or while runs and models are written."""
    fresh = rng.random() < 0.6
    events = seen["publish" if fresh else "publish again"]
    made = next((k for k, event in enumerate(events) if "INSERT" in event), len(events))
    at = rng.randint(1, max(1, made if fresh and rng.random() < 0.6 else len(events)))

    def run(trial: Trial) -> Outcome:
        folder = trial.begin()
        if fresh:
            pipeline.unfinish(folder, "publish")
        else:
            _other_experiment(folder)
        ended = trial.call("publish", strikes={"publish": Strike(at)})
        if found := verdict.fault(ended):
            return trial.record.outcome(*found)
        if fresh:
            return trial.again("publish", among=pipeline.STAGES["publish"])
        return _twice_as_much(trial, trial.again("publish", among=["artifacts/published.json"]))

    return Case(kind, f"./stage publish ({'no' if fresh else 'an'} mlflow.db there), killed {_told(events, at)}", run)


def _twice_as_much(trial: Trial, outcome: Outcome) -> Outcome:
    """In a second experiment every run is there once more."""
    once, both = (pipeline.runs(folder) for folder in (trial.template, trial.folder))
    if not outcome.bad and both != sorted(once * 2):
        return trial.record.outcome("silent", f"MLflow shows {len(both)} runs where {2 * len(once)} are right")
    return outcome


def _real(rng: random.Random, seen: Mapping[str, list[str]], kind: str) -> Case:
    """Real processes from start to end, nothing forked by us: one of the tree, or all of it, killed at a random instant."""
    seconds, everything, pick = rng.uniform(1.0, 40.0), rng.random() < 0.4, rng.random()

    def run(trial: Trial) -> Outcome:
        folder = trial.begin()
        make_stale(folder, "gamma")
        ended = trial.record.note(_run_and_kill(trial, folder, seconds, everything, pick))
        if found := verdict.fault(ended):
            return trial.record.outcome(*found)
        return trial.again("run")

    who = "everything" if everything else "one process"
    return Case(kind, f"./stage run from gamma on, {who} killed {seconds:.0f} s after the start", run)


FLOW = "import sys; from flows.distill import main; sys.exit(main(['search']))"


def _flow(rng: random.Random, seen: Mapping[str, list[str]], kind: str) -> Case:
    """The flow without a server of ours; one process of it, or all, killed at a random instant. Then the flow again."""
    seconds, everything, pick = rng.uniform(8.0, 45.0), rng.random() < 0.5, rng.random()

    def run(trial: Trial) -> Outcome:
        folder = trial.begin()
        make_stale(folder, "gamma")
        words = (sys.executable, "-c", FLOW)
        ended = trial.record.note(_run_and_kill(trial, folder, seconds, everything, pick, words))
        if found := verdict.fault(ended):
            return trial.record.outcome(*found)
        again = trial.record.note(_run_and_kill(trial, folder, HANG_SECONDS, False, 2.0, words))
        if found := verdict.fault(again):
            return trial.record.outcome(*found)
        if again.code:
            return trial.record.outcome("manual", f"exit {again.code}: {verdict.message(again)}")
        return trial.again("run")

    who = "everything" if everything else "one process"
    return Case(kind, f"the flow from gamma to search, {who} killed {seconds:.0f} s after the start", run)


def _run_and_kill(
    trial: Trial,
    folder: Path,
    seconds: float,
    everything: bool,
    pick: float,
    words: tuple[str, ...] = ("./stage", "run"),
) -> Ended:
    """pick: which process, as a share of them in order of their ids; above 1 for none."""
    log = trial.desk.scratch / "logs" / f"{folder.name}-real"
    with open(log, "w+") as out:
        run = subprocess.Popen(
            words, cwd=folder, env=_surroundings(trial), stdout=out, stderr=out, start_new_session=True
        )
        until, hung = time.monotonic() + seconds, False
        while run.poll() is None and time.monotonic() < until:
            time.sleep(0.05)
        members = session(run.pid) if run.poll() is None else []
        for pid in members if everything else members[int(pick * len(members)) :][:1]:
            os.kill(pid, signal.SIGKILL)
        try:
            run.wait(HANG_SECONDS)
        except subprocess.TimeoutExpired:
            hung = True
        _wait_for_none(run.pid)
        out.seek(0)
        text = out.read()
    log.unlink()
    return Ended((words[-1][-40:], "(real processes)"), run.returncode or 0, text, "", hung)


def _surroundings(trial: Trial) -> dict[str, str]:
    own = {"PREFECT_HOME": str(trial.desk.scratch / "prefect"), "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
    return trial.desk.environ(PYTHONPATH=str(pipeline.ROOT), **own)


def _wait_for_none(leader: int) -> None:
    """Stages that lost their parent end by themselves; what does not is killed, by its pid."""
    until = time.monotonic() + 60
    while session(leader) and time.monotonic() < until:
        time.sleep(0.1)
    for pid in session(leader):
        os.kill(pid, signal.SIGKILL)


def session(leader: int) -> list[int]:
    """The living processes of a session, in order."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == leader and fields[0] not in "ZX":
                found.append(int(entry.name))
    return sorted(found)


def make_stale(folder: Path, first: str) -> None:
    """All from this stage on must be made again, and no cache can give it back."""
    names = list(pipeline.STAGES)
    lock = (folder / "dvc.lock").read_bytes()
    pipeline.unfinish(folder, *names[names.index(first) :])
    (folder / "dvc.lock").write_bytes(lock)
    remove(folder / ".dvc" / "cache" / "runs")
    remove(folder / ".resume")


def _other_experiment(folder: Path) -> None:
    text = (folder / "params.yaml").read_text()
    changed = re.sub(r"(experiment: )\S+", r"\1another", text, count=1)
    assert changed != text
    (folder / "params.yaml").write_text(changed)


def _told(events: list[str], at: int) -> str:
    return f"at event {at} of {len(events)}: {events[at - 1] if at <= len(events) else 'the end'}"
