"""Odd surroundings: users, homes, variables, closed ends, full disks, little memory. One line, or the same bytes."""

import os
import random
import resource
import signal
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from tests.faults import kills, pipeline, verdict
from tests.faults.desk import HANG_SECONDS, Ended, limit, remove
from tests.faults.strike import Strike
from tests.faults.trial import Case, Trial
from tests.faults.verdict import Outcome

MIB = 1 << 20


@dataclass(frozen=True)
class Surroundings:
    """words: the command. variables: laid over the usual, None takes one away. strike: what fails, from which event on.

    prepare: called in the process before it begins. stale: stages that have to be made again. real: a process from its very
    start, since what is odd matters while Python starts.
    """

    what: str
    words: str
    variables: Mapping[str, str | None] = field(default_factory=dict)
    strike: Strike | None = None
    prepare: Callable[[], None] = lambda: None
    stale: tuple[str, ...] = ()
    real: bool = False


def _user(uid: int) -> Callable[[], None]:
    def become() -> None:
        if os.getuid() == 0:
            os.setgroups([])
            os.setgid(uid)
            os.setuid(uid)

    return become


def _closed(*descriptors: int) -> Callable[[], None]:
    return lambda: [os.close(descriptor) for descriptor in descriptors] and None


def _to(path: str, *descriptors: int) -> Callable[[], None]:
    def change() -> None:
        opened = os.open(path, os.O_RDWR)
        for descriptor in descriptors:
            os.dup2(opened, descriptor)

    return change


def _masked() -> None:
    os.umask(0o777)


def _deaf() -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def _broken_pipe() -> None:
    read, write = os.pipe()
    os.close(read)
    os.dup2(write, 1)


def surroundings() -> list[Surroundings]:
    """All of them."""
    found = [
        Surroundings("no HOME", "shard", {"HOME": None}, stale=("shard",), real=True),
        Surroundings("a HOME that is not there", "run", {"HOME": "/proc/nonexistent"}, real=True),
        Surroundings("a HOME that is a file", "publish", {"HOME": "/dev/null"}, real=True),
        Surroundings(
            "a TMPDIR that is not there",
            "measure teacher",
            {"TMPDIR": "/proc/nonexistent"},
            stale=("measure teacher",),
            real=True,
        ),
        Surroundings(
            "a TMPDIR that is not there", "publish", {"TMPDIR": "/proc/nonexistent"}, stale=("publish",), real=True
        ),
        Surroundings(
            "no variables at all", "check", {"PATH": None, "HOME": None, "LANG": None, "TMPDIR": None}, real=True
        ),
        Surroundings("a user that the system does not know", "run", prepare=_user(54321), real=True),
        Surroundings("a user that the system does not know", "check", prepare=_user(54321), real=True),
        Surroundings("LANG=C", "report", {"LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0"}, real=True),
        Surroundings("an output that knows ASCII alone", "report", {"PYTHONIOENCODING": "ascii"}, real=True),
        Surroundings("OMP_NUM_THREADS is a word", "gamma", {"OMP_NUM_THREADS": "many"}, stale=("gamma",), real=True),
        Surroundings("OMP_NUM_THREADS is huge", "gamma", {"OMP_NUM_THREADS": "99999999"}, stale=("gamma",), real=True),
        Surroundings(
            "CUDA_VISIBLE_DEVICES is a word", "gamma", {"CUDA_VISIBLE_DEVICES": "x,-3"}, stale=("gamma",), real=True
        ),
        Surroundings(
            "MPLCONFIGDIR is not there",
            "measure teacher",
            {"MPLCONFIGDIR": "/proc/nonexistent/x"},
            stale=("measure teacher",),
            real=True,
        ),
        Surroundings("DISTILL_PYTHON is not there", "check", {"DISTILL_PYTHON": "/proc/nonexistent/python"}, real=True),
        Surroundings("DISTILL_PYTHON is a folder", "check", {"DISTILL_PYTHON": "/tmp"}, real=True),
        Surroundings("PYTHONPATH is garbage", "check", {"PYTHONPATH": "/proc/nonexistent:\n:x"}, real=True),
        Surroundings(
            "ACCELERATE_MIXED_PRECISION is garbage",
            "train teacher",
            {"ACCELERATE_MIXED_PRECISION": "x"},
            stale=("train teacher",),
        ),
        Surroundings(
            "WORLD_SIZE is garbage", "train teacher", {"WORLD_SIZE": "x", "LOCAL_RANK": "y"}, stale=("train teacher",)
        ),
        Surroundings("closed input", "shard", prepare=_closed(0), stale=("shard",)),
        Surroundings("closed output", "shard", prepare=_closed(1), stale=("shard",), real=True),
        Surroundings("closed ends, all", "shard", prepare=_closed(0, 1, 2), stale=("shard",), real=True),
        Surroundings("closed ends, all", "run", prepare=_closed(0, 1, 2), stale=("publish",), real=True),
        Surroundings("a full output", "shard", prepare=_to("/dev/full", 1), stale=("shard",)),
        Surroundings("a full output", "report", prepare=_to("/dev/full", 1)),
        Surroundings("an output that nobody reads", "gamma", prepare=_broken_pipe, stale=("gamma",)),
        Surroundings("signals ignored", "train teacher", prepare=_deaf, stale=("train teacher",)),
        Surroundings("a umask that takes all", "gamma", prepare=_masked, stale=("gamma",)),
    ]
    for uri in (
        "garbage",
        "http://127.0.0.1:9",
        "http://user:secret@127.0.0.1:9",
        "sqlite:////proc/nonexistent/x.db",
        "file:///proc/x",
    ):
        found.append(
            Surroundings(f"MLFLOW_TRACKING_URI={uri}", "publish", {"MLFLOW_TRACKING_URI": uri}, stale=("publish",))
        )
    for stage in (
        "draw",
        "shard",
        "encode",
        "features",
        "train teacher",
        "train pd2",
        "gamma",
        "search",
        "measure teacher",
        "frontier",
        "publish",
    ):
        for name, at in (("ENOSPC", 3), ("EROFS", 1), ("EACCES", 2)):
            found.append(Surroundings(f"{name} from event {at} on", stage, strike=Strike(at, name), stale=(stage,)))
        found.append(
            Surroundings("files of 20 kB at most", stage, prepare=limit(resource.RLIMIT_FSIZE, 20_000), stale=(stage,))
        )
    found += [
        Surroundings(
            "no more than 12 open files",
            "measure teacher",
            prepare=limit(resource.RLIMIT_NOFILE, 12),
            stale=("measure teacher",),
        ),
        Surroundings(
            "no more than 20 open files", "publish", prepare=limit(resource.RLIMIT_NOFILE, 20), stale=("publish",)
        ),
        Surroundings("no more than 24 open files", "run", prepare=limit(resource.RLIMIT_NOFILE, 24), stale=("search",)),
        Surroundings(
            "1200 MiB of memory",
            "train teacher",
            prepare=limit(resource.RLIMIT_AS, 1200 * MIB),
            stale=("train teacher",),
            real=True,
        ),
        Surroundings(
            "600 MiB of memory",
            "measure teacher",
            prepare=limit(resource.RLIMIT_AS, 600 * MIB),
            stale=("measure teacher",),
            real=True,
        ),
        Surroundings("200 MiB of memory", "check", prepare=limit(resource.RLIMIT_AS, 200 * MIB), real=True),
        Surroundings(
            "ENOSPC in dvc.lock", "run", strike=Strike(1, "ENOSPC", r"(write|open) dvc\.lock"), stale=("search",)
        ),
        Surroundings("ENOSPC in DVC's cache", "run", strike=Strike(1, "ENOSPC", r"\.dvc/cache"), stale=("search",)),
        Surroundings("EROFS for all of DVC", "run", strike=Strike(1, "EROFS"), stale=("search",)),
        Surroundings("EACCES for all of DVC", "run", strike=Strike(1, "EACCES"), stale=("search",)),
    ]
    return found


