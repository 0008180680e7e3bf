"""The verb `advise`: reads the question, chooses lines by the rules, fits them to the budget, checks and writes the file."""

import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from diffcore.checkpoints import from_diffusers, read_card
from diffcore.core import disk
from diffcore.core.errors import UserError
from tasks import paths, places, plan
from tasks.advice import budget, question, text
from tasks.advice.answer import Advised, samplings, students, teacher
from tasks.advice.budget import Fitted, Price, amount, fitted
from tasks.advice.question import Question, is_counted, is_here
from tasks.advice.rules import LARGE
from tasks.params import ROOT, Params, check_adopted, parse
from tasks.progress import log

SHARDS_FIRST = (
    "seconds are counted on the images themselves, which are not sharded here; give the budget in network calls, or make a "
    "workspace of these images, run `distill shard` there and ask again"
)


def advise(
    params: Params,
    target: Path,
    calls: str,
    folder: Path | None,
    source: str | None,
    size: int | None,
    guidance: str | None,
    limit: str | None,
    as_json: bool,
) -> None:
    """Writes `target`, which must not exist, and prints what it says. folder: of a teacher that is trained already. source,
    size: of the images. limit: the budget."""
    disk.check_free(target, "file")
    if not target.parent.is_dir():
        raise UserError(f"there is no folder {target.parent}; make it first")
    asks = question.read(params, calls, folder, source, guidance, limit)
    answer = Answer(params, asks, size)
    content = text.written(answer.raw, answer.about, answer.advised)
    parsed = parse(answer.raw, str(target))
    if asks.folder is not None:
        _check_adopted(parsed, asks)
    disk.write(target, content, new=True)
    log(json.dumps(answer.to_json(target), indent=1) if as_json else "\n".join(answer.lines(target)))


def _check_adopted(parsed: Params, asks: Question) -> None:
    model = from_diffusers.read(Path(asks.folder))
    check_adopted(parsed, ROOT, model.skips, model.denoiser.reading.parameterization, model.takes_end)


