"""What sections of params.yaml must have in common: that a trajectory is there when it is asked for, and the like."""

from collections.abc import Iterator, Mapping
from typing import Any

from diffcore import methods
from diffcore.checkpoints import Guidance
from diffcore.checkpoints.card import TEACHER
from diffcore.core.errors import UserError
from diffcore.core.shapes import IMAGE
from diffcore.data import prompt_file
from diffcore.lineage import Lineage
from diffcore.noise.schedule import Cosine, Schedule
from diffcore.noise.trajectory import TRAJECTORIES, Trajectory
from diffcore.sampling import deepcache
from diffcore.sampling.sampler import check_grid, rehearse
from diffcore.sampling.solvers import SOLVERS
from diffcore.sampling.solvers.analytic import Analytic
from tasks.sections import OWN, ROOT, Adopted, Evaluate, Sampling
from tasks.typed import listed, nearest

SOME = 8
"""Steps of a rehearsal."""


def samplings(evaluate: Evaluate) -> Iterator[tuple[str, str, Sampling]]:
    """(path, whose, sampling) of all there are; whose is a student's name, or the teacher's, or empty for
    `any_time_students`."""
    lists = {"teacher": (ROOT, evaluate.teacher), "any_time_students": ("", evaluate.any_time_students)}
    lists |= {f"students.{name}": (name, samplings) for name, samplings in evaluate.students.items()}
    for key, (whose, samplings) in lists.items():
        for number, sampling in enumerate(samplings):
            yield f"evaluate.{key}.{number}", whose, sampling


def samplings_by_checkpoint(evaluate: Evaluate, lines: Lineage) -> Iterator[tuple[str, str, Sampling]]:
    """(path, checkpoint, sampling) of all that are to be measured, and of samplings that no checkpoint takes as of the
    teacher's."""
    used = [(path, name, sampling) for name in lines for path, sampling in samplings_of(name, evaluate, lines)]
    taken = {path for path, _, _ in used}
    yield from used
    yield from ((path, ROOT, sampling) for path, _, sampling in samplings(evaluate) if path not in taken)


def branches(evaluate: Evaluate, lines: Lineage, skips: Mapping[str, int]) -> Iterator[str]:
    """A cached call that takes a branch which the network has not, and skips to be cached or scaled where it has none. skips:
    how many it has, where that is known."""
    for path, name, sampling in samplings_by_checkpoint(evaluate, lines):
        if skips.get(name) == 0:
            yield from (
                f"{path}.{key}: {name} has no skips, as our own U-Net has; leave it out" for key in _acting(sampling)
            )
            continue
        for config in filter(None, listed(sampling.deepcache) if name in skips else ()):
            try:
                deepcache.check(config, skips[name])
            except UserError as error:
                yield f"{path}.deepcache.branch: {error}"


def ends(lines: Lineage, shapes: Mapping[str, Any]) -> Iterator[str]:
    """Students that are told where a hop lands, of a class of the user's own that has no place for that. shapes: None where
    only a folder knows."""
    for name, line in lines.students.items():
        if line.method.two_times and shapes[name] is not None and not shapes[name].takes_end:
            yield (
                f"distill.{name}.method: {methods.word(line.method)} tells its network where a hop lands, and "
                f"{shapes[name].module} takes no such thing; give its forward an argument end_timestep=None, or take another "
                "method"
            )


def adopted_ends(root: str, lines: Lineage, shapes: Mapping[str, Any]) -> Iterator[str]:
    """The same of a network from elsewhere, which has none."""
    for name, line in lines.students.items():
        if line.method.two_times and shapes[name] is None and lines.root_name(name) == root:
            yield (
                f"distill.{name}.method: {methods.word(line.method)} tells its network where a hop lands, for which that of "
                f"{root} has no input; give the line a `network` of ours, or take another method"
            )


def _acting(sampling: Sampling) -> list[str]:
    """Its keys that act on a U-Net's skips."""
    return [key for key in ("deepcache", "skip") if any(listed(getattr(sampling, key)))]


