"""Regions of a lazily preprocessed image against the whole image preprocessed at once."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from promptseg.preprocessing import lazy as lazy_module
from promptseg.preprocessing.lazy import LazyImage
from promptseg.preprocessing.normalize import (
    ct_window,
    intensity_range,
    percentile_clipping,
    rescale,
)
from promptseg.preprocessing.resample import coarse_axes, resample_image, resampled_shape

NORMALIZATIONS = (ct_window("soft tissue"), percentile_clipping())


def at_once(raw, spacing, normalizations, target_spacing) -> np.ndarray:
    """Each channel normalized as a whole, then resampled as a whole, then rounded."""
    shape = resampled_shape(raw.shape[1:], spacing, target_spacing)
    axes = coarse_axes(spacing, target_spacing)
    scaled = [
        rescale(channel, *intensity_range(channel, normalization))
        for channel, normalization in zip(raw, normalizations, strict=True)
    ]
    return resample_image(np.stack(scaled), shape, linear_axes=axes, dtype=np.uint8)


def noise(shape, dtype=np.int16, channels=2, seed=0):
    return np.random.default_rng(seed).normal(0, 200, (channels, *shape)).astype(dtype)


def make(raw, spacing=(1, 1, 1), normalizations=NORMALIZATIONS, target_spacing=(1, 1, 1)):
    return LazyImage(raw, spacing, normalizations=normalizations, target_spacing=target_spacing)


@st.composite
def grids(draw):
    spacings = st.floats(0.3, 6.0).map(lambda s: round(s, 2))
    shape = tuple(draw(st.integers(1, 14)) for _ in range(3))
    spacing = tuple(draw(spacings) for _ in range(3))
    kept = [draw(st.booleans()) for _ in range(3)]
    target = tuple(s if k else draw(spacings) for s, k in zip(spacing, kept, strict=True))
    return shape, spacing, target


@settings(deadline=None, max_examples=60)
@given(grids(), st.data())
def test_every_region_is_bit_for_bit_that_of_the_whole_image(grid, data):
    shape, spacing, target = grid
    raw = noise(shape)
    expected = at_once(raw, spacing, NORMALIZATIONS, target)
    image = make(raw, spacing, NORMALIZATIONS, target)
    assert image.shape == expected.shape
    for _ in range(3):
        ends = [sorted(data.draw(st.integers(0, n)) for _ in range(2)) for n in image.shape[1:]]
        box = (slice(None), *(slice(*pair) for pair in ends))
        np.testing.assert_array_equal(image[box], expected[box])
    np.testing.assert_array_equal(image.everything(), expected)
    size = [data.draw(st.integers(1, 9)) for _ in range(3)]
    np.testing.assert_array_equal(image.resized(size), resample_image(expected, size))


@pytest.mark.parametrize("target", [(1, 1, 1), (0.8, 1.7, 0.6)])
@pytest.mark.parametrize("size", [(4, 9, 7), (30, 5, 9), (11, 13, 40)])
def test_what_is_too_large_to_be_kept_is_resized_slice_by_slice_to_the_same(
    monkeypatch, target, size
):
    raw = noise((11, 13, 17))
    expected = resample_image(at_once(raw, (1, 1, 1), NORMALIZATIONS, target), size)
    monkeypatch.setattr(lazy_module, "MOST_KEPT", 100)
    image = make(raw, target_spacing=target)
    np.testing.assert_array_equal(image.resized(size), expected)
    np.testing.assert_array_equal(image.resized(size), expected)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int32, np.float32, np.float64])
def test_every_number_type(dtype):
    raw = (noise((5, 12, 9), np.float64) / 2 % 120).astype(dtype)
    grids = ((2.0, 0.7, 1.0), NORMALIZATIONS, (1.0, 1.0, 1.0))
    np.testing.assert_array_equal(
        make(raw, *grids)[:, 1:4, 2:9, 0:5], at_once(raw, *grids)[:, 1:4, 2:9, 0:5]
    )


def test_a_plain_part_of_an_image_keeps_its_grey_and_a_plain_channel_is_0():
    raw = np.full((1, 4, 6, 20), 1000, np.int16)
    raw[..., 10:] = -1000
    image = make(raw, normalizations=NORMALIZATIONS[:1])
    assert (image[:, :, :, 2:5] == 255).all() and not image[:, :, :, 12:15].any()
    plain = np.where(np.arange(20) < 3, 1000, 3000) * np.ones((1, 4, 6, 1), np.int16)
    image = make(plain, normalizations=NORMALIZATIONS[:1])  # constant once it is clipped
    assert not image[:, :, :, 2:5].any() and not image.everything().any()


def test_patches_are_made_one_by_one_until_the_whole_is_cheaper(monkeypatch):
    made = []
    region = LazyImage._region
    monkeypatch.setattr(
        LazyImage, "_region", lambda self, box: made.append(box) or region(self, box)
    )
    image = make(noise((8, 10, 12)))
    for x in (0, 3, 6):
        image[:, 0:8, 0:10, x : x + 3]
    assert [box[2] for box in made] == [slice(0, 3), slice(3, 6), slice(6, 9)]
    image[:, 0:8, 0:10, 9:12]
    assert made[3:] == [(slice(0, 8), slice(0, 10), slice(0, 12))]
    image[:, 0:8, 0:10, 2:12], image.everything(), image.resized((3, 4, 5))
    assert len(made) == 4


def test_a_patch_of_a_large_image_takes_the_memory_of_a_patch():
    raw = noise((60, 200, 180), channels=1)  # 4 MB
    tracemalloc.start()
    image = make(raw, (1, 1, 1), NORMALIZATIONS[:1], (0.5, 0.4, 0.45))
    image[:, 20:60, 30:70, 100:150]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2e6  # the image as float32 has 9 MB, at the new spacing 96 MB


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_voxel_that_is_not_finite_is_refused(bad):
    raw = noise((3, 4, 5), np.float32)
    raw[1, 2, 1:3, 4] = bad
    with pytest.raises(ValueError, match="2 of 60 voxels are NaN or infinite"):
        make(raw)


@pytest.mark.parametrize("shape", [(4, 5, 6), (1, 4, 5, 6), (3, 4, 5, 6), (2, 1, 4, 5, 6)])
def test_other_channels_than_normalizations_are_refused(shape):
    with pytest.raises(ValueError, match=r"expected a \(c, z, y, x\) image of 2 channels, got"):
        make(np.zeros(shape))


@pytest.mark.parametrize("spacing", [(1, 0, 1), (1, 1), (1, -2, 1), (1, np.nan, 1)])
def test_a_spacing_that_is_no_length_is_refused(spacing):
    with pytest.raises(ValueError, match="three positive lengths"):
        make(noise((3, 4, 5)), spacing)
