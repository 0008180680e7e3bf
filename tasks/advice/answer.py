"""From a question to lines of params.yaml, each with the rule that it follows."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from tasks.advice.question import Question
from tasks.advice.rules import LARGE, Rule, choose
from tasks.params import ROOT
from tasks.sections import OWN

WHOLE, PART = 16, 8
"""Steps of the first halving, and those of networks whose levels of noise 16 does not divide."""

REFERENCE = 64
"""Steps of the sampling that fidelity compares with."""

WEIGHTS = 6
"""Weights of guidance that a sweep has at most."""


@dataclass(frozen=True)
class Advised:
    """path: in params.yaml. value: what stands there. notes: what else is to be said of it, beside the rule's reason."""

    path: str
    value: Mapping[str, Any]
    rule: Rule
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Of the line."""
        return self.path.rpartition(".")[2]

    @property
    def calls(self) -> float:
        """Network calls of its training, 0 for what is not trained."""
        return self.rule.calls * self.value.get("iterations", 0) * self.value.get("batch", 0)


def students(question: Question, targets: Iterable[int]) -> list[Advised]:
    """The lines of `distill` that end in a student for each target, in the order of their training."""
    chosen, lines, start = set(targets), _Lines(question), ROOT
    if lines.add("v", "start", init=start):
        start = "v"
    if lines.add("guided", "guided", init=start, guidance=_range(question)):
        start = "guided"
    last = start
    for steps in _halvings(question, chosen):
        lines.add(f"pd{steps}", "halving", steps=steps, init=last)
        last = f"pd{steps}"
    if 1 in chosen and question.guidance is None:
        lines.add("cd", "jump", init=start)
        lines.add("dm1", "match", init="cd", teacher=start)
    return lines.lines


def _halvings(question: Question, targets: set[int]) -> list[int]:
    """Steps of the rounds; with guidance a student of one step is one of them, else it comes by a way of its own."""
    rounds = targets if question.guidance else targets - {1}
    first = WHOLE if question.levels % WHOLE == 0 else PART
    return [steps for steps in (16, 8, 4, 2, 1) if rounds and min(rounds) <= steps <= first]


class _Lines:
    """Those that were chosen so far."""

    def __init__(self, question: Question):
        self.question = question
        self.lines: list[Advised] = []

    def add(self, name: str, purpose: str, init: str, teacher: str | None = None, **more: Any) -> bool:
        """Adds the line that the rules say; False where they say that none is needed."""
        rule = choose(purpose, {**self.question.facts, **more})
        if rule is None:
            return False
        value = {"method": rule.writes["method"], "init": init, "teacher": teacher or init, **more, **rule.writes}
        line = Advised(f"distill.{name}", value, rule)
        self.lines.append(_for_large(line) if self.question.weights >= LARGE else line)
        return True


def _for_large(line: Advised) -> Advised:
    numbers = ", ".join(f"{key} {value:g}" for key, value in line.rule.large.items())
    note = f"{numbers}: a network of at least {LARGE:,} weights takes smaller steps, which was not measured here"
    return replace(line, value={**line.value, **line.rule.large}, notes=(note,))


def _range(question: Question) -> float | list[float] | None:
    if question.guidance is None:
        return None
    low, high = question.guidance
    return low if low == high else [low, high]


def teacher(question: Question, line: Mapping[str, Any]) -> Advised:
    """The line `teacher`; `line` is what params.yaml has for it."""
    rule = choose("teacher", question.facts)
    if question.folder is not None:
        value = {"from": question.folder, **({"conditional": True} if question.conditional else {})}
        return Advised(f"teachers.{ROOT}", value, rule)
    changes = dict(rule.writes)
    network = {**line["network"], **changes.pop("network", {})}
    return Advised(f"teachers.{ROOT}", {**line, "network": network, **changes}, rule)


def samplings(question: Question, targets: Iterable[int], lines: Iterable[Advised]) -> dict[str, list[Advised]]:
    """By key of `evaluate`, teacher, any_time_students and students.NAME, how these are sampled."""
    sweep, targets, facts = _sweep(question), list(targets), question.facts
    steps = [REFERENCE, *targets]
    even = {"sampler": "ddim", "trajectory": "uniform", "steps": steps, **sweep}
    of_teacher = [Advised("evaluate.teacher", even, choose("even", facts))]
    few, solver = [steps for steps in targets if steps >= 4], choose("solver", facts)
    if few and solver:
        of_teacher.append(Advised("evaluate.teacher", {**solver.writes, "steps": few}, solver))
    jumps, of_any = [line for line in lines if line.rule.purpose == "jump"], []
    if jumps:
        rule = choose("anytime", facts)
        of_any = [Advised("evaluate.any_time_students", {**rule.writes, "steps": targets}, rule)]
    return {"teacher": of_teacher, "any_time_students": of_any, **dict(_swept(question, lines))}


def _sweep(question: Question) -> dict[str, list[float]]:
    """The key `guidance` of a sampling that takes every weight in turn; empty without guidance."""
    if question.guidance is None:
        return {}
    low, high = question.guidance
    between = [float(weight) for weight in range(int(low) + 1, int(high) + 1) if low < weight < high]
    weights = [low, *between, high] if len(between) <= WEIGHTS - 2 else [low, (low + high) / 2, high]
    return {"guidance": list(dict.fromkeys(weights))}


def _swept(question: Question, lines: Iterable[Advised]) -> Iterator[tuple[str, list[Advised]]]:
    """Samplings of students that take the weight as an input, each at every weight."""
    if question.guidance is None or question.guidance[0] == question.guidance[1]:
        return
    rule = choose("swept", question.facts)
    for line in lines:
        own = {"trajectory": OWN} if line.rule.purpose == "halving" else {"trajectory": "uniform", "steps": [REFERENCE]}
        if line.rule.purpose in ("guided", "halving"):
            path = f"students.{line.name}"
            yield path, [Advised(f"evaluate.{path}", {"sampler": "ddim", **own, **_sweep(question)}, rule)]
