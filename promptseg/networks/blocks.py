"""Convolutional pieces that encoders and the decoder share, and the strides of feature maps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

Triple = tuple[int, int, int]
ISOTROPIC = 2.0  # axes whose elements differ by less in mm are treated alike, as in nnU-Net


def feature_strides(
    stride: Sequence[int],
    finest: Sequence[int] = (1, 1, 1),
    spacing: Sequence[float] = (1.0, 1.0, 1.0),
) -> list[Triple]:
    """Strides of the feature maps from the finest map to the tokens, finest first.

    From one map to the next coarser, those axes are doubled that are still short of `stride` and
    physically finest, or less than twice as coarse: with isotropic voxels (2, 8, 8) gives
    (1, 1, 1), (2, 2, 2), (2, 4, 4), (2, 8, 8), with slices of ten times the pixels (1, 1, 1),
    (1, 2, 2), (1, 4, 4), (2, 8, 8).

    Args:
        stride: voxels of one token, zyx, powers of two.
        finest: voxels of one element of the finest map, zyx, powers of two.
        spacing: mm, zyx.

    Raises:
        ValueError: if an axis is not a power of two, or coarser in the finest map than a token.
    """
    for given in (stride, finest):
        if any(s < 1 or s & (s - 1) for s in given):
            raise ValueError(f"strides must be powers of two, got {tuple(given)} (zyx)")
    if any(f > s for f, s in zip(finest, stride, strict=True)):
        raise ValueError(
            f"the finest map's stride {tuple(finest)} is larger than that of the tokens, "
            f"{tuple(stride)} (zyx)"
        )
    strides = [tuple(int(f) for f in finest)]
    while strides[-1] != tuple(stride):
        short = [s < t for s, t in zip(strides[-1], stride, strict=True)]
        size = np.where(short, np.multiply(strides[-1], spacing), np.inf)
        doubled = size < ISOTROPIC * size.min()
        strides.append(tuple(int(s) for s in np.where(doubled, 2, 1) * strides[-1]))
    return strides


def kernel_size(stride: Sequence[int], spacing: Sequence[float]) -> Triple:
    """The convolution that suits a map of this stride: 3 along each axis, 1 across thick slices.

    Args:
        stride: voxels of one element of the map, zyx.
        spacing: mm, zyx, of a voxel.

    Source:
        nnU-Net (Isensee et al. 2021, Supplementary Note 2): an axis is convolved once its
        elements are less than twice as long as the shortest side.
    """
    size = np.multiply(stride, spacing)
    return tuple(3 if s < ISOTROPIC * size.min() else 1 for s in size)


class ChannelNorm(nn.LayerNorm):
    """Layer normalization over the channels of each voxel.

    Unlike instance normalization, nothing is averaged over the patch, so that a change in one
    place does not change all others.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(b, c, z, y, x) maps; without copies where memory is channels last."""
        x = x.movedim(1, -1)
        if x.device.type == "cpu" and x.dtype == torch.bfloat16:
            with torch.autocast("cpu", enabled=False):  # which would copy to float32 and back
                return super().forward(x).movedim(-1, 1)
        return super().forward(x).movedim(-1, 1)


class InstanceNorm(nn.InstanceNorm3d):
    """Instance normalization that keeps memory channels last on a CPU.

    torch's own copies every map to channels first and the next convolution back, which costs as
    much as the normalization. Batch normalization of a single image is the same and does not.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, affine=True)

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or torch.compiler.is_exporting():
            return super().forward(x)
        images = [
            F.batch_norm(image, None, None, self.weight, self.bias, training=True, eps=self.eps)
            for image in x.split(1)
        ]
        return images[0] if len(images) == 1 else torch.cat(images)


class AveragePool(nn.Module):
    """Means over blocks of voxels that keep memory channels last, and bfloat16, on a CPU.

    torch's `AvgPool3d` has neither there: it takes three to five times as long as pooling within
    slices, which has both, and adding up the slices.
    """

    def __init__(self, size: Sequence[int]) -> None:
        super().__init__()
        self.size = tuple(size)

    def forward(self, x: Tensor) -> Tensor:
        """(b, c, z, y, x) maps, whose shape `size` divides."""
        if x.device.type != "cpu" or torch.compiler.is_exporting():
            return F.avg_pool3d(x, self.size)
        slices = self.size[0]
        if slices > 1:
            x = sum(x[:, :, first::slices] for first in range(slices)) / slices
        pooled = F.avg_pool2d(x.transpose(1, 2).flatten(0, 1), self.size[1:])
        return pooled.unflatten(0, (x.shape[0], x.shape[2])).transpose(1, 2)


def layer_scale_init(normalization: nn.LayerNorm, scale: float = 0.1) -> nn.LayerNorm:
    """Initialize the last normalization of a residual branch to a small scale.

    Long chains of blocks then train, and stay local.

    Source:
        Touvron et al. 2021, arXiv:2103.17239 (LayerScale).
    """
    nn.init.constant_(normalization.weight, scale)
    return normalization


class ConvBlock(nn.Module):
    """Convolution, instance normalization, leaky ReLU.

    Args:
        channels_in, channels_out: of the maps.
        stride: may differ between axes; an axis with a stride is convolved by at least 3.
        kernel: odd sizes, zyx.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        stride: Sequence[int] = (1, 1, 1),
        kernel: Sequence[int] = (3, 3, 3),
    ) -> None:
        super().__init__()
        self.convolution = convolution(channels_in, channels_out, stride, kernel)
        self.normalization = InstanceNorm(channels_out)
        self.activation = nn.LeakyReLU(0.01, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.normalization(self.convolution(x)))


class Convolution(nn.Conv3d):
    """A convolution that is computed in float32 where bfloat16 goes wrong.

    On a CPU, the gradient of a weight of three slices is made of uninitialized memory where the
    maps have two: torch 2.13 with oneDNN, AVX512-BF16.
    """

    def forward(self, x: Tensor) -> Tensor:
        few = x.device.type == "cpu" and x.shape[2] < self.kernel_size[0]
        if few and torch.is_autocast_enabled("cpu"):
            with torch.autocast("cpu", enabled=False):
                return super().forward(x.to(self.weight.dtype))
        return super().forward(x)


def convolution(
    channels_in: int, channels_out: int, stride: Sequence[int], kernel: Sequence[int]
) -> Convolution:
    """A convolution without a bias whose output is the input by the stride, rounded up."""
    kernel = tuple(max(k, 3) if s > 1 else k for k, s in zip(kernel, stride, strict=True))
    padding = tuple(k // 2 for k in kernel)
    return Convolution(
        channels_in, channels_out, kernel, stride=tuple(stride), padding=padding, bias=False
    )


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
