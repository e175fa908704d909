"""Prompts to embeddings: labels, box corners and points as tokens, boxes as maps too."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

NO_POINT = -1  # point label of padding
NO_LABEL = -1  # label index of a query without a label


@dataclass(frozen=True, kw_only=True)
class Query:
    """One mask to predict in one image of a batch, from any of a label, a box and points.

    Attributes:
        image: index of the image in the batch.
        label: index of the label in the plans, starting at 0, or `NO_LABEL`.
        box: (2, 3) half-open, continuous voxel coordinates of the patch, zyx, or None.
        points: (k, 3) voxel indices in the patch, zyx.
        point_labels: (k,) 1 foreground, 0 background.
    """

    image: int = 0
    label: int = NO_LABEL
    box: np.ndarray | None = None
    points: np.ndarray | Sequence = ()
    point_labels: np.ndarray | Sequence = ()


@dataclass(frozen=True, kw_only=True)
class PromptBatch:
    """Queries as tensors.

    Attributes:
        image_index: (n,) index of each query's image in the batch.
        labels: (n,) label index, or `NO_LABEL`.
        boxes: (n, 2, 3) corners in voxels, zyx; zeros where `has_box` is False.
        has_box: (n,) bool.
        points: (n, k, 3) voxel indices, zyx.
        point_labels: (n, k) 1, 0, or `NO_POINT` for padding.
    """

    image_index: Tensor
    labels: Tensor
    boxes: Tensor
    has_box: Tensor
    points: Tensor
    point_labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, some: slice) -> PromptBatch:
        """Some of the queries."""
        return PromptBatch(**{f.name: getattr(self, f.name)[some] for f in fields(self)})

    def to(self, device: torch.device | str) -> PromptBatch:
        return PromptBatch(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})


def batch_queries(queries: Sequence[Query]) -> PromptBatch:
    """Pack queries into tensors; points are padded at the end to the longest list."""
    n, k = len(queries), max((len(q.points) for q in queries), default=0)
    boxes, has_box = np.zeros((n, 2, 3), np.float32), np.zeros(n, bool)
    points, point_labels = np.zeros((n, k, 3), np.float32), np.full((n, k), NO_POINT)
    for i, query in enumerate(queries):
        if query.box is not None:
            boxes[i], has_box[i] = query.box, True
        if len(query.points):
            points[i, : len(query.points)] = query.points
            point_labels[i, : len(query.points)] = query.point_labels
    return PromptBatch(
        image_index=torch.tensor([q.image for q in queries], dtype=torch.long),
        labels=torch.tensor([q.label for q in queries], dtype=torch.long),
        boxes=torch.from_numpy(boxes),
        has_box=torch.from_numpy(has_box),
        points=torch.from_numpy(points),
        point_labels=torch.from_numpy(point_labels).long(),
    )


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


class PromptEncoder(nn.Module):
    """Encodes each query as `3 + k` tokens and one map on the grid of the image embedding.

    The tokens are the label, the two corners of the box, and the k points; a learned "none"
    embedding stands for a label or box that a query does not have. The map holds for each grid
    cell the fraction of it inside the box. Coordinates are relative to the patch, each axis by its
    own length.

    Differs from SAM and SegVol: a label token in place of a text embedding (SegVol), the region
    map in place of a mask prompt, and "none" tokens for absent boxes.
    """

    def __init__(self, channels: int, label_count: int) -> None:
        super().__init__()
        self.positions = FourierPositions(channels)
        self.label_tokens = nn.Embedding(label_count + 1, channels)  # the last: no label
        self.corners = nn.Embedding(2, channels)
        self.no_box = nn.Embedding(2, channels)
        self.point_kinds = nn.Embedding(2, channels)  # background, foreground
        self.region = nn.Embedding(3, channels)  # outside the box, inside it, no box
        for embedding in (self.corners, self.no_box, self.point_kinds, self.region):
            nn.init.normal_(embedding.weight, std=0.1)

    def forward(
        self, prompts: PromptBatch, patch_size: Sequence[int], grid: Sequence[int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Embed prompts.

        Args:
            prompts: n queries.
            patch_size: voxels, zyx, of the patch that the coordinates refer to.
            grid: shape, zyx, of the image embedding.

        Returns:
            (n, 3 + k, channels) tokens, padded to the most points; (n, 3 + k) bool, False for
            the padding; and (n, channels, *grid) region maps.
        """
        size = prompts.boxes.new_tensor(list(patch_size))
        last = self.label_tokens.num_embeddings - 1
        label_index = prompts.labels.where(prompts.labels != NO_LABEL, last)
        corners = self.positions(prompts.boxes / size) + self.corners.weight
        corners = torch.where(prompts.has_box[:, None, None], corners, self.no_box.weight)
        tokens = [self.label_tokens(label_index)[:, None], corners]
        if prompts.points.shape[1]:
            located = self.positions((prompts.points + 0.5) / size)
            tokens.append(located + self.point_kinds(prompts.point_labels.clamp(min=0)))
        token_mask = F.pad(prompts.point_labels != NO_POINT, (3, 0), value=True)
        return torch.cat(tokens, dim=1), token_mask, self._regions(prompts, size, grid)

    def _regions(self, prompts: PromptBatch, size: Tensor, grid: Sequence[int]) -> Tensor:
        fraction = fraction_of_cells_in_boxes(prompts.boxes / size, grid)[:, None]
        outside, inside, none = (w[:, None, None, None] for w in self.region.weight)
        region = outside + fraction * (inside - outside)
        return torch.where(prompts.has_box[:, None, None, None, None], region, none)


def fraction_of_cells_in_boxes(boxes: Tensor, grid: Sequence[int]) -> Tensor:
    """Fraction of each grid cell that lies in a box.

    Args:
        boxes: (n, 2, 3) lower and upper corners in relative coordinates, zyx.
        grid: cells, zyx.

    Returns:
        (n, *grid) fractions of the cells' volumes in [0, 1].
    """
    fractions = []
    for axis, cells in enumerate(grid):
        lower = torch.arange(cells, device=boxes.device)
        from_, to = boxes[:, 0, axis, None] * cells, boxes[:, 1, axis, None] * cells
        overlap = torch.minimum(lower + 1, to) - torch.maximum(lower.to(boxes), from_)
        fractions.append(overlap.clamp(0, 1))
    z, y, x = fractions
    return z[:, :, None, None] * y[:, None, :, None] * x[:, None, None, :]
