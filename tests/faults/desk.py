"""Runs the project's commands in forked copies of one warm process: each costs its own work, not five seconds of imports.

What a command starts in turn (`./stage run` starts DVC, DVC starts a shell, the shell a stage) is forked from the same warm
process: `sys.executable` and DISTILL_PYTHON are a small client that asks the desk for it and ends as it ends. So each is a
process of its own, with its own pid, that can be killed or struck by itself. Linux only.
"""

import contextlib
import gc
import importlib
import json
import os
import pkgutil
import random
import resource
import selectors
import shutil
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.strike import Strike

HANG_SECONDS = 420.0
"""Far more than anything here takes on a busy machine: only what stands still for ever reaches it."""

CLIENT = """#!{python} -IS
import ctypes, json, os, signal, socket, sys
if sys.argv[1:3] not in (["-m", "tasks"], ["-m", "tasks.dvc_repro"], ["-m", "dvc"]):
    os.execv({own!r}, [{own!r}, *sys.argv[1:]])
ctypes.CDLL(None).prctl(1, 9)
desk = socket.socket(socket.AF_UNIX)
desk.connect("\\0" + os.environ["FAULTS_DESK"])
asked = {{"words": sys.argv[2:], "folder": os.getcwd(), "environment": dict(os.environ)}}
socket.send_fds(desk, [b"."], [1, 2])
desk.sendall(json.dumps(asked).encode() + b"\\n")
code = int(desk.makefile().readline() or 70)
if code < 0:
    if -code != signal.SIGKILL:
        signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
os._exit(code)
"""

QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "DVC_NO_ANALYTICS": "1",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}


@dataclass(frozen=True)
class Ended:
    """How a command ended: the exit code (negative: by that signal), what it said, and whether it had to be ended."""

    words: tuple[str, ...]
    code: int
    said: str
    errors: str
    hung: bool = False

    @property
    def text(self) -> str:
        return self.said + self.errors


@dataclass(frozen=True)
class Blow:
    """kill -9 from outside: `seconds` after the start, to one process of the tree chosen by `seed`, or to all of them."""

    seconds: float
    seed: int
    everything: bool = False


@dataclass
class _Child:
    pid: int
    words: tuple[str, ...]
    client: socket.socket | None = None
    pidfd: int = -1


@dataclass
class Desk:
    """scratch: where logs, a home and temporary files lie. environment: of all commands."""

    scratch: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    number: int = 0
    living: list[_Child] = field(default_factory=list)

    def __post_init__(self):
        for name in ("home", "tmp", "logs"):
            (self.scratch / name).mkdir(parents=True, exist_ok=True)
        client = self.scratch / "python"
        if not client.exists():
            client.write_text(CLIENT.format(python=os.path.realpath(sys.executable), own=sys.executable))
            client.chmod(0o755)

    def environ(self, **more: str | None) -> dict[str, str]:
        """What a command finds in its environment; None takes a name away."""
        kept = {name: os.environ[name] for name in ("PATH", "LANG", "LD_LIBRARY_PATH") if name in os.environ}
        home, shared = self.scratch / "home", self.scratch / "dvc"
        own = {"HOME": str(home), "TMPDIR": str(self.scratch / "tmp"), "DVC_SITE_CACHE_DIR": str(shared)}
        found = {**kept, **QUIET, **own, **self.environment, **more}
        return {name: value for name, value in found.items() if value is not None}

    def call(
        self,
        folder: Path,
        *words: str,
        strikes: Mapping[str, Strike] = {},
        blow: Blow | None = None,
        environment: Mapping[str, str | None] = {},
        prepare: Callable[[], None] = lambda: None,
    ) -> Ended:
        """Runs `./stage WORDS` (or DVC, for words that begin with "dvc") in `folder`, to its end.

        strikes: by the words of the process that each is for ("run", "dvc", "distill pd2"). prepare: called in the child
        before it begins.
        """
        self.number += 1
        stem = self.scratch / "logs" / f"{folder.name}-{self.number}"
        name = f"faults-{os.getpid()}-{self.number}"
        with socket.socket(socket.AF_UNIX) as door, selectors.DefaultSelector() as watch:
            door.bind("\0" + name)
            door.listen()
            watch.register(door, selectors.EVENT_READ, None)
            environ = self.environ(DISTILL_PYTHON=str(self.scratch / "python"), FAULTS_DESK=name, **environment)
            log = stem.with_suffix(".events")
            out, err = (os.open(f"{stem}.{end}", os.O_RDWR | os.O_CREAT | os.O_TRUNC) for end in ("out", "err"))
            turn = _Turn(self, folder, strikes, log, watch)
            try:
                top = turn.fork(tuple(words), folder, environ, (out, err), prepare)
                code, hung = turn.serve(door, top, blow)
            finally:
                turn.end()
                os.close(out)
                os.close(err)
        said, errors = (Path(f"{stem}.{end}").read_text(errors="replace") for end in ("out", "err"))
        for end in ("out", "err"):
            os.unlink(f"{stem}.{end}")
        return Ended(words, code, said, errors, hung)

    def events(self, folder: Path) -> list[str]:
        """The events that the strikes of the last call saw, and forgets them."""
        log = self.scratch / "logs" / f"{folder.name}-{self.number}.events"
        lines = log.read_text().splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        return lines


