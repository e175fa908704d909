"""MobileNetV3 in three dimensions: inverted residuals, squeeze-excitation, hard-swish."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from promptseg.networks.blocks import ChannelNorm, Convolution, layer_scale_init
from promptseg.networks.encoders.base import ENCODERS, known_size
from promptseg.networks.encoders.staged import StagedEncoder


@dataclass(frozen=True)
class Block:
    """One inverted residual.

    Attributes:
        expanded: channels between the pointwise convolutions.
        channels: of the output.
        squeeze: whether squeeze-excitation gates the channels.
        hard_swish: whether the activation is hard-swish instead of ReLU.
    """

    expanded: int
    channels: int
    squeeze: bool
    hard_swish: bool


# MobileNetV3-Large (Howard et al. 2019, table 1), grouped by resolution.
STAGES = [
    [Block(16, 16, False, False)],
    [Block(64, 24, False, False), Block(72, 24, False, False)],
    [Block(72, 40, True, False), *[Block(120, 40, True, False)] * 2],
    [
        Block(240, 80, False, True),
        Block(200, 80, False, True),
        *[Block(184, 80, False, True)] * 2,
        Block(480, 112, True, True),
        *[Block(672, 112, True, True)] * 3,
    ],
    [Block(672, 160, True, True), *[Block(960, 160, True, True)] * 4],
]


class SqueezeExcitation(nn.Module):
    """Each channel weighted by its means over the patch."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        squeezed = channels // 4
        self.gates = nn.Sequential(
            nn.AdaptiveAvgPool3d(1),
            nn.Conv3d(channels, squeezed, 1),
            nn.ReLU(inplace=True),
            nn.Conv3d(squeezed, channels, 1),
            nn.Hardsigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gates(x)


class InvertedResidual(nn.Module):
    """Expand, filter each channel, gate, project; normalized over channels, not the batch."""

    def __init__(self, block: Block, channels_in: int, stride: Sequence[int]) -> None:
        super().__init__()
        rectifier = nn.Hardswish if block.hard_swish else nn.ReLU
        layers: list[nn.Module] = []
        if block.expanded != channels_in:
            layers += [*_normalized(nn.Conv3d(channels_in, block.expanded, 1, bias=False))]
            layers += [rectifier(inplace=True)]
        depthwise = Convolution(
            block.expanded,
            block.expanded,
            3,
            stride=tuple(stride),
            padding=1,
            groups=block.expanded,
            bias=False,
        )
        layers += [*_normalized(depthwise), rectifier(inplace=True)]
        if block.squeeze:
            layers += [SqueezeExcitation(block.expanded)]
        layers += [*_normalized(nn.Conv3d(block.expanded, block.channels, 1, bias=False))]
        self.layers = nn.Sequential(*layers)
        self.is_residual = channels_in == block.channels and max(stride) == 1
        if self.is_residual:
            layer_scale_init(self.layers[-1])

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.is_residual else self.layers(x)


def _normalized(convolution: nn.Conv3d) -> tuple[nn.Module, nn.Module]:
    return convolution, ChannelNorm(convolution.out_channels)


@ENCODERS.register("mobilenet_v3")
class MobileNetV3(StagedEncoder):
    """MobileNetV3-Large's inverted residuals with 3D kernels, at every size.

    Differs from the original: kernels of 3x3x3 also where it has 5x5, which have about as many
    weights and train five times as fast on a CPU as 5x5x5; two more blocks of 112 and two of 160
    channels in place of the classifier, which give the paper's 5.4 M parameters.

    Source:
        Howard et al. 2019, arXiv:1905.02244, table 1; parameters: paper, table 2.
    """

    def stages(self, size: str) -> list[list[Block]]:
        known_size(size, "mobilenet_v3")
        return STAGES

    def make_stage(
        self, stage: list[Block], channels_in: int, stride: Sequence[int]
    ) -> tuple[nn.Module, int]:
        blocks, width = [], channels_in
        for block in stage:
            blocks.append(InvertedResidual(block, width, stride))
            width, stride = block.channels, (1, 1, 1)
        return nn.Sequential(*blocks), width
