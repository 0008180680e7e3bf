"""A fault campaign on the real commands: `python -m tests.faults.campaign [kills|corruptions|inputs|environments|all]`.

Makes a very small pipeline in a scratch folder, runs it once undisturbed, and then breaks a copy of it in one way for each
trial. Ends with a table, and with every trial that failed and what repeats it. Exit code 1 if there is one. Case K of a kind
is made of (seed, K) alone: `--case K` runs it by itself. Verdicts never depend on how fast anything is.
"""

import argparse
import contextlib
import ctypes
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.faults import pipeline, verdict
from tests.faults.desk import QUIET, Desk, remove, warm
from tests.faults.trial import Case, Trial
from tests.faults.verdict import Outcome

COUNTS = {"kills": 210, "corruptions": 170, "inputs": 320, "environments": 44}
"""How many trials of each kind, unless told."""


def main(arguments: list[str] | None = None) -> int:
    asked = _parser().parse_args(arguments)
    kinds = list(COUNTS) if asked.kind == "all" else [asked.kind]
    with _scratch(asked.scratch) as scratch:
        os.environ.update(QUIET | {"HOME": str(scratch / "home"), "TMPDIR": str(scratch / "tmp")})
        begun = time.monotonic()
        warm()
        book = _Book(asked.seed, Path(asked.out) if asked.out else None)
        trial = _first(scratch)
        book.say(f"the small pipeline is made and has run undisturbed ({time.monotonic() - begun:.0f} s)")
        for kind in kinds:
            found = _cases(kind, asked, trial)
            chosen = [pair for pair in enumerate(found) if re.search(asked.like, f"{pair[1].kind}: {pair[1].what}")]
            chosen = chosen if asked.case is None else [(asked.case, found[asked.case])]
            for number, outcome in _run(chosen, trial, asked.jobs):
                book.enter(kind, number, found[number], outcome)
        book.close(time.monotonic() - begun)
    return 1 if book.failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.campaign", description=__doc__.splitlines()[0])
    parser.add_argument("kind", nargs="?", default="all", choices=[*COUNTS, "all"])
    parser.add_argument("--seed", type=int, default=0, help="of what is done where; %(default)s unless told")
    parser.add_argument(
        "--count", type=int, help="trials of each kind; " + ", ".join(f"{k} {n}" for k, n in COUNTS.items())
    )
    parser.add_argument("--case", type=int, help="this one alone, by its number")
    parser.add_argument("--like", default="", help="only those whose sort or words this regular expression finds")
    parser.add_argument("--jobs", type=int, default=2, help="trials at the same time; %(default)s unless told")
    parser.add_argument("--out", help="a file for the table and the failed trials")
    parser.add_argument("--scratch", type=Path, help="where trials lie; a folder of the system's unless told")
    return parser


@contextlib.contextmanager
def _scratch(root: Path | None) -> Iterator[Path]:
    if root is not None:
        root.mkdir(parents=True, exist_ok=True)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(143))
    folder = Path(tempfile.mkdtemp(prefix="faults-", dir=root)).resolve()
    try:
        yield folder
    finally:
        remove(folder)


def _first(scratch: Path) -> Trial:
    """The template, finished, and what must come out of every trial."""
    desk, template = Desk(scratch / "d0000"), scratch / "t0000"
    pipeline.make(template)
    pipeline.finish(desk, template)
    return Trial(desk, template, scratch / "r0000", pipeline.state(template))


def _cases(kind: str, asked: argparse.Namespace, trial: Trial) -> list[Case]:
    from tests.faults import corruptions, environments, inputs, kills

    count = asked.count or COUNTS[kind]
    if kind == "kills":
        return kills.cases(asked.seed, count, kills.rehearse(trial))
    return {"corruptions": corruptions, "inputs": inputs, "environments": environments}[kind].cases(asked.seed, count)


