"""A stage ends with whoever started it, and never in the middle of a thought.

`dvc` killed by any signal would leave its stage running as an orphan; the kernel tells the stage instead (PR_SET_PDEATHSIG).
A training stage answers SIGTERM by saving at the next step and exits with 143, which a scheduler reads as "run me again".
"""

import ctypes
import os
import signal

PR_SET_PDEATHSIG = 1
TERMINATED = 128 + signal.SIGTERM


def die_with_parent() -> None:
    """Asks the kernel for SIGTERM when the parent process ends. Linux only; elsewhere nothing happens."""
    parent = os.getppid()
    try:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    except (AttributeError, OSError):
        return
    if os.getppid() != parent:  # it ended before the kernel was asked
        os.kill(os.getpid(), signal.SIGTERM)


class StopFlag:
    """Turns true on SIGTERM. Call it to ask."""

    def __init__(self):
        self._up = False
        signal.signal(signal.SIGTERM, self._raise_flag)

    def _raise_flag(self, number, frame) -> None:
        self._up = True

    def __call__(self) -> bool:
        return self._up
