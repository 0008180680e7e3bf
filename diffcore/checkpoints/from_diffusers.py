"""A teacher that somebody else trained: a folder that diffusers wrote, read as what it is.

Its betas become a Discrete schedule of as many steps, its prediction_type a parameterization, its timesteps are ours, T t -
1. Nothing is approximated: what has no exact counterpart here is refused. A checkpoint of this pipeline's own is taken as its
card says.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffcore import nets
from diffcore.checkpoints import to_diffusers
from diffcore.checkpoints.folder import check_finite, load
from diffcore.core import disk
from diffcore.core.errors import UserError
from diffcore.denoisers.clipping import Clip, Threshold
from diffcore.denoisers.network import NetDenoiser
from diffcore.denoisers.reading import Reading
from diffcore.nets import unet
from diffcore.noise.schedule import Discrete

SCHEDULER = "scheduler/scheduler_config.json"
PREDICTION_TYPES = {theirs: ours for ours, theirs in to_diffusers.PREDICTION_TYPES.items()}
NAMES = """
DDPM DDPMParallel DDIM DDIMParallel PNDM DPMSolverMultistep DPMSolverSinglestep UniPCMultistep DEISMultistep EulerDiscrete
EulerAncestralDiscrete HeunDiscrete LMSDiscrete KDPM2Discrete KDPM2AncestralDiscrete
"""
MOST_STEPS = 100_000
"""Betas that a schedule may have; there are a thousand in use."""

SAMPLERS = [f"{name}Scheduler" for name in NAMES.split()]
"""Those of diffusers' schedulers whose networks see sqrt(alpha_bar) x_0 + sqrt(1 - alpha_bar) eps and the index of a beta."""

FLAGS = {"use_flow_sigmas", "snr_shift_scale"}
"""Of a scheduler's settings; each makes it another process."""

PROCESSES = {
    "Flow": "its network sees (1 - t) x_0 + t eps, not x_0 and noise scaled by betas",
    "flow": "its network sees (1 - t) x_0 + t eps, not x_0 and noise scaled by betas",
    "EDM": "its network sees x_0 + sigma eps, scaled and told sigma as EDM does it, not a time of betas",
    "Ve": "its network sees x_0 + sigma eps (variance exploding), not noise scaled by betas",
    "VE": "its network sees x_0 + sigma eps (variance exploding), not noise scaled by betas",
    "Vp": "its network is told continuous times of an SDE, not the index of a beta",
    "LCM": "it is a student that jumps to images, which cannot teach at every time",
    "TCD": "it is a student that jumps to images, which cannot teach at every time",
    "CMStochastic": "it is a student that jumps to images, which cannot teach at every time",
    "snr_shift": "it shifts the noise of its betas by the images' size",
}
"""What is true of networks by other schedulers of diffusers, by a part of the name."""

LATENT = ("vae", "vqvae", "movq", "vqmodel")
"""Folders of a pipeline whose network works on what an encoder makes of images."""


CLIPS = [f"{name}Scheduler" for name in ("DDPM", "DDPMParallel", "DDIM", "DDIMParallel")]
"""Those that clip x_0 unless their settings say otherwise."""


@dataclass(frozen=True)
class Adopted:
    """files: sha256 of each file that was read. image: [c, h, w] that the network was made for, h and w 0 where its config
    does not say. classes: names by label, None where the folder does not tell them. sampling: what its scheduler does to the
    believed x_0, in a recipe's words; empty for nothing."""

    denoiser: NetDenoiser
    files: dict[str, str]
    image: tuple[int, int, int]
    classes: Sequence[str] | None = None
    sampling: dict[str, Any] = field(default_factory=dict)

    @property
    def skips(self) -> int | None:
        """How many skips its U-Net has, None for a network that is not our own, whose parts cannot be run alone."""
        return self.denoiser.net.config.skips if isinstance(self.denoiser.net, unet.UNet) else None

    def check(self, image: Sequence[int], classes: Sequence[str] | None) -> None:
        """A UserError if it is not a network for such images, [c, h, w], of these classes (names, or None)."""
        channels, *sides = self.image
        if channels != image[0] or (any(sides) and sides != list(image[1:])):
            own = " x ".join(str(size) if size else "?" for size in self.image)
            raise UserError(
                f"the teacher is for images of {own} and the data are {' x '.join(map(str, image))} (channels x height x "
                "width); set data.size and data.channels to what it was trained with"
            )
        levels = len(self.denoiser.net.config_json().get("block_out_channels", [0]))  # other networks halve nothing
        if any(side % 2 ** (levels - 1) for side in image[1:]):
            raise UserError(
                f"images of {image[1]} x {image[2]} cannot be halved {levels - 1} times as the teacher does; set data.size"
            )
        count = self.denoiser.classes
        if count is not None and count != len(classes or ()):
            raise UserError(
                f"the teacher's class table has {count + 1} rows, and the data have {len(classes or ())} classes; it needs "
                "a row for each and one more, the last, for no class"
            )
        if self.classes is not None and list(self.classes) != list(classes or ()):
            raise UserError(f"the teacher's classes are {_few(self.classes)} and the data's are {_few(classes or ())}")


