"""A residual encoder with high-resolution features, like nnU-Net's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from promptseg.networks.blocks import (
    AveragePool,
    ChannelNorm,
    InstanceNorm,
    convolution,
    layer_scale_init,
)
from promptseg.networks.encoders.base import ENCODERS, known_size
from promptseg.networks.encoders.staged import StagedEncoder


@dataclass(frozen=True)
class Stage:
    """Residual blocks of one width."""

    channels: int
    blocks: int


STAGES = {
    "tiny": [Stage(32, 1), Stage(64, 2), Stage(128, 2), Stage(192, 2)],
    "small": [Stage(48, 1), Stage(96, 3), Stage(192, 4), Stage(256, 4)],
    "base": [Stage(64, 1), Stage(128, 3), Stage(256, 4), Stage(320, 6)],
}


class ResidualBlock(nn.Module):
    """Two convolutions beside a shortcut, which is projected where the shape changes.

    Args:
        channels_in, channels_out: of the maps.
        stride: of the first convolution.
        kernel: of both, zyx.
        instance: normalize each channel over the patch, in place of the channels of each voxel;
            the residual branch then starts at full scale.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        stride: Sequence[int],
        kernel: Sequence[int] = (3, 3, 3),
        *,
        instance: bool = False,
    ) -> None:
        super().__init__()

        def norm() -> nn.Module:
            if instance:
                return InstanceNorm(channels_out)
            return ChannelNorm(channels_out)

        self.first = nn.Sequential(
            convolution(channels_in, channels_out, stride, kernel),
            norm(),
            nn.LeakyReLU(0.01, inplace=True),
        )
        self.second = convolution(channels_out, channels_out, (1, 1, 1), kernel)
        self.normalization = norm() if instance else layer_scale_init(norm())
        self.shortcut: nn.Module = nn.Identity()
        if channels_in != channels_out or max(stride) > 1:
            pooled = AveragePool(stride) if max(stride) > 1 else nn.Identity()
            self.shortcut = nn.Sequential(pooled, nn.Conv3d(channels_in, channels_out, 1))
        self.activation = nn.LeakyReLU(0.01, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.normalization(self.second(self.first(x))) + self.shortcut(x))


@ENCODERS.register("residual")
class Residual(StagedEncoder):
    """Plain residual blocks: more arithmetic per parameter than the light encoders, and reliable
    training from scratch.

    Source:
        nnU-Net's residual encoders, Isensee et al. 2024, arXiv:2404.09556; shortcut: He et al.
        2019, arXiv:1812.01187.
    """

    def stages(self, size: str) -> list[Stage]:
        return STAGES[known_size(size, "residual")]

    def make_stage(
        self, stage: Stage, channels_in: int, stride: Sequence[int]
    ) -> tuple[nn.Module, int]:
        first = ResidualBlock(channels_in, stage.channels, stride)
        others = [
            ResidualBlock(stage.channels, stage.channels, (1, 1, 1))
            for _ in range(stage.blocks - 1)
        ]
        return nn.Sequential(first, *others), stage.channels
