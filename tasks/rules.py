"""What sections of params.yaml must have in common: that a trajectory is there when it is asked for, and the like."""

from collections.abc import Iterator, Mapping
from typing import Any

from diffcore.checkpoints import Guidance
from diffcore.core.errors import Mistake
from diffcore.lineage import Lineage
from diffcore.noise.schedule import Cosine, Schedule
from diffcore.noise.trajectory import TRAJECTORIES, Trajectory
from diffcore.sampling import deepcache
from diffcore.sampling.sampler import check_grid, rehearse
from diffcore.sampling.solvers.analytic import Analytic
from tasks.sections import OWN, ROOT, Evaluate, Way
from tasks.typed import listed, nearest

SOME = 8
"""Steps of a rehearsal."""


def ways(evaluate: Evaluate) -> Iterator[tuple[str, str, Way]]:
    """(path, whose, way) of all there are; whose is a student's name, or the teacher's, or empty for `anytime`."""
    lists = {"teacher": (ROOT, evaluate.teacher), "anytime": ("", evaluate.anytime)}
    lists |= {f"students.{name}": (name, ways) for name, ways in evaluate.students.items()}
    for key, (whose, ways) in lists.items():
        for number, way in enumerate(ways):
            yield f"evaluate.{key}.{number}", whose, way


def asked(evaluate: Evaluate, lines: Lineage) -> Iterator[tuple[str, str, Way]]:
    """(path, checkpoint, way) of all that are to be measured, and of ways that no checkpoint takes as of the teacher's."""
    used = [(path, name, way) for name in lines for path, way in ways_of(name, evaluate, lines)]
    taken = {path for path, _, _ in used}
    yield from used
    yield from ((path, ROOT, way) for path, _, way in ways(evaluate) if path not in taken)


def branches(evaluate: Evaluate, lines: Lineage, skips: Mapping[str, int]) -> Iterator[str]:
    """A cached call that takes a branch which the network has not. skips: how many it has, where that is known."""
    for path, name, way in asked(evaluate, lines):
        for config in filter(None, listed(way.deepcache) if name in skips else ()):
            try:
                deepcache.check(config, skips[name])
            except Mistake as mistake:
                yield f"{path}.deepcache.branch: {mistake}"


def sampled(found: Mapping[str, Any], lines: Lineage) -> Iterator[str]:
    """A trajectory that will not be there when it is asked for, or that the checkpoint is not valid on."""
    evaluate, search = found["evaluate"], found["search"]
    if search.most > found["gamma"].steps:
        yield f"search.most: {search.most} is more than gamma.steps, {found['gamma'].steps}; lower it"
    known = list(lines.students)
    for name in evaluate.students:
        if name not in known:
            yield f"evaluate.students.{name}: no student is called so{nearest(name, known)}"
    for path, whose, way in ways(evaluate):
        yield from _long(path, way, search.most, evaluate.fitted.points)
        if whose in (ROOT, "", *known):
            yield from _valid(path, whose, way, lines.grid(whose) if whose else None)
    for path, name, way in asked(evaluate, lines):
        if (schedule := lines.root(name).schedule) is not None:  # of one from elsewhere only its folder knows
            yield from _begins(path, way, schedule)


def _long(path: str, way: Way, searched: int, fitted: int) -> Iterator[str]:
    most = {"searched": (searched, "search.most"), "fitted": (fitted, "evaluate.fitted.points")}
    for kind in way.trajectories:
        limit, key = most.get(kind, (max(way.steps, default=0), ""))
        if way.steps and max(way.steps) > limit:
            yield f"{path}.steps: {max(way.steps)} on the trajectory {kind}; {key} allows {limit}"


def _valid(path: str, whose: str, way: Way, grid: Trajectory | None) -> Iterator[str]:
    if grid is None and OWN in way.trajectories:
        yield f"{path}.trajectory: own is for a student with steps of its own; name another"
    if grid is not None and OWN not in way.trajectories:
        yield f"{path}.trajectory: {whose} is valid only on its own {grid.steps} steps; say `trajectory: own`"
    elif grid is not None:
        try:
            check_grid(way.solver, grid, grid, Cosine())
        except Mistake as mistake:
            yield f"{path}.sampler: {mistake}"


