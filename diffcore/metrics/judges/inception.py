"""The Inception network of the FID (Szegedy et al. 2015, arXiv 1512.00567; Heusel et al. 2017, arXiv 1706.08500).

That of TensorFlow's archive of 2015-12-05, layer by layer, with the names of the state dict into which pytorch-fid and
torch-fidelity have brought it (`pt_inception-2015-12-05-6726825d.pth`). It differs from torchvision's in three ways: averages
leave out the padding, the last block takes a maximum where others average, and the classes are 1008, which features do
without.
"""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffcore.metrics import weights
from diffcore.metrics.preprocessing import with_channels

PREPROCESSING = "TF1 bilinear to 299x299 without antialias, (x - 128) / 128; grey as three equal channels"

SIDE = 299

Kernel = tuple[int, int]


class Convolution(nn.Module):
    """Without bias, normalised by the running moments, positive part. padding: None keeps the size."""

    def __init__(self, inside: int, outside: int, kernel: Kernel, stride: int = 1, padding: int | None = None):
        super().__init__()
        around = tuple(side // 2 for side in kernel) if padding is None else padding
        self.conv = nn.Conv2d(inside, outside, kernel, stride, around, bias=False)
        self.bn = nn.BatchNorm2d(outside, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


Layer = tuple[str, int, Kernel]
"""Name, channels that come out, kernel."""

SQUARE: dict[int, Kernel] = {side: (side, side) for side in (1, 3, 5)}


class Block(nn.Module):
    """Branches side by side, and after them the pooled input with or without a convolution of its own.

    branches: each a chain of layers; several layers in one place are forks of what comes before them. stride: of the last
    layer of each branch and of the pooling; 2 pads nothing. pooled: channels of the pooled branch, 0 for none of its own.
    """

    def __init__(self, inside: int, branches: list[list[list[Layer]]], pooled: int, pool: str, stride: int = 1):
        super().__init__()
        self.stride, self.pool, self.chains = stride, pool, [[[layer[0] for layer in s] for s in b] for b in branches]
        for branch in branches:
            channels = inside
            for place, forks in enumerate(branch):
                step = stride if place == len(branch) - 1 else 1
                for name, outside, kernel in forks:
                    setattr(self, name, Convolution(channels, outside, kernel, step, 0 if step == 2 else None))
                channels = sum(outside for _, outside, _ in forks)
        if pooled:
            self.branch_pool = Convolution(inside, pooled, SQUARE[1])

    def forward(self, x: Tensor) -> Tensor:
        parts = [self._chain(x, chain) for chain in self.chains]
        pooled = self._pooled(x)
        return torch.cat([*parts, self.branch_pool(pooled) if hasattr(self, "branch_pool") else pooled], 1)

    def _chain(self, x: Tensor, chain: list[list[str]]) -> Tensor:
        for forks in chain:
            x = torch.cat([getattr(self, name)(x) for name in forks], 1)
        return x

    def _pooled(self, x: Tensor) -> Tensor:
        if self.pool == "mean":
            return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
        return F.max_pool2d(x, 3, self.stride, 0 if self.stride == 2 else 1)


def _chain(name: str, *layers: tuple[int, Kernel], first: int = 1) -> list[list[Layer]]:
    """Layers called NAME_1, NAME_2 and so on."""
    return [[(f"{name}_{first + k}", *layer)] for k, layer in enumerate(layers)]


def _a(inside: int, pooled: int) -> Block:
    one, three, five = SQUARE[1], SQUARE[3], SQUARE[5]
    branches = [
        [[("branch1x1", 64, one)]],
        _chain("branch5x5", (48, one), (64, five)),
        _chain("branch3x3dbl", (64, one), (96, three), (96, three)),
    ]
    return Block(inside, branches, pooled, "mean")


def _b(inside: int) -> Block:
    one, three = SQUARE[1], SQUARE[3]
    branches = [[[("branch3x3", 384, three)]], _chain("branch3x3dbl", (64, one), (96, three), (96, three))]
    return Block(inside, branches, 0, "max", stride=2)


def _c(inside: int, narrow: int) -> Block:
    one, flat, tall = SQUARE[1], (1, 7), (7, 1)
    branches = [
        [[("branch1x1", 192, one)]],
        _chain("branch7x7", (narrow, one), (narrow, flat), (192, tall)),
        _chain("branch7x7dbl", (narrow, one), (narrow, tall), (narrow, flat), (narrow, tall), (192, flat)),
    ]
    return Block(inside, branches, 192, "mean")


def _d(inside: int) -> Block:
    one, three, flat, tall = SQUARE[1], SQUARE[3], (1, 7), (7, 1)
    branches = [
        _chain("branch3x3", (192, one), (320, three)),
        _chain("branch7x7x3", (192, one), (192, flat), (192, tall), (192, three)),
    ]
    return Block(inside, branches, 0, "max", stride=2)


def _e(inside: int, pool: str) -> Block:
    one, three, flat, tall = SQUARE[1], SQUARE[3], (1, 3), (3, 1)
    branches = [
        [[("branch1x1", 320, one)]],
        [*_chain("branch3x3", (384, one)), [("branch3x3_2a", 384, flat), ("branch3x3_2b", 384, tall)]],
        [
            *_chain("branch3x3dbl", (448, one), (384, three)),
            [("branch3x3dbl_3a", 384, flat), ("branch3x3dbl_3b", 384, tall)],
        ],
    ]
    return Block(inside, branches, 192, pool)


class Inception(nn.Module):
    """Images uint8 [b, 1 or 3, h, w] -> the 2048 features before the classes, [b, 2048]."""

    preprocessing = PREPROCESSING

    def __init__(self):
        super().__init__()
        one, three = SQUARE[1], SQUARE[3]
        self.Conv2d_1a_3x3 = Convolution(3, 32, three, 2, 0)
        self.Conv2d_2a_3x3 = Convolution(32, 32, three, 1, 0)
        self.Conv2d_2b_3x3 = Convolution(32, 64, three)
        self.Conv2d_3b_1x1 = Convolution(64, 80, one)
        self.Conv2d_4a_3x3 = Convolution(80, 192, three, 1, 0)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = _a(192, 32), _a(256, 64), _a(288, 64)
        self.Mixed_6a = _b(288)
        self.Mixed_6b, self.Mixed_6c = _c(768, 128), _c(768, 160)
        self.Mixed_6d, self.Mixed_6e = _c(768, 160), _c(768, 192)
        self.Mixed_7a = _d(768)
        self.Mixed_7b, self.Mixed_7c = _e(1280, "mean"), _e(2048, "max")

    def forward(self, images: Tensor) -> Tensor:
        x = (resized(with_channels(images, 3).float(), SIDE) - 128) / 128
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, 2)))
        x = F.max_pool2d(x, 3, 2)
        for letter in ("5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c"):
            x = getattr(self, f"Mixed_{letter}")(x)
        return x.mean((2, 3))


def resized(x: Tensor, side: int) -> Tensor:
    """Images [b, c, h, w] at side x side as TensorFlow 1 does: pixel i is taken at i h / side, and nothing is averaged."""
    for axis in (3, 2):
        length = x.shape[axis]
        # torch-fidelity's rounding of the places, which is TensorFlow's: in float32
        at = torch.arange(side, dtype=torch.float32, device=x.device) * torch.tensor(length / side, dtype=torch.float32)
        low = at.long()
        high = (low + 1).clamp(max=length - 1)
        share = (at - low).view(-1, *[1] * (3 - axis))
        first, second = x.index_select(axis, low), x.index_select(axis, high)
        x = first + (second - first) * share
    return x


def load(path: Path) -> Inception:
    """The network with the weights in a state dict, of torch (read without executing what is in it) or safetensors."""
    remedy = "name the file pt_inception-2015-12-05-6726825d.pth"
    return weights.load(Inception(), path, "the FID's Inception network", remedy)
