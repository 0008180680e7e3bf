"""The processes that work at one thing together: which of them this is, and what passes between them.

torch's process group is what ties them. Where there is none, this process is the only one, and everything here is at once.
All of them call the same functions in the same order; where one ends, whoever started them ends the others.
"""

import contextlib
import contextvars
import json
import os
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

from diffcore.core import disk
from diffcore.core.errors import UserError

Item = TypeVar("Item")

PATIENCE = timedelta(hours=6)
"""How long one waits for the others: the main one may be hashing data or writing a large state."""

NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun tells each process that it starts."""


class Lost(Exception):
    """Another of the processes has ended, and this one can do nothing alone."""


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Inside, this process is one of the group that the environment names, if it names one of several.

    A UserError where the others cannot be met, Lost where one of them ends too early.
    """
    if distributed.is_initialized() or not is_called():
        yield
        return
    store = _join()
    try:
        yield
    except Exception as error:
        if _is_lost(error):
            raise Lost(str(error)) from error
        raise
    else:
        _leave(store)
    finally:
        distributed.destroy_process_group()  # at the end of Python its threads may still run, and abort


def _join() -> distributed.Store:
    try:
        if torch.cuda.is_available():
            torch.cuda.set_device(device())
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        store, own, number = next(distributed.rendezvous("env://", timeout=PATIENCE))
        group = distributed.PrefixStore("group", store)
        distributed.init_process_group(backend, store=group, rank=own, world_size=number, timeout=PATIENCE)
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"the other processes cannot be met: {' '.join(str(error).split())}; look at {', '.join(NAMES)} "
            "in the environment"
        ) from None
    return store


def _leave(store: distributed.Store) -> None:
    """When all have done their work: one that ended before would break off what another is still receiving."""
    store.set(f"done/{rank()}", "")
    store.wait([f"done/{each}" for each in range(count())], PATIENCE)


def _is_lost(error: Exception) -> bool:
    """gloo and the store raise a bare RuntimeError of their own words."""
    return isinstance(error, distributed.DistError) or "gloo/transport" in str(error)


def is_called() -> bool:
    """Whether the environment names a group of several processes; stray names of other programs are none."""
    return all(name in os.environ for name in NAMES) and os.environ["WORLD_SIZE"] != "1"


_ALONE = contextvars.ContextVar("alone", default=False)


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Inside, this process is the only one: it works for itself at what the others do not take part in."""
    before = _ALONE.set(True)
    try:
        yield
    finally:
        _ALONE.reset(before)


def _is_one_of_several() -> bool:
    return distributed.is_initialized() and not _ALONE.get()


def rank() -> int:
    """The number of this process, from 0."""
    return distributed.get_rank() if _is_one_of_several() else 0


def count() -> int:
    """How many processes there are."""
    return distributed.get_world_size() if _is_one_of_several() else 1


def is_main() -> bool:
    """Whether this one locks, writes and reports for all."""
    return rank() == 0


def device() -> torch.device:
    """Where this process computes: its own GPU, or the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ["LOCAL_RANK"])) if is_called() else torch.device("cuda")


def wait() -> None:
    """Until all have come here."""
    if count() > 1:
        _sum(torch.zeros(()))  # a barrier of gloo's own, whatever the devices


def share(items: Sequence[Item]) -> Sequence[Item]:
    """Those of the items that are this process's: every n-th of them."""
    return items[rank() :: count()]


def dealt(items: Sequence[Item], work: Callable[[Item], Tensor]) -> Iterator[Tensor]:
    """`work` of each item, in their order, in every process, on the CPU or where `work` left it; each process does its share.

    Since each item is worked out by one process as one alone would do it, the results are the same bit for bit.
    """
    for first in range(0, len(items), count()):
        around = items[first : first + count()]
        own = work(around[rank()]) if rank() < len(around) else None
        for source in range(len(around)):
            yield own if count() == 1 else _from(source, own)


def total(number: float) -> float:
    """The sum of all processes' numbers."""
    return number if count() == 1 else float(_sum(torch.tensor(number, dtype=torch.float64)))


def from_main(value: Any) -> Any:
    """The main process's value, JSON, in all of them."""
    if count() == 1:
        return value
    text = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8) if is_main() else None
    return disk.parse_json(bytes(_from(0, text).tolist()))


def spread(tensors: Sequence[Tensor]) -> None:
    """Copies the main process's values into the tensors of all others."""
    if count() > 1:
        for tensor in tensors:
            distributed.broadcast(whole := tensor.contiguous(), 0)
            tensor.copy_(whole)


def average(tensors: Sequence[Tensor]) -> None:
    """Puts the mean over all processes into the tensors, which are floating and on one device, in one collective."""
    if count() == 1 or not tensors:
        return
    whole = torch.cat([tensor.flatten() for tensor in tensors])
    distributed.all_reduce(whole)
    whole /= count()
    for tensor, part in zip(tensors, whole.split([tensor.numel() for tensor in tensors])):
        tensor.copy_(part.view_as(tensor))


def _sum(tensor: Tensor) -> Tensor:
    distributed.all_reduce(tensor)
    return tensor


DTYPES = (
    torch.float32,
    torch.float64,
    torch.bfloat16,
    torch.float16,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
)
"""What passes between processes; a place here is its number on the way."""


def _from(source: int, tensor: Tensor | None) -> Tensor:
    """The tensor of one process in all of them, on the device that it has there: "cpu", or each one's own GPU."""
    own = rank() == source
    head = torch.zeros(12, dtype=torch.int64)
    if own:
        facts = [DTYPES.index(tensor.dtype), int(tensor.is_cuda), tensor.ndim, *tensor.shape]
        head[: len(facts)] = torch.tensor(facts)
    distributed.broadcast(head, source)
    dtype, on_gpu, dimensions, *shape = head.tolist()
    if own:
        content = tensor.contiguous()
    else:
        content = torch.empty(shape[:dimensions], dtype=DTYPES[dtype], device=device() if on_gpu else "cpu")
    distributed.broadcast(content, source)
    return content
