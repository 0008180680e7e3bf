"""The stage `publish`: the frontier and the students, shown in MLflow."""

from diffcore.core import disk
from tasks import paths
from tasks.params import Params
from tasks.progress import log
from tasks.tracking import publishing


def publish(params: Params) -> None:
    receipt = publishing.publish(paths.ARTIFACTS, params.publish.experiment, params.publish.model, params.raw)
    disk.write_sealed(paths.PUBLISHED, receipt)
    log(
        f"publish: {len(receipt['runs'])} runs in experiment {params.publish.experiment!r} at {receipt['tracking_uri']}"
    )