class Answer:
    """What is written, and why: the lines, what their trainings cost, and what is left out.

    fitted: the lines of `distill`. raw: the whole file as values.
    """

    def __init__(self, params: Params, asks: Question, size: int | None):
        self.params, self.question = params, asks
        self.teacher = teacher(asks, params.raw["teachers"][ROOT])
        self.data = _data(params, asks, size)
        before = () if self._is_trained() else (self.teacher,)
        price = self._price()
        self.fitted: Fitted = fitted(asks, price, sum(map(price, before)))
        self.samplings = samplings(asks, self.fitted.targets, self.fitted.lines)
        self.raw = self._raw(self.fitted.lines, self.samplings)

    @property
    def advised(self) -> list[Advised]:
        """Every line with a reason, in the order of the file."""
        return [self.teacher, *self.fitted.lines, *(line for lines in self.samplings.values() for line in lines)]

    def _is_trained(self) -> bool:
        """Whether the teacher's training costs nothing any more: it is another's, or was done here by this very line."""
        if self.question.folder is not None:
            return True
        folder = paths.CHECKPOINTS / ROOT
        if not is_here(self.question, self.params) or not (folder / "card.json").exists():
            return False
        return read_card(folder).parameters == {**self.teacher.value, "flip": self.params.data.flip}

    def _price(self) -> Price:
        """Of a line, in the unit of the budget."""
        if self.question.budget is None or self.question.budget.in_calls:
            return _calls
        if not is_counted(self.question, self.params):
            raise UserError(f"--budget {self.question.budget.text}: {SHARDS_FIRST}")
        costs = self._calibrated()
        return lambda line: costs[line.name]["seconds"] * costs[line.name]["width"] * line.value["iterations"]

    def _calibrated(self) -> Mapping[str, Any]:
        """What an update of each line takes here, for every target that was named."""
        lines = students(self.question, self.question.calls)
        raw = self._raw(lines, samplings(self.question, self.question.calls, lines))
        parse(raw, "the advice")
        with tempfile.TemporaryDirectory() as room:
            file = Path(room) / "params.yaml"
            file.write_text(json.dumps(raw), encoding="utf-8")
            slots = len(places.of(Path(), self.params, None).all)
            return plan.calibrated(slots, [ROOT, *(line.name for line in lines)], file)["lines"]

    def _raw(self, lines: list[Advised], sampled: Mapping[str, list[Advised]]) -> dict[str, Any]:
        """The whole file as values: these lines and how they are sampled, and all else as params.yaml has it."""
        changes = {
            "data": self.data,
            "teachers": {ROOT: dict(self.teacher.value)},
            "distill": {line.name: dict(line.value) for line in lines},
            "evaluate": self._evaluate(sampled),
        }
        kept = {key: value for key, value in self.params.raw.items() if not key.startswith("x-")}
        return json.loads(json.dumps(kept | changes))

    def _evaluate(self, sampled: Mapping[str, list[Advised]]) -> dict[str, Any]:
        values = {key: [dict(line.value) for line in lines] for key, lines in sampled.items()}
        of_students = {key.partition(".")[2]: values.pop(key) for key in list(values) if "." in key}
        return {**self.params.raw["evaluate"], **values, "students": of_students}

    @property
    def about(self) -> list[str]:
        """What is said at the top of the file."""
        wanted = self.question
        lines = [
            f"Written by `distill advise` for students of {_listed(wanted.calls)} network calls. Above each advised line "
            "stands why, in brackets the table that says so, or that it was not measured here. Distances are Frechet "
            "distances in the features of a network of the digits.",
            *self._tables(),
        ]
        if wanted.source != "digits":
            lines.append(
                f"Nothing was measured on {wanted.source}: all tables are of 1797 digits of 8x8 and a network of 173 217 "
                "weights. The order of the methods may hold, numbers of updates and learning rates will not: trainings of "
                "images are thousands of times as long (50 000 updates of 128 images for a halving in arXiv 2202.00512). "
                "Give a budget."
            )
        elif wanted.weights >= LARGE:
            lines.append(
                "The tables are of a network of 173 217 weights; numbers of updates of a larger one are others."
            )
        if others := sorted(self.params.raw["teachers"].keys() - {ROOT}):
            lines.append(f"Left out, for no advised line comes from them: {', '.join(others)} of `teachers`.")
        lines.append(self._cost())
        lines += self._refused()
        return lines

    def _tables(self) -> Iterator[str]:
        """What measures them again."""
        rows = dict.fromkeys((row.file, row.command) for line in self.advised for row in line.rule.backed)
        for file, command in rows:
            yield f"{file}: {f'`{command}`' if command else 'measured once, there is no script of it'}"

    def _cost(self) -> str:
        """What all trainings cost, beside the budget."""
        limit, spent = self.question.budget, self.fitted.price
        whole = f"All trainings that are still to be done take {amount(limit, spent)}"
        if limit is None:
            return f"{whole}; no budget was named, so numbers of updates are those of the tables."
        share = f"{self.fitted.share:.3g} times the updates of the tables"
        return f"{whole} of {amount(limit, limit.amount)}, {share}. Measuring comes on top: see `distill plan`."

    def _refused(self) -> Iterator[str]:
        for target in self.fitted.left_out:
            yield (
                f"No student of {target} calls: with it each training would have less than {budget.LEAST:.0%} of the updates "
                "of the tables."
            )

    def lines(self, target: Path) -> Iterator[str]:
        """What a person reads."""
        yield from self.about[1:]
        for line in self.fitted.lines:
            yield f"{line.name}: {line.rule.why}{text.backing(line.rule)}"
            yield from (f"  {note}" for note in line.notes)
        yield f"{target} is written; use it as params.yaml, or as presets/NAME.yaml for `distill workspace --preset NAME`"

    def to_json(self, target: Path) -> dict[str, Any]:
        """The same for programs."""
        limit = self.question.budget
        return {
            "file": str(target),
            "targets": list(self.fitted.targets),
            "left_out": list(self.fitted.left_out),
            "about": self.about,
            "budget": limit
            and {"text": limit.text, "amount": limit.amount, "in": "calls" if limit.in_calls else "seconds"},
            "cost": self.fitted.price,
            "share": self.fitted.share,
            "lines": [_as_json(line) for line in self.advised],
        }


def _as_json(line: Advised) -> dict[str, Any]:
    backed = [{"file": row.file, "row": row.begins, "command": row.command} for row in line.rule.backed]
    reason = {"why": line.rule.why, "notes": list(line.notes), "backed": backed, "network_calls": line.calls}
    return {"path": line.path, "value": dict(line.value), **reason}


def _calls(line: Advised) -> float:
    return line.calls


def _data(params: Params, asks: Question, size: int | None) -> dict[str, Any]:
    """The section `data`: images as the teacher was trained with, where it is another's and the images are not the digits."""
    changes: dict[str, Any] = {"source": asks.source}
    if asks.source != "digits" and asks.folder is not None:
        changes |= {key: value for key, value in (("size", asks.side), ("channels", asks.channels)) if value}
    if size is not None:
        changes["size"] = size
    return {**params.raw["data"], **changes}


def _listed(numbers: tuple[int, ...]) -> str:
    return ", ".join(map(str, numbers))
