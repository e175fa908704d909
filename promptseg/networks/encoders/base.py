"""What every image encoder is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from promptseg.registry import Registry

ENCODERS = Registry("image encoder")
SIZES = ("tiny", "small", "base")


def known_size(size: str, encoder: str) -> str:
    """The size, or a ValueError that lists those there are."""
    if size not in SIZES:
        raise ValueError(
            f"unknown size {size!r} of the encoder {encoder}; it has {', '.join(SIZES)}"
        )
    return size


@dataclass(frozen=True, kw_only=True)
class ImageEmbedding:
    """What an image encoder makes of images.

    Attributes:
        embedding: (b, c, z', y', x') on the grid given by the plans' stride.
        features: high-resolution maps (b, c_l, z_l, y_l, x_l), finest first; may be empty.
    """

    embedding: Tensor
    features: Sequence[Tensor]


class ImageEncoder(nn.Module, ABC):
    """An image encoder built for a patch and a stride; other patches work if they divide.

    Attributes:
        channels: of the embedding.
        feature_channels: of each high-resolution map, finest first.
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
