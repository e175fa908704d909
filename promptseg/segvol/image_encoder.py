"""SegVol's image encoder: a vision transformer on flattened blocks of voxels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from promptseg.networks.encoders.vit import ViTSize, transformer_blocks


class SegVolImageEncoder(nn.Module):
    """A pre-norm vision transformer; its blocks are those of the encoder `vit`.

    It has one linear map per token in place of a stem, hence no high-resolution features, and one
    position embedding per token, hence one patch size.

    Source:
        MONAI's `ViT` as SegVol builds it (perceptron patch embedding, no class token).
    """

    def __init__(
        self, size: ViTSize, channels_in: int, patch_size: Sequence[int], stride: Sequence[int]
    ) -> None:
        super().__init__()
        grid = [w // s for w, s in zip(patch_size, stride, strict=True)]
        self.patches = nn.Conv3d(
            channels_in, size.channels, kernel_size=tuple(stride), stride=tuple(stride)
        )
        self.positions = nn.Parameter(torch.randn(1, size.channels, *grid) * 0.02)
        self.blocks = transformer_blocks(size)

    def forward(self, image: Tensor) -> Tensor:
        """(b, c, z, y, x) images in [0, 1] to (b, channels, z', y', x')."""
        tokens = self.patches(image) + self.positions
        embedded = self.blocks(tokens.flatten(2).transpose(1, 2))
        return embedded.transpose(1, 2).unflatten(2, tokens.shape[2:])
