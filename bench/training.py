"""Training images/s of our loop against a plain diffusers + accelerate loop, same architecture, batch and thread count.

The peer is what one writes after diffusers' unconditional example: UNet2DModel, a DataLoader, `accelerator.prepare`, AdamW,
clipping, EMAModel and a cosine schedule of the learning rate. Both run in alternating slices of one process.

    python bench/training.py
"""

import statistics
import time
import warnings

import torch
from accelerate import Accelerator

from diffcore import methods
from diffcore.data.feed import ResidentFeed
from diffcore.data.read import Images
from diffcore.denoisers.network import NetDenoiser
from diffcore.nets import unet
from diffcore.noise.schedule import Cosine
from diffcore.training import fit

THREADS, BATCH, STEPS, SLICES = 2, 128, 20, 6


def pixels() -> torch.Tensor:
    return torch.randint(0, 256, (1797, 1, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def ours() -> "fit._Loop":
    """Our loop, to be stepped a slice at a time."""
    method = methods.load("denoising")
    config = fit.Config(iterations=10**6, batch=BATCH, lr=3e-3, ema=0.995, clip=1.0)
    compute = fit.Compute(threads=THREADS, precision="no", compile=False, save_seconds=1e9, memory_gb=1.0)
    feed = ResidentFeed(Images(pixels(), None, None), BATCH, 0, False)
    student = NetDenoiser(unet.build(unet.default_config((1, 8, 8)), 0), Cosine())
    return fit._Loop(fit.Job(method(), config, feed, 0), student, None, compute)


def peer():
    """The plain loop as a generator: one step each."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from diffusers import DDPMScheduler, UNet2DModel
        from diffusers.optimization import get_cosine_schedule_with_warmup
        from diffusers.training_utils import EMAModel
    config = {k: v for k, v in unet.config_json(unet.default_config((1, 8, 8))).items() if not k.startswith("_")}
    net = UNet2DModel(**config)
    noising = DDPMScheduler(num_train_timesteps=1000, prediction_type="v_prediction")
    images = torch.utils.data.TensorDataset(pixels().float() / 127.5 - 1)
    loader = torch.utils.data.DataLoader(images, batch_size=BATCH, shuffle=True, drop_last=True)
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3, betas=(0.95, 0.999), weight_decay=1e-6)
    rates = get_cosine_schedule_with_warmup(optimizer, 500, 10**6)
    accelerator = Accelerator()
    net, optimizer, loader, rates = accelerator.prepare(net, optimizer, loader, rates)
    average = EMAModel(net.parameters(), decay=0.9999, use_ema_warmup=True)
    while True:
        for (clean,) in loader:
            noise = torch.randn_like(clean)
            times = torch.randint(0, 1000, (len(clean),))
            noisy = noising.add_noise(clean, noise, times)
            with accelerator.accumulate(net):
                out = net(noisy, times).sample
                loss = torch.nn.functional.mse_loss(out, noising.get_velocity(clean, noise, times))
                accelerator.backward(loss)
                accelerator.clip_grad_norm_(net.parameters(), 1.0)
                optimizer.step()
                rates.step()
                optimizer.zero_grad()
            average.step(net.parameters())
            loss.detach().item()
            yield


def rate(step) -> float:
    started = time.perf_counter()
    for _ in range(STEPS):
        step()
    return STEPS * BATCH / (time.perf_counter() - started)


def main() -> None:
    torch.set_num_threads(THREADS)
    loop, plain = ours(), peer()
    steps = (loop.update, lambda: next(plain))
    for step in steps:
        for _ in range(5):
            step()
    pairs = [tuple(rate(step) for step in steps) for _ in range(SLICES)]
    mine, theirs = (statistics.median(side) for side in zip(*pairs))
    ratio = statistics.median(a / b for a, b in pairs)
    print(f"training, batch {BATCH}, 8x8x1, the default network of {count(loop.net):,} parameters:")
    print(f"  ours {mine:.0f} images/s, diffusers + accelerate {theirs:.0f} images/s, median ratio {ratio:.2f}")
    print(f"  CPU, {THREADS} threads, {SLICES} alternating slices of {STEPS} steps each")


def count(net: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


if __name__ == "__main__":
    main()
