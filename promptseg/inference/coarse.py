"""The coarse look: a whole volume, resized to one patch, tells where objects are.

`locate` uses it to find the region of the volume in which a query is answered; `own_prompts` to
make box prompts of labels' names (the strategies `coarse` and `hybrid`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from promptseg.boxes import clip_box, enclosing_box, mask_box, widen_box
from promptseg.inference.decoder import ASKED_AT_ONCE, ImageDecoder
from promptseg.inference.queries import patches_that_meet, region_of
from promptseg.inference.sliding_window import patches_of_regions
from promptseg.networks.prompt_encoder import Query
from promptseg.prompts.types import Prompts, make_prompts

COARSE = "coarse"  # the box of the mask that the label's name gives in the whole volume
HYBRID = "hybrid"  # that or the plans' box, whichever the network predicts the better mask from
OWN = (COARSE, HYBRID)

AnswersInWhole = Callable[[Sequence[Query]], tuple[Tensor, Tensor]]


def boxes_in_whole(
    queries: Sequence[Query], in_whole: AnswersInWhole
) -> list[tuple[np.ndarray | None, float]]:
    """Boxes of the masks that queries give in a whole volume, resized to one patch.

    Args:
        queries: in voxels of the resized volume.
        in_whole: logits (n, *patch_size) and predicted IoU (n,) of queries there; called with a
            few queries at a time, see `ImageDecoder.in_whole`.

    Returns:
        For each query the (2, 3) box of its mask, None for an empty one, and the predicted IoU.
    """
    found = []
    for first in range(0, len(queries), ASKED_AT_ONCE):
        logits, ious = in_whole(queries[first : first + ASKED_AT_ONCE])
        masks = ((answer > 0).cpu().numpy() for answer in logits)
        found += zip(map(mask_box, masks), ious.tolist(), strict=True)
    return found


def locate(
    queries: Sequence[Query],
    shape: Sequence[int],
    patch_size: Sequence[int],
    in_whole: AnswersInWhole,
) -> list[tuple[Query, np.ndarray] | None]:
    """Give every query a region of the volume.

    Where the volume exceeds one patch, a query without a box is first answered in the whole
    volume, resized to one patch. The box of that coarse mask, together with the foreground
    points, becomes its prompt; the region extends at least one coarse voxel further. When the
    coarse mask is empty, a query with foreground points is answered around them, without a box.

    Args:
        queries: in preprocessed voxels.
        shape: of the preprocessed volume, zyx.
        patch_size: voxels, zyx.
        in_whole: see `boxes_in_whole`.

    Returns:
        For each query the query itself, with its box, and its region (2, 3); None for one that
        is not found.
    """
    shape, patch_size = np.asarray(shape), np.asarray(patch_size)
    without_box = [query for query in queries if query.box is None]
    if (shape <= patch_size).all() or not without_box:
        return [(query, region_of(query, shape, patch_size)) for query in queries]
    coarse_voxel = shape / patch_size
    boxes = iter(_coarse_boxes(without_box, coarse_voxel, in_whole))
    return [
        _placed(query, next(boxes), coarse_voxel, shape)
        if query.box is None
        else (query, region_of(query, shape, patch_size))
        for query in queries
    ]


def _coarse_boxes(
    queries: Sequence[Query], coarse_voxel: np.ndarray, in_whole: AnswersInWhole
) -> list[np.ndarray | None]:
    """`boxes_in_whole` for queries and boxes in preprocessed voxels."""
    scaled = []
    for query in queries:
        points = np.asarray(query.points, float).reshape(-1, 3)
        scaled.append(replace(query, points=(points + 0.5) / coarse_voxel - 0.5))
    boxes = boxes_in_whole(scaled, in_whole)
    return [None if box is None else box * coarse_voxel for box, _ in boxes]


def _placed(
    query: Query, box: np.ndarray | None, coarse_voxel: np.ndarray, shape: np.ndarray
) -> tuple[Query, np.ndarray] | None:
    """A query with the box of its coarse mask, if any, and its region.

    Where a person clicked there is an object, however small it is in the coarse volume.
    """
    clicked = _clicked_box(query, shape)
    if box is None and clicked is None:
        return None
    if box is None:
        return query, clip_box(widen_box(clicked, coarse_voxel), shape)
    if clicked is not None:
        box = enclosing_box([box, clicked])
    margin = np.maximum(0.1 * (box[1] - box[0]), coarse_voxel)
    return replace(query, box=box), clip_box(widen_box(box, margin), shape)


def _clicked_box(query: Query, shape: np.ndarray) -> np.ndarray | None:
    """The smallest box around the foreground points' voxels; None when there are none."""
    points = np.asarray(query.points, float).reshape(-1, 3)
    voxels = [(point, point + 1) for point in points[np.asarray(query.point_labels) == 1]]
    box = enclosing_box(np.array(voxels))
    return None if box is None else clip_box(box, shape)


