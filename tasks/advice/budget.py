"""What the advised trainings cost, and how many updates a budget leaves for each."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from diffcore.core.errors import UserError
from tasks.advice.answer import Advised, students
from tasks.advice.question import Budget, Question

LEAST = 0.5
"""Of the updates of the tables: with fewer nothing was measured, and a target is rather left out."""

Price = Callable[[Advised], float]
"""What a line's training costs, in the unit of the budget."""


@dataclass(frozen=True)
class Fitted:
    """lines: of `distill`, with the updates that the budget leaves. targets: which they end in; left_out: which do not fit.
    share: of the updates of the tables, the same for all lines. price: of all trainings, the teacher's too."""

    lines: list[Advised]
    targets: tuple[int, ...]
    left_out: tuple[int, ...]
    share: float
    price: float


def fitted(question: Question, price: Price, before: float) -> Fitted:
    """Every target that the budget has room for, each line with as large a share of the tables' updates; without a budget
    these updates themselves. before: what the teacher's own training costs. A UserError where no target fits."""
    targets = question.calls
    budget = question.budget
    if budget is None:
        lines = students(question, targets)
        return Fitted(lines, targets, (), 1.0, before + sum(map(price, lines)))
    while _least(question, targets, price, before) > budget.amount:
        if len(targets) == 1:
            raise _too_small(budget, targets[0], _least(question, targets, price, before), before)
        targets = _without_dearest(question, targets, price)
    lines = students(question, targets)
    share = (budget.amount - before) / sum(map(price, lines))
    scaled = [_scaled(line, share) for line in lines]
    left_out = tuple(target for target in question.calls if target not in targets)
    return Fitted(scaled, targets, left_out, share, before + sum(map(price, scaled)))


def _least(question: Question, targets: Sequence[int], price: Price, before: float) -> float:
    return before + LEAST * sum(map(price, students(question, targets)))


def _without_dearest(question: Question, targets: tuple[int, ...], price: Price) -> tuple[int, ...]:
    """All targets but the one without which most is saved."""
    rests = [tuple(other for other in targets if other != target) for target in targets]
    return min(rests, key=lambda rest: sum(map(price, students(question, rest))))


def _scaled(line: Advised, share: float) -> Advised:
    """So many updates that no line costs more than its share."""
    measured = line.value["iterations"]
    updates = max(1, int(measured * share))
    note = f"{updates} updates for this budget, {measured} in the tables"
    warmup = {"warmup": min(line.value["warmup"], updates)} if "warmup" in line.value else {}
    return replace(line, value={**line.value, "iterations": updates, **warmup}, notes=(*line.notes, note))


def _too_small(budget: Budget, target: int, least: float, before: float) -> UserError:
    needed = f"--budget {budget.text}: a student of {target} calls needs at least {amount(budget, least)}"
    if not before:
        return UserError(f"{needed}; raise it")
    return UserError(
        f"{needed}, {amount(budget, before)} of them for the teacher; raise it, or name a teacher that is trained already"
    )


def amount(budget: Budget | None, number: float) -> str:
    """In words."""
    return f"{number:.3g} network calls" if budget is None or budget.in_calls else f"{number:.0f} s"
