"""What a family of networks must bring, so that one can be trained from nothing, opened again and weighed beforehand."""

import abc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import nn

from diffcore.core.errors import UserError
from diffcore.denoisers.reading import NUM_TIMESTEPS
from diffcore.nets.inputs import MAKERS

NO_EPS = "parameterization eps has no image at t = 1, where sampling begins and alpha is 0; take v, or x0_eps"
NO_CLASSES = "network.conditional is true, but the data have no classes; set it to false or give labels"

Inputs = Mapping[str, Sequence[int]]
"""What the data say of an image beside its class: by the name of a network's input the shape of one, such as text [l, d]."""

NO_INPUTS: Inputs = MappingProxyType({})


def check_inputs(wanted: Sequence[str], inputs: Inputs) -> None:
    """A UserError that names the first of the inputs wanted that the data have nothing for."""
    for name in wanted:
        if name not in inputs:
            has = f"only {', '.join(sorted(inputs))}" if inputs else "nothing of the kind"
            remedy = f"set {MAKERS[name]}, or leave it out" if name in MAKERS else "leave it out"
            raise UserError(f"the network is told {name}, and the data have {has}; {remedy}")


class Shape(abc.ABC):
    """What a person chooses of a network: a frozen dataclass whose fields are its keys under `network` in params.yaml.

    conditional: told the class, or that there is none, which guidance needs. parameterization: what the
    network says, see diffcore.denoisers.prediction.PARAMETERIZATIONS; its students say the same.
    """

    conditional: bool
    parameterization: str

    @property
    def inputs(self) -> tuple[str, ...]:
        """What its networks are told beside a time, a class and a weight, by name (see `diffcore.nets.inputs`)."""
        return ()

    @property
    def skips(self) -> int:
        """How many skips its networks have that a cache or a scale can act on; 0 for a family without."""
        return 0

    @property
    def takes_end(self) -> bool:
        """Whether its networks can be told where a hop lands, `end_timestep`, and be asked without it too."""
        return True

    @property
    def sizes(self) -> tuple[str, ...]:
        """Its keys that say how large a network is, of which a person takes less where memory is short."""
        return ()

    def keys(self) -> dict[str, Any]:
        """What stands of it under `network`."""
        return asdict(self)

    @abc.abstractmethod
    def build(
        self,
        image: Sequence[int],
        classes: int | None,
        seed: int,
        span: int | float = NUM_TIMESTEPS,
        inputs: Inputs = NO_INPUTS,
    ) -> nn.Module:
        """A new network for images [c, h, w] of so many classes, all of its weights from the seed. span: how far the times
        reach that it is told. inputs: what the data say of an image. It has `with_dropout(p)`, `config_json()` and
        `forward(x [b, c, h, w], timestep [b], class_labels [b])`, and its own inputs by name; `features` of the same, if
        losses on features are to use it; and it derives from `Conditioned`, if a guidance weight can be its input. A
        UserError where it cannot take such images, or where the data lack one of its inputs.
        """

    @abc.abstractmethod
    def parameters(self, channels: int) -> int:
        """How many numbers a network for images of so many channels learns, or less."""

    @abc.abstractmethod
    def kept(self, image: Sequence[int]) -> int:
        """How many numbers are kept of one image [c, h, w] for the way back, or less."""


@dataclass(frozen=True)
class Family:
    """formats: the class names that its config.json may have. open: the network of such a config and a file of weights; None
    for a config that another reader is to take. The third argument of open: whether its parameterization is `x0_eps`. own:
    those of its formats that no class of diffusers has."""

    shape: type[Shape]
    formats: tuple[str, ...]
    open: Callable[[dict[str, Any], Path, bool], nn.Module | None]
    own: tuple[str, ...] = ()
