"""The interface of image encoders, and their registry."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from promptseg.networks.blocks import feature_strides
from promptseg.registry import Registry

ENCODERS = Registry("image encoder")
SIZES = ("tiny", "small", "base")


def known_size(size: str, encoder: str) -> str:
    """The size; a ValueError that lists the known sizes if it is not among them."""
    if size not in SIZES:
        raise ValueError(
            f"unknown size {size!r} of the encoder {encoder}; it has {', '.join(SIZES)}"
        )
    return size


@dataclass(frozen=True, kw_only=True)
class ImageEmbedding:
    """The output of an image encoder.

    Attributes:
        embedding: (b, c, z', y', x') on the grid that the plans' stride gives.
        features: finer maps (b, c_l, z_l, y_l, x_l), finest first; may be empty.
    """

    embedding: Tensor
    features: Sequence[Tensor]


class ImageEncoder(nn.Module, ABC):
    """An image encoder for a patch size and a stride; other multiples of the stride work too.

    Args:
        channels_in: channels of the image.
        patch_size: voxels, zyx.
        stride: voxels of one token of the embedding, zyx, powers of two.
        size: one of `SIZES`.
        finest_stride: voxels of one element of the finest feature map, zyx.
        spacing: mm of a voxel, zyx.

    Attributes:
        strides: of the feature maps and the embedding, finest first, see `feature_strides`.
        spacing, channels_in: as given.
        channels: number of channels of the embedding.
        feature_channels: number of channels of each feature map, finest first.
    """

    channels: int
    feature_channels: tuple[int, ...]

    def __init__(
        self,
        *,
        channels_in: int,
        patch_size: Sequence[int],
        stride: Sequence[int],
        size: str,
        finest_stride: Sequence[int] = (1, 1, 1),
        spacing: Sequence[float] = (1.0, 1.0, 1.0),
    ) -> None:
        super().__init__()
        self.strides = feature_strides(stride, finest_stride, spacing)
        self.spacing = tuple(spacing)
        self.channels_in = channels_in
        self.build(channels_in, patch_size, size)

    @abstractmethod
    def build(self, channels_in: int, patch_size: Sequence[int], size: str) -> None:
        """Make the layers, and set `channels` and `feature_channels`.

        Raises:
            ValueError: for an unknown size, listing the known ones.
        """

    @abstractmethod
    def forward(self, image: Tensor) -> ImageEmbedding:
        """Encode (b, c, z, y, x) images scaled to about [-1, 1]."""
