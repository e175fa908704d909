from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from promptseg.experiment_planning.examine import examine_dataset
from promptseg.experiment_planning.fingerprint import (
    HU_EDGES,
    hu_histogram,
    label_statistics,
    save_fingerprint,
)
from promptseg.files import read_json, write_json
from promptseg.io.dataset import read_raw_dataset
from promptseg.io.images import read_image, read_segmentation
from promptseg.labels import IGNORED
from promptseg.preprocessing.modality import channel_statistics
from tests.real_data import raw_folder
from tests.synthetic import label_boxes, write_raw_dataset

SHAPE = (9, 14, 17)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_raw_dataset(tmp_path_factory.mktemp("raw"), cases=3, channels=2, labels=2)


@pytest.fixture(scope="module")
def fingerprint(dataset):
    return examine_dataset(read_raw_dataset(dataset), 0).fingerprint


# Statistics


@settings(max_examples=40, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), labels=st.integers(1, 5))
def test_label_statistics_are_those_of_the_masks(seed, labels):
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(1, 9, 3))
    segmentation = rng.integers(0, labels + 1, shape).astype(np.uint8)
    image = rng.normal(size=shape).astype(np.float32)

    found = label_statistics(segmentation, image)

    assert set(found) == set(np.unique(segmentation).tolist()) - {0}
    for label, statistics in found.items():
        where = np.argwhere(segmentation == label)
        assert statistics.voxels == len(where)
        np.testing.assert_array_equal(statistics.box, [where.min(0), where.max(0) + 1])
        np.testing.assert_allclose(
            statistics.centroid, (where.mean(0) + 0.5) / shape, rtol=1e-5, atol=1e-7
        )
        assert statistics.mean == pytest.approx(image[segmentation == label].mean(), abs=1e-6)
        components, _ = ndimage.label(segmentation == label, np.ones((3, 3, 3)))
        largest = np.bincount(components.ravel())[1:].max()
        assert statistics.largest_component == pytest.approx(largest / len(where))


def test_a_label_that_fills_the_volume_is_centred():
    found = label_statistics(np.ones(SHAPE, np.uint8), np.zeros(SHAPE))[1]
    assert found.centroid == pytest.approx((0.5, 0.5, 0.5))
    assert found.box == ((0, 0, 0), SHAPE)


def test_hu_histogram_counts_every_voxel_of_every_label_once():
    rng = np.random.default_rng(0)
    image = rng.integers(-3000, 5000, SHAPE).astype(np.int16)
    segmentation = rng.choice([0, 2], SHAPE).astype(np.uint8)

    found = hu_histogram(image, segmentation)

    assert set(found) == {0, 2}
    inside = np.clip(image, HU_EDGES[0], HU_EDGES[-1] - 1)
    for label, counts in found.items():
        expected, _ = np.histogram(inside[segmentation == label], HU_EDGES)
        np.testing.assert_array_equal(counts, expected)


def test_hu_bins_are_half_open_and_10_wide():
    assert len(HU_EDGES) == 411 and HU_EDGES[0] == -1024 and set(np.diff(HU_EDGES)) == {10}
    image = np.array([[[-1025, -1024, -1015, -1014, -1014.1, 3075, 3076, 32767]]], np.float32)
    counts = hu_histogram(image, np.zeros(image.shape, np.uint8))[0]
    assert counts[0] == 4 and counts[1] == 1 and counts[-1] == 3 and counts.sum() == 8


# Modality


def test_a_guess_is_warned_of_and_ct_gets_its_histograms(tmp_path):
    folder = write_raw_dataset(tmp_path, cases=2, channels=2)
    content = read_json(folder / "dataset.json")
    write_json(folder / "dataset.json", content | {"channel_names": {"0": "image", "1": "T1"}})

    examination = examine_dataset(read_raw_dataset(folder), 0)

    assert examination.fingerprint.modalities == ("CT", "MRI")
    assert list(examination.fingerprint.hu_histograms) == [0]
    (warning,) = examination.warnings
    assert warning.startswith("channel 0 is treated as CT; guessed: 'image'")


