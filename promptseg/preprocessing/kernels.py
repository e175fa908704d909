"""Interpolation along one axis as a sparse matrix; volumes resampled by three of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
from scipy import sparse


def axis_weights(
    old: int, new: int, kernel: Callable[[np.ndarray], np.ndarray], *, antialias: bool
) -> sparse.csr_matrix:
    """(new, old) float32 interpolation weights along one axis; each row sums to 1.

    Args:
        old, new: voxels along the axis.
        kernel: weight by distance in voxels, zero from 2 on.
        antialias: widen the kernel by the factor when the axis shrinks.
    """
    scale = old / new
    width = max(scale, 1.0) if antialias else 1.0
    centres = (np.arange(new) + 0.5) * scale - 0.5  # of the new voxels, in old indices
    taps = np.arange(int(np.ceil(4 * width)) + 1)
    columns = np.floor(centres - 2 * width).astype(int)[:, None] + taps
    values = kernel(np.abs(columns - centres[:, None]) / width)
    values[(columns < 0) | (columns >= old)] = 0.0
    values /= values.sum(axis=1, keepdims=True)
    rows = np.broadcast_to(np.arange(new)[:, None], columns.shape)
    used = values != 0.0
    entries = (values[used].astype(np.float32), (rows[used], columns[used]))
    return sparse.csr_matrix(entries, shape=(new, old))


def linear(distance: np.ndarray) -> np.ndarray:
    """The tent: 1 at distance 0, 0 from 1 on."""
    return np.maximum(1.0 - distance, 0.0)


def cubic(t: np.ndarray) -> np.ndarray:
    """Keys' kernel, a = -0.5, at distances `t`: 0 from 2 on."""
    near = (1.5 * t - 2.5) * t * t + 1.0
    far = ((-0.5 * t + 2.5) * t - 4.0) * t + 2.0
    return np.where(t < 1.0, near, np.where(t < 2.0, far, 0.0))


def resampled_planes(
    slice_at: Callable[[int], np.ndarray],
    along_z: sparse.csr_matrix,
    along_y: sparse.csr_matrix,
    along_x: sparse.csr_matrix,
) -> Iterator[np.ndarray]:
    """The slices (y', x') of a resampled volume one after the other, float32.

    `slice_at(z)` gives an input slice (y, x). It is resampled in its plane when first needed and
    dropped after the last output slice that needs it.
    """
    held: dict[int, np.ndarray] = {}
    for row in range(along_z.shape[0]):
        entries = slice(along_z.indptr[row], along_z.indptr[row + 1])
        needed, weights = along_z.indices[entries], along_z.data[entries]
        held = {z: held[z] for z in needed.tolist() if z in held}
        plane = np.zeros((along_y.shape[0], along_x.shape[0]), np.float32)
        for z, weight in zip(needed.tolist(), weights, strict=True):
            if z not in held:
                held[z] = _resample_plane(slice_at(z), along_y, along_x)
            plane += weight * held[z]
        yield plane


def resampled_from_planes(
    planes: Iterable[np.ndarray],
    along_z: sparse.csr_matrix,
    along_y: sparse.csr_matrix,
    along_x: sparse.csr_matrix,
) -> np.ndarray:
    """The (z', y', x') float32 volume that slices (y, x), coming in order, are resampled to.

    Equal to `resampled_planes`, but holds the result and one slice: for many slices that become
    a small volume.
    """
    by_slice = along_z.tocsc()
    volume = np.zeros([matrix.shape[0] for matrix in (along_z, along_y, along_x)], np.float32)
    for z, plane in enumerate(planes):
        resampled = _resample_plane(plane, along_y, along_x)
        entries = slice(by_slice.indptr[z], by_slice.indptr[z + 1])
        for row, weight in zip(by_slice.indices[entries], by_slice.data[entries], strict=True):
            volume[row] += weight * resampled
    return volume


def _resample_plane(
    plane: np.ndarray, along_y: sparse.csr_matrix, along_x: sparse.csr_matrix
) -> np.ndarray:
    transposed = np.ascontiguousarray(plane.T, np.float32)  # sparse products want whole rows
    return along_y @ np.ascontiguousarray((along_x @ transposed).T)
