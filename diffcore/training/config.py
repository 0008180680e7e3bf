"""What a training is told: its numbers, and where and in which precision it computes."""

import math
from dataclasses import dataclass
from typing import Literal

import torch

from diffcore.core import processes
from diffcore.core.errors import UserError
from diffcore.core.precision import has_bf16

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Training:
    """How long and how fast.

    iterations: updates. batch: images per update over all processes. lr: AdamW's learning rate, reached after `warmup`
    updates, then lowered to 0 along a half cosine or kept. ema: decay of the average that is the result, ramped up as
    (1 + n)/(10 + n); 0 keeps the last weights themselves. clip: largest norm of the gradient, null for none. accumulate:
    parts that a batch is split into, one after the other, to save memory. cores: parts that it is split into on a CPU, for a
    process each where there are places for them; the sums are the same. weight_decay: AdamW's, 0.01 in distillation too,
    where papers have 0. label_dropout: share of the samples whose class is not told, by which a conditional network learns to
    do without.
    """

    iterations: int
    batch: int
    lr: float
    ema: float
    warmup: int = 0
    decay: Literal["cosine", "none"] = "cosine"
    weight_decay: float = 0.01
    clip: float | None = None
    accumulate: int = 1
    cores: int = 1
    label_dropout: float = 0.0

    def __post_init__(self):
        for name in ("iterations", "batch", "accumulate", "cores"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.lr <= 0:
            raise ValueError(f"lr must be positive, got {self.lr}")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema must be in [0, 1), got {self.ema}: an average with decay 1 never moves")
        if not 0 <= self.label_dropout < 1:
            raise ValueError(f"label_dropout must be in [0, 1), got {self.label_dropout}")
        if self.warmup < 0 or self.weight_decay < 0 or (self.clip is not None and self.clip <= 0):
            raise ValueError("warmup and weight_decay must not be negative, and clip must be positive or null")

    def rate(self, step: int) -> float:
        """The learning rate of update `step`, counted from 0."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        if self.decay == "none":
            return self.lr
        done = (step - self.warmup) / max(1, self.iterations - self.warmup)
        return self.lr * 0.5 * (1 + math.cos(math.pi * done))

    def ema_decay(self, updates: int) -> float:
        """The decay of the average after so many updates, the last one included."""
        return min(self.ema, (1 + updates) / (10 + updates))

    def parts(self, rank: int, processes: int, device: torch.device = CPU) -> list[slice]:
        """The parts of the global batch that are this process's, one after the other and alike in size.

        On a CPU one process has the parts that `cores` would have, so that two processes and one end with the same bits.
        """
        each = self.accumulate * math.lcm(processes, self.cores if device.type == "cpu" else 1) // processes
        if self.batch % (processes * each):
            raise UserError(
                f"batch {self.batch} does not divide into {processes * each} parts, for {processes} processes, accumulate "
                f"{self.accumulate} and cores {self.cores}"
            )
        size = self.batch // (processes * each)
        return [slice(part * size, (part + 1) * size) for part in range(rank * each, (rank + 1) * each)]


@dataclass(frozen=True)
class Compute:
    """Where and in which numbers. Nothing is made again for another one, but a training that was begun does not go on in
    another precision: see `loop.provenance`.

    threads: of one process on a CPU. processes: how many work at one stage on each host; `auto` is one for each GPU that can
    be seen; without any it is one, or as many as a training's `cores`. strategy: of several that train, `ddp` where each has
    the whole network, or `fsdp` where each keeps a part of the weights, averages and moments. precision: `auto` is bf16 on a
    GPU that has it and float32 elsewhere. compile: torch.compile the loss, or its networks (minutes to start with).
    save_seconds: how much work a kill may cost.
    memory_gb: data up to this size are kept in memory (on the GPU where there is one), larger ones are streamed.
    cache_gb: the most that copies of remote shards may take on the disk.
    """

    threads: int
    precision: Literal["auto", "no", "bf16"]
    compile: bool
    save_seconds: float
    memory_gb: float
    cache_gb: float = 10.0
    processes: Literal["auto"] | int = "auto"
    strategy: Literal["ddp", "fsdp"] = "ddp"

    def __post_init__(self):
        if self.processes != "auto" and self.processes < 1:
            raise ValueError(f"processes must be auto or at least 1, got {self.processes}")
        if self.threads < 1 or self.save_seconds <= 0 or self.memory_gb < 0:
            raise ValueError("threads must be at least 1, save_seconds positive and memory_gb not negative")
        if self.cache_gb < 0:
            raise ValueError("cache_gb must not be negative")

    @property
    def memory_bytes(self) -> int:
        return int(self.memory_gb * 2**30)

    @property
    def cache_bytes(self) -> int:
        return int(self.cache_gb * 2**30)

    @property
    def device(self) -> torch.device:
        """Where this process computes: its own GPU, or the CPU."""
        return processes.device()

    @property
    def numbers(self) -> Literal["float32", "bf16"]:
        """The precision that `precision` comes to on this machine."""
        half = self.precision == "bf16" or (self.precision == "auto" and has_bf16(self.device))
        return "bf16" if half else "float32"


def torch_version() -> str:
    """The release of torch without its build: what a bit-for-bit resume depends on."""
    return torch.__version__.partition("+")[0]
