"""SegVol's prompt encoder: points, box corners and a text vector as tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from promptseg.networks.prompt_encoder import NO_LABEL, NO_POINT, PromptBatch


class FourierPositions(nn.Module):
    """Random Fourier features of relative positions.

    Source:
        Tancik et al. 2020, arXiv:2006.10739; as SAM's prompt encoder, for three axes.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.randn(3, channels // 2))

    def forward(self, positions: Tensor) -> Tensor:
        """(..., 3) positions, 0 to 1 along each axis, to (..., channels)."""
        # No matrix product: autocast would round the angles to 8 bits.
        directions = (2 * positions.float() - 1).unsqueeze(-1) * self.frequencies.float()
        angles = 2 * math.pi * directions.sum(dim=-2)
        return torch.cat([angles.sin(), angles.cos()], dim=-1)

    def grid(self, shape: Sequence[int]) -> Tensor:
        """(channels, z, y, x) encodings of the cell centres of a grid."""
        device = self.frequencies.device
        centres = [(torch.arange(n, device=device) + 0.5) / n for n in shape]
        positions = torch.stack(torch.meshgrid(*centres, indexing="ij"), dim=-1)
        return self(positions).permute(3, 0, 1, 2)


class SegVolPromptEncoder(nn.Module):
    """Prompts to tokens, with every quirk that the released weights were trained with.

    Each quirk is noted where it occurs. A query's tokens are, in this order: its points, a padding
    point if it has points and no box, the two corners of its box, its text.
    """

    def __init__(self, channels: int, patch_size: Sequence[int], grid: Sequence[int]) -> None:
        super().__init__()
        self.patch_size, self.grid = tuple(patch_size), tuple(grid)
        self.positions = FourierPositions(channels)
        self.point_kinds = nn.Embedding(2, channels)  # background, foreground
        self.corners = nn.Embedding(2, channels)
        self.not_a_point = nn.Embedding(1, channels)
        self.no_mask = nn.Embedding(1, channels)

    def forward(
        self,
        *,
        points: Tensor | None = None,
        point_labels: Tensor | None = None,
        boxes: Tensor | None = None,
        text: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Embed n queries that all have the same kinds of prompts, as SegVol does.

        Args:
            points: (n, k, 3) voxel indices in the patch, zyx.
            point_labels: (n, k) 1 foreground, 0 background, -1 not a point (with an embedding of
                its own, attended to like any other token).
            boxes: (n, 2, 3) half-open, voxels of the patch, zyx.
            text: (n, channels) text embeddings.

        Returns:
            (n, t, channels) sparse embeddings and (n, channels, z', y', x') dense ones; n is 1
            and t is 0 without any prompt.
        """
        given = [prompt for prompt in (points, boxes, text) if prompt is not None]
        count = len(given[0]) if given else 1
        tokens = [self.no_mask.weight.new_zeros(count, 0, self.no_mask.embedding_dim)]
        if points is not None:
            tokens.append(self._of_points(points, point_labels))
            if boxes is None:
                tokens.append(self._padding(count))
        if boxes is not None:
            tokens.append(self._of_boxes(boxes))
        if text is not None:
            tokens.append(text[:, None])
        return torch.cat(tokens, dim=1), self.dense(count)

    def embed(self, prompts: PromptBatch, text: Tensor, has_text: Tensor) -> tuple[Tensor, Tensor]:
        """Embed n queries of different kinds.

        Args:
            prompts: n queries; points labelled -1 are padding, not prompts.
            text: (n, channels) text embeddings.
            has_text: (n,) bool, which of them are prompts.

        Returns:
            (n, k + 4, channels) tokens and (n, k + 4) bool, which of them a query has.
        """
        is_point = prompts.point_labels != NO_POINT
        has_points = is_point.sum(dim=1, keepdim=True) > 0  # onnxruntime: any() of none is true
        is_padding = has_points & ~prompts.has_box[:, None]
        tokens = [
            self._of_points(prompts.points, prompts.point_labels),
            self._padding(len(prompts)),
            self._of_boxes(prompts.boxes),
            text[:, None],
        ]
        is_corner = prompts.has_box[:, None].expand(-1, 2)
        token_mask = torch.cat([is_point, is_padding, is_corner, has_text[:, None]], dim=1)
        return torch.cat(tokens, dim=1), token_mask

    def dense(self, count: int = 1) -> Tensor:
        """(count, channels, z', y', x') the "no mask" embedding: SegVol has no mask prompts."""
        return self.no_mask.weight[..., None, None, None].expand(count, -1, *self.grid)

    def dense_positions(self) -> Tensor:
        """(channels, z', y', x') encodings of the grid.

        Quirk: the frequencies of z and y are swapped, unlike for points and boxes, although the
        relative coordinates themselves are right here.
        """
        z, y, x = self.grid
        return self.positions.grid((y, z, x)).transpose(1, 2)

    def _of_points(self, points: Tensor, labels: Tensor) -> Tensor:
        known = self._locate(points) + self.point_kinds(labels.long().clamp(min=0))
        return torch.where((labels == NO_POINT)[..., None], self.not_a_point.weight, known)

    def _of_boxes(self, boxes: Tensor) -> Tensor:
        # SegVol's boxes include their upper corner, ours are half-open.
        last = torch.stack([torch.zeros(3), torch.ones(3)]).to(boxes)
        return self._locate(boxes - last) + self.corners.weight

    def _padding(self, count: int) -> Tensor:
        """Quirk (SAM's): points without a box are followed by one that is not a point."""
        return self.not_a_point.weight.expand(count, 1, -1)

    def _locate(self, indices: Tensor) -> Tensor:
        """Encode (..., 3) voxel indices.

        Quirk: z is divided by the patch's height and y by its depth. With the released patch
        of 32x256x256 relative z ends at 0.12 and y at 8.
        """
        z, y, x = self.patch_size
        return self.positions((indices + 0.5) / indices.new_tensor([y, z, x]))


class LabelText(nn.Module):
    """A learned vector for each label, in place of CLIP's embedding of its name.

    It is used like SegVol's text embedding: through `align` as a token and, in the mask decoder,
    for the logits. A label counts as learned once training has prompted with it. Until then, as
    right after loading the released weights, its name is not a prompt.
    """

    def __init__(self, label_count: int, text_channels: int, channels: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(label_count, text_channels)
        self.align = nn.Linear(text_channels, channels)
        self.register_buffer("learned", torch.zeros(label_count, dtype=torch.bool))

    def forward(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """(n,) label indices or `NO_LABEL` to (n, channels) texts and (n,) bool: is it a prompt?"""
        if self.training:
            every = torch.arange(len(self.learned), device=labels.device)
            self.learned.logical_or_((labels[:, None] == every).any(dim=0))
        index = labels.clamp(min=0)
        return self.align(self.tokens(index)), (labels != NO_LABEL) & self.learned[index]
