"""Every artifact on the disk, damaged in every way; then the commands that read it."""

import random
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.faults import pipeline, verdict
from tests.faults.desk import remove
from tests.faults.trial import USERS_OWN, Case, Trial, restore
from tests.faults.verdict import Outcome

READERS = {
    "artifacts/data/*.tar": ["features", "train teacher", "gamma", "measure teacher"],
    "artifacts/data/manifest.json": ["features", "train teacher", "gamma", "measure teacher"],
    "artifacts/text/manifest.json": ["train teacher", "gamma", "measure teacher"],
    "artifacts/features/*": ["measure pd2"],
    "artifacts/checkpoints/teacher/unet/*.safetensors": ["train pd2", "gamma", "measure teacher", "publish"],
    "artifacts/checkpoints/*/unet/*.safetensors": ["measure teacher", "measure pd2", "measure cd", "publish"],
    "artifacts/checkpoints/*/unet/config.json": ["measure teacher", "measure pd2", "measure cd", "publish"],
    "artifacts/checkpoints/*/scheduler/*.json": ["measure teacher", "measure pd2", "measure cd", "publish"],
    "artifacts/checkpoints/*/model_index.json": ["measure teacher", "measure pd2", "measure cd", "publish"],
    "artifacts/checkpoints/*/card.json": ["measure teacher", "measure pd2", "measure cd", "publish"],
    "artifacts/gamma.json": ["search", "measure pd2", "publish"],
    "artifacts/trajectory.json": ["measure pd2"],
    "artifacts/points/*/*": ["frontier"],
    "artifacts/reference/*/*": ["measure pd2"],
    "artifacts/frontier.json": ["report", "publish"],
    "artifacts/frontier.csv": ["publish"],
    "artifacts/frontier.png": ["publish"],
    "artifacts/samples/*.png": ["publish"],
    "artifacts/curves/*.csv": ["frontier", "publish"],
    "artifacts/cost/*.json": ["frontier", "publish"],
    "artifacts/report.html": ["publish"],
    "artifacts/published.json": ["report"],
    ".resume/teacher-*/step-*/state.json": ["train teacher"],
    ".resume/teacher-*/step-*/state.safetensors": ["train teacher"],
    ".resume/pd2-*/step-*/state.*": ["train pd2"],
    "mlflow.db": ["publish"],
    "params.yaml": ["check"],
    "dvc.yaml": ["train teacher"],
    "dvc.lock": [],
    ".dvc/cache/files/md5/*/*": [],
    ".dvc/cache/runs/*/*/*": [],
    ".dvc/tmp/rwlock": [],
    ".dvc/tmp/lock": [],
    ".dvc/config": [],
}
"""Where artifacts lie, and the stages that read them by themselves; `./stage run` reads all of them too."""


def flip(path: Path, rng: random.Random, others: list[Path]) -> None:
    content = bytearray(path.read_bytes() or b"\0")
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    _write(path, bytes(content))


def digit(path: Path, rng: random.Random, others: list[Path]) -> None:
    """Another number where a number stands; a flipped bit where none does."""
    content = path.read_bytes()
    places = [found.start() for found in re.finditer(rb"(?<=[\d.])\d", content)]
    if not places or b"\0" in content:
        flip(path, rng, others)
        return
    place = rng.choice(places)
    changed = b"%d" % ((content[place] - 48 + rng.randint(1, 9)) % 10)
    _write(path, content[:place] + changed + content[place + 1 :])


def truncate(path: Path, rng: random.Random, others: list[Path]) -> None:
    content = path.read_bytes()
    _write(path, content[: rng.randrange(1, max(2, len(content)))])


def empty(path: Path, rng: random.Random, others: list[Path]) -> None:
    _write(path, b"")


def delete(path: Path, rng: random.Random, others: list[Path]) -> None:
    path.unlink()


def swap(path: Path, rng: random.Random, others: list[Path]) -> None:
    """With another file of its sort, or with any other artifact."""
    other = rng.choice(others)
    one, two = path.read_bytes(), other.read_bytes()
    _write(path, two)
    _write(other, one)


def folder(path: Path, rng: random.Random, others: list[Path]) -> None:
    path.unlink()
    path.mkdir()


def garbage(path: Path, rng: random.Random, others: list[Path]) -> None:
    _write(path, rng.randbytes(rng.choice([1, 100, 5000])))


def _write(path: Path, content: bytes) -> None:
    path.chmod(0o644)  # DVC's cache is read-only
    path.unlink()
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path, random.Random, list[Path]], None]] = {
    "a bit flipped": flip,
    "a digit changed": digit,
    "truncated": truncate,
    "emptied": empty,
    "deleted": delete,
    "swapped with another": swap,
    "a folder in its place": folder,
    "garbage in its place": garbage,
}


