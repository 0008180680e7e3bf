"""Every method from the same teacher, several seeds: Frechet distance at 1, 2, 4 and 8 steps, beside the teacher's samplers.

    python bench/methods.py [--seeds 0 1 2] [--only NAME ...] [--threads 2] [--out FILE]

Run where a pipeline has run (`make run`): it takes that run's data, teacher and feature network. cost: network calls of the
training, as a share of the teacher's, chains included.
"""

import argparse
import json
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffcore import checkpoints, methods
from diffcore.data import feed, read
from diffcore.denoisers.network import ANY, NetDenoiser
from diffcore.lineage import Lineage, Root
from diffcore.metrics import features
from diffcore.metrics.halvings import floor
from diffcore.metrics.measures import METRICS
from diffcore.metrics.metric import Subject
from diffcore.metrics.reference import Reference
from diffcore.nets.conditioned import with_end
from diffcore.noise.trajectory import uniform
from diffcore.sampling.sampler import Sampler
from diffcore.sampling.solvers import SOLVERS
from diffcore.training.config import Compute, Training
from diffcore.training.loop import Job, fit
from tasks.sections import Distill

BATCH, IMAGES, STEPS = 128, 1000, (1, 2, 4, 8)


@dataclass(frozen=True)
class Line:
    """method and config as in params.yaml. start: another line, or the teacher; it teaches too where it knows velocities."""

    method: str
    config: dict[str, Any] = field(default_factory=dict)
    iterations: int = 500
    lr: float = 1.5e-3
    ema: float = 0.97
    start: str = "teacher"
    warmup: int = 0
    shown: str | None = None


LINES = {
    "pd16": Line("progressive", {"steps": 16}, 60, warmup=10),
    "pd8": Line("progressive", {"steps": 8}, 60, start="pd16", warmup=10, shown="progressive"),
    "pd4": Line("progressive", {"steps": 4}, 120, start="pd8", warmup=10, shown="progressive"),
    "pd2": Line("progressive", {"steps": 2}, 120, start="pd4", warmup=10, shown="progressive"),
    "pd1": Line("progressive", {"steps": 1}, 120, start="pd2", warmup=10, shown="progressive"),
    "cd": Line("consistency", {"steps": 16, "target_ema": 0.5, "distance": "squared"}, 250, shown="consistency"),
    "cd_long": Line(
        "consistency", {"steps": 16, "target_ema": 0.5, "distance": "squared"}, 600, shown="consistency, longer"
    ),
    "cd_heun": Line(
        "consistency",
        {"steps": 16, "target_ema": 0.5, "hop": "heun", "distance": "squared"},
        500,
        shown="consistency, Heun hops",
    ),
    "ect": Line("consistency_training", {"schedule": "ect"}, 750, shown="consistency_training, ect"),
    "scm": Line("continuous", {}, 400, 1e-4, shown="continuous"),
    "pcm1": Line("phased", {"steps": 16, "phases": 1, "distance": "squared"}, 600, shown="phased"),
    "pcm2": Line("phased", {"steps": 16, "phases": 2, "distance": "squared"}, 600, shown="phased"),
    "pcm4": Line("phased", {"steps": 16, "phases": 4, "distance": "squared"}, 600, shown="phased"),
    "pcm8": Line("phased", {"steps": 16, "phases": 8, "distance": "squared"}, 600, shown="phased"),
    "fm": Line("flow_map", {}, 500, warmup=10, shown="flow_map"),
    "dm1": Line(
        "distribution_matching", {"steps": 1}, 65, 5e-4, start="cd", shown="consistency, then distribution_matching"
    ),
    "dm1_long": Line("distribution_matching", {"steps": 1}, 120, 5e-4, start="cd", shown="the same, twice as long"),
    "dm1_gan": Line(
        "distribution_matching", {"steps": 1, "adversarial": 0.03}, 55, 5e-4, start="cd", shown="the same, adversarial"
    ),
    "cdh": Line("consistency", {"steps": 16, "target_ema": 0.5, "hop": "heun", "distance": "squared"}, 200),
    "dm1_h": Line(
        "distribution_matching", {"steps": 1}, 70, 5e-4, start="cdh", shown="consistency, Heun hops, then the same"
    ),
    "dm2_h": Line(
        "distribution_matching", {"steps": 2}, 60, 1e-3, start="cdh", shown="consistency, Heun hops, then the same"
    ),
    "dm2": Line(
        "distribution_matching", {"steps": 2}, 55, 5e-4, start="cd", shown="consistency, then distribution_matching"
    ),
    "dm4": Line(
        "distribution_matching", {"steps": 4}, 40, 5e-4, start="cd", shown="consistency, then distribution_matching"
    ),
}


class Bench:
    """The run whose teacher and data serve, and what was trained from it."""

    def __init__(self, folder: Path, threads: int):
        self.data = folder / "data"
        self.real, self.network = read.load_resident(self.data), features.load(folder / "features")
        self.reference = Reference.of(self.real, self.network)
        self.teacher = checkpoints.load(folder / "checkpoints/teacher")
        self.compute = Compute(threads, "auto", False, 1e9, 4.0)

    def fd(self, denoiser: NetDenoiser, solver: str, steps: int) -> float:
        samples = Sampler(denoiser, SOLVERS[solver](), uniform(steps)).draw(self.teacher.shape, IMAGES, 0)
        return METRICS["fd"].measure(Subject(samples, self.reference, self.network, 0)).value

    def train(
        self, line: Distill, start: NetDenoiser, teacher: NetDenoiser, seed: int
    ) -> tuple[NetDenoiser, float, float]:
        """(student, network calls, seconds)."""
        batches = feed.feed(self.data, BATCH, seed, False, 2**30, self.compute.device)
        student = two_times(start) if line.method.two_times else start.with_network(start.net)
        student.grid = None
        fitted = fit(Job(line.method, line.fit, batches, seed), student, teacher, self.compute)
        student = student.with_network(fitted.net.eval())
        student.grid = line.method.grid
        return student, fitted.calls, fitted.seconds


