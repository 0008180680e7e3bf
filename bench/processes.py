"""Training images/s of two processes with one thread each against one process with one thread: the same global batches.

Progressive distillation of a network at 32x32. The sides alternate; each run is new processes, whose start is not timed.

    python bench/processes.py [--rounds 3]
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

from diffcore import methods
from diffcore.core import launch, processes, threads
from diffcore.data.feed import ResidentFeed
from diffcore.data.read import Images
from diffcore.denoisers.network import NetDenoiser
from diffcore.nets import unet
from diffcore.noise.schedule import Cosine
from diffcore.training.config import Compute, Training
from diffcore.training.loop import Job, Loop

BATCH, STEPS, WARM = 64, 12, 3
SIDES = ((1, "ddp"), (2, "ddp"), (2, "fsdp"))


def loop(strategy: str) -> Loop:
    pixels = torch.randint(0, 256, (1000, 3, 32, 32), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    training = Training(iterations=10**6, batch=BATCH, lr=1e-3, ema=0.99)
    compute = Compute(
        threads=1, precision="no", compile=False, save_seconds=1e9, memory_gb=1.0, processes=1, strategy=strategy
    )
    feed = ResidentFeed(Images(pixels, None, None), BATCH, 0, False)
    student, teacher = (
        NetDenoiser(unet.build(unet.default_config((3, 32, 32), (32, 64)), s), Cosine()) for s in (0, 1)
    )
    return Loop(Job(methods.load("progressive")(steps=4), training, feed, 0), student, teacher, compute)


def measure(strategy: str, file: Path) -> None:
    """One of the processes of a side; the main one writes images/s."""
    threads.use(1)
    with processes.together():
        work = loop(strategy)
        for _ in range(WARM):
            work.update()
        processes.wait()
        started = time.perf_counter()
        for _ in range(STEPS):
            work.update()
        processes.wait()
        if processes.is_main():
            file.write_text(f"{STEPS * BATCH / (time.perf_counter() - started)}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Two processes against one.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--side", nargs=2)
    options = parser.parse_args()
    if options.side:
        measure(options.side[0], Path(options.side[1]))
        return
    rates = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rate"
        for _ in range(options.rounds):
            for count, strategy in SIDES:
                if code := launch.start([__file__, "--side", strategy, str(file)], count, print):
                    sys.exit(code)
                rates[count, strategy].append(float(file.read_text()))
    alone = statistics.median(rates[SIDES[0]])
    for count, strategy in SIDES:
        rate = statistics.median(rates[count, strategy])
        print(
            f"{count} process(es), {strategy if count > 1 else 'alone'}: {rate:.1f} images/s, {rate / alone:.2f} of one"
        )
    print(f"  CPU, one thread each, batch {BATCH}, 32x32x3, medians of {options.rounds} rounds of {STEPS} updates")


if __name__ == "__main__":
    main()
