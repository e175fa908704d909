"""How far answers agree when the prompts move a little: one encoding, several decodings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from promptseg.inference.decoding import ImageDecoder
from promptseg.inference.queries import windows_that_meet
from promptseg.networks.prompt_encoder import Query
from promptseg.prompts.simulated import jitter_box

POINT_JITTER = 1.0  # voxels


def moved_prompts(query: Query, shape: Sequence[int], count: int, seed: int = 0) -> list[Query]:
    """The same query with its box and points moved a little, as another person would set them.

    Box faces move by up to a tenth of their side, as in training; points by up to a voxel along
    each axis. A query by the label's name alone has nothing to move.

    Args:
        query: in voxels of an image, zyx.
        shape: of the image, voxels, zyx; prompts stay inside.
        count: how many.
        seed: of the noise: the same image and prompts give the same agreement.

    Returns:
        `count` queries, or none when there is nothing to move.
    """
    if query.box is None and not len(query.points):
        return []
    rng = np.random.default_rng(seed)
    points = np.asarray(query.points, float).reshape(-1, 3)
    last = np.asarray(shape) - 1.0
    moved = []
    for _ in range(count):
        noise = rng.uniform(-POINT_JITTER, POINT_JITTER, points.shape)
        box = None if query.box is None else jitter_box(query.box, tuple(shape), rng)
        moved.append(replace(query, box=box, points=np.clip(points + noise, 0, last)))
    return moved


def moved_answers(decoder: ImageDecoder, start: Sequence[int], moved: Sequence[Query]) -> Tensor:
    """Logits (n, z, y, x) of moved queries in a window; below 0 where a moved box left it."""
    there = [bool(len(windows_that_meet(q, np.array([start]), decoder.window))) for q in moved]
    if all(there):
        return decoder.in_window(start, moved)[0]
    logits = torch.full((len(moved), *decoder.window.tolist()), -1.0)
    if any(there):
        asked = [query for query, is_there in zip(moved, there, strict=True) if is_there]
        logits[torch.tensor(there)] = decoder.in_window(start, asked)[0].float().cpu()
    return logits


class Agreement:
    """Mean IoU of a query's mask with those of its moved prompts, over all windows it uses."""

    def __init__(self, count: int) -> None:
        self._common = np.zeros(count)
        self._either = np.zeros(count)

    def add(self, answer: Tensor, moved: Tensor) -> None:
        """Enter a window: (z, y, x) logits of the query, (count, z, y, x) of the moved ones."""
        mask, others = (answer > 0).to(moved.device), moved > 0
        self._common += (others & mask).sum(dim=(1, 2, 3)).cpu().numpy()
        self._either += (others | mask).sum(dim=(1, 2, 3)).cpu().numpy()

    def value(self) -> float | None:
        """In [0, 1]; 1 when all masks are empty, None when no prompt was moved."""
        if not len(self._common):
            return None
        ious = np.where(self._either > 0, self._common / np.maximum(self._either, 1), 1.0)
        return float(ious.mean())
