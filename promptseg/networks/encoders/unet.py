"""The contracting path of a U-Net, in nnU-Net's manner."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from promptseg.networks.blocks import ConvBlock, kernel_size
from promptseg.networks.encoders.base import ENCODERS, ImageEmbedding, ImageEncoder, known_size
from promptseg.networks.encoders.residual import ResidualBlock


@dataclass(frozen=True)
class Widths:
    """Channels of the finest map, and the most that doubling reaches; residual blocks of a map."""

    finest: int
    most: int
    blocks: int


WIDTHS = {
    "tiny": Widths(finest=16, most=128, blocks=1),
    "small": Widths(finest=32, most=256, blocks=2),
    "base": Widths(finest=32, most=320, blocks=3),
}


@ENCODERS.register("unet")
class UNet(ImageEncoder):
    """Residual blocks on every resolution, the finest included, with instance normalization.

    Channels double with every map. Thick slices are not convolved across before the pixels have
    become about as large (`kernel_size`). Together with the decoder's pyramid, which every encoder
    shares, it is a residual-encoder U-Net.

    Source:
        Isensee et al. 2024, arXiv:2404.09556. Differs: the pyramid adds the encoder's maps where
        a U-Net concatenates them, which is cheaper.
    """

    def build(self, channels_in: int, patch_size: Sequence[int], size: str) -> None:
        widths = WIDTHS[known_size(size, "unet")]
        channels = [
            min(widths.finest * 2**level, widths.most) for level in range(len(self.strides))
        ]
        finest = self.strides[0]
        self.stem = ConvBlock(
            channels_in, channels[0], finest, kernel_size((1, 1, 1), self.spacing)
        )
        self.levels = nn.ModuleList()
        before, previous = channels[0], finest
        for width, stride in zip(channels, self.strides, strict=True):
            step = [s // p for s, p in zip(stride, previous, strict=True)]
            kernel = kernel_size(stride, self.spacing)
            first = ResidualBlock(before, width, step, kernel, instance=True)
            others = [
                ResidualBlock(width, width, (1, 1, 1), kernel, instance=True)
                for _ in range(widths.blocks - 1)
            ]
            self.levels.append(nn.Sequential(first, *others))
            before, previous = width, stride
        self.channels = channels[-1]
        self.feature_channels = tuple(channels[:-1])

    def forward(self, image: Tensor) -> ImageEmbedding:
        maps, current = [], self.stem(image)
        for level in self.levels:
            current = level(current)
            maps.append(current)
        return ImageEmbedding(embedding=maps[-1], features=maps[:-1])
