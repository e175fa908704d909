"""Image features and prompts to mask logits: what names say, and what prompts change about it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from promptseg.networks.blocks import ChannelNorm, ConvBlock, convolution, kernel_size
from promptseg.networks.prompt_encoder import PromptBatch

SURE = 8.0  # largest logit that a name or a mask to correct may begin with
COARSE_WIDTHS = (1.5, 6.0)  # of clicks on the head's map, in voxels of the shortest side
FINE_WIDTHS = (1.0, 3.0)  # of clicks on the voxels themselves
PROMPT_MAPS = 2 * len(COARSE_WIDTHS) + 5  # and box, mask before, name, likeness to clicks (two)
VOXEL_MAPS = 2 * len(FINE_WIDTHS) + 2  # and mask before, name


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


class NameHead(nn.Module):
    """What the labels' names say: for all labels at once, one class against the others."""

    def __init__(self, channels: int, label_count: int) -> None:
        super().__init__()
        self.classes = nn.Conv3d(channels, 1 + label_count, 1)

    def forward(self, features: Tensor) -> Tensor:
        """(b, c, z', y', x') to (b, 1 + labels, z', y', x') log-probabilities, background first."""
        return self.classes(features).float().log_softmax(dim=1)


def log_odds(probabilities: Tensor) -> Tensor:
    """Logits of probabilities, between -`SURE` and `SURE`."""
    return torch.logit(probabilities.float(), eps=1 / (1 + math.exp(SURE)))


def log_odds_of_log(log_probabilities: Tensor) -> Tensor:
    """The same of their logarithms, exact also where a probability is nearly 1."""
    against = torch.log(-torch.expm1(log_probabilities.float().clamp(max=-1e-6)))
    return (log_probabilities - against).clamp(-SURE, SURE)


class NameMatch(nn.Module):
    """Which label a prompt without a name means: it lies where the label's mask would be.

    Each label is rated alike by how its probabilities lie about the box or the mask before, and
    about the clicks; what no label explains is an object without a name. So a box says at least
    what the name would, and a new object does not become its neighbour.
    """

    STATISTICS = 9

    def __init__(self) -> None:
        super().__init__()
        self.rate = nn.Sequential(
            nn.Linear(self.STATISTICS, 16), nn.LeakyReLU(0.01), nn.Linear(16, 1)
        )
        self.no_label = nn.Parameter(torch.zeros(()))

    def forward(self, names: Tensor, there: Tensor, kinds: Tensor, clicks: Tensor) -> Tensor:
        """Weights of the labels for n queries.

        Args:
            names: (n, labels, z', y', x') probabilities.
            there: (n, z', y', x') fractions inside the mask before, or else the box.
            kinds: (n, 2) 0 or 1, whether there is a box, and a mask before.
            clicks: (n, 2, z', y', x') maps of foreground and background clicks.

        Returns:
            (n, labels) weights; what they lack to 1 is the weight of no label.
        """
        flat, inside, weights = names.flatten(2), there.flatten(1), clicks.flatten(2)
        total, size, clicked = flat.sum(2), inside.sum(1, keepdim=True), weights.sum(2)
        within = torch.einsum("nlv,nv->nl", flat, inside)
        at_clicks = torch.einsum("nlv,ncv->nlc", flat, weights) / clicked.clamp(min=1e-3)[:, None]
        overlaps = [within / (total + 1), within / (size + 1), 2 * within / (total + size + 1)]
        flags = torch.cat([kinds.float(), (clicked > 0.01).float()], dim=1)
        flags = flags[:, None].expand(-1, names.shape[1], -1)
        rated = self.rate(torch.cat([torch.stack(overlaps, 2), at_clicks, flags], dim=2))[:, :, 0]
        nothing = self.no_label.expand(rated.shape[0], 1)
        return torch.cat([nothing, rated], dim=1).softmax(dim=1)[:, 1:]


