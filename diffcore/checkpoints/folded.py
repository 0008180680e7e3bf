"""A student whose guidance weight or hop's end is an input, as the one of a single weight or of jumps that it is there."""

from dataclasses import asdict
from pathlib import Path

import torch

from diffcore.checkpoints.card import Card, Guidance
from diffcore.checkpoints.folder import Checkpoint, load, save
from diffcore.core.errors import UserError
from diffcore.denoisers.network import ANY, NetDenoiser
from diffcore.nets.conditioned import ended, folded
from diffcore.nets.diffusers_model import DiffusersModel

JUMPS = "multistep_consistency"
"""The solver of students that jump to the data."""

KEPT = (
    "name", "method", "solver", "weights", "teacher", "data", "parameters", "seed", "code", "torch", "classes", "cost",
    "compute", "watch", "encoder",
)  # fmt: skip
"""What the card says as before; its parent is the student that it was."""


def fold(folder: Path, weight: float | None, target: Path, to_data: bool = False) -> Card:
    """Writes the checkpoint in `folder` to `target` with this weight of guidance built in, exactly; a network of diffusers
    keeps its input, and is always told that. A UserError where the weight is no input, or is one that it was not trained for.
    to_data: a student that is told where its hops land becomes one whose hops all end at the data, which
    `multistep_consistency` samples; a UserError for a student that is not."""
    checkpoint = load(folder)
    card, own, net = checkpoint.card, checkpoint.denoiser, checkpoint.denoiser.net
    about = {key: getattr(card, key) for key in KEPT} | {"parent": card.digest, "guidance": card.guidance}
    keeps = weight is None or isinstance(net, DiffusersModel)  # of whose class there is none without the input
    if weight is not None:
        _check(checkpoint, weight)
        net = net if keeps else folded(net, weight)
        about["guidance"] = asdict(Guidance(weight, weight))
    if to_data:
        if own.end != ANY:
            raise UserError(
                f"{card.name} is told of no hop where it lands, so it has no jumps to the data; leave it out"
            )
        net = ended(net, float(own.reading.timestep(torch.zeros(1, dtype=torch.float64), own.schedule)))
        about["solver"] = JUMPS
    plain = NetDenoiser(
        net.eval().requires_grad_(False),
        own.schedule,
        own.reading,
        own.grid,
        own.classes,
        own.takes_guidance and keeps,
        nothing=own.nothing.parts(),
        end=None if to_data else own.end,
        guidance=own.guidance if weight is None or not keeps else weight,
    )
    return save(target, plain, checkpoint.shape, about)


def _check(checkpoint: Checkpoint, weight: float) -> None:
    if checkpoint.guidance is None or not checkpoint.guidance.is_input:
        raise UserError(
            f"{checkpoint.card.name} takes no weight of guidance as an input, so none can be built in; leave it out"
        )
    checkpoint.check_weight(weight)