def patches_of_queries(
    queries: Sequence[Query],
    regions: Sequence[np.ndarray],
    shape: Sequence[int],
    patch_size: Sequence[int],
    step_size: float,
) -> list[np.ndarray]:
    """(n, 3) patch starts for each query: those of its region that meet its box.

    Args:
        queries: in preprocessed voxels.
        regions: (2, 3) region of each query, from `locate`.
        shape, patch_size, step_size: see `patches_of_regions`.
    """
    of_regions = patches_of_regions(shape, patch_size, regions, step_size)
    return [patches_that_meet(*of, patch_size) for of in zip(queries, of_regions, strict=True)]


@torch.inference_mode()
def own_prompts(
    decoder: ImageDecoder,
    proposals: Mapping[str, Prompts],
    label_indices: Mapping[str, int],
    raw_shape: Sequence[int],
) -> dict[str, Prompts]:
    """Box labels by what the network finds by their names, or keep a better proposal.

    Everything is decoded in the volume resized to one patch, which is encoded once.

    Args:
        decoder: of the image.
        proposals: for every label to find, another strategy's prompts in raw voxels, empty when
            there are none (`coarse`).
        label_indices: index of each label in the plans.
        raw_shape: voxels, zyx.

    Returns:
        For each label prompts in raw voxels; without a box, and with the reason, when nothing was
        found. Where there were a box of the network's and a proposal to choose from, `score` is
        the predicted IoU of the mask that the chosen one gives in the resized volume. A box
        without an alternative is not decoded again: the network's own has the predicted IoU of
        the mask that it encloses, which the label's name gave, and a proposal keeps its score.
    """
    if not proposals:
        return {}
    labels = list(proposals)
    queries = [Query(label=label_indices[label]) for label in labels]
    found = {}
    for label, (box, iou) in zip(labels, boxes_in_whole(queries, decoder.in_whole), strict=True):
        coarse = _coarse_prompts(label, box, decoder.patch_size, raw_shape, iou)
        found[label] = _better(decoder, coarse, proposals[label], label_indices[label], raw_shape)
    return found


def _coarse_prompts(
    label: str,
    box: np.ndarray | None,
    patch_size: np.ndarray,
    raw_shape: Sequence[int],
    predicted_iou: float,
) -> Prompts:
    """The box of a mask in the resized volume as prompts in raw voxels."""
    boxes = [] if box is None else [box * (np.asarray(raw_shape) / patch_size)]
    return make_prompts(
        boxes=boxes,
        shape=raw_shape,
        where=f"{COARSE} for {label!r}",
        source=COARSE if boxes else "label name",
        score=predicted_iou if boxes else None,
        reason="ok" if boxes else "not_found_by_name",
    )


def _better(
    decoder: ImageDecoder,
    coarse: Prompts,
    proposal: Prompts,
    label_index: int,
    raw_shape: Sequence[int],
) -> Prompts:
    """Of two prompts the one with the higher predicted IoU in the whole volume, as its score.

    Where only one of them has a box, it is returned as it is.
    """
    candidates = [prompts for prompts in (coarse, proposal) if len(prompts.boxes)]
    if len(candidates) < 2:
        return candidates[0] if candidates else coarse
    boxes = [p.scaled(raw_shape, tuple(decoder.patch_size)).boxes for p in candidates]
    queries = [Query(label=label_index, box=box) for of_one in boxes for box in of_one]
    ious = decoder.in_whole(queries)[1].tolist()
    # a proposal of several boxes is as good as their mean
    predicted = [float(np.mean(ious[: len(boxes[0])])), float(np.mean(ious[len(boxes[0]) :]))]
    best = int(np.argmax(predicted))
    return replace(candidates[best], score=min(max(predicted[best], 0.0), 1.0))
