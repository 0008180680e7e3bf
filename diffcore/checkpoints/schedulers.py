"""What a scheduler of diffusers says of the network beside it: what it was trained on, and how it is fed and read.

Betas become a Discrete schedule of as many steps, sigmas of rectified flow a Flow with their shift, those of EDM an EDM. How
a scheduler steps, and at which times it likes to, is no matter of the network and stays behind.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffcore.checkpoints import to_diffusers
from diffcore.core import disk
from diffcore.core.errors import UserError
from diffcore.denoisers.clipping import Clip, Threshold
from diffcore.denoisers.reading import Reading
from diffcore.noise.schedule import EDM, VE, Discrete, Flow, Schedule, variance_preserving

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

FLOWS = [f"FlowMatch{name}DiscreteScheduler" for name in ("Euler", "Heun")]
"""Those whose networks see (1 - s) x_0 + s eps, are told T s and say eps - x_0 (rectified flow, arXiv 2209.03003)."""

EDMS = [f"EDM{name}Scheduler" for name in ("Euler", "DPMSolverMultistep")]
"""Those whose networks are fed and read as EDM's (arXiv 2206.00364, table 1)."""

F_TYPES = {"epsilon": "edm", "v_prediction": "v"}
"""What EDM's schedulers call F, and -F."""

FLAGS = {"snr_shift_scale", "invert_sigmas"}
"""Of a scheduler's settings; each makes it another process that is not known here."""

PROCESSES = {
    "FlowMatchLCM": "it is a student that jumps to images, which cannot teach at every time",
    "Flow": "its steps are of no rectified flow that is known here",
    "Ve": "its network sees x_0 + sigma eps (variance exploding), not noise scaled by betas",
    "VE": "its network sees x_0 + sigma eps (variance exploding), not noise scaled by betas",
    "Vp": "its network is told continuous times of an SDE, not the index of a beta",
    "LCM": "it is a student that jumps to images, which cannot teach at every time",
    "TCD": "it is a student that jumps to images, which cannot teach at every time",
    "CMStochastic": "it is a student that jumps to images, which cannot teach at every time",
    "invert_sigmas": "its sigmas are of the data, not of the noise",
    "snr_shift": "it shifts the noise of its betas by the images' size",
}
"""What is true of networks by other schedulers of diffusers, by a part of the name."""

CLIPS = [f"{name}Scheduler" for name in ("DDPM", "DDPMParallel", "DDIM", "DDIMParallel")]
"""Those that clip x_0 unless their settings say otherwise."""


@dataclass(frozen=True)
class Process:
    """What its network was trained on. schedule: the variance-preserving one of its log-SNR. reading: how it is fed and read.
    sampling: what its scheduler does to the believed x_0, in a recipe's words; empty for nothing."""

    schedule: Schedule
    reading: Reading
    sampling: dict[str, Any]


