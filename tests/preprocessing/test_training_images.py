"""Images that are not like those of the training are told from others."""

from __future__ import annotations

import numpy as np
import pytest

from promptseg.io.dataset import read_raw_dataset
from promptseg.io.images import read_image
from promptseg.preprocessing.modality import channel_statistics
from promptseg.preprocessing.training_images import describe, differences
from tests.real_data import raw_folder

SHAPE, SPACING = (12, 30, 25), (2.5, 0.8, 1.1)


def described(images, spacing=SPACING, absolute=True):
    statistics = [channel_statistics(image) for image in images]
    spacings = np.array([spacing] * len(images))
    return describe([statistics], spacings, np.array([i.shape for i in images]), [absolute])


def hu(seed=0) -> np.ndarray:
    """Air, soft tissue and some bone."""
    rng = np.random.default_rng(seed)
    image = rng.normal(-990, 20, SHAPE)
    image[:, 5:25, 4:20] = rng.normal(40, 30, (12, 20, 16))
    image[:, 10:14, 10:14] = rng.normal(700, 50, (12, 4, 4))
    return image


CT = described([hu(1), hu(2), hu(3)])
MR = described([np.abs(hu(n)) for n in range(3)], absolute=False)


def test_ranges_are_those_of_hand_worked_images():
    images = [np.linspace(low, low + 100, 12 * 30 * 25).reshape(SHAPE) for low in (-50, 50)]
    found = described(images)
    assert found["channels"][0]["percentiles"]["50"] == pytest.approx([0, 100])
    assert found["channels"][0]["contrast"] == pytest.approx([99, 99])
    assert found["channels"][0]["below_0"] == [False, True]
    assert found["spacing"] == [list(SPACING)] * 2
    assert found["extent_mm"][0] == pytest.approx([30, 24, 27.5])


@pytest.mark.parametrize(
    ("change", "spacing", "expected"),
    [
        (lambda a: a, SPACING, []),
        (lambda a: a + 30, (3, 1, 1), []),
        (lambda a: np.clip(a, -1024, 500), SPACING, []),  # without much bone
        (lambda a: a[:8, :20], SPACING, []),
        (lambda a: np.maximum(a, -1024) + 1024, SPACING, ["no value below 0 (5 % or more)"]),
        (lambda a: (a + 1100) / 2000, SPACING, ["no value below 0 (5 % or more)"]),
        (lambda a: a / 100, SPACING, ["values that span 17.6"]),
        (
            lambda a: a + 700,
            SPACING,
            ["a percentile 0.5 of", "a median of", "a percentile 99.5 of"],
        ),
        (lambda a: np.full_like(a, 7), SPACING, ["the value 7 everywhere"]),
        (lambda a: a, (2.5, 0.8, 9), ["voxels of 9 mm along x", "a field of view"]),
        (lambda a: a[:3], SPACING, ["a field of view of 7.5 mm along z (30 to 30)"]),
    ],
)
def test_what_differs_from_ct_of_the_training_is_said(change, spacing, expected):
    found = differences(change(hu(9))[None], spacing, CT)
    assert len(found) == len(expected), found
    for text, beginning in zip(found, expected, strict=True):
        assert text.startswith(beginning)


def test_where_intensities_are_relative_only_their_sign_and_a_constant_tell():
    image = np.abs(hu(9))[None]
    assert differences(image, SPACING, MR) == []
    assert differences(image / 1000, SPACING, MR) == []
    assert differences(hu(9)[None], SPACING, MR) == ["values below 0 (none)"]
    assert differences(0 * image, SPACING, MR) == ["the value 0 everywhere"]


def test_the_channel_is_named_where_there_are_several():
    both = {**CT, "channels": CT["channels"] + MR["channels"]}
    image = np.stack([hu(9), hu(9)])
    assert differences(image, SPACING, both) == ["values below 0 (none) of channel 1"]


def test_plans_that_know_nothing_say_nothing():
    assert differences(hu()[None] + 1024, SPACING, {}) == []


@pytest.mark.parametrize("name", ["Dataset010_SarcomaPET", "Dataset011_SarcomaCT"])
def test_real_images_are_like_others_of_their_dataset_and_not_like_shifted_ones(name):
    cases = read_raw_dataset(raw_folder() / name).cases[:16]
    read = [read_image(case.images) for case in cases]
    seen, held_out = read[:12], read[12:]
    training = describe(
        [[channel_statistics(image[0]) for image, _ in seen]],
        np.array([geometry.spacing for _, geometry in seen]),
        np.array([geometry.shape for _, geometry in seen]),
        [name.endswith("CT")],
    )
    for image, geometry in held_out:
        assert differences(image, geometry.spacing, training) == []
        shifted = image.astype(np.float32) + (1024 if name.endswith("CT") else -1024)
        assert differences(shifted, geometry.spacing, training)