class _Turn:
    """The processes of one call."""

    def __init__(self, desk: Desk, root: Path, strikes: Mapping[str, Strike], log: Path, watch):
        self.desk, self.root, self.strikes, self.log, self.watch = desk, root, strikes, log, watch
        self.children: list[_Child] = []

    def fork(self, words, folder, environ, ends, prepare=lambda: None, client=None) -> _Child:
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            code = 70
            try:
                self._become(words, folder, environ, ends)
                prepare()
                code = _main(words)
            except SystemExit as ended:
                code = ended.code if isinstance(ended.code, int) else 0 if ended.code is None else 1
            except BaseException:
                with contextlib.suppress(BaseException):
                    traceback.print_exc()
                code = 1
            finally:
                with contextlib.suppress(BaseException):
                    sys.stdout.flush()
                with contextlib.suppress(BaseException):
                    sys.stderr.flush()
                os._exit(code)
        child = _Child(pid, words, client, os.pidfd_open(pid))
        self.children.append(child)
        self.watch.register(child.pidfd, selectors.EVENT_READ, child)
        if client is not None:
            self.watch.register(client, selectors.EVENT_READ, child)
        return child

    def _become(self, words: tuple[str, ...], folder: Path, environ: dict[str, str], ends: tuple[int, int]) -> None:
        os.setsid()
        os.chdir(folder)
        null = os.open(os.devnull, os.O_RDONLY)
        for descriptor, target in ((null, 0), (ends[0], 1), (ends[1], 2)):
            os.dup2(descriptor, target)
        os.closerange(3, 256)
        sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", buffering=1, closefd=False, errors="backslashreplace")  # noqa: SIM115
        os.environ.clear()
        os.environ.update(environ)
        sys.executable = str(self.desk.scratch / "python")
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.default_int_handler)
        strike = self.strikes.get("dvc" if words[:1] in DVC else " ".join(words))
        if strike is not None:
            strike.install(self.root, self.log)

    def serve(self, door: socket.socket, top: _Child, blow: Blow | None) -> tuple[int, bool]:
        """Answers until `top` has ended; its code, and whether it hung."""
        begun, struck = time.monotonic(), False
        while True:
            left = HANG_SECONDS - (time.monotonic() - begun)
            due = blow.seconds - (time.monotonic() - begun) if blow and not struck else left
            for key, _ in self.watch.select(max(0.0, min(left, due))):
                if key.data is None:
                    self._admit(door)
                elif key.fileobj == key.data.pidfd:
                    code = self._reap(key.data)
                    if key.data is top:
                        return code, False
                else:  # the client is gone, and with it who asked: the kernel would tell the stage so
                    self._leave(key.data)
            if time.monotonic() - begun > HANG_SECONDS:
                return -9, True
            if blow and not struck and time.monotonic() - begun >= blow.seconds:
                struck = True
                self._strike(blow)

    def _strike(self, blow: Blow) -> None:
        living = list(self.children)
        for child in living if blow.everything else [random.Random(blow.seed).choice(living)]:
            os.kill(child.pid, signal.SIGKILL)

    def _admit(self, door: socket.socket) -> None:
        client, _ = door.accept()
        _, ends, _, _ = socket.recv_fds(client, 1, 2)
        asked = json.loads(client.makefile().readline() or "null")
        if asked:
            words = tuple(asked["words"][1:] if asked["words"][0] == "tasks" else asked["words"])
            self.fork(words, Path(asked["folder"]), asked["environment"], tuple(ends), client=client)
        for end in ends:
            os.close(end)

    def _leave(self, child: _Child) -> None:
        self.watch.unregister(child.client)
        child.client.close()
        child.client = None
        os.kill(child.pid, signal.SIGTERM)

    def _reap(self, child: _Child) -> int:
        _, status = os.waitpid(child.pid, 0)
        code = os.waitstatus_to_exitcode(status)
        self.watch.unregister(child.pidfd)
        os.close(child.pidfd)
        self.children.remove(child)
        if child.client is not None:
            with contextlib.suppress(OSError):
                child.client.sendall(f"{code}\n".encode())
            self.watch.unregister(child.client)
            child.client.close()
        return code

    def end(self) -> None:
        """Lets what lost its parent end as it would, and kills what is left."""
        until = time.monotonic() + 20
        for child in self.children:
            if child.client is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child.pid, signal.SIGTERM)
        while self.children and time.monotonic() < until:
            for key, _ in self.watch.select(0.2):
                if key.data is not None and key.fileobj == key.data.pidfd:
                    self._reap(key.data)
                elif key.data is None:
                    door = key.fileobj
                    door.accept()[0].close()
                else:
                    self._leave(key.data)
        for child in list(self.children):
            os.kill(child.pid, signal.SIGKILL)
            self._reap(child)


