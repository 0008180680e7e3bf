"""What lies beside our weights so that diffusers samples as we do: a scheduler and the index of a pipeline."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from diffcore.checkpoints.card import Card
from diffcore.denoisers.network import NetDenoiser
from diffcore.noise import schedule

PREDICTION_TYPES = {"v": "v_prediction", "eps": "epsilon", "x0": "sample"}
"""What diffusers calls the parameterizations that its DDIM and LCM schedulers know."""


def scheduler(denoiser: NetDenoiser, solver: str) -> tuple[str, dict[str, Any]]:
    """The diffusers pipeline and scheduler that sample as we do.

    T betas with alpha-bar_j = alpha(t = (j + 1)/T)^2 and "trailing" spacing make diffusers' index j our timestep
    T t - 1, so a trajectory of K uniform steps is exact where K divides T. A consistency student is sampled by LCM's
    multistep rule with its boundary scalings switched off: a v network has the boundary condition built in.

    Neither knows the parameterizations `x0_eps` and `flow`: they are written as what they are, so that their `step` refuses
    them by name, and `loop` is how to sample without it.
    """
    t = torch.arange(denoiser.num_timesteps + 1, dtype=torch.float64) / denoiser.num_timesteps
    alpha_bar = denoiser.schedule.alpha(t) ** 2
    alpha_bar[0] = 1  # the data: a schedule that keeps some noise there (ve) loses it in the last step, as in diffusers
    common = {
        "_diffusers_version": "0.36.0",
        "num_train_timesteps": denoiser.num_timesteps,
        "trained_betas": (1 - alpha_bar[1:] / alpha_bar[:-1]).tolist(),
        "prediction_type": PREDICTION_TYPES.get(denoiser.parameterization, denoiser.parameterization),
        "clip_sample": False,
        "set_alpha_to_one": True,
        "steps_offset": 0,
        "timestep_spacing": "trailing",
        "rescale_betas_zero_snr": False,
        "thresholding": False,
    }
    if solver != "multistep_consistency":
        return "DDIMPipeline", {"_class_name": "DDIMScheduler", **common}
    own = {"original_inference_steps": 64, "timestep_scaling": 1e6}
    return "DDPMPipeline", {"_class_name": "LCMScheduler", **common, **own}


BELIEFS = {
    "flow": """    x0 = (x - sigma[k] * out) / (alpha[k] + sigma[k])
    eps = (x + alpha[k] * out) / (alpha[k] + sigma[k])
""",
    "x0_eps": """    x0, eps = out.chunk(2, 1)
    v = alpha[k] * eps - sigma[k] * x0
    x0, eps = alpha[k] * x - sigma[k] * v, sigma[k] * x + alpha[k] * v
""",
}
"""What the outputs of networks say that no scheduler of diffusers knows, in Python; on schedules that preserve variance."""


def loop(card: Card, times: Sequence[float]) -> str | None:
    """Python that samples the network in the folder PATH at these times, with diffusers' network and torch alone; None for a
    network that diffusers' own pipeline samples. By DDIM, or for a consistency student by fresh noise in every step."""
    if card.parameterization not in BELIEFS:
        return None
    kind, t = schedule.from_json(card.schedule), torch.tensor(list(times), dtype=torch.float64)
    noise = "torch.randn_like(x)" if card.solver == "multistep_consistency" else "eps"
    return f"""import torch
from diffusers import UNet2DModel

unet = UNet2DModel.from_pretrained("PATH/unet")
timesteps = {(t * card.num_timesteps - 1).tolist()}
alpha = {kind.alpha(t).tolist()}
sigma = {kind.sigma(t).tolist()}
x = torch.randn(16, {", ".join(map(str, card.image))})
for k in range({len(times) - 1}):
    with torch.no_grad():
        out = unet(x, torch.full((len(x),), timesteps[k])).sample
{BELIEFS[card.parameterization]}    x = alpha[k + 1] * x0 + sigma[k + 1] * {noise}
images = (x / 2 + 0.5).clamp(0, 1)
"""


def model_index(pipeline: str, scheduler: dict[str, Any], net: nn.Module) -> dict[str, Any]:
    """The content of model_index.json: which classes of diffusers open what lies beside it."""
    return {
        "_class_name": pipeline,
        "_diffusers_version": scheduler["_diffusers_version"],
        "scheduler": ["diffusers", scheduler["_class_name"]],
        "unet": ["diffusers", net.config_json()["_class_name"]],
    }
