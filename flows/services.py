"""`distill up`, `down`, `status`: the local servers and the worker, each a process of its own.

A Prefect server, an MLflow server and a worker of Prefect's, on 127.0.0.1 unless --host names another address, with a log and
a record each in .services/.
Prefect's own home lies there too: its database, and the profile by which `prefect` in the project's root finds the server.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import tomllib
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

from diffcore.core import disk
from diffcore.core.errors import UserError
from flows import deploying, listening
from flows.planning import AIMS, HOME, POOL, STORE, ask, planned
from flows.service import HOST, MARK, NAMES, Folder, Record, Service, elsewhere, lives, log
from tasks.tracking import client

START_SECONDS = 180  # a first start migrates a database, and a loaded machine is slow
CANCEL_SECONDS = 40  # Prefect kills a cancelled run after 30
END_SECONDS = 35
POLL_SECONDS = 0.5
SPEAK_SECONDS = 5


def up(root: Path, prefect_port: int, mlflow_port: int, host: str = HOST) -> None:
    """Starts what does not run yet, deploys both flows and says what comes next. On a fault nothing new is left running.
    host: the address at which the servers listen."""
    if not (root / "prefect.yaml").is_file():
        raise UserError(f"there is no prefect.yaml in {root}: start this in the project's root")
    listening.check(host)
    folder = Folder(root)
    listening.authenticate(folder.environment(NAMES[0]))
    services = planned(root, prefect_port, mlflow_port, host)
    with folder.alone():
        for service in services:
            _clear(service, folder)
            _check(service, folder)
        with _undone(folder) as started:
            servers, worker = services[:-1], services[-1]
            with _stores(servers, folder):
                for service in servers:
                    _start(service, folder, started)
                for service in servers:
                    _await(service, folder)
            _aim(root, worker.url)
            _start(worker, folder, started)
            if worker.name in started:
                _await(worker, folder)
            _deploy(worker, folder)
    _tell(services)
    for line in listening.exposed(servers):
        log(line)


@contextlib.contextmanager
def _stores(servers: list[Service], folder: Folder) -> Iterator[None]:
    """MLflow's database, whole, and nobody else's until its server answers: two that make one at once break it for good."""
    store = next((each.environment[STORE] for each in servers if STORE in each.environment), None)
    if store is None or folder.alive(NAMES[1]):
        yield
        return
    with client.prepared(store, "waiting: a stage publishes to MLflow"):
        yield


def _aim(root: Path, api: str) -> None:
    """Writes the server's address into the project's Prefect profile; what else a person set there stays."""
    path = root / HOME / "profiles.toml"
    try:
        content = tomllib.loads(path.read_text()) if path.is_file() else {}
    except ValueError:
        raise UserError(f"{path} is damaged, it is not TOML: mend it or move it away") from None
    active = content.get("active", "project")
    profiles = {active: {}, **content.get("profiles", {})}
    profiles[active] = {**profiles[active], "PREFECT_API_URL": api}
    lines = [f"active = {json.dumps(active)}"]
    for name, values in profiles.items():
        lines += [
            "",
            f"[profiles.{json.dumps(name)}]",
            *(f"{key} = {json.dumps(value)}" for key, value in values.items()),
        ]
    disk.write(path, "\n".join(lines) + "\n")


def _clear(service: Service, folder: Folder) -> None:
    """Ends what a service that died has left behind: it may hold the port."""
    if folder.alive(service.name) is None and folder.family(service.name):
        _end(service.name, folder)


def _check(service: Service, folder: Folder) -> None:
    record = folder.record(service.name)
    if record and record.process():
        if record.url != service.url:
            raise UserError(f"{service.name} is up already at {record.url}: end it with `distill down`")
        if record.host != service.host:
            raise UserError(f"{service.name} is up already and listens on {record.host}: end it with `distill down`")
    elif service.port is not None and not _free(service.port, service.host):
        option = f"--{service.name.removesuffix('-server')}-port"
        raise UserError(
            f"port {service.port} is taken by {_owner(service.port)}: end that, or choose another by {option}"
        )


def _free(port: int, host: str = HOST) -> bool:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def _owner(port: int) -> str:
    with contextlib.suppress(psutil.Error):
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid:
                return f"{psutil.Process(connection.pid).name()} (pid {connection.pid})"
    return "another program"


@contextlib.contextmanager
def _undone(folder: Folder) -> Iterator[list[str]]:
    started: list[str] = []
    try:
        yield started
    except BaseException:
        for name in reversed(started):
            _end(name, folder)
        raise


def _start(service: Service, folder: Folder, started: list[str]) -> None:
    if process := folder.alive(service.name):
        log(f"{service.name:<15} is up already (pid {process.pid})")
        return
    mark = uuid.uuid4().hex
    with open(folder.log(service.name), "ab") as file:
        child = subprocess.Popen(
            service.command,
            cwd=folder.root,
            env={**service.environment, MARK: mark},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_hear_interrupts,  # safe here: this process has one thread
        )
    born = psutil.Process(child.pid).create_time()
    folder.write(service.name, Record(child.pid, born, service.url, mark, service.host))
    started.append(service.name)


def _hear_interrupts() -> None:
    # what a script starts in the background ignores SIGINT, and Prefect turns a worker's SIGTERM into one: it never ends
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _await(service: Service, folder: Folder) -> None:
    begin = spoke = time.monotonic()
    while not service.healthy():
        now = time.monotonic()
        if folder.alive(service.name) is None:
            raise UserError(f"{service.name} ended at its start: {_last_line(folder.log(service.name))}")
        if now - begin > START_SECONDS:
            raise UserError(f"{service.name} does not answer after {START_SECONDS} s: see {folder.log(service.name)}")
        if now - spoke > SPEAK_SECONDS:
            spoke = now
            log(f"{service.name:<15} is starting, {now - begin:.0f} s")
        time.sleep(POLL_SECONDS)
    log(f"{service.name:<15} answers at {service.url} ({time.monotonic() - begin:.0f} s)")


def _last_line(path: Path) -> str:
    lines = path.read_text(errors="replace").split("\n") if path.is_file() else []
    return f"{next((line.strip() for line in reversed(lines) if line.strip()), 'it said nothing')} (see {path})"


def _deploy(worker: Service, folder: Folder) -> None:
    environment = deploying.environment(worker)
    log("deploying distill/full and distill/smoke")
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
    with open(folder.log("deploy"), "wb") as file:
        ended = subprocess.run(
            command, cwd=folder.root, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=file
        )
    if ended.returncode:
        raise UserError(f"prefect deploy --all failed: {_last_line(folder.log('deploy'))}")


def _tell(services: list[Service]) -> None:
    prefect = services[0]
    command = os.path.relpath(Path(sys.executable).with_name("prefect"))
    # the profile says where the server is, unless something in this environment goes before it
    address = f"PREFECT_API_URL={prefect.url}/api " if any(os.environ.get(name) for name in AIMS) else ""
    log("")
    log(f"Prefect  {prefect.url}")
    log(f"MLflow   {prefect.environment['MLFLOW_TRACKING_URI']}")
    log(f"next     {address}{command} deployment run distill/smoke --watch    (or distill/full)")
    if not listening.is_local(prefect.host):
        log(f"others   {listening.settings_for_others(services[:-1])}")


# ---- down


def down(root: Path) -> None:
    """Cancels the runs that are under way, then ends exactly the processes that `up` started here."""
    folder = Folder(root)
    if not folder.path.is_dir():
        _nothing(folder)
        return
    with folder.alone():
        if folder.alive(NAMES[0]) and folder.alive(NAMES[2]):
            listening.authenticate(folder.environment(NAMES[0]))
            _cancel(folder.record(NAMES[2]).url)
        ended = [_end(name, folder) for name in reversed(NAMES)]
    if not any(ended):
        _nothing(folder)


def _nothing(folder: Folder) -> None:
    log("nothing is up")
    for root in elsewhere(folder.root):
        log(f"servers are up in {root}: cd there")


def _cancel(api: str) -> None:
    """A worker that just ends leaves its runs "Running" on the server for ever."""
    until = time.monotonic() + CANCEL_SECONDS
    cancelled = set()
    # no answer is not "no runs": Prefect's server answers 503 now and then while its SQLite is busy
    while (going := _going(api)) != [] and time.monotonic() < until:
        for run in going or []:
            if run["state_type"] != "CANCELLING":
                ask(f"{api}/flow_runs/{run['id']}/set_state", {"state": {"type": "CANCELLING", "name": "Cancelling"}})
            if run["id"] not in cancelled:
                cancelled.add(run["id"])
                log(f"cancelling the run {run['name']}")
        time.sleep(POLL_SECONDS)


def _going(api: str) -> list[dict] | None:
    states = {"state": {"type": {"any_": ["RUNNING", "PENDING", "CANCELLING"]}}}
    return ask(f"{api}/flow_runs/filter", {"flow_runs": states, "work_pools": {"name": {"any_": [POOL]}}})


def _end(name: str, folder: Folder) -> bool:
    """TERM to the process, then to what it left behind, then KILL; each only if it is still the process it was."""
    process, family = folder.alive(name), folder.family(name)
    if process is not None:
        _signal([process], psutil.Process.terminate)
        psutil.wait_procs([process], timeout=END_SECONDS)
    _signal(family, psutil.Process.terminate)
    psutil.wait_procs(family, timeout=POLL_SECONDS * 10)
    left = [each for each in {*family, *folder.family(name)} if lives(each)]  # with what began meanwhile
    _signal(left, psutil.Process.kill)
    psutil.wait_procs(left, timeout=POLL_SECONDS * 10)
    if family:
        log(f"{name:<15} ended (pid {process.pid if process else ', '.join(str(each.pid) for each in family)})")
    folder.forget(name)
    return bool(family)


def _signal(processes: list[psutil.Process], how: Callable[[psutil.Process], None]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            how(process)


# ---- status


def status(root: Path) -> bool:
    """Says what is up; whether all is."""
    folder = Folder(root)
    processes = {name: folder.alive(name) for name in NAMES}
    for name, process in processes.items():
        where = f"up    pid {process.pid:<8} {folder.record(name).url}" if process else "down"
        log(f"{name:<15} {where}")
    if not any(processes.values()):
        for root in elsewhere(folder.root):
            log(f"servers are up in {root}: cd there")
    return all(processes.values())
