"""Gaussian smoothing, and the mean and standard deviation of what comes out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from promptseg.prompts.automatic.threads import map_pieces

TRUNCATE = 4.0  # the kernel ends at this many sigmas, SciPy's default
_ROWS = 16  # outputs of one matrix product: with sigma 2 its matrix is 16 x 32, half of it zeros
_MOST_PRODUCTS = 2**17  # multiplications in one matrix product; OpenBLAS threads above 2**18


def smooth(image: np.ndarray, sigma: float | Sequence[float] = 2.0) -> np.ndarray:
    """Gaussian smoothing, truncated at 4 sigma, the image reflected at its borders.

    Each axis is multiplied by a banded matrix, block by block, in double precision, and rounded
    to float32 before the next, z first: the arithmetic of `scipy.ndimage.gaussian_filter` on a
    float32 image, but for the order of the additions. That changes a sum by about 1e-16 of its
    value, so that its float32 differs, by one unit in the last place, for one voxel in 1e8.

    Args:
        image: (z, y, x) finite numbers of any real type; rounded to float32 first.
        sigma: voxels, one number or one for each axis, zyx; 0 leaves an axis as it is.

    Returns:
        (z, y, x) float32. Beside it, no more than a few slices are allocated.
    """
    sigmas = np.broadcast_to(np.asarray(sigma, float), 3)
    bands_z, bands_y, bands_x = map(_bands, image.shape, sigmas)
    smoothed = np.empty(image.shape, np.float32)

    def along_z(y: int) -> None:
        plane = image[:, y].astype(np.float32, copy=False).astype(np.float64)
        _multiply_from_left(bands_z, plane, smoothed[:, y])

    def along_y_then_x(z: int) -> None:
        _multiply_from_left(bands_y, smoothed[z].astype(np.float64), smoothed[z])
        _multiply_from_right(bands_x, smoothed[z].astype(np.float64), smoothed[z])

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
    matrix = np.zeros((length, length))
    for outputs, inputs, band in _bands(length, sigma):
        matrix[outputs, inputs] = band
    return matrix


def _bands(length: int, sigma: float) -> list[tuple[slice, slice, np.ndarray]]:
    """Smoothing along an axis as (outputs, inputs, matrix from inputs to outputs) pieces.

    Reflection folds the weights beyond a border back inside, however short the axis is.
    """
    weights = gaussian_kernel(sigma)
    source = np.pad(np.arange(length), len(weights) // 2, mode="symmetric")
    bands = []
    for start in range(0, length, _ROWS):
        rows = np.arange(start, min(start + _ROWS, length))
        inputs = source[start : rows[-1] + len(weights)]
        low, high = inputs.min(), inputs.max() + 1
        matrix = np.zeros((len(rows), high - low))
        for offset, weight in enumerate(weights):
            matrix[rows - start, source[rows + offset] - low] += weight
        bands.append((slice(start, rows[-1] + 1), slice(low, high), matrix))
    return bands


def _multiply_from_left(bands: list, plane: np.ndarray, target: np.ndarray) -> None:
    for rows, inputs, matrix in bands:
        step = max(1, _MOST_PRODUCTS // matrix.size)
        for start in range(0, plane.shape[1], step):
            columns = slice(start, start + step)
            target[rows, columns] = matrix @ plane[inputs, columns]


def _multiply_from_right(bands: list, plane: np.ndarray, target: np.ndarray) -> None:
    for columns, inputs, matrix in bands:
        step = max(1, _MOST_PRODUCTS // matrix.size)
        for start in range(0, len(plane), step):
            rows = slice(start, start + step)
            target[rows, columns] = plane[rows, inputs] @ matrix.T
