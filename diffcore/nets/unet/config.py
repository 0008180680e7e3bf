"""The U-Net's configuration, and config.json as diffusers writes it."""

import re
from dataclasses import asdict, dataclass, fields
from typing import Any

from torch import Tensor

from diffcore.core.errors import UserError

FORMAT = "UNet2DModel"
GUIDED = "GuidedUNet2DModel"
"""The format of a network with an input for the guidance weight: no class of diffusers, which refuses it by this name instead
of leaving the input out. `folded` gives the UNet2DModel of one weight."""

TWO_TIMES, GUIDED_TWO_TIMES = "TwoTimesUNet2DModel", "GuidedTwoTimesUNet2DModel"
"""Those of networks that are told where their hop lands, in the same way. `ended` gives the network of hops to one time."""

FORMATS = {FORMAT: (False, False), GUIDED: (True, False), TWO_TIMES: (False, True), GUIDED_TWO_TIMES: (True, True)}
"""The formats, and whether the guidance weight and the time where the hop lands are inputs of such a network."""

WRITTEN_AS = "0.36.0"
"""The release of diffusers that the written config.json names: the oldest one supported."""


class Unsupported(UserError):
    """A part of UNet2DModel that this network leaves to the adapter."""


DOWN, ATTENTION_DOWN = "DownBlock2D", "AttnDownBlock2D"
UP, ATTENTION_UP = "UpBlock2D", "AttnUpBlock2D"
MAX_PERIOD = 10000


@dataclass(frozen=True)
class UNetConfig:
    """The keys of a UNet2DModel's config.json, with diffusers' defaults for keys that a file leaves out.

    Raises Unsupported for a value that this network does not know, and UserError for numbers that do not fit together.
    """

    sample_size: int | tuple[int, ...] | None = None
    in_channels: int = 3
    out_channels: int = 3
    center_input_sample: bool = False
    time_embedding_type: str = "positional"
    time_embedding_dim: int | None = None
    freq_shift: int | float = 0
    flip_sin_to_cos: bool = True
    down_block_types: tuple[str, ...] = (DOWN, ATTENTION_DOWN, ATTENTION_DOWN, ATTENTION_DOWN)
    mid_block_type: str | None = "UNetMidBlock2D"
    up_block_types: tuple[str, ...] = (ATTENTION_UP, ATTENTION_UP, ATTENTION_UP, UP)
    block_out_channels: tuple[int, ...] = (224, 448, 672, 896)
    layers_per_block: int = 2
    mid_block_scale_factor: int | float = 1
    downsample_padding: int = 1
    downsample_type: str = "conv"
    upsample_type: str = "conv"
    dropout: int | float = 0.0
    act_fn: str = "silu"
    attention_head_dim: int | None = 8
    norm_num_groups: int = 32
    attn_norm_num_groups: int | None = None
    norm_eps: float = 1e-5
    resnet_time_scale_shift: str = "default"
    add_attention: bool = True
    class_embed_type: str | None = None
    num_class_embeds: int | None = None
    num_train_timesteps: int | None = None
    guidance_embeds: bool = False
    end_embeds: bool = False

    def __post_init__(self):
        for key, choices in CHOICES.items():
            setting = getattr(self, key)
            for value in setting if isinstance(setting, tuple) else (setting,):
                if value not in choices:
                    raise Unsupported(f"{key} {value!r} is not one that our U-Net knows; {ADAPTER}")
        if self.out_channels not in (self.in_channels, 2 * self.in_channels):
            raise Unsupported(
                f"out_channels {self.out_channels} is not in_channels {self.in_channels} or twice that; {ADAPTER}"
            )
        levels = {len(self.down_block_types), len(self.up_block_types), len(self.block_out_channels)}
        if len(levels) > 1:
            raise UserError("down_block_types, up_block_types and block_out_channels must be of equal length")
        for channels in self.block_out_channels:
            if channels % self.norm_num_groups:
                raise UserError(f"{channels} channels do not divide into {self.norm_num_groups} groups; change either")
            if self.attends and (self.attention_head_dim or 1) > channels:
                raise UserError(f"attention_head_dim {self.attention_head_dim} is larger than {channels} channels")

    @property
    def attends(self) -> bool:
        """Whether any block has attention."""
        middle = self.add_attention and self.mid_block_type is not None
        return middle or ATTENTION_DOWN in self.down_block_types or ATTENTION_UP in self.up_block_types

    @property
    def embedding(self) -> int:
        """Channels of the time embedding."""
        return self.time_embedding_dim or 4 * self.block_out_channels[0]

    @property
    def skips(self) -> int:
        """How many skips there are: of the first convolution, of each residual block on the way down and of each halving."""
        return len(self.block_out_channels) * (self.layers_per_block + 1)


