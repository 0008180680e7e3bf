"""Images/s of 20-step DDIM with DeepCache on two threads, against the plain network in alternation.

    OMP_NUM_THREADS=2 taskset -c 0,1 python bench/deepcache.py        bar: interval 3 at least 2x

The weights are those of a new network: this says what the calls cost, nothing about the images.
"""

import statistics
import time

import torch

from diffcore.core.rng import noises
from diffcore.denoisers.denoiser import Denoiser
from diffcore.denoisers.meter import Meter, Metered
from diffcore.denoisers.network import NetDenoiser
from diffcore.nets import unet
from diffcore.noise.schedule import Cosine
from diffcore.noise.trajectory import uniform
from diffcore.sampling.deepcache import Config, DeepCached
from diffcore.sampling.sampler import Sampler
from diffcore.sampling.solvers import SOLVERS

THREADS, SHAPE, BATCH, STEPS, ROUNDS, INTERVALS = 2, (3, 32, 32), 4, 20, 5, (1, 2, 3, 5)


def network() -> NetDenoiser:
    """The layout of DDPM's network for such images, narrower: four levels of two layers, widths 1, 2, 2, 2."""
    config = unet.default_config(SHAPE, channels=(28, 56, 56, 56), layers=2, attention=True, groups=4)
    return NetDenoiser(unet.build(config, 0).eval().requires_grad_(False), Cosine())


def seconds(denoiser: Denoiser) -> float:
    """One batch of samples."""
    sampler, start = Sampler(denoiser, SOLVERS["ddim"](), uniform(STEPS)), noises(SHAPE, 0, range(BATCH), "start")
    started = time.perf_counter()
    sampler.sample(start)
    return time.perf_counter() - started


def calls(denoiser: Denoiser) -> float:
    """What one sample costs, in calls of the whole network; also warms up."""
    meter = Meter()
    seconds(Metered(denoiser, meter))
    return meter.settle() / BATCH


def main() -> None:
    torch.set_num_threads(THREADS)
    plain = network()
    cached = {interval: DeepCached(plain, Config(interval)) for interval in INTERVALS}
    spent = {interval: calls(denoiser) for interval, denoiser in cached.items()}
    calls(plain)
    size = sum(p.numel() for p in plain.parameters()) / 1e6
    print(f"deepcache {size:.2f} M parameters, {SHAPE[1]} x {SHAPE[2]}, {STEPS}-step DDIM, batch {BATCH}, branch 0")
    for interval, denoiser in cached.items():
        pairs = [(seconds(plain), seconds(denoiser)) for _ in range(ROUNDS)]
        alone, ours = (BATCH / statistics.median(column) for column in zip(*pairs))
        ratio = statistics.median(without / with_ for without, with_ in pairs)
        print(
            f"interval {interval}: {ours:.1f} images/s, plain {alone:.1f}, ratio {ratio:.2f}x; "
            f"{spent[interval]:.2f} effective calls of {STEPS}, {STEPS / spent[interval]:.2f}x fewer"
        )
    print(f"CPU, {THREADS} threads, medians of {ROUNDS} alternating pairs of runs")


if __name__ == "__main__":
    main()
