"""DeepCache: most calls of a sampling run redo only the finest part of a U-Net (Ma et al. 2023, arXiv 2312.00858).

What comes up from the deep part changes slowly from one time to the next. A full call keeps it; a cached call runs the way
down to one skip, takes up the kept tensor there, and goes on from it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from diffcore.core.errors import UserError
from diffcore.core.shapes import PerSample, Sample
from diffcore.denoisers.condition import CLASS, END, GUIDANCE, Condition
from diffcore.denoisers.denoiser import Denoiser, Wrapper
from diffcore.denoisers.network import NetDenoiser
from diffcore.denoisers.prediction import Prediction
from diffcore.nets.unet import UNet
from diffcore.sampling.skip_tuning import SkipScaled


@dataclass(frozen=True)
class Config:
    """interval: one call in so many is a full one; 1 is the plain network. branch: how many skips further than to the first
    two a cached call goes; 0 is the cheapest.

    spread: full calls at every interval-th call, or as many of them crowded around call `center`, the more the higher `power`
    is. The paper's numbers, 15 and 1.4, were for 50 calls. Calls are counted, not steps: some solvers make several a step.
    """

    interval: int
    branch: int = 0
    spread: Literal["uniform", "quadratic"] = "uniform"
    center: float = 15.0
    power: float = 1.4

    def __post_init__(self):
        if self.interval < 1 or self.branch < 0:
            raise ValueError(
                f"interval must be at least 1 and branch at least 0, got {self.interval} and {self.branch}"
            )
        if self.power < 1 or self.center < 0:
            raise ValueError(f"power must be at least 1 and center at least 0, got {self.power} and {self.center}")


def full_calls(config: Config, calls: int) -> frozenset[int]:
    """Which of a run's calls, counted from 0, are full; the first always is.

    Quadratic: the paper's l^p + c for l evenly from -c^(1/p) to (n - c)^(1/p), with the sign of l kept. (Its code takes the
    root of -c to be complex and drops the imaginary part in the end, which leaves the middle less crowded.)
    """
    if config.spread == "uniform" or config.interval == 1:
        return frozenset(range(0, calls, config.interval))
    count, power = -(-calls // config.interval), config.power
    while len(full := _crowded(config.center, power, calls, count)) < count and power > 1:
        power = max(1.0, power - 0.02)  # less crowded, until no two fall on one call
    return full


def _crowded(center: float, power: float, calls: int, count: int) -> frozenset[int]:
    center = min(center, calls - 1)
    first, last = -(center ** (1 / power)), (calls - center) ** (1 / power)
    steps = (first + (last - first) * k / count for k in range(count))
    return frozenset(int(center + math.copysign(abs(step) ** power, step) + 1e-9) for step in steps)


def check(config: Config, skips: int) -> None:
    """A UserError for a branch that a network with so many skips (`skips` of its config or its shape) does not have."""
    if config.branch > skips - 2:
        raise UserError(f"{config.branch} is not one of the network's {skips - 1} branches, which are counted from 0")


class DeepCached(Wrapper):
    """A denoiser that remembers within one sampling run, from `start_run` to the next.

    Its network must be our U-Net, with scaled skips or without. Without `start_run`, and where gradients are recorded,
    it refuses to be called: a UserError.
    """

    def __init__(self, inner: NetDenoiser, config: Config):
        super().__init__(inner)
        if not isinstance(inner.net, UNet | SkipScaled):
            raise UserError("deepcache needs our own U-Net, whose parts it can run alone; leave `deepcache` out")
        check(config, inner.net.config.skips)
        self.config = config
        self.shares: dict[tuple[int, ...], float] = {}

    def forward(self, x_t: Sample, t: PerSample) -> Prediction:
        raise UserError("deepcache belongs to one sampling run; sample through Sampler, which begins it")

    def start_run(self, calls: int | None) -> Denoiser:
        if calls is None:
            raise UserError("deepcache needs a sampler with a fixed number of calls; leave it out here")
        return _Run(self, full_calls(self.config, calls), _Memory(self.inner.net, self.config.branch))

    def with_inner(self, inner: NetDenoiser) -> "DeepCached":
        wrapper = DeepCached(inner, self.config)
        wrapper.shares = self.shares
        return wrapper

    def share(self, shape: Sequence[int]) -> float:
        """A cached call's part of a full one's multiply-adds, for samples of this shape [c, h, w]."""
        key = tuple(shape)
        if key not in self.shares:
            self.shares[key] = _share(self.inner.net, self.config, key)
        return self.shares[key]


class _Run(Denoiser):
    """One run: which of its calls are full; its memory knows which call this is, and what the last full one kept."""

    def __init__(self, whole: DeepCached, full: frozenset[int], memory: "_Memory"):
        super().__init__()
        self.whole, self.schedule, self.grid = [whole], whole.schedule, whole.grid  # in a list: no part of this module
        self.memory, self.inner, self.full = memory, whole.inner.with_network(memory), full

    def forward(self, x_t: Sample, t: PerSample) -> Prediction:
        if torch.is_grad_enabled():
            raise UserError("deepcache is for sampling, without gradients: train and differentiate the plain network")
        self.memory.full = self.memory.call in self.full
        cost = 1.0 if self.memory.full else self.whole[0].share(x_t.shape[1:])
        self.memory.call += 1
        return replace(self.inner(x_t, t), cost=cost)

    def with_condition(self, condition: Condition) -> Denoiser:
        self.inner = self.inner.with_condition(condition)
        return self

    def toward(self, s: PerSample) -> Denoiser:
        """Of the same run and memory, for this one hop."""
        run = _Run(self.whole[0], self.full, self.memory)
        run.inner = self.inner.toward(s)
        return run

    def select(self, rows: slice | Tensor) -> Denoiser:
        raise UserError("deepcache keeps whole batches; sample with a sampler that leaves the batch together")


class _Memory(nn.Module):
    """The network, with what its deep part last gave, and how often it was called in this run."""

    def __init__(self, net: UNet | SkipScaled, branch: int):
        super().__init__()
        self.net, self.cut, self.full, self.call = net, branch + 2, True, 0
        self.kept: Tensor | None = None
        self.shape: torch.Size | None = None

    def forward(self, x: Tensor, timestep: Tensor, **inputs: Tensor) -> Tensor:
        if self.shape not in (None, x.shape):
            raise UserError("deepcache: the batch changed within a sampling run; begin a new one")
        self.shape, embedding = x.shape, self.net.embed(timestep, **inputs)
        if self.full:
            skips = self.net.down(x, embedding)
            self.kept = self.net.up(self.net.mid(skips[-1], embedding), skips, embedding, until=self.cut)
        else:
            skips = self.net.down(x, embedding, self.cut)
        return self.net.out(self.net.up(self.kept, skips[: self.cut], embedding))


def _share(net: UNet | SkipScaled, config: Config, shape: tuple[int, ...]) -> float:
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    weight = next(net.parameters())
    x, timestep = torch.zeros(1, *shape, device=weight.device, dtype=weight.dtype), torch.zeros(1, device=weight.device)
    taken = {
        CLASS: (net.config.num_class_embeds, timestep.long()),
        GUIDANCE: (net.config.guidance_embeds, timestep),
        END: (net.config.end_embeds, timestep),
    }
    inputs = {name: number for name, (is_taken, number) in taken.items() if is_taken}
    memory, spent = _Memory(net, config.branch), []
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):  # the counter does not know the CPU's fused attention
        for memory.full in (True, False):
            with FlopCounterMode(display=False) as counter:
                memory(x, timestep, **inputs)
            spent.append(counter.get_total_flops())
    return spent[1] / spent[0]
