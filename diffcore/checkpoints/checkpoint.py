"""A checkpoint: a folder that diffusers opens, and its birth certificate `card.json`, written last.

    unet/config.json  unet/diffusion_pytorch_model.safetensors  scheduler/scheduler_config.json  model_index.json  card.json

A folder without a valid card and matching sha256s is not a checkpoint. Weights are safetensors only; nothing is unpickled.
The card holds nothing that changes from run to run (no dates, no seconds), so equal jobs give equal bytes.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffcore.core import disk
from diffcore.core.mistake import Mistake
from diffcore.denoisers.network import NetDenoiser
from diffcore.denoisers.prediction import HEADS
from diffcore.nets import open_folder
from diffcore.noise import schedule
from diffcore.noise.trajectory import Trajectory

SCHEMA = 2
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@dataclass(frozen=True)
class Card:
    """Where a checkpoint comes from and what it is good for.

    schedule: `{"name": ...}` as schedule.to_json gives it. labels: T of the label T t - 1 that its network is told. solver:
    what its method samples it with, a word of SOLVERS. grid: the only times it may be sampled at, null for any. classes:
    names of the classes it tells apart, null for none. guidance: the weights of classifier-free guidance that it was trained
    for, null for none, see `Guidance`. image: its samples' shape [c, h, w]. parent: digest of the checkpoint that it began
    as, teacher: of the one it learned from, null for none. data: digest of the shards. parameters: everything params.yaml
    said about it. code: digest of the source that trained it. cost: iterations, images and network calls. files: sha256 of
    each file. digest: of all these files. compute: device, precision and number of processes that trained it, null where
    that was not here or is not known. seal: digest of the rest of the card.
    """

    schema: int
    name: str
    method: str
    schedule: dict[str, Any]
    head: str
    labels: int
    solver: str
    grid: list[float] | None
    classes: list[str] | None
    guidance: dict[str, Any] | None
    image: list[int]
    weights: str
    parent: str | None
    teacher: str | None
    data: str
    parameters: dict[str, Any]
    seed: int
    code: str
    torch: str
    cost: dict[str, float | int]
    files: dict[str, str]
    digest: str
    compute: dict[str, str | int] | None = None
    seal: str = ""

    def sealed(self) -> str:
        """What `seal` must be. Older cards have no `compute`, and keep their seals."""
        left_out = {"seal"} if self.compute else {"seal", "compute"}
        return disk.digest({key: value for key, value in asdict(self).items() if key not in left_out})


@dataclass(frozen=True)
class Guidance:
    """What a student knows of classifier-free guidance: unconditional + g (conditional - unconditional), in one network call.

    low, high: the weights g it was trained for. They are equal where the guidance is built in; otherwise g is an input.
    """

    low: float
    high: float
    convention: str = "unconditional + g (conditional - unconditional)"

    @property
    def is_input(self) -> bool:
        return self.low < self.high

    def check(self, weight: float) -> None:
        """A Mistake for a weight that the student was not trained for."""
        if not self.low <= weight <= self.high:
            trained = f"{self.low:g} to {self.high:g}" if self.is_input else f"{self.low:g} alone"
            raise Mistake(f"this student was trained for a guidance weight of {trained}, not for {weight:g}")


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

    def to(self, device: torch.device) -> "Checkpoint":
        """The same on another device, laid out as convolutions like it."""
        return Checkpoint(self.card, self.denoiser.to(device, memory_format=torch.channels_last))


def save(folder: Path, denoiser: NetDenoiser, image: tuple[int, ...], about: dict[str, Any]) -> Card:
    """Writes a checkpoint so that it is whole or not there. `about` gives the card's name, method, solver, weights, parent,
    data, parameters, seed, code, torch and cost, of a conditional network classes and guidance, and of one that was trained
    here compute; the rest is taken from the denoiser."""
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
        pipeline, scheduler = _scheduler(denoiser, about["solver"])
        disk.write_json(new / "scheduler/scheduler_config.json", scheduler)
        disk.write_json(new / "model_index.json", _model_index(pipeline, scheduler, denoiser.net))
        files = {str(file.relative_to(new)): disk.sha256(file) for file in sorted(new.rglob("*")) if file.is_file()}
        card = Card(
            schema=SCHEMA,
            schedule=schedule.to_json(denoiser.schedule),
            head=denoiser.head,
            labels=denoiser.labels,
            grid=list(denoiser.grid.times) if denoiser.grid else None,
            image=list(image),
            files=files,
            digest=disk.digest(files),
            **about,
        )
        card = replace(card, seal=card.sealed())
        disk.write_json(new / "card.json", asdict(card))
    return card


def read_card(folder: Path) -> Card:
    """The card alone, its own fields checked; the weights are not read."""
    path = Path(folder) / "card.json"
    if not path.exists():
        raise Mistake(f"{folder} is not a checkpoint: it has no card.json; run the stage that makes it")
    try:
        fields = disk.parse_json(path.read_text())
        card = Card(**fields)
    except (ValueError, TypeError) as error:
        raise Mistake(f"{path} is damaged ({_first_line(error)}); run the stage that makes it again") from None
    if card.schema != SCHEMA:
        raise Mistake(
            f"{path} has schema {card.schema}, this version reads {SCHEMA}; run the stage that makes it again"
        )
    if card.head not in HEADS:
        raise Mistake(f"{path} names the head {card.head!r}; known: {', '.join(HEADS)}")
    if type(card.labels) is not int or card.labels < 1:
        raise Mistake(f"{path} says labels {card.labels!r}, and a network is told times in at least 1 step")
    if card.seal != card.sealed() or card.digest != disk.digest(card.files):
        raise Mistake(f"{path} was changed since it was written; run the stage that makes it again")
    return card


def verify(folder: Path) -> Card:
    """The card after checking every sha256; a missing, damaged or foreign folder is a Mistake."""
    folder = Path(folder)
    card = read_card(folder)
    for name, digest in card.files.items():
        file = folder / name
        if not file.is_file():
            raise Mistake(f"{folder} is not whole: {name} is missing; run the stage that makes it again")
        if disk.sha256(file) != digest:
            raise Mistake(f"{file} is damaged: its sha256 does not fit the card; run the stage that makes it again")
    _check_listed(folder, card)
    return card


def load(folder: Path) -> Checkpoint:
    """Opens a checkpoint that `verify` accepts."""
    folder = Path(folder)
    card = verify(folder)
    net = open_net(folder / "unet", card.head).eval().requires_grad_(False)
    check_finite(net.state_dict(), f"{folder}", "run the stage that makes it again")
    grid = Trajectory(tuple(card.grid)) if card.grid else None
    classes = len(card.classes) if card.classes else None
    weighs = card.guidance is not None and Guidance(**card.guidance).is_input
    kind = schedule.from_json(card.schedule)
    return Checkpoint(card, NetDenoiser(net, kind, card.head, grid, classes, weighs, labels=card.labels))


def _check_listed(folder: Path, card: Card) -> None:
    """What is opened must be vouched for: the card is sealed, but only by whoever wrote it."""
    opened = {WEIGHTS, "unet/config.json", *(f"unet/{path.name}" for path in (folder / "unet").glob("*.safetensors*"))}
    if unlisted := sorted(opened - set(card.files)):
        raise Mistake(
            f"{folder / 'card.json'} does not vouch for {', '.join(unlisted)}; run the stage that makes it again"
        )


def check_finite(tensors: Mapping[str, Tensor], whose: str, remedy: str) -> None:
    """A Mistake that names the first tensor with a value that is no finite number."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            count = int((~tensor.isfinite()).sum())
            raise Mistake(
                f"{whose}: {name} holds {count} of {tensor.numel()} values that are NaN or infinite; {remedy}"
            )


