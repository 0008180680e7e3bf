"""What it is worth that a process keeps the memory its tensors leave: CPU seconds of network calls and updates.

    python bench/allocator.py

Pairs of processes in turns, one thread: with glibc's own rules, and after `diffcore.core.allocator.keep`. faults: pages
fetched from the kernel in a call. MB: the most that a process had, of all its work.
"""

import json
import resource
import statistics
import subprocess
import sys
from collections.abc import Callable

TURNS, ROUNDS = 3, 3
SMALL, LARGE = ((1, 8, 8), (16, 32)), ((3, 128, 128), (32, 64))
"""Image and channels: the default run's network, and one whose activations are 8 to 32 MB."""


def main() -> None:
    seen = {kept: [] for kept in ("default", "kept")}
    for _ in range(TURNS):
        for kept, runs in seen.items():
            done = subprocess.run([sys.executable, __file__, kept], check=True, capture_output=True, text=True)
            runs.append(json.loads(done.stdout))
    print(f"medians of {TURNS} processes each")
    for what in seen["kept"][0]:
        (before, faults), (after, fewer) = (
            [statistics.median(run[what][i] for run in seen[kept]) for i in (0, 1)] for kept in seen
        )
        print(f"{what}: {before:.0f} and {after:.0f}, ratio {after / before:.2f}; faults {faults:.0f} and {fewer:.0f}")


def measure() -> dict[str, tuple[float, float]]:
    """CPU microseconds of one image and faults of one call, of each."""
    import torch

    torch.set_num_threads(1)
    costs = {
        "a call, 250 x 8x8, us for an image": cost(call(*SMALL, 250), 250, 20),
        "forward and backward, 128 x 8x8, us for an image": cost(update(*SMALL, 128), 128, 8),
        "a call, 4 x 128x128, us for an image": cost(call(*LARGE, 4), 4, 1),
        "forward and backward, 2 x 128x128, us for an image": cost(update(*LARGE, 2), 2, 1),
    }
    return costs | {"MB": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 0)}


def call(image: tuple[int, ...], channels: tuple[int, ...], batch: int) -> Callable[[], None]:
    import torch

    net, x, timestep = network(image, channels, batch)

    def work() -> None:
        with torch.inference_mode():
            net(x, timestep)

    return work


def update(image: tuple[int, ...], channels: tuple[int, ...], batch: int) -> Callable[[], None]:
    net, x, timestep = network(image, channels, batch)

    def work() -> None:
        net(x, timestep).square().mean().backward()
        net.zero_grad(set_to_none=True)

    return work


def network(image: tuple[int, ...], channels: tuple[int, ...], batch: int):
    import torch

    from diffcore.nets import unet

    net = unet.build(unet.default_config(image, channels), 0)
    return net, torch.randn(batch, *image), torch.full((batch,), 500.0)


def cost(work: Callable[[], None], batch: int, calls: int) -> tuple[float, float]:
    work()
    rounds = []
    for _ in range(ROUNDS):
        before = resource.getrusage(resource.RUSAGE_SELF)
        for _ in range(calls):
            work()
        after = resource.getrusage(resource.RUSAGE_SELF)
        seconds = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
        rounds.append((seconds / calls / batch * 1e6, (after.ru_minflt - before.ru_minflt) / calls))
    return min(rounds)


if __name__ == "__main__":
    if sys.argv[1:] == ["kept"]:
        from diffcore.core import allocator

        allocator.keep()
    if sys.argv[1:]:
        print(json.dumps(measure()))
    else:
        main()
