"""A stage ends with whoever started it, and never in the middle of a thought.

`dvc` killed by any signal would leave its stage running as an orphan; the kernel tells the stage instead (PR_SET_PDEATHSIG).
A training stage answers SIGTERM by saving at the next step and exits with 143, which a scheduler reads as "run me again".
"""

import signal

TERMINATED = 128 + signal.SIGTERM


class StopFlag:
    """Turns true on SIGTERM. Call it to ask."""

    def __init__(self):
        self._up = False
        signal.signal(signal.SIGTERM, self._raise_flag)

    def _raise_flag(self, number, frame) -> None:
        self._up = True

    def __call__(self) -> bool:
        return self._up