def _run(cases: list[tuple[int, Case]], trial: Trial, jobs: int) -> Iterator[tuple[int, Outcome]]:
    """The cases in `jobs` processes, forked from this warm one; each takes the next that is left."""
    read, write = os.pipe()
    todo, done = os.pipe()
    for place in range(len(cases)):  # a pipe holds 64 KiB: 16 thousand of these
        os.write(done, place.to_bytes(4, "little"))
    os.close(done)
    workers = [_worker(cases, trial, todo, write, job) for job in range(min(jobs, len(cases)))]
    os.close(write)
    os.close(todo)
    try:
        with open(read) as lines:
            for line in lines:
                number, *parts = json.loads(line)
                yield number, Outcome(*parts)
    finally:
        for pid in workers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        for pid in workers:
            os.waitpid(pid, 0)


def _worker(cases: list[tuple[int, Case]], trial: Trial, todo: int, answers: int, job: int) -> int:
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 0
    try:
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # with the campaign
        scratch = trial.template.parent
        desk = Desk(scratch / f"d{job + 1:04}")
        while place := os.read(todo, 4):
            number, case = cases[int.from_bytes(place, "little")]
            outcome = _try(case, Trial(desk, trial.template, scratch / f"w{number:04}", trial.expected))
            line = json.dumps([number, outcome.verdict, outcome.detail, list(outcome.commands)])
            os.write(answers, f"{line}\n".encode())  # shorter than PIPE_BUF, so lines never mix
    except SystemExit:
        code = 143
    finally:
        os._exit(code)


def _try(case: Case, trial: Trial) -> Outcome:
    try:
        outcome = case.run(trial)
    except Exception as error:  # the campaign's own fault must be seen, and must not end it
        outcome = trial.record.outcome("manual", f"the trial itself failed: {type(error).__name__}: {error}")
    finally:
        trial.end()
    return Outcome(outcome.verdict, outcome.detail[:1200], tuple(word[:200] for word in outcome.commands[:12]))


class _Book:
    """What was found, told as it comes and written down at the end."""

    def __init__(self, seed: int, path: Path | None):
        self.seed, self.path, self.found = seed, path, []

    @property
    def failed(self) -> list[tuple[str, int, Case, Outcome]]:
        return sorted((entry for entry in self.found if entry[3].bad), key=lambda entry: entry[:2])

    def say(self, text: str) -> None:
        print(text.encode(errors="backslashreplace").decode(), flush=True)

    def enter(self, kind: str, number: int, case: Case, outcome: Outcome) -> None:
        self.found.append((kind, number, case, outcome))
        if outcome.bad:
            told = "; ".join(outcome.commands)
            self.say(f"{kind} {number}: {outcome.verdict.upper()}: {case.what}: {outcome.detail} [{told}]")
        elif len(self.found) % 20 == 0:
            self.say(f"{len(self.found)} trials, {len(self.failed)} failed")

    def close(self, seconds: float) -> None:
        text = "\n".join(
            [self.header(seconds), "", verdict.table((c.kind, o) for _, _, c, o in self.found), "", *self.cases()]
        )
        self.say(text)
        if self.path is not None:
            self.path.write_text(text + "\n", errors="backslashreplace")
            named = [f"{kind} {k}: {case.what}: {o.verdict}: {o.detail}" for kind, k, case, o in self.found]
            self.path.with_suffix(".all").write_text("\n".join(named) + "\n", errors="backslashreplace")

    def header(self, seconds: float) -> str:
        head = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=pipeline.ROOT, capture_output=True, text=True
        )
        used = os.times()
        cpu = used.user + used.system + used.children_user + used.children_system
        commit = head.stdout.strip() if shutil.which("git") else "unknown"
        return f"commit {commit}, seed {self.seed}, {len(self.found)} trials, {seconds:.0f} s, {cpu:.0f} s of CPU"

    def cases(self) -> list[str]:
        lines = []
        for kind, number, case, outcome in self.failed:
            lines.append(f"- {outcome.verdict}: {case.what}: {outcome.detail}")
            lines += [f"    {command}" for command in outcome.commands]
            lines.append(f"    again: python -m tests.faults.campaign {kind} --seed {self.seed} --case {number}")
        return lines or ["no trial failed"]


if __name__ == "__main__":
    sys.exit(main())
