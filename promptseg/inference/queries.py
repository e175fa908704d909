"""Prompts in a raw image as queries in the preprocessed image and in its patches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from promptseg.boxes import clip_box, mirror_box, widen_box
from promptseg.networks.prompt_encoder import Query
from promptseg.prompts.types import Prompts


def as_queries(
    prompts: Prompts, label: int, raw_shape: Sequence[int], shape: Sequence[int]
) -> list[Query]:
    """One query per box (each with all points), or one without a box, in preprocessed voxels.

    Args:
        prompts: of one label, in raw voxels.
        label: its index in the plans.
        raw_shape, shape: of the raw and the preprocessed image, voxels, zyx.
    """
    scaled = prompts.scaled(raw_shape, shape)
    points = {"points": scaled.points, "point_labels": scaled.point_labels}
    if not len(scaled.boxes):
        return [Query(label=label, **points)]
    return [Query(label=label, box=box, **points) for box in scaled.boxes]


def region_of(query: Query, shape: Sequence[int], patch_size: Sequence[int]) -> np.ndarray:
    """Where a query is answered: in its box and a margin around it, or in the whole volume.

    A box may be off by a tenth of its side, as in training. That is the margin, but at most a
    quarter of the patch; a box that fits into one patch still does with its margin.

    Returns:
        (2, 3) continuous box inside the volume, zyx.
    """
    if query.box is None:
        return np.array([(0, 0, 0), shape], float)
    side, patch_size = query.box[1] - query.box[0], np.asarray(patch_size)
    most = np.where(
        side <= patch_size, np.minimum((patch_size - side) / 2, patch_size / 4), patch_size / 4
    )
    return clip_box(widen_box(query.box, np.minimum(0.1 * side, most)), shape)


def patches_that_meet(query: Query, starts: np.ndarray, patch_size: Sequence[int]) -> np.ndarray:
    """Those of (n, 3) patch starts whose patches meet the query's box; all when it has none.

    In the other patches the box would be clipped to nothing, a prompt that training never makes.
    """
    if query.box is None:
        return starts
    lower, upper = np.maximum(starts, query.box[0]), np.minimum(starts + patch_size, query.box[1])
    return starts[(lower < upper).all(axis=1)]


def in_patch(query: Query, start: np.ndarray, patch_size: np.ndarray) -> Query:
    """A query in voxels of a patch: its box is clipped to the patch, points outside are dropped."""
    box = None if query.box is None else clip_box(query.box - start, patch_size)
    points = np.asarray(query.points, float).reshape(-1, 3) - start
    inside = ((points > -0.5) & (points < patch_size - 0.5)).all(axis=1)
    return replace(
        query, box=box, points=points[inside], point_labels=np.asarray(query.point_labels)[inside]
    )


def flips(axes: Sequence[int]) -> list[tuple[int, ...]]:
    """All subsets of the mirror axes, the empty one first."""
    subsets: list[tuple[int, ...]] = [()]
    for axis in axes:
        subsets += [(*subset, axis) for subset in subsets]
    return subsets


def flipped(query: Query, axes: Sequence[int], patch_size: Sequence[int]) -> Query:
    """The same query in a patch that is mirrored along axes."""
    if not axes:
        return query
    axes, size = list(axes), np.asarray(patch_size, float)
    box = None if query.box is None else mirror_box(query.box, axes, patch_size)
    points = np.array(query.points, float).reshape(-1, 3)
    points[:, axes] = size[axes] - 1 - points[:, axes]
    return replace(query, box=box, points=points)
