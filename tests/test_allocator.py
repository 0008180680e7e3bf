"""Memory that tensors leave stays with a process of ours, unless the environment says otherwise."""

import json
import os
import platform
import subprocess
import sys

import pytest

from diffcore.core import allocator
from tasks import command

GLIBC = platform.libc_ver()[0] == "glibc"
PROGRAM = """
import json, resource, sys
import torch
from diffcore.core import allocator
kept = allocator.keep() if sys.argv[1] == "keep" else None
torch.set_num_threads(1)
def work():
    blocks = [torch.ones(1 << 18) for _ in range(8)]  # 8 MiB in blocks of 1 MiB, all given up at the end
    return sum(block[0].item() for block in blocks)
work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    work()
pages = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
allocator.give_back()
work()
again = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before - pages
print(json.dumps([kept, pages, again]))
"""


def faults(word: str, **environment: str) -> tuple[bool | None, int, int]:
    """What `keep` said, and the pages that the kernel was asked for by 20 calls of 2048 pages each, and by one after
    `give_back`."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, word], env={**own, **environment}, capture_output=True, text=True, check=True
    )
    return tuple(json.loads(done.stdout))


@pytest.mark.slow
@pytest.mark.skipif(not GLIBC, reason="another C library keeps memory by its own rules")
def test_memory_that_is_kept_is_asked_of_the_kernel_once():
    kept, pages, again = faults("keep")
    assert kept
    assert pages < 4 * 2048  # now and then the heap is laid out once more, which takes those of a call again
    assert again > 1024  # what is given back has to be asked for
    assert (
        faults("leave", MALLOC_MMAP_THRESHOLD_="131072")[1] > 20 * 2048
    )  # each block comes from the kernel: it is counted


@pytest.mark.parametrize("chosen", [{"MALLOC_TRIM_THRESHOLD_": "0"}, {"GLIBC_TUNABLES": "glibc.malloc.top_pad=4096"}])
def test_what_the_environment_says_of_memory_holds(monkeypatch, chosen):
    for name, value in chosen.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda name: pytest.fail("the environment has chosen"))
    assert not allocator.keep()


def test_another_c_library_is_left_alone(monkeypatch):
    for name in [name for name in os.environ if name.startswith(("MALLOC_", "GLIBC_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda name: object())
    assert not allocator.keep()


def test_every_command_keeps_memory(monkeypatch):
    calls = []
    monkeypatch.setattr(allocator, "keep", lambda: calls.append(1))
    assert command.main(["--help"]) == 0
    assert calls == [1]
