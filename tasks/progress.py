"""Lines that show long work moving: plain text, one line at a time, at most one in two seconds."""

import time

from diffcore.core import launch

SECONDS_BETWEEN = 2.0


def log(text: str) -> None:
    """Prints at once, in the main one of several processes. A reader that has gone away (a closed pipe) ends no work."""
    if launch.is_follower():
        return
    try:
        print(text, flush=True)
    except BrokenPipeError:
        return
    except OSError as error:
        error.add_note("the standard output")
        raise


class Progress:
    """`progress(done, total, "loss 0.31")` prints now and then, and always at the end."""

    def __init__(self, name: str, unit: str):
        self.name, self.unit = name, unit
        self.started = self.spoke = time.monotonic()
        self.first: int | None = None

    def __call__(self, done: int, total: int, note: str = "") -> None:
        now = time.monotonic()
        if self.first is None:  # what a resumed run had done before does not count as speed
            self.first = done
        if now - self.spoke < SECONDS_BETWEEN and done < total:
            return
        self.spoke = now
        rate = (done - self.first) / (now - self.started) if done > self.first else 0.0
        left = f"  {rate:.3g} {self.unit}/s  {(total - done) / rate:.0f} s left" if rate and done < total else ""
        log(f"{self.name:<10} {done:>7}/{total}  {note}{left}")