def read(folder: Path) -> Adopted:
    """The denoiser in `folder`: a pipeline (unet/ and scheduler/) of diffusers, or a checkpoint of this pipeline's own.

    A UserError says what cannot be read as it is. Nothing pickled is opened.
    """
    folder = Path(folder).expanduser()
    if folder.is_file():
        raise UserError(
            f"{folder} is a file, and a teacher is a folder in diffusers' format; `distill read` lists what is in a pickle "
            "and writes its tensors"
        )
    if (folder / "card.json").is_file():
        return _own(folder)
    _check_parts(folder)
    settings = _settings(folder)
    content = _network(folder)
    parameterization, schedule = _parameterization(settings, folder), _schedule(settings, folder)
    if parameterization == "eps" and float(schedule.alpha(torch.ones(1))) == 0:
        raise UserError(
            f"{folder}: an epsilon network on betas that end in pure noise has no image at t = 1, where sampling begins; "
            "it must be trained with v_prediction"
        )
    net = nets.open_folder(folder / "unet").eval().requires_grad_(False)
    check_finite(net.state_dict(), f"{folder}/unet", "fetch it again, or take another teacher")
    table = content.get("num_class_embeds")
    denoiser = NetDenoiser(net, schedule, Reading(parameterization, len(schedule.betas)), classes=table and table - 1)
    paths = [folder / SCHEDULER, folder / "unet" / nets.CONFIG, *sorted((folder / "unet").glob("*.safetensors*"))]
    files = {str(p.relative_to(folder)): disk.sha256(p) for p in paths}
    return Adopted(denoiser, files, _image(content), sampling=_sampling(settings, folder))


def _own(folder: Path) -> Adopted:
    checkpoint = load(folder)
    card = checkpoint.card
    if (
        checkpoint.denoiser.grid is not None
        or card.solver == "multistep_consistency"
        or checkpoint.guidance is not None
    ):
        raise UserError(
            f"{folder} is a student by {card.method}, which cannot teach at every time; give the teacher it comes from"
        )
    sampling = card.parameters.get("sampling", {}) if card.method == "adopted" else {}
    return Adopted(checkpoint.denoiser, dict(card.files), tuple(card.image), card.classes, sampling)


def _check_parts(folder: Path) -> None:
    """A UserError for a pipeline whose network is not one of pixels in unet/."""
    if latent := next((part for part in LATENT if (folder / part).is_dir()), None):
        raise UserError(
            f"{folder} works on what the encoder in {latent}/ makes of images, and here on images themselves; "
            "take a teacher of pixels"
        )
    if (folder / "transformer").is_dir() and not (folder / "unet").is_dir():
        raise UserError(
            f"{folder}: its network is a transformer (transformer/); only a {unet.FORMAT} in unet/ can be adopted"
        )


def _settings(folder: Path) -> dict[str, Any]:
    path = folder / SCHEDULER
    if not path.is_file():
        raise UserError(
            f"{folder} is not a teacher in diffusers' format: {SCHEDULER} is missing; save its pipeline with save_pretrained"
        )
    try:
        settings = disk.parse_json(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}); fetch or write it again") from None
    name = settings.get("_class_name") if isinstance(settings, dict) else None
    flag = next((key for key in FLAGS if settings.get(key)), None) if isinstance(settings, dict) else None
    if not isinstance(name, str) or name not in SAMPLERS or flag:
        whose = f"{name or 'an unknown scheduler'}{f' with {flag}' if flag else ''}"
        process = _process(name if isinstance(name, str) else None, flag)
        raise UserError(
            f"{path} is of {whose}: {process}; it cannot be adopted, and another scheduler in its place would "
            "not make it another network: take a teacher that was trained with betas (DDPM, DDIM and their like), or train "
            "one here"
        )
    return settings


def _process(name: str | None, flag: str | None) -> str:
    """What is known of a network by a scheduler that is not one of SAMPLERS."""
    word = flag or str(name)
    return next((process for part, process in PROCESSES.items() if part in word), "its process is not known here")


