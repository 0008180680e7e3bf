"""What a format must bring."""

import abc
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from diffcore.checkpoints import Checkpoint
from diffcore.core.rng import generator

Call = Callable[..., Tensor]
"""(x [b, c, h, w], timestep [b], classes [b], guidance weights [b]), as many as the network takes -> its output."""


class Format(abc.ABC):
    """is_folder: whether an export is a folder; else it is one file."""

    is_folder: bool = False

    @abc.abstractmethod
    def write(self, checkpoint: Checkpoint, folder: Path, new: Path, readme: str) -> None:
        """Writes the checkpoint, which lies in `folder`, as `new`: an empty folder that is there, or a file that is not."""

    @abc.abstractmethod
    def open(self, checkpoint: Checkpoint, new: Path) -> Call:
        """What was written, read from there alone, as others read it. checkpoint: which inputs it takes."""


def example(checkpoint: Checkpoint, count: int) -> tuple[Tensor | None, ...]:
    """What the network of a checkpoint is called with, for `count` images: x, timestep, and where it takes them the classes
    and the guidance weights; None for classes that a network with guidance weights does not take."""
    denoiser, rng = checkpoint.denoiser, generator("export", count)
    x = torch.randn(count, *checkpoint.shape, generator=rng)
    inputs = [x, denoiser.reading.timestep(torch.linspace(0, 1, count), denoiser.schedule)]
    if denoiser.classes is not None:
        inputs.append(torch.arange(count) % (denoiser.classes + 1))
    if denoiser.takes_guidance:
        guidance = checkpoint.guidance
        inputs += [] if denoiser.classes is not None else [None]
        inputs.append(torch.linspace(guidance.low, guidance.high, count))
    return tuple(inputs)
