"""Every ratio of training and sampling on a GPU, with the device's name: ours against a plain loop, bare calls and the peak.

The network is DDPM's for CIFAR-10, 36 million parameters, attention at 16 pixels and in the middle: a folder in diffusers'
format (`from: PATH`). What params.yaml builds that is nearest has attention at 8 and 4 pixels too: `channels: [128, 256, 256,
256]`, `layers: 2`, `attention: true`, `groups: 32`. The plain loop is what anybody would write of the same round of halving:
accelerate, a DataLoader, AdamW, an EMA, and diffusers' UNet2DModel where diffusers is installed, else our own network.

    python bench/gpu.py            # made for under 8 minutes on one H100, not run there yet
    python bench/gpu.py --small    # a tiny network, on a CPU too: to see that it works
"""

import argparse
import contextlib
import copy
import functools
import math
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from unittest.mock import patch

import torch
from accelerate import Accelerator
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import diffcore.training.learner
import diffcore.training.loop
from diffcore import methods
from diffcore.core.rng import generator
from diffcore.data.feed import ResidentFeed
from diffcore.data.read import Images
from diffcore.denoisers.bfloat16 import BFloat16
from diffcore.denoisers.network import NetDenoiser
from diffcore.denoisers.reading import VP
from diffcore.nets import unet
from diffcore.noise.schedule import Cosine
from diffcore.noise.trajectory import uniform
from diffcore.sampling import headroom
from diffcore.sampling.sampler import Sampler
from diffcore.sampling.solvers import SOLVERS
from diffcore.training.config import Compute, Training
from diffcore.training.loop import Job, Loop

STEPS = 4
"""Of the student; its teacher takes twice as many."""


@dataclass(frozen=True)
class Size:
    """channels, groups: of the network, two layers on each level. side: of the images. batch: of a training and of the first
    samplings. updates: in a slice; slices: of each loop, in turns. batches: of a draw. matrix: side of the product whose
    speed is the measured peak. compiles: whether torch.compile is tried."""

    channels: tuple[int, ...] = (128, 256, 256, 256)
    groups: int = 32
    side: int = 32
    images: int = 50_000
    batch: int = 256
    updates: int = 40
    slices: int = 4
    batches: int = 8
    matrix: int = 8192
    compiles: bool = True


SMALL = Size((8, 8), 4, 8, 64, 8, 2, 2, 2, 256, compiles=False)

PEAKS = {
    "B200": 2250,
    "H200": 989,
    "H100 PCIe": 756,
    "H100": 989,
    "A100": 312,
    "L40S": 362,
    "L4": 121,
    "4090": 165,
    "3090": 71,
}
"""Dense bfloat16 products, 10^12 operations a second, by a part of the device's name; the first that fits."""


class Machine:
    """Where all is measured, and its clock."""

    def __init__(self):
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.compute = Compute(
            threads=torch.get_num_threads(), precision="auto", compile=False, save_seconds=1e9, memory_gb=4.0
        )
        self.half = self.compute.numbers == "bf16"
        self.name = torch.cuda.get_device_name() if self.on_gpu else "CPU"

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def peak(self) -> float | None:
        """Operations a second by the device's name, None for an unknown one."""
        return next((1e12 * peak for part, peak in PEAKS.items() if part in self.name), None)

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, self.half)

    def seconds(self, work: Callable[[], object]) -> float:
        """From the first of its work to the last, by the GPU's own events."""
        if not self.on_gpu:
            started = time.perf_counter()
            work()
            return time.perf_counter() - started
        torch.cuda.synchronize()
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        work()
        last.record()
        torch.cuda.synchronize()
        return first.elapsed_time(last) / 1000

    def synchronisations(self, work: Callable[[], object]) -> int | None:
        """How often the host waits for the GPU in it; None without one."""
        if not self.on_gpu:
            return None
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                work()
            finally:
                torch.cuda.set_sync_debug_mode("default")
        return sum("synchroniz" in str(each.message) for each in caught)


