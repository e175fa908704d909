"""The interface of image encoders, and their registry."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

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
        features: high-resolution maps (b, c_l, z_l, y_l, x_l), finest first; may be empty.
    """

    embedding: Tensor
    features: Sequence[Tensor]


class ImageEncoder(nn.Module, ABC):
    """An image encoder for a patch size and a stride; other multiples of the stride work too.

    Attributes:
        channels: number of channels of the embedding.
        feature_channels: number of channels of each high-resolution map, finest first.
    """

    channels: int
    feature_channels: tuple[int, ...]

    @abstractmethod
    def __init__(
        self, *, channels_in: int, patch_size: Sequence[int], stride: Sequence[int], size: str
    ) -> None:
        super().__init__()

    @abstractmethod
    def forward(self, image: Tensor) -> ImageEmbedding:
        """Encode (b, c, z, y, x) images scaled to about [-1, 1]."""
