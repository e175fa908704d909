"""Smoothing and moments against SciPy and NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from promptseg.prompts.intensity import threads
from promptseg.prompts.intensity.smoothing import gaussian_kernel, mean_and_deviation, smooth
from tests.prompts.intensity.volumes import SHAPES


@pytest.mark.parametrize("shape", SHAPES)
def test_smoothing_equals_scipys_to_the_last_bit_but_for_rare_roundings(shape):
    image = np.random.default_rng(1).uniform(0, 255, shape).astype(np.float32)

    expected = ndimage.gaussian_filter(image, 2.0, mode="reflect", truncate=4.0)

    # Only the order of additions differs: at most one unit in the last place, almost never.
    np.testing.assert_array_max_ulp(smooth(image), expected, maxulp=1)
    assert np.count_nonzero(smooth(image) != expected) <= 1


@pytest.mark.parametrize("sigma", [0.3, 1.0, 3.7, (0.0, 2.0, 0.5), (5.0, 0.0, 0.0)])
def test_smoothing_with_another_sigma_equals_scipys(sigma):
    image = np.random.default_rng(2).uniform(0, 255, (11, 13, 40)).astype(np.float32)

    np.testing.assert_array_max_ulp(
        smooth(image, sigma), ndimage.gaussian_filter(image, sigma, truncate=4.0), maxulp=1
    )


def test_smoothing_without_width_changes_nothing():
    image = np.random.default_rng(3).uniform(0, 255, (4, 6, 5)).astype(np.float32)

    np.testing.assert_array_equal(smooth(image, 0.0), image)


def test_the_kernel_is_that_of_a_smoothed_impulse():
    impulse = np.zeros(41)
    impulse[20] = 1

    expected = ndimage.gaussian_filter1d(impulse, 2.0, truncate=4.0)[12:29]

    np.testing.assert_allclose(gaussian_kernel(2.0), expected, rtol=1e-15)


def test_an_image_in_threads_is_smoothed_as_in_one(monkeypatch):
    image = np.random.default_rng(4).uniform(0, 255, (6, 33, 50)).astype(np.float32)
    alone = smooth(image)
    monkeypatch.setattr(threads, "WORTH_THREADS", 1)
    monkeypatch.setattr(threads, "_cores", lambda: 3)

    np.testing.assert_array_equal(smooth(image), alone)


def test_mean_and_deviation_are_numpys_in_double_precision():
    image = np.random.default_rng(5).gamma(2, 30, (7, 40, 31)).astype(np.float32)

    mean, deviation = mean_and_deviation(image)

    assert mean == pytest.approx(image.mean(dtype=np.float64), rel=1e-14)
    assert deviation == pytest.approx(image.std(dtype=np.float64), rel=1e-13)


@pytest.mark.parametrize("value", [0, 0.1, 7, 254.7, 255])
def test_a_constant_volume_has_a_deviation_of_exactly_zero(value):
    image = smooth(np.full((7, 30, 41), value, np.float32))

    assert mean_and_deviation(image) == (float(np.float32(value)), 0.0)
