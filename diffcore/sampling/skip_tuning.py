"""Skip-Tuning: a U-Net's skips are scaled on their way up (Ma et al. 2024, arXiv 2402.15170).

Few-step sampling leaves more noise in the skips than training saw; damping them pays where the steps are few. The scales
rise or fall evenly from the deepest skip to the finest. The paper's own values were not at hand: sweep them. To have both,
scale the skips first and give the result to DeepCache: its cached calls then scale theirs as the full ones do.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from diffcore.core.errors import UserError
from diffcore.denoisers.network import NetDenoiser
from diffcore.nets.unet import UNet


@dataclass(frozen=True)
class Config:
    """bottom, top: the scale of the deepest and of the finest skip; 1 leaves them as they are."""

    bottom: float
    top: float = 1.0

    def __post_init__(self):
        if self.bottom <= 0 or self.top <= 0:
            raise ValueError(f"bottom and top must be positive, got {self.bottom} and {self.top}")


def skip_tuned(denoiser: NetDenoiser, config: Config) -> NetDenoiser:
    """The same denoiser with scaled skips; a UserError if its network is not our U-Net."""
    if not isinstance(denoiser.net, UNet):
        raise UserError(
            "skip tuning needs our own U-Net, whose skips it can reach; leave `skip` out for this checkpoint"
        )
    return denoiser.with_network(SkipScaled(denoiser.net, config))


class SkipScaled(nn.Module):
    """Our U-Net, seams and all, with rho_i on skip i: bottom for i = 0, the deepest, to top for the last."""

    def __init__(self, net: UNet, config: Config):
        super().__init__()
        self.net, self.config, self.scales = net, net.config, scales(config, net.config.skips)
        self.embed, self.down, self.mid, self.out = net.embed, net.down, net.mid, net.out

    def forward(self, x: Tensor, timestep: Tensor, **inputs: Tensor) -> Tensor:
        embedding = self.embed(timestep, **inputs)
        skips = self.down(x, embedding)
        return self.out(self.up(self.mid(skips[-1], embedding), skips, embedding))

    def up(self, h: Tensor, skips: list[Tensor], embedding: Tensor, until: int = 0) -> Tensor:
        """As UNet.up. Skips of scale 1 are passed on as they are."""
        scaled = [skip if scale == 1 else scale * skip for scale, skip in zip(self.scales, skips)]
        return self.net.up(h, scaled, embedding, until)


def scales(config: Config, count: int) -> list[float]:
    """The scale of each skip in the order of UNet.down, from the finest to the deepest."""
    deepest = count - 1
    return [
        config.bottom + (config.top - config.bottom) * (deepest - place) / max(1, deepest) for place in range(count)
    ]
