"""Queries and their windows to blended logits, slices as soon as their last window is done."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from promptseg.inference.agreement import Agreement, answers_with_moved, moved_prompts
from promptseg.inference.decoding import ImageDecoder
from promptseg.inference.sliding_window import Blend, groups_of_at_most, open_voxels, spanned
from promptseg.networks.prompt_encoder import Query

OPEN_VOXELS = 2**27  # of the blends that wait for windows: 512 MB
ASKED_VOXELS = 2**25  # of the answers in one window that are held together: 128 MB


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the network says to one query, as far as its windows are done.

    Attributes:
        index: place of the query in the list that was asked.
        blend: its logits; those of slices that are final and were not given yet count.
        predicted_iou: the largest of the windows so far: the best one sees most of an object.
        agreement: mean IoU with the answers to moved prompts, in the windows so far; None when
            there was none to move.
    """

    index: int
    blend: Blend
    predicted_iou: float
    agreement: float | None


def blended_answers(
    decoder: ImageDecoder,
    queries: Sequence[Query],
    starts: Sequence[np.ndarray],
    weights: Tensor,
    *,
    jitters: int = 0,
    most_open_voxels: int = OPEN_VOXELS,
) -> Iterator[Answer]:
    """Decode window by window in raster order, each for all queries that use it.

    Of a query's logits about a window's thickness is held. Where even that is too much for all
    queries together, they go in groups, neighbours together, and windows that several groups use
    are visited again for each.

    Args:
        decoder: of the image.
        queries: in its voxels.
        starts: (n, 3) starts of the windows that each query uses, zyx.
        weights: (z, y, x) of a window.
        jitters: how many moved prompts each answer is compared with.
        most_open_voxels: that the queries of a group hold; a single query may hold more.

    Yields:
        Each query's answer, every time that slices of it have become final; the last time with
        all windows. What was given is released when the next is asked for.
    """
    order = sorted(range(len(queries)), key=lambda index: starts[index].tolist())
    corners = [spanned(starts[index], decoder.window, decoder.shape) for index in order]
    sizes = [open_voxels(*of_query, decoder.window) for of_query in corners]
    for places in groups_of_at_most(sizes, most_open_voxels):
        group = [order[place] for place in places]
        yield from _answers_of_group(decoder, queries, starts, weights, jitters, group)


def _answers_of_group(
    decoder: ImageDecoder,
    queries: Sequence[Query],
    starts: Sequence[np.ndarray],
    weights: Tensor,
    jitters: int,
    group: Sequence[int],
) -> Iterator[Answer]:
    jobs: dict[tuple, list[int]] = {}
    for index in group:
        for start in starts[index].tolist():
            jobs.setdefault(tuple(start), []).append(index)
    moved = {index: moved_prompts(queries[index], decoder.shape, jitters) for index in group}
    blends: dict[int, Blend] = {}
    agreements = {index: Agreement(len(moved[index])) for index in group}
    qualities = dict.fromkeys(group, 0.0)
    at_once = max(1, ASKED_VOXELS // (int(np.prod(decoder.window)) * (1 + jitters)))
    for start, asking in sorted(jobs.items()):
        for first in range(0, len(asking), at_once):
            here = asking[first : first + at_once]
            answers = answers_with_moved(
                decoder, start, [queries[i] for i in here], [moved[i] for i in here]
            )
            for index, (answer, iou, others) in zip(here, answers, strict=True):
                if index not in blends:
                    blends[index] = Blend(starts[index], decoder.window, decoder.shape, weights)
                blend, inside = blends[index], blends[index].inside(np.array(start))
                blend.add(answer, np.array(start))
                others = [None if other is None else other[inside] for other in others]
                agreements[index].add(answer[inside], others)
                qualities[index] = max(qualities[index], iou)
                if blend.is_due:
                    yield Answer(
                        index=index,
                        blend=blend,
                        predicted_iou=qualities[index],
                        agreement=agreements[index].value(),
                    )
                    blend.release()
                if blend.is_complete:
                    del blends[index]
