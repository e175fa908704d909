"""Convolutional encoders: a stem at the finest stride, then stages of blocks at coarser ones."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

from torch import Tensor, nn

from promptseg.networks.blocks import ChannelNorm, ConvStem
from promptseg.networks.encoders.base import ImageEmbedding, ImageEncoder


class StagedEncoder(ImageEncoder):
    """One stage of blocks per map below the finest; the coarsest has the remaining stages.

    An encoder thus keeps its published stages whatever the plans' stride: with stride (8, 8, 8)
    five stages run at strides 2, 4, 8, 8 and 8, with (32, 32, 32) at 2, 4, 8, 16 and 32; beyond
    that the last stage is repeated. The last map at each resolution is a feature map; the
    coarsest, projected to `embedding_channels`, is the embedding. No map is pooled over the
    patch, but blocks may scale channels by their means.

    Subclasses define what a stage is and how it is built.
    """

    stem_channels = 12  # at the finest resolution, where a channel costs most
    embedding_channels = 256

    def build(self, channels_in: int, patch_size: Sequence[int], size: str) -> None:
        strides = self.strides
        self.stem = ConvStem(channels_in, [self.stem_channels], strides[:1])
        self.levels = nn.ModuleList()
        widths, width, previous = [self.stem_channels], self.stem_channels, strides[0]
        levels = strides[1:] or strides  # where there is one map only, all stages run on it
        for level, of_level in zip(levels, _spread(self.stages(size), len(levels)), strict=True):
            step = [s // p for s, p in zip(level, previous, strict=True)]
            blocks = []
            for stage in of_level:
                block, width = self.make_stage(stage, width, step)
                blocks.append(block)
                step = [1, 1, 1]
            self.levels.append(nn.Sequential(*blocks))
            widths.append(width)
            previous = level
        self.to_embedding = nn.Sequential(
            nn.Conv3d(width, self.embedding_channels, 1, bias=False),
            ChannelNorm(self.embedding_channels),
        )
        self.channels = self.embedding_channels
        self.feature_channels = tuple(widths[: len(strides) - 1])

    @abstractmethod
    def stages(self, size: str) -> list:
        """Descriptions of the stages for `make_stage`, finest first.

        Raises:
            ValueError: for an unknown size, listing the known ones.
        """

    @abstractmethod
    def make_stage(
        self, stage: object, channels_in: int, stride: Sequence[int]
    ) -> tuple[nn.Module, int]:
        """A stage, whose first block has the stride, and the number of its output channels."""

    def forward(self, image: Tensor) -> ImageEmbedding:
        maps = self.stem(image)
        for level in self.levels:
            maps.append(level(maps[-1]))
        *features, coarse = maps
        return ImageEmbedding(
            embedding=self.to_embedding(coarse), features=features[: len(self.feature_channels)]
        )


def _spread(stages: Sequence, levels: int) -> list[list]:
    """Stages of each level: one each, the rest on the last; the last stage repeats if too few."""
    padded = [*stages, *[stages[-1]] * (levels - len(stages))]
    return [[stage] for stage in padded[: levels - 1]] + [padded[levels - 1 :]]
