import numpy as np
import pytest

from promptseg.plans import Normalization
from promptseg.preprocessing.normalize import (
    CT_WINDOWS,
    check_windowed,
    ct_window,
    default_normalization,
    intensity_range,
    keep_windowed,
    normalize,
    percentile_clipping,
    rescale,
    rescale_part,
    scale_of,
    to_uint8,
    undo_window,
)


@pytest.mark.parametrize(
    "name, lowest_hu, highest_hu",
    [  # level - width / 2 and level + width / 2, by hand from the paper's four windows
        ("soft tissue", -160, 240),
        ("lung", -910, 590),
        ("brain", 0, 80),
        ("bone", -500, 1300),
    ],
)
def test_a_ct_window_maps_its_ends_to_0_and_255_and_its_level_to_the_middle(
    name, lowest_hu, highest_hu
):
    level = (lowest_hu + highest_hu) / 2
    hu = np.array([-3000, lowest_hu, level, highest_hu, 3000], np.int16).reshape(1, 1, 5)

    result = normalize(hu, ct_window(name))

    assert CT_WINDOWS.keys() >= {name}
    np.testing.assert_allclose(result.ravel(), [0, 0, 127.5, 255, 255], atol=1e-4)
    assert result.dtype == np.float32


def test_soft_tissue_values_worked_out_by_hand():
    # water 0 HU: 160 / 400 of 255 = 102; liver 60 HU: 220 / 400 of 255 = 140.25
    hu = np.array([0, 60, -1000], np.int16).reshape(1, 3, 1)

    assert to_uint8(normalize(hu, ct_window("soft tissue"))).ravel().tolist() == [102, 140, 0]


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64])
def test_percentile_clipping_agrees_with_the_formula_for_every_number_type(dtype):
    image = np.random.default_rng(0).gamma(2.0, 20.0, (5, 17, 23)).clip(0, 255).astype(dtype)
    ordered = np.sort(image.ravel().astype(float))
    # linear interpolation between order statistics
    low, high = (
        np.interp(p / 100 * (ordered.size - 1), np.arange(ordered.size), ordered)
        for p in (0.5, 99.5)
    )

    result = normalize(image, percentile_clipping())

    expected = (np.clip(image.astype(float), low, high) - low) / (high - low) * 255
    np.testing.assert_allclose(result, expected, atol=1e-3)
    assert result.min() == 0 and result.max() == 255


@pytest.mark.parametrize("normalization", [ct_window("soft tissue"), percentile_clipping()])
@pytest.mark.parametrize("value", [0, 100, -1000, 3000])
def test_a_constant_volume_becomes_zero(normalization, value):
    result = normalize(np.full((2, 3, 4), value, np.int16), normalization)

    assert result.shape == (2, 3, 4) and not result.any()


def test_an_empty_volume_stays_empty():
    assert normalize(np.zeros((0, 3, 4)), percentile_clipping()).shape == (0, 3, 4)
    assert normalize(np.zeros((0, 3, 4)), ct_window("bone")).shape == (0, 3, 4)


def test_a_small_bright_spot_in_plain_background_survives_percentile_clipping():
    image = np.zeros((4, 20, 30), np.float32)
    image[2, 5, 7] = 9.0  # one voxel of 2400: both percentiles are 0

    result = normalize(image, percentile_clipping())

    assert intensity_range(image, percentile_clipping()) == (0.0, 9.0)
    assert result[2, 5, 7] == 255 and result.sum() == 255


@pytest.mark.parametrize("scale", [1e-42, 1e-30, 1.0, 1e30, 3e38])
def test_extreme_ranges_stay_finite_and_in_bounds(scale):
    image = (np.linspace(0, 1, 60).reshape(3, 4, 5) * scale).astype(np.float32)

    result = rescale(image, float(image.min()), float(image.max()))

    assert np.isfinite(result).all() and result.min() == 0 and result.max() == 255


@pytest.mark.parametrize("normalization", [ct_window("brain"), percentile_clipping()])
@pytest.mark.parametrize("values", [(-900, 900), (10, 11), (500, 900), (7, 7), (-80, 0)])
def test_a_part_with_the_scale_of_the_whole_is_that_part_of_the_whole(normalization, values):
    image = np.resize(np.array(values, np.int16), (3, 4, 5))
    limits = intensity_range(image, normalization)
    part = rescale_part(image[1:2, :1], *scale_of(image, *limits))
    np.testing.assert_array_equal(part, normalize(image, normalization)[1:2, :1])


def test_normalizing_leaves_the_input_alone():
    image = np.arange(60, dtype=np.float32).reshape(3, 4, 5)
    before = image.copy()

    normalize(image, percentile_clipping())

    np.testing.assert_array_equal(image, before)


def test_ct_gets_soft_tissue_and_all_else_percentiles():
    assert default_normalization("CT") == ct_window("soft tissue")
    for modality in ("MRI", "PET", "US", "other"):
        assert default_normalization(modality) == percentile_clipping()


def test_to_uint8_rounds_half_to_even_and_clips():
    values = np.array([-3.0, 0.5, 1.5, 2.49, 254.6, 300.0])

    assert to_uint8(values).tolist() == [0, 0, 2, 2, 255, 255]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            dict(kind="zscore", lower=0, upper=1),
            "'zscore' is none of window, percentiles, foreground",
        ),
        (dict(kind="window", lower=5, upper=5), "lower < upper, got 5, 5"),
        (dict(kind="percentiles", lower=99.5, upper=0.5), "lower < upper"),
        (dict(kind="window", lower=float("nan"), upper=5), "lower < upper, got nan"),
    ],
)
def test_a_normalization_that_makes_no_sense_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Normalization(**arguments)


def test_undoing_a_window_is_the_inverse_of_applying_it():
    rng = np.random.default_rng(5)
    image = rng.integers(0, 256, (2, 3, 5, 7)).astype(np.uint8)
    image[:, 0, 0, :2] = 0, 255
    normalizations = (ct_window("lung"), percentile_clipping())
    raw = undo_window(image, normalizations)
    np.testing.assert_array_equal(to_uint8(normalize(raw[0], normalizations[0])), image[0])
    assert raw[0].min() == -910 and raw[0].max() == 590  # width 1500, level -160
    np.testing.assert_array_equal(raw[1], image[1])
    for unchanged in (keep_windowed(), percentile_clipping()):
        assert undo_window(image, (unchanged,) * 2) is image


@pytest.mark.parametrize("values", [(-1, 255), (0, 256), (-1000, 400)])
def test_intensities_that_were_not_windowed_are_refused(values):
    image = np.zeros((1, 1, 2, 3), np.int16)
    image[0, 0, 0, :2] = values
    with pytest.raises(ValueError, match=rf"intensities {values[0]} to {values[1]}, expected 0 to"):
        check_windowed(image, (keep_windowed(),))
    check_windowed(image, (ct_window("lung"),))
    check_windowed(np.clip(image, 0, 255), (keep_windowed(),))
