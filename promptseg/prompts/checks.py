"""What a person gave as boxes, points, scribbles, lassos or a mask, as checked arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from promptseg.boxes import clip_box
from promptseg.words import short


def check_numbers(
    boxes: Any, points: Any, point_labels: Any, where: str, *, in_voxels: bool = True
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes, points and their labels as arrays, checked as far as possible without the image.

    Args:
        boxes: (2, 3) or (n, 2, 3) numbers in lists or an array; None for no box.
        points: (3,) or (k, 3) numbers.
        point_labels: one per point, 1 foreground or 0 background; all foreground when not given.
        where: what they belong to, for error messages.
        in_voxels: whether a box is half-open, lower and upper corner; else any two opposite ones.

    Returns:
        (n, 2, 3) boxes, (k, 3) points and (k,) labels.

    Raises:
        ValueError: for wrong shapes, values that are not finite numbers, empty boxes, or labels
            other than 0 and 1.
    """
    box_array = _numbers(boxes, (2, 3), f"{where}: boxes")
    point_array = _numbers(points, (3,), f"{where}: points")
    for box in box_array:
        if in_voxels and not (box[0] < box[1]).all():
            raise ValueError(
                f"{where}: box {box.tolist()} is empty; corners are lower and upper, zyx, "
                f"the upper one exclusive"
            )
        if (box[0] == box[1]).any():
            raise ValueError(
                f"{where}: box {box.tolist()} is empty; give two opposite corners, x, y, z in mm"
            )
    return box_array, point_array, _kinds(point_labels, len(point_array), where)


def check_lines(
    scribbles: Any, scribble_labels: Any, lassos: Any, where: str
) -> tuple[tuple[np.ndarray, ...], np.ndarray, tuple[np.ndarray, ...]]:
    """Scribbles, their labels and lassos as arrays, checked as far as possible without the image.

    Args:
        scribbles: one or a list of (k, 3) numbers in lists or arrays; None for no scribble.
        scribble_labels: one per scribble, 1 foreground or 0 background; all foreground when not
            given.
        lassos: one or a list of (k, 3) numbers, at least three vertices each.
        where: what they belong to, for error messages.

    Raises:
        ValueError: for wrong shapes, values that are not finite numbers, or labels other than 0
            and 1.
    """
    lines = tuple(
        _numbers(line, (3,), f"{where}: scribble {number}")
        for number, line in enumerate(_several(scribbles, f"{where}: scribbles"), 1)
    )
    polygons = tuple(
        _numbers(line, (3,), f"{where}: lasso {number}")
        for number, line in enumerate(_several(lassos, f"{where}: lassos"), 1)
    )
    for what, least, found in (("scribble", 1, lines), ("lasso", 3, polygons)):
        for number, line in enumerate(found, 1):
            if len(line) < least:
                raise ValueError(
                    f"{where}: {what} {number} needs {least} position(s) or more, z, y, x each, "
                    f"found {len(line)}"
                )
    return lines, _kinds(scribble_labels, len(lines), where, "scribbles"), polygons


def clipped_boxes(boxes: np.ndarray, shape: Sequence[int], where: str) -> np.ndarray:
    """The parts of (n, 2, 3) boxes inside an image; a ValueError for one that lies outside it."""
    clipped = clip_box(boxes, shape)
    for given, box in zip(boxes, clipped, strict=True):
        if not (box[0] < box[1]).all():
            raise ValueError(
                f"{where}: box {given.tolist()} lies outside the image of shape {tuple(shape)} "
                f"(both zyx, voxels of the raw image); if it came as xyz, reverse each corner"
            )
    return clipped


def check_inside(positions: np.ndarray, shape: Sequence[int], where: str, what: str) -> None:
    """Raise unless all (k, 3) positions lie in voxels of an image.

    Args:
        positions: voxel indices, zyx.
        shape: of the image, zyx.
        where: what they belong to, for the error.
        what: the positions in words, such as `point prompts`.

    Raises:
        ValueError: with their number and the first of them.
    """
    outside = ((positions < -0.5) | (positions > np.asarray(shape) - 0.5)).any(axis=1)
    if outside.any():
        raise ValueError(
            f"{where}: {outside.sum()} of {len(positions)} {what} lie outside the image, "
            f"first {positions[outside][0].tolist()} for shape {tuple(shape)} (both zyx, voxels "
            f"of the raw image); if they came as xyz, reverse each point"
        )


