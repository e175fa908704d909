"""Queries and their windows to blended logits, each query as soon as its last window is done."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from torch import Tensor

from promptseg.inference.decoding import ImageDecoder
from promptseg.inference.sliding_window import Blend, groups_of_at_most, spanned
from promptseg.networks.prompt_encoder import Query

OPEN_VOXELS = 2**27  # of the blends that wait for windows: 512 MB


def blended_answers(
    decoder: ImageDecoder,
    queries: Sequence[Query],
    starts: Sequence[np.ndarray],
    weights: Tensor,
    most_open_voxels: int = OPEN_VOXELS,
) -> Iterator[tuple[int, Blend, float]]:
    """Decode window by window, each for all queries of a group that use it.

    Queries go in groups, neighbours together, so that memory does not grow with their number.

    Args:
        decoder: of the image.
        queries: in its voxels.
        starts: (n, 3) starts of the windows that each query uses, zyx.
        weights: (z, y, x) of a window.
        most_open_voxels: of the regions of a group; a single query may have more.

    Yields:
        A query's place in `queries`, its finished blend, and its largest predicted IoU: the best
        window sees most of an object.
    """
    order = sorted(range(len(queries)), key=lambda index: starts[index].tolist())
    corners = [spanned(starts[index], decoder.window, decoder.shape) for index in order]
    sizes = [int(np.prod(upper - lower)) for lower, upper in corners]
    for places in groups_of_at_most(sizes, most_open_voxels):
        group = [order[place] for place in places]
        yield from _answers_of_group(decoder, queries, starts, weights, group)


def _answers_of_group(
    decoder: ImageDecoder,
    queries: Sequence[Query],
    starts: Sequence[np.ndarray],
    weights: Tensor,
    group: Sequence[int],
) -> Iterator[tuple[int, Blend, float]]:
    jobs: dict[tuple, list[int]] = {}
    for index in group:
        for start in starts[index].tolist():
            jobs.setdefault(tuple(start), []).append(index)
    blends: dict[int, Blend] = {}
    qualities: dict[int, list[float]] = {index: [] for index in group}
    for start, here in sorted(jobs.items()):
        logits, ious = decoder.in_window(start, [queries[index] for index in here])
        for index, answer, iou in zip(here, logits, ious.tolist(), strict=True):
            if index not in blends:
                blends[index] = Blend(starts[index], decoder.window, decoder.shape, weights)
            blends[index].add(answer, np.array(start))
            qualities[index].append(iou)
            if len(qualities[index]) == len(starts[index]):
                yield index, blends.pop(index), max(qualities[index])
