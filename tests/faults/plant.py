"""Plants faults in the source, one at a time, and sees which test notices: `python -m tests.faults.plant [FILTER]`.

Works on a copy of the tree in a temporary folder, so that nothing of the user's is ever changed, however the tool ends.
Prints a table: fault, file, the test that failed first, or SURVIVED. Exit code 1 if one survived or could not be planted.
"""

import argparse
import ast
import contextlib
import functools
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

from tests.faults.planted import FAULTS, Fault

ROOT = Path(__file__).resolve().parents[2]
SURVIVED, STALE, UNSOUND = "SURVIVED", "NOT PLANTED", "FAILS WITHOUT ANY FAULT TOO"
HANG_SECONDS = 600.0
ENDLESS = "a test that never ended"
# pytest's exit codes for a failed test, for tests that cannot even be collected, and where none has the marks
FAILED, BROKEN, NONE_OF_THEM = 1, 2, 5


@dataclass(frozen=True)
class Found:
    """What came of a fault: the test that noticed, or SURVIVED, or why nothing can be said of it."""

    fault: Fault
    caught_by: str
    seconds: float

    @property
    def bad(self) -> bool:
        return self.caught_by.startswith((SURVIVED, STALE, UNSOUND))


def main(arguments: Sequence[str] | None = None) -> int:
    asked = _parser().parse_args(arguments)
    chosen = [fault for fault in FAULTS if re.search(asked.filter, f"{fault.group} {fault.file} {fault.means}")]
    if asked.list:
        print("\n".join(_line(fault, why_not(fault, ROOT) or "can be planted") for fault in chosen))
        return 1 if any(why_not(fault, ROOT) for fault in chosen) else 0
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(143))
    with _copies(asked.jobs) as trees:
        found = list(_plant(chosen, trees))
    print(summary(found))
    return 1 if any(each.bad for each in found) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.plant", description=__doc__.splitlines()[0])
    parser.add_argument("filter", nargs="?", default="", help="a regular expression over group, file and meaning")
    parser.add_argument(
        "--list", action="store_true", help="only say which faults there are and whether their text is found"
    )
    parser.add_argument("--jobs", type=int, default=1, help="processes at the same time; %(default)s unless told")
    return parser


@contextlib.contextmanager
def _copies(count: int) -> Iterator[list[Path]]:
    """Trees to work on: what git tracks, as it stands in the working tree, and the environment by a link."""
    names = (
        subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.decode().split("\0")
    )
    with tempfile.TemporaryDirectory(prefix="planted-") as folder:
        trees = [Path(folder) / str(number) for number in range(count)]
        for tree in trees:
            for name in filter(None, names):
                if (ROOT / name).is_file():
                    (tree / name).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy2(ROOT / name, tree / name)
            subprocess.run(["git", "init", "--quiet", str(tree)], check=True)  # without one DVC reads no graph
        yield trees


def _plant(chosen: Sequence[Fault], trees: list[Path]) -> Iterator[Found]:
    free: SimpleQueue[Path] = SimpleQueue()
    for tree in trees:
        free.put(tree)

    def one(fault: Fault) -> Found:
        tree = free.get()
        try:
            found = try_one(fault, tree)
        finally:
            free.put(tree)
        print(_line(fault, f"{found.caught_by} ({found.seconds:.0f} s)"), flush=True)
        return found

    with ThreadPoolExecutor(len(trees)) as pool:
        yield from pool.map(one, chosen)


def why_not(fault: Fault, tree: Path) -> str | None:
    """Why the fault cannot be planted: its text must be found exactly once, what comes of it be Python, which any test would
    notice otherwise, and its tests be there. None if it can."""
    path = tree / fault.file
    count = path.read_text().count(fault.old) if path.is_file() else 0
    if missing := [test for test in fault.tests if not (tree / test).is_file()]:
        return f"{STALE}: there is no {missing[0]}"
    if count != 1:
        return f"{STALE}: its text is found {count} times in {fault.file}"
    return None if _is_read(path, fault) else f"{STALE}: it leaves {fault.file} as no Python"


def _is_read(path: Path, fault: Fault) -> bool:
    try:
        ast.parse(path.read_text().replace(fault.old, fault.new) if path.suffix == ".py" else "")
    except SyntaxError:
        return False
    return True


def try_one(fault: Fault, tree: Path) -> Found:
    """Plants it in `tree`, runs its tests, and takes it out again; the test that noticed must then pass."""
    begun = time.monotonic()
    if reason := why_not(fault, tree):
        return Found(fault, reason, 0.0)
    path = tree / fault.file
    sound, times = path.read_text(), path.stat()
    try:
        path.write_text(sound.replace(fault.old, fault.new))
        os.utime(path, (time.time(), time.time() + 10))  # no compiled file of the sound text may be taken for it
        caught_by = next(filter(None, (_failure(tree, list(fault.tests), marks) for marks in fault.marks)), SURVIVED)
    finally:
        path.write_text(sound)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    if not caught_by.startswith((SURVIVED, STALE)) and _fails(tree, caught_by):
        caught_by = f"{UNSOUND}: {caught_by}"
    return Found(fault, caught_by, time.monotonic() - begun)


@functools.cache
def _fails(tree: Path, test: str) -> bool:
    """Whether a test fails in the sound tree: then it has noticed nothing. Asked once of each tree and test."""
    return test != ENDLESS and _failure(tree, [test.partition("[")[0]], "not server") is not None


def _failure(tree: Path, tests: list[str], marks: str) -> str | None:
    """The first test that fails, or None."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-m", marks, "--tb=no", *tests]
    # the path: what a test starts in another folder must find this tree too, not the one that the environment names
    environ = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(tree)}
    run = subprocess.Popen(
        command,
        cwd=tree,
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        said, _ = run.communicate(timeout=HANG_SECONDS)
    except subprocess.TimeoutExpired:
        return ENDLESS
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(run.pid, signal.SIGKILL)  # its own group: the tests and what they started
    if run.returncode in (0, NONE_OF_THEM):
        return None
    if run.returncode not in (FAILED, BROKEN):
        return f"{STALE}: pytest's exit code is {run.returncode}: {said.strip().splitlines()[-1:]}"
    named = re.search(r"^(?:FAILED|ERROR) (\S+)", said, re.MULTILINE)
    return named[1] if named else tests[0]


def _line(fault: Fault, told: str) -> str:
    return f"{fault.group:<9} {fault.file:<36} {fault.means:<74} {told}"


def summary(found: Sequence[Found]) -> str:
    """A row for each fault and a last line of counts."""
    rows = [f"| {f.fault.group} | {f.fault.file} | {f.fault.means} | {f.caught_by} |" for f in found]
    counts = {}
    for each in found:
        caught, tried = counts.get(each.fault.group, (0, 0))
        counts[each.fault.group] = caught + (not each.bad), tried + 1
    told = "; ".join(f"{group}: {caught} of {tried} caught" for group, (caught, tried) in counts.items())
    return "\n".join(["", "| group | file | fault | noticed by |", "|---|---|---|---|", *rows, "", told])


if __name__ == "__main__":
    sys.exit(main())