def lasso_slice(lasso: np.ndarray) -> tuple[int, float] | None:
    """The axis (0, 1, 2 for z, y, x) whose slice a lasso lies in, and where that is; else None.

    All vertices share one voxel along the axis; of several such axes, it is the one along which
    they vary least.
    """
    spread = np.ptp(lasso, axis=0).astype(float)
    spread[np.ptp(np.rint(lasso), axis=0) > 0] = np.inf
    axis = int(spread.argmin())
    return None if np.isinf(spread[axis]) else (axis, float(lasso[:, axis].mean()))


def flat_lasso(lasso: np.ndarray, shape: Sequence[int], where: str) -> np.ndarray:
    """A lasso inside an image whose vertices all have the same whole index along one axis.

    Raises:
        ValueError: if it lies in no single slice, or encloses nothing.
    """
    if (found := lasso_slice(lasso)) is None:
        spans = zip("zyx", lasso.min(axis=0), lasso.max(axis=0), strict=True)
        raise ValueError(
            f"{where} reaches over {', '.join(f'{a} {low:g} to {up:g}' for a, low, up in spans)}; "
            f"expected a polygon in one slice: all vertices share one voxel index along z, y or x"
        )
    axis, index = found
    flat = lasso.copy()
    flat[:, axis] = np.clip(np.rint(index), 0, shape[axis] - 1)
    if np.linalg.matrix_rank(flat - flat[0], tol=1e-6) < 2:
        raise ValueError(
            f"{where} encloses nothing: its {len(lasso)} vertices lie on one line; draw it around "
            f"the object, or give a scribble"
        )
    return flat


def check_mask(mask: Any, shape: Sequence[int], where: str) -> np.ndarray | None:
    """A mask to correct as a bool array on the image's grid; None where it has no voxel.

    Raises:
        ValueError: for another shape, or values other than 0 and 1.
    """
    if mask is None:
        return None
    try:
        array = np.asarray(mask)
    except ValueError:  # lists of different lengths
        array = np.asarray(None)
    if array.shape != tuple(shape):
        raise ValueError(
            f"{where}: mask: expected the shape of the image, {tuple(shape)} (zyx, voxels), found "
            f"{array.shape}; give it on the raw image's grid"
        )
    if array.dtype != bool and not (
        array.dtype.kind in "iuf" and np.isin(array[array != 0], 1).all()
    ):
        raise ValueError(
            f"{where}: mask: expected true and false, or 1 and 0, found {array.dtype} "
            f"{short(np.unique(array)[:5].tolist())}; give a mask per label, such as "
            f"segmentation == 2"
        )
    return array.astype(bool, copy=False) if array.any() else None


def _several(lines: Any, where: str) -> Sequence:
    """A list of lines; one line alone becomes a list of it."""
    if lines is None:
        return ()
    if not isinstance(lines, (list, tuple, np.ndarray)):
        raise ValueError(f"{where}: expected lists of z, y, x, found {short(lines)}")
    is_one = len(lines) and np.ndim(lines[0]) == 1 and len(lines[0]) and np.ndim(lines[0][0]) == 0
    return (lines,) if is_one else lines


def _kinds(labels: Any, count: int, where: str, what: str = "points") -> np.ndarray:
    """(count,) ones and zeros."""
    if labels is None:
        return np.ones(count, int)
    try:
        kinds = np.asarray(labels)
    except ValueError:  # lists of different lengths
        kinds = np.asarray(None)
    if kinds.shape != (count,) or not np.isin(kinds, (0, 1)).all():
        raise ValueError(
            f"{where}: {count} {what} need as many labels, each 1 (foreground) or 0 "
            f"(background), found {short(labels)}"
        )
    return kinds.astype(int)


def _numbers(values: Any, item_shape: tuple[int, ...], where: str) -> np.ndarray:
    """`values` as (n, *item_shape) finite floats; None and empty lists give n = 0."""
    empty = isinstance(values, (list, tuple, np.ndarray)) and not len(values)
    if values is None or empty:
        return np.zeros((0, *item_shape))
    try:
        array = np.asarray(values)
    except (TypeError, ValueError) as error:  # lists of different lengths
        raise ValueError(f"{where}: expected numbers, found {short(values)}") from error
    if array.dtype.kind not in "iuf":  # also texts such as "3": a typo is likelier than a number
        raise ValueError(f"{where}: expected numbers, found {short(values)}")
    array = array.astype(float)
    if array.shape == item_shape:
        array = array[None]
    if array.shape[1:] != item_shape:
        wanted = ", ".join(map(str, ("n", *item_shape)))
        raise ValueError(f"{where}: expected shape ({wanted}), found {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{where}: must be finite, found {short(array.tolist())}")
    return array
