"""How many samples are computed at once: as many as a GPU has memory for."""

from collections.abc import Callable
from typing import TypeVar

import torch

from diffcore.core.errors import UserError
from diffcore.core.shapes import batches
from diffcore.nets import memory

Result = TypeVar("Result")

FIRST, MOST = 64, 4096
"""Batches that are tried on a GPU: doubled from FIRST; beyond MOST no network gets faster."""

USUAL = 250
"""The batch on a CPU, where larger ones gain nothing."""

SHARE = 0.8
"""Of the free memory: the rest is for what a solver keeps from step to step, noise on its way, and gaps."""


class Headroom:
    """At most so many samples at once, fewer from the moment that memory runs out. most: None for no limit yet.

    Samples do not depend on the batch they are in, so that what is computed in parts is what would be at once.
    on_less: hears of each new limit.
    """

    def __init__(self, most: int | None = None, on_less: Callable[[int], None] = lambda most: None):
        self.most, self.on_less = most, on_less

    def parts(self, rows: range) -> list[range]:
        """What the rows come in while memory does not run out."""
        return batches(rows, self.most or max(1, len(rows)))

    def split(self, rows: range, work: Callable[[range], Result]) -> list[Result]:
        """`work` of all rows in parts that fit, one after the other; a UserError if there is no memory for one row."""
        results: list[Result] = []
        while len(rows):
            part = rows[: self.most]
            result = tried(work, part)
            if result is not None:
                results.append(result)
                rows = rows[len(part) :]
                continue
            if len(part) == 1:
                raise UserError("the memory of the GPU is not enough for one sample; end what else runs there")
            self.most = len(part) // 2
            self.on_less(self.most)
        return results


def tried(work: Callable[[range], Result], rows: range) -> Result | None:
    """`work(rows)`; None where a GPU's memory ran out, which is given back first."""
    try:
        return work(rows)
    except torch.OutOfMemoryError:
        pass  # what the failed work still held is free only after this block
    memory.give_back()
    return None


def largest(call: Callable[[int], object], most: int, device: torch.device) -> int:
    """The batch that `call(batch)` has memory for: doubled from FIRST while twice its peak fits, at most `most` and MOST.

    On a CPU it is USUAL, and nothing is called.
    """
    if device.type != "cuda":
        return min(USUAL, most)
    size, most = min(FIRST, most), min(most, MOST)
    while size < most:
        peak = tried(lambda rows: memory.peak(device, lambda: call(len(rows))), range(size))
        if peak is None:
            return max(1, size // 2)
        if 2 * peak > SHARE * memory.free(device):
            break
        size = min(2 * size, most)
    return size
