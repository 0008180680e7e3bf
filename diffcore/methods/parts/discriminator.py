"""A critic of images by what a frozen network sees in them.

Heads on the teacher's feature maps tell its images from the student's, and the teacher itself learns nothing: the critic of
phased consistency (Wang et al. 2024, arXiv 2405.18407), with a hinge loss at every place of every map.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffcore.core.errors import UserError
from diffcore.core.rng import generator
from diffcore.core.shapes import PerSample
from diffcore.denoisers.condition import of_classes
from diffcore.denoisers.denoiser import Denoiser, per_sample

SIDE = 64
"""Of the blank image that a network is shown to learn its widths: enough for seven levels."""


class Discriminator(nn.Module):
    """Feature maps [b, c_l, h_l, w_l] -> logits [b, 1, h_l, w_l], `heads` for each map: above 1 means real, below -1 fake.

    widths: c_l of each map. Its weights come from (seed, name of the parameter) alone.
    """

    def __init__(self, widths: tuple[int, ...], heads: int, seed: int):
        super().__init__()
        self.widths, self.count = widths, heads
        # torch's layers draw a start, soon overwritten, from the global generator: it is put back as it was
        with torch.random.fork_rng(devices=[]):
            self.heads = nn.ModuleList(Head(width) for width in widths for _ in range(heads))
        for place, layer in self.named_modules():
            if isinstance(layer, nn.Conv2d):
                _start(layer, generator(seed, "critic", place))

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        channels = tuple(feature.shape[1] for feature in features)
        if channels != self.widths:
            raise UserError(
                f"this critic looks at features of {_listed(self.widths)} channels, not of {_listed(channels)}; give it "
                "those of the network it was made for"
            )
        maps = [feature for feature in features for _ in range(self.count)]
        return [head(feature) for head, feature in zip(self.heads, maps)]


class Head(nn.Module):
    """Two convolutions, the second around a skip, and one number for each place."""

    def __init__(self, width: int):
        super().__init__()
        # the paper has 32 groups of at least 10; a group of one channel would lose how strong the channel is
        groups = math.gcd(32, width // 4) if width % 4 == 0 else 1
        self.conv1, self.norm1 = nn.Conv2d(width, width, 3, padding=1), nn.GroupNorm(groups, width)
        self.conv2, self.norm2 = nn.Conv2d(width, width, 3, padding=1), nn.GroupNorm(groups, width)
        self.out = nn.Conv2d(width, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = F.leaky_relu(self.norm1(self.conv1(x)))
        return self.out(h + F.leaky_relu(self.norm2(self.conv2(h))))


def hinge(real: list[Tensor], fake: list[Tensor]) -> PerSample:
    """relu(1 - real) + relu(1 + fake), the mean over places, then maps: what the critic learns. [b]."""
    return _mean([F.relu(1 - logit) for logit in real]) + _mean([F.relu(1 + logit) for logit in fake])


def fooling(fake: list[Tensor]) -> PerSample:
    """relu(1 - fake), the same mean: what the student learns; nothing more where the critic is fooled already. [b]."""
    return _mean([F.relu(1 - logit) for logit in fake])


@torch.no_grad()
def widths(denoiser: Denoiser) -> tuple[int, ...]:
    """How many channels each of its feature maps has; a UserError where it has none to show.

    A blank image tells. Of how many channels, only the network knows: they are tried.
    """
    like = next(denoiser.parameters(), torch.zeros(()))
    condition = of_classes(torch.tensor([-1]), torch.ones(1, dtype=torch.float64)).to(like.device)
    for channels in range(1, 17):
        blank = torch.zeros(1, channels, SIDE, SIDE, dtype=like.dtype, device=like.device)
        try:
            maps = denoiser.with_condition(condition).features(blank, per_sample(0.5, blank))
        except RuntimeError as error:
            refusal = error
            continue
        return tuple(feature.shape[1] for feature in maps)
    raise UserError(f"this teacher shows no features of an image of {SIDE} pixels and 1 to 16 channels: {refusal}")


def _mean(maps: list[Tensor]) -> PerSample:
    wide = torch.promote_types(maps[0].dtype, torch.float32)
    return torch.stack([one.to(wide).flatten(1).mean(1) for one in maps]).mean(0)


@torch.no_grad()
def _start(layer: nn.Conv2d, rng: torch.Generator) -> None:
    bound = layer.weight[0].numel() ** -0.5
    for parameter in layer.parameters():
        parameter.uniform_(-bound, bound, generator=rng)


def _listed(widths: tuple[int, ...]) -> str:
    return ", ".join(map(str, widths))
