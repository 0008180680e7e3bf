"""Which services there are, what each runs and in which surroundings, and how one asks whether it works."""

import http.client
import json
import os
import socket
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

from diffcore.core import disk
from flows import listening
from flows.service import HOST, NAMES, Service
from tasks import database
from tasks.running import surroundings
from tasks.tracking import client

HOME = Path(".services/prefect")
STORE = "MLFLOW_BACKEND_STORE_URI"
POOL = "gpu"
TALK_SECONDS = 5
AIMS = ("PREFECT_API_URL", "PREFECT_HOME", "PREFECT_PROFILE", "PREFECT_PROFILES_PATH")
"""What in a person's environment leads `prefect` elsewhere than this project's profile."""


def planned(root: Path, prefect_port: int, mlflow_port: int, host: str = HOST) -> list[Service]:
    """The services in the order in which they start; no MLflow server if MLFLOW_TRACKING_URI names one already.
    host: where the servers listen."""
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    elsewhere = uri.startswith(("http://", "https://", "databricks"))
    near = listening.near(host)
    address = uri if elsewhere else listening.url(near, mlflow_port)
    environment = _environment(root, f"{listening.url(near, prefect_port)}/api", address, near)
    environment |= listening.environment(host, mlflow_port)
    prefect = _prefect(prefect_port, host, environment)
    mlflow = [] if elsewhere else [_mlflow(root, mlflow_port, host, _whole(root, uri or client.LOCAL), environment)]
    return [prefect, *mlflow, _worker(host, environment)]


def _whole(root: Path, store: str) -> str:
    """The store with a whole path where it names a file relative to the project's root."""
    file = database.file_of(store)
    return store if file is None or file.is_absolute() else f"{database.SCHEME}///{root.resolve() / file}"


def _environment(root: Path, prefect: str, mlflow: str, near: str) -> dict[str, str]:
    without_proxy = ",".join(filter(None, (os.environ.get("NO_PROXY"), near)))
    return {
        **{name: value for name, value in surroundings().items() if name not in AIMS},
        "PREFECT_HOME": str(root.resolve() / HOME),
        "PREFECT_PROFILES_PATH": str(root.resolve() / HOME / "profiles.toml"),
        "PREFECT_API_URL": prefect,
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "MLFLOW_TRACKING_URI": mlflow,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # seven more processes and 1.7 GB, for nothing used here
        "DISTILL_ROOT": str(root),
        "NO_PROXY": without_proxy,
        "no_proxy": without_proxy,
        **listening.client_password(os.environ),
    }


def _prefect(port: int, host: str, environment: dict[str, str]) -> Service:
    url = listening.url(listening.near(host), port)
    command = (sys.executable, "-m", "prefect", "server", "start", "--host", host, "--port", str(port))
    return Service(NAMES[0], command, url, lambda: ask(f"{url}/api/health") is True, environment, port, host)


def _mlflow(root: Path, port: int, host: str, store: str, environment: dict[str, str]) -> Service:
    url = listening.url(listening.near(host), port)
    # clients write pictures and models into mlruns/ by themselves, whether they come by the server or by the database;
    # with a serving server, what it names mlflow-artifacts:/ could not be read or added to once it is down
    files = ("--no-serve-artifacts", "--default-artifact-root", str(root / "mlruns"))
    if not listening.is_local(host):  # other hosts have no mlruns/ in common with this one
        files = ("--serve-artifacts", "--artifacts-destination", str(root / "mlruns"))
    where = ("--host", host, "--port", str(port), "--workers", "1")
    command = (sys.executable, "-m", "mlflow", "server", *where, *files)
    environment = {**environment, STORE: store}  # no argument: all users see those, and a password may be a part of it
    return Service(NAMES[1], command, url, lambda: ask(f"{url}/health", plain=True) == "OK", environment, port, host)


def _worker(host: str, environment: dict[str, str]) -> Service:
    name = f"{socket.gethostname()}-{time.time_ns() // 1_000_000:x}"  # new each time: the server remembers old ones
    api = environment["PREFECT_API_URL"]
    command = (sys.executable, "-m", "prefect", "worker", "start", "--pool", POOL, "--type", "process", "--name", name)

    def online() -> bool:
        workers = ask(f"{api}/work_pools/{POOL}/workers/filter", {}) or []
        return any(worker["name"] == name and worker["status"] == "ONLINE" for worker in workers)

    return Service(NAMES[2], command, api, online, environment, host=host)


def ask(url: str, body: Any = None, plain: bool = False) -> Any:
    """The answer to a GET, or with a body to a POST, as JSON or as plain text; None if there is none."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json", **listening.header()})
    straight = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy knows nothing of this host
    try:
        with straight.open(request, timeout=TALK_SECONDS) as answer:
            text = answer.read().decode()
        return text if plain else disk.parse_json(text)
    except (OSError, ValueError, http.client.HTTPException):
        return None
