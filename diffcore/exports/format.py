"""What a format must bring."""

import abc
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from diffcore.checkpoints import Checkpoint
from diffcore.core.errors import UserError
from diffcore.core.rng import generator
from diffcore.nets import is_own

Call = Callable[..., Tensor]
"""(x [b, c, h, w], timestep [b], classes [b], guidance weights [b], end timestep [b]), as many as the network takes, and by
name what else it is told -> its output."""


class Format(abc.ABC):
    """is_folder: whether an export is a folder; else it is one file."""

    is_folder: bool = False

    @abc.abstractmethod
    def write(self, checkpoint: Checkpoint, folder: Path, new: Path, readme: str) -> None:
        """Writes the checkpoint, which lies in `folder`, as `new`: an empty folder that is there, or a file that is not."""

    @abc.abstractmethod
    def open(self, checkpoint: Checkpoint, new: Path) -> Call:
        """What was written, read from there alone, as others read it. checkpoint: which inputs it takes."""


END_PLACE = 4
"""How many inputs come before the end timestep."""

TOKENS = 3
"""Of the texts that exports are compared with."""


def told(checkpoint: Checkpoint, count: int) -> dict[str, Tensor]:
    """What else the network of a checkpoint is told, for `count` images, by name: what stands for nothing, and random numbers
    where nothing does."""
    denoiser, rng = checkpoint.denoiser, generator("export", "told", count)
    inputs = {}
    for name, part in denoiser.nothing.parts().items():
        if part is not None:
            inputs[name] = part.expand(count, *part.shape)
        elif denoiser.net.inputs[name].required:
            free = iter(checkpoint.shape[1:] if name == "image" else (TOKENS,))
            shape = [next(free) if size is None else size for size in denoiser.net.inputs[name].shape]
            inputs[name] = torch.rand(count, *shape, generator=rng)
    return inputs


def check_untold(checkpoint: Checkpoint, form: str) -> None:
    """A UserError for a network that is told more than class and weight, in a format that names no such input."""
    if names := ", ".join(checkpoint.denoiser.nothing.names):
        others = (
            "safetensors"
            if is_own(checkpoint.denoiser.net.config_json()["_class_name"])
            else "diffusers or safetensors"
        )
        raise UserError(
            f"--format {form} has no place for {names}, which {checkpoint.card.name} is told; choose {others}"
        )


def example(checkpoint: Checkpoint, count: int) -> tuple[Tensor | None, ...]:
    """What the network of a checkpoint is called with, for `count` images: x, timestep, and where it takes them the classes,
    the guidance weights and where its hops end; None for what it does not take before one that it takes."""
    denoiser, rng = checkpoint.denoiser, generator("export", count)
    x = torch.randn(count, *checkpoint.shape, generator=rng)
    times = torch.linspace(0, 1, count)
    inputs = [x, denoiser.reading.timestep(times, denoiser.schedule)]
    if denoiser.classes is not None:
        inputs.append(torch.arange(count) % (denoiser.classes + 1))
    if denoiser.takes_guidance:
        guidance = checkpoint.guidance
        inputs += [] if denoiser.classes is not None else [None]
        inputs.append(torch.linspace(guidance.low, guidance.high, count))
    if denoiser.end is not None:
        inputs += [None] * (END_PLACE - len(inputs))
        inputs.append(denoiser.reading.timestep(times / 2, denoiser.schedule))
    return tuple(inputs)