def process(settings: Mapping[str, Any], folder: Path, time_scale: int = 1000, patches: int | None = None) -> Process:
    """That of a scheduler's settings, see `settings`. time_scale: T of the time T s that the network of a flow is told in
    diffusers' own pipeline. patches: how many it sees of its images, None where its config does not say.

    A UserError says what cannot be read as it is.
    """
    try:
        if settings["_class_name"] in EDMS:
            return _edm(settings, folder)
        if settings["_class_name"] in FLOWS or settings.get("use_flow_sigmas"):
            return _flow(settings, folder, time_scale, patches)
    except (ArithmeticError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{folder}: {SCHEDULER} has odd numbers ({reason}); write those it was trained with") from None
    return _of_betas(settings, folder)


def _of_betas(settings: Mapping[str, Any], folder: Path) -> Process:
    parameterization, schedule = _word(settings, folder, PREDICTION_TYPES), _schedule(settings, folder)
    if parameterization == "eps" and float(schedule.alpha(torch.ones(1))) == 0:
        raise UserError(
            f"{folder}: an epsilon network on betas that end in pure noise has no image at t = 1, where sampling begins; "
            "it must be trained with v_prediction"
        )
    return Process(schedule, Reading(parameterization, len(schedule.betas)), _sampling(settings, folder))


def _flow(settings: Mapping[str, Any], folder: Path, time_scale: int, patches: int | None) -> Process:
    if settings["_class_name"] not in FLOWS:  # by a flag of a solver that knows betas too
        word = settings.get("prediction_type")
        if word != "flow_prediction":
            raise UserError(f"{folder}: use_flow_sigmas needs prediction_type 'flow_prediction', and it is {word!r}")
    told = _count(settings) * time_scale / 1000
    if told != int(told) or told < 1:
        raise UserError(f"{folder}: its network is told times of {told:g} steps, which must be a whole number")
    shift = _shift(settings, folder, patches)
    return Process(variance_preserving(Flow(shift)), Reading.of("flow", "flow", int(told)), {})


def _shift(settings: Mapping[str, Any], folder: Path, patches: int | None) -> float:
    """Of the times. A dynamic one is exp(mu), or mu where the type is linear, with mu linear in the number of patches (Esser
    et al. 2024, arXiv 2403.03206, section 5.3.2, as diffusers' pipelines of such networks work it out)."""
    if not settings.get("use_dynamic_shifting"):
        return float(settings.get("flow_shift" if "use_flow_sigmas" in settings else "shift", 1.0))
    if patches is None:
        raise UserError(
            f"{folder}: its shift depends on the size of the images, which its config.json does not say; write "
            f"use_dynamic_shifting false and `shift` into {SCHEDULER}"
        )
    few, many = (settings.get(f"{end}_image_seq_len", usual) for end, usual in (("base", 256), ("max", 4096)))
    low, high = (settings.get(f"{end}_shift", usual) for end, usual in (("base", 0.5), ("max", 1.15)))
    mu = low + (high - low) * (patches - few) / (many - few)
    return mu if settings.get("time_shift_type", "exponential") == "linear" else math.exp(mu)


def _edm(settings: Mapping[str, Any], folder: Path) -> Process:
    low, high = float(settings.get("sigma_min", 0.002)), float(settings.get("sigma_max", 80.0))
    kind = settings.get("sigma_schedule", "karras")
    if kind not in ("karras", "exponential"):
        raise UserError(f"{folder}: sigma_schedule {kind!r} is not one of karras, exponential")
    schedule = EDM(low, high, float(settings.get("rho", 7.0))) if kind == "karras" else VE(low, high)
    word = _word(settings, folder, F_TYPES)
    reading = Reading.of("edm", word, _count(settings), float(settings.get("sigma_data", 0.5)))
    return Process(variance_preserving(schedule), reading, _sampling({"clip_sample": False, **settings}, folder))


def _count(settings: Mapping[str, Any]) -> int:
    count = settings.get("num_train_timesteps", 1000)
    if type(count) is not int or not 1 <= count <= MOST_STEPS:
        raise ValueError(f"num_train_timesteps must be a whole number in 1..{MOST_STEPS}, got {count!r}")
    return count


def _word(settings: Mapping[str, Any], folder: Path, words: Mapping[str, str]) -> str:
    """The parameterization."""
    word = settings.get("prediction_type", "epsilon")
    if not isinstance(word, str) or word not in words or "predict_epsilon" in settings:
        raise UserError(
            f"{folder}: prediction_type {word!r} is not one of {', '.join(words)}; write which one in {SCHEDULER}"
        )
    return words[word]


def read_settings(folder: Path) -> dict[str, Any]:
    """The content of a pipeline's scheduler_config.json; a UserError for one of a process that is not known here."""
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
    if not isinstance(name, str) or name not in (*SAMPLERS, *FLOWS, *EDMS) or flag:
        whose = f"{name or 'an unknown scheduler'}{f' with {flag}' if flag else ''}"
        whence = _process(name if isinstance(name, str) else None, flag)
        raise UserError(
            f"{path} is of {whose}: {whence}; it cannot be adopted, and another scheduler in its place would "
            "not make it another network: take a teacher of betas (DDPM, DDIM and their like), of rectified flow or "
            "of EDM, or train one here"
        )
    return settings


def _process(name: str | None, flag: str | None) -> str:
    """What is known of a network by a scheduler that is none of those."""
    word = flag or str(name)
    return next((process for part, process in PROCESSES.items() if part in word), "its process is not known here")


def _sampling(settings: Mapping[str, Any], folder: Path) -> dict[str, Any]:
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


def _schedule(settings: Mapping[str, Any], folder: Path) -> Discrete:
    try:
        betas = _betas(settings)
        if (betas[:-1] >= 1).any():
            raise ValueError("only the last beta can be 1")
        return Discrete(tuple((_zero_snr(betas) if settings.get("rescale_betas_zero_snr") else betas).tolist()))
    except (KeyError, TypeError, ValueError) as error:
        reason = f"{error.args[0]} is missing" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise UserError(f"{folder}: {SCHEDULER} gives no betas ({reason}); write them out as trained_betas") from None


def _betas(settings: Mapping[str, Any]) -> Tensor:
    """[T] float64, by the names that diffusers' schedulers give."""
    count = _count(settings)
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
