"""What a run leaves on Prefect's pages: the frontier as a table and a picture, and word of a new challenger."""

import base64
import contextlib
import csv
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from prefect.artifacts import create_image_artifact, create_table_artifact
from prefect.events import emit_event

from diffcore.core import disk
from tasks.stages import Stage

FRONTIER = "artifacts/frontier.csv"
PICTURE = "artifacts/frontier.png"
RECEIPT = "artifacts/published.json"
CHALLENGER = "distill.challenger"
"""The event of a new version of the model, which is recommended; deploy/automations.py tells people of it."""


def pages_of(completed: Collection[Stage]) -> list[str]:
    """Which files of the frontier these stages have brought up to date."""
    return [path for stage in completed for path in (FRONTIER, PICTURE) if _writes(stage, path)]


def show(workspace: Path, completed: Collection[Stage]) -> None:
    """The frontier on the run's page, if this run has brought it up to date."""
    fresh = set(pages_of(completed))
    table, picture = workspace / FRONTIER, workspace / PICTURE
    if FRONTIER in fresh and table.is_file():
        with open(table, newline="") as file:
            create_table_artifact(list(csv.DictReader(file)), key="frontier", description="Quality against steps")
    if PICTURE in fresh and picture.is_file():
        data = base64.b64encode(picture.read_bytes()).decode()
        create_image_artifact(f"data:image/png;base64,{data}", key="frontier-picture", description=PICTURE)


def _writes(stage: Stage, path: str) -> bool:
    return any(Path(path).is_relative_to(out) for out in stage.outs)


@contextlib.contextmanager
def challenger_told(workspace: Path) -> Iterator[None]:
    """Emits the event if the published version is another one after the block, whatever else comes of the block."""
    before = _version(workspace)
    try:
        yield
    finally:
        after = _version(workspace)
        if after is not None and after != before:
            resource = {"prefect.resource.id": f"distill.model.{after['name']}", "prefect.resource.name": after["name"]}
            payload = {"model": after["name"], "version": after["version"], "point": after["point"]}
            emit_event(CHALLENGER, resource=resource, payload=payload)


def _version(workspace: Path) -> dict[str, Any] | None:
    """Of the model that was registered last; None where nothing is published."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return disk.parse_json((workspace / RECEIPT).read_text())["version"]
    return None
