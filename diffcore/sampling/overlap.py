"""What the CPU does beside a GPU: noise is drawn before it is asked for, and samples come back while the next are computed.

Nothing here changes a number: noise has a key, whoever draws it and whenever.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from diffcore.core.shapes import Sample, batches

Key = tuple[range, str]
"""The rows of a batch, and what their noise is for."""

AHEAD = 2
"""Draws of noise that are begun before they are asked for on a GPU."""

THREADS, PART = 4, 512
"""That draw them, so many rows each at a time: one thread makes noise about as fast as one step of a network uses it up."""


class NoiseAhead:
    """`noise(rows, role)` on `device`. plan: the keys in the order in which they will be asked for; threads draw the next
    `ahead` of them. A key that is not in it, or is asked for twice, is drawn when it is asked for. Use it in a `with`.

    On a CPU nothing is gained by it: `ahead` is 0 there, and no thread is started.
    """

    def __init__(
        self, noise: Callable[[range, str], Sample], plan: Sequence[Key], device: torch.device, ahead: int | None = None
    ):
        self.noise, self.plan, self.device = noise, plan, device
        self.ahead = (AHEAD if device.type == "cuda" else 0) if ahead is None else ahead
        self._place = {key: place for place, key in enumerate(plan)}
        self._begun: dict[int, list[Future[Sample]]] = {}
        self._next = 0
        self._threads = ThreadPoolExecutor(THREADS, "noise")  # starts none before the first task

    def __enter__(self) -> "NoiseAhead":
        self._begin(0)
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown(cancel_futures=True)

    def __call__(self, rows: range, role: str) -> Sample:
        place = self._place.get((rows, role))
        begun = self._begun.pop(place, None)
        if place is not None:
            self._begin(place + 1)
        if begun is None:
            return self.noise(rows, role).to(self.device)
        return torch.cat([part.result().to(self.device, non_blocking=True) for part in begun])

    def _begin(self, first: int) -> None:
        """The draws from place `first` on that are not begun yet."""
        stop = min(first + self.ahead, len(self.plan))
        for place in range(max(first, self._next), stop):
            rows, role = self.plan[place]
            self._begun[place] = [self._threads.submit(self._drawn, part, role) for part in batches(rows, PART)]
        self._next = max(self._next, stop)

    def _drawn(self, rows: range, role: str) -> Sample:
        drawn = self.noise(rows, role)
        return drawn.pin_memory() if self.device.type == "cuda" else drawn


def returning(x: Sample) -> Callable[[], Sample]:
    """Begins to copy x to the CPU; what is returned waits for the copy and gives it."""
    if x.device.type != "cuda":
        here = x.cpu()
        return lambda: here
    pinned, arrived = torch.empty(x.shape, dtype=x.dtype, pin_memory=True), torch.cuda.Event()
    pinned.copy_(x, non_blocking=True)
    arrived.record(torch.cuda.current_stream(x.device))

    def wait() -> Sample:
        arrived.synchronize()
        return pinned.clone()  # gives the pinned memory back

    return wait


def one_behind(begun: Iterable[Callable[[], Sample]]) -> Iterator[Sample]:
    """The result of each when the next one is begun: a GPU has work while one is waited for."""
    before: list[Callable[[], Sample]] = []
    for wait in begun:
        before.append(wait)
        if len(before) > 1:
            yield before.pop(0)()
    for wait in before:
        yield wait()
