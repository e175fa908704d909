"""Prompts in a raw image as queries in the preprocessed image and in its patches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from promptseg.boxes import box_slices, clip_box, enclosing_box, mirror_box, widen_box
from promptseg.inference.sliding_window import patches_of_regions
from promptseg.networks.names import SURE
from promptseg.networks.prompt_encoder import LOOSE, Query
from promptseg.preprocessing.patch import cut_patch
from promptseg.preprocessing.resample import resample_image
from promptseg.prompts.checks import lasso_slice
from promptseg.prompts.drawn import flat_region, is_flat, lasso_region, scribble_points
from promptseg.prompts.types import Prompts

GIVEN = 4.0  # logit of a mask that a person gives, and minus that outside it
HASTE = 0.05  # of the side of a box that a person drew, by which its faces may be off


@dataclass(frozen=True, kw_only=True, eq=False)
class FlatBox:
    """A 2D box.

    Attributes:
        box: (2, 3) half-open, voxels, zyx.
        axis: across the slice that it is drawn on.
    """

    box: np.ndarray
    axis: int


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageQuery(Query):
    """A query in voxels of a whole preprocessed image; see `Query`.

    Attributes:
        drawn: 2D boxes, and lassos as (k, 3) vertices, in place of `region`.
    """

    drawn: tuple[FlatBox | np.ndarray, ...] = ()


def as_queries(
    prompts: Prompts, label: int, raw_shape: Sequence[int], shape: Sequence[int]
) -> list[ImageQuery]:
    """One query per 3D box (each with all other prompts), or one without a box.

    Args:
        prompts: of one label or object, in raw voxels.
        label: its index in the plans, `NO_LABEL` or `NEW_OBJECT`.
        raw_shape, shape: of the raw and the preprocessed image, voxels, zyx.
    """
    scaled, scale = prompts.scaled(raw_shape, shape), np.divide(shape, raw_shape)
    boxes, drawn = [], []
    for raw, box in zip(prompts.boxes, scaled.boxes, strict=True):
        axis = flat_axis(raw, raw_shape)
        if axis is None:
            limit = limit_of(raw) * scale if prompts.is_of_person else None
            boxes.append({"box": box, "limit": limit})
        else:
            drawn.append(FlatBox(box=box, axis=axis))

    drawn += scaled.lassos
    last = np.asarray(shape) - 1
    scribbles = [np.clip(scribble_points(line), 0, last) for line in scaled.scribbles]
    kinds = [
        np.full(len(points), kind)
        for points, kind in zip(scribbles, prompts.scribble_labels, strict=True)
    ]
    previous = None
    if prompts.mask is not None:
        given = np.where(prompts.mask, GIVEN, -GIVEN).astype(np.float32)
        same = tuple(raw_shape) == tuple(shape)
        previous = given if same else resample_image(given[None], shape, linear_axes=(0, 1, 2))[0]
    query = ImageQuery(
        label=label,
        points=np.concatenate([scaled.points, *scribbles]),
        point_labels=np.concatenate([prompts.point_labels, *kinds]),
        drawn=tuple(drawn),
        previous=previous,
    )
    return [replace(query, **of_box) for of_box in boxes] or [query]


def limit_of(box: np.ndarray) -> np.ndarray:
    """The (2, 3) box beyond which nothing of an object lies that a person drew a box about.

    People draw boxes in haste, but rarely cut a slice off: some voxels of a long side are left to
    them, and none across few thick slices.
    """
    margin = np.floor(HASTE * (box[1] - box[0]))
    return np.stack([box[0] - margin, box[1] + margin])


def is_whole_object(prompts: Prompts, raw_shape: Sequence[int]) -> bool:
    """Whether the name or a single 3D box asks for all of an object, not for what a slice shows."""
    boxes_are_solid = all(flat_axis(box, raw_shape) is None for box in prompts.boxes)
    return prompts.is_box_at_most and boxes_are_solid


def flat_axis(box: np.ndarray, raw_shape: Sequence[int]) -> int | None:
    """The axis across the slice that a (2, 3) box is drawn on; None for a 3D box.

    An axis along which the image has one voxel does not count.
    """
    axes = [axis for axis, n in enumerate(raw_shape) if n > 1]
    if not axes or not is_flat(box[:, axes]):
        return None
    return axes[int(np.argmin(np.ptp(box[:, axes], axis=0)))]


def region_of(query: Query, shape: Sequence[int], patch_size: Sequence[int]) -> np.ndarray:
    """Where a query is answered.

    A box's object may reach a quarter of a side beyond it; that is the margin, but at most a
    quarter of the patch, so that a box that fits into one patch still does. A name concerns the
    whole volume, a mask to correct too (of whose patches `patches_that_meet` takes those with any
    of it), and other prompts one patch about them.

    Returns:
        (2, 3) continuous box inside the volume, zyx.
    """
    shape, patch_size = np.asarray(shape), np.asarray(patch_size)
    if query.box is not None:
        side = query.box[1] - query.box[0]
        most = np.where(
            side <= patch_size, np.minimum((patch_size - side) / 2, patch_size / 4), patch_size / 4
        )
        return clip_box(widen_box(query.box, np.minimum(LOOSE * side, most)), shape)
    about = box_of_clicks(query)
    if about is None or query.label >= 0 or query.previous is not None:
        return np.array([(0, 0, 0), shape], float)
    # in whole voxels: half a voxel more than a patch would take a second patch along each axis
    lower, upper = np.floor(about[0]), np.ceil(about[1])
    room = np.maximum(patch_size - (upper - lower), 2)
    lower = lower - room // 2
    return clip_box(np.stack([lower, upper + (room - room // 2)]), shape)


def box_of_clicks(query: Query) -> np.ndarray | None:
    """(2, 3) box around the points and what is drawn on slices; None when there is neither."""
    boxes = _boxes_of_clicks(query)
    return enclosing_box(np.array(boxes)) if boxes else None


def _boxes_of_clicks(query: Query) -> list[np.ndarray]:
    points = np.asarray(query.points, float).reshape(-1, 3)
    boxes = [np.stack([point, point + 1]) for point in points]
    return boxes + [slice_of(item)[0] for item in getattr(query, "drawn", ())]


def slice_of(item: FlatBox | np.ndarray) -> tuple[np.ndarray, int]:
    """The (2, 3) box of a 2D box or lasso, and the axis across its slice."""
    if isinstance(item, FlatBox):
        return item.box, item.axis
    box = np.stack([item.min(axis=0), item.max(axis=0) + 1])
    return box, lasso_slice(item)[0]


def patches_that_meet(query: Query, starts: np.ndarray, patch_size: Sequence[int]) -> np.ndarray:
    """Those of (n, 3) patch starts whose patches show anything of the query.

    That is a part of its box; without one, all patches for a label's name, and for other queries
    those with a point, a part of a slice, or of the mask to correct. In the other patches nothing
    would be left of the prompts, which training never shows, and no mask needs to be corrected.
    """
    size = np.asarray(patch_size)
    boxes = _boxes_of_clicks(query) if query.box is None else [query.box]
    masked = query.box is None and query.previous is not None
    by_name = query.box is None and query.previous is None and query.label >= 0
    if by_name or not (boxes or masked) or not len(starts):
        return starts
    parts = np.array(boxes, float).reshape(-1, 1, 2, 3)
    lower = np.maximum(starts, parts[:, :, 0])
    upper = np.minimum(starts + size, parts[:, :, 1])
    met = (lower < upper).all(axis=2).any(axis=0)
    if masked:
        met |= [(_seen(query.previous, start, size) > 0).any() for start in starts]
    return starts[met]


def _seen(volume: np.ndarray, start: np.ndarray, size: np.ndarray) -> np.ndarray:
    """The part of a patch that lies in a (z, y, x) volume."""
    return volume[box_slices(np.stack([np.maximum(start, 0), np.maximum(start + size, 0)]))]


def patch_around(
    query: Query, starts: np.ndarray, shape: Sequence[int], patch_size: Sequence[int]
) -> np.ndarray | None:
    """The (3,) patch start in whose middle half a query's clicks and slices lie; None if in none.

    Where the volume ends, the patch may end, too. Of several, the one whose centre is nearest.

    Args:
        query: without a box.
        starts: (n, 3) to choose from.
        shape, patch_size: voxels, zyx.
    """
    about, size = box_of_clicks(query), np.asarray(patch_size)
    if about is None or not len(starts):
        return None
    before = (about[0] - starts >= size / 4) | (starts <= 0)
    after = (starts + size - about[1] >= size / 4) | (starts + size >= np.asarray(shape))
    inside = (about[0] >= starts - 0.5) & (about[1] <= starts + size + 0.5)
    holding = starts[(before & after & inside).all(axis=1)]
    offsets = np.abs(2 * holding + size - about.sum(axis=0)).max(axis=1)
    return holding[int(np.argmin(offsets))] if len(holding) else None


def patches_of_queries(
    queries: Sequence[Query],
    shape: Sequence[int],
    patch_size: Sequence[int],
    step_size: float,
) -> list[np.ndarray]:
    """(n, 3) patch starts for each query: those of its region that meet its box.

    Args:
        queries: in preprocessed voxels.
        shape, patch_size, step_size: see `patches_of_regions`.
    """
    regions = [region_of(query, shape, patch_size) for query in queries]
    of_regions = patches_of_regions(shape, patch_size, regions, step_size)
    starts = []
    for query, of_region in zip(queries, of_regions, strict=True):
        met = patches_that_meet(query, of_region, patch_size)
        # none, if the mask to correct is too thin for the preprocessed grid
        starts.append(met if len(met) else of_region)
    return starts


def in_patch(query: Query, start: np.ndarray, patch_size: np.ndarray) -> Query:
    """A query in voxels of a patch.

    Its box is clipped to the patch, points and slices outside are dropped, and the mask to correct
    is cut like an image.
    """
    box = None if query.box is None else clip_box(query.box - start, patch_size)
    points = np.asarray(query.points, float).reshape(-1, 3) - start
    inside = ((points > -0.5) & (points < patch_size - 0.5)).all(axis=1)
    previous = query.previous
    if previous is not None:
        outside = np.ones(patch_size, bool)
        seen = np.stack([np.maximum(-start, 0), np.minimum(previous.shape - start, patch_size)])
        outside[box_slices(seen)] = False
        previous = cut_patch(previous, start, patch_size).astype(np.float32)  # a copy
        previous[outside] = -SURE
    return Query(
        image=query.image,
        label=query.label,
        box=box,
        points=points[inside],
        point_labels=np.asarray(query.point_labels)[inside],
        region=_region_in_patch(getattr(query, "drawn", ()), start, tuple(patch_size.tolist())),
        previous=previous,
        limit=None if query.limit is None else query.limit - start,
    )


def _region_in_patch(
    drawn: Sequence[FlatBox | np.ndarray], start: np.ndarray, patch_size: tuple[int, ...]
) -> np.ndarray | None:
    """The region that slices give in a patch; what is inside any of several is inside."""
    regions = [
        flat_region(item.box - start, patch_size, item.axis)
        if isinstance(item, FlatBox)
        else lasso_region(item - start, patch_size)
        for item in drawn
    ]
    regions = [region for region in regions if region.any()]
    if not regions:
        return None
    inside = np.max(regions, axis=0)
    return np.where(inside > 0, inside, np.min(regions, axis=0))


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
    maps = {
        name: None if (values := getattr(query, name)) is None else np.flip(values, axes)
        for name in ("region", "previous")
    }
    return replace(query, box=box, points=points, **maps)
