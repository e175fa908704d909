"""From one voxel grid to another over the same extent: images, labels, logits, coordinates.

One convention everywhere: voxel i covers [i, i + 1) along its axis, so both grids share their outer
faces and not their outer centres (as PyTorch's `align_corners=False`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage, sparse

from promptseg.boxes import box_slices, value_boxes
from promptseg.preprocessing.kernels import axis_weights, cubic, linear, resampled_planes

if TYPE_CHECKING:
    import torch

COARSE_RATIO = 3.0  # nnU-Net's anisotropy threshold
_TIE = 1e-3  # added to the nearest label's weight: settles ties, changes nothing else

Shape = tuple[int, int, int]


def resampled_shape(
    shape: Sequence[int], spacing: Sequence[float], new_spacing: Sequence[float]
) -> Shape:
    """The voxels that cover the same extent at another spacing, rounded, at least 1 per axis.

    Args:
        shape: voxels, zyx.
        spacing, new_spacing: mm, zyx.

    Raises:
        ValueError: if a spacing is not positive and finite.
    """
    for name, values in (("spacing", spacing), ("new spacing", new_spacing)):
        if len(values) != 3 or not all(np.isfinite(v) and v > 0 for v in values):
            raise ValueError(f"{name} must be three positive lengths in mm, zyx; got {values}")
    return tuple(
        max(1, round(n * old / new))
        for n, old, new in zip(shape, spacing, new_spacing, strict=True)
    )


def coarse_axes(spacing: Sequence[float], new_spacing: Sequence[float]) -> tuple[int, ...]:
    """The axes of thick slices: more than 3 times the finest spacing, before or after.

    A cubic kernel across thick slices would overshoot where anatomy jumps from slice to slice, so
    these axes are interpolated linearly.

    Source:
        nnU-Net's rule for resampling such axes apart; it takes the nearest slice there.
    """
    return tuple(
        axis
        for axis in range(3)
        if any(values[axis] > COARSE_RATIO * min(values) for values in (spacing, new_spacing))
    )


def resample_image(
    image: np.ndarray,
    new_shape: Sequence[int],
    *,
    linear_axes: Sequence[int] = (),
    dtype: type | None = None,
) -> np.ndarray:
    """Resample an image; smooth when it grows, averaging (anti-aliasing) when it shrinks.

    Each channel is streamed slice by slice, so only a few slices are in memory besides the result.

    Args:
        image: (c, z, y, x) uint8 or float.
        new_shape: voxels, zyx.
        linear_axes: axes (0 is z) interpolated linearly instead of cubically; see `coarse_axes`.
        dtype: dtype of the result, uint8 or float32; as `image` by default. A cubic kernel
            can overshoot: uint8 is rounded and clipped to [0, 255], float32 is left as it is.

    Returns:
        (c, *new_shape) uint8 or float32; `image` itself when neither shape nor type changes.

    Raises:
        ValueError: if `image` or `new_shape` is not as described.

    Source:
        Keys 1981, doi:10.1109/TASSP.1981.1163711, a = -0.5; when shrinking, the kernel is widened
        by the factor and cut at the border, as in Pillow's resize (which knows two axes only).
    """
    new_shape = _checked_shape(new_shape)
    if image.ndim != 4:
        raise ValueError(f"an image to resample is (c, z, y, x), got shape {image.shape}")
    if image.dtype != np.uint8 and not np.issubdtype(image.dtype, np.floating):
        raise ValueError(f"an image to resample is uint8 or float, got {image.dtype}")
    dtype = np.dtype(dtype or (np.uint8 if image.dtype == np.uint8 else np.float32))
    if image.shape[1:] == new_shape and image.dtype == dtype:
        return image
    weights = image_weights(image.shape[1:], new_shape, linear_axes)
    resampled = np.empty((len(image), *new_shape), dtype)
    for source, target in zip(image, resampled, strict=True):
        planes = (
            source if source.shape == new_shape else resampled_planes(source.__getitem__, *weights)
        )
        for plane, out in zip(planes, target, strict=True):
            out[...] = np.rint(plane).clip(0, 255) if dtype == np.uint8 else plane
    return resampled


def image_weights(
    shape: Sequence[int], new_shape: Sequence[int], linear_axes: Sequence[int] = ()
) -> list[sparse.csr_matrix]:
    """For each axis the (new, old) weights with which `resample_image` interpolates."""
    return [
        axis_weights(n, m, linear if axis in linear_axes else cubic, antialias=True)
        for axis, (n, m) in enumerate(zip(shape, new_shape, strict=True))
    ]


def resample_segmentation(segmentation: np.ndarray, new_shape: Sequence[int]) -> np.ndarray:
    """Resample labels: each voxel gets the label with the largest linearly interpolated weight.

    Ties go to the label of the nearest voxel. A connected piece that nearest-neighbour resampling
    would keep and the weights would drop entirely (a lesion of one voxel) is restored as nearest
    has it. Labels are processed one after the other inside their boxes: memory does not grow with
    their number. There is no anti-aliasing, since averaging would erase thin structures.

    Args:
        segmentation: (z, y, x) integers.
        new_shape: voxels, zyx.

    Returns:
        `new_shape` of the same type; `segmentation` itself when the shape does not change.

    Source:
        nnU-Net resamples each label's mask linearly too; differs: a running best, ties, pieces.
    """
    new_shape = _checked_shape(new_shape)
    if segmentation.ndim != 3 or not np.issubdtype(segmentation.dtype, np.integer):
        raise ValueError(
            f"a segmentation to resample is (z, y, x) integers, got shape {segmentation.shape} "
            f"of {segmentation.dtype}"
        )
    if segmentation.shape == new_shape:
        return segmentation
    sizes = list(zip(segmentation.shape, new_shape, strict=True))
    nearest = segmentation[np.ix_(*(_nearest_indices(n, m) for n, m in sizes))]
    weights = [axis_weights(n, m, linear, antialias=False) for n, m in sizes]
    resampled, best = nearest.copy(), np.zeros(new_shape, np.float32)
    boxes = _label_boxes(segmentation)
    for label, box in boxes.items():
        _raise_label(label, segmentation[box], box, weights, nearest, best, resampled)
    for label, box in boxes.items():
        if label != 0:
            _put_back_pieces(label, _reach(box, weights), nearest, resampled)
    return resampled


def resample_logits(logits: torch.Tensor, new_shape: Sequence[int]) -> torch.Tensor:
    """Resample (n, z, y, x) float logits linearly to (n, *new_shape), on their device."""
    from torch.nn import functional  # here, so that worker processes never import torch

    new_shape = _checked_shape(new_shape)
    if tuple(logits.shape[1:]) == new_shape:
        return logits
    return functional.interpolate(logits[None], new_shape, mode="trilinear", align_corners=False)[0]


def scale_coordinates(
    coordinates: np.ndarray, from_shape: Sequence[int], to_shape: Sequence[int]
) -> np.ndarray:
    """Carry continuous coordinates from one grid to another.

    Voxel i covers [i, i + 1), so half-open boxes map by plain scaling; the centre of voxel i is
    at i + 0.5 (add it before and subtract it after to carry voxel indices).

    Args:
        coordinates: (..., 3) zyx in voxels of `from_shape`, such as a (2, 3) box.
        from_shape, to_shape: voxels, zyx.

    Returns:
        (..., 3) float64 in voxels of `to_shape`, not rounded.
    """
    coordinates = np.asarray(coordinates, np.float64)
    if coordinates.shape[-1:] != (3,):
        raise ValueError(f"coordinates end in an axis of 3 (zyx), got shape {coordinates.shape}")
    return coordinates * (np.asarray(to_shape, float) / np.asarray(from_shape, float))


def _nearest_indices(old: int, new: int) -> np.ndarray:
    return np.minimum(((np.arange(new) + 0.5) * old / new).astype(int), old - 1)


def _label_boxes(segmentation: np.ndarray) -> dict[int, tuple[slice, slice, slice]]:
    """The bounding box of every label that occurs; for background (0 or less) the whole volume."""
    of_label = {label: box_slices(box) for label, box in value_boxes(segmentation).items()}
    whole = tuple(slice(0, n) for n in segmentation.shape)
    background = np.unique(segmentation[segmentation <= 0]).tolist()
    return {**dict.fromkeys(background, whole), **of_label}


def _reach(
    box: tuple[slice, slice, slice], weights: Sequence[sparse.csr_matrix]
) -> tuple[slice, slice, slice]:
    """The output voxels that take from an input box, or that it lies between."""
    reach = []
    for inside, matrix in zip(box, weights, strict=True):
        new, old = matrix.shape
        low = int(np.floor((inside.start - 0.5) * new / old - 0.5))
        high = int(np.ceil((inside.stop + 0.5) * new / old - 0.5)) + 1
        reach.append(slice(max(0, low), min(new, high)))
    return tuple(reach)


def _raise_label(
    label: int,
    crop: np.ndarray,
    box: tuple[slice, slice, slice],
    weights: Sequence[sparse.csr_matrix],
    nearest: np.ndarray,
    best: np.ndarray,
    resampled: np.ndarray,
) -> None:
    """Write `label` wherever its interpolated weight beats `best`, and raise `best` to it."""
    reach = _reach(box, weights)
    cropped = [
        matrix[rows, columns] for matrix, rows, columns in zip(weights, reach, box, strict=True)
    ]
    for z, weight in enumerate(
        resampled_planes(lambda z: crop[z] == label, *cropped), reach[0].start
    ):
        here = (z, *reach[1:])
        weight = weight + _TIE * (nearest[here] == label)
        better = weight > best[here]
        best[here][better] = weight[better]
        resampled[here][better] = label


def _put_back_pieces(
    label: int, reach: tuple[slice, slice, slice], nearest: np.ndarray, resampled: np.ndarray
) -> None:
    pieces, count = ndimage.label(nearest[reach] == label, np.ones((3, 3, 3)))
    if count == 0:
        return
    kept = np.zeros(count + 1, bool)
    kept[pieces[resampled[reach] == label]] = True
    kept[0] = True  # voxels outside any piece
    resampled[reach][~kept[pieces]] = label


def _checked_shape(shape: Sequence[int]) -> Shape:
    if len(shape) != 3 or any(int(n) != n or n < 1 for n in shape):
        raise ValueError(f"the new shape is three positive voxel counts, zyx; got {shape}")
    return tuple(int(n) for n in shape)
