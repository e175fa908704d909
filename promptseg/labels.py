"""What the names of a dataset mean: values, regions of several values, and voxels to ignore."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

IGNORE = "ignore"  # name of their value in dataset.json
IGNORED = -1  # in place of the dataset's value, wherever labels are learned from

Values = int | tuple[int, ...]
"""What a name stands for: the value of a label, or the values that make a region, ascending."""


def members(values: Values) -> tuple[int, ...]:
    """The values that a name stands for."""
    return (values,) if isinstance(values, int) else values


def all_members(of_names: Iterable[Values]) -> tuple[int, ...]:
    """The values that any of several names stands for, ascending."""
    return tuple(sorted({value for values in of_names for value in members(values)}))


def stored_values(labels: Mapping[str, Values]) -> tuple[int, ...]:
    """All foreground values of label files, ascending: the classes of a network."""
    return all_members(labels.values())


def classes_of(labels: Mapping[str, Values]) -> tuple[tuple[int, ...], ...]:
    """For each name the classes of a network that make it, among background and stored values."""
    stored = (0, *stored_values(labels))
    return tuple(tuple(map(stored.index, members(values))) for values in labels.values())


def label_mask(segmentation: np.ndarray, values: Values) -> np.ndarray:
    """The bool mask of a label or of a region in an array of values."""
    if isinstance(values, int):
        return segmentation == values
    return np.isin(segmentation, values)


def without_lists(labels: Mapping[str, Any]) -> dict[str, Any]:
    """Labels as JSON has them with tuples in place of lists; of one value, with that."""
    found = {}
    for name, values in labels.items():
        if isinstance(values, list):
            values = tuple(sorted(set(values)))
            values = values[0] if len(values) == 1 else values
        found[name] = values
    return found


def problem_of_class_order(labels: Mapping[str, Values], order: Any) -> str | None:
    """What is wrong with a `regions_class_order`, in words; None if nothing is.

    It has the value that is written for each name, in the names' order; later ones are written
    over earlier ones. Without regions nothing has to be written over anything.
    """
    if not any(isinstance(values, tuple) for values in labels.values()):
        return None
    if (
        isinstance(order, (list, tuple))
        and len(order) == len(labels)
        and all(value in members(of) for value, of in zip(order, labels.values(), strict=True))
        and len(set(order)) == len(order)
    ):
        return None
    of_each = ", ".join(f"{name!r} {list(members(values))}" for name, values in labels.items())
    return (
        f"expected one of the values of each label, all different, in the labels' order ({of_each})"
        f", found {order!r}"
    )


def meanings(labels: Mapping[str, Values], ignore_label: int | None) -> dict[int, str]:
    """The name of every value that label files may have, background and ignored voxels too."""
    names = {
        value: " and ".join(name for name, values in labels.items() if value in members(values))
        for value in stored_values(labels)
    }
    ignored: Iterable[tuple[int, str]] = () if ignore_label is None else [(ignore_label, IGNORE)]
    return {0: "background", **names, **dict(ignored)}


def with_ignored(segmentation: np.ndarray, ignore_label: int | None) -> np.ndarray:
    """A (z, y, x) segmentation as stored, with `IGNORED` in place of the value to ignore.

    The segmentation itself if no value is to be ignored; else of int16.
    """
    if ignore_label is None:
        return segmentation
    known = segmentation.astype(np.int16)
    known[segmentation == ignore_label] = IGNORED
    return known