CHOICES: dict[str, tuple[Any, ...]] = {
    "time_embedding_type": ("positional",),
    "down_block_types": (DOWN, ATTENTION_DOWN),
    "mid_block_type": ("UNetMidBlock2D", None),
    "up_block_types": (UP, ATTENTION_UP),
    "downsample_type": ("conv",),
    "upsample_type": ("conv",),
    "act_fn": ("silu", "swish"),
    "resnet_time_scale_shift": ("default", "scale_shift"),
    "class_embed_type": (None,),
}


ADAPTER = "the adapter to diffusers (diffcore.nets.diffusers_model) takes it"


def default_config(
    image_shape: tuple[int, ...],
    channels: tuple[int, ...] = (16, 32),
    layers: int = 1,
    attention: bool = False,
    groups: int = 8,
    classes: int | None = None,
    dropout: float = 0.0,
) -> UNetConfig:
    """Our default for images [c, h, w]: scale-shift conditioning, a level for each of `channels`.

    Raises UserError if h or w cannot be halved at each level, or the channels not be grouped.
    """
    count, height, width = image_shape
    levels, step = len(channels), 2 ** (len(channels) - 1)
    if height % step or width % step:
        raise UserError(
            f"images of {height} x {width} cannot be halved {levels - 1} times; use fewer channels or resize"
        )
    deep = levels - 1 if attention else 0
    return UNetConfig(
        sample_size=height if height == width else (height, width),
        in_channels=count,
        out_channels=count,
        down_block_types=(DOWN,) * (levels - deep) + (ATTENTION_DOWN,) * deep,
        up_block_types=(ATTENTION_UP,) * deep + (UP,) * (levels - deep),
        block_out_channels=tuple(channels),
        layers_per_block=layers,
        dropout=dropout,
        attention_head_dim=min(8, *channels),
        norm_num_groups=groups,
        attn_norm_num_groups=groups,
        resnet_time_scale_shift="scale_shift",
        add_attention=attention,
        num_class_embeds=classes,
    )


def config_json(config: UNetConfig) -> dict[str, Any]:
    """What config.json holds: diffusers reads it as a UNet2DModel."""
    plain = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(config).items()}
    guided, two = plain.pop("guidance_embeds"), plain.pop("end_embeds")
    kind = next(name for name, own in FORMATS.items() if own == (guided, two))
    return {"_class_name": kind, "_diffusers_version": WRITTEN_AS, **plain}


def from_json(content: dict[str, Any]) -> UNetConfig:
    """The inverse of `config_json`; keys that begin with _ are notes. Raises Unsupported for an unknown key or value."""
    settings = {key: value for key, value in content.items() if not key.startswith("_")}
    settings |= dict(zip(("guidance_embeds", "end_embeds"), FORMATS.get(content.get("_class_name"), ())))
    defaults = {field.name: field.default for field in fields(UNetConfig)}
    for key, value in settings.items():
        if key not in defaults:
            raise Unsupported(f"config.json has the key {key!r}, which our U-Net does not know; {ADAPTER}")
        many = isinstance(value, list)
        if many != isinstance(defaults[key], tuple) and not (many and key == "sample_size"):
            raise Unsupported(f"config.json has {key} {value!r}, which our U-Net does not know; {ADAPTER}")
    return UNetConfig(**{key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()})


def modern_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights saved before diffusers 0.15 call attention's layers query, key, value and proj_attn: renamed as now."""
    return {LEGACY.sub(lambda match: f".{RENAMED[match[1]]}.", name): tensor for name, tensor in state.items()}


RENAMED = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


LEGACY = re.compile(r"(?<=\d)\.(query|key|value|proj_attn)\.(?=weight$|bias$)")
