"""One flow run over two workers, of which one is killed: does it use both, is nothing done twice, are the results the same?

    python bench/two_workers.py FOLDER [--preset smoke | --preset ''] [--no-kill] [--peer ARTIFACTS] [--picture gantt.png]

Makes in FOLDER, on this host, two clones of this tree's commit, a folder as DVC remote, one for saved states, a Prefect
server, a worker for each clone and one for the parent run. Kills (-9) the worker and the process of the first stage that
has saved a state. Afterwards runs the same parameters in one plain `distill run`, or takes the one that --peer names, and
compares. Exit code 1 for a no.
"""

import argparse
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[1]
FINAL = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
LIMIT_SECONDS = 3600


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="a new one")
    parser.add_argument("--preset", default="smoke", help="of presets/; '' for the default graph")
    parser.add_argument("--no-kill", action="store_true")
    parser.add_argument("--peer", type=Path, help="artifacts/ of a plain run of this commit; one is made unless told")
    parser.add_argument("--picture", type=Path, default=Path("gantt.png"))
    options = parser.parse_args(arguments)
    bench = Bench(options.folder.resolve(), options.preset or None)
    bench.prepare()
    with bench.services():
        run = bench.start()
        killed = None if options.no_kill else bench.kill_one(run)
        state = bench.wait(run)
        rows = bench.rows(run)
        faults = [] if state["type"] == "COMPLETED" else [f"the run ended as {state['name']}: {state['message']}"]
    faults += verdict(rows, killed)
    draw(rows, options.picture)
    print(table(rows), f"\n{state['message']}; drawn in {options.picture}")
    faults += bench.compare(options.peer or bench.plain())
    print("\n".join(f"NO: {fault}" for fault in faults) or "yes: both workers, nothing twice, the same results")
    return 1 if faults else 0


