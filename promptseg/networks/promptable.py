"""The promptable network: encode an image once, then decode any number of prompts."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from promptseg.networks.blocks import kernel_size
from promptseg.networks.encoders import ENCODERS, ImageEncoder
from promptseg.networks.encoding import Encoding
from promptseg.networks.mask_decoder import (
    COARSE_WIDTHS,
    FINE_WIDTHS,
    SURE,
    FeaturePyramid,
    NameHead,
    NameMatch,
    PromptHead,
    QualityHead,
    log_odds,
    log_odds_of_log,
    resized,
)
from promptseg.networks.prompt_encoder import (
    LOOSE,
    NEW_OBJECT,
    Grid,
    PromptBatch,
    box_maps,
    click_maps,
)
from promptseg.plans import Plans
from promptseg.presets import preset_of

NOTHING = 0.02  # probability of a voxel before anything is known about an object without a name
DECISIVE = 3.0  # exponent of the weights of the labels that a prompt without a name may mean
LIKENESS = 8  # channels that voxels are compared by


class PromptableNetwork(nn.Module):
    """Image encoder, feature pyramid and the heads that answer queries; always returns logits.

    Names are answered for all labels at once. Any other prompt starts from what the names say, or
    from the mask to correct, and adds what the prompt head answers in the region it concerns.
    """

    def __init__(self, image_encoder: ImageEncoder, label_count: int) -> None:
        super().__init__()
        strides, spacing = image_encoder.strides, image_encoder.spacing
        channels = [*image_encoder.feature_channels, image_encoder.channels]
        self.stride = strides[0]
        self.spacing = tuple(s / min(spacing) for s in spacing)
        self.image_encoder = image_encoder
        self.pyramid = FeaturePyramid(
            channels[-1], channels[:-1], [kernel_size(s, spacing) for s in strides[:-1]]
        )
        self.name_head = NameHead(channels[0], label_count)
        self.name_match = NameMatch()
        # where the finest map is of voxels, the head needs half of that: its end is on voxels
        self.level = 1 if max(self.stride) == 1 and len(strides) > 1 else 0
        self.prompt_stride = strides[self.level]
        self.prompt_head = PromptHead(
            channels[self.level], label_count, self.prompt_stride, spacing
        )
        self.quality_head = QualityHead(channels[0])

    def encode(self, image: Tensor) -> Encoding:
        """Encode (b, c, z, y, x) images with intensities in [0, 255]."""
        encoded = self.image_encoder(image.float() / 127.5 - 1.0)
        maps = self.pyramid(encoded.embedding, encoded.features)
        return Encoding(
            patch_size=tuple(image.shape[2:]),
            features=maps[0],
            names=self.name_head(maps[0]),
            projected=self.prompt_head.project(maps[self.level]),
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
        opinions = self._opinions(encoding, prompts, whole=whole)
        start = resized(opinions[:, None], encoding.patch_size)[:, 0]
        prompted = prompts.is_prompted
        if whole:
            changed = self._changed(encoding, prompts, start, None)
            logits = torch.where(prompted[:, None, None, None], changed, start)
        else:
            answers, images = [], encoding.of_each_image()
            for index, is_prompted in enumerate(prompted.tolist()):
                one = slice(index, index + 1)
                answer = start[one]
                if is_prompted:
                    of_one = prompts[one].in_image(0)
                    image = images[int(prompts.image_index[index])]
                    region = self._region(image, of_one, answer)
                    answer = self._changed(image, of_one, answer, region)
                answers.append(answer)
            logits = torch.cat(answers)
        features = encoding.features.detach()
        if len(features) > 1:
            features = features[prompts.image_index]
        return logits, self.quality_head(logits.detach(), features, prompts)

    def forward(self, image: Tensor, prompts: PromptBatch) -> tuple[Tensor, Tensor]:
        """`decode(encode(image), prompts)`."""
        return self.decode(self.encode(image), prompts)

    def _grids(self, encoding: Encoding, region: np.ndarray | None) -> tuple[Grid, Grid]:
        """The elements of the head's map, and the voxels, of a region (2, 3) in such elements."""
        stride, spacing = tuple(self.prompt_stride), self.spacing
        if region is None:  # no arithmetic, which a graph would have to contain
            shape = tuple(encoding.projected.shape[2:])
            whole = Grid(shape=tuple(encoding.patch_size), stride=(1, 1, 1), spacing=spacing)
            return Grid(shape=shape, stride=stride, spacing=spacing), whole
        first, last = region.tolist()
        shape = tuple(b - a for a, b in zip(first, last, strict=True))
        return (
            Grid(shape=shape, stride=stride, spacing=spacing, first=tuple(first)),
            Grid(
                shape=tuple(n * s for n, s in zip(shape, stride, strict=True)),
                stride=(1, 1, 1),
                spacing=spacing,
                first=tuple(f * s for f, s in zip(first, stride, strict=True)),
            ),
        )

    def _whole(self, encoding: Encoding) -> np.ndarray:
        return np.array([(0, 0, 0), encoding.projected.shape[2:]])

    def _opinions(self, encoding: Encoding, prompts: PromptBatch, *, whole: bool) -> Tensor:
        """(n, z', y', x') logits that names give: of the label, or of those that are meant."""
        named = encoding.names[prompts.image_index, prompts.labels.clamp(min=0) + 1]
        opinions = log_odds_of_log(named)
        if not whole and bool(prompts.label_given.all()):
            return opinions
        unnamed = slice(None) if whole else ~prompts.label_given
        some = prompts[unnamed]
        probabilities = encoding.names[some.image_index, 1:].exp()
        weights = decided(self.meant_labels(encoding, some))
        weights = weights * (some.labels != NEW_OBJECT)[:, None]
        meant = torch.einsum("nl,nlzyx->nzyx", weights, probabilities)
        meant = log_odds(meant + (1 - weights.sum(1))[:, None, None, None] * NOTHING)
        if whole:
            return torch.where(prompts.label_given[:, None, None, None], opinions, meant)
        return opinions.index_put((unnamed.nonzero()[:, 0],), meant)

    def meant_labels(self, encoding: Encoding, prompts: PromptBatch) -> Tensor:
        """(n, labels) weights of the labels that prompts without a name may mean.

        What they lack to 1 is the weight of an object that is none of the labels.
        """
        grid = Grid(
            shape=tuple(encoding.names.shape[2:]), stride=tuple(self.stride), spacing=self.spacing
        )
        there = box_maps(prompts.boxes, grid) * prompts.has_box[:, None, None, None]
        if prompts.previous is not None:
            before = resized(prompts.previous[:, None].float().sigmoid(), grid.shape)[:, 0]
            there = torch.where(prompts.has_previous[:, None, None, None], before, there)
        clicks = click_maps(prompts.points, prompts.point_labels, grid, COARSE_WIDTHS[:1])
        if prompts.regions is not None:
            drawn = resized(prompts.regions[:, None].clamp(min=0), grid.shape)
            clicks = torch.cat([torch.maximum(clicks[:, :1], drawn), clicks[:, 1:]], dim=1)
        kinds = torch.stack([prompts.has_box, prompts.has_previous], dim=1)
        probabilities = encoding.names[prompts.image_index, 1:].detach().exp()
        return self.name_match(probabilities, there, kinds, clicks)

    def _region(self, encoding: Encoding, prompts: PromptBatch, start: Tensor) -> np.ndarray:
        """(2, 3) elements that one query concerns: its box, its mask and its clicks, and about."""
        stride, reach = np.array(self.prompt_stride), self.prompt_head.REACH
        whole = self._whole(encoding)
        points = prompts.points[0][prompts.point_labels[0] >= 0].cpu().numpy() / stride
        boxes = [np.stack([p - reach, p + reach]) for p in points]
        if bool(prompts.has_box):
            box = self._loose(prompts.boxes)[0].cpu().numpy() / stride
            boxes.append(box)
        elif bool(prompts.has_previous) or bool(prompts.label_given):
            mask = prompts.previous if bool(prompts.has_previous) else start
            there = (mask[0] > 0).nonzero()
            if len(there):
                corners = torch.stack([there.amin(0), there.amax(0) + 1]).cpu().numpy() / stride
                boxes.append(corners + [[-reach], [reach]])
            elif not len(points):
                return whole
            if prompts.regions is not None and bool((prompts.regions != 0).any()):
                return whole
        else:
            return whole
        # whole elements of the head's coarser level, so that a crop sees what the patch would
        step = np.array(self.prompt_head.halved)
        lower = (np.floor(np.min([b[0] for b in boxes], axis=0) / step) * step).astype(int)
        upper = (np.ceil(np.max([b[1] for b in boxes], axis=0) / step) * step).astype(int)
        region = np.clip([lower, upper], whole[0], whole[1])
        return region if (region[0] < region[1]).all() else whole

    @staticmethod
    def _loose(boxes: Tensor) -> Tensor:
        """(n, 2, 3) boxes with the margin beyond which nothing of their object lies."""
        margin = LOOSE * (boxes[:, 1] - boxes[:, 0]) + 2
        return torch.stack([boxes[:, 0] - margin, boxes[:, 1] + margin], dim=1)

    def _changed(
        self,
        encoding: Encoding,
        prompts: PromptBatch,
        start: Tensor,
        region: np.ndarray | None,
    ) -> Tensor:
        """(n, z, y, x) logits of prompted queries, computed in one region, None for all."""
        grid, fine = self._grids(encoding, region)
        here, on_voxels = _slices(grid), _slices(fine)
        features = encoding.projected[(..., *here)]
        if len(features) > 1:
            features = features[prompts.image_index]
        clicks = click_maps(prompts.points, prompts.point_labels, grid, COARSE_WIDTHS)
        has_box = prompts.has_box[:, None, None, None]
        box = torch.where(has_box, 2 * box_maps(prompts.boxes, grid) - 1, 0.0)
        if prompts.regions is not None:
            drawn = resized(prompts.regions[(slice(None), None, *on_voxels)], grid.shape)[:, 0]
            box = torch.where(drawn != 0, drawn, box)
        before = self._before(prompts, fine)
        name = torch.tanh(start[(slice(None), None, *on_voxels)] / 4).detach()
        maps = [
            clicks,
            box[:, None],
            resized(before, grid.shape),
            resized(name, grid.shape),
            _likeness(features[:, :LIKENESS], clicks[:, :2]),
        ]
        clicks_on_voxels = click_maps(prompts.points, prompts.point_labels, fine, FINE_WIDTHS)
        added = self.prompt_head(
            features,
            torch.cat(maps, dim=1).contiguous(memory_format=torch.channels_last_3d),
            torch.cat([clicks_on_voxels, before, name], dim=1),
            prompts.labels,
        )
        logits = start[(slice(None), *on_voxels)] + added
        if fine.shape != tuple(encoding.patch_size):
            logits = _put(logits, fine, self._elsewhere(prompts, start))
        return torch.where(has_box & ~self._allowed(prompts, encoding), -SURE, logits)

    @staticmethod
    def _elsewhere(prompts: PromptBatch, start: Tensor) -> Tensor:
        """(n, z, y, x) logits outside the region of the prompts: nothing changes there."""
        if prompts.previous is None:
            return start
        has_previous = prompts.has_previous[:, None, None, None]
        return torch.where(has_previous, prompts.previous.float().clamp(-SURE, SURE), start)

    @staticmethod
    def _before(prompts: PromptBatch, fine: Grid) -> Tensor:
        """(n, 1, z, y, x) of the masks to correct in a part of the patch, -1 to 1; 0 for none."""
        if prompts.previous is None:
            return torch.zeros(len(prompts), 1, *fine.shape, device=prompts.boxes.device)
        return torch.tanh(prompts.previous[(slice(None), None, *_slices(fine))].float() / 4)

    def _allowed(self, prompts: PromptBatch, encoding: Encoding) -> Tensor:
        """(n, z, y, x) bool, where the object of a box may lie: about it, and at its clicks."""
        grid = Grid(shape=encoding.patch_size, stride=(1, 1, 1), spacing=self.spacing)
        loose = self._loose(prompts.boxes)
        foreground = (prompts.point_labels == 1)[:, :, None]
        points = prompts.points
        if points.shape[1]:
            low = torch.where(foreground, points - 4, torch.inf).amin(1)
            high = torch.where(foreground, points + 5, -torch.inf).amax(1)
            lower = torch.minimum(loose[:, 0], low)
            loose = torch.stack([lower, torch.maximum(loose[:, 1], high)], dim=1)
        return box_maps(loose, grid) > 0


