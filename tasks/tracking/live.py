"""Trainings in MLflow while they go on: a run `live/NAME` for each, with its curve, its looks and samples of the last one.

They are in an experiment of their own, so that the charts of the one that `publish` fills stay as they are. A training that
is resumed goes on in its run, which is known by the training's fingerprint. What MLflow has is asked once for each run, so
another follower goes on where one was killed.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tasks.live import FAILED, FINISHED, Seen
from tasks.pictures import grids
from tasks.redaction import redact
from tasks.running import Log
from tasks.tracking.client import HTTP, LOCAL, Experiment, alone, ask, explained, open_experiment, signed_in
from tasks.tracking.descriptions import NOTE

SUFFIX = "-live"
"""Of the experiment's name."""

STATUS = {FINISHED: "FINISHED", FAILED: "FAILED"}
PAGE = "#/experiments/{}/runs/{}/model-metrics?workflowType=machine_learning"
"""Of a run, below the server's address."""

ALARMS = "alarms"
"""The tag of a run of which something is wrong, or was."""

OVER = "none any more"

BATCH = 500
"""Metrics that are logged at once; MLflow takes 1000."""


def address() -> str:
    """Of the store."""
    return os.environ.get("MLFLOW_TRACKING_URI") or LOCAL


class Mirror:
    """What MLflow shows of trainings. name: of the experiment. say: gets a line where a run begins on a server. runs: by
    fingerprint, the run's id. steps: by run, the last updates of which it has a point and a look. ended: by fingerprint, how
    the training ended, None while it goes on. alarms: by run, those that it shows."""

    def __init__(self, experiment: str, say: Log = lambda line: None):
        self.name, self.say = experiment + SUFFIX, say
        self.runs: dict[str, str] = {}
        self.steps: dict[str, list[int]] = {}
        self.ended: dict[str, str | None] = {}
        self.alarms: dict[str, str] = {}

    def show(self, trainings: list[Seen]) -> None:
        """Adds what is new of them. A UserError if MLflow does not answer or refuses."""
        new = [each for each in trainings if self._is_new(each)]
        if not new:
            return
        aloud: list[str] = []
        try:
            with self._open() as experiment:
                for each in new:
                    aloud += self._show(experiment, each)
        finally:  # within, the terminal is hidden from MLflow's chatter
            for line in aloud:
                self.say(line)

    def end(self) -> None:
        """Marks runs of trainings that have not ended as killed: nobody follows them any more."""
        going = [run for fingerprint, run in self.runs.items() if self.ended.get(fingerprint) is None]
        if going:
            with self._open() as experiment:
                for run in going:
                    experiment.client.set_terminated(run, "KILLED")

    @contextlib.contextmanager
    def _open(self) -> Iterator[Experiment]:
        with signed_in(address()) as uri:
            ask(uri)
            with explained(uri):
                with alone(uri):
                    experiment = open_experiment(uri, self.name, [])
                yield experiment

    def _is_new(self, training: Seen) -> bool:
        run = self.runs.get(training.fingerprint)
        if run is None:
            return bool(training.lines)
        return bool(_after(training, self.steps[run])) or self.ended[training.fingerprint] != training.ended

    def _show(self, experiment: Experiment, training: Seen) -> list[str]:
        """Adds what is new of one training; what a person shall hear of that."""
        is_first = training.fingerprint not in self.runs
        run = self.runs.get(training.fingerprint) or self._begun(experiment, training)
        lines = _after(training, self.steps[run])
        metrics = [metric for line in lines for metric in _metrics(line)]
        for first in range(0, len(metrics), BATCH):
            experiment.client.log_batch(run, metrics=metrics[first : first + BATCH])
        if any("look" in line for line in lines):
            self._picture(experiment, run, training)
            self._warn(experiment, run, training)
        for place, kind in enumerate(("point", "look")):
            self.steps[run][place] = max([self.steps[run][place], *(line["step"] for line in lines if kind in line)])
        self.runs[training.fingerprint] = run
        if training.ended is not None and self.ended.get(training.fingerprint) != training.ended:
            experiment.client.set_terminated(run, _status(training))
        elif training.ended is None and self.ended.get(training.fingerprint) is not None:
            experiment.client.update_run(run, status="RUNNING")
        self.ended[training.fingerprint] = training.ended
        if not is_first or not address().startswith(HTTP):
            return []
        return [f"{training.name}: {redact(address()).rstrip('/')}/{PAGE.format(experiment.id, run)}"]

    def _begun(self, experiment: Experiment, training: Seen) -> str:
        """The run of this training, made where there is none; it is running unless the training has ended."""
        client = experiment.client
        condition = f"tags.fingerprint = '{training.fingerprint}'"
        runs = client.search_runs([experiment.id], condition, max_results=1)
        if runs:
            run = runs[0].info.run_id
            if training.ended is None:
                client.update_run(run, status="RUNNING")
            elif runs[0].info.status == _status(training):  # it is left as it ended
                self.ended[training.fingerprint] = training.ended
            self.steps[run] = [_last(client, run, "train_loss"), _last(client, run, "watch_fd")]
            self.alarms[run] = runs[0].data.tags.get(ALARMS, "").removesuffix(OVER)
            return run
        tags = {"live": "true", "kind": "live", "fingerprint": training.fingerprint}
        created = client.create_run(experiment.id, run_name=f"live/{training.name}", tags=tags)
        client.log_param(created.info.run_id, "iterations", training.iterations)
        self.steps[created.info.run_id] = [0, 0]
        return created.info.run_id

    def _picture(self, experiment: Experiment, run: str, training: Seen) -> None:
        from PIL import Image

        samples = training.samples()
        if samples is None:
            return
        # beside the lines: a folder that is written to already
        path = Path(training.path).with_suffix(".png")
        grids.grid(samples, path)
        with Image.open(path) as picture:
            step = training.looks[-1]["step"]
            experiment.client.log_image(run, picture.convert("RGB"), key="samples", step=step, synchronous=True)

    def _warn(self, experiment: Experiment, run: str, training: Seen) -> None:
        """What is wrong at the last look, where a list of runs shows it and on the run's page."""
        words = "; ".join(training.alarms)
        if words != self.alarms.get(run, ""):
            experiment.client.set_tag(run, ALARMS, words or OVER)
            experiment.client.set_tag(run, NOTE, f"**{words}**" if words else "")
            self.alarms[run] = words


def _status(training: Seen) -> str:
    """MLflow's word for how it ended."""
    return STATUS.get(training.ended, "KILLED")


def _after(training: Seen, steps: list[int]) -> list[dict[str, Any]]:
    """Lines that MLflow has not yet. steps: the last updates of a point and of a look that it has."""
    points = [line for line in training.points if line["step"] > steps[0]]
    return points + [line for line in training.looks if line["step"] > steps[1]]


def _metrics(line: dict[str, Any]) -> list[Any]:
    from mlflow.entities import Metric

    kind, prefix = ("look", "watch") if "look" in line else ("point", "train")
    numbers = {f"{prefix}_{key}": value for key, value in line[kind].items() if value is not None}
    return [Metric(key, float(value), line["at"], line["step"]) for key, value in numbers.items()]


def _last(client: Any, run: str, metric: str) -> int:
    """The last update of which MLflow has this metric, 0 for none."""
    return max((each.step for each in client.get_metric_history(run, metric)), default=0)