class Bench:
    """The folder with all that takes part, and the server's API."""

    def __init__(self, folder: Path, preset: str | None):
        self.folder, self.preset = folder, preset
        self.clones = {name: folder / name for name in ("a", "b")}
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.api = f"http://127.0.0.1:{probe.getsockname()[1]}/api"
        self.workers: dict[str, subprocess.Popen] = {}

    def prepare(self) -> None:
        self.folder.mkdir(parents=True)
        for name in ("remote", "states", "logs"):
            (self.folder / name).mkdir()
        for clone in self.clones.values():
            subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
            (clone / ".venv").symlink_to(sys.prefix)
            self.run(clone, "dvc", "remote", "add", "--quiet", "--default", "store", str(self.folder / "remote"))

    def run(self, clone: Path, module: str, *words: str) -> None:
        subprocess.run([sys.executable, "-m", module, *words], cwd=clone, env=self.environment(clone), check=True)

    def environment(self, clone: Path, **more: str) -> dict[str, str]:
        return {
            **os.environ,
            "PREFECT_API_URL": self.api,
            "PREFECT_HOME": str(self.folder / "prefect"),
            "PREFECT_PROFILES_PATH": str(self.folder / "prefect/profiles.toml"),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PYTHONPATH": str(clone),
            "DISTILL_RESUME": str(self.folder / "states"),
            "DO_NOT_TRACK": "true",
            **more,
        }

    @contextlib.contextmanager
    def services(self) -> Iterator[None]:
        clone = self.clones["a"]
        port = self.api.rpartition(":")[2].removesuffix("/api")
        started = [self.spawn("server", clone, "server", "start", "--host", "127.0.0.1", "--port", port)]
        try:
            self.until(lambda: self.ask("health") is True, "the server's answer")
            for pool in ("gpu", "parents"):
                self.run(clone, "prefect", "work-pool", "create", pool, "--type", "process")
            self.run(clone, "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", "prefect.spread.yaml")
            for name, place in self.clones.items():
                self.workers[name] = self.worker(name, place, "gpu", "--limit", "1")
            started += [*self.workers.values(), self.worker("parent", clone, "parents")]
            yield
        finally:
            for process in reversed(started):
                end(process)

    def worker(self, name: str, clone: Path, pool: str, *words: str) -> subprocess.Popen:
        return self.spawn(
            name, clone, "worker", "start", "--pool", pool, "--name", name, *words, DISTILL_ROOT=str(clone)
        )

    def spawn(self, log: str, clone: Path, *words: str, **more: str) -> subprocess.Popen:
        with open(self.folder / "logs" / log, "wb") as file:
            return subprocess.Popen(
                [sys.executable, "-m", "prefect", *words],
                cwd=clone,
                env=self.environment(clone, **more),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )

    def ask(self, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.api}/{path}", data, {"Content-Type": "application/json"})
        with contextlib.suppress(OSError), urllib.request.urlopen(request, timeout=30) as answer:
            return json.loads(answer.read())
        return None

    def until(self, reached, what: str) -> Any:
        limit = time.monotonic() + LIMIT_SECONDS
        while not (answer := reached()):
            if time.monotonic() > limit:
                raise SystemExit(f"waited {LIMIT_SECONDS} s for {what}")
            time.sleep(0.5)
        return answer

    def start(self) -> str:
        deployment = self.ask("deployments/name/distill/spread")["id"]
        parameters = {"preset": self.preset} if self.preset else {}
        return self.ask(f"deployments/{deployment}/create_flow_run", {"parameters": parameters, "name": "spread"})["id"]

    def stages(self, run: str) -> list[dict[str, Any]]:
        wanted = {"flow_runs": {"parent_flow_run_id": {"any_": [run]}}, "sort": "START_TIME_ASC"}
        return self.ask("flow_runs/filter", wanted) or []

    def wait(self, run: str) -> dict[str, Any]:
        def final():
            state = (self.ask(f"flow_runs/{run}") or {}).get("state") or {}
            return state if state.get("type") in FINAL else None

        return self.until(final, "the end of the run")

    def kill_one(self, run: str) -> str:
        """Kills the engine and the worker of the first stage with a saved state; the worker's name."""
        place = self.folder / "states" / (self.preset or "")
        self.until(lambda: list(place.glob("*/step-*")), "a saved state")
        for name, worker in self.workers.items():
            engines = psutil.Process(worker.pid).children(recursive=True)
            training = [one for one in engines if {"tasks", "train"} <= set(cmdline(one))]
            if training:
                stopped = [one for one in engines if "prefect" in " ".join(cmdline(one))]
                for process in (psutil.Process(worker.pid), *stopped):
                    with contextlib.suppress(psutil.NoSuchProcess):
                        process.send_signal(signal.SIGKILL)
                print(f"killed the worker {name} and its {len(stopped)} processes while it trained")
                return name
        raise SystemExit("no worker was training: the state was saved by one that has ended; take a larger preset")

    def rows(self, run: str) -> list[dict[str, Any]]:
        """One for each run of a stage that began and ended: name, state, worker, start and end."""
        rows = []
        for stage in (one for one in self.stages(run) if one["start_time"] and one["end_time"]):
            wanted = {"artifacts": {"flow_run_id": {"any_": [stage["id"]]}, "type": {"any_": ["dvc.lock"]}}}
            artifacts = self.ask("artifacts/filter", wanted)
            log = self.ask("logs/filter", {"logs": {"flow_run_id": {"any_": [stage["id"]]}}, "limit": 200}) or []
            lines = [line["message"] for line in log]
            rows.append(
                {
                    "stage": stage["name"],
                    "state": stage["state"]["name"],
                    "worker": next((name for name, clone in self.clones.items() if _of(clone, lines, artifacts)), "?"),
                    "start": datetime.fromisoformat(stage["start_time"]),
                    "end": datetime.fromisoformat(stage["end_time"]),
                    "ran": sum(line.startswith("Running stage ") for line in lines),
                    "resumed": [line for line in lines if ": goes on after " in line],
                }
            )
        return rows

    def plain(self) -> Path:
        """The artifacts of a plain run of the same parameters."""
        plain, words = self.folder / "plain", ["--preset", self.preset] if self.preset else []
        self.run(ROOT, "tasks", "workspace", str(plain), *words)
        (self.folder / "states-plain").mkdir()
        environment = self.environment(plain, DISTILL_RESUME=str(self.folder / "states-plain"))
        subprocess.run([sys.executable, "-m", "tasks", "run"], cwd=plain, env=environment, check=True)
        return plain / "artifacts"

    def compare(self, peer: Path) -> list[str]:
        """What is other than in the artifacts of a plain run."""
        spread = self.clones["a"] / (f".workspaces/{self.preset}" if self.preset else "")
        self.run(spread, "dvc", "pull", "--quiet")
        command = [sys.executable, str(ROOT / "bench/compare_runs.py"), str(peer), f"{spread}/artifacts"]
        ended = subprocess.run(command, capture_output=True, text=True)
        print(ended.stdout + ended.stderr, end="")
        return [] if ended.returncode == 0 else ["the results are other than those of a plain run"]


