"""A published network with what lies around it: of which images it is, how it is fed and read, and what it is told."""

import abc
import copy
import math
import types
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, ClassVar, get_args, get_origin, get_type_hints

import torch
from torch import Tensor, nn

from diffcore.core.errors import UserError
from diffcore.core.shapes import PerSample, Sample
from diffcore.denoisers.reading import Reading
from diffcore.nets.published.levels import UNet
from diffcore.noise.schedule import Schedule

MOST = 2**20
"""No setting of a network that counts is larger."""

MOST_LEVELS, MOST_BLOCKS = 16, 64


@dataclass(frozen=True)
class Images:
    """Of which images a network is. label_dim: how many classes it tells apart, 0 for none. use_fp16: whether its authors
    computed in half precision; here that is a matter of the run."""

    img_resolution: int
    img_channels: int
    label_dim: int = 0
    use_fp16: bool = False


class Published(nn.Module, abc.ABC):
    """(x, timestep, class_labels) -> what it says, like x. Its state_dict has the names that it was published with.

    content: config.json: its class and what that was made with, by the names there; what is left out is as there by default.
    names: of the class, the first one as it is written. Settings: its own among these, the others are the network's. inside:
    the attribute that the network is. outputs: how many channels that makes of each one. The class after the last stands for
    none, which it is told by zeros.
    """

    names: ClassVar[tuple[str, ...]]
    Settings: ClassVar[type[Images]]
    inside: ClassVar[str] = "model"
    outputs: ClassVar[int] = 1

    def __init__(self, content: Mapping[str, Any], networks: Mapping[str, type[UNet]]):
        super().__init__()
        own = {field.name for field in fields(self.Settings)}
        given = {key: value for key, value in content.items() if not key.startswith("_")}
        self.content = {"_class_name": self.names[0], **given}
        self.settings = settings(self.Settings, {key: value for key, value in given.items() if key in own})
        kind, also = self._network({key: value for key, value in given.items() if key not in own}, networks)
        config = settings(kind.Config, also)
        if config.img_resolution % 2 ** (len(config.channel_mult) - 1):
            raise UserError(
                f"images of side {config.img_resolution} cannot be halved {len(config.channel_mult) - 1} times"
            )
        setattr(self, self.inside, kind(config))

    def _network(self, others: dict[str, Any], networks: Mapping[str, type[UNet]]) -> tuple[type[UNet], dict[str, Any]]:
        """The class of the network inside, and its settings."""
        name, own = self.settings.model_type, self.settings
        if name not in networks:
            raise UserError(f"model_type {name!r} is no network that is known here, only {', '.join(networks)}")
        of_images = {
            "img_resolution": own.img_resolution,
            "in_channels": own.img_channels,
            "out_channels": own.img_channels * self.outputs,
            "label_dim": own.label_dim,
        }
        if twice := sorted(of_images.keys() & others.keys()):
            raise UserError(f"a {self.names[0]} is not made with {twice[0]}")
        return networks[name], of_images | others

    @property
    @abc.abstractmethod
    def schedule(self) -> Schedule:
        """The noise that it knows."""

    @property
    @abc.abstractmethod
    def reading(self) -> Reading:
        """How it is fed and read."""

    @property
    def image(self) -> tuple[int, int, int]:
        """[c, h, w] of its images."""
        side = self.settings.img_resolution
        return self.settings.img_channels, side, side

    @property
    def classes(self) -> int | None:
        """How many it tells apart, None for a network that is told none."""
        return self.settings.label_dim or None

    def forward(self, x: Sample, timestep: PerSample, class_labels: Tensor | None = None) -> Tensor:
        """x: [b, c, h, w]; timestep: [b], by its reading; class_labels: [b], int, where it is told classes."""
        return self._said(self.get_submodule(self.inside)(*self._fed(x, timestep, class_labels)))

    def features(self, x: Sample, timestep: PerSample, class_labels: Tensor | None = None) -> list[Tensor]:
        """What the network sees: the last map of each level on its way down, [b, width, h, w] each."""
        return self.get_submodule(self.inside).features(*self._fed(x, timestep, class_labels))

    def _fed(self, x: Sample, timestep: PerSample, class_labels: Tensor | None) -> tuple[Any, ...]:
        exact = timestep.to(torch.promote_types(timestep.dtype, x.dtype))
        return x, self._told(exact), self._labels(x, class_labels)

    def _told(self, timestep: PerSample) -> PerSample:
        return timestep

    def _said(self, out: Tensor) -> Tensor:
        return out

    def _labels(self, x: Sample, class_labels: Tensor | None) -> Tensor | None:
        """1 at the class, or nowhere, [b, label_dim]."""
        if (class_labels is None) != (self.classes is None):
            raise UserError(_CLASS_GIVEN if self.classes is None else _CLASS_MISSING)
        if class_labels is None:
            return None
        return (class_labels[:, None] == torch.arange(self.classes, device=x.device)).to(x.dtype)

    def config_json(self) -> dict[str, Any]:
        """The content of config.json."""
        return self.content

    def with_dropout(self, dropout: float) -> "Published":
        """A network of the same weights with this dropout in training."""
        other = copy.deepcopy(self)
        other.content["dropout"] = dropout
        for layer in other.modules():
            if isinstance(layer, nn.Dropout):
                layer.p = dropout
        return other


_CLASS_GIVEN = "this network knows no classes: leave class_labels out"
_CLASS_MISSING = "this network is conditioned on classes: give class_labels, an index for each sample"


def settings(kind: type, values: Mapping[str, Any]) -> Any:
    """The dataclass of these values, lists as tuples; a UserError that names a key that is unknown, missing, or of another
    type."""
    hints, own = get_type_hints(kind), {field.name: field for field in fields(kind)}
    for key, value in values.items():
        if key not in own:
            raise UserError(f"{key} is no setting of this network that is known here")
        if not _fits(value, hints[key]):
            raise UserError(f"its {key} is {value!r}, which is no such setting")
    for key, each in own.items():
        if each.default is MISSING and key not in values:
            raise UserError(f"its {key} is missing")
    try:
        result = kind(**{key: _plain(value, hints[key]) for key, value in values.items()})
    except ValueError as error:
        raise UserError(str(error)) from None
    levels, blocks = len(getattr(result, "channel_mult", ())), getattr(result, "num_blocks", 1)
    if levels > MOST_LEVELS or blocks > MOST_BLOCKS:
        raise UserError(f"it has {levels} levels of {blocks} blocks, more than any network")
    return result


def _plain(value: Any, hint: Any) -> Any:
    if isinstance(value, list):
        return tuple(value)
    return float(value) if hint is float else value  # JSON has no word for infinity


def _fits(value: Any, hint: Any) -> bool:
    if isinstance(hint, types.UnionType):
        return any(_fits(value, each) for each in get_args(hint))
    if get_origin(hint) is tuple:
        own = get_args(hint)[0]
        return isinstance(value, list | tuple) and bool(value) and all(_fits(each, own) for each in value)
    if hint is float:
        number = type(value) in (int, float) and not math.isnan(value)
        return number or value == "inf"
    if hint is int:
        return type(value) is int and 0 <= value <= MOST
    return type(value) is hint
