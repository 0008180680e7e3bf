"""The view in which MLflow's runs open: the frontier on logarithmic axes. MLflow keeps views as tags of an experiment."""

import json
from typing import Any

from tasks.tracking.client import Experiment

KEY = "frontier"
TAG = f"mlflow.sharedViewState.{KEY}"
SHOWN = {"fd": "log", "kid": "log", "recall": "linear", "coverage": "linear", "ms_per_image": "log"}
"""Metrics that have a chart, and the kind of their axis."""


def save(experiment: Experiment) -> None:
    """Also where somebody has changed it since: the link that is printed leads to it. Views of other names stay."""
    state = json.dumps(_state(), sort_keys=True)
    if experiment.client.get_experiment(experiment.id).tags.get(TAG) != state:
        experiment.client.set_experiment_tag(experiment.id, TAG, state)


def _state() -> dict[str, Any]:
    """In the words of MLflow 3's pages; those of another version leave out what they do not know."""
    return {
        "searchFilter": "tags.current = 'true' and tags.kind != 'train'",
        "orderByKey": "attributes.start_time",
        "orderByAsc": True,  # what is drawn last is on top: the recommended point
        "compareRunsMode": "CHART",
        "runsHiddenMode": "SHOW_ALL",
        "hideEmptyCharts": True,
        "compareRunSections": [
            {"uuid": KEY, "name": "Frontier", "display": True, "isReordered": False, "columns": 2, "cardHeight": 480}
        ],
        "compareRunCharts": [_chart(metric, kind) for metric, kind in SHOWN.items()],
    }


def _chart(metric: str, kind: str) -> dict[str, Any]:
    return {
        "type": "LINE",
        "uuid": metric,
        "metricSectionId": KEY,
        "metricKey": metric,
        "selectedMetricKeys": [metric],
        "xAxisKey": "step",
        "xAxisScaleType": "log",
        "scaleType": kind,
        "displayPoints": True,
        "runsCountToCompare": 100,
        "lineSmoothness": 0,
        "deleted": False,
        "isGenerated": False,
        "range": {},
        "useGlobalXaxisKey": True,
        "useGlobalLineSmoothing": True,
    }
