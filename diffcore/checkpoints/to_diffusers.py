"""What lies beside our weights so that diffusers samples as we do: a scheduler and the index of a pipeline."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from diffcore.checkpoints.card import Card, Guidance
from diffcore.core.errors import UserError
from diffcore.denoisers.network import NetDenoiser
from diffcore.denoisers.reading import KINDS, TIMES, Reading
from diffcore.noise import schedule
from diffcore.noise.schedule import Flow, Normalised, Schedule

PREDICTION_TYPES = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}
"""What diffusers calls the parameterizations that its DDIM and LCM schedulers know."""

WRITTEN_AS = "0.36.0"
"""The version of diffusers whose format is written."""


def scheduler(denoiser: NetDenoiser, solver: str) -> tuple[str | None, dict[str, Any] | None]:
    """The diffusers pipeline and scheduler that sample as we do; None for the pipeline where diffusers has none that samples
    a network of pixels by that scheduler, for both where it has no such scheduler."""
    reading = denoiser.reading
    if not reading.is_usual:
        return None, _of_flow(denoiser, solver) if is_flow(reading) else None
    pipeline, settings = _of_betas(denoiser, solver)
    return pipeline if _is_piped(denoiser.net.config_json(), denoiser.reading.parameterization) else None, settings


def reading_of(card: Card) -> Reading:
    """How the network of a card is fed and read."""
    try:
        return Reading(card.parameterization, card.num_timesteps, **(card.reading or {}))
    except (TypeError, ValueError) as error:
        raise UserError(
            f"the card of {card.name} says of its network's reading what is none here ({error}); take a newer version"
        ) from None


PIXELS = "UNet2DModel"
"""The class of networks that diffusers has pipelines of pixels for."""


def _is_piped(content: Mapping[str, Any], parameterization: str) -> bool:
    """Whether diffusers' pipelines call a network of this config.json: of its class, and without a learned variance."""
    taken, made = (content.get(key, 3) for key in ("in_channels", "out_channels"))
    return content["_class_name"] == PIXELS and (taken == made or parameterization == "x0_eps")


def is_stepped(reading: Reading) -> bool:
    """Whether a scheduler of diffusers steps a network that is fed and read so."""
    return is_flow(reading) or (reading.is_usual and reading.parameterization in PREDICTION_TYPES)


def is_flow(reading: Reading) -> bool:
    """Whether diffusers' schedulers of rectified flow step the network: it sees (1 - s) x_0 + s eps, is told T s, says u."""
    return reading == Reading("flow", reading.num_timesteps, *KINDS["flow"])


def _of_flow(denoiser: NetDenoiser, solver: str) -> dict[str, Any]:
    """Both schedulers shift the sigmas that they are given, so ours are the times of a flow schedule and 1 its last.

    They count T s with T = 1000 where the pipeline then divides by that, or multiplies, for its network (Flux, Sana)."""
    flow = flow_of(denoiser.schedule)
    count = denoiser.reading.num_timesteps * 1000 / getattr(denoiser.net, "time_scale", 1000)
    return {
        "_class_name": _flow_scheduler(solver),
        "_diffusers_version": WRITTEN_AS,
        "num_train_timesteps": round(count),
        "shift": flow.shift if flow else 1.0,
    }


def _flow_scheduler(solver: str) -> str:
    """Which of diffusers' schedulers of rectified flow steps as a solver does."""
    return "FlowMatchLCMScheduler" if solver == "multistep_consistency" else "FlowMatchEulerDiscreteScheduler"


def flow_of(kind: Schedule) -> Flow | None:
    """The rectified flow that a schedule has the log-SNR of, normalised or not; None for any other schedule."""
    kind = kind.of if isinstance(kind, Normalised) else kind
    return kind if isinstance(kind, Flow) else None


