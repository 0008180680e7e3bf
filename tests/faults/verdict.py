"""What became of a trial, by the same rules for every kind of fault."""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from tests.faults.desk import Ended

GOOD = ("identical", "named", "taken")
BAD = ("silent", "traceback", "hang", "manual")
MEANING = {
    "identical": "the outcome is that of the undisturbed run, bit for bit",
    "named": "refused in one line with exit code 2, and what the line says mends it",
    "taken": "rightly taken",
    "silent": "another outcome without a word",
    "traceback": "a stack trace was shown",
    "hang": "stood still and had to be ended",
    "manual": "needs a hand: not named, not mended by its own words, or left litter",
}
TRACE = re.compile(r"^Traceback \(most recent call last\)|^Fatal Python error|Segmentation fault", re.MULTILINE)
MISTAKE = 2


@dataclass(frozen=True)
class Outcome:
    """A trial's verdict, what speaks for it, and the commands it was made of."""

    verdict: str
    detail: str = ""
    commands: tuple[str, ...] = ()

    @property
    def bad(self) -> bool:
        return self.verdict in BAD


@dataclass
class Record:
    """What is known of a trial from its first command to its verdict."""

    commands: list[str] = field(default_factory=list)

    def note(self, ended: Ended) -> Ended:
        self.commands.append(f"{' '.join(ended.words)} -> {ended.code}")
        return ended

    def outcome(self, verdict: str, detail: str = "") -> Outcome:
        return Outcome(verdict, detail, tuple(self.commands))


def fault(ended: Ended) -> tuple[str, str] | None:
    """(verdict, detail) of what no command may show, whatever was done to it."""
    if ended.hung:
        return "hang", f"{' '.join(ended.words)} did not end; it had said: {_tail(ended.text)}"
    if TRACE.search(ended.text):
        return "traceback", _tail(ended.text)
    return None


def named(ended: Ended) -> bool:
    """Whether it was refused as a mistake: lines that begin with `error: ` and exit code 2, which DVC may have wrapped."""
    lines = [line for line in ended.errors.splitlines() if line.startswith("error: ")]
    own = ended.code == MISTAKE and all(
        line.startswith(("error: ", "usage: ", " ")) or not line for line in _own(ended)
    )
    return bool(lines) and (own or f"exited with {MISTAKE}" in ended.text)


def usage(ended: Ended) -> bool:
    """Whether the command line itself was refused, as argparse does."""
    return ended.code == MISTAKE and "error: " in ended.errors


def _own(ended: Ended) -> list[str]:
    return [line for line in ended.errors.splitlines() if not line.startswith(("ERROR: ", "WARNING: ", "Traceback"))]


def message(ended: Ended) -> str:
    lines = [line for line in ended.errors.splitlines() if line.startswith("error: ")]
    return " / ".join(lines)[:400] or _tail(ended.text)


def _tail(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return " | ".join(lines[-3:])[-400:]


def table(outcomes: Iterable[tuple[str, Outcome]]) -> str:
    """A row for each kind of trial: how many were tried, and how many ended in each way."""
    counts: dict[str, Counter[str]] = {}
    for kind, outcome in outcomes:
        counts.setdefault(kind, Counter())[outcome.verdict] += 1
    heads = ("kind", "tried", *GOOD, *BAD)
    rows = [
        (kind, sum(found.values()), *(found[verdict] for verdict in (*GOOD, *BAD))) for kind, found in counts.items()
    ]
    rows.append(("all", *(sum(row[k] for row in rows) for k in range(1, len(heads)))))
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in (heads, ["---"] * len(heads), *rows)]
    return "\n".join(lines)