def _network(folder: Path) -> dict[str, Any]:
    """The content of unet/config.json."""
    content = nets.read_config(folder / "unet")
    if (name := content["_class_name"]) != unet.FORMAT:
        raise UserError(
            f"{folder}: its network is a {name}; only a {unet.FORMAT} is told a time and a class and no more"
        )
    supported = {"time_embedding_type": "positional", "class_embed_type": None}
    for key, default in supported.items():
        if (value := content.get(key, default)) != default:
            raise UserError(f"{folder}: {key} {value!r} is not known here, only {default!r}; train one with that")
    in_channels, out_channels = (content.get(key, 3) for key in ("in_channels", "out_channels"))
    if in_channels != out_channels:
        raise UserError(
            f"{folder}: the network makes {out_channels} channels of {in_channels}; of a learned variance keep only the "
            f"mean's: the first {in_channels} of conv_out and out_channels {in_channels}"
        )
    return content


def _image(content: dict[str, Any]) -> tuple[int, int, int]:
    size = content.get("sample_size") or 0
    if not (type(size) is int or (isinstance(size, list) and [type(side) for side in size] == [int, int])):
        raise UserError(f"{nets.CONFIG}: sample_size must be a side in pixels or [height, width], got {size!r}")
    return content.get("in_channels", 3), *((size, size) if isinstance(size, int) else size)


def _parameterization(settings: dict[str, Any], folder: Path) -> str:
    word = settings.get("prediction_type", "epsilon")
    if not isinstance(word, str) or word not in PREDICTION_TYPES or "predict_epsilon" in settings:
        raise UserError(
            f"{folder}: prediction_type {word!r} is not one of {', '.join(PREDICTION_TYPES)}; write which one in {SCHEDULER}"
        )
    return PREDICTION_TYPES[word]


def _sampling(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """As diffusers: thresholding goes before clipping."""
    try:
        if settings.get("thresholding"):
            threshold = Threshold(
                settings.get("dynamic_thresholding_ratio", 0.995), settings.get("sample_max_value", 1.0)
            )
            return {"threshold": asdict(threshold)}
        if settings.get("clip_sample", settings["_class_name"] in CLIPS):
            return {"clip": Clip(float(settings.get("clip_sample_range", 1.0))).bound}
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{folder}: {SCHEDULER} limits x_0 by what is no limit ({error}); write clip_sample false"
        ) from None
    return {}


def _schedule(settings: dict[str, Any], folder: Path) -> Discrete:
    try:
        betas = _betas(settings)
        if (betas[:-1] >= 1).any():
            raise ValueError("only the last beta can be 1")
        return Discrete(tuple((_zero_snr(betas) if settings.get("rescale_betas_zero_snr") else betas).tolist()))
    except (KeyError, TypeError, ValueError) as error:
        reason = f"{error.args[0]} is missing" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise UserError(f"{folder}: {SCHEDULER} gives no betas ({reason}); write them out as trained_betas") from None


def _betas(settings: dict[str, Any]) -> Tensor:
    """[T] float64, by the names that diffusers' schedulers give."""
    count = settings["num_train_timesteps"]
    if type(count) is not int or not 1 <= count <= MOST_STEPS:
        raise ValueError(f"num_train_timesteps must be a whole number in 1..{MOST_STEPS}, got {count!r}")
    if (betas := settings.get("trained_betas")) is not None:
        if len(betas) != count:
            raise ValueError(f"{len(betas)} trained_betas for {count} num_train_timesteps")
        return torch.tensor(betas, dtype=torch.float64)
    kind, low, high = (settings[key] for key in ("beta_schedule", "beta_start", "beta_end"))
    if kind == "linear":
        return torch.linspace(low, high, count, dtype=torch.float64)
    if kind == "scaled_linear":
        return torch.linspace(low**0.5, high**0.5, count, dtype=torch.float64) ** 2
    if kind == "squaredcos_cap_v2":
        bar = torch.cos((torch.arange(count + 1, dtype=torch.float64) / count + 0.008) / 1.008 * math.pi / 2) ** 2
        return (1 - bar[1:] / bar[:-1]).clamp(max=0.999)
    if kind == "sigmoid":
        return torch.linspace(-6, 6, count, dtype=torch.float64).sigmoid() * (high - low) + low
    raise ValueError(f"beta_schedule {kind!r} is unknown")


def _zero_snr(betas: Tensor) -> Tensor:
    """The betas whose last alpha is 0 and first unchanged (Lin et al. 2023, arXiv 2305.08891, algorithm 1)."""
    alpha = (1 - betas).cumprod(0).sqrt()
    alpha = (alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])
    bar = torch.cat([torch.ones(1, dtype=torch.float64), alpha**2])
    return 1 - bar[1:] / bar[:-1]


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "") or "none"