def best(machine: Machine, works: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """The least seconds of each over so many turns, in which all are timed one after the other."""
    turns = [{name: machine.seconds(work) for name, work in works.items()} for _ in range(repeats)]
    return {name: min(turn[name] for turn in turns) for name in works}


# --- what is measured


def config(size: Size) -> unet.UNetConfig:
    """DDPM's (Ho et al. 2020, arXiv 2006.11239): attention on the second level and in the middle, of one head."""
    levels = len(size.channels)
    down = ["AttnDownBlock2D" if level == 1 else "DownBlock2D" for level in range(levels)]
    return unet.UNetConfig(
        sample_size=size.side,
        down_block_types=tuple(down),
        up_block_types=tuple(block.replace("Down", "Up") for block in reversed(down)),
        block_out_channels=size.channels,
        attention_head_dim=None,
        norm_num_groups=size.groups,
        freq_shift=1,
        flip_sin_to_cos=False,
        norm_eps=1e-6,
    )


@functools.cache
def pixels(size: Size) -> torch.Tensor:
    return torch.randint(0, 256, (size.images, 3, size.side, size.side), generator=generator(0)).to(torch.uint8)


def denoiser(size: Size) -> NetDenoiser:
    return NetDenoiser(unet.build(config(size), 0), Cosine())


def ours(machine: Machine, size: Size, batch: int, compiles: bool = False) -> Loop:
    """A round of halving, to be taken an update at a time."""
    method = methods.load("progressive")(steps=STEPS)
    training = Training(iterations=10**6, batch=batch, lr=1e-4, ema=0.999, clip=1.0)
    feed = ResidentFeed(Images(pixels(size), None, None), batch, 0, False, machine.device)
    student = denoiser(size)
    return Loop(Job(method, training, feed, 0), student, student, replace(machine.compute, compile=compiles))


def plain(machine: Machine, size: Size) -> tuple[str, Iterator[None]]:
    """Whose network the plain loop has, and its updates."""
    try:
        from diffusers import UNet2DModel
    except ImportError:
        return "our U-Net", plain_updates(machine, size, denoiser(size).net, lambda net, z, j: net(z, j))
    keys = {key: value for key, value in unet.config_json(config(size)).items() if not key.startswith("_")}
    net = UNet2DModel(**keys)
    return "diffusers' UNet2DModel", plain_updates(machine, size, net, lambda net, z, j: net(z, j).sample)


def plain_updates(machine: Machine, size: Size, net, call) -> Iterator[None]:
    """Salimans & Ho 2022 (arXiv 2202.00512), algorithm 2, written down as it stands there."""
    accelerator = Accelerator(mixed_precision="no")  # accelerate has one precision in a process, and ours is this
    teacher, average = (copy.deepcopy(net).eval().requires_grad_(False).to(accelerator.device) for _ in range(2))
    images = torch.utils.data.TensorDataset(pixels(size).float() / 127.5 - 1)
    loader = torch.utils.data.DataLoader(
        images, batch_size=size.batch, shuffle=True, drop_last=True, pin_memory=machine.on_gpu
    )
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4)
    net, optimizer, loader = accelerator.prepare(net, optimizer, loader)

    def level(t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        t = t.reshape(-1, 1, 1, 1)
        return torch.cos(math.pi / 2 * t), torch.sin(math.pi / 2 * t)

    def ddim(z: torch.Tensor, t: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        (alpha, sigma), (alpha_s, sigma_s) = level(t), level(s)
        v = call(teacher, z, 1024 * t - 1)
        return alpha_s * (alpha * z - sigma * v) + sigma_s * (sigma * z + alpha * v)

    while True:
        for (x0,) in loader:
            t = torch.randint(1, STEPS + 1, (len(x0),), device=x0.device) / STEPS
            (alpha, sigma), (alpha_s, sigma_s) = level(t), level(t - 1 / STEPS)
            z = alpha * x0 + sigma * torch.randn_like(x0)
            with torch.no_grad(), machine.autocast():
                middle = ddim(z, t, t - 0.5 / STEPS)
                end = ddim(middle, t - 0.5 / STEPS, t - 1 / STEPS)
                x = (end - sigma_s / sigma * z) / (alpha_s - sigma_s / sigma * alpha)
                aim = (alpha * z - x) / sigma
            with machine.autocast():
                v = call(net, z, 1024 * t - 1)
            loss = torch.nn.functional.mse_loss(v.float(), aim.float())
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            with torch.no_grad():
                for mean, weight in zip(average.parameters(), net.parameters()):
                    mean.lerp_(weight, 0.001)
            loss.detach().item()
            yield


# --- the rows

Row = tuple[str, str]


def training(machine: Machine, size: Size) -> Iterator[Row]:
    """(a) images/s, and (b) what share of the peak that is."""
    whose, updates = plain(machine, size)
    loops = {"eager": ours(machine, size, size.batch)}
    if size.compiles:
        loops["compiled"] = ours(machine, size, size.batch, compiles=True)
    works = {name: lambda loop=loop: repeat(loop.update, size.updates) for name, loop in loops.items()}
    works["plain"] = lambda: repeat(lambda: next(updates), size.updates)
    for work in works.values():
        work()  # compiles, tries algorithms
    rates = {name: size.batch * size.updates / least for name, least in best(machine, works, size.slices).items()}
    yield "plain loop", f"{rates['plain']:.0f} images/s: accelerate, AdamW, EMA, {whose}, batch {size.batch}"
    flops = flops_of_an_image(machine, size)
    yield "operations", f"{flops / 1e9:.3g} 10^9 for an image of a round of halving (FlopCounterMode)"
    measured = product(machine, size)
    yield "measured peak", f"{measured / 1e12:.3g} 10^12/s, a product of {size.matrix}^3"
    for name in ("eager", "compiled"):
        if name not in rates:
            yield f"training, {name}", "left out: --small"
            continue
        ratio = rates[name] / rates["plain"]
        yield f"training, {name}", f"{rates[name]:.0f} images/s, {ratio:.2f} times the plain loop (bar 2)"
    fastest = max(rate for name, rate in rates.items() if name != "plain")
    named = f"{flops * fastest / machine.peak:.1%} of the name's peak" if machine.peak else "no peak known by this name"
    yield "MFU", f"{named} (bar 25 %, goal 45 %), {flops * fastest / measured:.1%} of the measured one"


def repeat(step: Callable[[], object], count: int) -> None:
    for _ in range(count):
        step()


def flops_of_an_image(machine: Machine, size: Size) -> float:
    loop, batch = ours(machine, replace(size, images=64), 4), 4
    loop.update()
    with FlopCounterMode(display=False) as counter:
        loop.update()
    return counter.get_total_flops() / batch


def product(machine: Machine, size: Size) -> float:
    """Operations a second of one large product in the precision that networks compute in."""
    dtype = torch.bfloat16 if machine.half else torch.float32
    a, b = (torch.randn(size.matrix, size.matrix, device=machine.device, dtype=dtype) for _ in range(2))
    repeat(lambda: a @ b, 3)
    least = best(machine, {"product": lambda: repeat(lambda: a @ b, 10)}, 3)["product"]
    return 10 * 2 * size.matrix**3 / least


def sampling(machine: Machine, size: Size) -> Iterator[Row]:
    """(c) draws against bare network calls, (d) where the host waits, (f) the largest batch that fits."""
    whole = denoiser(size).to(machine.device, memory_format=torch.channels_last).eval().requires_grad_(False)
    believed, shape = BFloat16(whole) if machine.half else whole, (3, size.side, size.side)
    samplers = {
        f"{word}, {steps} steps": Sampler(believed, SOLVERS[word](), uniform(steps))
        for word, steps in (("ddim", 8), ("ddpm", 8), ("ddim", 1))
    }
    any_sampler = next(iter(samplers.values()))
    most = headroom.largest(lambda count: any_sampler.warm_up(shape, count), headroom.MOST, machine.device)
    for batch in dict.fromkeys((size.batch, most if machine.on_gpu else size.batch)):
        batches = max(3, size.batches * size.batch // batch)
        for name, sampler in samplers.items():
            least = drawing(machine, size, sampler, whole.net, batch, batches)
            rate, ratio = batches * batch / least["draw"], least["draw"] / least["bare"]
            yield (
                f"sampling, {name}, batch {batch}",
                f"{rate:.0f} images/s, {ratio:.3f} times bare network calls (bar 1.02)",
            )
    yield "largest batch of samples", f"{most}" + ("" if machine.on_gpu else ", the fixed one of a CPU")
    x = torch.randn(size.batch, *shape, device=machine.device)
    runs = [lambda steps=steps: samplers[f"ddim, {steps} steps"].sample(x) for steps in (1, 8)]
    waits = [machine.synchronisations(run) for run in runs]
    yield "host waits, a sampling step", "no GPU" if None in waits else f"{(waits[1] - waits[0]) / 7:g}"
    one, eight = map(operations, runs)
    network = operations(lambda: bare(machine, whole.net, shape, size.batch, 8)) - operations(
        lambda: bare(machine, whole.net, shape, size.batch, 1)
    )
    yield "operations of a sampling step", f"{(eight - one) / 7:.0f}, of which {network / 7:.0f} of the network"


def drawing(
    machine: Machine, size: Size, sampler: Sampler, net: torch.nn.Module, batch: int, batches: int
) -> dict[str, float]:
    """Seconds of a draw, and of its network calls alone."""
    shape, calls = (3, size.side, size.side), batches * sampler.trajectory.steps
    works = {
        "draw": lambda: sampler.draw(shape, batches * batch, 0, batch),
        "bare": lambda: bare(machine, net, shape, batch, calls),
    }
    for work in works.values():
        work()
    return best(machine, works, max(2, size.slices - 2))


class Operations(TorchDispatchMode):
    """Counts what torch is asked to compute; views are none."""

    count = 0

    def __torch_dispatch__(self, operation, kinds, arguments=(), words=None):
        self.count += not operation.is_view
        return operation(*arguments, **(words or {}))


def operations(work: Callable[[], object]) -> int:
    with Operations() as counted:
        work()
    return counted.count


@torch.inference_mode()
def bare(machine: Machine, net: torch.nn.Module, shape: tuple[int, ...], batch: int, calls: int) -> None:
    x = torch.randn(batch, *shape, device=machine.device)
    j = VP.timestep(torch.full((batch,), 0.5, device=machine.device), Cosine())
    with machine.autocast():
        repeat(lambda: net(x, j), calls)


def parts(machine: Machine, size: Size) -> Iterator[Row]:
    """(d) where the host waits in an update, and (e) what its parts take: an update with and without each."""
    loop = ours(machine, size, size.batch)
    repeat(loop.update, 2)
    waits = machine.synchronisations(loop.update)
    yield "host waits, an update", "no GPU" if waits is None else f"{waits}"
    x0 = torch.zeros(size.batch, 3, size.side, size.side, device=machine.device)
    drawn = diffcore.training.loop.draw(x0, 0, count=size.batch)
    without = {
        "all": contextlib.nullcontext,
        "random numbers": lambda: patch.object(diffcore.training.loop, "draw", return_value=drawn),
        "EMA": lambda: patch.object(diffcore.training.learner, "follow"),
        "optimizer and EMA": lambda: patch.object(loop.student, "step"),
    }

    def updates(change: Callable[[], contextlib.AbstractContextManager]) -> None:
        with change():
            repeat(loop.update, size.updates)

    works = {name: lambda change=change: updates(change) for name, change in without.items()}
    least = {name: 1000 * each / size.updates for name, each in best(machine, works, max(2, size.slices - 1)).items()}
    yield "an update", f"{least['all']:.2f} ms, batch {size.batch}, eager"
    for name in [name for name in without if name != "all"]:
        yield f"of it {name}", f"{least['all'] - least[name]:.2f} ms (what an update takes less without)"


def larger(machine: Machine, size: Size) -> Iterator[Row]:
    """(f) the batch of a training, doubled while it fits."""
    best_rate, at, batch = 0.0, size.batch, size.batch
    while batch <= 16 * size.batch and batch <= size.images:
        rate = headroom.tried(lambda rows: rate_of(machine, size, len(rows)), range(batch))
        if rate is None:
            break
        best_rate, at = max((best_rate, at), (rate, batch))
        batch *= 2
    end = f"{batch} does not fit" if batch <= min(16 * size.batch, size.images) else f"{batch} was not tried"
    yield "larger batches of a training", f"{best_rate:.0f} images/s at {at}, the fastest, eager; {end}"


def rate_of(machine: Machine, size: Size, batch: int) -> float:
    loop, count = ours(machine, size, batch), max(2, size.updates * size.batch // batch)
    repeat(loop.update, 2)
    return batch * count / machine.seconds(lambda: repeat(loop.update, count))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--small", action="store_true", help="a tiny network, to see that it works")
    size = SMALL if parser.parse_args().small else Size()
    machine, started = Machine(), time.perf_counter()
    numbers = sum(parameter.numel() for parameter in denoiser(size).parameters()) / 1e6
    print(f"{machine.name}, torch {torch.__version__}, {machine.compute.numbers}")
    print(f"U-Net of {numbers:.3g} million parameters, {size.side}x{size.side}x3, the best of several turns\n")
    for section in (training, sampling, parts, larger):
        for name, text in section(machine, size):
            print(f"{name:<36}{text}", flush=True)
    print(f"\n{time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
