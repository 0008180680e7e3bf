"""What `publish` leaves behind: where a person opens what was published, and whether it is still there."""

from typing import Any

from tasks import database
from tasks.redaction import redact
from tasks.tracking.client import HTTP
from tasks.tracking.view import KEY

CHART = f"#/experiments/{{}}/runs?workflowType=machine_learning&compareRunsMode=CHART&viewStateShareKey={KEY}"


def how_to_open(receipt: dict[str, Any]) -> str:
    """A line or two that tell a person where to see what `publish` published."""
    uri = redact(receipt["tracking_uri"])
    if uri.startswith(HTTP):
        return f"MLflow: {uri.rstrip('/')}/{receipt['ui']}"
    store = uri if uri.startswith(database.SCHEME) else '"$MLFLOW_TRACKING_URI"'  # a password may be a part of it
    command = f".venv/bin/mlflow server --workers 1 --backend-store-uri {store}"
    return f"MLflow: {command}\n        then open http://127.0.0.1:5000/{receipt['ui']}"


def lost(receipt: dict[str, Any]) -> str | None:
    """Why the SQLite file that a receipt names does not show what was published; None if it does, or MLflow is elsewhere."""
    path = database.file_of(receipt["tracking_uri"])
    return None if path is None else database.lacks(path, receipt["frontier"])
