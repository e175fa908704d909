"""Percentiles by counting against NumPy's by sorting."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from promptseg.preprocessing import percentiles as module
from promptseg.preprocessing.percentiles import order_statistics, percentiles

TYPES = "u1 i1 u2 i2 u4 i4 u8 i8 f2 f4 f8 >i2 >f4".split()
PERCENTS = (0, 0.5, 37.3, 50, 99.5, 100)


@pytest.mark.parametrize("dtype", TYPES)
@settings(deadline=None, max_examples=10)
@given(st.data())
def test_order_statistics_are_those_of_sorting(dtype, data):
    shape = data.draw(hnp.array_shapes(min_dims=3, max_dims=3, max_side=5))
    elements = {}
    if "f" in dtype:
        elements = {"allow_nan": False, "allow_infinity": False}
    image = data.draw(
        hnp.arrays(dtype, shape, elements=hnp.from_dtype(np.dtype(dtype), **elements))
    )
    found = order_statistics(image, range(image.size))
    np.testing.assert_array_equal(found, np.sort(image.ravel()))
    assert found.dtype == image.dtype.newbyteorder("=")


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("above", [None, 3.0, 1e4])
def test_counting_gives_numpys_percentiles(monkeypatch, dtype, above):
    rng = np.random.default_rng(0)
    image = (rng.normal(0, 40, (17, 31, 23)) % 100).astype(dtype)
    looked_at = image if above is None else image[image > above]
    expected = [np.nan] * 6
    if looked_at.size:
        expected = np.percentile(looked_at.astype(float), PERCENTS)
    np.testing.assert_allclose(percentiles(image, PERCENTS, above), expected, rtol=1e-3)
    monkeypatch.setattr(module, "LARGE", 10)
    monkeypatch.setattr(module, "_PART", 1000)
    for view in (image, image[::-1, :, ::2], image.transpose(2, 0, 1)):
        looked_at = view if above is None else view[view > above]
        if looked_at.size:
            expected = np.percentile(looked_at.astype(float), PERCENTS)
        found = percentiles(view, PERCENTS, above)
        np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_negative_huge_and_tiny_numbers(monkeypatch):
    monkeypatch.setattr(module, "LARGE", 1)
    image = np.array([-3e38, -1.5, -1e-40, 0.0, 1e-42, 2.0, 3e38], np.float32).reshape(1, 7, 1)
    assert percentiles(image, (0, 100)) == [float(image.min()), float(image.max())]
    np.testing.assert_array_equal(order_statistics(image, range(7)), image.ravel())
    assert percentiles(np.full((2, 3, 4), -7, np.int16), (0.5, 99.5)) == [-7.0, -7.0]


def test_a_large_volume_is_not_copied():
    image = np.random.default_rng(0).normal(0, 300, (48, 300, 310)).astype(np.float32)
    assert image.size > module.LARGE
    expected = np.percentile(image, (0.5, 99.5))
    tracemalloc.start()
    found = percentiles(image, (0.5, 99.5))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert peak < 30e6 < 2 * image.nbytes
