"""The network as a graph that needs none of this code: torch.export's .pt2 file, for batches of any size."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffcore.checkpoints import Checkpoint
from diffcore.exports.format import Call, Format, check_untold, example

TRACED = 2
"""The batch that it is traced with: one of 1 would be taken for a constant."""


class TorchExport(Format):
    """Called as (x [b, c, h, w], timestep [b], classes [b], guidance weights [b], end timestep [b]), as many as the network
    takes."""

    def write(self, checkpoint: Checkpoint, folder: Path, new: Path, readme: str) -> None:
        check_untold(checkpoint, "torch_export")
        inputs = example(checkpoint, TRACED)
        program = torch.export.export(checkpoint.denoiser.net, inputs, dynamic_shapes=batched(inputs))
        torch.export.save(program, new)

    def open(self, checkpoint: Checkpoint, new: Path) -> Call:
        return torch.export.load(new).module()


def batched(inputs: tuple[Tensor | None, ...]) -> Any:
    """Of each input that its first dimension is the batch, of any size from 1 on."""
    batch = torch.export.Dim("batch", min=1)
    return tuple(None if each is None else {0: batch} for each in inputs)