def _of_betas(denoiser: NetDenoiser, solver: str) -> tuple[str, dict[str, Any]]:
    """T betas with alpha-bar_j = alpha(t = (j + 1)/T)^2 and "trailing" spacing make diffusers' index j our timestep
    T t - 1, so a trajectory of K uniform steps is exact where K divides T. A consistency student is sampled by LCM's
    multistep rule with its boundary scalings switched off: a v network has the boundary condition built in.

    Neither knows the parameterizations `x0_eps` and `flow`: they are written as what they are, so that their `step` refuses
    them by name, and `loop` is how to sample without it.
    """
    t = torch.arange(denoiser.reading.num_timesteps + 1, dtype=torch.float64) / denoiser.reading.num_timesteps
    alpha_bar = denoiser.schedule.alpha(t) ** 2
    alpha_bar[0] = 1  # the data: a schedule that keeps some noise there (ve) loses it in the last step, as in diffusers
    common = {
        "_diffusers_version": WRITTEN_AS,
        "num_train_timesteps": denoiser.reading.num_timesteps,
        "trained_betas": (1 - alpha_bar[1:] / alpha_bar[:-1]).tolist(),
        "prediction_type": PREDICTION_TYPES.get(denoiser.reading.parameterization, denoiser.reading.parameterization),
        "clip_sample": False,
        "set_alpha_to_one": True,
        "steps_offset": int(
            bool(denoiser.nothing.names)
        ),  # their pipelines of texts ask for 1, and trailing steps for none
        "timestep_spacing": "trailing",
        "rescale_betas_zero_snr": False,
        "thresholding": False,
    }
    if solver != "multistep_consistency":
        return "DDIMPipeline", {"_class_name": "DDIMScheduler", **common}
    own = {"original_inference_steps": _origins(denoiser.reading.num_timesteps), "timestep_scaling": 1e6}
    return "DDPMPipeline", {"_class_name": "LCMScheduler", **common, **own}


ORIGINS = 64


def _origins(num_timesteps: int) -> int:
    """Of how many even timesteps LCMScheduler takes every n-th. They end below T - 1 where their number does not divide T."""
    return ORIGINS if num_timesteps % ORIGINS == 0 else num_timesteps


BELIEFS = {
    "x0": """    x0 = out
    eps = (seen - alpha * x0) / sigma
""",
    "eps": """    eps = out
    x0 = (seen - sigma * eps) / alpha
""",
    "v": """    size = math.hypot(alpha, sigma)
    x0 = (alpha * seen / size - sigma * out) / size
    eps = (sigma * seen / size + alpha * out) / size
""",
    "score": """    eps = -sigma * out
    x0 = (seen - sigma * eps) / alpha
""",
    "x0_eps": """    x0, eps = out.chunk(2, 1)
    v = alpha * eps - sigma * x0
    x0, eps = alpha * seen - sigma * v, sigma * seen + alpha * v
""",
    "flow": """    x0 = (seen - sigma * out) / (alpha + sigma)
    eps = (seen + alpha * out) / (alpha + sigma)
""",
    "edm": """    size = math.hypot(alpha, sigma)
    x0 = (alpha * seen / size + sigma * out) / size
    eps = (sigma * seen / size - alpha * out) / size
""",
}
"""What the outputs of networks say, in Python, at the level of what they see; x0_eps where that has variance 1."""


def loop(card: Card, times: Sequence[float], content: Mapping[str, Any]) -> str | None:
    """Python that samples the network in the folder PATH at these times, by DDIM or for a consistency student by fresh noise
    in every step, with diffusers and torch alone; None for a network that diffusers' own pipeline samples. By diffusers'
    scheduler where there is one. content: of the network's config.json."""
    reading = reading_of(card)
    is_usual = reading.is_usual and is_stepped(reading)
    if is_usual and _is_piped(content, card.parameterization) and not card.classes:
        return None
    if is_flow(reading) and times[-1] == 0:
        return _stepped(card, times, content["_class_name"])
    return _by_hand(card, reading, times, content["_class_name"])


def pipeline_call(
    card: Card,
    times: Sequence[float],
    pipeline: str,
    guidance: float = 1.0,
    is_input: bool = False,
    absent: Sequence[str] = (),
) -> str:
    """Python that draws at these times by a whole pipeline of diffusers, of this class, in the folder PATH: by their sigmas
    for a rectified flow, else by their number. guidance: the weight of two calls in each step, 1 for one call; with is_input
    the one that the network is told. absent: parts that it has not; without what decodes latents its network draws images."""
    steps = f"num_inference_steps={len(times) - 1}"
    if is_flow(reading_of(card)):
        steps = f"sigmas=[{', '.join(_numbers(_sigmas(card, times)))}]"
    wanted = '"a prompt"' if "text" in (card.inputs or ()) else "class_labels=[0, 1]"
    guided = f"guidance_scale={guidance:g}"
    # whose guidance_scale is an input of its network
    if pipeline.startswith("Flux") and guidance != 1 and not is_input:
        guided = f'true_cfg_scale={guidance:g}, negative_prompt=""'
    note = _note(card, is_input) if card.guidance else ""  # pipelines guide unless they are told 1
    opening = ", ".join(['"PATH"', *(f"{name}=None" for name in absent)])
    start = f"from diffusers import {pipeline}\n\npipeline = {pipeline}.from_pretrained({opening})\n"
    if "vae" not in absent:
        return f"{start}images = pipeline({wanted}, {steps}, {guided}).images{note}\n"
    if pipeline.startswith("StableDiffusionXL"):  # which would tell the size of what is decoded
        guided += "".join(f", {which}_size=({card.image[1]}, {card.image[2]})" for which in ("original", "target"))
    drawn = f'samples = pipeline({wanted}, {steps}, {guided}, output_type="latent").images{note}\n'
    return f"{start}{drawn}images = (samples / 2 + 0.5).clamp(0, 1)\n"


