"""Checkpoints in the formats of others: one file for each format, by which it is called. Each is opened again where it was
written and its outputs held against ours, so that no export is handed out that says something else."""

import functools
import importlib
import pkgutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from diffcore import checkpoints
from diffcore.core import disk
from diffcore.core.errors import UserError
from diffcore.exports.format import Call, Format, example, told

TOLERANCE = 1e-5
"""The largest difference of an exported network's output from ours, in units of our largest output."""

IMAGES = 3
"""How many images the outputs are compared on; another number than an export is traced with."""


@functools.cache
def formats() -> dict[str, Format]:
    """The format of each file, by its name."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name != "format")
    return {name: _of(name) for name in names}


def _of(name: str) -> Format:
    module = importlib.import_module(f"{__name__}.{name}")
    kinds = (kind for kind in vars(module).values() if isinstance(kind, type) and issubclass(kind, Format))
    return next(kind for kind in kinds if kind is not Format)()


def export(
    folder: Path,
    target: Path,
    form: str,
    readme: str,
    beside: Callable[[Path], None] = lambda new: None,
) -> float:
    """Writes the checkpoint in `folder` to `target` in the format `form`; the largest difference of its outputs from ours, in
    units of ours. readme: the model card, for a format that has a place for it. beside: writes what else shall lie in an
    export that is a folder.

    target must not be there. It appears when the outputs were compared: a UserError that says by how much they differ, and
    leaves nothing, where that is more than TOLERANCE.
    """
    checkpoint, kind = checkpoints.load(folder), formats()[form]
    with _new(target, kind.is_folder) as new:
        kind.write(checkpoint, folder, new, readme)
        if kind.is_folder:
            beside(new)
        gap = largest_gap(checkpoint, kind.open(checkpoint, new))
        if not gap <= TOLERANCE:
            raise UserError(
                f"the {form} export of {folder} differs from it by {gap:.2g} of its largest output, more than {TOLERANCE:g}; "
                "nothing was written, choose another --format"
            )
    return gap


@contextmanager
def _new(target: Path, is_folder: bool) -> Iterator[Path]:
    if is_folder:
        with disk.folder(target, new=True) as new:
            yield new
        return
    with disk.beside(target) as room:
        yield room / target.name
        disk.put(room / target.name, target, new=True)


@torch.inference_mode()
def largest_gap(checkpoint: checkpoints.Checkpoint, call: Call) -> float:
    """The largest difference of a network's outputs from the checkpoint's, in units of the checkpoint's largest: of IMAGES
    noises at times from 0 to 1, with every input that the network takes."""
    inputs, others = example(checkpoint, IMAGES), told(checkpoint, IMAGES)
    ours, theirs = checkpoint.denoiser.net(*inputs, **others), call(*inputs, **others)
    if ours.shape != theirs.shape:
        return float("inf")
    return float((ours - theirs).abs().max() / ours.abs().max().clamp_min(torch.finfo(ours.dtype).tiny))
