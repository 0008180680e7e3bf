"""A teacher that somebody else trained: a folder that diffusers wrote, read as what it is.

The network may be any of diffusers' that needs no more than an image, a time and a class. Its betas become a Discrete
schedule of as many steps, its prediction_type a head, its timesteps the labels T t - 1: so nothing is converted and nothing
is approximated. Other processes (flow matching, variance exploding) are told another number than a time and are refused.
"""

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffcore import nets
from diffcore.denoiser import NetDenoiser
from diffcore.mistake import Mistake
from diffcore.schedule import Discrete

HEADS = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}
FOREIGN = ("flow", "edm", "ve", "karras")
"""Parts of the names of diffusers' schedulers whose process is another one."""


def adopt(folder: Path) -> NetDenoiser:
    """The denoiser in `folder`: a pipeline (unet/ and scheduler/) of diffusers. A Mistake says what cannot be read."""
    folder = Path(folder).expanduser()
    settings = _settings(folder)
    betas, head = _betas(settings, folder), _head(settings, folder)
    net = nets.open_folder(folder / "unet").eval().requires_grad_(False)
    table = net.config_json().get("num_class_embeds")
    return NetDenoiser(net, Discrete(tuple(betas.tolist())), head, classes=table and table - 1, labels=len(betas))


def image_of(denoiser: NetDenoiser) -> tuple[int, int, int] | None:
    """[c, h, w] that the network was made for, None if its config does not say."""
    config = denoiser.net.config_json()
    size, channels = config.get("sample_size"), config.get("in_channels")
    if size is None or channels is None:
        return None
    height, width = (size, size) if isinstance(size, int) else size
    return channels, height, width


def _settings(folder: Path) -> dict[str, Any]:
    path = folder / "scheduler/scheduler_config.json"
    if not path.is_file():
        raise Mistake(
            f"{folder} is not a teacher in diffusers' format: {path.relative_to(folder)} is missing; save its pipeline "
            "with save_pretrained"
        )
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise Mistake(f"{path} is not valid JSON ({error}); fetch or write it again") from None
    name = str(found.get("_class_name", ""))
    if any(word in name.lower() for word in FOREIGN) or "num_train_timesteps" not in found:
        raise Mistake(
            f"{path} is of {name or 'an unknown scheduler'}, whose process is not the variance-preserving one with betas; "
            "only a teacher trained with betas can be taken as it is"
        )
    return found


def _head(settings: dict[str, Any], folder: Path) -> str:
    word = settings.get("prediction_type", "epsilon")
    if word not in HEADS:
        raise Mistake(f"{folder}: prediction_type {word!r} is unknown; known: {', '.join(HEADS)}")
    return HEADS[word]


def _betas(settings: dict[str, Any], folder: Path) -> Tensor:
    """[T] float64, by the names that diffusers' schedulers give."""
    count, kind = settings["num_train_timesteps"], settings.get("beta_schedule", "linear")
    low, high = settings.get("beta_start", 1e-4), settings.get("beta_end", 0.02)
    if settings.get("trained_betas") is not None:
        betas = torch.tensor(settings["trained_betas"], dtype=torch.float64)
    elif kind == "linear":
        betas = torch.linspace(low, high, count, dtype=torch.float64)
    elif kind == "scaled_linear":
        betas = torch.linspace(low**0.5, high**0.5, count, dtype=torch.float64) ** 2
    elif kind == "squaredcos_cap_v2":
        bar = torch.cos((torch.arange(count + 1, dtype=torch.float64) / count + 0.008) / 1.008 * math.pi / 2) ** 2
        betas = (1 - bar[1:] / bar[:-1]).clamp(max=0.999)
    else:
        raise Mistake(f"{folder}: beta_schedule {kind!r} is unknown; write the betas out as trained_betas")
    return _zero_snr(betas) if settings.get("rescale_betas_zero_snr") else betas


def _zero_snr(betas: Tensor) -> Tensor:
    """The betas whose last alpha is 0 and first unchanged (Lin et al. 2023, arXiv 2305.08891, algorithm 1)."""
    alpha = (1 - betas).cumprod(0).sqrt()
    alpha = (alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])
    bar = torch.cat([torch.ones(1, dtype=torch.float64), alpha**2])
    return 1 - bar[1:] / bar[:-1]