def two_times(start: NetDenoiser) -> NetDenoiser:
    """The same, told where its hops land."""
    net = start.net if start.end else with_end(start.net)
    return NetDenoiser(net, start.schedule, start.reading, classes=start.classes, end=ANY)


def distill(name: str, teacher: str) -> Distill:
    """A line as params.yaml would have it."""
    line = LINES[name]
    setting = Training(line.iterations, BATCH, line.lr, line.ema, line.warmup)
    method = methods.load(line.method)(**line.config)
    return Distill(init=line.start, teacher=teacher, method=method, name=name, fit=setting)


def lineage() -> Lineage:
    """All lines, each with the teacher that is usual for its method."""
    lines = Lineage({"teacher": Root(False)}, {name: distill(name, LINES[name].start) for name in LINES})
    return Lineage(lines.roots, {name: distill(name, lines.usual_teacher(name)) for name in LINES})


def run(bench: Bench, seed: int, names: list[str], on_line) -> None:
    """Trains the lines of one seed; tells (name, {steps: fd}, cost, seconds)."""
    root = bench.teacher.denoiser
    made, spent, students = {"teacher": root}, {"teacher": 0.0}, lineage().students
    whole = bench.teacher.card.cost["network_calls"]
    for name in names:
        line = students[name]
        made[name], calls, seconds = bench.train(line, made[line.init], made[line.teacher], seed)
        spent[name] = spent[line.init] + calls
        own = made[name].grid
        steps = STEPS if own is None else (own.steps,)
        found = {k: bench.fd(made[name], line.method.sampler, k) for k in steps if LINES[name].shown}
        on_line(name, found, spent[name] / whole, seconds)


def with_starts(only: list[str]) -> list[str]:
    """The lines asked for and those they start from, in the table's order."""
    wanted = set(only or LINES)
    for name in reversed(LINES):
        if name in wanted and LINES[name].start != "teacher":
            wanted.add(LINES[name].start)
    return [name for name in LINES if name in wanted]


def table(results: list[dict[str, Any]], bench: Bench) -> str:
    """Markdown: mean and spread over seeds for each way and number of steps."""
    least = floor(bench.reference, IMAGES, 0)
    rows = [f"fd of {IMAGES} samples, feature network {bench.network.digest[:12]}, floor {least.fd:.2f}", ""]
    rows += ["| method | 1 | 2 | 4 | 8 | cost |", "|---|---|---|---|---|---|"]
    for solver in ("ddim", "dpmpp_2m", "unipc"):
        told = [f"{bench.fd(bench.teacher.denoiser, solver, k):.2f}" for k in STEPS]
        rows.append(f"| teacher, {solver} | {' | '.join(told)} | 1 |")
    rows.append(f"| teacher, ddim, 64 steps: {bench.fd(bench.teacher.denoiser, 'ddim', 64):.2f} | | | | | 1 |")
    for shown in dict.fromkeys(line.shown for line in LINES.values() if line.shown):
        own = [result for result in results if LINES[result["name"]].shown == shown]
        if not own:
            continue
        cells = []
        for k in STEPS:
            fds = [result["fd"][str(k)] for result in own if str(k) in result["fd"]]
            spread = f" ± {statistics.stdev(fds):.2f}" if len(fds) > 1 else ""
            cells.append(f"{statistics.mean(fds):.2f}{spread}" if fds else "")
        costs = [result["cost"] for result in own]
        cost = f"{min(costs):.2f}" if max(costs) - min(costs) < 0.01 else f"{min(costs):.2f} to {max(costs):.2f}"
        rows.append(f"| {shown} | {' | '.join(cells)} | {cost} |")
    return "\n".join(rows)


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--run", type=Path, default=Path("artifacts"))
    asked.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    asked.add_argument("--only", nargs="*", default=[])
    asked.add_argument("--threads", type=int, default=2)
    asked.add_argument("--out", type=Path, default=Path("artifacts/methods.jsonl"), help="a line for each training")
    asked.add_argument("--table", action="store_true", help="only print what is in --out")
    given = asked.parse_args()
    bench = Bench(given.run, given.threads)

    def tell(seed: int, name: str, found: dict[int, float], cost: float, seconds: float) -> None:
        told = {"seed": seed, "name": name, "fd": {str(k): value for k, value in found.items()}, "cost": cost}
        with open(given.out, "a") as file:
            file.write(json.dumps(told) + "\n")
        shown = "  ".join(f"{k}: {value:.3f}" for k, value in found.items())
        print(
            f"{time.strftime('%H:%M:%S')} seed {seed} {name:<8} {shown}  cost {cost:.2f}  {seconds:.0f} s", flush=True
        )

    for seed in [] if given.table else given.seeds:
        run(bench, seed, with_starts(given.only), lambda *told, seed=seed: tell(seed, *told))
    results = [json.loads(line) for line in given.out.read_text().splitlines()]
    print(table(list({(result["seed"], result["name"]): result for result in results}.values()), bench))


if __name__ == "__main__":
    main()