@dataclass(frozen=True)
class Plan:
    pattern: str
    damage: str
    reader: str


def plans() -> Iterator[Plan]:
    """Every artifact with every damage and every reader, `./stage run` the last."""
    for pattern, readers in READERS.items():
        for damage in DAMAGES:
            for reader in (*readers, "run"):
                if not (reader == "run" and pattern in ("artifacts/checkpoints/teacher/unet/*.safetensors",)):
                    yield Plan(pattern, damage, reader)


def cases(seed: int, count: int) -> list[Case]:
    """The first `count` of all plans in an order that `seed` shuffles, but so that every artifact has its turn."""
    groups: dict[str, list[Plan]] = {}
    for plan in plans():
        groups.setdefault(plan.pattern, []).append(plan)
    for pattern, group in groups.items():
        random.Random(f"{seed}/{pattern}").shuffle(group)
    dealt = [group[k] for k in range(max(map(len, groups.values()))) for group in groups.values() if k < len(group)]
    return [_case(plan, random.Random(f"{seed}/{plan}")) for plan in dealt[:count]]


def _case(plan: Plan, rng: random.Random) -> Case:
    where = plan.pattern.split("/")[0] if plan.pattern.startswith(".") else plan.pattern
    sort = "what DVC and MLflow keep" if where in (".dvc", "dvc.lock", "mlflow.db") else "artifacts"

    def run(trial: Trial) -> Outcome:
        made = trial.begin()
        path = damage(made, plan, rng)
        trial.record.commands.append(f"{path.relative_to(made)}: {plan.damage}")
        return _read(trial, plan, path)

    return Case(f"corruptions: {sort}", f"{plan.pattern}: {plan.damage}, then ./stage {plan.reader}", run)


def damage(made: Path, plan: Plan, rng: random.Random) -> Path:
    """Does it, and takes away what would have to be restored from there."""
    found = sorted(path for path in made.glob(plan.pattern) if path.is_file() and not path.is_symlink())
    path = rng.choice(found)
    alike = [other for other in found if other != path]
    others = alike or sorted(other for other in made.glob("artifacts/*.*") if other != path)
    DAMAGES[plan.damage](path, rng, others)
    if plan.pattern.startswith(".resume"):
        for place in pipeline.STAGES[plan.reader if plan.reader != "run" else "train teacher"]:
            target = made / place
            remove(target) if target.is_dir() else target.unlink(missing_ok=True)
        if plan.reader == "run":
            remove(made / ".dvc" / "cache" / "runs")
    if plan.pattern.startswith(".dvc/cache"):
        for place in ("artifacts", "mlflow.db", "mlruns"):
            target = made / place
            remove(target) if target.is_dir() else target.unlink()
    return path


def _read(trial: Trial, plan: Plan, path: Path) -> Outcome:
    words = tuple(plan.reader.split())
    among = None if plan.reader == "run" else pipeline.STAGES.get(plan.reader, ["none"])
    ended = trial.call(*words)
    if found := verdict.fault(ended):
        return trial.record.outcome(*found)
    if ended.code == 0:
        return _quiet(trial, plan, path, among)
    if not verdict.named(ended):
        return trial.record.outcome("manual", f"exit {ended.code}: {verdict.message(ended)}")
    name = str(path.relative_to(trial.folder))
    if name in USERS_OWN:  # the user's own file: only he can write it again
        restore(trial.template, trial.folder, name)
        return trial.again(*words, among=among) if name in verdict.message(ended) else _unnamed(trial, name, ended)
    return trial.mended(ended, words, among)


def _unnamed(trial: Trial, name: str, ended) -> Outcome:
    return trial.record.outcome("manual", f"{name} is not named: {verdict.message(ended)}")


def _quiet(trial: Trial, plan: Plan, path: Path, among: list[str] | None) -> Outcome:
    """Not a word was said: all must be as it was, or the file be one that the user may write as he likes."""
    name = str(path.relative_to(trial.folder))
    if name in ("params.yaml", "dvc.yaml") and path.is_file():
        return trial.record.outcome("taken", "another valid file")
    if plan.reader == "report":
        return _told_the_same(trial, path)
    return trial.compare("identical", "", among)


def _told_the_same(trial: Trial, path: Path) -> Outcome:
    """`report` writes nothing; what it prints must be what it prints of the undamaged files."""
    damaged, name = trial.call("report"), str(path.relative_to(trial.folder))
    shutil.rmtree(trial.folder / "artifacts")
    shutil.copytree(trial.template / "artifacts", trial.folder / "artifacts")
    whole = trial.call("report")
    same = damaged.said == whole.said
    if not same and f"no {name}" in damaged.said:
        return trial.record.outcome("named", f"there is no {name}")
    return trial.record.outcome("identical" if same else "silent", "" if same else "report says other things")
