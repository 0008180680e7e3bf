"""What a run leaves on Prefect's pages: the frontier as a table and a picture, what is recommended and why, and word of a new
challenger."""

import base64
import contextlib
import csv
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from prefect.artifacts import create_image_artifact, create_markdown_artifact, create_table_artifact
from prefect.events import emit_event

from diffcore.core import disk
from diffcore.metrics.frontier import Frontier
from tasks import paths
from tasks.stages import Stage

FRONTIER = "artifacts/frontier.csv"
PICTURE = "artifacts/frontier.png"
RECOMMENDED = "artifacts/frontier.json"
REPORT = "artifacts/report.html"
SHOWN = (FRONTIER, PICTURE, RECOMMENDED, REPORT)
FIRST = ("name", "nfe", "fd", "fd_se", "recall", "coverage", "kid", "ms_per_image", "frontier", "checkpoint")
"""Columns of the table: a page shows the first ones."""

RECEIPT = "artifacts/published.json"
CHALLENGER = "distill.challenger"
"""The event of a new version of the model, which is recommended; deploy/automations.py tells people of it."""


def pages_of(completed: Collection[Stage]) -> list[str]:
    """Which files of the frontier these stages have brought up to date."""
    return [path for stage in completed for path in SHOWN if _writes(stage, path)]


def show(workspace: Path, completed: Collection[Stage]) -> str | None:
    """The frontier on the run's page, if this run has brought it up to date; which checkpoint is recommended, in words.

    A UserError for a frontier that is damaged.
    """
    fresh = [path for path in pages_of(completed) if (workspace / path).is_file()]
    frontier = Frontier.read(workspace / RECOMMENDED, paths.again("frontier")) if RECOMMENDED in fresh else None
    why = frontier.recommended.reason if frontier else "Quality against network calls"
    if FRONTIER in fresh:
        create_table_artifact(_table(workspace / FRONTIER), key="frontier", description=why)
    if PICTURE in fresh:
        data = base64.b64encode((workspace / PICTURE).read_bytes()).decode()
        create_image_artifact(f"data:image/png;base64,{data}", key="frontier-picture", description=why)
    if frontier is None:
        return None
    link = _in_mlflow(workspace) if any(_writes(stage, RECEIPT) for stage in completed) else None
    create_markdown_artifact(_words(workspace, frontier, link), key="recommendation", description="What to ship")
    point = frontier.recommended.point
    return f"recommended: {point.name}, the checkpoint {paths.CHECKPOINTS / point.checkpoint}"


def _table(path: Path) -> list[dict[str, str]]:
    """By rising network calls and then fd, numbers to four digits."""
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    names = [*(name for name in FIRST if rows and name in rows[0]), *(rows[0] if rows else ())]
    rows = [{name: row[name] for name in dict.fromkeys(names)} for row in rows]
    rows.sort(key=lambda row: (float(row.get("nfe") or 0), float(row.get("fd") or 0)))
    return [{name: _short(value) for name, value in row.items()} for row in rows]


def _short(cell: str) -> str:
    try:
        number = float(cell)
    except ValueError:
        return cell
    return f"{number:.4g}" if "." in cell else cell


def _words(workspace: Path, frontier: Frontier, link: str | None) -> str:
    """What is recommended and why, what warns of it, and where to look further. link: to the report in MLflow."""
    chosen = frontier.recommended
    report = f"`{(workspace / REPORT).resolve()}`: the whole report on one page, for a browser"
    lines = [f"# {chosen.point.name}", "", chosen.reason, ""]
    lines += [f"**Warning**: {warning}." for warning in chosen.warnings]
    lines += ["", f"- `{(workspace / paths.CHECKPOINTS / chosen.point.checkpoint).resolve()}`: the checkpoint"]
    lines += [f"- {report}" + (f", also [in MLflow]({link})" if link else "")]
    lines += [f"- `distill sample {chosen.point.name} --out grid.png` draws images"]
    return "\n".join(lines)


def _in_mlflow(workspace: Path) -> str | None:
    """The report's address on the server that it was published to; None where that is none but a file."""
    receipt = _receipt(workspace) or {}
    if not str(receipt.get("tracking_uri")).startswith("http"):
        return None
    run = f"#/experiments/{receipt['experiment_id']}/runs/{receipt['frontier']}"
    return f"{receipt['tracking_uri'].rstrip('/')}/{run}/artifacts/report.html"


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
    with contextlib.suppress(KeyError, TypeError):
        return (_receipt(workspace) or {})["version"]
    return None


def _receipt(workspace: Path) -> dict[str, Any] | None:
    """What `publish` left; None where nothing is published."""
    with contextlib.suppress(OSError, ValueError):
        receipt = disk.parse_json((workspace / RECEIPT).read_text())
        return receipt if isinstance(receipt, dict) else None
    return None