def _note(card: Card, is_input: bool) -> str:
    """What is to be known of the weight of guidance."""
    if not is_input:
        return "  # guidance is built in"
    own = Guidance(**card.guidance)
    weights = f"any from {own.low:g} to {own.high:g}" if own.is_input else f"{own.low:g} alone"
    return f"  # its network is told guidance_scale, {weights}"


def _sigmas(card: Card, times: Sequence[float]) -> list[float]:
    """Those that diffusers' scheduler of a flow is given, which shifts them by itself."""
    kind, t = schedule.from_json(card.schedule), torch.tensor(list(times[:-1]), dtype=torch.float64)
    return (t if flow_of(kind) else TIMES["flow"](t, kind.alpha(t), kind.sigma(t), 1)).tolist()


def _stepped(card: Card, times: Sequence[float], network: str) -> str:
    """By a scheduler of rectified flow, which makes the last step to 0 and its own shift of the sigmas it is given."""
    name = _flow_scheduler(card.solver)
    return f"""{_opening(network, f"{name}, ")}scheduler = {name}.from_pretrained("PATH", subfolder="scheduler")
scheduler.set_timesteps(sigmas=[{", ".join(_numbers(_sigmas(card, times)))}])
{_start(card)}for t in scheduler.timesteps:
    with torch.no_grad():
        out = {_call(card, "x", "t")}
    x = scheduler.step(out, t, x).prev_sample
images = (x / 2 + 0.5).clamp(0, 1)
"""


def _by_hand(card: Card, reading: Reading, times: Sequence[float], network: str) -> str:
    kind, t = schedule.from_json(card.schedule), torch.tensor(list(times), dtype=torch.float64)
    level = kind.level(t, t)
    seen, own = reading.seen(torch.ones_like(t), level)
    columns = [reading.timestep(t, kind), seen, own.alpha, own.sigma, level.alpha.roll(-1), level.sigma.roll(-1)]
    rows = [f"    ({', '.join(_numbers(row))})," for row in torch.stack(columns, 1)[:-1].tolist()]
    noise = "torch.randn_like(x)" if card.solver == "multistep_consistency" else "eps"
    whole = "" if reading.sigma_data == 1 else f"    x0 = {reading.sigma_data:.9g} * x0\n"
    return f"""import math

{_opening(network)}# (timestep, scale of what the network sees, alpha and sigma of that, alpha and sigma after the step)
steps = [
{chr(10).join(rows)}
]
{_start(card)}for timestep, scale, alpha, sigma, to_alpha, to_sigma in steps:
    seen = scale * x
    with torch.no_grad():
        out = {_call(card, "seen", "torch.full((16,), timestep)")}
{BELIEFS[card.parameterization]}{whole}    x = to_alpha * x0 + to_sigma * {noise}
images = (x / 2 + 0.5).clamp(0, 1)
"""


def _opening(network: str, others: str = "") -> str:
    return f"""import torch
from diffusers import {others}{network}

unet = {network}.from_pretrained("PATH", subfolder="unet")
"""


def _start(card: Card) -> str:
    labels = f"class_labels = torch.arange(16) % {len(card.classes)}\n" if card.classes else ""
    return f"{labels}x = torch.randn(16, {', '.join(map(str, card.image))})\n"


def _call(card: Card, seen: str, timestep: str) -> str:
    labels = ", class_labels=class_labels" if card.classes else ""
    mean = "" if card.parameterization == "x0_eps" else f"[:, :{card.image[0]}]"  # without a learned variance
    return f"unet({seen}, timestep={timestep}{labels}).sample{mean}"


def _numbers(values: Sequence[float]) -> list[str]:
    return [f"{value:.9g}" for value in values]


def model_index(pipeline: str, scheduler: dict[str, Any], net: nn.Module) -> dict[str, Any]:
    """The content of model_index.json: which classes of diffusers open what lies beside it."""
    return {
        "_class_name": pipeline,
        "_diffusers_version": scheduler["_diffusers_version"],
        "scheduler": ["diffusers", scheduler["_class_name"]],
        "unet": ["diffusers", net.config_json()["_class_name"]],
    }
