"""channels_last against plain memory on a CPU, one thread: group norms by the channels of a group, and whole networks.

Above 1, channels_last takes longer. diffcore/nets/order.py draws its line by this.

    python bench/order.py
"""

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from diffcore.nets import unet

GROUPS, SECONDS, TRIES = 8, 0.05, 3
NUMBERS = 250 * 16 * 64  # in a norm's images
NETWORKS = [
    (channels, (3, side, side), batch)
    for channels in ((8, 16), (16, 32), (24, 48), (32, 64))
    for side, batch in ((8, 128), (16, 64), (32, 32))
]


def main() -> None:
    torch.set_num_threads(1)
    print("group norm: channels of a group, and ratios at 4x4, 8x8, 16x16, 32x32")
    for channels in (1, 2, 3, 4, 6, 8, 16, 32):
        print(f"  {channels:2d}  " + "  ".join(f"{norm(GROUPS * channels, side):5.1f}" for side in (4, 8, 16, 32)))
    print("network: channels, images, and ratios of a call and of a call with its backward pass")
    for channels, image, batch in NETWORKS:
        print(
            f"  {channels} {batch} x {image}  {call(channels, image, batch):.2f}  {training(channels, image, batch):.2f}"
        )


@torch.inference_mode()
def norm(channels: int, side: int) -> float:
    x = torch.randn(max(1, NUMBERS // (channels * side * side)), channels, side, side)
    return ratio(lambda order: x.to(memory_format=order), lambda placed: F.group_norm(placed, GROUPS))


def network(
    channels: tuple[int, ...], image: tuple[int, ...], batch: int
) -> tuple[unet.UNet, torch.Tensor, torch.Tensor]:
    net = unet.build(unet.default_config(image, channels), 0)
    return net, torch.randn(batch, *image), torch.full((batch,), 500.0)


@torch.inference_mode()
def call(*words) -> float:
    net, x, timestep = network(*words)
    return ratio(
        lambda order: (net.to(memory_format=order), x.to(memory_format=order)), lambda two: two[0](two[1], timestep)
    )


def training(*words) -> float:
    net, x, timestep = network(*words)
    return ratio(
        lambda order: (net.to(memory_format=order), x.to(memory_format=order)),
        lambda two: two[0](two[1], timestep).square().mean().backward(),
    )


def ratio(place: Callable, work: Callable) -> float:
    """The least CPU seconds of some tries in channels_last over those in plain memory, taken in turns."""
    least = {torch.channels_last: float("inf"), torch.contiguous_format: float("inf")}
    for _ in range(TRIES):
        for order in least:
            placed, count = place(order), 0
            work(placed)
            began = time.process_time()
            while time.process_time() < began + SECONDS or count < 2:
                work(placed)
                count += 1
            least[order] = min(least[order], (time.process_time() - began) / count)
    return least[torch.channels_last] / least[torch.contiguous_format]


if __name__ == "__main__":
    main()
