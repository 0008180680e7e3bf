"""The network as an ONNX graph, for runtimes that know no torch; opened by onnxruntime."""

import importlib.util
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffcore.checkpoints import Checkpoint
from diffcore.core.errors import UserError
from diffcore.exports.format import Call, Format, check_untold, example
from diffcore.exports.torch_export import TRACED, batched

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
"""The extra `onnx`: what torch writes a graph with, and what reads it."""

INPUTS = ("x", "timestep", "class_labels", "guidance", "end_timestep")
"""What the graph's inputs are called, as many of them as the network takes; its output is `output`."""

LARGEST = 2**31
"""Bytes of one ONNX file."""


class Onnx(Format):
    """Inputs as in INPUTS: x float32 [b, c, h, w], timestep float32 [b], class_labels int64 [b], guidance and
    end_timestep float32 [b], for batches of any size. In the file's metadata `card` and `readme`.

    A UserError where a package of the extra is missing, and for a network of more than LARGEST bytes.
    """

    def write(self, checkpoint: Checkpoint, folder: Path, new: Path, readme: str) -> None:
        _check(checkpoint)
        inputs = example(checkpoint, TRACED)
        names = [name for name, value in zip(INPUTS, inputs) if value is not None]
        with _quiet():
            program = torch.onnx.export(
                checkpoint.denoiser.net,
                inputs,
                dynamo=True,
                verbose=False,
                dynamic_shapes=batched(inputs),
                input_names=names,
                output_names=["output"],
            )
        program.model.metadata_props.update(card=json.dumps(checkpoint.card.to_json()), readme=readme)
        program.save(new, external_data=False)

    def open(self, checkpoint: Checkpoint, new: Path) -> Call:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(new, options, providers=["CPUExecutionProvider"])

        def call(*inputs: Tensor | None) -> Tensor:
            arrays: dict[str, Any] = {name: x.numpy() for name, x in zip(INPUTS, inputs) if x is not None}
            return torch.from_numpy(session.run(None, arrays)[0])

        return call


def _check(checkpoint: Checkpoint) -> None:
    check_untold(checkpoint, "onnx")
    if missing := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        raise UserError(
            f"--format onnx needs {', '.join(missing)}, which is not installed: pip install 'distill[onnx]'"
        )
    size = sum(each.nbytes for each in checkpoint.denoiser.net.state_dict().values())
    if size >= LARGEST:
        raise UserError(
            f"{checkpoint.card.name} has {size / 2**30:.1f} GiB of weights, and an ONNX file holds 2 at most; "
            "choose another --format"
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch says of its own parts and of packages that are not there."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)
