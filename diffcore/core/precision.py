"""In which numbers a GPU multiplies."""

import contextlib
from collections.abc import Iterator

import torch


def has_bf16(device: torch.device) -> bool:
    """Whether bfloat16 is faster than float32 there: on a GPU that has it, never on a CPU."""
    return device.type == "cuda" and torch.cuda.is_bf16_supported()


@contextlib.contextmanager
def exact() -> Iterator[None]:
    """Inside, float32 is float32 on a GPU too: it rounds no factor of a product or a convolution to TF32's 10 bits."""
    parts = torch.backends.cudnn, torch.backends.cuda.matmul
    before = [part.allow_tf32 for part in parts]
    for part in parts:
        part.allow_tf32 = False
    try:
        yield
    finally:
        for part, allowed in zip(parts, before):
            part.allow_tf32 = allowed
