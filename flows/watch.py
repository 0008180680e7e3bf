"""Runs whose worker is lost: Prefect would show them as running for ever, so automations set them to Crashed.

The runs of our deployments carry a tag and send a heartbeat each 30 s (prefect.yaml, prefect.spread.yaml: a job variable of
the deployment, so that no worker can be without it). A spread run makes the automations, or deploy/automations.py.
"""

from datetime import timedelta

from prefect import get_client
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification
from prefect.exceptions import ObjectNotFound

from diffcore.core.errors import UserError
from tasks.running import Log

TAG = "distill-heartbeat"
HEARTBEAT = "prefect.flow-run.heartbeat"
SILENCE = timedelta(seconds=120)  # four heartbeats
START = timedelta(minutes=15)  # a worker that has taken a run may have an image to pull first
FILE = "prefect.spread.yaml"


def automations() -> list[AutomationCore]:
    """Those that make a lost run Crashed: silent after a heartbeat, or never started by the worker that took it."""
    return [
        _automation("distill: the worker of a run is lost", HEARTBEAT, SILENCE, "no heartbeat: its worker is lost"),
        _automation("distill: a run was not started", "prefect.flow-run.Pending", START, "its worker did not start it"),
    ]


def _automation(name: str, after: str, within: timedelta, message: str) -> AutomationCore:
    trigger = EventTrigger(
        match_related=ResourceSpecification(
            {"prefect.resource.role": "tag", "prefect.resource.id": f"prefect.tag.{TAG}"}
        ),
        after={after},
        expect={"prefect.flow-run.*"},  # another heartbeat, or any new state
        for_each={"prefect.resource.id"},
        posture=Posture.Proactive,
        threshold=1,
        within=within,
    )
    action = ChangeFlowRunState(state=StateType.CRASHED, message=f"{message} ({within.total_seconds():.0f} s)")
    return AutomationCore(name=name, description=f"Of the runs with the tag {TAG}.", trigger=trigger, actions=[action])


def ensure(deployment: str, log: Log) -> None:
    """Makes the automations that the server lacks. A UserError if it has no such deployment."""
    with get_client(sync_client=True) as client:
        try:
            client.read_deployment_by_name(deployment)
        except ObjectNotFound:
            remedy = f"prefect deploy --all --prefect-file {FILE}"
            raise UserError(f"this Prefect server has no deployment {deployment}: {remedy}") from None
        for automation in automations():
            if not client.read_automations_by_name(automation.name):
                client.create_automation(automation)
                log(f"made the automation {automation.name!r}")