def cases(seed: int, count: int) -> list[Case]:
    """`count` of them, in an order of the seed's; all, if there are no more."""
    found = surroundings()
    random.Random(seed).shuffle(found)
    return [_case(each) for each in found[:count]]


def _case(odd: Surroundings) -> Case:
    return Case(f"environments: {_sort(odd)}", f"{odd.what}: ./stage {odd.words}", lambda trial: _run(trial, odd))


def _sort(odd: Surroundings) -> str:
    disk = odd.strike or "files" in odd.what or "memory" in odd.what
    return "disk and memory" if disk else "users, variables, ends"


def _run(trial: Trial, odd: Surroundings) -> Outcome:
    """Refused in one line, or done as ever; and afterwards, in usual surroundings, the same command gives the same bytes."""
    folder, words = trial.begin(), tuple(odd.words.split())
    if odd.stale:
        kills.make_stale(folder, odd.stale[0]) if odd.words == "run" else pipeline.unfinish(folder, *odd.stale)
        remove(folder / ".resume")
    ended = trial.record.note(_in(trial, odd, words))
    if found := verdict.fault(ended):
        return trial.record.outcome(*found)
    among = None if odd.words == "run" else pipeline.STAGES.get(odd.words, ["none"])
    if ended.code == 0:
        return trial.compare("identical", "", among)
    if not verdict.named(ended) and "closed" not in odd.what:
        return trial.record.outcome("manual", f"exit {ended.code}: {verdict.message(ended)}")
    after = trial.again(*words, among=among)
    return after if after.bad else trial.record.outcome("named", verdict.message(ended))


def _in(trial: Trial, odd: Surroundings, words: tuple[str, ...]) -> Ended:
    if not odd.real:
        target = "dvc" if odd.words == "run" else odd.words
        strikes = {target: odd.strike} if odd.strike else {}
        return trial.desk.call(trial.folder, *words, strikes=strikes, environment=odd.variables, prepare=odd.prepare)
    if odd.what.startswith("a user"):
        _open_to_all(trial)
    environ = trial.desk.environ(**odd.variables)
    run = subprocess.Popen(
        ["./stage", *words], cwd=trial.folder, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        errors="replace", preexec_fn=odd.prepare, start_new_session=True,
    )  # fmt: skip
    try:
        said, errors = run.communicate(timeout=HANG_SECONDS)
    except subprocess.TimeoutExpired:
        return Ended(words, -9, "", "", hung=True)
    finally:
        for pid in kills.session(run.pid):
            os.kill(pid, signal.SIGKILL)
    return Ended(words, run.returncode, said, errors)


def _open_to_all(trial: Trial) -> None:
    """For a user who is not us."""
    for root in (trial.folder, trial.desk.scratch):
        for here, folders, names in os.walk(root):
            for name in (".", *folders, *names):
                path = os.path.join(here, name)
                if not os.path.islink(path):
                    os.chmod(path, os.stat(path).st_mode | 0o666 | (0o111 if os.path.isdir(path) else 0))
    os.chmod(trial.template.parent, 0o755)
