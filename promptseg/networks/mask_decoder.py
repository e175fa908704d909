"""Image and prompt embeddings to mask logits and predicted IoU."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from promptseg.networks.blocks import ConvBlock
from promptseg.networks.two_way import TwoWayTransformer


class FeaturePyramid(nn.Module):
    """The image embedding brought to full resolution, once for all queries of an image.

    From coarse to fine: upsample, add the encoder's features of that resolution, convolve.
    """

    def __init__(self, embedding_channels: int, feature_channels: Sequence[int]) -> None:
        super().__init__()
        coarse_to_fine = list(feature_channels)[::-1]
        incoming = [embedding_channels, *coarse_to_fine][:-1]
        self.reduce = nn.ModuleList(
            nn.Conv3d(i, c, 1) for i, c in zip(incoming, coarse_to_fine, strict=True)
        )
        self.blocks = nn.ModuleList(ConvBlock(c, c) for c in coarse_to_fine)

    def forward(self, embedding: Tensor, features: Sequence[Tensor]) -> list[Tensor]:
        """Embedding (b, c, z', y', x') and features, finest first, to maps, finest first."""
        maps, current = [], embedding
        levels = zip(self.reduce, self.blocks, reversed(features), strict=True)
        for reduce, block, feature in levels:
            reduced = reduce(current)  # before upsampling: the same result for less work
            up = F.interpolate(reduced, feature.shape[2:], mode="trilinear", align_corners=False)
            current = block(up + feature)
            maps.append(current)
        return maps[::-1]


class MaskDecoder(nn.Module):
    """SAM's two-way transformer, with the upscaling shared by all queries.

    Each query runs the transformer on the coarse grid. Its mask token gives one linear map per
    resolution; the logits are the sum of these maps' responses, coarse to fine: those of the
    query's own image embedding on the coarse grid (where is the object?), and of the shared
    feature pyramid above it (where exactly is its edge?). So another label or prompt costs one
    pass over the coarse grid and dot products, not another upscaling.

    Source:
        Kirillov et al. 2023, arXiv:2304.02643, Appendix A, "Lightweight mask decoder".
        Differs: upscaling shared between queries, one mask per query (labels are not ambiguous),
        residual connection in the first self-attention, high-resolution features as in SAM 2.
    """

    def __init__(
        self,
        channels: int,
        feature_channels: Sequence[int],
        *,
        heads: int = 8,
        mlp_channels: int = 2048,
        depth: int = 2,
    ) -> None:
        super().__init__()
        self.iou_token = nn.Parameter(torch.randn(channels) * 0.1)
        self.mask_token = nn.Parameter(torch.randn(channels) * 0.1)
        self.transformer = TwoWayTransformer(depth, channels, heads, mlp_channels)
        self.pyramid = FeaturePyramid(channels, feature_channels)
        answering = [channels, *feature_channels]
        self.responses = nn.ModuleList(mlp(channels, channels, c + 1) for c in answering)
        self.iou_head = mlp(channels, channels, 1)

    def forward(
        self,
        embedding: Tensor,
        pyramid: Sequence[Tensor],
        image_pe: Tensor,
        tokens: Tensor,
        token_mask: Tensor,
        regions: Tensor,
        image_index: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Decode n queries.

        Args:
            embedding: (b, c, z', y', x') image embeddings.
            pyramid: shared maps (b, c_l, z_l, y_l, x_l), finest first, from `self.pyramid`.
            image_pe: (c, z', y', x') position encodings of the grid.
            tokens: (n, t, c) prompt tokens, padded to the longest query.
            token_mask: (n, t) bool, False for the padding.
            regions: (n, c, z', y', x') region maps.
            image_index: (n,) image of each query.

        Returns:
            (n, z, y, x) mask logits at the finest map's resolution and (n,) predicted IoU logits.
        """
        n = tokens.shape[0]  # not len, which torch.export would take for a constant
        own = torch.stack([self.iou_token, self.mask_token]).expand(n, 2, -1)
        image = embedding.index_select(0, image_index) + regions
        tokens, token_mask = torch.cat([own, tokens], dim=1), F.pad(token_mask, (2, 0), value=True)
        hidden, image_tokens = self.transformer(image, image_pe, tokens, token_mask)
        iou_token, mask_token = hidden[:, 0], hidden[:, 1]
        answers = image_tokens.transpose(1, 2).unflatten(2, image.shape[2:])
        coarse, *finer = [response(mask_token) for response in self.responses]
        # interpolation keeps constants, so all biases are added where it is cheapest
        bias = sum(weights[:, -1].float() for weights in (coarse, *finer))
        logits = _respond(coarse, answers) + bias[:, None, None, None]
        for weights, shared in zip(reversed(finer), reversed(pyramid), strict=True):
            up = F.interpolate(
                logits[:, None], shared.shape[2:], mode="trilinear", align_corners=False
            )
            # in place: at the finest resolutions a query costs mainly memory
            logits = up[:, 0].add_(_respond(weights, shared, image_index))
        return logits, self.iou_head(iou_token)[:, 0].float()


def _respond(weights: Tensor, maps: Tensor, image_index: Tensor | None = None) -> Tensor:
    """(n, c + 1) weights, except the last (a bias), applied to maps: (n, z, y, x) float32.

    `maps` is (n, c, ...) without `image_index`, else (b, c, ...) shared by the queries of an image.
    """
    linear = weights[:, :-1]
    linear = linear / linear.shape[1] ** 0.5
    if image_index is None:
        answer = torch.einsum("nc,nczyx->nzyx", linear, maps)
    elif len(maps) == 1:
        answer = torch.einsum("nc,czyx->nzyx", linear, maps[0])
    else:  # image by image: a gathered copy of the maps for every query would be large
        answer = linear.new_zeros(len(weights), *maps.shape[2:])
        for image in range(len(maps)):
            queries = (image_index == image).nonzero()[:, 0]
            part = torch.einsum("nc,czyx->nzyx", linear[queries], maps[image])
            answer = answer.index_copy(0, queries, part.to(answer.dtype))
    return answer.float()


def mlp(channels_in: int, hidden: int, channels_out: int) -> nn.Sequential:
    """Three linear maps with ReLUs in between."""
    return nn.Sequential(
        nn.Linear(channels_in, hidden),
        nn.ReLU(),
        nn.Linear(hidden, hidden),
        nn.ReLU(),
        nn.Linear(hidden, channels_out),
    )
