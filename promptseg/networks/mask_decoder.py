"""Image and prompt embeddings to mask logits and predicted IoU."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from monai.networks.nets.vista3d import TwoWayTransformer
from torch import Tensor, nn

from promptseg.networks.blocks import ConvBlock


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

    Each query runs the transformer on the coarse grid. Its mask token gives one linear map for
    every resolution; the logits are the sum of these maps' responses, coarse to fine: on the
    coarse grid the query's own image embedding answers (where is what was asked for?), above it
    the shared feature pyramid (where exactly is the edge?). So another label or prompt costs one
    pass over the coarse grid and dot products, not another upscaling.

    Source:
        Kirillov et al. 2023, arXiv:2304.02643, Appendix A, "Lightweight mask decoder".
        Differs: upscaling shared between queries, one mask a query (labels are not ambiguous),
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
        self.transformer.layers[0].skip_first_layer_pe = False
        self.pyramid = FeaturePyramid(channels, feature_channels)
        answering = [channels, *feature_channels]
        self.responses = nn.ModuleList(_mlp(channels, channels, c + 1) for c in answering)
        self.iou_head = _mlp(channels, channels, 1)

    def forward(
        self,
        embedding: Tensor,
        pyramid: Sequence[Tensor],
        positions: Tensor,
        tokens: Tensor,
        token_counts: Tensor,
        regions: Tensor,
        image_index: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Decode n queries.

        Args:
            embedding: (b, c, z', y', x') image embeddings.
            pyramid: shared maps (b, c_l, z_l, y_l, x_l), finest first, from `self.pyramid`.
            positions: (c, z', y', x') encodings of the grid.
            tokens: (n, t, c) prompt tokens, padded to the longest query.
            token_counts: (n,) how many of them are a query's own, the first ones.
            regions: (n, c, z', y', x') region maps.
            image_index: (n,) image of each query.

        Returns:
            (n, z, y, x) mask logits at the finest map's resolution and (n,) predicted IoU logits.
        """
        n = len(tokens)
        own = torch.stack([self.iou_token, self.mask_token]).expand(n, 2, -1)
        source = embedding.index_select(0, image_index) + regions
        places = positions.expand_as(source)
        tokens, token_counts = torch.cat([own, tokens], dim=1), token_counts + own.shape[1]
        iou_token, mask_token, keys = self._attend(source, places, tokens, token_counts)
        answers = keys.transpose(1, 2).unflatten(2, source.shape[2:])
        logits = _respond(self.responses[0](mask_token), answers)
        for response, shared in zip(self.responses[:0:-1], reversed(pyramid), strict=True):
            up = F.interpolate(
                logits[:, None], shared.shape[2:], mode="trilinear", align_corners=False
            )
            logits = up[:, 0] + _respond(response(mask_token), shared, image_index)
        return logits, self.iou_head(iou_token)[:, 0]

    def _attend(
        self, source: Tensor, places: Tensor, tokens: Tensor, token_counts: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Run the transformer, on queries with equally many tokens at a time.

        Padding would be attended to as if it were a prompt, and an answer would depend on how
        many points the other queries of the batch have.

        Returns:
            (n, c) IoU tokens, (n, c) mask tokens and (n, cells, c) image embeddings.
        """
        order, hidden, keys = [], [], []
        for count in token_counts.unique().tolist():
            mine = (token_counts == count).nonzero()[:, 0]
            of_tokens, of_image = self.transformer(source[mine], places[mine], tokens[mine, :count])
            order.append(mine)
            hidden.append(of_tokens[:, :2])
            keys.append(of_image)
        back = torch.cat(order).argsort()
        iou_token, mask_token = torch.cat(hidden)[back].unbind(dim=1)
        return iou_token, mask_token, torch.cat(keys)[back]


def _respond(weights: Tensor, maps: Tensor, image_index: Tensor | None = None) -> Tensor:
    """Weights (n, c + 1), the last a bias, applied to maps: (n, z, y, x).

    `maps` is (n, c, ...) without `image_index`, else (b, c, ...) shared by the queries of an image.
    """
    linear, bias = weights[:, :-1], weights[:, -1]
    if image_index is None:
        answer = torch.einsum("nc,nczyx->nzyx", linear, maps)
    else:
        answer = maps.new_zeros(len(weights), *maps.shape[2:])
        for image in range(len(maps)):
            mine = (image_index == image).nonzero()[:, 0]
            flat = linear[mine].to(maps.dtype) @ maps[image].flatten(1)
            answer = answer.index_copy(0, mine, flat.unflatten(1, maps.shape[2:]))
    return answer / linear.shape[1] ** 0.5 + bias[:, None, None, None]


def _mlp(channels_in: int, hidden: int, channels_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(channels_in, hidden),
        nn.ReLU(),
        nn.Linear(hidden, hidden),
        nn.ReLU(),
        nn.Linear(hidden, channels_out),
    )
