"""Prefect's automations for this project: `python deploy/automations.py [--notify TYPE/NAME]`.

Without a notification block only runs whose heartbeats stopped are dealt with: a host that was lost leaves them "Running" for
ever. With one, a failed run and a new challenger are told of too. What is there already is brought up to date, never doubled,
and one that a person has switched off stays off.
"""

import argparse
import sys
from collections.abc import Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ActionTypes, ChangeFlowRunState, SendNotification
from prefect.events.schemas.automations import Automation, AutomationCore, EventTrigger, Posture
from prefect.exceptions import ObjectNotFound

POOL = "gpu"
FLOW = "distill"
CHALLENGER = "distill.challenger"
HEARTBEAT = "PREFECT_FLOWS_HEARTBEAT_FREQUENCY"
MISSED = 3
"""Heartbeats that may be missing: with fewer a healthy run on a busy host is declared dead."""
RUNS = {"prefect.resource.id": "prefect.flow-run.*"}
ENDS = {f"prefect.flow-run.{state}" for state in ("Completed", "Failed", "Crashed", "Cancelled", "Cancelling")}


def silent(seconds: int) -> AutomationCore:
    """A run of the pool that neither ends nor shows a heartbeat for so long is crashed: what started it can try again."""
    return AutomationCore(
        name="distill: crash a run whose heartbeats stopped",
        description=f"No heartbeat for {seconds} s: its worker or host is gone.",
        trigger=EventTrigger(
            match=RUNS,
            match_related=related("work-pool", POOL),
            after={"prefect.flow-run.heartbeat"},
            expect={"prefect.flow-run.heartbeat", *ENDS},
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(seconds=seconds),
        ),
        actions=[ChangeFlowRunState(state=StateType.CRASHED, message=f"no heartbeat for {seconds} s")],
    )


def failed(block: UUID) -> AutomationCore:
    """A run of the flow failed or crashed."""
    text = "{{ flow_run.name }} is {{ flow_run.state.name }}: {{ flow_run.state.message }}\n{{ flow_run | ui_url }}"
    return AutomationCore(
        name="distill: tell of a failed run",
        trigger=reactive(RUNS, {"prefect.flow-run.Failed", "prefect.flow-run.Crashed"}, related("flow", FLOW)),
        actions=[notification(block, "distill: a run failed", text)],
    )


def challenger(block: UUID) -> AutomationCore:
    """Another point of the frontier is recommended: a new version has the alias `challenger`."""
    text = "{{ event.payload.model }} version {{ event.payload.version }}: {{ event.payload.point }}"
    return AutomationCore(
        name="distill: tell of a new challenger",
        trigger=reactive({"prefect.resource.id": "distill.model.*"}, {CHALLENGER}),
        actions=[notification(block, "distill: a new challenger", text)],
    )


def related(role: str, name: str) -> dict[str, str]:
    return {"prefect.resource.role": role, "prefect.resource.name": name}


def reactive(match: dict[str, str], events: set[str], about: dict[str, str] | None = None) -> EventTrigger:
    return EventTrigger(
        match=match,
        match_related=about or {},
        expect=events,
        posture=Posture.Reactive,
        threshold=1,
        within=timedelta(0),
    )


def notification(block: UUID, subject: str, body: str) -> ActionTypes:
    return SendNotification(block_document_id=block, subject=subject, body=body)


def content(automation: AutomationCore) -> dict[str, Any]:
    """What it says, without what the server adds."""
    fields = automation.model_dump(mode="json", include=set(AutomationCore.model_fields) - {"enabled"})
    fields["trigger"].pop("id", None)
    for name in ("expect", "after", "for_each"):  # sets
        fields["trigger"][name] = sorted(fields["trigger"][name])
    return fields


def apply(client: SyncPrefectClient, wanted: AutomationCore) -> str:
    """Creates an automation or brings it up to date; which of them, in one line."""
    same: Sequence[Automation] = client.read_automations_by_name(wanted.name)
    if not same:
        client.create_automation(wanted)
        return f"created    {wanted.name}"
    if content(same[0]) == content(wanted):
        return f"unchanged  {wanted.name}"
    client.update_automation(same[0].id, wanted.model_copy(update={"enabled": same[0].enabled}))
    return f"updated    {wanted.name}"


def seconds_between_heartbeats(client: SyncPrefectClient) -> int:
    """That of the pool's template. A ValueError if it has none: every healthy run would be declared dead."""
    try:
        template = client.read_work_pool(POOL).base_job_template
    except ObjectNotFound:
        raise ValueError(f"there is no work pool {POOL!r}: docs/deploy.md says how it is made") from None
    environment = template.get("job_configuration", {}).get("env")
    seconds = environment.get(HEARTBEAT) if isinstance(environment, dict) else None
    if seconds is None:
        raise ValueError(
            f"the work pool {POOL!r} does not set {HEARTBEAT}: "
            f"`prefect work-pool update {POOL} --base-job-template deploy/pool-process.json` (or -docker, -kubernetes)"
        )
    return int(seconds)


def block_of(client: SyncPrefectClient, name: str) -> UUID:
    kind, _, document = name.partition("/")
    try:
        return client.read_block_document_by_name(document, kind).id
    except ObjectNotFound:
        raise ValueError(f"there is no block {name}: `prefect block ls` lists them") from None


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description="Prefect's automations for this project, made or brought up to date.")
    parser.add_argument("--notify", metavar="TYPE/NAME", help="a notification block, such as slack-webhook/team")
    options = parser.parse_args(arguments)
    with get_client(sync_client=True) as client:
        try:
            wanted = [silent(MISSED * seconds_between_heartbeats(client))]
            if options.notify:
                block = block_of(client, options.notify)
                wanted += [failed(block), challenger(block)]
        except ValueError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        for automation in wanted:
            print(apply(client, automation))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
