"""Dropout whose masks are drawn by the key of the step: one mask for the student and for the target that it should
agree with.

Consistency methods compare a network with itself at two times, and share the masks (Song & Dhariwal 2023, arXiv 2310.14189,
section 3.1; Geng et al. 2024, arXiv 2406.14548): with masks of their own the two would differ by what is no error. A mask is
a function of the step, the layer and the sample's place in the global batch, whatever the memory format, the order of the
passes, and into how many parts and processes the batch is cut.
"""

import torch
from torch import Tensor, nn

from diffcore.core.errors import UserError
from diffcore.core.rng import generator


class Masks:
    """The key that masks are drawn by, for the pass that comes, and which rows of the global batch it is for.

    key: int64 [4]: the seed, the first row, the last one + 1, and how many rows the batch has.
    """

    def __init__(self):
        self.key = torch.zeros(4, dtype=torch.int64)

    def throw(self, *key: int | str, rows: slice, count: int) -> None:
        """New masks for whatever is called from now on, with these rows of a batch of `count`."""
        seed = generator(*key, "dropout").initial_seed()
        self.key.copy_(torch.tensor([seed, *rows.indices(count)[:2], count]))


class Masked(nn.Dropout):
    """Dropout with the masks of `masks`, in training or not. place: its name in the network, the same in a copy."""

    def __init__(self, p: float, place: str, masks: Masks):
        super().__init__(p)
        self.place, self.masks = place, masks

    def kept(self, input: Tensor) -> Tensor:
        """What is not dropped of it, bool."""
        return torch.ops.diffcore.kept(self.masks.key, self.place, self.p, list(input.shape), input.device)

    def forward(self, input: Tensor) -> Tensor:
        return input if self.p == 0 else input * self.kept(input) / (1 - self.p)


def masked(net: nn.Module, masks: Masks) -> nn.Module:
    """The network itself, its dropout now with these masks. A UserError for kinds of dropout that would draw their own."""
    for place, layer in list(net.named_modules()):
        if not (isinstance(layer, nn.modules.dropout._DropoutNd) and layer.p > 0):
            continue
        if type(layer) is not nn.Dropout:
            raise UserError(
                f"{place} is a {type(layer).__name__}, whose masks cannot be drawn by key; set dropout to 0"
            )
        net.set_submodule(place, Masked(layer.p, place, masks))
    return net


def without(net: nn.Module) -> nn.Module:
    """The network itself, with no dropout any more."""
    for layer in net.modules():
        if isinstance(layer, nn.modules.dropout._DropoutNd):
            layer.p = 0.0
    return net


# an operator of its own, so that torch.compile takes it as it is: no graph knows generators
@torch.library.custom_op("diffcore::kept", mutates_args=())
def _kept(key: Tensor, place: str, p: float, shape: list[int], device: torch.device) -> Tensor:
    seed, start, stop, count = key.tolist()
    versions, rest = divmod(shape[0], stop - start)
    if rest:
        raise ValueError(f"a network with dropout is called on {shape[0]} samples for {stop - start} rows of a batch")
    rng = torch.Generator(device).manual_seed(generator(seed, place).initial_seed())
    # a loss may ask of several versions of its rows at once, one after the other
    whole = torch.rand((versions, count, *shape[1:]), generator=rng, device=device) >= p
    return whole[:, start:stop].reshape(shape)


@_kept.register_fake
def _(key: Tensor, place: str, p: float, shape: list[int], device: torch.device) -> Tensor:
    return torch.empty(shape, dtype=torch.bool, device=device)