def _of(clone: Path, lines: list[str], artifacts: list[dict[str, Any]]) -> bool:
    """Whether a stage ran in a clone: its artifact says so, or the log of one that was killed."""
    folders = [json.loads(one["data"])["folder"] for one in artifacts] or [line for line in lines if str(clone) in line]
    return any(str(clone) in folder for folder in folders)


def cmdline(process: psutil.Process) -> list[str]:
    with contextlib.suppress(psutil.Error):
        return process.cmdline()
    return []


def end(process: subprocess.Popen) -> None:
    """Ends a process that we started and all below it."""
    with contextlib.suppress(psutil.NoSuchProcess):
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        for one in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.terminate()
        for one in psutil.wait_procs(family, timeout=30)[1]:
            one.kill()
    process.wait()


def verdict(rows: list[dict[str, Any]], killed: str | None) -> list[str]:
    done = [row for row in rows if row["state"] == "Completed"]
    twice = {row["stage"] for row in done if sum(other["stage"] == row["stage"] for other in done) > 1}
    faults = [f"{stage} was done twice" for stage in sorted(twice)]
    if len({row["worker"] for row in rows}) < 2:
        faults.append("one worker did all")
    if killed is not None:
        lost = [row["stage"] for row in rows if row["state"] == "Crashed"]
        again = [row for row in done if row["stage"] in lost]
        if not again or any(row["worker"] == killed for row in again):
            faults.append("no other worker finished the stage of the one that was killed")
        if not any(row["resumed"] for row in again):
            faults.append("the stage of the killed worker began from the start")
    return faults


def table(rows: list[dict[str, Any]]) -> str:
    begin = min(row["start"] for row in rows)
    lines = [f"{'stage':<28}{'worker':<8}{'state':<11}{'start':>7}{'end':>7}  s"]
    for row in rows:
        times = ((row[key] - begin).total_seconds() for key in ("start", "end"))
        lines.append(f"{row['stage']:<28}{row['worker']:<8}{row['state']:<11}" + "".join(f"{x:7.0f}" for x in times))
        lines += [f"    {line}" for line in row["resumed"]]
    return "\n".join(lines)


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """A Gantt chart by the runs' own timestamps, a colour for each worker."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    begin = min(row["start"] for row in rows)
    workers = sorted({row["worker"] for row in rows})
    figure, axes = pyplot.subplots(figsize=(9, 0.3 * len(rows) + 1.2), layout="constrained")
    for place, row in enumerate(rows):
        start, last = ((row[key] - begin).total_seconds() for key in ("start", "end"))
        lost = row["state"] != "Completed"
        colour = f"C{workers.index(row['worker'])}"
        axes.barh(
            place, last - start, left=start, color=colour, alpha=0.35 if lost else 1, hatch="//" if lost else None
        )
    axes.set_yticks(range(len(rows)), [row["stage"] for row in rows])
    axes.invert_yaxis()
    axes.set_xlabel("seconds")
    marks = [pyplot.Rectangle((0, 0), 1, 1, color=f"C{index}") for index in range(len(workers))]
    names = [f"worker {name}" for name in workers]
    if any(row["state"] != "Completed" for row in rows):
        marks.append(pyplot.Rectangle((0, 0), 1, 1, facecolor="grey", alpha=0.35, hatch="//"))
        names.append("lost")
    axes.legend(marks, names, loc="upper right")
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
