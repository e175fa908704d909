"""Boxes and points as people write them to arrays, or an error that says what is wrong."""

from __future__ import annotations

from typing import Any

import numpy as np


def check_numbers(
    boxes: Any, points: Any, point_labels: Any, where: str, *, in_voxels: bool = True
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes, points and their labels as arrays, checked as far as that goes without an image.

    Args:
        boxes: (2, 3) or (n, 2, 3) numbers in lists or an array; None for none.
        points: (3,) or (k, 3) numbers.
        point_labels: one a point, 1 foreground or 0 background; all foreground when not given.
        where: what they belong to, for errors.
        in_voxels: whether a box is half-open, lower and upper corner; else any two opposite ones.

    Returns:
        (n, 2, 3) boxes, (k, 3) points and (k,) labels.

    Raises:
        ValueError: for wrong shapes, what is no finite number, empty boxes, or other labels.
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


def _kinds(point_labels: Any, count: int, where: str) -> np.ndarray:
    """(count,) ones and zeros."""
    if point_labels is None:
        return np.ones(count, int)
    try:
        kinds = np.asarray(point_labels)
    except ValueError:  # lists of different lengths
        kinds = np.asarray(None)
    if kinds.shape != (count,) or not np.isin(kinds, (0, 1)).all():
        raise ValueError(
            f"{where}: {count} points need as many labels, each 1 (foreground) or 0 "
            f"(background), found {_short(point_labels)}"
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
        raise ValueError(f"{where}: expected numbers, found {_short(values)}") from error
    if array.dtype.kind not in "iuf":  # also texts such as "3": a typo is likelier than a number
        raise ValueError(f"{where}: expected numbers, found {_short(values)}")
    array = array.astype(float)
    if array.shape == item_shape:
        array = array[None]
    if array.shape[1:] != item_shape:
        wanted = ", ".join(map(str, ("n", *item_shape)))
        raise ValueError(f"{where}: expected shape ({wanted}), found {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{where}: must be finite, found {_short(array.tolist())}")
    return array


def _short(values: Any) -> str:
    text = repr(values)
    return text if len(text) <= 200 else f"{text[:200]}..."
