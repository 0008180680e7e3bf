"""Starts a command as several processes of this host, which are a group with those that other hosts start.

torch's elastic launcher does it, which is `torchrun`: accelerate's own starts one process in silence on a CPU, and leaves
it behind when it is ended. Called in this process, it leaves us the exit code and the one line of whoever failed first.
Several hosts: the same command on each, with torchrun's own variables PET_NNODES, PET_NODE_RANK, PET_MASTER_ADDR and
PET_MASTER_PORT.
"""

import json
import logging
import os
import signal
import time
from collections.abc import Callable, Sequence

from diffcore.core.errors import MISTAKE, UserError

FAILURE = "TORCHELASTIC_ERROR_FILE"
"""Where a process that the launcher started writes why it failed."""

LOST = 75
"""The exit code of one that ends because another did (EX_TEMPFAIL of sysexits.h)."""

GRACE_SECONDS = 20.0
"""How long one that has lost another waits for its end: who caused it is to be seen first."""


def wanted(asked: int | str, without_gpu: int = 1) -> int:
    """How many processes this host is to have: a number, or "auto" for one on each GPU, `without_gpu` where there is none."""
    import torch

    here = torch.cuda.device_count()
    if asked == "auto":
        return here or without_gpu
    if here and asked > here:
        raise UserError(
            f"compute.processes is {asked}, but {here} GPU(s) can be seen here; lower it, or let it be auto"
        )
    return int(asked)


def is_started() -> bool:
    """Whether this process is one of those that a launcher has started."""
    return FAILURE in os.environ


def is_among_hosts() -> bool:
    """Whether this host's processes are to meet those of others."""
    return "PET_NNODES" in os.environ


def is_follower() -> bool:
    """Whether another one of them speaks for this process."""
    return is_started() and os.environ.get("RANK", "0") != "0"


def start(command: Sequence[str], count: int, log: Callable[[str], None]) -> int:
    """Runs `python COMMAND` as `count` processes until all have ended; their exit code, or a UserError with the line of one.

    Where one fails, the others are ended. SIGTERM goes on to all of them.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # we say what happened in our own words
    config, python, arguments = _config(command, count)
    try:
        elastic_launch(config, python)(*arguments)
    except ChildFailedError as error:
        return _failed(error, log)
    except SignalException as ended:
        return 128 + ended.sigval
    return 0


def _config(command: Sequence[str], count: int):
    from torch.distributed import run

    os.environ.setdefault("OMP_NUM_THREADS", "1")  # until `threads.use`; torchrun would say that it sets it
    alone = not is_among_hosts()
    if alone:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # a host's own name may lead nowhere
    words = ["--nproc-per-node", str(count), *(["--standalone"] if alone else []), *command]
    return run.config_from_args(_standalone(run.get_args_parser().parse_args(words)))


def _standalone(options):
    if options.standalone:
        options.rdzv_backend, options.rdzv_endpoint, options.rdzv_id = "c10d", "localhost:0", f"{os.getpid()}"
    return options


def _failed(error, log: Callable[[str], None]) -> int:
    """The exit code of the process that failed first; a UserError with its line where it wrote one.

    A signal is logged.
    """
    failures = sorted(error.failures.items(), key=lambda item: _order(item[1]))
    rank, failure = failures[0]
    if failure.exitcode < 0:
        name = signal.Signals(-failure.exitcode).name
        log(
            f"process {rank} was ended by {name}, and the others with it; the same command goes on from what was saved last"
        )
        return 128 - failure.exitcode
    lines = [line for _, each in failures if (line := _line(each))]
    if failure.exitcode == MISTAKE and lines:
        raise UserError(lines[0])
    return failure.exitcode


def _order(failure) -> tuple[bool, bool, int, bool]:
    """Those that the launcher ended come last, before them those that lost another; of the rest the earliest, a killed one
    first."""
    return failure.exitcode == -signal.SIGTERM, failure.exitcode == LOST, failure.timestamp, failure.exitcode >= 0


def _line(failure) -> str | None:
    content = failure.error_file_data
    written = content.get("message") if isinstance(content, dict) else None
    return written.get("message") if isinstance(written, dict) else None


def end_lost() -> int:
    """Waits to be ended by whoever started this process, and gives the exit code if nobody comes."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    time.sleep(GRACE_SECONDS)
    return LOST


def report(message: str) -> bool:
    """Leaves the line for whoever started this process and others; False where nobody did."""
    path = os.environ.get(FAILURE)
    if not path:
        return False
    content = {"message": {"message": message, "extraInfo": {"py_callstack": "", "timestamp": str(int(time.time()))}}}
    with open(path, "w") as file:
        json.dump(content, file)
    return True