class PromptHead(nn.Module):
    """What prompts change: a shallow U on a fine map, and the clicks on the voxels themselves.

    Everything is local but the likeness maps: normalization is over channels, so that a crop
    around the prompts gives the same answer as the whole patch. The last convolution starts at
    zero: a prompt changes nothing before training has shown what it should.

    Args:
        channels_in: of the shared features.
        label_count: number of labels.
        stride: voxels of one element of the map, zyx.
        spacing: mm of a voxel, zyx.
    """

    CHANNELS, ANSWERS = 16, 8
    REACH = 8  # elements; what lies further away changes nothing

    def __init__(
        self,
        channels_in: int,
        label_count: int,
        stride: Sequence[int],
        spacing: Sequence[float],
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
        self.maps = convolution(PROMPT_MAPS, c, (1, 1, 1), fine)
        self.normalization = ChannelNorm(c)
        self.first = _block(c, c, (1, 1, 1), fine)
        self.down = nn.Sequential(
            _block(c, 2 * c, self.halved, fine), _block(2 * c, 2 * c, (1, 1, 1), coarse)
        )
        self.up = nn.Conv3d(2 * c, c, 1)
        self.second = _block(c, c, (1, 1, 1), fine)
        self.answer = nn.Conv3d(c, self.ANSWERS + 1, 1)
        self.on_voxels = nn.Sequential(
            nn.Conv3d(self.ANSWERS + VOXEL_MAPS, 16, 1),
            nn.LeakyReLU(0.01),
            nn.Conv3d(16, 1, 1),
        )
        for last in (self.answer, self.on_voxels[-1]):
            nn.init.zeros_(last.bias)
        nn.init.zeros_(self.on_voxels[-1].weight)
        nn.init.zeros_(self.answer.weight[-1])

    def forward(self, features: Tensor, maps: Tensor, fine: Tensor, labels: Tensor) -> Tensor:
        """What to add to the logits of n queries.

        Args:
            features: (n, c, z', y', x') of `project`.
            maps: (n, PROMPT_MAPS, z', y', x').
            fine: (n, VOXEL_MAPS, z, y, x) maps on the voxels.
            labels: (n,) label index, or a negative number.

        Returns:
            (n, z, y, x) logits.
        """
        last = self.label_vectors.num_embeddings - 1
        vectors = self.label_vectors(labels.where(labels >= 0, last))
        scale, shift, scale2, shift2 = self.film(vectors)[..., None, None, None].chunk(4, dim=1)
        hidden = self.normalization(features + self.maps(maps))
        hidden = self.first(F.leaky_relu(hidden * (1 + scale) + shift, 0.01))
        coarse = F.interpolate(self.up(self.down(hidden)), hidden.shape[2:], mode="nearest")
        hidden = self.second(hidden * (1 + scale2) + shift2 + coarse)
        answer = resized(self.answer(hidden), fine.shape[2:])
        exact = self.on_voxels(torch.cat([answer[:, :-1], fine.to(answer.dtype)], dim=1))
        return (answer[:, -1] + exact[:, 0]).float()


class QualityHead(nn.Module):
    """The IoU to expect of a mask: from how sure its own logits are, and what it covers.

    The statistics are those that SAM calls stability, the mask at a higher threshold over that at
    a lower one, at three distances; the mean probability inside; and the size. A mask with a
    blurred border, or in an image unlike any before, has low ones.

    Source:
        Kirillov et al. 2023, arXiv:2304.02643, section 5, "stability score".
    """

    DISTANCES = (0.5, 1.0, 2.0)  # of the thresholds from 0

    def __init__(self, channels: int) -> None:
        super().__init__()
        statistics = len(self.DISTANCES) + 4
        self.features = nn.LayerNorm(channels)
        self.rate = nn.Sequential(
            nn.Linear(channels + statistics, 32), nn.LeakyReLU(0.01), nn.Linear(32, 1)
        )

    def forward(self, logits: Tensor, features: Tensor, prompts: PromptBatch) -> Tensor:
        """(n, z, y, x) logits and (n or 1, c, z', y', x') features to (n,) predicted IoU logits."""
        mask = (logits > 0).float()
        small = resized(mask[:, None], features.shape[2:]).flatten(2)
        logits, mask = logits.float().flatten(1), mask.flatten(1)
        size = mask.sum(1)
        stable = [
            log_odds(((logits > d).sum(1) + 1) / ((logits > -d).sum(1) + 1)) for d in self.DISTANCES
        ]
        mean = log_odds(((logits.sigmoid() * mask).sum(1) + 0.5) / (size + 1))
        vector = [*stable, mean, torch.log1p(size) / 8]
        vector += [prompts.has_box.float(), prompts.label_given.float()]
        flat = features.float().flatten(2)
        if flat.shape[0] == 1:  # all queries are about one image, whose features are not copied
            covered = small[:, 0] @ flat[0].t()
        else:
            covered = torch.einsum("ncv,nuv->nc", flat, small)
        covered = self.features(covered / (small.sum(2) + 1))
        return self.rate(torch.cat([torch.stack(vector, dim=1), covered], dim=1))[:, 0].float()


def _block(
    channels_in: int, channels_out: int, stride: Sequence[int], kernel: Sequence[int]
) -> nn.Sequential:
    return nn.Sequential(
        convolution(channels_in, channels_out, stride, kernel),
        ChannelNorm(channels_out),
        nn.LeakyReLU(0.01),
    )


def resized(maps: Tensor, shape: Sequence[int]) -> Tensor:
    """(n, c, ...) maps interpolated linearly to another shape over the same field of view."""
    if tuple(maps.shape[2:]) == tuple(shape):
        return maps
    return F.interpolate(maps.float(), tuple(shape), mode="trilinear", align_corners=False)
