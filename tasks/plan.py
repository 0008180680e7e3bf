"""`distill plan`: which stages would run, what each would cost, and whether it fits; `distill cost`: what it did cost.

Network calls are counted from params.yaml. Seconds, memory and the size of checkpoints come from a calibration in a process
of its own (tasks.calibration). What asks no network (reading, searching, charts, publishing) is taken from the default run
(bench/RESULTS.md), as much longer as Python's start takes longer here.
"""

import json
import math
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from diffcore.core import disk, parent
from diffcore.core.errors import MISTAKE, UserError
from diffcore.nets.memory import readable
from diffcore.noise.schedule import Cosine
from diffcore.noise.trajectory import uniform
from diffcore.sampling.recipe import Recipe
from diffcore.sampling.sampler import rehearse
from diffcore.sampling.solvers import SOLVERS
from diffcore.sampling.solvers.analytic import Analytic
from diffcore.watching.samples import BATCH
from tasks import locks, paths, pipeline, places, stages
from tasks.params import Params
from tasks.planned_data import PlannedData, planned_data
from tasks.progress import log
from tasks.rules import drawing, samplings_of
from tasks.sections import OWN, Adopted

KEPT = paths.RESUME / "plan.json"

TRYING = "trying "
"""How lines begin that say what the calibration does."""

START = 2.1
"""CPU seconds of importing a stage's code on the host of the default run; the other numbers here are that host's too."""

SEARCH, FRONTIER, PUBLISH, SHARD = 1.0, 2.9, 12.2, 2.9
POINTS, IMAGES = 65, 1797
"""Points and images of the default run."""

DVC = 1.7
"""CPU seconds of DVC and the supervisor for each stage."""

MEGABYTES = {"draw": 40, "shard": 270, "encode": 250, "search": 262, "frontier": 331, "publish": 469}
"""Of the processes of stages that are not calibrated."""

DIGITS = 147
"""More of them where the digits are read, which come with a library."""

ADAPTIVE = 52
"""Network calls of a solver whose number the data decide: rk45's in the default run."""

CACHED = 0.4
"""What a call costs whose deeper levels come from a cache (deepcache), in calls: the default network's."""

TABLES = 2_200_000
"""Bytes of tables and pictures of the default run, in artifacts and once more in DVC's cache."""

MODEL = 770_000
"""Bytes of code beside a model's weights in MLflow, and of the pictures of a run."""

BACKWARD = 3
"""Calls that a likelihood's call with its derivative counts."""


@dataclass(frozen=True)
class Cost:
    """What one stage is expected to take. bytes: of memory, of one of its processes. width: slots. begin: seconds before its
    work begins."""

    name: str
    seconds: float
    calls: float
    bytes: int
    disk: int
    width: int = 1
    begin: float = 0.0


@dataclass(frozen=True)
class Plan:
    """All stages that would run, and those that are cached. wall: seconds with so many slots."""

    costs: tuple[Cost, ...]
    cached: tuple[str, ...]
    slots: int
    wall: float
    warnings: tuple[str, ...] = ()

    @property
    def seconds(self) -> float:
        """Of all stages, each of their processes."""
        return sum(each.seconds * each.width for each in self.costs)

    @property
    def disk(self) -> int:
        return sum(each.disk for each in self.costs)

    def to_json(self) -> dict[str, Any]:
        whole = {"wall": self.wall, "seconds": self.seconds, "disk": self.disk, "slots": self.slots}
        stages = [asdict(each) for each in self.costs]
        return {**whole, "stages": stages, "cached": list(self.cached), "warnings": list(self.warnings)}


def show(params: Params, as_json: bool = False) -> None:
    """Prints the plan, and keeps it for `distill cost`."""
    plan = plan_of(params)
    if plan.costs:
        disk.write_sealed(KEPT, plan.to_json())
    log(json.dumps(plan.to_json(), indent=1) if as_json else "\n".join(_lines(plan)))


def plan_of(params: Params) -> Plan:
    graph, changed = stages.stale(Path())
    todo = {name: stage for name, stage in graph.items() if name in changed}
    slots = places.of(Path(), params, None)
    cached = tuple(name for name in graph if name not in todo)
    if not todo:
        return Plan((), cached, len(slots.all), 0.0)
    names = [name for name in params.lines if any(stage.partition("@")[2] == name for stage in todo)]
    data = planned_data(params)
    calibration = calibrated(len(slots.all), names or [next(iter(params.lines))])
    costs = {name: _cost(name, params, data, calibration, slots) for name in todo}
    costs |= _looked_by(costs, params, calibration, todo)
    costs |= {name: _judged(costs[name], params, calibration, todo) for name in todo if _measures(name)}
    wall = _wall(todo, costs, len(slots.all))
    return Plan(tuple(costs.values()), cached, len(slots.all), wall, tuple(_warnings(costs, len(slots.all))))