def sampled(sections: Mapping[str, Any], lines: Lineage) -> Iterator[str]:
    """A trajectory that will not be there when it is asked for, or that the checkpoint is not valid on."""
    evaluate = sections["evaluate"]
    search = sections["search"]
    if search.most > sections["gamma"].steps:
        yield f"search.most: {search.most} is more than gamma.steps, {sections['gamma'].steps}; lower it"
    students = list(lines.students)
    for name in evaluate.students:
        if name not in students:
            yield f"evaluate.students.{name}: no student is called so{nearest(name, students)}"
    for path, whose, sampling in samplings(evaluate):
        yield from _long(path, sampling, search.most, evaluate.fitted.points)
        if whose in (ROOT, "", *students):
            yield from _valid(path, whose, sampling, lines.grid(whose) if whose else None)
    for path, name, sampling in samplings_by_checkpoint(evaluate, lines):
        if (schedule := lines.root(name).schedule) is not None:  # of one from elsewhere only its folder knows
            yield from _begins(path, sampling, schedule)


def _long(path: str, sampling: Sampling, least_cost: int, fitted: int) -> Iterator[str]:
    most = {"least_cost": (least_cost, "search.most"), "fitted": (fitted, "evaluate.fitted.points")}
    for kind in sampling.trajectories:
        limit, key = most.get(kind, (max(sampling.steps, default=0), ""))
        if sampling.steps and max(sampling.steps) > limit:
            yield f"{path}.steps: {max(sampling.steps)} on the trajectory {kind}; {key} allows {limit}"


def _valid(path: str, whose: str, sampling: Sampling, grid: Trajectory | None) -> Iterator[str]:
    if grid is None and OWN in sampling.trajectories:
        yield f"{path}.trajectory: own is for a student with steps of its own; name another"
    if grid is not None and OWN not in sampling.trajectories:
        yield f"{path}.trajectory: {whose} is valid only on its own {grid.steps} steps; say `trajectory: own`"
    elif grid is not None:
        try:
            check_grid(sampling.solver, grid, grid, Cosine())
        except UserError as error:
            yield f"{path}.sampler: {error}"


def _begins(path: str, sampling: Sampling, schedule: Schedule) -> Iterator[str]:
    """A solver that cannot begin at the first time of one of its trajectories."""
    for kind in sorted(set(sampling.trajectories) & set(TRAJECTORIES)):
        if not (sampling.solver.adaptive or isinstance(sampling.solver, Analytic)):
            # where it begins does not depend on how many follow
            few = max(sampling.solver.min_steps, min(*sampling.steps, SOME))
            try:
                rehearse(sampling.solver, TRAJECTORIES[kind](few, schedule), schedule)
            except UserError as error:
                yield f"{path}: {error}"


def samplings_of(name: str, evaluate: Evaluate, lines: Lineage) -> list[tuple[str, Sampling]]:
    """How the checkpoint `name` is sampled, each sampling with its path."""
    if name == ROOT:
        return _numbered("evaluate.teacher", evaluate.teacher)
    if name in evaluate.students:
        return _numbered(f"evaluate.students.{name}", evaluate.students[name])
    if name in lines.roots:
        return _numbered("evaluate.teacher", evaluate.teacher[:1])
    method = lines.students[name].method
    if lines.grid(name):
        return [(f"distill.{name}", Sampling(method.sampler, OWN))]
    if method.is_velocity:
        return _numbered("evaluate.teacher", evaluate.teacher[:1])
    return _numbered("evaluate.any_time_students", evaluate.any_time_students)


def _numbered(path: str, samplings: list[Sampling]) -> list[tuple[str, Sampling]]:
    return [(f"{path}.{number}", sampling) for number, sampling in enumerate(samplings)]


