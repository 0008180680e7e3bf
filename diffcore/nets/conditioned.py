"""What networks of ours have in common: one embedding of time, class and guidance weight, and a config that makes them."""

import abc
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffcore.core.errors import UserError
from diffcore.core.shapes import PerSample, Sample

GUIDANCE_FEATURES = 16


def guidance_features(guidance: PerSample) -> Tensor:
    """cos and sin of g 2^-k, k = 0..7: smooth and distinct for the weights in use, up to about 100. [b, 16], float32."""
    phase = guidance.float()[:, None] * 2.0 ** -torch.arange(GUIDANCE_FEATURES // 2, device=guidance.device)
    return torch.cat([phase.cos(), phase.sin()], 1)


class Conditioned(nn.Module, abc.ABC):
    """A network that is told a time, and where it has a table or an input for them a class, a guidance weight and the time
    where its hop lands.

    config: a frozen dataclass, of which alone it is made, with `dropout`, `guidance_embeds` and `end_embeds`. time_embedding:
    timestep [b] -> [b, e], a layer `linear_2` with a bias of what `hidden` makes of it. class_embedding, guidance_embedding:
    what is added to that, end_embedding: of the difference of what `hidden` makes of the hop's end and of the time, so that a
    hop of no length adds nothing; None where the network is told none.
    """

    config: Any
    time_embedding: nn.Module
    class_embedding: nn.Embedding | None
    guidance_embedding: nn.Linear | None
    end_embedding: nn.Linear | None

    def embed(
        self,
        timestep: PerSample,
        class_labels: Tensor | None = None,
        guidance: PerSample | None = None,
        end_timestep: PerSample | None = None,
    ) -> Tensor:
        """The activated embedding of time, class, guidance and the hop's end that every block projects, [b, e]."""
        if (class_labels is None) != (self.class_embedding is None):
            raise UserError(_CLASS_GIVEN if self.class_embedding is None else _CLASS_MISSING)
        if (guidance is None) != (self.guidance_embedding is None):
            raise UserError(_GUIDANCE_GIVEN if self.guidance_embedding is None else _GUIDANCE_MISSING)
        if (end_timestep is None) != (self.end_embedding is None):
            raise UserError(_END_GIVEN if self.end_embedding is None else _END_MISSING)
        with torch.autocast(timestep.device.type, enabled=False):  # in bfloat16 neighbouring times would be one
            embedding = self.time_embedding(timestep)
            if self.class_embedding is not None:
                embedding = embedding + self.class_embedding(class_labels)
            if self.guidance_embedding is not None:
                embedding = embedding + self.guidance_embedding(guidance_features(guidance).to(embedding.dtype))
            if self.end_embedding is not None:
                hidden = self.time_embedding.hidden
                embedding = embedding + self.end_embedding(hidden(end_timestep) - hidden(timestep))
            return F.silu(embedding)

    def forward(
        self,
        x: Sample,
        timestep: PerSample,
        class_labels: Tensor | None = None,
        guidance: PerSample | None = None,
        end_timestep: PerSample | None = None,
        **others: Tensor,
    ) -> Tensor:
        """x: [b, c, h, w]; timestep: [b], c = T t - 1 with T = 1024, float; class_labels: [b], int, where there is a table;
        guidance, end_timestep: [b], where the weight, and the time at which the hop ends, are inputs; others: see `says`."""
        return self.says(x, self.embed(timestep, class_labels, guidance, end_timestep), **others)

    def features(
        self,
        x: Sample,
        timestep: PerSample,
        class_labels: Tensor | None = None,
        guidance: PerSample | None = None,
        end_timestep: PerSample | None = None,
        **others: Tensor,
    ) -> list[Tensor]:
        """What the network sees on its way, [b, c_l, h_l, w_l] each; told as `forward` is."""
        return self.sees(x, self.embed(timestep, class_labels, guidance, end_timestep), **others)

    @abc.abstractmethod
    def says(self, x: Sample, embedding: Tensor, **others: Tensor) -> Tensor:
        """The output, of a sample, of what `embed` gives, and of what else this network is told."""

    @abc.abstractmethod
    def sees(self, x: Sample, embedding: Tensor, **others: Tensor) -> list[Tensor]:
        """The maps of `features`, of the same."""

    @abc.abstractmethod
    def config_json(self) -> dict[str, Any]:
        """The content of config.json."""

    def with_dropout(self, dropout: float) -> "Conditioned":
        """A network of the same weights with this dropout in training."""
        net = type(self)(replace(self.config, dropout=dropout))
        net.load_state_dict(self.state_dict())
        return net


def with_guidance(net: nn.Module) -> Conditioned:
    """The same network with an input for the guidance weight, to which it pays no attention yet; a UserError by name for one
    that can have none."""
    net = _conditioned(net, "an input for the guidance weight", "give one weight instead of a range")
    guided = type(net)(replace(net.config, guidance_embeds=True))
    start = {
        f"guidance_embedding.{name}": torch.zeros_like(p) for name, p in guided.guidance_embedding.named_parameters()
    }
    guided.load_state_dict(net.state_dict() | start)
    return guided


def folded(net: nn.Module, guidance: float) -> Conditioned:
    """The network without that input which this one is at one guidance weight: its embedding becomes a part of a bias,
    exactly."""
    net = _conditioned(net, "an input for the guidance weight", "give one weight instead of a range")
    plain = type(net)(replace(net.config, guidance_embeds=False))
    state = {name: tensor for name, tensor in net.state_dict().items() if not name.startswith("guidance_embedding.")}
    with torch.no_grad():
        shift = net.guidance_embedding(guidance_features(torch.tensor([guidance])).to(net.guidance_embedding.weight))[0]
    state[BIAS] = state[BIAS] + shift
    plain.load_state_dict(state)
    return plain


def with_end(net: nn.Module) -> nn.Module:
    """The same network with an input for the time where its hop lands, to which it pays no attention yet; one of the user's
    own that has such an argument is itself. A UserError by name for one that can have none."""
    if getattr(net, "takes_end", False):
        return net
    net = _conditioned(net, "to be told two times", "take a method whose students are told one")
    two = type(net)(replace(net.config, end_embeds=True))
    two.load_state_dict(net.state_dict() | {END: torch.zeros_like(two.end_embedding.weight)})
    return two


def ended(net: nn.Module, end_timestep: float) -> Conditioned:
    """The network without that input which this one is where each hop ends at one time: its embedding becomes a part of a
    layer, exactly."""
    net = _conditioned(net, "to become jumps to the data", "leave that out")
    plain = type(net)(replace(net.config, end_embeds=False))
    state = {name: tensor for name, tensor in net.state_dict().items() if name != END}
    with torch.no_grad():
        end = torch.tensor([end_timestep], device=state[BIAS].device)
        shift = net.end_embedding(net.time_embedding.hidden(end))[0]
    state[BIAS], state[WEIGHT] = state[BIAS] + shift, state[WEIGHT] - net.state_dict()[END]
    plain.load_state_dict(state)
    return plain


WEIGHT, BIAS = "time_embedding.linear_2.weight", "time_embedding.linear_2.bias"
END = "end_embedding.weight"


def _conditioned(net: nn.Module, wish: str, remedy: str) -> Conditioned:
    if not isinstance(net, Conditioned):
        raise UserError(f"{wish} needs our own U-Net or transformer, not {type(net).__name__}; {remedy}")
    return net


_CLASS_GIVEN = "this network knows no classes: leave class_labels out"
_CLASS_MISSING = "this network is conditioned on classes: give class_labels, an index for each sample"
_GUIDANCE_GIVEN = "this network has no input for a guidance weight: leave guidance out"
_END_GIVEN = "this network is told one time: leave end_timestep out"
_END_MISSING = "this network is told two times: give end_timestep, a number for each sample"
_GUIDANCE_MISSING = "this network has an input for the guidance weight: give guidance, a number for each sample"
