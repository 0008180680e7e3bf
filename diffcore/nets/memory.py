"""How much memory a training takes at the very least, how much this machine has, and what a GPU has left.

The estimates are lower bounds, so that what they find too much is too much: of a training the weights, gradients, AdamW's
two moments and the averages, of a batch the images, their noise and what the residual blocks keep for the way back.
"""

import gc
import math
import os
import resource
from collections.abc import Callable, Sequence

import torch

from diffcore.nets.family import Shape

FLOAT = 4
"""Bytes."""


def of_machine() -> int:
    """Bytes in which one process, or one for each GPU, can compute: those of all GPUs, or of the machine if that is more."""
    own = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    return max(own, sum(torch.cuda.get_device_properties(gpu).total_memory for gpu in gpus))


def of_weights(shape: Shape, channels: int, copies: int) -> int:
    """Bytes of a training's networks: `copies` beside gradients and two moments, all in float32."""
    return FLOAT * (3 + copies) * shape.parameters(channels)


def of_batch(shape: Shape | None, image: Sequence[int], batch: int, part: int, bytes_each: int = FLOAT) -> int:
    """Bytes of a training step: all its images and their noise, and what is kept of `part` of them at a time.

    shape: None for a network that is not known. bytes_each: of a kept number; 2 in bfloat16.
    """
    return 2 * FLOAT * batch * math.prod(image) + bytes_each * part * (shape.kept(image) if shape else 0)


def readable(count: int) -> str:
    """Bytes in the largest unit that fits: 3.2 TB."""
    units = ("bytes", "kB", "MB", "GB", "TB", "PB")
    power = min(max(0, len(str(count)) - 1) // 3, len(units) - 1)
    return f"{count / 1000**power:.3g} {units[power]}"


def free(device: torch.device) -> int:
    """Bytes of a GPU that this process can still take: those nobody has, and what torch holds unused."""
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + unused


def peak(device: torch.device, work: Callable[[], object]) -> int:
    """The most bytes of a GPU that `work` takes at a time, beside what is taken already."""
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    work()
    return torch.cuda.max_memory_allocated(device) - before


def most(device: torch.device) -> int:
    """The most bytes that this process has taken so far: of a GPU, else of the machine."""
    if device.type == "cpu":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return torch.cuda.max_memory_allocated(device)


def give_back() -> None:
    """What torch holds unused, to the GPU: blocks of a batch that was too large fit no smaller one."""
    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()
