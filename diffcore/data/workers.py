"""Work that several workers share, its results in the order of its items."""

import collections
import functools
import multiprocessing
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from diffcore.core.errors import UserError
from diffcore.core.parent import die_with_parent

Start = Callable[[int], Executor]
"""Starts so many workers: threads, or `processes`."""


def in_order(
    work: Callable[[Any], Any], items: Iterable[Any], workers: int, start: Start = ThreadPoolExecutor
) -> Iterator[Any]:
    """`map` over workers that draws few items ahead and holds few results, for data larger than memory.

    Raises UserError where a process among them is ended by somebody else.
    """
    with start(workers) as pool:
        waiting: collections.deque[Future] = collections.deque()
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) > 2 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool:
            raise UserError(
                f"one of {workers} processes that read images was ended from outside; look at the memory (dmesg) and run "
                "the same again"
            ) from None
        finally:
            for future in waiting:
                future.cancel()


def processes(workers: int, begin: Callable[[], None]) -> Executor:
    """New processes, which share nothing with this one; work and results are pickled. begin: what each of them does first."""
    context = multiprocessing.get_context("spawn")  # a fork would inherit locks that threads of ours hold
    return ProcessPoolExecutor(workers, context, functools.partial(_begin, begin))


def _begin(begin: Callable[[], None]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C in the terminal is for whoever started us
    die_with_parent()
    begin()
