"""An adopted teacher held against diffusers itself: samples by its network and its scheduler's steps, and by ours."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffcore.checkpoints.from_diffusers import Adopted, part_of
from diffcore.checkpoints.schedulers import EDMS
from diffcore.checkpoints.to_diffusers import flow_of
from diffcore.core.rng import generator
from diffcore.core.shapes import Sample
from diffcore.denoisers.condition import CLASS, GUIDANCE, Condition
from diffcore.denoisers.denoiser import per_sample
from diffcore.denoisers.network import NetDenoiser
from diffcore.denoisers.node import ddim_step, node
from diffcore.nets import diffusers_model
from diffcore.nets.diffusers_model import DiffusersModel

COUNT, TOKENS = 2, 5
IMAGE = "image"
"""The input whose free sizes are those of the sample; of a text it is their number of tokens."""
STEPS = (4, 5, 2, 1)
"""Of those the first that divides the noise levels of the teacher."""


@dataclass(frozen=True)
class Gap:
    """scheduler: of diffusers, and how many steps it made. largest: difference of its samples from ours, in units of their
    largest value."""

    scheduler: str
    steps: int
    largest: float

    def __str__(self) -> str:
        return f"{self.steps} steps of diffusers' {self.scheduler} from the same noise differ by {self.largest:.2g}"


@torch.inference_mode()
def gap(folder: Path, adopted: Adopted, image: Sequence[int]) -> Gap | None:
    """By how much samples of diffusers' own network and scheduler differ from ours, for images [c, h, w]: by DDIM for a
    teacher of betas, else by Euler's steps, without limits of x_0; of classes, texts and the like where it is told such,
    whatever they mean. None for a checkpoint of ours, which is no folder of diffusers' pipelines."""
    if adopted.settings is None:
        return None
    own = adopted.denoiser
    count = own.reading.num_timesteps if own.reading.is_usual else STEPS[0]
    steps = next(steps for steps in STEPS if count % steps == 0)
    scheduler = _scheduler(adopted.settings, own, steps)
    noise = torch.randn(COUNT, *image, generator=generator("adopted", *image))
    net = _net(Path(folder).expanduser(), own)
    inputs = _inputs(net, own, image) | _weights(adopted)
    theirs = noise * float(getattr(scheduler, "init_noise_sigma", 1.0))
    for t in scheduler.timesteps:
        seen = scheduler.scale_model_input(theirs, t) if hasattr(scheduler, "scale_model_input") else theirs
        told = t * (net.time_scale / 1000 if own.reading.time == "flow" else 1)
        theirs = scheduler.step(net(seen, told.float().expand(COUNT), **inputs), t, theirs).prev_sample
    ours = _sampled(own.with_condition(_condition(inputs)), noise, _times(scheduler, own, steps))
    return Gap(type(scheduler).__name__, steps, float((ours - theirs).abs().max() / theirs.abs().max()))


def _net(folder: Path, own: NetDenoiser) -> DiffusersModel:
    """diffusers' own network: the adopted one, unless that is of a class of ours."""
    if isinstance(own.net, DiffusersModel):
        return own.net
    return diffusers_model.load(folder / part_of(folder)).eval()


def _inputs(net: DiffusersModel, own: NetDenoiser, image: Sequence[int]) -> dict[str, Tensor]:
    """What the network is told: classes that there are, and of all else that it must be told random numbers."""
    inputs = {}
    for name, each in net.inputs.items():
        if name == CLASS:
            inputs |= {} if own.classes is None else {CLASS: torch.arange(COUNT) % own.classes}
        elif each.required and name != GUIDANCE:
            sides = image[1:] if name == IMAGE else (TOKENS,)
            free = iter(sides)
            shape = [next(free) if size is None else size for size in each.shape]
            inputs[name] = torch.rand(COUNT, *shape, generator=generator("adopted", name))
    return inputs


def _weights(adopted: Adopted) -> dict[str, Tensor]:
    """Of guidance, from the lowest to the highest that the network was trained for."""
    weights = adopted.guidance
    return {} if weights is None else {GUIDANCE: torch.linspace(weights.low, weights.high, COUNT)}


def _condition(inputs: Mapping[str, Tensor]) -> Condition:
    return Condition({name: each for name, each in inputs.items() if name != GUIDANCE}, inputs.get(GUIDANCE))


def _scheduler(settings: Mapping[str, Any], own: NetDenoiser, steps: int) -> Any:
    """diffusers' own with these settings, at `steps` even times; of a flow with the shift that its images have."""
    import diffusers

    if own.reading.is_usual:
        plain = {"clip_sample": False, "thresholding": False, "set_alpha_to_one": True, "steps_offset": 0}
        if settings.get("beta_schedule") == "sigmoid":  # which DDPMScheduler knows alone
            plain |= {"trained_betas": list(own.schedule.betas), "rescale_betas_zero_snr": False}
        scheduler = diffusers.DDIMScheduler.from_config({**settings, **plain, "timestep_spacing": "trailing"})
        scheduler.set_timesteps(steps)
    elif settings["_class_name"] in EDMS:
        scheduler = diffusers.EDMEulerScheduler.from_config(settings)
        scheduler.set_timesteps(steps)
    else:
        count = settings.get("num_train_timesteps", 1000)
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler(
            num_train_timesteps=count, shift=flow_of(own.schedule).shift
        )
        scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps))
    return scheduler


def _times(scheduler: Any, own: NetDenoiser, steps: int) -> list[float]:
    """Ours of the scheduler's steps, from 1 down; the last step leads to x_0."""
    if not hasattr(scheduler, "sigmas"):
        return [1 - k / steps for k in range(steps)]
    ratio = scheduler.sigmas[:steps].double()
    if own.reading.time == "flow":
        ratio = ratio / (1 - ratio)
    return own.schedule.time(-ratio.log()).tolist()


def _sampled(denoiser: NetDenoiser, noise: Sample, times: Sequence[float]) -> Sample:
    """By DDIM steps, the last of which is the believed x_0."""
    x = noise
    for k, t in enumerate(times):
        belief = denoiser(x, per_sample(t, x))
        x = belief.x0 if k + 1 == len(times) else ddim_step(belief, node(denoiser.schedule, times[k + 1]))
    return x
