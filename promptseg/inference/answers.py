"""Queries and their windows to blended logits, each query as soon as its last window is done."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from promptseg.inference.agreement import Agreement, moved_answers, moved_prompts
from promptseg.inference.decoding import ImageDecoder
from promptseg.inference.sliding_window import Blend, groups_of_at_most, spanned
from promptseg.networks.prompt_encoder import Query

OPEN_VOXELS = 2**27  # of the blends that wait for windows: 512 MB


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the network says to one query.

    Attributes:
        index: place of the query in the list that was asked.
        blend: its logits, all windows entered.
        predicted_iou: the largest of its windows: the best one sees most of an object.
        agreement: mean IoU with the answers to moved prompts; None when there was none to move.
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
    """Decode window by window, each for all queries of a group that use it.

    Queries go in groups, neighbours together, so that memory does not grow with their number.

    Args:
        decoder: of the image.
        queries: in its voxels.
        starts: (n, 3) starts of the windows that each query uses, zyx.
        weights: (z, y, x) of a window.
        jitters: how many moved prompts each answer is compared with.
        most_open_voxels: of the regions of a group; a single query may have more.

    Yields:
        Each query's answer, once.
    """
    order = sorted(range(len(queries)), key=lambda index: starts[index].tolist())
    corners = [spanned(starts[index], decoder.window, decoder.shape) for index in order]
    sizes = [int(np.prod(upper - lower)) for lower, upper in corners]
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
    qualities: dict[int, list[float]] = {index: [] for index in group}
    for start, here in sorted(jobs.items()):
        logits, ious = decoder.in_window(start, [queries[index] for index in here])
        for index, answer, iou in zip(here, logits, ious.tolist(), strict=True):
            if index not in blends:
                blends[index] = Blend(starts[index], decoder.window, decoder.shape, weights)
            blends[index].add(answer, np.array(start))
            if moved[index]:
                agreements[index].add(answer, moved_answers(decoder, start, moved[index]))
            qualities[index].append(iou)
            if len(qualities[index]) == len(starts[index]):
                yield Answer(
                    index=index,
                    blend=blends.pop(index),
                    predicted_iou=max(qualities[index]),
                    agreement=agreements[index].value(),
                )
