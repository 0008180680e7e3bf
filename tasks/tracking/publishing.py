"""The frontier in MLflow: a view of the files that the stages wrote, published so that twice is the same as once.

One run for each way to sample, its numbers logged with step = network calls, so that the UI draws the frontier by itself;
sample grids by step; one logged model for each point; a run "train NAME" for each curve; a run "frontier" with table and
picture; the recommended point registered under the alias `challenger`. A person sets `production`; nothing here does.

Every run carries the digest of what it shows. What MLflow already has is found by that digest and left alone; what is no
longer in the frontier stays, tagged current = false. Files are verified before they are logged, and weights that MLflow holds
each time: what does not fit is logged again.
"""

import os
from pathlib import Path
from typing import Any

from tasks.progress import say
from tasks.redaction import told
from tasks.tracking.client import LOCAL, Book, alone, ask, explained, open_book, signed_in
from tasks.tracking.files import Files, read
from tasks.tracking.models import CHALLENGER, current_models, mended, register, weighed
from tasks.tracking.note import write_note
from tasks.tracking.pages import enter, floor_page, frontier_page, students_early, train_pages, way_pages
from tasks.tracking.receipt import CHART


def publish(artifacts: Path, experiment: str, model: str, parameters: dict[str, Any]) -> dict[str, Any]:
    """Brings MLflow to what the files under `artifacts` say, and returns a receipt.

    The tracking URI is MLFLOW_TRACKING_URI, else mlflow.db in the working directory. Publishing the same files again
    creates nothing; after a change only the ways that changed get new runs. `model` is the registered model's name,
    `parameters` all of params.yaml, shown with the frontier's run. The files are verified and only read.

    Receipt: tracking_uri (without a password), experiment_id, runs {way: run id}, train {checkpoint: run id}, frontier
    (run id), models {point: model id}, version {name, version, alias, point}, ui (a link's path below the server's address).
    Raises Mistake if MLflow does not answer or refuses, or a file is missing or damaged.
    """
    files = read(Path(artifacts), parameters)
    uri = os.environ.get("MLFLOW_TRACKING_URI") or LOCAL
    aloud: list[str] = []
    try:
        with signed_in(uri) as address:
            ask(address)
            with alone(address), explained(address):
                return _publish(files, open_book(address, experiment, aloud), model) | {"tracking_uri": told(uri)}
    finally:
        for line in aloud:
            say(f"publish: {line}")


def _publish(files: Files, book: Book, model: str) -> dict[str, Any]:
    # the page opens with the newest ten runs in its charts: the first way to sample the teacher, then the students
    trained = train_pages(book, files)
    pages = [*reversed(trained), frontier_page(book, files), floor_page(book, files)]
    pages += reversed(students_early(way_pages(book, files)))
    runs = enter(book, pages)
    models = current_models(book, set(runs.values()))
    (way,) = (page for page in pages if page.kind == "way" and files.recommended.to_json() in page.content["points"])
    models |= weighed(book, files, models, runs[way.digest])
    models |= mended(book, files, models)
    number = register(book, files, model, models)
    write_note(book, files, model, number)
    ids = {
        kind: {page.name: runs[page.digest] for page in reversed(pages) if page.kind == kind}
        for kind in ("way", "train", "frontier")
    }
    return {
        "experiment_id": book.experiment,
        "runs": ids["way"],
        "train": ids["train"],
        "frontier": ids["frontier"]["frontier"],
        "models": {name: found.model_id for name, found in models.items()},
        "version": {"name": model, "version": number, "alias": CHALLENGER, "point": files.recommended.name},
        "ui": CHART.format(book.experiment),
    }
