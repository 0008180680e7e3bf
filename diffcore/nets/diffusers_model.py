"""Any other network of diffusers, behind the forward of our own. diffusers is imported when one is opened."""

import copy
import inspect
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffcore.core.errors import UserError
from diffcore.core.shapes import PerSample, Sample
from diffcore.nets.files import read_config

TIME, CLASS = "timestep", "class_labels"


class DiffusersModel(nn.Module):
    """(x, timestep) -> [b, c, h, w]. Its state_dict and config.json are the network's own, so diffusers opens what is saved.

    Of an output with twice the input's channels (a learned variance, Nichol & Dhariwal 2021, arXiv 2102.09672) the first
    half, the mean, is kept.
    """

    def __init__(self, net: nn.Module, content: dict[str, Any]):
        super().__init__()
        self.net, self.content = net, content
        self.takes_class = CLASS in inspect.signature(net.forward).parameters

    def forward(self, x: Sample, timestep: PerSample, class_labels: Tensor | None = None) -> Sample:
        """x: [b, c, h, w]; timestep: [b], c = T t - 1 with T = 1024; class_labels: [b], int, where the network takes
        classes."""
        if class_labels is not None and not self.takes_class:
            raise UserError(f"{self.content['_class_name']} knows no classes: leave class_labels out")
        classes = {} if class_labels is None else {CLASS: class_labels}
        out = self.net(x, timestep=timestep, **classes).sample
        if out.shape[1] not in (x.shape[1], 2 * x.shape[1]):
            name, channels = self.content["_class_name"], out.shape[1]
            raise UserError(
                f"{name} makes {channels} channels of {x.shape[1]}; it must keep their number, or double it"
            )
        return out[:, : x.shape[1]]

    def config_json(self) -> dict[str, Any]:
        """The content of config.json, as it was read."""
        return self.content

    def with_dropout(self, dropout: float) -> "DiffusersModel":
        """A network of the same weights with this dropout in training; a UserError where its config.json has no such key."""
        if "dropout" not in self.net.config:
            if dropout:
                raise UserError(f"{self.content['_class_name']} has no dropout to set; leave `dropout` out")
            return _still(copy.deepcopy(self))
        with torch.random.fork_rng(devices=[]):  # which torch's layers draw a start from
            net = type(self.net).from_config({**self.net.config, "dropout": dropout})
        net.load_state_dict(self.net.state_dict())
        return DiffusersModel(_without_label_dropout(net), {**self.content, "dropout": dropout})

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        return self.net.state_dict(*args, **kwargs)

    def load_state_dict(self, state: dict[str, Tensor], strict: bool = True, assign: bool = False) -> Any:
        return self.net.load_state_dict(state, strict, assign)


def load(folder: Path) -> DiffusersModel:
    """The network in a local folder that diffusers wrote, in float32.

    Only classes of diffusers itself and only safetensors: no code or pickle of the folder runs. Raises UserError for anything
    else, and for networks that need more than an image, a time and a class.
    """
    folder = Path(folder)
    content = read_config(folder)
    _check_weights(folder)
    kind = _kind(content["_class_name"])
    _check_forward(kind)
    if content.get("time_embedding_type") == "fourier":
        raise UserError(f"{folder}: a Fourier network is told the noise scale sigma, not a time; give one with a time")
    try:
        net, loading_info = kind.from_pretrained(
            folder, use_safetensors=True, local_files_only=True, output_loading_info=True
        )
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{folder}: diffusers cannot open it ({reason[:300]}); fetch or write it again") from None
    if missing := loading_info["missing_keys"]:  # diffusers would start them at random
        raise UserError(f"{folder}: the weights {sorted(missing)[0]} are missing; fetch or write it again")
    return DiffusersModel(_without_label_dropout(net.float()), content)


def _still(net: "DiffusersModel") -> "DiffusersModel":
    for layer in net.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
    return net


def _without_label_dropout(net: nn.Module) -> nn.Module:
    for layer in net.modules():
        if hasattr(layer, "dropout_prob"):  # dropping labels would draw from the global generator
            layer.dropout_prob = 0.0
    return net


def _check_weights(folder: Path) -> None:
    if any(folder.glob("*.safetensors")):
        return
    if any(folder.glob("*.bin")):
        raise UserError(
            f"{folder} holds pickled weights only, which can run code; save it again with safe_serialization, "
            "or write their tensors with `distill read`"
        )
    raise UserError(f"{folder} holds no .safetensors; fetch or write it again")


def _kind(name: str) -> Any:
    import diffusers.models

    kind = getattr(diffusers.models, name, None)
    if not (isinstance(kind, type) and issubclass(kind, diffusers.models.ModelMixin)):
        raise UserError(
            f"_class_name {name!r} is not a network of diffusers {diffusers.__version__}; no other code is run"
        )
    return kind


def _check_forward(kind: Any) -> None:
    others = list(inspect.signature(kind.forward).parameters.values())[2:]  # after self and the image
    if TIME not in {parameter.name for parameter in others}:
        raise UserError(f"{kind.__name__} is told no time, so it is no denoiser of images; give another network")
    needed = [p.name for p in others if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD and p.name != TIME]
    if needed:
        raise UserError(
            f"{kind.__name__} needs {', '.join(needed)} besides an image, a time and a class; not supported"
        )