# The whole


def test_a_fingerprint_says_what_was_written(fingerprint, dataset):
    assert fingerprint.dataset == dataset.name
    assert fingerprint.labels == {"label_1": 1, "label_2": 2}
    assert [case.case_id for case in fingerprint.cases] == ["case_0", "case_1", "case_2"]
    for case in fingerprint.cases:
        assert case.shape == SHAPE and case.spacing == pytest.approx((2.5, 0.8, 0.7))
        image, _ = read_image([dataset / f"imagesTr/{case.case_id}_000{c}.nii.gz" for c in (0, 1)])
        for channel, found in zip(image, case.channels, strict=True):
            assert found == channel_statistics(channel)
        for label, box in enumerate(label_boxes(SHAPE, 2), start=1):
            np.testing.assert_array_equal(case.labels[label].box, box)
            assert case.labels[label].voxels == np.prod(box[1] - box[0])


def test_hu_histograms_are_summed_over_the_cases(fingerprint, dataset):
    segmentations = [read_segmentation(p)[0] for p in sorted((dataset / "labelsTr").iterdir())]
    assert set(fingerprint.hu_histograms) == {0, 1}
    for by_label in fingerprint.hu_histograms.values():
        for label in (0, 1, 2):
            assert sum(by_label[label]) == sum(np.sum(s == label) for s in segmentations)


def test_workers_and_one_process_find_the_same(fingerprint, dataset):
    assert examine_dataset(read_raw_dataset(dataset), 2).fingerprint == fingerprint


def test_the_file_says_what_the_fingerprint_does(fingerprint, tmp_path):
    path = save_fingerprint(tmp_path, fingerprint)
    assert path.name == "dataset_fingerprint.json"
    content = read_json(path)
    assert content["format_version"] == 1
    assert content["channel_names"] == list(fingerprint.channel_names)
    assert content["labels"] == fingerprint.labels
    for case, written in zip(fingerprint.cases, content["cases"], strict=True):
        assert written["shape"] == list(case.shape) and written["spacing"] == list(case.spacing)
        for value, label in case.labels.items():
            assert written["labels"][str(value)]["box"] == np.array(label.box).tolist()
    for channel, by_label in fingerprint.hu_histograms.items():
        for value, counts in by_label.items():
            assert content["hu_histograms"][str(channel)][str(value)] == list(counts)


@pytest.mark.parametrize(
    ("name", "modality", "cases"),
    [("Dataset013_ProstateUS", "US", 20), ("Dataset010_SarcomaPET", "PET", 34)],
)
def test_real_datasets_pass_and_have_a_plausible_fingerprint(name, modality, cases):
    examination = examine_dataset(read_raw_dataset(raw_folder() / name), 2)
    assert examination.problems == [] and examination.warnings == []
    assert examination.fingerprint.modalities == (modality,)
    assert len(examination.fingerprint.cases) == cases
    for case in examination.fingerprint.cases:
        lower, upper = np.array(case.labels[1].box)
        centre = np.array(case.labels[1].centroid) * case.shape
        assert np.all(lower < centre) and np.all(centre < upper) and np.all(upper <= case.shape)


def test_what_nobody_knows_is_in_no_statistics():
    rng = np.random.default_rng(4)
    image = rng.integers(-900, 900, SHAPE).astype(np.int16)
    segmentation = rng.integers(0, 3, SHAPE).astype(np.int16)
    segmentation[:, :, :5] = IGNORED
    found = label_statistics(segmentation, image)
    expected = label_statistics(segmentation[:, :, 5:], image[:, :, 5:])
    assert found.keys() == {1, 2}
    for label in (1, 2):
        assert found[label].voxels == expected[label].voxels
        assert found[label].mean == expected[label].mean
    histograms = hu_histogram(image, segmentation)
    cropped = hu_histogram(image[:, :, 5:], segmentation[:, :, 5:])
    np.testing.assert_equal(histograms, cropped)
    nothing = np.full(SHAPE, IGNORED, np.int16)
    assert label_statistics(nothing, image) == {} and hu_histogram(image, nothing) == {}