def calibrated(slots: int, names: list[str], file: Path = paths.PARAMS) -> dict[str, Any]:
    """What tasks.calibration finds out of these lines of `file`, with as many stages at a time as there are slots; what it
    tries meanwhile goes to standard error."""
    command, last = [sys.executable, "-m", "tasks.calibration", f"{file}", f"{slots}", *names], "it said nothing"
    with tempfile.TemporaryFile("w+") as output:
        pipes = {"stdout": output, "stderr": subprocess.PIPE, "text": True}
        with subprocess.Popen(command, **pipes, preexec_fn=parent.die_with_parent) as process:
            for line in map(str.strip, process.stderr):
                if line.startswith(TRYING):
                    print(line, file=sys.stderr, flush=True)
                elif line:
                    last = line
        output.seek(0)
        return _outcome(process.returncode, output.read(), last)


def _outcome(code: int, output: str, last: str) -> dict[str, Any]:
    """last: the last line of its errors."""
    if code == MISTAKE:
        raise UserError(last.removeprefix("error: "))
    if code < 0:
        raise UserError(
            f"the calibration was ended by {signal.Signals(-code).name}, as where memory is short; set accumulate or a "
            "smaller batch, or end what else takes memory"
        )
    if code:
        raise UserError(f"the calibration failed: {last}")
    return disk.parse_json(output.splitlines()[-1])


def _cost(name: str, params: Params, data: PlannedData, calibration: Mapping[str, Any], slots: locks.Slots) -> Cost:
    kind, _, line = name.partition("@")
    speed, judging = calibration["start"] / START, calibration["judging"]
    begin = calibration["start"] + DVC * speed
    points = sum(len(list(samplings)) for samplings in map(lambda each: _points(params, each), params.lines))
    share = points / POINTS
    megabytes = MEGABYTES.get(kind, 0) + DIGITS * (kind == "shard" and params.data.source == "digits")
    memory = megabytes * 10**6 + min(data.bytes, params.compute.memory_bytes)
    if kind == "draw":
        return _drawing(name, params, data, calibration, begin, speed)
    if kind in ("teachers", "distill"):
        return _training(name, line, params, calibration["lines"][line], begin, slots)
    if _measures(name):
        own = calibration["lines"][line]
        calls = sum(_points(params, line)) * params.evaluate.images * params.trainings(line) + _beside(params, line)
        seconds = begin + judging["look"] + calls * own["call"] + len(list(_points(params, line))) * judging["metrics"]
        return Cost(name, seconds, calls, _measuring_bytes(params, line, calibration), 0)
    if kind == "gamma":
        calls = params.gamma.steps * params.gamma.images
        own = next(iter(calibration["lines"].values()))
        return Cost(name, begin + calls * own["call"], calls, int(own["call_bytes"]), 0)
    if kind == "features":
        seconds = begin + judging["rest"] + params.features.iterations * judging["update"]
        return Cost(name, seconds, 0, int(judging["trained_bytes"]), 0)
    constant = {
        "search": SEARCH * params.gamma.steps / 1000,
        "frontier": FRONTIER * share,
        "publish": PUBLISH * share,
        "shard": SHARD * max(1, data.images / IMAGES),
    }
    disks = {"shard": 2 * data.bytes, "frontier": round(2 * TABLES * share), "publish": _published(params, calibration)}
    return Cost(name, begin + constant.get(kind, 0.0) * speed, 0, memory, disks.get(kind, 0))


def _drawing(
    name: str, params: Params, data: PlannedData, calibration: Mapping[str, Any], begin: float, speed: float
) -> Cost:
    """Of the images of source teacher:N; of another source next to nothing."""
    if not params.data.is_drawn:
        return Cost(name, DVC * speed, 0, MEGABYTES["draw"] * 10**6, 0)
    sampling, own = params.data.sampling, next(iter(calibration["lines"].values()))
    recipe = Recipe(SOLVERS[sampling.sampler](), guidance=sampling.guidance)
    each = ADAPTIVE if recipe.solver.adaptive else len(_evaluations(recipe, sampling.steps))
    is_guided = sampling.guidance is not None and params.teachers[drawing(params.teachers)].guidance is None
    calls = params.data.count * each * (2 if is_guided else 1)
    return Cost(name, begin + calls * own["call"], calls, int(own["call_bytes"]), 2 * data.bytes)


