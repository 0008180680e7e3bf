"""What grows with the number of stages, of points and of samples: seconds and memory at several sizes of each.

    python bench/growth.py stages|points|samples [FOLDER] [SIZE ...]

stages: `distill run`'s look at a graph in which nothing is stale, beside `dvc repro`'s (bar: 100 stages in 5 s)
points: publishing a frontier of so many points to a new SQLite file, and once more with nothing new (bars: 1000 points in
    60 s, nothing new in 5 s); FOLDER is a workspace whose pipeline has run, whose points are taken over and over
samples: the most memory that measuring one point of so many samples takes; FOLDER as above
"""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from diffcore.core import disk
from diffcore.metrics.frontier import Frontier

ROOT = Path(__file__).parent.parent
STAGES, POINTS, SAMPLES = (25, 100, 400), (100, 300, 1000), (1000, 4000, 16000)
CONFIG = "[core]\n    analytics = false\n    check_update = false\n    no_scm = true\n    site_cache_dir = .site\n"
LOOK = "from pathlib import Path; from tasks import pipeline, locks; pipeline.reproduce(Path(), locks.here(Path(), 1))"
PUBLISH = (
    "from pathlib import Path; from tasks.tracking import publishing as p; "
    "p.publish(Path('artifacts'), 'x', 'x', {'publish': {'tolerance': 1.5}})"
)
MEASURE = "from tasks import measure, params; measure.measure(params.read(), 'teacher')"


def main() -> None:
    what, folder, *sizes = [*sys.argv[1:], "."] if len(sys.argv) == 2 else sys.argv[1:]
    measured, usual = {"stages": (stages, STAGES), "points": (points, POINTS), "samples": (samples, SAMPLES)}[what]
    with tempfile.TemporaryDirectory() as scratch:
        measured(Path(folder).resolve(), Path(scratch), list(map(int, sizes)) or usual)
    print(f"load of the machine at the end: {os.getloadavg()[0]:.1f}")


def stages(_: Path, scratch: Path, sizes: Sequence[int]) -> None:
    print("| stages | `distill run`: CPU s | s | `dvc repro`: CPU s | s |\n|--:|--:|--:|--:|--:|")
    for count in sizes:
        folder = scratch / str(count)
        (folder / ".dvc").mkdir(parents=True)
        (folder / ".dvc/config").write_text(CONFIG)
        bodies = {f"s{k}": _stage(k) for k in range(count)}
        (folder / "dvc.yaml").write_text(json.dumps({"stages": bodies}))
        for k in range(count):
            (folder / f"o{k}").write_text(f"{k}\n")
        dvc = [sys.executable, "-m", "dvc", "repro", "--quiet"]
        spent([sys.executable, "-m", "dvc", "commit", "--force", "--quiet"], folder)
        ours, theirs = spent([sys.executable, "-c", LOOK], folder), spent(dvc, folder)
        print(f"| {count} | {ours[0]:.1f} | {ours[1]:.1f} | {theirs[0]:.1f} | {theirs[1]:.1f} |", flush=True)


def _stage(k: int) -> dict[str, object]:
    """A stage on up to three of those before it."""
    deps = [f"o{k - back}" for back in (1, 5, 20) if k >= back]
    return {"cmd": f"echo {k} > o{k}", "deps": deps, "outs": [f"o{k}"]}


def points(folder: Path, scratch: Path, sizes: Sequence[int]) -> None:
    print("| points | new: CPU s | s | nothing new: CPU s | s | MB |\n|--:|--:|--:|--:|--:|--:|")
    for count in sizes:
        copy = scratch / str(count)
        shutil.copytree(folder / "artifacts", copy / "artifacts")
        enlarge(copy / "artifacts", count)
        for part in ("diffcore", "tasks"):
            (copy / part).symlink_to(ROOT / part)
        environment = {"MLFLOW_TRACKING_URI": "sqlite:///mlflow.db", "DO_NOT_TRACK": "true"}
        first, again = (spent([sys.executable, "-c", PUBLISH], copy, environment) for _ in range(2))
        cells = f"{first[0]:.1f} | {first[1]:.1f} | {again[0]:.1f} | {again[1]:.1f} | {max(first[2], again[2]):.0f}"
        print(f"| {count} | {cells} |", flush=True)


def enlarge(artifacts: Path, count: int) -> None:
    """Gives a frontier `count` points: those that there are, under other names, again and again."""
    frontier = Frontier.read(artifacts / "frontier.json", "")
    taken, turn = list(frontier.points)[:count], 0
    while len(taken) < count:
        turn += 1
        for point in frontier.points[: count - len(taken)]:
            name = f"{point.name}-again{turn}"
            shutil.copy(artifacts / f"samples/{point.name}.png", artifacts / f"samples/{name}.png")
            taken.append(dataclasses.replace(point, name=name, curve=f"{point.curve} {turn}"))
    frontier = dataclasses.replace(frontier, points=tuple(taken), recommended=None)
    frontier = dataclasses.replace(frontier, recommended=frontier.recommend(1.5))
    disk.write_sealed(artifacts / "frontier.json", frontier.to_json())
    disk.write(artifacts / "frontier.csv", frontier.to_csv())


def samples(folder: Path, scratch: Path, sizes: Sequence[int]) -> None:
    print("| samples | CPU s | MB |\n|--:|--:|--:|")
    for count in sizes:
        copy = scratch / str(count)
        shutil.copytree(
            folder, copy, ignore=shutil.ignore_patterns(".resume", "mlruns", ".dvc", ".venv", ".git", "*.db")
        )
        (copy / "dvc.yaml").write_bytes((ROOT / "dvc.yaml").read_bytes())
        only = ["evaluate.teacher=[{sampler: ddim, trajectory: uniform, steps: [1]}]", f"evaluate.images={count}"]
        command = [sys.executable, "-m", "tasks", "workspace", str(scratch / f"parameters-{count}")]
        words = [word for change in (*only, "evaluate.likelihood.images=0") for word in ("--set", change)]
        subprocess.run([*command, *words], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        shutil.copy(scratch / f"parameters-{count}/params.yaml", copy / "params.yaml")
        cpu, _, megabytes = spent([sys.executable, "-c", MEASURE], copy)
        print(f"| {count} | {cpu:.1f} | {megabytes:.0f} |", flush=True)


def spent(command: list[str], folder: Path, environment: dict[str, str] | None = None) -> tuple[float, float, float]:
    """CPU seconds, seconds and the most megabytes of a command."""
    surroundings = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_WAIT_POLICY": "PASSIVE", **(environment or {})}
    begun = time.perf_counter()
    pid = os.posix_spawn("/usr/bin/env", ["env", "-C", str(folder), *command], surroundings, file_actions=QUIET)
    _, status, used = os.wait4(pid, 0)
    if code := os.waitstatus_to_exitcode(status):
        raise SystemExit(f"{command} ended with {code}")
    return used.ru_utime + used.ru_stime, time.perf_counter() - begun, used.ru_maxrss / 1024


QUIET = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]

if __name__ == "__main__":
    main()
