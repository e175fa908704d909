"""Prompts that the network proposes itself: its own mask of the whole volume, as a box."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from promptseg.inference.decoding import ImageDecoder
from promptseg.inference.locate import boxes_in_whole
from promptseg.networks.prompt_encoder import Query
from promptseg.prompts.prompts import Prompts, make_prompts

COARSE = "coarse"  # the box of what the network finds by the label's name in the whole volume
HYBRID = "hybrid"  # that or the plans' box, whichever the network expects the better mask from
OWN = (COARSE, HYBRID)


@torch.inference_mode()
def own_prompts(
    decoder: ImageDecoder,
    proposals: Mapping[str, Prompts],
    label_indices: Mapping[str, int],
    raw_shape: Sequence[int],
) -> dict[str, Prompts]:
    """Ask the network by each label's name where it is, and choose between that and a proposal.

    All is asked of the volume resized to one window, which is encoded once.

    Args:
        decoder: of the image.
        proposals: for every label to find, another strategy's prompts in raw voxels, empty when
            there are none (`coarse`).
        label_indices: of each label in the plans.
        raw_shape: voxels, zyx.

    Returns:
        For each label prompts in raw voxels; without box, and why, when nothing was found. Their
        score is the predicted IoU of the mask that they give in the resized volume.
    """
    if not proposals:
        return {}
    labels = list(proposals)
    queries = [Query(label=label_indices[label]) for label in labels]
    found = {}
    for label, (box, iou) in zip(labels, boxes_in_whole(queries, decoder.in_whole), strict=True):
        coarse = _prompts(label, box, decoder.window, raw_shape, iou)
        found[label] = _better(decoder, coarse, proposals[label], label_indices[label], raw_shape)
    return found


def _prompts(
    label: str,
    box: np.ndarray | None,
    window: np.ndarray,
    raw_shape: Sequence[int],
    predicted_iou: float,
) -> Prompts:
    """The box of a mask in the resized volume as prompts in raw voxels."""
    boxes = [] if box is None else [box * (np.asarray(raw_shape) / window)]
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
    """Of two prompts the one whose mask of the whole volume the network expects more of."""
    candidates = [prompts for prompts in (coarse, proposal) if len(prompts.boxes)]
    if len(candidates) < 2:
        return candidates[0] if candidates else coarse
    boxes = [p.scaled(raw_shape, tuple(decoder.window)).boxes for p in candidates]
    queries = [Query(label=label_index, box=box) for of_one in boxes for box in of_one]
    ious = decoder.in_whole(queries)[1].tolist()
    # a proposal of several boxes is as good as their mean
    expected = [float(np.mean(ious[: len(boxes[0])])), float(np.mean(ious[len(boxes[0]) :]))]
    best = int(np.argmax(expected))
    return replace(candidates[best], score=min(max(expected[best], 0.0), 1.0))
