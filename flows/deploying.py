"""In whose folder deployed runs work: this clone's, or with several hosts each worker's own."""

import time
from typing import Any

from diffcore.core.errors import UserError
from flows import listening
from flows.planning import ask
from flows.service import Service, log

ROOT = "DISTILL_ROOT"
"""The project's folder; set while deploying it is written into the deployment, unset each worker reads its own."""
TRIES = 20
POLL_SECONDS = 0.5


def environment(worker: Service) -> dict[str, str]:
    """That in which the flows are deployed: without DISTILL_ROOT where they are, or shall be, for several hosts."""
    several = not listening.is_local(worker.host) or any(map(_for_several, _deployments(worker.url)))
    if not several:
        return worker.environment
    log(f"several hosts: each worker works in the folder that its {ROOT} names")
    return {name: value for name, value in worker.environment.items() if name != ROOT}


def _deployments(api: str) -> list[dict[str, Any]]:
    for _ in range(TRIES):  # Prefect's server answers 503 now and then while its SQLite is busy
        deployments = ask(f"{api}/deployments/filter", {"flows": {"name": {"any_": ["distill"]}}})
        if deployments is not None:
            return deployments
        time.sleep(POLL_SECONDS)
    raise UserError(f"Prefect at {api} does not tell which deployments it has: see .services/prefect-server.log")


def _for_several(deployment: dict[str, Any]) -> bool:
    return f"${ROOT}" in str(deployment["pull_steps"])
