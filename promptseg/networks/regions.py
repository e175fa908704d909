"""Where in a patch a prompt may change anything: about its box, its mask and its clicks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from promptseg.networks.grid import Grid, resized
from promptseg.networks.names import SURE
from promptseg.networks.prompt_encoder import LOOSE, PromptBatch, Query, box_maps

REACH = 8  # elements about a box or a mask; what lies further away changes nothing
CLICK_REACH = 20  # the same about a click in a mask to correct


def region_of(
    prompts: PromptBatch,
    opinion: Tensor,
    stride: Sequence[int],
    whole: Grid,
    multiple: Sequence[int],
) -> Grid:
    """The part of a patch that one query concerns.

    Args:
        prompts: one query.
        opinion: (1, z', y', x') logits that names give.
        stride: voxels of their elements, zyx.
        whole: elements of the prompt head's map.
        multiple: of how many elements the region's corners should be, so that a crop is divided
            as the patch would be.
    """
    size, corrects = np.array(whole.stride), bool(prompts.has_previous)
    drawn = prompts.regions is not None and bool((prompts.regions != 0).any())
    if drawn and not bool(prompts.has_box):
        return whole
    points = prompts.points[0][prompts.point_labels[0] >= 0].cpu().numpy() / size
    if corrects:
        about = CLICK_REACH
    elif bool(prompts.label_given):
        about = REACH
    else:  # how large an object is that clicks alone tell of is not known: half of the patch
        about = np.maximum(REACH, np.array(whole.shape) // 4)
    boxes = [np.stack([point - about, point + about]) for point in points]
    if not (corrects and boxes):
        if bool(prompts.has_box):
            boxes.append(loose(prompts.boxes)[0].cpu().numpy() / size)
        elif len(there := ((prompts.previous if corrects else opinion)[0] > 0).nonzero()):
            corners = torch.stack([there.amin(0), there.amax(0) + 1]).cpu().numpy()
            corners = corners * (1 if corrects else np.array(stride)) / size
            boxes.append(corners + [[-REACH], [REACH]])
    if not boxes:
        return whole
    lower = np.floor(np.min([b[0] for b in boxes], axis=0) / multiple) * multiple
    upper = np.ceil(np.max([b[1] for b in boxes], axis=0) / multiple) * multiple
    first, last = (np.clip(end, 0, whole.shape).astype(int) for end in (lower, upper))
    if (first >= last).any():
        return whole
    shape = tuple(int(n) for n in last - first)
    return replace(whole, shape=shape, first=tuple(int(n) for n in first))


def loose(boxes: Tensor) -> Tensor:
    """(n, 2, 3) boxes with the margin beyond which nothing of their object lies."""
    margin = LOOSE * (boxes[:, 1] - boxes[:, 0]) + 2
    return torch.stack([boxes[:, 0] - margin, boxes[:, 1] + margin], dim=1)


def allowed(prompts: PromptBatch, grid: Grid) -> Tensor:
    """(n, z, y, x) bool, where the object of a box may lie: about it, and at its clicks."""
    boxes = loose(prompts.boxes)
    foreground = (prompts.point_labels == 1)[:, :, None]
    points = prompts.points
    if points.shape[1]:
        low = torch.where(foreground, points - 4, torch.inf).amin(1)
        high = torch.where(foreground, points + 5, -torch.inf).amax(1)
        lower = torch.minimum(boxes[:, 0], low)
        boxes = torch.stack([lower, torch.maximum(boxes[:, 1], high)], dim=1)
    return box_maps(boxes, grid) > 0


def within_limits(logits: Tensor, queries: Sequence[Query]) -> Tensor:
    """Answers without what lies beyond the limits of their queries, in place.

    Foreground clicks beyond a limit say that it was drawn too small, and lift it.

    Args:
        logits: (n, z, y, x).
        queries: n, in their voxels.
    """
    for answer, query in zip(logits, queries, strict=True):
        if query.limit is None:
            continue
        kinds, points = np.asarray(query.point_labels), np.asarray(query.points).reshape(-1, 3)
        lower, upper = np.rint(query.limit).astype(int)
        beyond = (points < lower) | (points >= upper)
        if (beyond.any(axis=1) & (kinds == 1)).any():
            continue
        for axis, (first, last) in enumerate(zip(lower.clip(0), upper.clip(0), strict=True)):
            across = answer.movedim(axis, 0)
            across[:first] = -SURE
            across[last:] = -SURE
    return logits


def elsewhere(prompts: PromptBatch, opinion: Tensor, whole: Grid) -> Tensor:
    """(1, z, y, x) logits of one query outside its region, where it changes nothing.

    Args:
        prompts: the query; beyond its box there is nothing, in a mask to correct neither.
        opinion: (1, z', y', x') logits that names give.
        whole: the voxels of the patch.
    """
    if not bool(prompts.has_previous):
        if bool(prompts.has_box):
            return torch.full((1, *whole.shape), -SURE, device=opinion.device)
        return resized(opinion.detach()[:, None], whole.shape)[:, 0].clone()
    before = prompts.previous.float().clamp(-SURE, SURE)
    if bool(prompts.has_box):
        before = torch.where(allowed(prompts, whole), before, -SURE)
    return before
