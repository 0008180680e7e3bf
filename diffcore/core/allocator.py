"""What the C library does with memory that a process gave up."""

import contextlib
import ctypes
import os

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
KEPT = 1 << 30
"""Bytes at the end of the heap that stay with the process."""
LARGE = 1 << 28
"""Bytes from which on a block is the kernel's own, and goes back to it at once."""


def keep() -> bool:
    """Lets glibc keep what tensors left for the next ones, up to KEPT; whether it does.

    A network's activations come and go with each call. By default much of that goes back to the kernel, whose fresh pages
    are zeroed one by one: a seventh of the default network's call, a quarter of one for images of 128x128
    (bench/allocator.py). No number changes. Where the environment says how memory is allocated, and where the C library is
    another one, nothing happens.
    """
    chosen = [name for name in os.environ if name.startswith("MALLOC_")]
    if chosen or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, LARGE) and mallopt(M_TRIM_THRESHOLD, KEPT))


def give_back() -> None:
    """What is kept goes back to the kernel, for a process whose forks shall not count it as theirs. Only glibc has it."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
