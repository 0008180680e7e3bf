"""A user's own feature network as a judge: a graph of torch.export or a program of TorchScript.

Loading either executes what is in it: torch.export's reader unpickles constants and evaluates expressions, and a TorchScript
program may run as it is opened. So only a file that the user calls trusted comes here.
"""

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffcore.core.errors import UserError
from diffcore.core.rng import generator
from diffcore.metrics.judge_file import EXPORTED, JudgeFile
from diffcore.metrics.preprocessing import bicubic, with_channels

ALIKE = 1e-3
"""Of the largest feature: how much an image's features may differ with the images beside it."""


class Program(nn.Module):
    """Images uint8 [b, c, h, w] -> features [b, d], by a program that takes floats [b, 1 or 3, size, size]."""

    def __init__(self, program: nn.Module, size: int, mean: list[float], std: list[float]):
        super().__init__()
        self.program, self.size = program, size
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32).view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        x = bicubic(with_channels(images, self.mean.shape[1]).float(), self.size) / 255
        return self.program((x - self.mean) / self.std)


class Exported(Program):
    """A graph of torch.export, which names the device of each tensor that it makes."""

    def __init__(self, exported: torch.export.ExportedProgram, size: int, mean: list[float], std: list[float]):
        super().__init__(exported.module(), size, mean, std)
        self.exported = exported

    def to(self, device: torch.device) -> Program:
        from torch.export.passes import move_to_device_pass

        moved = Exported(move_to_device_pass(self.exported, device), self.size, *self._preprocessing())
        moved.mean, moved.std = self.mean.to(device), self.std.to(device)
        return moved

    def _preprocessing(self) -> tuple[list[float], list[float]]:
        return self.mean.flatten().tolist(), self.std.flatten().tolist()


def words(judge: JudgeFile) -> str:
    """Its preprocessing."""
    mean, std = (" ".join(f"{each:g}" for each in values) for values in (judge.mean, judge.std))
    return f"bicubic with antialias to {judge.size}x{judge.size}, (x / 255 - {mean}) / {std}"


def load(path: Path, judge: JudgeFile) -> Program:
    """A UserError for a file that cannot be opened, or whose features are not those of each image by itself, [b, d]."""
    try:
        network = _open(path, judge)
    except Exception as error:
        kind = "torch.export" if path.suffix == EXPORTED else "TorchScript"
        raise UserError(f"{path} cannot be read as a file of {kind} ({_line(error)}); export it again") from error
    _check(network, path)
    return network


def _open(path: Path, judge: JudgeFile) -> Program:
    preprocessing = judge.size, judge.mean, judge.std
    if path.suffix == EXPORTED:
        return Exported(torch.export.load(path), *preprocessing)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # such files are there, whatever torch thinks of them
        program = torch.jit.load(path, map_location="cpu")
    return Program(program.eval(), *preprocessing)


def _check(network: Program, path: Path) -> None:
    """On three random images, and on the first of them alone."""
    shape = (3, network.mean.shape[1], 8, 8)
    images = torch.randint(0, 256, shape, generator=generator("judge", 3), dtype=torch.uint8)
    together, alone = (_features(network, part, path) for part in (images, images[:1]))
    if (together[:1] - alone).abs().max() > ALIKE * together.abs().max():
        raise UserError(
            f"{path}: the features of an image differ with the images beside it, or from call to call; "
            "export it for inference (model.eval())"
        )


def _features(network: Program, images: Tensor, path: Path) -> Tensor:
    try:
        with torch.no_grad():
            features: Any = network(images)
    except Exception as error:
        taken = [len(images), images.shape[1], network.size, network.size]
        raise UserError(
            f"{path} fails on images {taken} ({_line(error)}); export it for batches of any size"
        ) from error
    if not isinstance(features, Tensor) or features.ndim != 2 or len(features) != len(images):
        kind = [*features.shape] if isinstance(features, Tensor) else type(features).__name__
        raise UserError(f"{path} makes {kind} of {len(images)} images; it must make features [{len(images)}, d]")
    if not features.is_floating_point() or not features.isfinite().all():
        raise UserError(f"{path} makes features that are no finite floats; export another network")
    return features


def _line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:120]
