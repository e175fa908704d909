"""The promptable network: encode an image once, then decode any number of prompts."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from promptseg.networks.blocks import AveragePool, kernel_size
from promptseg.networks.contrast import standardized
from promptseg.networks.encoders import ENCODERS, ImageEncoder
from promptseg.networks.encoding import Encoding, of_queries
from promptseg.networks.grid import Grid, resized, resized_part
from promptseg.networks.head_maps import COARSE_WIDTHS, LOGITS, head_maps, pushes_of
from promptseg.networks.likeness import Likeness
from promptseg.networks.mask_decoder import FeaturePyramid, PromptHead, QualityHead
from promptseg.networks.names import (
    SURE,
    NameHead,
    NameMatch,
    after_clicks,
    agreeing,
    decided,
    is_mask_of,
    log_odds,
    log_odds_of_log,
)
from promptseg.networks.prompt_encoder import NEW_OBJECT, PromptBatch, box_maps, click_maps
from promptseg.networks.regions import allowed, elsewhere, region_of
from promptseg.plans import Plans
from promptseg.presets import preset_of

NOTHING = 0.02  # probability of a voxel before anything is known about an object without a name


class PromptableNetwork(nn.Module):
    """Image encoder, feature pyramid and the heads that answer queries; always returns logits.

    Names are answered for all labels at once. Any other prompt starts from what the names say, and
    adds what its clicks push and the prompt head answers in the region that it concerns; elsewhere
    a mask to correct stays.
    """

    def __init__(self, image_encoder: ImageEncoder, classes: tuple[tuple[int, ...], ...]) -> None:
        super().__init__()
        strides, spacing = image_encoder.strides, image_encoder.spacing
        channels = [*image_encoder.feature_channels, image_encoder.channels]
        self.stride = strides[0]
        self.spacing = tuple(s / min(spacing) for s in spacing)
        self.image_encoder = image_encoder
        self.pyramid = FeaturePyramid(
            channels[-1], channels[:-1], [kernel_size(s, spacing) for s in strides[:-1]]
        )
        self.name_head = NameHead(channels[0], classes)
        self.name_match = NameMatch()
        # where the finest map is of voxels, the head needs half of that: its end is on voxels
        self.level = 1 if max(self.stride) == 1 and len(strides) > 1 else 0
        self.prompt_stride = strides[self.level]
        width = channels[self.level]
        image_channels = image_encoder.channels_in
        self.prompt_head = PromptHead(
            width, len(classes), self.prompt_stride, spacing, image_channels
        )
        self.likeness = Likeness(image_channels)
        self.pooled_image = AveragePool(self.prompt_stride)
        steps = zip(self.prompt_stride, self.stride, strict=True)
        self.pooled = AveragePool([coarse // fine for coarse, fine in steps])
        self.quality_head = QualityHead(channels[0])

    def encode(self, image: Tensor) -> Encoding:
        """Encode (b, c, z, y, x) images with intensities in [0, 255]."""
        encoded = self.image_encoder(image.float() / 127.5 - 1.0)
        maps = self.pyramid(encoded.embedding, encoded.features)
        values, looks = standardized(image), standardized(self.pooled(maps[0]))
        return Encoding(
            patch_size=tuple(image.shape[2:]),
            features=maps[0],
            names=self.name_head(maps[0]),
            projected=self.prompt_head.project(maps[self.level]),
            values=values,
            compared=torch.cat([looks, self.pooled_image(values)], dim=1),
        )

    def decode(
        self, encoding: Encoding, prompts: PromptBatch, *, whole: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Decode n queries about encoded images.

        Args:
            encoding: of the images.
            prompts: n queries.
            whole: answer prompts in the whole patch, all queries at once, in place of one by one
                in their regions; for graphs, in which no shape may depend on values.

        Returns:
            (n, z, y, x) mask logits and (n,) predicted IoU logits.
        """
        opinions, meant, has_previous = self._opinions(encoding, prompts, whole=whole)
        prompts = replace(prompts, has_previous=has_previous)
        prompted = prompts.is_prompted
        if whole:
            changed = self._changed(encoding, prompts, opinions, meant, None)
            named = resized(opinions[:, None], encoding.patch_size)[:, 0]
            logits = torch.where(prompted[:, None, None, None], changed, named)
            features = of_queries(encoding.features, prompts)
            return logits, self._quality(logits, features, prompts)
        images, answers = encoding.of_each_image(), []
        for index, is_prompted in enumerate(prompted.tolist()):
            one, image = slice(index, index + 1), images[int(prompts.image_index[index])]
            query, opinion = prompts.alone(index), opinions[one]
            if is_prompted:
                region = region_of(
                    query, opinion, self.stride, self._whole(image), self.prompt_head.halved
                )
                part = self._changed(image, query, opinion, meant[one], region)
                logits = elsewhere(query, opinion, self._voxels(image))
                logits[(slice(None), *region.at((1, 1, 1)).slices)] = part
            else:
                logits = resized(opinion[:, None], image.patch_size)[:, 0]
            answers.append((logits, self._quality(logits, image.features, query)))
        logits, iou = zip(*answers, strict=True)
        return torch.cat(logits), torch.cat(iou)

    def forward(self, image: Tensor, prompts: PromptBatch) -> tuple[Tensor, Tensor]:
        """`decode(encode(image), prompts)`."""
        return self.decode(self.encode(image), prompts)

    def _whole(self, encoding: Encoding) -> Grid:
        """The elements of the prompt head's map."""
        shape = tuple(encoding.projected.shape[2:])
        return Grid(shape=shape, stride=tuple(self.prompt_stride), spacing=self.spacing)

    def _named(self, encoding: Encoding) -> Grid:
        """The elements of the names' maps."""
        shape = tuple(encoding.names.shape[2:])
        return Grid(shape=shape, stride=tuple(self.stride), spacing=self.spacing)

    def _voxels(self, encoding: Encoding) -> Grid:
        """The voxels of the patch."""
        return Grid(shape=encoding.patch_size, stride=(1, 1, 1), spacing=self.spacing)

    def _opinions(
        self, encoding: Encoding, prompts: PromptBatch, *, whole: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What names say about queries: those of their labels, or of the labels that are meant.

        Clicks may rule out what a box seemed to mean; then a mask of that is not one to correct.

        Returns:
            (n, z', y', x') logits, (n, labels) weights of the labels, and (n,) whether there is a
            mask to correct.
        """
        names, labels = self.name_head.of_labels(encoding.names), prompts.labels.clamp(min=0)
        opinions = log_odds_of_log(names[prompts.image_index, labels])
        meant = F.one_hot(labels, names.shape[1]).to(opinions)
        if not whole and bool(prompts.label_given.all()):
            return opinions, meant, prompts.has_previous
        unnamed = slice(None) if whole else ~prompts.label_given
        some = prompts[unnamed]
        probabilities = names[some.image_index].exp()
        first = self.meant_labels(encoding, some) * (some.labels != NEW_OBJECT)[:, None]
        seemed, certain, grid = decided(first), probabilities.detach(), self._named(encoding)
        weights = decided(after_clicks(first, agreeing(certain, some, grid)))
        has_previous = some.has_previous
        if some.previous is not None:
            before = resized(some.previous[:, None].float().sigmoid(), grid.shape)[:, 0]
            ruled_out = (seemed.sum(1) > 0.5) & (weights.sum(1) < 0.5)
            wrong = ruled_out & is_mask_of(before, certain, seemed)
            has_previous = has_previous & ~(wrong & some.has_box & ~some.label_given)
        mixed = torch.einsum("nl,nlzyx->nzyx", weights, probabilities)
        mixed = log_odds(mixed + (1 - weights.sum(1))[:, None, None, None] * NOTHING)
        if whole:
            given = prompts.label_given[:, None]
            opinions = torch.where(given[:, :, None, None], opinions, mixed)
            return opinions, torch.where(given, meant, weights), has_previous
        places = (unnamed.nonzero()[:, 0],)
        return (
            opinions.index_put(places, mixed),
            meant.index_put(places, weights.to(meant)),
            prompts.has_previous.index_put(places, has_previous),
        )

    def meant_labels(self, encoding: Encoding, prompts: PromptBatch) -> Tensor:
        """(n, labels) weights of the labels that prompts without a name may mean.

        What they lack to 1 is the weight of an object that is none of the labels. The first prompts
        tell. Clicks that correct a mask say where that is wrong, and not that another label was
        meant: a click where the names err would else replace a whole mask by the neighbour's. What
        they rule out is for `agreeing`.
        """
        grid, has_box, has_previous = self._named(encoding), prompts.has_box, prompts.has_previous
        is_mask = has_previous & ~has_box  # what a mask is of; a box was there before it
        there = box_maps(prompts.boxes, grid) * has_box[:, None, None, None]
        if prompts.previous is not None:
            before = resized(prompts.previous[:, None].float().sigmoid(), grid.shape)[:, 0]
            there = torch.where(is_mask[:, None, None, None], before, there)
        clicks = click_maps(prompts.points, prompts.point_labels, grid, COARSE_WIDTHS[:1])
        if prompts.regions is not None:
            drawn = resized(prompts.regions[:, None].clamp(min=0), grid.shape)
            clicks = torch.cat([torch.maximum(clicks[:, :1], drawn), clicks[:, 1:]], dim=1)
        clicks = clicks * ~has_previous[:, None, None, None, None]
        kinds = torch.stack([has_box, is_mask], dim=1)
        names = self.name_head.of_labels(encoding.names.detach()).exp()
        return self.name_match(of_queries(names, prompts), there, kinds, clicks)

    def _changed(
        self,
        encoding: Encoding,
        prompts: PromptBatch,
        opinions: Tensor,
        meant: Tensor,
        region: Grid | None,
    ) -> Tensor:
        """(n, z, y, x) logits of prompted queries in one region, None for the whole patch.

        Args:
            encoding: of the images.
            prompts: n queries.
            opinions, meant: of `_opinions`.
            region: elements of the prompt head's map.
        """
        if region is None:  # no arithmetic, which a graph would have to contain
            here, named = self._whole(encoding), (slice(None),) * 3
            fine = self._voxels(encoding)
            start = resized(opinions[:, None], fine.shape)
        else:
            here, fine, named = region, region.at((1, 1, 1)), region.at(self.stride).slices
            start = resized_part(opinions[:, None], region.at(self.stride), fine)
        lacking = LOGITS * pushes_of(prompts, start[:, 0], fine)
        compared = of_queries(encoding.compared, prompts)
        start = start + self.likeness(compared, prompts, lacking, here)
        # features are learned for labels: they would pull the border of another object to a label's
        known = meant.detach().sum(dim=1)[:, None, None, None, None]
        features = of_queries(encoding.projected[(..., *here.slices)], prompts) * known
        by_name = opinions[:, None][(..., *named)]
        maps = head_maps(encoding, prompts, features, by_name, start, self._whole(encoding), here)
        added = self.prompt_head(features, *maps, meant)
        logits = start[:, 0] + added
        forbidden = prompts.has_box[:, None, None, None] & ~allowed(prompts, fine)
        return torch.where(forbidden, -SURE, logits)

    def _quality(self, logits: Tensor, features: Tensor, prompts: PromptBatch) -> Tensor:
        """(n,) predicted IoU logits of (n, z, y, x) logits, from one voxel of each element."""
        middles = tuple(slice(s // 2, None, s) for s in self.stride)
        sampled = logits.detach()[(slice(None), *middles)]
        return self.quality_head(sampled, features.detach(), prompts, math.prod(self.stride))


def decode_in_parts(
    network: PromptableNetwork, encoding: Encoding, prompts: PromptBatch, most: int = 8
) -> tuple[Tensor, Tensor]:
    """`network.decode`, at most `most` queries at once, to bound the decoder's memory.

    For use without gradients, which would keep the memory of all parts.
    """
    parts = [
        network.decode(encoding, prompts[first : first + most])
        for first in range(0, len(prompts), most)
    ]
    logits, iou = zip(*parts, strict=True)
    return torch.cat(logits), torch.cat(iou)


def build_network(plans: Plans, encoder: str) -> nn.Module:
    """The network that plans and an encoder's name describe, with random weights.

    A `PromptableNetwork`, or with a preset the preset's own, which has the same interface.

    Raises:
        ValueError: for an unknown encoder or size, listing the known ones, and for plans
            with a preset and another encoder than the preset's.
    """
    if preset := preset_of(plans):
        return preset.build_network(plans, encoder)
    image_encoder = ENCODERS.get(encoder)(
        channels_in=len(plans.channel_names),
        patch_size=plans.patch_size,
        stride=plans.stride,
        size=plans.size,
        finest_stride=plans.finest_stride,
        spacing=plans.spacing,
    )
    return PromptableNetwork(image_encoder, plans.classes)
