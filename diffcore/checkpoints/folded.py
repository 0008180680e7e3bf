"""A student whose guidance weight is an input, as the one of a single weight that it is there."""

from dataclasses import asdict
from pathlib import Path

from diffcore.checkpoints.card import Card, Guidance
from diffcore.checkpoints.folder import load, save
from diffcore.core.errors import UserError
from diffcore.denoisers.network import NetDenoiser
from diffcore.nets.conditioned import folded

KEPT = (
    "name", "method", "solver", "weights", "teacher", "data", "parameters", "seed", "code", "torch", "classes", "cost",
    "compute", "watch", "encoder",
)  # fmt: skip
"""What the card says as before; its parent is the student that it was."""


def fold(folder: Path, weight: float, target: Path) -> Card:
    """Writes the checkpoint in `folder` to `target` with this weight of guidance built in, exactly. A UserError where the
    weight is no input, or is one that it was not trained for."""
    checkpoint = load(folder)
    card, own = checkpoint.card, checkpoint.denoiser
    if checkpoint.guidance is None or not checkpoint.guidance.is_input:
        raise UserError(f"{card.name} takes no weight of guidance as an input, so none can be built in; leave it out")
    checkpoint.guidance.check(weight)
    net = folded(own.net, weight).eval().requires_grad_(False)
    plain = NetDenoiser(net, own.schedule, own.reading, own.grid, own.classes, nothing=own.nothing.parts())
    about = {key: getattr(card, key) for key in KEPT}
    return save(
        target, plain, checkpoint.shape, about | {"parent": card.digest, "guidance": asdict(Guidance(weight, weight))}
    )