DVC = (("dvc",), ("tasks.dvc_repro",))


def _main(words: Sequence[str]) -> int:
    if words[:1] == ("tasks.dvc_repro",):
        from tasks.dvc_repro import main as repro

        return repro(list(words[1:]))
    if words[:1] == ("dvc",):
        from dvc.cli import main

        sys.argv = ["dvc", *words[1:]]
        return main(list(words[1:])) or 0
    from tasks.command import main as stage

    sys.argv = ["tasks", *words]
    return stage(list(words)) or 0


def warm() -> None:
    """Imports all that any command would, once, without starting a thread."""
    import diffcore
    import tasks

    for package in (diffcore, tasks):
        for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            if module.name not in ("tasks.sampler_model",):
                importlib.import_module(module.name)
    for name in WARM:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    gc.collect()
    gc.freeze()


WARM = (
    "torch._dynamo",
    "accelerate",
    "diffusers",
    "sklearn.datasets",
    "webdataset",
    "matplotlib.figure",
    "matplotlib.backends.backend_agg",
    "matplotlib.font_manager",
    "PIL.Image",
    "ruamel.yaml",
    "pydantic",
    "dvc.cli",
    "dvc.repo",
    "dvc.repo.reproduce",
    "dvc.commands.repro",
    "dvc.commands.checkout",
    "dvc_data.index",
    "mlflow",
    "mlflow.pyfunc",
    "mlflow.tracking",
    "mlflow.store.tracking.sqlalchemy_store",
    "mlflow.store.db.utils",
    "alembic.command",
    "pandas",
)


def limit(kind: int, amount: int) -> Callable[[], None]:
    """For `prepare`: a limit of the kernel for the command."""
    return lambda: resource.setrlimit(kind, (amount, amount))


def remove(folder: Path) -> None:
    """A folder of the campaign's own, whatever a trial made of its permissions."""
    for here, folders, _ in os.walk(folder):
        for name in folders:
            with contextlib.suppress(OSError):
                os.chmod(os.path.join(here, name), 0o755)
    shutil.rmtree(folder, ignore_errors=True)
