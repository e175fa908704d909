"""How much answers change when prompts are perturbed: one encoding, several decodings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from torch import Tensor

from promptseg.networks.prompt_encoder import Query
from promptseg.prompts.simulated import jitter_box

POINT_JITTER = 1.0  # voxels


def perturbed_prompts(query: Query, shape: Sequence[int], count: int, seed: int = 0) -> list[Query]:
    """The same query with its box and points moved a little, as another person would set them.

    Box faces move by up to a tenth of their side, as in training; points by up to a voxel along
    each axis. A query by the label's name alone has nothing to perturb.

    Args:
        query: in voxels of an image, zyx.
        shape: of the image, voxels, zyx; prompts stay inside.
        count: number of perturbed copies.
        seed: of the noise: the same image and prompts give the same prompt_consistency.

    Returns:
        `count` queries, or none when there is nothing to perturb.
    """
    if query.box is None and not len(query.points):
        return []
    rng = np.random.default_rng(seed)
    points = np.asarray(query.points, float).reshape(-1, 3)
    last = np.asarray(shape) - 1.0
    perturbed = []
    for _ in range(count):
        noise = rng.uniform(-POINT_JITTER, POINT_JITTER, points.shape)
        box = None if query.box is None else jitter_box(query.box, tuple(shape), rng)
        limit = None if query.limit is None else query.limit + (box - query.box)
        moved = np.clip(points + noise, 0, last)
        perturbed.append(replace(query, box=box, limit=limit, points=moved))
    return perturbed


class PromptConsistency:
    """Mean IoU of a query's mask with those of its perturbed copies, over all patches it uses.

    Voxels are counted patch by patch: where patches overlap, once for each of them, with the
    answers in that patch.
    """

    def __init__(self, count: int) -> None:
        self._common = np.zeros(count)
        self._either = np.zeros(count)

    def add(self, answer: Tensor, perturbed: Sequence[Tensor | None]) -> None:
        """Enter a patch, or the part of it that lies in the volume.

        Args:
            answer: (z, y, x) logits of the query.
            perturbed: the same for each perturbed copy; None for an empty mask.
        """
        mask = answer > 0
        for number, logits in enumerate(perturbed):
            other = mask.new_zeros(()) if logits is None else logits > 0
            self._common[number] += int((other & mask).sum())
            self._either[number] += int((other | mask).sum())

    def value(self) -> float | None:
        """In [0, 1]; 1 when all masks are empty, None when there was nothing to perturb."""
        if not len(self._common):
            return None
        ious = np.where(self._either > 0, self._common / np.maximum(self._either, 1), 1.0)
        return float(ious.mean())
