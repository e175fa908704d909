"""Gaussian smoothing, and the mean and standard deviation of the result."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.ndimage import gaussian_filter

from promptseg.prompts.intensity.threads import map_pieces

TRUNCATE = 4.0  # the kernel ends at this many sigmas, SciPy's default
_SMALL = 2**20  # voxels up to which SciPy is as fast, or faster
_ROWS = 16  # outputs of one matrix product: with sigma 2 its matrix is 16 x 32, half of it zeros
_MOST_PRODUCTS = 2**17  # multiplications in one matrix product; OpenBLAS threads above 2**18


def smooth(image: np.ndarray, sigma: float | Sequence[float] = 2.0) -> np.ndarray:
    """Gaussian smoothing, truncated at 4 sigma, the image reflected at its borders.

    Small volumes are SciPy's. In others each axis is multiplied by a banded matrix, block by
    block, in double precision, and rounded to float32 before the next, z first: the arithmetic of
    `scipy.ndimage.gaussian_filter` on a float32 image, but for the order of the additions. That
    changes a sum by about 1e-16 of its value, so that its float32 differs, by one unit in the
    last place, for one voxel in 1e8.

    Args:
        image: (z, y, x) finite numbers of any real type; rounded to float32 first.
        sigma: voxels, one number or one per axis, zyx; 0 leaves an axis as it is.

    Returns:
        (z, y, x) float32. Beside it, no more than a few slices are allocated.
    """
    if image.size <= _SMALL:
        small = image.astype(np.float32, copy=False)
        return gaussian_filter(small, sigma, mode="reflect", truncate=TRUNCATE)
    kernels = [gaussian_kernel(one) for one in np.broadcast_to(np.asarray(sigma, float), 3)]
    smoothed = np.empty(image.shape, np.float32)

    def along_z(y: int) -> None:
        _smooth_columns(image[:, y].astype(np.float32, copy=False), kernels[0], smoothed[:, y])

    def along_y_then_x(z: int) -> None:
        _smooth_columns(smoothed[z], kernels[1], smoothed[z])
        _smooth_rows(smoothed[z], kernels[2], smoothed[z])

    map_pieces(along_z, range(image.shape[1]), image.size)
    map_pieces(along_y_then_x, range(image.shape[0]), image.size)
    return smoothed


def mean_and_deviation(image: np.ndarray) -> tuple[float, float]:
    """Mean and population standard deviation of a (z, y, x) volume, accumulated in float64.

    The variance is that within slices plus that of the slices' means, so that nothing of the
    volume's size is allocated.
    """

    def moments(z: int) -> tuple[float, float]:
        plane = image[z].astype(np.float64)
        mean = plane.mean()
        plane -= mean
        return mean, np.square(plane, out=plane).mean()

    means, variances = np.array(map_pieces(moments, range(len(image)), image.size)).T
    return float(means.mean()), float(np.sqrt(variances.mean() + means.var()))


def gaussian_kernel(sigma: float) -> np.ndarray:
    """(2 r + 1,) float64 weights that sum to 1, with r = round(4 sigma), as SciPy's."""
    radius = int(TRUNCATE * sigma + 0.5)
    weights = np.exp(-0.5 / sigma**2 * np.arange(-radius, radius + 1) ** 2) if radius else [1.0]
    return np.asarray(weights / np.sum(weights))


def smoothing_matrix(length: int, sigma: float) -> np.ndarray:
    """(length, length) float64 matrix that smooths an axis of that length."""
    kernel = gaussian_kernel(sigma)
    source = _reflected(length, len(kernel) // 2)
    matrix = np.zeros((length, length))
    for row in range(length):
        np.add.at(matrix[row], source[row : row + len(kernel)], kernel)
    return matrix


def _reflected(length: int, radius: int) -> np.ndarray:
    """Indices along an axis with `radius` more at each end: 2 1 0 | 0 1 2 3 | 3 2 1."""
    return np.pad(np.arange(length), radius, mode="symmetric")


def _smooth_columns(plane: np.ndarray, kernel: np.ndarray, target: np.ndarray) -> None:
    """Smooth (n, m) float32 along its first axis into `target`, which may be the plane itself."""
    length, width = plane.shape
    windows, band = _windows(plane, kernel, "C")
    step = max(1, _MOST_PRODUCTS // band.size)
    for start in range(0, width, step):
        columns = slice(start, start + step)
        product = band @ windows[:, :, columns]  # one call for all blocks: one release of the lock
        target[:, columns] = product.reshape(-1, product.shape[2])[:length]


def _smooth_rows(plane: np.ndarray, kernel: np.ndarray, target: np.ndarray) -> None:
    """Smooth (m, n) float32 along its last axis into `target`, which may be the plane itself."""
    height, length = plane.shape
    windows, band = _windows(plane.T, kernel, "F")
    step = max(1, _MOST_PRODUCTS // band.size)
    for start in range(0, height, step):
        rows = slice(start, start + step)
        product = windows[:, :, rows].transpose(0, 2, 1) @ band.T
        target[rows] = product.transpose(1, 0, 2).reshape(product.shape[1], -1)[:, :length]


def _windows(plane: np.ndarray, kernel: np.ndarray, order: str) -> tuple[np.ndarray, np.ndarray]:
    """Overlapping blocks of a plane in double precision, and the matrix that smooths each.

    Args:
        plane: (n, m) float32, to be smoothed along the first axis.
        kernel: (2 r + 1,) weights.
        order: of the blocks in memory, `C` or `F`; the plane's own is the fastest.

    Returns:
        (blocks, rows + 2 r, m) view of the plane with its reflection at both ends, the last block
        filled up with zeros; (rows, rows + 2 r) banded matrix.
    """
    length, width = plane.shape
    reach, radius = len(kernel) - 1, len(kernel) // 2
    blocks = -(-length // _ROWS)
    extended = np.zeros((blocks * _ROWS + reach, width), order=order)
    source = _reflected(length, radius)
    extended[:radius] = plane[source[:radius]]
    extended[radius : radius + length] = plane
    extended[radius + length : reach + length] = plane[source[radius + length :]]
    step, along = extended.strides
    shape, strides = (blocks, _ROWS + reach, width), (_ROWS * step, step, along)
    windows = np.lib.stride_tricks.as_strided(extended, shape, strides, writeable=False)
    band = np.zeros((_ROWS, _ROWS + reach))
    for row in range(_ROWS):
        band[row, row : row + len(kernel)] = kernel
    return windows, band