def _judged(cost: Cost, params: Params, calibration: Mapping[str, Any], todo: Mapping[str, stages.Stage]) -> Cost:
    """A stage that measures, with what the judges of evaluate.judges take. They look at the real images once: a stage that
    waits for another one that measures finds what they saw."""
    if (own := calibration["judges"]) is None:
        return cost
    points = len(list(_points(params, cost.name.partition("@")[2])))
    seconds = own["once"] + points * (params.evaluate.images * own["image"] + own["point"])
    first = not any(map(_measures, filter(todo.get, todo[cost.name].after)))
    more = max(0, own["bytes"] - calibration["base"]) + own["more"]
    disk = cost.disk + round(first * own["kept"])
    return replace(
        cost, seconds=cost.seconds + seconds + first * own["look"], bytes=round(cost.bytes + more), disk=disk
    )


def _measures(stage: str) -> bool:
    return stage.partition("@")[0] in ("measure_teachers", "measure")


def _measuring_bytes(params: Params, line: str, calibration: Mapping[str, Any]) -> int:
    """Drawing and judging are in one process; the likelihood of an adaptive solver keeps what an update keeps."""
    own, base = calibration["lines"][line], calibration["base"]
    parts = [own["call_bytes"], calibration["judging"]["bytes"]]
    if any(each.solver.adaptive for _, each in samplings_of(line, params.evaluate, params.lines)):
        parts.append(own["bytes"])
    return round(base + sum(max(0, part - base) for part in parts))


def _training(name: str, line: str, params: Params, own: Mapping[str, Any], begin: float, slots: locks.Slots) -> Cost:
    """The checkpoint lies in artifacts and in DVC's cache; of the state two are kept once one is older than save_seconds."""
    if isinstance(params.line(line), Adopted):
        return Cost(name, begin, 0, 0, 2 * own["checkpoint"])
    iterations, trainings = params.line(line).fit.iterations, params.trainings(line)
    seconds, calls, width = iterations * own["seconds"], iterations * own["calls"], slots.width(name)
    if watch := params.line(line).watch:
        looks = math.ceil(iterations / watch.every)
        seconds += looks * (own["read"] + own["look_calls"] * own["call"] * _share(watch.images, width))
        calls, begin = calls + looks * own["look_calls"], begin + trainings * own["once"]
    states = 2 if seconds > params.compute.save_seconds else 1
    size = trainings * (2 * own["checkpoint"] + states * own["state"])
    return Cost(name, begin + trainings * seconds, trainings * calls, int(own["bytes"]), round(size), width, begin)


def _share(images: int, width: int) -> float:
    """Of the samples of a look, what the process draws that draws most of them: whole batches."""
    batches = math.ceil(images / BATCH)
    return math.ceil(batches / width) / batches


def _looked_by(
    costs: Mapping[str, Cost], params: Params, calibration: Mapping[str, Any], todo: Mapping[str, stages.Stage]
) -> dict[str, Cost]:
    """The first watched training, with that of the feature network by which all are looked at unless it is kept; one that
    begins beside it waits meanwhile, which is not counted."""
    watched = [name for name in pipeline.in_order(todo) if _trains(name) and _is_watched(params, name)]
    if not watched or calibration["has_network"]:
        return {}
    first, judging = costs[watched[0]], calibration["judging"]
    seconds = judging["rest"] + params.features.iterations * judging["update"]
    most = max(first.bytes, int(judging["trained_bytes"]))
    return {watched[0]: replace(first, seconds=first.seconds + seconds, begin=first.begin + seconds, bytes=most)}


def _is_watched(params: Params, stage: str) -> bool:
    line = params.line(stage.partition("@")[2])
    return not isinstance(line, Adopted) and line.watch is not None


def _published(params: Params, calibration: Mapping[str, Any]) -> int:
    """A model of each student and of the recommended point, with weights and code, and the pictures of the runs."""
    sizes = [each["checkpoint"] for each in calibration["lines"].values()]
    largest = max(sizes)
    return (len(params.distill) + 1) * (largest + MODEL) + 5 * MODEL


def _points(params: Params, line: str) -> Iterator[float]:
    """Network calls for each sample of each point of a checkpoint."""
    grid = params.lines.grid(line)
    for _, sampling in samplings_of(line, params.evaluate, params.lines):
        for steps in sampling.steps or [grid.steps]:
            for kind in sampling.trajectories:
                for recipe in sampling.recipes():
                    yield _calls(recipe, grid.steps if kind == OWN else steps, params, line)


def _calls(recipe: Recipe, steps: int, params: Params, line: str) -> float:
    calls = float(ADAPTIVE) if recipe.solver.adaptive else len(_evaluations(recipe, steps))
    if recipe.deepcache:
        whole = math.ceil(calls / recipe.deepcache.interval)
        calls = whole + CACHED * (calls - whole)
    return calls * (2 if recipe.guidance is not None and params.lines.guidance(line) is None else 1)


def _evaluations(recipe: Recipe, steps: int) -> tuple[float, ...]:
    if isinstance(recipe.solver, Analytic):  # which has no variances before there is a Gamma: a call for each step
        return uniform(steps).times[:-1]
    return rehearse(recipe.solver, uniform(steps), Cosine())


