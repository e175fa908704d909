"""MobileNet in three dimensions: depthwise separable convolutions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from promptseg.networks.blocks import ChannelNorm, Convolution, layer_scale_init
from promptseg.networks.encoders.base import ENCODERS, known_size
from promptseg.networks.encoders.staged import StagedEncoder


@dataclass(frozen=True)
class Stage:
    """Blocks of one width."""

    channels: int
    blocks: int


STAGES = [Stage(32, 1), Stage(64, 2), Stage(128, 2), Stage(256, 6), Stage(512, 13)]


class DepthwiseSeparable(nn.Module):
    """A depthwise 3x3x3 and a pointwise convolution, each normalized and rectified.

    Differs from MobileNet: a residual connection where shapes allow it, since a chain this long
    hardly trains from scratch without one, and channel normalization, since batches are small.
    """

    def __init__(self, channels_in: int, channels_out: int, stride: Sequence[int]) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            Convolution(
                channels_in,
                channels_in,
                3,
                stride=tuple(stride),
                padding=1,
                groups=channels_in,
                bias=False,
            ),
            ChannelNorm(channels_in),
            nn.ReLU(inplace=True),
            nn.Conv3d(channels_in, channels_out, 1, bias=False),
            ChannelNorm(channels_out),
            nn.ReLU(inplace=True),
        )
        self.is_residual = channels_in == channels_out and max(stride) == 1
        if self.is_residual:
            layer_scale_init(self.layers[4])

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.is_residual else self.layers(x)


@ENCODERS.register("mobilenet")
class MobileNet(StagedEncoder):
    """Depthwise separable blocks of 32, 64, 128, 256 and 512 channels, at every size.

    Source:
        Widths: paper, section 3.2; blocks: Howard et al. 2017, arXiv:1704.04861. The paper does
        not say how many blocks there are; these add up to its 4 M parameters.
    """

    def stages(self, size: str) -> list[Stage]:
        known_size(size, "mobilenet")
        return STAGES

    def make_stage(
        self, stage: Stage, channels_in: int, stride: Sequence[int]
    ) -> tuple[nn.Module, int]:
        first = DepthwiseSeparable(channels_in, stage.channels, stride)
        others = [
            DepthwiseSeparable(stage.channels, stage.channels, (1, 1, 1))
            for _ in range(stage.blocks - 1)
        ]
        return nn.Sequential(first, *others), stage.channels
