"""Any other network of diffusers, behind the forward of our own. diffusers is imported when one is opened."""

import contextlib
import copy
import dataclasses
import inspect
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from diffcore.core.errors import UserError
from diffcore.core.shapes import PerSample, Sample
from diffcore.nets import architectures
from diffcore.nets.architectures import Architecture
from diffcore.nets.files import read_config
from diffcore.nets.inputs import EMBEDDINGS, Input

TIME = "timestep"


class DiffusersModel(nn.Module):
    """(x, timestep, **inputs) -> like x. Its state_dict and config.json are the network's own: diffusers opens what is saved.

    Of an output with twice the input's channels (a learned variance, Nichol & Dhariwal 2021, arXiv 2102.09672) the first
    half, the mean, is kept.
    """

    def __init__(self, net: nn.Module, content: dict[str, Any], architecture: Architecture):
        super().__init__()
        self.net, self.content, self.architecture = net, content, architecture

    @property
    def inputs(self) -> Mapping[str, Input]:
        """What it takes besides a sample and a time, by our names (`diffcore.nets.inputs`)."""
        return MappingProxyType(self.architecture.inputs)

    @property
    def time_scale(self) -> int:
        """T of the timestep T t that it is told: 1000 of most networks, 1 of those that are told 0 to 1."""
        return self.architecture.time_scale

    @property
    def apart(self) -> list[nn.Module]:
        """Those of its modules that it calls outside of the block they belong to."""
        return [self.net.get_submodule(name) for name in self.architecture.apart]

    def forward(
        self,
        x: Sample,
        timestep: PerSample,
        class_labels: Tensor | None = None,
        guidance: Tensor | None = None,
        **inputs: Tensor,
    ) -> Sample:
        """x: [b, c, ...]; timestep: [b], 0 to `time_scale`. A UserError where it takes other inputs, or of other shapes."""
        ahead = {"class_labels": class_labels, "guidance": guidance}  # in their place, as our own networks take them
        inputs |= {name: tensor for name, tensor in ahead.items() if tensor is not None}
        self.architecture.check(x, inputs)
        inputs = {name: tensor.to(x.dtype) if name in EMBEDDINGS else tensor for name, tensor in inputs.items()}
        whole = torch.cat([x, inputs.pop("image")], 1) if "image" in inputs else x
        # a tensor of its own: of a view FSDP2 could not say when its gradient comes
        return self.architecture.call(self.net, whole, timestep, inputs)[:, : x.shape[1]].clone()

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
        architecture = dataclasses.replace(self.architecture, config={**self.architecture.config, "dropout": dropout})
        return DiffusersModel(_without_label_dropout(net), {**self.content, "dropout": dropout}, architecture)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        return self.net.state_dict(*args, **kwargs)

    def load_state_dict(self, state: dict[str, Tensor], strict: bool = True, assign: bool = False) -> Any:
        return self.net.load_state_dict(state, strict, assign)


def load(folder: Path) -> DiffusersModel:
    """The network in a local folder that diffusers wrote, in float32.

    Only classes of diffusers itself and only safetensors: no code or pickle of the folder runs. Raises UserError for anything
    else, and for networks that no file of `architectures` says how to call.
    """
    folder = Path(folder)
    content = read_config(folder)
    _check_weights(folder)
    kind = _kind(content["_class_name"])
    architecture = _architecture(kind, content)
    try:
        with silent():  # what it says of weights that are missing follows in one line
            net, loading_info = kind.from_pretrained(
                folder, use_safetensors=True, local_files_only=True, output_loading_info=True
            )
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{folder}: diffusers cannot open it ({reason[:300]}); fetch or write it again") from None
    if missing := loading_info["missing_keys"]:  # diffusers would start them at random
        raise UserError(f"{folder}: the weights {sorted(missing)[0]} are missing; fetch or write it again")
    if unexpected := loading_info["unexpected_keys"]:  # diffusers would leave them out
        raise UserError(
            f"{folder}: its config.json describes a network without the weights {sorted(unexpected)[0]} that lie beside it; "
            "fetch or write both again"
        )
    return DiffusersModel(_without_label_dropout(net.float()), content, architecture)


def takes(content: dict[str, Any], name: str) -> bool:
    """Whether the network of such a config.json has an input of this name; False for one of no class of diffusers that is
    written down here."""
    if content["_class_name"] not in architectures.registry():
        return False
    return name in _architecture(_kind(content["_class_name"]), content).inputs


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Diffusers and what it imports say no more than errors for the length of the block."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


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


def _architecture(kind: Any, content: dict[str, Any]) -> Architecture:
    """How the network of such a config.json is called; what that leaves out is as diffusers has it by default."""
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(kind.__init__).parameters.items()
        if parameter.default is not parameter.empty
    }
    architecture = _registered(kind)({**defaults, **content})
    architecture.check_config()
    return architecture


def _registered(kind: Any) -> type[Architecture]:
    registry = architectures.registry()
    if kind.__name__ in registry:
        return registry[kind.__name__]
    if TIME not in inspect.signature(kind.forward).parameters:
        raise UserError(f"{kind.__name__} is told no time, so it is no denoiser of images; give another network")
    raise UserError(
        f"{kind.__name__} is a network of diffusers, and what it is called with is written down for others only: "
        f"{', '.join(sorted(registry))}; give one of these"
    )
