"""A judge's folder as transformers and the hub keep it: config.json, which says what its network is, and model.safetensors.

No network is imported for it, so that whoever reads params.yaml can refuse a folder before anything is computed.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffcore.core import disk

CONFIG, WEIGHTS = "config.json", "model.safetensors"

ACTIVATIONS = ("gelu", "quick_gelu")

DINOV2_SIDE = 224
"""Pixels of the side to which DINOv2's images are brought, whatever its positions are of."""

MOST = {"num_hidden_layers": 1000, "image_size": 2**12}
"""The largest that some numbers can be; all others LARGEST. Beyond is a broken config."""

LARGEST = 2**16

SIZES = {
    **{"depth": "num_hidden_layers", "width": "hidden_size", "heads": "num_attention_heads"},
    **{"patch": "patch_size", "side": "image_size"},
}
"""What an encoder's sizes are called in a config."""

CLIP_UNSAID = {
    **{"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12},
    **{"image_size": 224, "patch_size": 32, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "num_channels": 3},
    "projection_dim": 512,
}
"""What CLIP's keys are where a config leaves them out, as transformers reads it: it wrote what differs from these."""

DINOV2_UNSAID = {"num_channels": 3, "qkv_bias": True, "use_swiglu_ffn": False, "num_register_tokens": 4}
"""The same of DINOv2's; all others must be there."""


@dataclass(frozen=True)
class Encoder:
    """A vision transformer's sizes. depth: blocks; width: of a token; heads: of attention; inner: width of a block's hidden
    layer; patch, side: of a patch and of the image that the positions are of, in pixels; activation: `gelu`, `quick_gelu`
    or `swiglu`; eps: of the layer norms; registers: tokens of no patch; features: that come out, None for the width."""

    depth: int
    width: int
    heads: int
    inner: int
    patch: int
    side: int
    activation: str
    eps: float
    registers: int = 0
    features: int | None = None

    def __post_init__(self):
        if self.width % self.heads:
            raise ValueError(f"{self.width} features of a token cannot be dealt to {self.heads} heads")
        if self.side % self.patch:
            raise ValueError(f"patches of {self.patch} pixels do not fill a side of {self.side}")

    def __str__(self) -> str:
        """With what its weights do not say of it: heads, activation and eps."""
        sizes = f"ViT/{self.patch} of {self.depth} blocks {self.width} wide"
        return f"{sizes}, {self.heads} heads, {self.activation}, eps {self.eps:g}"


def weights(name: str, folder: Path) -> Path:
    """The file of weights of the judge `name`; raises ValueError for a folder without it, or without a config that we run."""
    if not folder.is_dir():
        raise ValueError(
            f"there is no folder {_short(str(folder))}; download {CONFIG} and {WEIGHTS} of a model into one"
        )
    if not (folder / CONFIG).is_file():
        raise ValueError(f"{_short(str(folder))} holds no {CONFIG}; download it beside the weights")
    if not (folder / WEIGHTS).is_file():
        raise ValueError(
            f"{_short(str(folder))} holds no {WEIGHTS}; no pickle is opened, and no weights in several files"
        )
    encoder(name, folder)
    return folder / WEIGHTS


def encoder(name: str, folder: Path) -> Encoder:
    """What config.json says; raises ValueError for one of another model, and for a network that we cannot run."""
    try:
        return READERS[name](_config(folder / CONFIG))
    except ValueError as error:
        raise ValueError(f"{_short(str(folder / CONFIG))}: {error}") from None


def _config(path: Path) -> dict[str, Any]:
    try:
        config = disk.parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot be read ({str(error).splitlines()[0][:80]}); download it again") from None
    if not isinstance(config, dict):
        raise ValueError("holds no keys; download it again")
    if config.get("quantization_config") is not None:
        raise ValueError("quantized weights are not supported; name the folder of the full ones")
    return config


def _dinov2(config: dict[str, Any]) -> Encoder:
    _check(config, "model_type", "dinov2", "dinov2_with_registers")
    keys = DINOV2_UNSAID | config
    _check(keys, "qkv_bias", True)
    _check(keys, "use_swiglu_ffn", True, False)
    sizes = _sizes(keys)
    if DINOV2_SIDE % sizes["patch"]:
        raise ValueError(f"patches of {sizes['patch']} pixels do not fill a side of {DINOV2_SIDE}; name another model")
    inner = int(sizes["width"] * _positive(keys, "mlp_ratio"))
    if keys["use_swiglu_ffn"]:
        inner = (int(inner * 2 / 3) + 7) // 8 * 8
        sizes["activation"] = "swiglu"
    registers = _integer(keys, "num_register_tokens") if config["model_type"] == "dinov2_with_registers" else 0
    return Encoder(**sizes, inner=inner, registers=registers)


def _clip(config: dict[str, Any]) -> Encoder:
    _check(config, "model_type", "clip", "clip_vision_model")
    keys = config
    if config["model_type"] == "clip":
        keys = _part(config, "vision_config")
        _check_alike(keys, _part(config, "vision_config_dict"))
    features = _integer(CLIP_UNSAID | config, "projection_dim")
    keys = CLIP_UNSAID | keys
    return Encoder(**_sizes(keys), inner=_integer(keys, "intermediate_size"), features=features)


READERS = {"clip": _clip, "dinov2": _dinov2}
"""The judges that are folders."""


def _sizes(keys: Mapping[str, Any]) -> dict[str, Any]:
    _check(keys, "num_channels", 3)
    _check(keys, "hidden_act", *ACTIVATIONS)
    sizes = {size: _integer(keys, key) for size, key in SIZES.items()}
    return sizes | {"activation": keys["hidden_act"], "eps": _positive(keys, "layer_norm_eps")}


def _part(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    part = config.get(name)
    if part is not None and not isinstance(part, dict):
        raise ValueError(f"{name} holds no keys; download it again")
    return part or {}


def _check_alike(keys: Mapping[str, Any], older: Mapping[str, Any]) -> None:
    """Old configs say it all twice."""
    for key, unsaid in CLIP_UNSAID.items():
        if key in older and older[key] != keys.get(key, unsaid):
            raise ValueError(f"vision_config and vision_config_dict differ in {key}; delete the wrong one")


def _check(keys: Mapping[str, Any], name: str, *values: Any) -> None:
    if not any(type(keys.get(name)) is type(value) and keys[name] == value for value in values):
        words = " or ".join(json.dumps(value) for value in values)
        raise ValueError(f"{name} must be {words}, {_got(keys, name)}; another network is not supported")


def _integer(keys: Mapping[str, Any], name: str) -> int:
    value, most = keys.get(name), MOST.get(name, LARGEST)
    if type(value) is not int or not 1 <= value <= most:
        raise ValueError(f"{name} must be an integer from 1 to {most}, {_got(keys, name)}")
    return value


def _positive(keys: Mapping[str, Any], name: str) -> float:
    value = keys.get(name)
    if type(value) not in (int, float) or not 0 < value <= LARGEST:
        raise ValueError(f"{name} must be a positive number, {_got(keys, name)}")
    return float(value)


def _got(keys: Mapping[str, Any], name: str) -> str:
    return f"got {_short(keys[name])}" if name in keys else "and is missing"


def _short(value: Any) -> str:
    words = repr(value)
    return words if len(words) <= 96 else f"{words[:96]}..."
