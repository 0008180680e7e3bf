"""Prefect's automations for this project: `python deploy/automations.py [--notify TYPE/NAME]`.

Without a notification block only lost runs are dealt with (flows/watch.py). With one, a failed run and a new challenger are
told of too. What is there already is brought up to date, never doubled, and one that a person has switched off stays off.
"""

import argparse
import sys
from collections.abc import Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.events.actions import ActionTypes, SendNotification
from prefect.events.schemas.automations import Automation, AutomationCore, EventTrigger, Posture
from prefect.exceptions import ObjectNotFound

from flows import pages, watch

FLOW = "distill"
RUNS = {"prefect.resource.id": "prefect.flow-run.*"}


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
        trigger=reactive({"prefect.resource.id": "distill.model.*"}, {pages.CHALLENGER}),
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
            wanted = watch.automations()
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