def guided(evaluate: Evaluate, lines: Lineage) -> Iterator[str]:
    """Guidance that a sampling asks for and a checkpoint has not, or at times at which it was not looked at."""
    for name in lines:
        guidance = lines.guidance(name)
        root = lines.root(name)
        for path, sampling in samplings_of(name, evaluate, lines):
            is_guided = guidance is not None or sampling.guidance is not None
            is_guided &= not _always_guided(lines, guidance)
            if is_guided and "fitted" in sampling.trajectories:
                yield (
                    f"{path}.trajectory: fitted times follow the teacher's path without guidance, and {name} is sampled "
                    "with guidance; name another trajectory"
                )
            if guidance is None and sampling.guidance is not None and not root.is_told:
                yield (
                    f"{path}.guidance: there is no class or text to guide to; set `conditional` of "
                    f"teachers.{lines.root_name(name)} to true, or tell it a text"
                )
            if guidance is not None:
                yield from _weighed(name, path, sampling, guidance, lines)


def _always_guided(lines: Lineage, guidance: Guidance | None) -> bool:
    """Whether the teacher, whose path times are fitted to, is always told the one weight that a checkpoint is for."""
    own = lines.guidance(ROOT)
    return own is not None and own == guidance and not own.is_input


def _weighed(name: str, path: str, sampling: Sampling, guidance: Guidance, lines: Lineage) -> Iterator[str]:
    if sampling.negative is not None:
        yield f"{path}.negative: {name} learned to be led away from no class and no text; leave it out"
    for weight in listed(sampling.guidance):
        if weight is None and guidance.is_input:
            remedy = f"evaluate.students.{name} samplings with `guidance`"
            remedy = f"its samplings `guidance`, {_span(guidance)}" if name in lines.roots else remedy
            yield f"{path}: {name} takes the guidance weight as an input; give {remedy}"
        elif weight is not None:
            try:
                guidance.check(weight, lines.whose(name))
            except UserError as error:
                yield f"{path}.guidance: {name}: {error}"


def captioned(sections: Mapping[str, Any]) -> Iterator[str]:
    """Texts to encode where there are no captions, and networks that are told texts which nothing encodes."""
    encoder, condition = sections["text"].encoder, sections["data"].image_condition
    if encoder is not None and sections["data"].captions is None:
        yield "text.encoder: the images have no captions; say in data.captions where they come from, or encoder: null"
    for name, root in sections["teachers"].items():
        texts = [each for each in root.inputs if each != IMAGE]
        if texts and encoder is None:
            yield (
                f"teachers.{name}: it is told {', '.join(texts)}, and text.encoder is null; name what encodes the "
                "captions, or tell it no text"
            )
        if IMAGE in root.inputs and condition is None:
            yield f"teachers.{name}: it is told image, and data.image_condition is null; say which copy, or tell it no image"


def prompted(sections: Mapping[str, Any], lines: Lineage) -> Iterator[str]:
    """Prompts without images that nothing encodes, on which no line trains, or whose class a line would have to know."""
    if sections["data"].prompts is None:
        return
    if sections["text"].encoder is None:
        yield "data.prompts: text.encoder is null; name what encodes the prompts, or leave data.prompts null"
        return
    told = [name for name in lines.students if any(each != IMAGE for each in lines.root(name).inputs)]
    readers = [name for name in told if not lines.students[name].method.needs_images]
    if not readers:
        yield (
            "data.prompts: no line trains on them; add one by distribution_matching without adversarial, of a teacher that "
            "is told a text, or leave it null"
        )
    for name in readers:
        if lines.root(name).conditional:
            yield (
                f"data.prompts: distill.{name} is told a class too, and a prompt has none; set `conditional` of "
                f"teachers.{lines.root_name(name)} to false, or leave data.prompts null"
            )


def drawing(teachers: Mapping[str, Any]) -> str | None:
    """The line of the teacher that draws the data: the first that is there already; None for none."""
    return next((name for name, root in teachers.items() if isinstance(root, Adopted)), None)


