"""Image features and prompts to logits: what prompts change, and how good the mask will be."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from promptseg.networks.blocks import ChannelNorm, ConvBlock, convolution, kernel_size
from promptseg.networks.head_maps import COARSE_MAPS, FINE_MAPS, LOGITS, PUSHES
from promptseg.networks.names import log_odds
from promptseg.networks.prompt_encoder import PromptBatch


class FeaturePyramid(nn.Module):
    """The image embedding brought to the finest map's resolution, once for all queries.

    From coarse to fine: fewer channels, nearest neighbours, add the encoder's map, convolve.
    """

    def __init__(
        self,
        embedding_channels: int,
        feature_channels: Sequence[int],
        kernels: Sequence[Sequence[int]],
    ) -> None:
        super().__init__()
        coarse_to_fine = list(feature_channels)[::-1]
        incoming = [embedding_channels, *coarse_to_fine][:-1]
        self.reduce = nn.ModuleList(
            nn.Conv3d(i, c, 1) for i, c in zip(incoming, coarse_to_fine, strict=True)
        )
        self.blocks = nn.ModuleList(
            ConvBlock(c, c, kernel=kernel)
            for c, kernel in zip(coarse_to_fine, reversed(list(kernels)), strict=True)
        )

    def forward(self, embedding: Tensor, features: Sequence[Tensor]) -> list[Tensor]:
        """Embedding (b, c, z', y', x') and features, finest first, to maps, finest first."""
        maps, current = [embedding], embedding
        levels = zip(self.reduce, self.blocks, reversed(features), strict=True)
        for reduce, block, feature in levels:
            reduced = reduce(current)  # before upsampling: the same result for less work
            up = F.interpolate(reduced, feature.shape[2:], mode="nearest")
            current = block(up + feature)
            maps.append(current)
        return maps[::-1]


class PromptHead(nn.Module):
    """What prompts change: a shallow U on a fine map, and the clicks on the voxels themselves.

    Everything is local but the likeness maps: normalization is over channels, so that a crop
    around the prompts gives the same answer as the whole patch. The last convolutions start at
    zero: before training has shown what a prompt should change, clicks push the logits about them
    (`click_pushes`), and any other prompt changes nothing.

    Args:
        channels_in: of the shared features.
        label_count: number of labels.
        stride: voxels of one element of the map, zyx.
        spacing: mm of a voxel, zyx.
        image_channels: of the image.
    """

    CHANNELS, ANSWERS, ON_VOXELS = 16, 4, 8

    def __init__(
        self,
        channels_in: int,
        label_count: int,
        stride: Sequence[int],
        spacing: Sequence[float],
        image_channels: int,
    ) -> None:
        super().__init__()
        c = self.CHANNELS
        size = [s * f for s, f in zip(stride, spacing, strict=True)]
        self.halved = tuple(2 if s < 2 * min(size) else 1 for s in size)
        fine = kernel_size(stride, spacing)
        coarse = kernel_size([s * h for s, h in zip(stride, self.halved, strict=True)], spacing)
        self.label_vectors = nn.Embedding(label_count + 1, 32)  # the last: no label
        self.film = nn.Linear(32, 4 * c)
        nn.init.zeros_(self.film.weight)
        nn.init.zeros_(self.film.bias)
        self.project = nn.Conv3d(channels_in, c, 1)
        self.maps = convolution(COARSE_MAPS + image_channels, c, (1, 1, 1), fine)
        self.normalization = ChannelNorm(c)
        self.first = _block(c, c, (1, 1, 1), fine)
        self.down = nn.Sequential(
            _block(c, 2 * c, self.halved, fine), _block(2 * c, 2 * c, (1, 1, 1), coarse)
        )
        self.up = nn.Conv3d(2 * c, c, 1)
        self.second = _block(c, c, (1, 1, 1), fine)
        self.answer = nn.ConvTranspose3d(c, self.ANSWERS + 1, tuple(stride), tuple(stride))
        self.on_voxels = nn.Sequential(
            nn.Conv3d(self.ANSWERS + FINE_MAPS + image_channels, self.ON_VOXELS, 1),
            nn.LeakyReLU(0.01),
            nn.Conv3d(self.ON_VOXELS, 1, 1),
        )
        self.push_weights = nn.Parameter(torch.full((PUSHES,), 1 / PUSHES))
        for last in (self.answer, self.on_voxels[-1]):
            nn.init.zeros_(last.bias)
        nn.init.zeros_(self.on_voxels[-1].weight)
        nn.init.zeros_(self.answer.weight[:, -1])

    def forward(self, features: Tensor, maps: Tensor, fine: Tensor, meant: Tensor) -> Tensor:
        """What to add to the logits of n queries.

        Args:
            features: (n, c, z', y', x') of `project`.
            maps, fine: of `head_maps`.
            meant: (n, labels) weights of the labels; what they lack to 1 is that of no label.

        Returns:
            (n, z, y, x) logits.
        """
        weights = torch.cat([meant, 1 - meant.sum(dim=1, keepdim=True)], dim=1)
        vectors = weights @ self.label_vectors.weight
        scale, shift, scale2, shift2 = self.film(vectors)[..., None, None, None].chunk(4, dim=1)
        hidden = self.normalization(features + self.maps(maps))
        hidden = self.first(F.leaky_relu(hidden * (1 + scale) + shift, 0.01))
        coarse = F.interpolate(self.up(self.down(hidden)), hidden.shape[2:], mode="nearest")
        hidden = self.second(hidden * (1 + scale2) + shift2 + coarse)
        answer = self.answer(hidden)
        exact = self.on_voxels(torch.cat([answer[:, :-1], fine.to(answer.dtype)], dim=1))
        weights = self.push_weights[:, None, None, None]
        pushed = (weights * fine[:, :PUSHES].float() * LOGITS).sum(dim=1)
        return (answer[:, -1] + exact[:, 0]).float() + pushed


class QualityHead(nn.Module):
    """The IoU to expect of a mask: from how sure its own logits are, and what it covers.

    It begins at the IoU that the logits promise if they are right, the sum of the probabilities in
    the mask over that of the union, and learns how far they are. It also sees what SAM calls
    stability, the mask at a higher threshold over that at a lower one, at three distances; the mean
    probability inside; the size; and the features inside and where the logits are unsure. A mask
    with a blurred border, or in an image unlike any before, has low ones.

    Source:
        Kirillov et al. 2023, arXiv:2304.02643, section 5, "stability score".
    """

    DISTANCES = (0.5, 1.0, 2.0)  # of the thresholds from 0
    UNLIKELY = 3.0  # logits below -3 promise nothing: there are many, and they would add up

    def __init__(self, channels: int) -> None:
        super().__init__()
        statistics = len(self.DISTANCES) + 5
        self.features = nn.LayerNorm(channels)
        self.rate = nn.Sequential(
            nn.Linear(2 * channels + statistics, 32), nn.LeakyReLU(0.01), nn.Linear(32, 1)
        )

    def forward(
        self, logits: Tensor, features: Tensor, prompts: PromptBatch, voxels: int
    ) -> Tensor:
        """(n,) predicted IoU logits.

        Args:
            logits: (n, z', y', x') of n masks, on the elements of the features.
            features: (n or 1, c, z', y', x').
            prompts: the queries.
            voxels: in one element.
        """
        logits = logits.float().flatten(1)
        mask = (logits > 0).float()

        def above(threshold: float) -> Tensor:
            return (logits > threshold).float().sum(1) * voxels

        size = above(0)
        stable = [log_odds((above(d) + 1) / (above(-d) + 1)) for d in self.DISTANCES]
        chances = torch.where(logits > -self.UNLIKELY, logits.sigmoid(), 0.0)
        inside, all_of_it = ((c.sum(1) * voxels + 0.5) for c in (chances * mask, chances))
        mean = log_odds(inside / (size + 1))
        expected = log_odds(inside / (size + all_of_it - inside + 1))
        vector = [*stable, mean, expected, torch.log1p(size) / 8]
        vector += [prompts.has_box.float(), prompts.label_given.float()]
        unsure = chances * (1 - chances)
        covered = [self.features(_mean_features(features, weights)) for weights in (mask, unsure)]
        corrected = self.rate(torch.cat([torch.stack(vector, dim=1), *covered], dim=1))[:, 0]
        return expected + corrected.float()


def _mean_features(features: Tensor, weights: Tensor) -> Tensor:
    """(n, c) weighted means of (n or 1, c, z, y, x) features with weights (n, voxels)."""
    flat = features.float().flatten(2)
    if flat.shape[0] == 1:  # all queries are about one image, whose features are not copied
        summed = weights @ flat[0].t()
    else:
        summed = torch.einsum("ncv,nv->nc", flat, weights)
    return summed / (weights.sum(1, keepdim=True) + 1)


def _block(
    channels_in: int, channels_out: int, stride: Sequence[int], kernel: Sequence[int]
) -> nn.Sequential:
    return nn.Sequential(
        convolution(channels_in, channels_out, stride, kernel),
        ChannelNorm(channels_out),
        nn.LeakyReLU(0.01),
    )
