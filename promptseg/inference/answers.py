"""Queries and their windows to blended logits, each query as soon as its last window is done."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from torch import Tensor

from promptseg.inference.decoding import ImageDecoder
from promptseg.inference.sliding_window import Blend
from promptseg.networks.prompt_encoder import Query


def blended_answers(
    decoder: ImageDecoder,
    queries: Sequence[Query],
    starts: Sequence[np.ndarray],
    weights: Tensor,
) -> Iterator[tuple[int, Blend, float]]:
    """Decode window by window, each for all queries that use it.

    Args:
        decoder: of the image.
        queries: in its voxels.
        starts: (n, 3) starts of the windows that each query uses, zyx.
        weights: (z, y, x) of a window.

    Yields:
        A query's place in `queries`, its finished blend, and its largest predicted IoU: the best
        window sees most of an object.
    """
    jobs: dict[tuple, list[int]] = {}
    for index, of_query in enumerate(starts):
        for start in of_query.tolist():
            jobs.setdefault(tuple(start), []).append(index)
    blends: dict[int, Blend] = {}
    qualities: list[list[float]] = [[] for _ in queries]
    for start, here in sorted(jobs.items()):
        logits, ious = decoder.in_window(start, [queries[index] for index in here])
        for index, answer, iou in zip(here, logits, ious.tolist(), strict=True):
            if index not in blends:
                blends[index] = Blend(starts[index], decoder.window, decoder.shape, weights)
            blends[index].add(answer, np.array(start))
            qualities[index].append(iou)
            if len(qualities[index]) == len(starts[index]):
                yield index, blends.pop(index), max(qualities[index])
