"""Runs one command and leaves nothing of it behind: python supervisor.py GRACE_SECONDS PARENT_PID COMMAND...

A process of its own between the flow and DVC, because what must be stopped in order has to outlive a flow that was
killed with SIGKILL. On SIGTERM, or when the parent is gone, it first ends the processes below the command: DVC then
sees a failed stage and frees its own locks, and a stage in training has the grace to save. What is left is killed.
Exits with the command's code, 128 + n if signal n ended it, 143 if it was stopped.

Imports nothing of this project: it has to start in no time.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import psutil

POLL_SECONDS = 0.05
STOPPED = 128 + signal.SIGTERM
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36


def main(arguments: list[str]) -> int:
    """Runs the command to its end or stops it; see the module."""
    grace, parent, command = float(arguments[0]), int(arguments[1]), arguments[2:]
    stop_requested = _listen()
    _prctl(PR_SET_CHILD_SUBREAPER, 1)  # grandchildren whose parent dies come to us instead of getting lost
    child = subprocess.Popen(command, preexec_fn=_manners)  # safe here: this process has one thread
    # the parent is watched instead of PR_SET_PDEATHSIG, which would strike when its *thread* ends
    while child.poll() is None and not stop_requested() and os.getppid() == parent:
        time.sleep(POLL_SECONDS)
    if child.poll() is None:
        _stop(child, grace)
        return STOPPED
    _end(_below(os.getpid()), grace)  # what the command left running
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


def _listen() -> Callable[[], bool]:
    heard = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda number, frame: heard.append(number))
    return lambda: bool(heard)


def _manners() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a job started in the background would ignore it
    _prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _prctl(option: int, value: int) -> None:
    with contextlib.suppress(AttributeError, OSError):  # Linux only
        ctypes.CDLL(None).prctl(option, int(value), 0, 0, 0)


def _stop(child: subprocess.Popen, grace: float) -> None:
    until = time.monotonic() + grace
    below = _below(child.pid)
    for process in below:
        _signal(process, signal.SIGTERM)
    if not below:  # DVC itself is at work, on hashes or a download: it unlocks on Ctrl-C, not on SIGTERM
        child.send_signal(signal.SIGINT)
    while time.monotonic() < until and (child.poll() is None or _below(os.getpid())):
        time.sleep(POLL_SECONDS)
    for process in _below(os.getpid()):
        _signal(process, signal.SIGKILL)
    child.wait()


def _end(processes: list[psutil.Process], grace: float) -> None:
    for process in processes:
        _signal(process, signal.SIGTERM)
    _, left = psutil.wait_procs(processes, timeout=grace)
    for process in left:
        _signal(process, signal.SIGKILL)


def _below(pid: int) -> list[psutil.Process]:
    processes = []
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in psutil.Process(pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.status() != psutil.STATUS_ZOMBIE:
                    processes.append(process)
    return processes


def _signal(process: psutil.Process, number: int) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):  # psutil never signals a stranger with a recycled pid
        process.send_signal(number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
