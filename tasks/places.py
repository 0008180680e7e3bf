"""How many stages `distill run` does at a time: one for each GPU, else as many as processors and memory allow."""

import math
import os
from pathlib import Path

import joblib
import psutil

from diffcore.core.errors import UserError
from diffcore.data.manifest import Manifest
from tasks import locks, paths
from tasks.params import Params
from tasks.progress import log

STAGE_BYTES = 2**30
"""What a stage's process may take beside the images that it keeps in memory: twice what the default ones do."""


def of(workspace: Path, params: Params, slots: int | None) -> locks.Slots:
    """slots: what was asked for; None for as many as the machine can. A UserError for more than there are GPUs."""
    if devices := locks.on_gpus(workspace):
        if slots is not None and slots > len(devices):
            raise UserError(f"--slots: there are GPUs for {len(devices)} stages at a time, got {slots}")
        return locks.Slots(devices[:slots])
    return locks.without_gpus(workspace, slots or _most(params))


def processes(params: Params, name: str) -> int:
    """How many processes train a line without a GPU: one for each part of its batches that it has a place for.

    Places are what the run gives it; a stage that is started by hand has the machine for itself.
    """
    most = os.environ.get(locks.MOST) or f"{max(1, joblib.cpu_count() // params.compute.threads)}"
    if not (most.isdecimal() and int(most)):
        raise UserError(f"{locks.MOST} is {most!r} in the environment, no number of processes; unset it")
    return locks.dividing(params.line(name).fit.cores, int(most))


def _most(params: Params) -> int:
    """At least 1."""
    processes = 1 if params.compute.processes == "auto" else params.compute.processes
    threads = max(1, joblib.cpu_count() // (params.compute.threads * processes))
    each, free = STAGE_BYTES + _kept_bytes(params), psutil.virtual_memory().available
    if (fitting := max(1, free // each)) < threads:
        log(
            f"{threads} stages at a time may need {threads * each / 2**30:.1f} GiB of memory and {free / 2**30:.1f} are "
            f"free, so it is {fitting}; --slots chooses"
        )
    return min(threads, fitting)


def _kept_bytes(params: Params) -> int:
    """The most bytes of images that a stage keeps in memory; not known before there are shards."""
    most = params.compute.memory_bytes
    try:
        manifest = Manifest.read(paths.DATA, verify=False)
    except UserError:  # none yet, or a damaged one, of which the stages say so
        return 0 if params.data.source == "digits" else most
    return min(most, manifest.images * math.prod(manifest.shape))
