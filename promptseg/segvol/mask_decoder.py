"""SegVol's mask decoder: SAM's, in 3D, with an upscaling that is tied to one grid."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from promptseg.segvol.two_way import TwoWayBlock, TwoWayTransformer


class FirstBlock(TwoWayBlock):
    """Quirk (SAM's): the first self-attention replaces the tokens; no residual, no positions."""

    def self_attend(self, hidden: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """The tokens after attention among themselves."""
        return self.self_attn(hidden, hidden, hidden, mask)


class NormOfAll(nn.Module):
    """Quirk: layer normalization over channels and space, with weight and bias for every voxel.

    Both have a leading axis, for memory formats that apply to tensors of 5 axes.
    """

    def __init__(self, channels: int, shape: Sequence[int]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, channels, *shape))
        self.bias = nn.Parameter(torch.zeros(1, channels, *shape))

    def forward(self, x: Tensor) -> Tensor:
        """(n, channels, *shape) to the same."""
        return F.layer_norm(x, x.shape[1:], self.weight[0], self.bias[0])


class SegVolMaskDecoder(nn.Module):
    """Two-way transformer, then an upscaling by 4 of its own for every query.

    Source:
        Kirillov et al. 2023, arXiv:2304.02643, Appendix A; Du et al. 2024 (SegVol),
        arXiv:2311.13385.
    """

    def __init__(
        self,
        channels: int,
        grid: Sequence[int],
        *,
        heads: int,
        mlp_channels: int,
        depth: int,
        mask_tokens: int,
        iou_channels: int,
    ) -> None:
        super().__init__()
        middle, fine = channels // 4, channels // 8
        self.iou_token = nn.Embedding(1, channels)
        self.mask_tokens = nn.Embedding(mask_tokens, channels)
        self.transformer = TwoWayTransformer(depth, channels, heads, mlp_channels)
        self.transformer.layers[0] = FirstBlock(channels, heads, mlp_channels)
        self.upscaling = nn.Sequential(
            nn.ConvTranspose3d(channels, middle, kernel_size=2, stride=2),
            NormOfAll(middle, [2 * cells for cells in grid]),
            nn.GELU(),
            nn.ConvTranspose3d(middle, fine, kernel_size=2, stride=2),
            nn.GELU(),
        )
        self.responses = nn.ModuleList(mlp(channels, channels, fine) for _ in range(mask_tokens))
        self.iou_head = mlp(channels, iou_channels, mask_tokens)
        self.text_response = nn.Linear(channels, fine)

    def forward(
        self,
        embedding: Tensor,
        image_pe: Tensor,
        sparse: Tensor,
        dense: Tensor,
        *,
        text: Tensor | None = None,
        token_mask: Tensor | None = None,
        has_text: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Decode n queries.

        Args:
            embedding: (n, c, z', y', x') embedding of each query's image, or (1, ...) of one image.
            image_pe: (c, z', y', x') position encodings of the grid.
            sparse: (n, t, c) prompt tokens, or (1, t, c) for all images.
            dense: (n, c, z', y', x'), or (1, ...).
            text: (n, c) text embeddings, which are also among the tokens.
            token_mask: (n, t) bool, which tokens a query has; all by default.
            has_text: (n,) bool, which queries have a text; all by default.

        Returns:
            (n, masks, 4 z', 4 y', 4 x') mask logits and (n, masks) predicted IoU logits.
        """
        n = max(len(sparse), len(embedding))
        sparse = sparse.expand(n, -1, -1)
        if token_mask is None:
            token_mask = sparse.new_ones(sparse.shape[:2], dtype=torch.bool)
        own = torch.cat([self.iou_token.weight, self.mask_tokens.weight])
        tokens = torch.cat([own.expand(n, -1, -1), sparse], dim=1)
        token_mask = F.pad(token_mask, (len(own), 0), value=True)
        image = (embedding + dense).expand(n, -1, -1, -1, -1)
        hidden, image_tokens = self.transformer(image, image_pe, tokens, token_mask)
        upscaled = self.upscaling(image_tokens.transpose(1, 2).unflatten(2, image.shape[2:]))
        weights = torch.stack(
            [respond(hidden[:, 1 + i]) for i, respond in enumerate(self.responses)], dim=1
        )
        if text is not None:
            # SegVol adds (text . upscaled) to the logits of every mask token: the same sum.
            similar = self.text_response(text)[:, None]
            weights = weights + (similar if has_text is None else similar * has_text[:, None, None])
        return torch.einsum("nmc,nczyx->nmzyx", weights, upscaled), self.iou_head(hidden[:, 0])


def mlp(channels_in: int, hidden: int, channels_out: int) -> nn.Sequential:
    """Three linear maps with ReLUs in between."""
    return nn.Sequential(
        nn.Linear(channels_in, hidden),
        nn.ReLU(),
        nn.Linear(hidden, hidden),
        nn.ReLU(),
        nn.Linear(hidden, channels_out),
    )
