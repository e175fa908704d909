"""Convolutional pieces that encoders and the decoder share."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


def feature_strides(stride: Sequence[int]) -> list[tuple[int, int, int]]:
    """Strides of the feature maps from voxels to tokens, finest first.

    From one map to the next finer, the axes with the largest stride are halved: (2, 8, 8) gives
    (1, 1, 1), (2, 2, 2), (2, 4, 4), (2, 8, 8).

    Args:
        stride: voxels of one token, zyx, powers of two.

    Raises:
        ValueError: if an axis is not a power of two.
    """
    if any(s < 1 or s & (s - 1) for s in stride):
        raise ValueError(f"strides must be powers of two, got {tuple(stride)} (zyx)")
    strides = [tuple(int(s) for s in stride)]
    while max(strides[0]) > 1:
        largest = max(strides[0])
        strides.insert(0, tuple(s // 2 if s == largest else s for s in strides[0]))
    return strides


class ChannelNorm(nn.LayerNorm):
    """Layer normalization over the channels of each voxel.

    Unlike instance normalization, nothing is averaged over the patch, so that on coarse grids of
    a few tokens a change in one place does not change all others.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(b, c, z, y, x) maps; without copies where memory is channels last."""
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


def layer_scale_init(normalization: nn.LayerNorm, scale: float = 0.1) -> nn.LayerNorm:
    """Initialize the last normalization of a residual branch to a small scale.

    Long chains of blocks then train, and stay local.

    Source:
        Touvron et al. 2021, arXiv:2103.17239 (LayerScale).
    """
    nn.init.constant_(normalization.weight, scale)
    return normalization


class ConvBlock(nn.Module):
    """Convolution, instance normalization, leaky ReLU; the stride may differ between axes."""

    def __init__(
        self, channels_in: int, channels_out: int, stride: Sequence[int] = (1, 1, 1)
    ) -> None:
        super().__init__()
        self.convolution = nn.Conv3d(
            channels_in, channels_out, 3, stride=tuple(stride), padding=1, bias=False
        )
        self.normalization = nn.InstanceNorm3d(channels_out, affine=True)
        self.activation = nn.LeakyReLU(0.01, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.normalization(self.convolution(x)))


class ConvStem(nn.Module):
    """Voxels to one feature map per stride, the coarsest for the tokens."""

    def __init__(
        self, channels_in: int, channels: Sequence[int], strides: Sequence[Sequence[int]]
    ) -> None:
        super().__init__()
        blocks, before, previous = [], channels_in, (1, 1, 1)
        for width, stride in zip(channels, strides, strict=True):
            step = [s // p for s, p in zip(stride, previous, strict=True)]
            blocks.append(nn.Sequential(ConvBlock(before, width, step), ConvBlock(width, width)))
            before, previous = width, stride
        self.blocks = nn.ModuleList(blocks)

    def forward(self, image: Tensor) -> list[Tensor]:
        """(b, c, z, y, x) image to feature maps, finest first."""
        maps = []
        for block in self.blocks:
            image = block(image)
            maps.append(image)
        return maps
