"""The U-Net, in the format of diffusers' UNet2DModel.

Parameter names, the keys of config.json and the function itself are UNet2DModel's, so one folder opens in either with the
same output to float32 rounding. Architecture: Ho et al. 2020, arXiv 2006.11239, appendix B; the scale-shift time
conditioning of Dhariwal & Nichol 2021, arXiv 2105.05233, section 4. What is rarely used of UNet2DModel (Fourier times,
FIR and skip blocks, resnet resampling) is left to diffcore.nets.diffusers_model.

The time embedding is slow: of the sinusoid's frequencies only those are used whose phase stays small over the whole range
of timesteps. The input columns of `time_embedding.linear_1` for the faster ones are zero and stay zero in training, which any
reader of the format reproduces.
"""

from diffcore.nets.conditioned import folded, guidance_features, with_guidance
from diffcore.nets.unet.blocks import Attention, Resnet, TimeEmbedding, frequencies, sinusoids
from diffcore.nets.unet.config import (
    FORMAT,
    GUIDED,
    UNetConfig,
    Unsupported,
    config_json,
    default_config,
    from_json,
    modern_names,
)
from diffcore.nets.unet.init import build
from diffcore.nets.unet.model import UNet
from diffcore.nets.unet.open import FAMILY
from diffcore.nets.unet.shape import Shape

__all__ = [
    "FAMILY",
    "FORMAT",
    "GUIDED",
    "Attention",
    "Resnet",
    "Shape",
    "TimeEmbedding",
    "UNet",
    "UNetConfig",
    "Unsupported",
    "build",
    "config_json",
    "default_config",
    "folded",
    "frequencies",
    "from_json",
    "guidance_features",
    "modern_names",
    "sinusoids",
    "with_guidance",
]
