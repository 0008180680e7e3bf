"""Where the time of `distill run` goes, stage by stage, with the floor beside each: CPU seconds, which other work on the
machine disturbs little, and wall seconds.

    python bench/pipeline.py [--preset smoke] [--slots N] [--folder FOLDER]

makes a fresh workspace (in a temporary folder, removed afterwards, unless FOLDER is named) and runs the pipeline there. Of
each stage: when it began and ended, the CPU seconds of its process, and of those
  start     what `import` of its module costs in a process of its own
  network   its network calls (of a training a backward pass counts as two) times what a bare one costs here, one thread
  rest      what is left: optimizer, metrics, reading, writing
DVC, the supervisors and `distill run` itself are what the whole run cost beyond its stages.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import torch

from diffcore import checkpoints
from diffcore.metrics import measured

ROOT = Path(__file__).parent.parent
ROUNDS = 3
MODULES = {"train": "tasks.train"}
WRAPPER = """#!{python} -IS
import json, os, sys, time
begun, pid = time.time(), os.fork()
if pid == 0:
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
_, status, used = os.wait4(pid, 0)
line = {{"words": sys.argv[3:], "from": begun, "to": time.time(), "cpu": used.ru_utime + used.ru_stime}}
with open({log!r}, "a") as file:
    file.write(json.dumps(line | {{"megabytes": used.ru_maxrss / 1024}}) + "\\n")
sys.exit(os.waitstatus_to_exitcode(status))
"""


def main() -> None:
    options = parser(__doc__).parse_args()
    with workspace(options) as (folder, log):
        total = run(folder, log, options.slots)
        print(table(folder, [json.loads(line) for line in log.read_text().splitlines()], total))


def parser(about: str) -> argparse.ArgumentParser:
    """Of the words that say which pipeline runs."""
    words = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--preset", help="a file of presets/ without .yaml")
    words.add_argument("--slots", help="stages at a time")
    words.add_argument("--folder", type=Path, help="a new folder, which is kept")
    return words


@contextmanager
def workspace(options: argparse.Namespace) -> Iterator[tuple[Path, Path]]:
    """A new workspace of this code, and a file for what its stages took, which is gone afterwards."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = (options.folder or Path(scratch) / "workspace").resolve()
        words = [sys.executable, "-m", "tasks", "workspace", str(folder)]
        subprocess.run([*words, *(["--preset", options.preset] if options.preset else [])], cwd=ROOT, check=True)
        yield folder, Path(scratch) / "stages.jsonl"


def run(folder: Path, log: Path, slots: str | None) -> dict[str, float]:
    """Runs the pipeline of a workspace; what it printed is FOLDER/run.log. Seconds of the whole, and of others."""
    python = log.with_name("python")
    python.write_text(WRAPPER.format(python=sys.executable, log=str(log)))
    python.chmod(0o755)
    environment = {**os.environ, "DISTILL_PYTHON": str(python), "OMP_WAIT_POLICY": "PASSIVE", "DO_NOT_TRACK": "true"}
    for name in ("MLFLOW_TRACKING_URI", "PYTHONPATH"):
        environment.pop(name, None)
    used, busy, began = cpu_of_children(), busy_seconds(), time.time()
    with open(folder / "run.log", "w") as output:
        words = [sys.executable, "-m", "tasks", "run", *(["--slots", slots] if slots else [])]
        subprocess.run(words, cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT, check=True)
    wall, cpu = time.time() - began, cpu_of_children() - used
    return {"began": began, "wall": wall, "cpu": cpu, "others": max(busy_seconds() - busy - cpu, 0.0) / wall}


def cpu_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def busy_seconds() -> float:
    """Of all processors together, since the machine started."""
    times = psutil.cpu_times()
    return times.user + times.nice + times.system


def table(folder: Path, stages: list[dict], total: dict[str, float]) -> str:
    call, imports = seconds_of_a_call(folder), {}
    lines = ["| stage | from | to | CPU s | start | network | rest | MB |", "|---|--:|--:|--:|--:|--:|--:|--:|"]
    sums = [0.0] * 4
    for stage in sorted(stages, key=lambda each: each["from"]):
        verb = stage["words"][0]
        if verb not in imports:
            imports[verb] = seconds_of_import(MODULES.get(verb, f"tasks.{verb}"))
        network = sum(calls(folder, *stage["words"])) * call
        parts = [stage["cpu"], imports[verb], network, stage["cpu"] - imports[verb] - network]
        sums = [a + b for a, b in zip(sums, parts)]
        times = [stage[end] - total["began"] for end in ("from", "to")]
        cells = [f"{x:.0f}" for x in times] + [f"{x:.1f}" for x in parts] + [f"{stage['megabytes']:.0f}"]
        lines.append(f"| {' '.join(stage['words'])} | {' | '.join(cells)} |")
    lines.append(f"| all stages | | | {' | '.join(f'{x:.1f}' for x in sums)} | |")
    lines.append(f"| DVC, supervisors, `run` itself | | | {total['cpu'] - sums[0]:.1f} | | | | |")
    lines.append(f"| the whole | 0 | {total['wall']:.0f} | {total['cpu']:.1f} | | | | |")
    cores, others = os.cpu_count(), f"{total['others']:.2f}"
    lines.append(f"\nA bare network call: {1e6 * call:.0f} us for an image, one thread, batch 250.")
    lines.append(
        f"A Python that does nothing: {empty():.2f} CPU s; one that imports torch: {seconds_of('import torch'):.2f}."
    )
    lines.append(
        f"Others used {others} of {cores} processors meanwhile; alone it could be {total['cpu'] / cores:.0f} s."
    )
    return "\n".join(lines)


def calls(folder: Path, verb: str, name: str = "") -> Iterator[float]:
    """Images that a network was called for: of trainings with their looks, of samples, of likelihoods and of fitted times."""
    artifacts = folder / "artifacts"
    if verb == "train":
        cost = json.loads((artifacts / "cost" / f"{name}.json").read_text())
        yield cost["network_calls"] + cost.get("watch_calls", 0)
    if verb == "measure":
        _, points, _ = measured.read(artifacts / "points" / name, "")
        yield from (point.nfe * point.n for point in points)


@torch.inference_mode()
def seconds_of_a_call(folder: Path) -> float:
    """CPU seconds of one image of the teacher's network in a batch of 250."""
    torch.set_num_threads(1)
    checkpoint = checkpoints.load(folder / "artifacts/checkpoints/teacher")
    net = checkpoint.denoiser.net
    x, timestep = torch.randn(250, *checkpoint.shape), torch.full((250,), 500.0)
    net(x, timestep)
    begun = time.process_time()
    for _ in range(ROUNDS * 10):
        net(x, timestep)
    return (time.process_time() - begun) / (ROUNDS * 10 * 250)


def seconds_of_import(module: str) -> float:
    return seconds_of(f"import {module}")


def empty() -> float:
    return seconds_of("pass")


def seconds_of(code: str) -> float:
    """The least CPU seconds of some tries, for other work only adds to it."""
    tries = []
    for _ in range(ROUNDS):
        before = cpu_of_children()
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
        tries.append(cpu_of_children() - before)
    return min(tries)


if __name__ == "__main__":
    main()
