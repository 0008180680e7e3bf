"""Seconds of Gamma for N = 1000 and M = 10 with the default network, against its bare network calls. Bar: 1.1.

python bench/gamma.py
"""

import statistics
import time

import torch

from diffcore.core.rng import noises
from diffcore.denoisers.network import NetDenoiser
from diffcore.denoisers.reading import VP
from diffcore.nets import unet
from diffcore.noise.schedule import Cosine
from diffcore.search.gamma import Config, estimate

THREADS, ROUNDS = 2, 5
CONFIG = Config(steps=1000, images=10, batch=500, seed=0)


def main() -> None:
    torch.set_num_threads(THREADS)
    net = unet.build(unet.default_config((1, 8, 8)), 0).to(memory_format=torch.channels_last).eval()
    denoiser, x0 = NetDenoiser(net, Cosine()), noises((1, 8, 8), 0, range(CONFIG.images)).clamp(-1, 1)
    x = noises((1, 8, 8), 1, range(CONFIG.batch)).to(memory_format=torch.channels_last)
    timesteps = VP.timestep(torch.linspace(0.001, 1, CONFIG.batch), Cosine())
    calls = CONFIG.steps * CONFIG.images // CONFIG.batch

    @torch.inference_mode()
    def bare() -> None:
        for _ in range(calls):
            net(x, timesteps)

    pairs = [(timed(lambda: estimate(denoiser, x0, CONFIG)), timed(bare)) for _ in range(ROUNDS)]
    ours, floor = (statistics.median(side) for side in zip(*pairs))
    ratio = statistics.median(a / b for a, b in pairs)
    print(
        f"gamma N=1000 M=10: {ours:.2f} s; {calls} bare calls of {CONFIG.batch}: {floor:.2f} s; median ratio {ratio:.2f}"
    )
    print(f"CPU, {THREADS} threads, {ROUNDS} alternating rounds")


def timed(run) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
