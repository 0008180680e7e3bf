"""The frontier in MLflow: a view of the files that the stages wrote, published so that twice is the same as once.

One run for each curve, its numbers logged with step = network calls, so that the UI draws the frontier by itself;
sample grids by step; one logged model for each point; a run "train NAME" for each curve; a run "frontier" with table and
picture; a run "recommended" with the one point; the points that are picked registered under the aliases `challenger`,
`best_quality` and `fastest`, with descriptions. A person sets `production`; nothing here does.

Every run carries the digest of what it shows. What MLflow already has is found by that digest and left alone; what is no
longer in the frontier stays, tagged current = false. Files are verified before they are logged, and weights that MLflow holds
each time: what does not fit is logged again.
"""

import contextlib
import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tasks.progress import log
from tasks.redaction import redact
from tasks.tracking import view
from tasks.tracking.artifacts import CHALLENGER, Artifacts, read
from tasks.tracking.client import LOCAL, Experiment, alone, ask, explained, open_experiment, signed_in
from tasks.tracking.descriptions import describe
from tasks.tracking.models import current_models, mended, register, weighed
from tasks.tracking.note import write_note
from tasks.tracking.receipt import CHART
from tasks.tracking.run_specs import (
    curve_specs,
    enter,
    floor_spec,
    frontier_spec,
    recommended_spec,
    students_early,
    train_specs,
)

OBJECTS = 100_000
"""New objects after which the collector of circles looks at the young ones; Python's own 700 come every moment."""


def publish(folder: Path, experiment: str, model: str, parameters: dict[str, Any]) -> dict[str, Any]:
    """Brings MLflow to what the files under `folder` say, and returns a receipt.

    The tracking URI is MLFLOW_TRACKING_URI, else mlflow.db in the working directory. Publishing the same files again
    creates nothing; after a change only the curves that changed get new runs. `model` is the registered model's name,
    `parameters` all of params.yaml, shown with the frontier's run. The files are verified and only read.

    Receipt: tracking_uri (without a password), experiment_id, runs {curve: run id}, train {checkpoint: run id}, frontier
    (run id), models {point: model id}, version {name, version, alias, point}, aliases {alias: {version, point}}, ui (a link's
    path below the server's address).
    Raises UserError if MLflow does not answer or refuses, or a file is missing or damaged.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI") or LOCAL
    aloud: list[str] = []
    try:
        with _rarely_collected():
            artifacts = read(Path(folder), parameters)
            with signed_in(uri) as address:
                ask(address)
                with alone(address), explained(address):
                    return _publish(artifacts, open_experiment(address, experiment, aloud), model) | {
                        "tracking_uri": redact(uri)
                    }
    finally:
        for line in aloud:
            log(f"publish: {line}")


@contextlib.contextmanager
def _rarely_collected() -> Iterator[None]:
    """MLflow's modules and the rows of its database live as long as this: to walk over them again and again, as the collector
    does by default, took a quarter of the time in which nothing new is published."""
    before = gc.get_threshold()
    gc.set_threshold(max(before[0], OBJECTS) if before[0] else 0, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


def _publish(artifacts: Artifacts, experiment: Experiment, model: str) -> dict[str, Any]:
    # the page opens with the newest ten runs in its charts: the teacher's first curve, then the students
    trained = train_specs(experiment, artifacts)
    specs = [*reversed(trained), frontier_spec(experiment, artifacts), floor_spec(experiment, artifacts)]
    specs += [*reversed(students_early(curve_specs(experiment, artifacts))), recommended_spec(experiment, artifacts)]
    runs = enter(experiment, specs)
    models = current_models(experiment, set(runs.values()))
    curves = {
        point["name"]: runs[spec.digest] for spec in specs if spec.kind == "curve" for point in spec.content["points"]
    }
    models |= weighed(experiment, artifacts, models, curves)
    models |= mended(experiment, artifacts, models)
    numbers = register(experiment, artifacts, model, models)
    ids = {
        kind: {spec.name: runs[spec.digest] for spec in reversed(specs) if spec.kind == kind}
        for kind in ("curve", "train", "frontier")
    }
    frontier = ids["frontier"]["frontier"]
    describe(experiment, artifacts, model, numbers, frontier)
    write_note(experiment, artifacts, model, numbers[CHALLENGER])
    view.save(experiment)
    return {
        "experiment_id": experiment.id,
        "runs": ids["curve"],
        "train": ids["train"],
        "frontier": frontier,
        "models": {name: logged.model_id for name, logged in models.items()},
        "version": {
            **{"name": model, "version": numbers[CHALLENGER]},
            **{"alias": CHALLENGER, "point": artifacts.recommended.name},
        },
        "aliases": {
            alias: {"version": numbers[alias], "point": point.name} for alias, point in artifacts.picks.items()
        },
        "ui": CHART.format(experiment.id),
    }
