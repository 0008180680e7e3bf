"""One trial: a copy of the finished pipeline, something done to it, the commands a person would run, and the verdict."""

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.faults import pipeline, verdict
from tests.faults.desk import Desk, Ended, remove
from tests.faults.verdict import Outcome, Record

ROUNDS = 4
TRIES = 2
"""How often the same command may be needed again."""


@dataclass(frozen=True)
class Case:
    """A trial to be: the row of the table that counts it, what is done, and how; made of the seed and its number alone."""

    kind: str
    what: str
    run: Callable[["Trial"], Outcome]


@dataclass
class Trial:
    """desk: runs commands. template: the finished pipeline. folder: this trial's copy. expected: the template's state."""

    desk: Desk
    template: Path
    folder: Path
    expected: dict[str, str]
    record: Record = field(default_factory=Record)
    moved: set[str] = field(default_factory=set)
    """What a refusal told the person to move away, who may keep it."""

    def begin(self) -> Path:
        return pipeline.copy(self.template, self.folder)

    def end(self) -> None:
        remove(self.folder)
        remove(self.desk.scratch / "tmp")
        (self.desk.scratch / "tmp").mkdir()

    def call(self, *words: str, **how: Any) -> Ended:
        return self.record.note(self.desk.call(self.folder, *words, **how))

    def again(self, *words: str, among: list[str] | None = None, **how: Any) -> Outcome:
        """The same command, at most twice; its outcome must be the undisturbed one, or be named and mended as it says."""
        ended = None
        for _ in range(TRIES):
            ended = self.call(*words, **how)
            if found := verdict.fault(ended):
                return self.record.outcome(*found)
            if ended.code == 0:
                return self.compare("identical", "", among)
        if not verdict.named(ended):
            return self.record.outcome("manual", f"exit {ended.code}: {verdict.message(ended)}")
        return self.mended(ended, words, among)

    def mended(self, refused: Ended, words: tuple[str, ...], among: list[str] | None = None) -> Outcome:
        """Does what a refusal says, then the same command again; more than once where more than one thing is broken."""
        said, ended = [], refused
        for _ in range(ROUNDS):
            said.append(verdict.message(ended))
            todo = remedies(said[-1], words)
            if not todo:
                return self.record.outcome("manual", f"no remedy is named: {said[-1]}")
            for remedy in todo:
                self.follow(remedy)
            ended = self.call(*words)
            if found := verdict.fault(ended):
                return self.record.outcome(*found)
            if ended.code == 0:
                return self.compare("named", said[0], among)
            if not verdict.named(ended) or verdict.message(ended) in said:
                break
        return self.record.outcome("manual", f"its remedy does not help: {said[0]}; then {verdict.message(ended)}")

    def follow(self, remedy: tuple[str, ...], deeper: int = 2) -> None:
        if remedy[0] in ("rm", "mv", "chmod"):
            subprocess.run(remedy, cwd=self.folder, check=False)
            self.moved |= {os.path.relpath(self.folder / remedy[-1], self.folder)} if remedy[0] == "mv" else set()
            self.record.commands.append(shlex.join(remedy))
        elif remedy[0] == "restore":
            restore(self.template, self.folder, remedy[1])
            self.record.commands.append(f"restore {remedy[1]}")
        else:
            ended = self.call(*remedy)
            if deeper and verdict.named(ended):  # it names a thing that must be mended first
                for earlier in remedies(verdict.message(ended), remedy):
                    self.follow(earlier, deeper - 1)
                self.call(*remedy)

    def compare(self, good: str, detail: str, among: list[str] | None = None) -> Outcome:
        """The verdict on what lies there after a command that ended well."""
        if wrong := pipeline.differences(self.folder, self.expected, among):
            return self.record.outcome("silent", f"differs: {', '.join(wrong[:6])}")
        found = pipeline.litter(self.folder, self.template)
        if left := [name for name in found if name not in self.moved and (not among or name.startswith("art"))]:
            return self.record.outcome("manual", f"left behind: {', '.join(left[:6])}")
        return self.record.outcome(good, detail)


USERS_OWN = ("params.yaml", "dvc.yaml", ".dvc/config")
"""What only the user can write again."""


def remedies(said: str, words: tuple[str, ...]) -> list[tuple[str, ...]]:
    """The commands that a refusal names, in order."""
    found: list[tuple[str, ...]] = []
    for quoted in re.findall(r"`([^`]+)`", said):
        found += _command(quoted)
    word = r"`?([a-z]+(?:[ @][a-z0-9_]+)?)`?"
    for pattern in (rf"(?:run|with) the stage {word}", rf"(?:run|with) the {word} stage"):
        found += [_stage(name) for name in re.findall(pattern, said)]
    found += [
        ("rm", "-rf", path) for path in re.findall(r"\b(?:remove|delete) (?:the file )?([\w./-]*[./][\w./-]*)", said)
    ]
    if re.search(r"(?:run|with) (?:the|a) stage that (makes|writes|made|wrote) (it|them)", said):
        found += [maker for maker in map(_maker, re.findall(r"[\w./@-]+", said)) if maker]
    if re.search(r"make run|distill run|same command|run (it|this|that) again|try again|run the pipeline", said):
        found.append(words if words[0] != "run" else ("run",))
    found += [("restore", name) for name in USERS_OWN if name in said and not found]
    return [command for k, command in enumerate(found) if command and command not in found[:k]]


def _command(quoted: str) -> list[tuple[str, ...]]:
    words = tuple(shlex.split(quoted))
    if words[:1] == ("rm",) or words[:1] == ("mv",):
        return [words]
    if words[:2] == ("make", "run"):
        return [("run",)]
    if words[:1] == ("dvc",):
        return [words]
    if words[:1] in (("./stage",), ("distill",)):
        return [words[1:]] if words[-1] != "--help" else []
    return [words[3:]] if words[1:3] == ("-m", "tasks") else []


def _stage(name: str) -> tuple[str, ...]:
    words = tuple(name.replace("@", " ").split())
    return words if " ".join(words) in pipeline.STAGES else ()


def _maker(path: str) -> tuple[str, ...]:
    """The stage that writes the path."""
    for stage, places in pipeline.STAGES.items():
        if any(path == place or path.startswith(f"{place}/") or place.endswith(f"/{path}") for place in places):
            return tuple(stage.split())
    return ()


def restore(template: Path, folder: Path, name: str) -> None:
    """Puts one file back, as its owner would from a backup."""
    target = folder / name
    remove(target) if target.is_dir() else target.unlink(missing_ok=True)
    shutil.copy2(template / name, target)