def _beside(params: Params, line: str) -> float:
    """Network calls of likelihoods and of fitted times."""
    total, config = 0.0, params.evaluate
    for _, sampling in samplings_of(line, config, params.lines):
        if sampling.solver.adaptive:
            total += config.likelihood.images * ADAPTIVE * BACKWARD * config.likelihood.probes
        if isinstance(sampling.solver, Analytic):
            total += config.likelihood.images * sum(sampling.steps) * len(sampling.trajectories)
    if any("fitted" in each.trajectories for _, each in samplings_of(line, config, params.lines)):
        total += config.fitted.points * config.fitted.images * (1 if line in params.teachers else 2)
    return total


def _wall(todo: Mapping[str, stages.Stage], costs: Mapping[str, Cost], slots: int) -> float:
    """Seconds until the last stage ends, each begun as `distill run` begins it: when those it needs are done."""
    waiting, going, done, now = list(pipeline.in_order(todo)), {}, set(), 0.0
    while waiting or going:
        free = slots - sum(costs[name].width for name in going)
        for name in [each for each in waiting if {above for above in todo[each].after if above in todo} <= done]:
            if (free := free - costs[name].width) < 0:
                break
            waiting.remove(name)
            going[name] = now + costs[name].seconds
        name = min(going, key=going.get)
        now = going.pop(name)
        done.add(name)
    return now


def _warnings(costs: Mapping[str, Cost], slots: int) -> Iterator[str]:
    """Where memory or disk does not suffice, and what would fit."""
    free, most = psutil.virtual_memory().available, sorted((each.bytes for each in costs.values()), reverse=True)
    for each in costs.values():
        if each.bytes > free:
            parts = 2 ** math.ceil(math.log2(each.bytes / free) + 1)
            yield (
                f"{each.name} needs {readable(each.bytes)} of memory and {readable(free)} are free; "
                f"accumulate: {parts} of its line, a smaller batch, precision: bf16 on a GPU or more processes would fit"
            )
    if most and most[0] <= free < sum(most[:slots]):
        fitting = next(count for count in range(slots, 0, -1) if sum(most[:count]) <= free)
        needed = readable(sum(most[:slots]))
        yield f"{slots} stages at a time need {needed} of memory and {readable(free)} are free; --slots {fitting}"
    room, needed = psutil.disk_usage(".").free, sum(each.disk for each in costs.values())
    if needed > room:
        yield f"{readable(needed)} are needed on the disk and {readable(room)} are free; free some first"


def _lines(plan: Plan) -> Iterator[str]:
    if not plan.costs:
        yield f"all {len(plan.cached)} stages are cached; nothing would run"
        return
    width = max(len(each.name) for each in plan.costs)
    yield f"{'':<{width}}  {'seconds':>8}  {'network calls':>13}  {'memory':>8}  {'disk':>8}"
    for each in plan.costs:
        seconds = f"{each.seconds:.0f}" + (f" x {each.width}" if each.width > 1 else "")
        yield (
            f"{each.name:<{width}}  {seconds:>8}  {each.calls:>13.4g}  {readable(each.bytes):>8}  {readable(each.disk):>8}"
        )
    yield f"cached: {', '.join(plan.cached) or 'none'}"
    yield (
        f"{len(plan.costs)} stages, {plan.slots} at a time: about {plan.wall:.0f} s, {plan.seconds:.0f} s of computing, "
        f"{readable(plan.disk)} on the disk"
    )
    for warning in plan.warnings:
        yield f"warning: {warning}"


def cost(params: Params) -> None:
    """Prints what each line's training took, beside what was planned where there is a plan of it."""
    planned = {}
    if KEPT.exists():
        content = disk.read_sealed(KEPT, None, "plan again: distill plan")
        planned = {each["name"].partition("@")[2]: each for each in content["stages"] if _trains(each["name"])}
    rows = [["", "seconds", "planned", "network calls", "planned"]]
    for name in params.lines:
        path = paths.COST / f"{name}.json"
        if not path.exists():
            continue
        spent, own = disk.read_sealed(path, None, paths.again(paths.train(name))), planned.get(name)
        expected = [f"{own['seconds'] - own['begin']:.1f}", f"{own['calls']:.6g}"] if own else ["-", "-"]
        calls = spent["network_calls"] + spent.get("watch_calls", 0)
        rows.append([name, f"{spent['seconds']:.1f}", expected[0], f"{calls:.6g}", expected[1]])
    if len(rows) == 1:
        raise UserError(f"nothing is trained yet, {paths.COST} is empty; run the pipeline first: distill run")
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        log("  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:]))]))


def _trains(stage: str) -> bool:
    return stage.partition("@")[0] in ("teachers", "distill")