def drawn(sections: Mapping[str, Any]) -> Iterator[str]:
    """Data that a teacher shall draw who is not there yet, is told nothing, or cannot be sampled so."""
    data, teachers = sections["data"], sections["teachers"]
    if not data.is_drawn:
        if data.draw is not None:
            yield f"data.draw: is for source teacher:N, not {data.source}; leave it null"
        return
    name = drawing(teachers)
    if name is None:
        which = ", ".join(f"teachers.{each}" for each in teachers)
        yield (
            f"data.source: {data.source} is drawn by a teacher that is there already, and {which} is trained on images; say "
            f"teachers.{next(iter(teachers))}: {{from: PATH}}"
        )
        return
    root, sampling, from_file = teachers[name], data.sampling, prompt_file.is_file(data.captions)
    if IMAGE in root.inputs:
        yield f"data.source: teachers.{name} is told a copy of an image, and it draws from none; name another source"
    if root.inputs and not from_file:
        yield f"data.captions: teachers.{name} is told {', '.join(root.inputs)}; name a file of prompts, such as prompts.txt"
    if from_file and not root.inputs:
        yield f"data.captions: teachers.{name}, which draws the images, is told no text; leave it null, or give it inputs"
    if sampling.guidance is not None and not root.is_told:
        yield f"data.draw.guidance: teachers.{name} is told no classes and no texts; leave it null"
    elif root.guidance is not None:
        yield from _drawn_by(name, sampling.guidance, Guidance(*root.guidance))
    if sampling.sampler not in SOLVERS:
        yield f"data.draw.sampler: {sampling.sampler!r} is unknown{nearest(sampling.sampler, SOLVERS)}"
    elif issubclass(SOLVERS[sampling.sampler], Analytic):
        yield f"data.draw.sampler: {sampling.sampler} needs an estimate of Gamma, which needs images; name another"


def _drawn_by(name: str, weight: float | None, guidance: Guidance) -> Iterator[str]:
    """Of a teacher whose network takes the weight of guidance."""
    if weight is None and guidance.is_input:
        yield (
            f"data.draw.guidance: teachers.{name} takes the guidance weight as an input; say which one, {_span(guidance)}"
        )
    elif weight is not None:
        try:
            guidance.check(weight, TEACHER)
        except UserError as error:
            yield f"data.draw.guidance: teachers.{name}: {error}"


def _span(guidance: Guidance) -> str:
    return f"from {guidance.low:g} to {guidance.high:g}"


def foreign(evaluate: Evaluate, lines: Lineage) -> Iterator[str]:
    """What was estimated of the line `teacher`, asked of a checkpoint that does not come from it."""
    for name in lines:
        if lines.root_name(name) == ROOT:
            continue
        for path, sampling in samplings_of(name, evaluate, lines):
            if isinstance(sampling.solver, Analytic):
                yield f"{path}.sampler: Gamma is estimated of {ROOT}, and {name} does not come from it; name another"
            for kind in sorted({"least_cost", "fitted"} & set(sampling.trajectories)):
                yield f"{path}.trajectory: {kind} times are those of {ROOT}, and {name} does not come from it; name another"


def adopted(root: str, evaluate: Evaluate, lines: Lineage, skips: int | None) -> list[str]:
    """What is asked of a network from elsewhere, or of students that begin as it, that it has not. skips: how many, None for
    a network whose parts cannot be run alone."""
    faults = [f"distill.{name}.{key}: {fault}" for name, key, fault in lines.parameterizations()]
    own = {name for name in lines if lines.root_name(name) == root}
    if skips is not None:
        return faults + list(dict.fromkeys(branches(evaluate, lines, dict.fromkeys(own, skips))))
    for path, name, sampling in samplings_by_checkpoint(evaluate, lines):
        for key in _acting(sampling) if name in own else ():
            faults.append(f"{path}.{key}: needs our own U-Net, which the teacher is not; leave it out")
    return list(dict.fromkeys(faults))
