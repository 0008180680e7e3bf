"""What lies beside our weights so that diffusers samples as we do: a scheduler and the index of a pipeline."""

from typing import Any

import torch
from torch import nn

from diffcore.denoisers.network import NetDenoiser

PREDICTION_TYPES = {"v": "v_prediction", "eps": "epsilon", "x0": "sample"}
"""What diffusers calls the parameterizations that its DDIM and LCM schedulers know."""


def scheduler(denoiser: NetDenoiser, solver: str) -> tuple[str, dict[str, Any]]:
    """The diffusers pipeline and scheduler that sample as we do.

    T betas with alpha-bar_j = alpha(t = (j + 1)/T)^2 and "trailing" spacing make diffusers' index j our timestep
    T t - 1, so a trajectory of K uniform steps is exact where K divides T. A consistency student is sampled by LCM's
    multistep rule with its boundary scalings switched off: a v network has the boundary condition built in.

    Neither knows the parameterizations `x0_eps` and `flow`: they are written as what they are, so that their `step` refuses
    them by name.
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


def model_index(pipeline: str, scheduler: dict[str, Any], net: nn.Module) -> dict[str, Any]:
    """The content of model_index.json: which classes of diffusers open what lies beside it."""
    return {
        "_class_name": pipeline,
        "_diffusers_version": scheduler["_diffusers_version"],
        "scheduler": ["diffusers", scheduler["_class_name"]],
        "unet": ["diffusers", net.config_json()["_class_name"]],
    }
