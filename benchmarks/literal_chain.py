"""The paper's Algorithm 1 written down with SciPy and with SimpleITK, word for word and slowly.

What `promptseg.auto_prompt` must equal (SciPy) and is timed against (both).
"""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

RADIUS, MARGIN = 3, 5
BALL = (np.mgrid[-RADIUS : RADIUS + 1, -RADIUS : RADIUS + 1, -RADIUS : RADIUS + 1] ** 2).sum(
    axis=0
) <= RADIUS**2


def scipy_mask(image: np.ndarray, moments=np.float64, smoothing=np.float32) -> np.ndarray:
    """Lines 1 to 7: the closed mask.

    Args:
        image: (z, y, x) in [0, 255].
        moments: dtype in which mean and deviation are accumulated.
        smoothing: dtype of the smoothed volume.
    """
    smoothed = ndimage.gaussian_filter(image.astype(smoothing), 2.0, mode="reflect", truncate=4.0)
    mean, deviation = np.mean(smoothed, dtype=moments), np.std(smoothed, dtype=moments)
    low = np.float64(mean) + 0.5 * np.float64(deviation)
    high = np.float64(mean) + 2.0 * np.float64(deviation)
    mask = np.pad((low < smoothed) & (smoothed < high), 2 * RADIUS)
    mask = ndimage.binary_erosion(ndimage.binary_dilation(mask, BALL), BALL)
    inner = slice(2 * RADIUS, -2 * RADIUS)
    return mask[inner, inner, inner]


def box_of_largest(mask: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | None:
    """Lines 8 to 11, clipped: the half-open (2, 3) box, or None."""
    labels, count = ndimage.label(mask, np.ones((3, 3, 3)))
    if count == 0:
        return None
    largest = 1 + np.argmax(np.bincount(labels.ravel())[1:])
    found = np.nonzero(labels == largest)
    lower = [indices.min() - MARGIN for indices in found]
    upper = [indices.max() + 1 + MARGIN for indices in found]
    return np.clip([lower, upper], 0, shape)


def scipy_box(image: np.ndarray, **types) -> np.ndarray | None:
    """All of Algorithm 1 with SciPy."""
    return box_of_largest(scipy_mask(image, **types), image.shape)


def simpleitk_box(image: np.ndarray) -> np.ndarray | None:
    """Algorithm 1 as one would write it with SimpleITK; its recursive Gaussian differs a little."""
    smoothed = sitk.SmoothingRecursiveGaussian(sitk.GetImageFromArray(image), 2.0)
    statistics = sitk.StatisticsImageFilter()
    statistics.Execute(smoothed)
    mean, deviation = statistics.GetMean(), statistics.GetSigma()
    mask = (smoothed > mean + 0.5 * deviation) & (smoothed < mean + 2.0 * deviation)
    mask = sitk.BinaryMorphologicalClosing(mask, [RADIUS] * 3, sitk.sitkBall, 1.0, True)
    labels = sitk.ConnectedComponent(mask, True)
    shapes = sitk.LabelShapeStatisticsImageFilter()
    shapes.Execute(labels)
    if not shapes.GetLabels():
        return None
    largest = max(shapes.GetLabels(), key=shapes.GetNumberOfPixels)
    box = np.array(shapes.GetBoundingBox(largest)).reshape(2, 3)[:, ::-1]  # start and size, xyz
    return np.clip([box[0] - MARGIN, box[0] + box[1] + MARGIN], 0, image.shape)
