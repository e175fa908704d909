"""Label maps of a case as prompts: scribbles, and masks to correct."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from scipy.ndimage import find_objects, label

from promptseg.boxes import value_boxes
from promptseg.io.images import FILE_ENDINGS, Geometry, read_segmentation
from promptseg.labels import Values, label_mask, members, stored_values
from promptseg.prompts.given import CasePrompts, GivenPrompts, check_same_grid
from promptseg.prompts.names import label_of_value, values_in_words
from promptseg.prompts.types import VOXEL
from promptseg.words import some

_TOUCHING = np.ones((3, 3, 3), int)
_MOST = 0.5  # of the image: no scribble covers as much
_LARGEST = 200_000  # voxels of a scribble
_STEPS = sorted(  # to the 26 neighbours, through faces first
    (tuple(step) for step in (np.indices((3, 3, 3)).reshape(3, 27).T - 1).tolist() if any(step)),
    key=lambda step: (sum(map(abs, step)), step),
)


def read_scribbles(
    path: Path, labels: Mapping[str, Values], case_id: str, background_value: int | None = None
) -> CasePrompts:
    """Read a label map in which a person has painted scribbles.

    Each connected component of a value is a scribble. The scribbles of a label are background for
    all other labels of the map, and so are those of `background_value`. Those of a value are of
    every region that it is part of.

    Args:
        path: the label map, on the image's grid (this is checked by `GivenPrompts.on`).
        labels: names and values that the model knows; see `label_of_value` for other values.
        case_id: for errors.
        background_value: of background scribbles. If it is None or not 0, voxels with 0 are not
            annotated; if it is 0, those with the value after the last label are not, which is the
            ignore label of nnU-Net.

    Raises:
        FileNotFoundError, ValueError: naming the file, if it cannot be read, has no scribble of a
            label, values that are none, or areas that are too large for scribbles.
    """
    where = f"{path}: case {case_id!r}"
    array, grid = read_segmentation(path)
    empty = max(stored_values(labels), default=0) + 1 if background_value == 0 else 0
    counts = dict(zip(*map(np.ndarray.tolist, np.unique(array, return_counts=True)), strict=True))
    counts.pop(empty, None)
    background_count = counts.pop(background_value, 0)
    names = _names(counts, labels, where)
    for value, count in {**counts, background_value: background_count}.items():
        if count > _MOST * array.size:
            raise ValueError(
                f"{where}: the value {value} fills {count / array.size:.0%} of the image, so it is "
                f"not a scribble; expected {empty} where nothing is annotated. If {value} means "
                f"that and 0 means background, give the background value 0 (--background-value 0)"
            )
    if not names:
        raise ValueError(
            f"{where}: has no scribble of a label: found "
            f"{'background only' if background_count else f'the value {empty} only'}, expected "
            f"some of {values_in_words(labels)}"
        )
    painted = [*filter(None, counts), *([background_value] if background_count else [])]
    lines = {value: _components(array, value, where) for value in painted}
    background = lines.pop(background_value, ())
    given = {}
    for name, values in names.items():
        own = sum((lines[value] for value in members(values) if value in lines), ())
        others = sum((lines[other] for other in lines if other not in members(values)), background)
        given[name] = (
            GivenPrompts(
                frame=VOXEL,
                scribbles=own + others,
                scribble_labels=np.repeat([1, 0], [len(own), len(others)]),
                where=f"{where}, label {name!r}",
                grid=grid,
            ),
        )
    return CasePrompts(labels=given)


def mask_file(folder: Path, case_id: str) -> Path | None:
    """The label map of a case among the masks to correct, or None.

    Raises:
        ValueError: if there are several.
    """
    files = [folder / f"{case_id}{ending}" for ending in FILE_ENDINGS]
    found = [path for path in files if path.is_file()]
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise ValueError(f"{folder}: case {case_id!r}: found {names}; keep one")
    return found[0] if found else None


def cases_with_masks(folder: Path, cases: Sequence[str]) -> set[str]:
    """Those of the cases that a folder of masks to correct has a label map for, or several.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if it has a label map for none of the cases.
    """
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder}: no such folder; expected one with masks to correct, a label map "
            f"CASE.nii.gz for each image"
        )
    names = {path.name for path in folder.iterdir()}
    found = {case for case in cases if any(f"{case}{ending}" in names for ending in FILE_ENDINGS)}
    if not found:
        raise ValueError(
            f"{folder} has no mask to correct for any of the images: expected CASE.nii.gz for "
            f"{some(cases)}, found {some(sorted(names))}"
        )
    return found


def read_masks(
    path: Path, labels: Mapping[str, Values], of_image: Geometry, case_id: str
) -> dict[str, np.ndarray]:
    """The (z, y, x) bool mask to correct of each label that occurs in a label map.

    Args:
        path: the label map.
        labels: names and values that the model knows; see `label_of_value` for other values.
        of_image: the image's geometry, which must be the label map's.
        case_id: for errors.

    Raises:
        FileNotFoundError, ValueError: naming the file, if it cannot be read, has another grid or
            values that are none.
    """
    where = f"{path}: case {case_id!r}"
    array, grid = read_segmentation(path)
    check_same_grid(grid, of_image, where)
    if array.min() < 0:
        raise ValueError(f"{where}: expected values of labels, found {array.min()}")
    names = _names(value_boxes(array), labels, where)
    return {name: label_mask(array, values) for name, values in names.items()}


def _names(
    values: Mapping[int, object], labels: Mapping[str, Values], where: str
) -> dict[str, Values]:
    """What each label or object that occurs stands for; the background is left out."""
    names = {value: label_of_value(value, labels) for value in sorted(values) if value != 0}
    if unknown := [str(value) for value, name in names.items() if name is None]:
        raise ValueError(
            f"{where}: unknown label(s) {', '.join(unknown)}, by value; the model knows "
            f"{values_in_words(labels)}, and greater values are unnamed objects"
        )
    there = {name: v for name, v in labels.items() if not names.keys().isdisjoint(members(v))}
    objects = {name: value for value, name in names.items() if name not in labels}
    return {**there, **objects}


def _components(array: np.ndarray, value: int, where: str) -> tuple[np.ndarray, ...]:
    """The connected components of a value, each as a walk through its voxels."""
    numbers, _ = label(array == value, _TOUCHING)
    sizes = np.bincount(numbers.ravel())[1:]
    if len(sizes) and (largest := sizes.max()) > _LARGEST:
        raise ValueError(
            f"{where}: {largest} voxels with the value {value} touch each other, so they are not "
            f"a scribble; expected lines of {_LARGEST} at most. Give masks that are to be "
            f"corrected as such (--initial)"
        )
    return tuple(
        _walk(np.argwhere(numbers[box] == number) + [s.start for s in box])
        for number, box in enumerate(find_objects(numbers), 1)
    )


def _walk(voxels: np.ndarray) -> np.ndarray:
    """(k, 3) positions from neighbour to neighbour through all voxels of a component.

    A line through them covers the component and nothing else. At the end of a branch it returns
    on the same voxels; it always starts at the first voxel and takes the first neighbour.
    """
    first, *rest = map(tuple, voxels.tolist())
    remaining, walk, path = set(rest), [first], [first]
    while remaining:
        z, y, x = path[-1]
        around = ((z + dz, y + dy, x + dx) for dz, dy, dx in _STEPS)
        if neighbour := next((voxel for voxel in around if voxel in remaining), None):
            remaining.remove(neighbour)
            path.append(neighbour)
        else:
            path.pop()
        walk.append(path[-1])
    return np.array(walk, float)