def _begins(path: str, way: Way, schedule: Schedule) -> Iterator[str]:
    """A solver that cannot begin at the first time of one of its trajectories."""
    for kind in sorted(set(way.trajectories) & set(TRAJECTORIES)):
        if not (way.solver.adaptive or isinstance(way.solver, Analytic)):
            few = max(way.solver.least, min(*way.steps, SOME))  # where it begins does not depend on how many follow
            try:
                rehearse(way.solver, TRAJECTORIES[kind](few, schedule), schedule)
            except Mistake as mistake:
                yield f"{path}: {mistake}"


def ways_of(name: str, evaluate: Evaluate, lines: Lineage) -> list[tuple[str, Way]]:
    """How the checkpoint `name` is sampled, each way with its path."""
    if name == ROOT:
        return _numbered("evaluate.teacher", evaluate.teacher)
    if name in evaluate.students:
        return _numbered(f"evaluate.students.{name}", evaluate.students[name])
    if name in lines.roots:
        return _numbered("evaluate.teacher", evaluate.teacher[:1])
    method = lines.students[name].method
    if lines.grid(name):
        return [(f"distill.{name}", Way(method.sampler, OWN))]
    if method.is_velocity:
        return _numbered("evaluate.teacher", evaluate.teacher[:1])
    return _numbered("evaluate.anytime", evaluate.anytime)


def _numbered(path: str, ways: list[Way]) -> list[tuple[str, Way]]:
    return [(f"{path}.{number}", way) for number, way in enumerate(ways)]


def guided(evaluate: Evaluate, lines: Lineage) -> Iterator[str]:
    """Guidance that a way asks for and a checkpoint has not, or at times at which it was not looked at."""
    for name in lines:
        known, root = lines.guidance(name), lines.root(name)
        for path, way in ways_of(name, evaluate, lines):
            asked = known is not None or way.guidance is not None
            if asked and "fitted" in way.trajectories:
                yield (
                    f"{path}.trajectory: fitted times follow the teacher's path without guidance, and {name} is sampled "
                    "with guidance; name another trajectory"
                )
            if known is None and way.guidance is not None and not root.conditional:
                yield (
                    f"{path}.guidance: there are no classes to guide to; set `conditional` of "
                    f"teachers.{lines.root_name(name)} to true"
                )
            if known is not None:
                yield from _weighed(name, path, way, known)


def _weighed(name: str, path: str, way: Way, known: Guidance) -> Iterator[str]:
    if way.negative is not None:
        yield f"{path}.negative: {name} learned to be led away from no class; leave it out"
    for weight in listed(way.guidance):
        if weight is None and known.is_input:
            yield (
                f"{path}: {name} takes the guidance weight as an input; give evaluate.students.{name} ways with `guidance`"
            )
        elif weight is not None:
            try:
                known.check(weight)
            except Mistake as mistake:
                yield f"{path}.guidance: {name}: {mistake}"


def foreign(evaluate: Evaluate, lines: Lineage) -> Iterator[str]:
    """What was estimated of the line `teacher`, asked of a checkpoint that does not come from it."""
    for name in lines:
        if lines.root_name(name) == ROOT:
            continue
        for path, way in ways_of(name, evaluate, lines):
            if isinstance(way.solver, Analytic):
                yield f"{path}.sampler: Gamma is estimated of {ROOT}, and {name} does not come from it; name another"
            for kind in sorted({"searched", "fitted"} & set(way.trajectories)):
                yield f"{path}.trajectory: {kind} times are those of {ROOT}, and {name} does not come from it; name another"


def adopted(root: str, evaluate: Evaluate, lines: Lineage, skips: int | None) -> list[str]:
    """What is asked of a network from elsewhere, or of students that begin as it, that it has not. skips: how many, None for
    a network whose parts cannot be run alone."""
    faults = [f"distill.{name}.{key}: {fault}" for name, key, fault in lines.heads()]
    own = {name for name in lines if lines.root_name(name) == root}
    if skips is not None:
        return faults + list(dict.fromkeys(branches(evaluate, lines, dict.fromkeys(own, skips))))
    for path, name, way in asked(evaluate, lines):
        for key in ("deepcache", "skip"):
            if name in own and any(listed(getattr(way, key))):
                faults.append(f"{path}.{key}: needs our own U-Net, which the teacher is not; leave it out")
    return list(dict.fromkeys(faults))