def decided(weights: Tensor) -> Tensor:
    """(n, labels) weights as decisions: what is likely becomes nearly certain."""
    nothing = 1 - weights.sum(dim=1, keepdim=True)
    sharp = torch.cat([nothing.clamp(min=0), weights], dim=1) ** DECISIVE
    return (sharp / sharp.sum(dim=1, keepdim=True))[:, 1:]


def _put(part: Tensor, grid: Grid, whole: Tensor) -> Tensor:
    """(n, z, y, x) maps in which the part on a grid is replaced."""
    ends = [n - f - p for n, f, p in zip(whole.shape[1:], grid.first, grid.shape, strict=True)]
    padding = [p for f, end in zip(grid.first, ends, strict=True) for p in (end, f)][::-1]
    inside = F.pad(torch.ones_like(part, dtype=torch.bool), padding)
    return torch.where(inside, F.pad(part, padding), whole)


def _slices(grid: Grid) -> tuple[slice, ...]:
    return tuple(slice(f, f + n) for f, n in zip(grid.first, grid.shape, strict=True))


def _likeness(features: Tensor, clicks: Tensor) -> Tensor:
    """(n, 2, ...) cosines between the features of each element and those at the clicks.

    Args:
        features: (n, c, z', y', x').
        clicks: (n, 2, z', y', x') foreground and background; without clicks the answer is 0.
    """
    directions = F.normalize(features.float(), dim=1)
    weights = clicks.float().flatten(2)
    clicked = torch.einsum("ncv,nkv->nkc", directions.flatten(2), weights)
    clicked = F.normalize(clicked, dim=2, eps=1e-3)
    return torch.einsum("nczyx,nkc->nkzyx", directions, clicked)


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
    return PromptableNetwork(image_encoder, len(plans.labels))
