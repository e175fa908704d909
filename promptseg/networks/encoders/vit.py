"""Vision transformer over patches, with a convolutional stem for high-resolution features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from promptseg.networks.blocks import ConvStem
from promptseg.networks.encoders.base import ENCODERS, ImageEmbedding, ImageEncoder, known_size


@dataclass(frozen=True)
class ViTSize:
    """Widths of a ViT. `base` is SegVol's ViT-B; the others are for smaller budgets."""

    channels: int
    layers: int
    heads: int
    mlp_channels: int
    stem_channels: int


SIZES = {
    "tiny": ViTSize(channels=192, layers=6, heads=6, mlp_channels=768, stem_channels=16),
    "small": ViTSize(channels=384, layers=12, heads=6, mlp_channels=1536, stem_channels=24),
    "base": ViTSize(channels=768, layers=12, heads=12, mlp_channels=3072, stem_channels=32),
}


def transformer_blocks(size: ViTSize) -> nn.TransformerEncoder:
    """Pre-norm blocks with exact GELU and a final normalization, on (b, tokens, channels)."""
    layer = nn.TransformerEncoderLayer(
        size.channels,
        size.heads,
        size.mlp_channels,
        dropout=0.0,
        activation=_gelu,
        batch_first=True,
        norm_first=True,
    )
    blocks = nn.TransformerEncoder(
        layer, size.layers, norm=nn.LayerNorm(size.channels), enable_nested_tensor=False
    )
    for parameter in blocks.parameters():  # PyTorch initializes all layers alike
        if parameter.ndim > 1:
            nn.init.trunc_normal_(parameter, std=0.02)
    return blocks


def _gelu(x: Tensor) -> Tensor:
    """GELU as a function of our own, so that PyTorch does not fuse the layers at inference.

    Fused layers are not faster on a CPU, and torch.compile (2.13) fails on them.
    """
    return F.gelu(x)


@ENCODERS.register("vit")
class ViT(ImageEncoder):
    """A pre-norm vision transformer on the tokens of a convolutional stem.

    The stem halves the resolution step by step down to the plans' stride; its last map becomes the
    tokens, the others are the high-resolution features. Position embeddings are learned on the
    grid of the plans and resampled for any other.

    Source:
        Dosovitskiy et al. 2021, arXiv:2010.11929; stem: Xiao et al. 2021, arXiv:2106.14881.
    """

    def build(self, channels_in: int, patch_size: Sequence[int], size: str) -> None:
        widths = self.widths(size)
        stem_channels = [
            min(widths.stem_channels * 2**level, widths.channels)
            for level in range(len(self.strides))
        ]
        grid = [w // s for w, s in zip(patch_size, self.strides[-1], strict=True)]
        self.channels = widths.channels
        self.feature_channels = tuple(stem_channels[:-1])
        self.stem = ConvStem(channels_in, stem_channels, self.strides)
        self.to_tokens = nn.Conv3d(stem_channels[-1], widths.channels, 1)
        self.positions = nn.Parameter(torch.randn(1, widths.channels, *grid) * 0.02)
        self.blocks = transformer_blocks(widths)

    @staticmethod
    def widths(size: str) -> ViTSize:
        """Widths of a size; a ValueError lists the known sizes for any other."""
        return SIZES[known_size(size, "vit")]

    def forward(self, image: Tensor) -> ImageEmbedding:
        *features, coarse = self.stem(image)
        tokens = self.to_tokens(coarse)
        positions = self.positions
        if positions.shape[2:] != tokens.shape[2:]:
            positions = F.interpolate(
                positions, tokens.shape[2:], mode="trilinear", align_corners=False
            )
        grid = tokens.shape[2:]
        tokens = self.blocks((tokens + positions).flatten(2).transpose(1, 2))
        return ImageEmbedding(
            embedding=tokens.transpose(1, 2).unflatten(2, grid), features=features
        )
