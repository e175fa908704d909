import numpy as np
import pytest

from promptseg.preprocessing.modality import (
    channel_statistics,
    declared_modality,
    looks_like_hu,
    modality_of,
)

SHAPE = (9, 14, 17)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32", "float64"])
def test_channel_statistics_are_numpys(dtype):
    image = np.random.default_rng(0).normal(100, 30, SHAPE).clip(0, 255).astype(dtype)

    found = channel_statistics(image)

    wide = image.astype(np.float64)
    assert found.mean == pytest.approx(wide.mean(), rel=1e-6)
    assert found.std == pytest.approx(wide.std(), rel=1e-6)
    assert (found.min, found.max) == (wide.min(), wide.max())
    assert list(found.percentiles) == ["0.5", "5", "25", "50", "75", "95", "99.5"]
    for name, value in found.percentiles.items():
        assert value == pytest.approx(np.percentile(wide, float(name)), rel=1e-5)


def test_moments_of_large_values_keep_their_precision():
    # float32 sums of values near 1e6 would be off by far more than the spread of 1.
    image = (1e6 + np.random.default_rng(0).integers(-2, 3, (20, 50, 60))).astype(np.float32)
    assert channel_statistics(image).std == pytest.approx(np.sqrt(2), rel=0.01)


@pytest.mark.parametrize(
    ("name", "modality"),
    [
        ("CT", "CT"),
        ("ct_portal venous", "CT"),
        ("CBCT", "CT"),
        ("MRI", "MRI"),
        ("mr", "MRI"),
        ("T1", "MRI"),
        ("T1w-Gd", "MRI"),
        ("FLAIR", "MRI"),
        ("ADC", "MRI"),
        ("PET", "PET"),
        ("FDG-PET (SUV)", "PET"),
        ("US", "US"),
        ("Ultrasound", "US"),
        ("PET/CT", None),
        ("zscore", None),
        ("noNorm", None),
        ("channel 0", None),
        ("factor", None),
        ("virus", None),
        ("", None),
    ],
)
def test_modalities_are_read_from_channel_names(name, modality):
    assert declared_modality(name) == modality


def statistics_of(lowest, highest):
    return channel_statistics(np.linspace(lowest, highest, 30).reshape(2, 3, 5))


@pytest.mark.parametrize(
    ("lowest", "highest", "is_hu"),
    [
        (-1000, 1500, True),
        (-1024, 3071, True),
        (-2048, 30000, True),
        (-600, 300, True),
        (-3, 5, False),  # normalized
        (0, 255, False),
        (0, 4000, False),
        (-1000, 0, False),
        (-1e6, 1e6, False),
    ],
)
def test_hu_are_recognized_by_their_range(lowest, highest, is_hu):
    assert looks_like_hu(statistics_of(lowest, highest)) == is_hu


def test_what_is_declared_is_not_guessed():
    modality, source = modality_of("T2", [statistics_of(-1000, 1500)])
    assert modality == "MRI" and source == "declared: channel_names calls it 'T2'"


def test_what_is_not_declared_is_guessed_from_most_cases():
    ct, other = statistics_of(-1000, 1500), statistics_of(0, 700)
    modality, source = modality_of("zscore", [ct, ct, other])
    assert modality == "CT" and source.startswith("guessed: 'zscore'") and "2 of 3 cases" in source
    assert modality_of("zscore", [ct, other])[0] == "unknown"
    assert modality_of("zscore", [])[0] == "unknown"
