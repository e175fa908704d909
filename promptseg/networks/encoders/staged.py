"""Convolutional encoders: a stem at full resolution, then stages of blocks down the ladder."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

from torch import Tensor, nn

from promptseg.networks.blocks import ChannelNorm, ConvStem, stride_ladder
from promptseg.networks.encoders.base import ImageEmbedding, ImageEncoder


class StagedEncoder(ImageEncoder):
    """Stages of blocks, one a resolution below the voxels; the coarsest takes those left over.

    So an encoder keeps its published stages whatever stride the plans ask for: with stride
    (8, 8, 8) five stages run at strides 2, 4, 8, 8 and 8, with (32, 32, 32) at 2, 4, 8, 16 and
    32; beyond that the last stage is repeated. Each resolution's last map is a feature, and the
    coarsest, projected to `embedding_channels`, the embedding. No map is pooled over the patch;
    blocks may scale by its means.

    Subclasses say what a stage is and how it is built.
    """

    stem_channels = 12  # at full resolution, where every channel costs most
    embedding_channels = 256

    def __init__(
        self, *, channels_in: int, patch_size: Sequence[int], stride: Sequence[int], size: str
    ) -> None:
        super().__init__(channels_in=channels_in, patch_size=patch_size, stride=stride, size=size)
        ladder = stride_ladder(stride)
        self.stem = ConvStem(channels_in, [self.stem_channels], ladder[:1])
        self.levels = nn.ModuleList()
        widths, width, previous = [self.stem_channels], self.stem_channels, ladder[0]
        levels = ladder[1:] or ladder  # with a stride of one voxel all stages run on voxels
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
        self.feature_channels = tuple(widths[: len(ladder) - 1])

    @abstractmethod
    def stages(self, size: str) -> list:
        """What `make_stage` makes a stage of, finest first.

        Raises:
            ValueError: for an unknown size, listing those there are.
        """

    @abstractmethod
    def make_stage(
        self, stage: object, channels_in: int, stride: Sequence[int]
    ) -> tuple[nn.Module, int]:
        """A stage whose first block has the stride, and its output channels."""

    def forward(self, image: Tensor) -> ImageEmbedding:
        maps = self.stem(image)
        for level in self.levels:
            maps.append(level(maps[-1]))
        *features, coarse = maps
        return ImageEmbedding(
            embedding=self.to_embedding(coarse), features=features[: len(self.feature_channels)]
        )


def _spread(stages: Sequence, levels: int) -> list[list]:
    """Stages on levels: one each, the last level takes the rest; missing ones repeat the last."""
    padded = [*stages, *[stages[-1]] * (levels - len(stages))]
    return [[stage] for stage in padded[: levels - 1]] + [padded[levels - 1 :]]
