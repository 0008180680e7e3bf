"""A checkpoint: a folder that diffusers opens, and its birth certificate `card.json`, written last.

    unet/config.json  unet/diffusion_pytorch_model.safetensors  scheduler/scheduler_config.json  model_index.json  card.json

and nothing.safetensors for a network that is told more than classes.

A folder without a valid card and matching sha256s is not a checkpoint. Weights are safetensors only; nothing is unpickled.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffcore.checkpoints.card import SCHEMA, STUDENT, TEACHER, Card, Guidance
from diffcore.checkpoints.to_diffusers import model_index, reading_of, scheduler
from diffcore.checkpoints.verified import WEIGHTS, verify
from diffcore.core import disk
from diffcore.core.errors import UserError
from diffcore.denoisers.condition import GUIDANCE
from diffcore.denoisers.network import NetDenoiser
from diffcore.nets import open_folder
from diffcore.nets.diffusers_model import DiffusersModel
from diffcore.nets.order import fastest
from diffcore.noise import schedule
from diffcore.noise.trajectory import Trajectory

NOTHING = "nothing.safetensors"
"""What stands for nothing, by the name of the network's input: the embedding of the empty prompt, for example."""


@dataclass(frozen=True)
class Checkpoint:
    """A verified folder, opened."""

    card: Card
    denoiser: NetDenoiser

    @property
    def shape(self) -> tuple[int, ...]:
        """[c, h, w] of a sample."""
        return tuple(self.card.image)

    @property
    def guidance(self) -> Guidance | None:
        """The guidance weights that it was trained for."""
        return Guidance(**self.card.guidance) if self.card.guidance else None

    def check_weight(self, weight: float) -> None:
        """A UserError for a guidance weight that it was not trained for."""
        self.guidance.check(weight, TEACHER if self.card.method == "adopted" else STUDENT)

    def to(self, device: torch.device) -> "Checkpoint":
        """The same on another device, in the memory order that is fastest there."""
        order = fastest(self.denoiser.net, self.shape, device)
        return Checkpoint(self.card, self.denoiser.to(device, memory_format=order))


def save(
    folder: Path,
    denoiser: NetDenoiser,
    image: tuple[int, ...],
    about: dict[str, Any],
    beside: Callable[[Path], None] = lambda folder: None,
) -> Card:
    """Writes a checkpoint so that it is whole or not there. `about` gives the card's name, method, solver, weights, parent,
    data, parameters, seed, code, torch and cost, of a conditional network classes and guidance, of one that is told texts
    encoder, and of one that was trained here compute; the rest is taken from the denoiser. beside: writes what else shall
    lie in the folder, for which the card does not vouch."""
    about = {"classes": None, "guidance": None, **about}
    if (about["classes"] and len(about["classes"])) != denoiser.classes:
        raise ValueError(f"a network of {denoiser.classes} classes cannot have the card of {about['classes']}")
    from safetensors.torch import save_file

    with disk.folder(Path(folder)) as new:
        (new / "unet").mkdir()
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in denoiser.net.state_dict().items()}
        check_finite(tensors, f"the network {about['name']}", "lower its learning rate and train it again")
        save_file(tensors, new / WEIGHTS, metadata={"format": "pt"})
        disk.write_json(new / "unet/config.json", denoiser.net.config_json())
        if nothing := {name: part.cpu() for name, part in denoiser.nothing.parts().items() if part is not None}:
            save_file(nothing, new / NOTHING, metadata={"format": "pt"})
        pipeline, settings = scheduler(denoiser, about["solver"])
        if settings:
            disk.write_json(new / "scheduler/scheduler_config.json", settings)
        if pipeline:
            disk.write_json(new / "model_index.json", model_index(pipeline, settings, denoiser.net))
        files = {str(file.relative_to(new)): disk.sha256(file) for file in sorted(new.rglob("*")) if file.is_file()}
        card = Card(
            schema=SCHEMA,
            schedule=schedule.to_json(denoiser.schedule),
            parameterization=denoiser.reading.parameterization,
            num_timesteps=denoiser.reading.num_timesteps,
            reading=denoiser.reading.to_json(),
            inputs=list(denoiser.nothing.names) or None,
            end=denoiser.end,
            grid=list(denoiser.grid.times) if denoiser.grid else None,
            image=list(image),
            files=files,
            digest=disk.digest(files),
            **about,
        )
        card = replace(card, seal=card.sealed())
        disk.write_json(new / "card.json", card.to_json())
        beside(new)
    return card


def load(folder: Path) -> Checkpoint:
    """Opens a checkpoint that `verify` accepts."""
    folder = Path(folder)
    card = verify(folder)
    net = open_folder(folder / "unet", card.parameterization == "x0_eps", vouched=True).eval().requires_grad_(False)
    check_finite(net.state_dict(), f"{folder}", "run the stage that makes it again")
    grid = Trajectory(tuple(card.grid)) if card.grid else None
    classes = len(card.classes) if card.classes else None
    takes_guidance, weight = _weights(card, net)
    kind, nothing = schedule.from_json(card.schedule), _nothing(folder, card)
    return Checkpoint(
        card,
        NetDenoiser(
            net, kind, reading_of(card), grid, classes, takes_guidance, nothing=nothing, end=card.end, guidance=weight
        ),
    )


def _weights(card: Card, net: nn.Module) -> tuple[bool, float | None]:
    """Whether the network takes the guidance weight, and the one that it is always told: that of a card of one weight, where
    its class has no form without that input."""
    if card.guidance is None:
        return False, None
    guidance = Guidance(**card.guidance)
    takes = isinstance(net, DiffusersModel) and GUIDANCE in net.inputs
    return takes or guidance.is_input, guidance.low if takes and not guidance.is_input else None


def _nothing(folder: Path, card: Card) -> dict[str, Tensor | None]:
    """What the network is told where nothing is known, of each of its inputs; None for one that must be known."""
    from safetensors.torch import load_file

    parts = load_file(folder / NOTHING) if NOTHING in card.files else {}
    return {name: parts.get(name) for name in card.inputs or ()}


def check_finite(tensors: Mapping[str, Tensor], whose: str, remedy: str) -> None:
    """A UserError that names the first tensor with a value that is no finite number."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            count = int((~tensor.isfinite()).sum())
            raise UserError(
                f"{whose}: {name} holds {count} of {tensor.numel()} values that are NaN or infinite; {remedy}"
            )


def open_net(folder: Path, parameterization: str = "v") -> nn.Module:
    """The network in a folder of diffusers' format: our U-Net where it fits, else through the adapter."""
    return open_folder(folder, parameterization == "x0_eps")