def open_net(folder: Path, head: str = "v") -> nn.Module:
    """The network in a folder of diffusers' format: our U-Net where it fits, else through the adapter."""
    return open_folder(folder, head == "both")


def _scheduler(denoiser: NetDenoiser, solver: str) -> tuple[str, dict[str, Any]]:
    """The diffusers pipeline and scheduler that sample as we do.

    T betas with alpha-bar_j = alpha(t = (j + 1)/T)^2 and "trailing" spacing make diffusers' index j our label T t - 1, so a
    trajectory of K even steps is exact where K divides T. A consistency student is sampled by LCM's multistep rule with its
    boundary scalings switched off: a v network has the boundary condition built in.

    No scheduler of diffusers knows the head `both`: it is written as what it is, so that their `step` refuses it by name.
    """
    t = torch.arange(denoiser.labels + 1, dtype=torch.float64) / denoiser.labels
    alpha_bar = denoiser.schedule.alpha(t) ** 2
    common = {
        "_diffusers_version": "0.36.0",
        "num_train_timesteps": denoiser.labels,
        "trained_betas": (1 - alpha_bar[1:] / alpha_bar[:-1]).tolist(),
        "prediction_type": {"v": "v_prediction", "eps": "epsilon", "x0": "sample", "both": "both"}[denoiser.head],
        "clip_sample": False,
        "set_alpha_to_one": True,
        "steps_offset": 0,
        "timestep_spacing": "trailing",
        "rescale_betas_zero_snr": False,
        "thresholding": False,
    }
    if solver != "renoise":
        return "DDIMPipeline", {"_class_name": "DDIMScheduler", **common}
    own = {"original_inference_steps": 64, "timestep_scaling": 1e6}
    return "DDPMPipeline", {"_class_name": "LCMScheduler", **common, **own}


def _model_index(pipeline: str, scheduler: dict[str, Any], net: nn.Module) -> dict[str, Any]:
    return {
        "_class_name": pipeline,
        "_diffusers_version": scheduler["_diffusers_version"],
        "scheduler": ["diffusers", scheduler["_class_name"]],
        "unet": ["diffusers", net.config_json()["_class_name"]],
    }


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]
