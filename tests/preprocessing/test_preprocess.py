import json
import logging
from pathlib import Path

import numpy as np
import pytest

from promptseg.files import read_json
from promptseg.io.dataset import RawCase
from promptseg.io.images import Geometry, read_image, read_segmentation, write_image
from promptseg.preprocessing.dataset import PreprocessedDataset, case_files
from promptseg.preprocessing.lazy import LazyImage
from promptseg.preprocessing.normalize import (
    ct_window,
    default_normalization,
    normalize,
    percentile_clipping,
    to_uint8,
)
from promptseg.preprocessing.preprocess import (
    preprocess_and_summarize,
    preprocess_case,
    preprocess_dataset,
)
from tests.real_data import raw_folder
from tests.small_plans import small_plans

SHAPE, SPACING = (9, 14, 12), (3.0, 1.0, 1.5)


def make_plans(**changes):
    values = {
        "normalizations": (percentile_clipping(),),
        "spacing": (1.5, 2.0, 1.5),
        "orientation": "stored",
        "labels": {"organ": 1, "lesion": 2, "absent": 3},
    }
    return small_plans(**{**values, **changes})


def make_case(folder, case_id="case_1", channels=1, seed=0, label_shape=SHAPE):
    rng = np.random.default_rng(seed)
    geometry = Geometry(shape=SHAPE, spacing=SPACING, origin=(5.0, -7.0, 11.0))
    images = tuple(folder / f"{case_id}_{c:04d}.nii.gz" for c in range(channels))
    for path in images:
        write_image(path, rng.normal(100, 30, SHAPE).astype(np.float32), geometry)
    label = np.zeros(label_shape, np.uint8)
    label[2:6, 3:11, 2:8] = 1
    label[4, 5, 6] = 2
    label_file = folder / f"{case_id}.nii.gz"
    write_image(label_file, label, Geometry(shape=label_shape, spacing=SPACING))
    return RawCase(case_id=case_id, images=images, label=label_file)


# images


def test_at_the_same_spacing_an_image_is_only_normalized():
    image = np.random.default_rng(0).normal(0, 200, (2, 4, 7, 9)).astype(np.float32)
    normalizations = (ct_window("bone"), percentile_clipping())

    result = LazyImage(
        image, (2, 1, 1), normalizations=normalizations, target_spacing=(2, 1, 1)
    ).everything()

    for channel, normalization, out in zip(image, normalizations, result, strict=True):
        np.testing.assert_array_equal(out, to_uint8(normalize(channel, normalization)))


def test_clipping_comes_before_interpolation_so_metal_does_not_spread():
    image = np.zeros((1, 4, 10, 12), np.int16)
    image[0, 2, 5, 6] = 30000  # metal: 240 HU after clipping

    result = LazyImage(
        image, (1, 1, 1), normalizations=[ct_window("soft tissue")], target_spacing=(1, 0.5, 0.5)
    ).everything()[0]

    # water is 102 (160 / 400 of 255); outside the kernel's 2 voxels nothing has changed
    assert (np.delete(result, slice(6, 16), axis=1) == 102).all()
    assert result[2, 10:12, 12:14].max() <= 255 and result.shape == (4, 20, 24)


def test_thick_slices_are_interpolated_linearly_across():
    image = np.zeros((1, 6, 5, 7), np.float32)
    image[0, 3:] = 100.0

    def profile(thickness):
        lazy = LazyImage(
            image, (thickness, 1, 1), normalizations=[ct_window("lung")], target_spacing=(1, 1, 1)
        )
        return lazy.everything()[0, :, 2, 3].astype(int)

    # 0 HU is 155 (910 / 1500 of 255), 100 HU is 172: a cubic kernel would leave that range
    assert profile(5).min() == 155 and profile(5).max() == 172
    assert profile(2).min() < 155 and profile(2).max() > 172


def test_the_raw_image_is_left_alone():
    image = np.random.default_rng(0).normal(0, 200, (1, 4, 7, 9)).astype(np.float32)
    before = image.copy()

    LazyImage(
        image, (1, 1, 1), normalizations=[percentile_clipping()], target_spacing=(2, 1, 1)
    ).everything()

    np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize("shape", [(4, 5, 6), (2, 4, 5, 6)])
def test_other_channels_than_the_plans_normalize_are_refused(shape):
    with pytest.raises(ValueError, match=r"expected a \(c, z, y, x\) image of 1 channels"):
        LazyImage(
            np.zeros(shape), (1, 1, 1), normalizations=[ct_window("lung")], target_spacing=(1, 1, 1)
        ).everything()


# cases


def test_the_raw_files_are_recorded_so_that_they_are_found_from_any_folder(tmp_path, monkeypatch):
    make_case(tmp_path / "raw")
    monkeypatch.chdir(tmp_path)
    case = RawCase(case_id="a", images=(Path("raw/case_1_0000.nii.gz"),), label=None)
    preprocess_case(case, make_plans(), Path("out"))
    recorded = PreprocessedDataset("out").properties("a")["raw"]["files"]
    assert recorded == [str(tmp_path / "raw" / "case_1_0000.nii.gz")]


def test_a_case_becomes_three_files_that_agree(tmp_path):
    plans = make_plans(normalizations=(percentile_clipping(), ct_window("lung")))
    case = make_case(tmp_path / "raw", channels=2)

    preprocess_case(case, plans, tmp_path / "out")

    dataset = PreprocessedDataset(tmp_path / "out")
    properties = dataset.properties("case_1")
    # 9 x 3 / 1.5 = 18, 14 x 1 / 2 = 7, 12 x 1.5 / 1.5 = 12
    assert properties["shape"] == [18, 7, 12] and properties["spacing"] == [1.5, 2.0, 1.5]
    assert dataset.image("case_1").shape == (2, 18, 7, 12)
    assert properties["raw"] == {
        "shape": list(SHAPE),
        "spacing": list(SPACING),
        "origin": [5.0, -7.0, 11.0],
        "direction": [1, 0, 0, 0, 1, 0, 0, 0, 1],
        "files": [str(path) for path in case.images],
    }
    raw, geometry = read_image(case.images)
    np.testing.assert_array_equal(
        dataset.image("case_1")[:],
        LazyImage(
            raw,
            geometry.spacing,
            normalizations=plans.normalizations,
            target_spacing=plans.spacing,
        ).everything(),
    )
    np.testing.assert_allclose(
        properties["intensity_ranges"][0], np.percentile(raw[0], (0.5, 99.5))
    )
    assert properties["intensity_ranges"][1] == [-910, 590]
    assert properties["constant_channels"] == [False, False]


def test_label_statistics_describe_the_preprocessed_segmentation(tmp_path):
    preprocess_case(make_case(tmp_path), make_plans(spacing=(0.75, 0.5, 0.75)), tmp_path / "out")

    dataset = PreprocessedDataset(tmp_path / "out")
    segmentation = dataset.segmentation("case_1")[:]
    labels = dataset.properties("case_1")["labels"]
    assert set(labels) == {1, 2}  # 3 does not occur
    for value in (1, 2):
        voxels = np.argwhere(segmentation == value)
        assert labels[value]["voxels"] == len(voxels) > 0
        assert labels[value]["box"] == [voxels.min(0).tolist(), (voxels.max(0) + 1).tolist()]
        locations = [tuple(location) for location in labels[value]["locations"]]
        assert len(set(locations)) == len(locations) == min(1000, len(voxels))
        assert set(locations) <= {tuple(voxel) for voxel in voxels.tolist()}
    assert labels[1]["voxels"] > 1000  # so that sampling took part
    # the sample is spread over the label: its mean is the label's to a few standard errors
    mean, sd = np.argwhere(segmentation == 1).mean(0), np.argwhere(segmentation == 1).std(0)
    assert (np.abs(np.mean(labels[1]["locations"], axis=0) - mean) < 4 * sd / 1000**0.5).all()


def test_preprocessing_twice_gives_the_same_bytes_of_json(tmp_path):
    case = make_case(tmp_path)
    texts = []
    for _ in range(2):
        preprocess_case(case, make_plans(), tmp_path / "out")
        texts.append((tmp_path / "out" / "case_1.json").read_text())

    assert texts[0] == texts[1]


def test_a_constant_channel_is_zero_and_reported(tmp_path):
    case = make_case(tmp_path)
    geometry = Geometry(shape=SHAPE, spacing=SPACING)
    write_image(case.images[0], np.full(SHAPE, 7.0, np.float32), geometry)

    preprocess_case(case, make_plans(), tmp_path / "out")

    dataset = PreprocessedDataset(tmp_path / "out")
    assert dataset.properties("case_1")["constant_channels"] == [True]
    assert not dataset.image("case_1")[:].any()


def test_a_case_without_labels_has_an_image_only(tmp_path):
    case = make_case(tmp_path)

    preprocess_case(
        RawCase(case_id="case_1", images=case.images, label=None), make_plans(), tmp_path / "out"
    )

    dataset = PreprocessedDataset(tmp_path / "out")
    assert dataset.properties("case_1")["labels"] == {}
    with pytest.raises(FileNotFoundError, match="case_1_seg.b2nd"):
        dataset.segmentation("case_1")


def test_a_label_on_another_grid_is_refused(tmp_path):
    case = make_case(tmp_path, label_shape=(9, 14, 13))

    with pytest.raises(
        ValueError,
        match=r"case_1.nii.gz: the label has shape \(9, 14, 13\), its image \(9, 14, 12\)",
    ):
        preprocess_case(case, make_plans(), tmp_path / "out")


def test_a_label_value_that_the_dataset_does_not_know_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"case_1.nii.gz: holds the values \[2\], which are not"):
        preprocess_case(make_case(tmp_path), make_plans(labels={"organ": 1}), tmp_path / "out")


def test_other_channels_than_planned_are_refused_by_name(tmp_path):
    with pytest.raises(
        ValueError, match="case 'case_1': 2 channels in case_1_0000.nii.gz, case_1_"
    ):
        preprocess_case(make_case(tmp_path, channels=2), make_plans(), tmp_path / "out")


def test_a_case_that_fails_leaves_no_stale_case_behind(tmp_path):
    case = make_case(tmp_path)
    preprocess_case(case, make_plans(), tmp_path / "out")
    case.images[0].unlink()

    with pytest.raises(FileNotFoundError, match="case_1_0000.nii.gz"):
        preprocess_case(case, make_plans(), tmp_path / "out")

    assert PreprocessedDataset(tmp_path / "out").case_ids == []


# datasets


def stamps(folder):
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.b2nd")}


def test_one_bad_case_does_not_stop_the_others(tmp_path, caplog):
    cases = [make_case(tmp_path, f"case_{i}", seed=i) for i in range(3)]
    cases[1].images[0].write_bytes(b"broken")

    failed = preprocess_dataset(cases, make_plans(), tmp_path / "out", processes=0)

    assert list(failed) == ["case_1"] and "case_1_0000.nii.gz cannot be read" in failed["case_1"]
    assert "case case_1: " in caplog.text
    assert not list((tmp_path / "out").glob(".*"))
    assert PreprocessedDataset(tmp_path / "out").case_ids == ["case_0", "case_2"]


def test_worker_processes_give_what_one_process_gives(tmp_path):
    cases = [make_case(tmp_path, f"case_{i}", seed=i) for i in range(3)]

    for processes, name in ((0, "one"), (2, "two")):
        assert preprocess_dataset(cases, make_plans(), tmp_path / name, processes) == {}

    one, two = PreprocessedDataset(tmp_path / "one"), PreprocessedDataset(tmp_path / "two")
    assert one.case_ids == two.case_ids == ["case_0", "case_1", "case_2"]
    for case_id in one.case_ids:
        np.testing.assert_array_equal(one.image(case_id)[:], two.image(case_id)[:])
        recorded, its = (case_files(of.folder, case_id)[2].read_text() for of in (one, two))
        assert recorded == its


def test_finished_cases_are_kept_and_said_so(tmp_path, caplog):
    cases = [make_case(tmp_path, f"case_{i}", seed=i) for i in range(2)]
    out = tmp_path / "out"
    preprocess_dataset(cases, make_plans(), out, processes=0)
    before = stamps(out)
    (out / "case_1_seg.b2nd").unlink()

    with caplog.at_level(logging.INFO):
        preprocess_dataset(cases, make_plans(), out, processes=0)

    assert "1 of 2 cases are already in" in caplog.text and "they are kept" in caplog.text
    after = stamps(out)
    assert {n for n in before if before[n] == after[n]} == {"case_0.b2nd", "case_0_seg.b2nd"}


@pytest.mark.parametrize(
    "change",
    [
        {"spacing": (1.5, 2.0, 1.0)},
        {"normalizations": (ct_window("soft tissue"),)},
        {"labels": {"organ": 1, "lesion": 2}},
    ],
)
def test_other_plans_make_a_case_anew(tmp_path, change):
    case, out = make_case(tmp_path), tmp_path / "out"
    preprocess_dataset([case], make_plans(), out, processes=0)
    before = stamps(out)

    preprocess_dataset([case], make_plans(**change), out, processes=0)

    assert not set(before.items()) & set(stamps(out).items())


def test_a_changed_raw_file_or_a_damaged_json_makes_a_case_anew(tmp_path):
    case, out = make_case(tmp_path), tmp_path / "out"
    preprocess_dataset([case], make_plans(), out, processes=0)
    make_case(tmp_path, seed=5)

    preprocess_dataset([case], make_plans(), out, processes=0)
    raw = read_image(case.images)[0]
    new_range = PreprocessedDataset(out).properties("case_1")["intensity_ranges"][0]
    np.testing.assert_allclose(new_range, np.percentile(raw, (0.5, 99.5)))

    for damage in ("{", "[]"):
        (out / "case_1.json").write_text(damage)
        assert preprocess_dataset([case], make_plans(), out, processes=0) == {}
        assert json.loads((out / "case_1.json").read_text())["case_id"] == "case_1"


def test_where_a_moved_raw_folder_is_now_is_recorded_and_its_cases_are_kept(tmp_path):
    case, out = make_case(tmp_path / "before"), tmp_path / "out"
    preprocess_dataset([case], make_plans(), out, processes=0)
    before, properties = stamps(out), read_json(out / "case_1.json")

    (tmp_path / "before").rename(tmp_path / "after")
    images = tuple(tmp_path / "after" / path.name for path in case.images)
    moved = RawCase(case_id="case_1", images=images, label=tmp_path / "after" / case.label.name)
    preprocess_dataset([moved], make_plans(), out, processes=0)

    assert stamps(out) == before
    now = read_json(out / "case_1.json")
    assert now["raw"].pop("files") == [str(path) for path in images]
    del properties["raw"]["files"]
    assert now == properties


def shape_and_sum(case_id, image, segmentation, spacing):
    return case_id, image.shape, image.sum(), segmentation.sum(), spacing


def test_a_summary_is_made_of_the_raw_voxels_while_they_are_at_hand(tmp_path):
    cases = [make_case(tmp_path, f"case_{i}", channels=2, seed=i) for i in range(3)]
    plans = make_plans(normalizations=(percentile_clipping(),) * 2)
    preprocess_dataset(cases[:1], plans, tmp_path / "out", processes=0)
    cases[1].label.write_bytes(b"broken")

    arguments = (cases, plans, tmp_path / "out", 0)
    failed, summaries = preprocess_and_summarize(*arguments, shape_and_sum)

    assert list(failed) == ["case_1"] and list(summaries) == ["case_2"]  # case_0 is kept
    total = read_image(cases[2].images[0])[0].sum()
    assert summaries["case_2"] == ("case_2", SHAPE, total, 4 * 8 * 6 + 1, SPACING)


def test_cases_that_would_share_a_file_are_refused(tmp_path):
    cases = [RawCase(case_id=name, images=(), label=None) for name in ("liver", "liver_seg")]

    with pytest.raises(ValueError, match="'liver' and 'liver_seg' would share a file"):
        preprocess_dataset(cases, make_plans(), tmp_path, processes=0)


# real volumes


@pytest.mark.parametrize(
    "dataset, modality, case_id, spacing",
    [
        ("Dataset004_Hippocampus", "MRI", "hippocampus_004", (1.0, 1.0, 1.0)),
        ("Dataset010_SarcomaPET", "PET", "STS_002", (3.27, 4.0, 4.0)),
        ("Dataset011_SarcomaCT", "CT", "STS_002", (3.27, 1.5, 1.5)),
        ("Dataset012_SarcomaMR", "MRI", "STS_002", (2.0, 1.5, 1.5)),
        ("Dataset013_ProstateUS", "US", "case000000", (0.5, 0.8, 0.6)),
    ],
)
def test_a_real_case_of_each_modality(tmp_path, dataset, modality, case_id, spacing):
    folder = raw_folder() / dataset
    label = folder / "labelsTr" / f"{case_id}.nii.gz"
    images = (folder / "imagesTr" / f"{case_id}_0000.nii.gz",)
    plans = make_plans(
        normalizations=(default_normalization(modality),),
        spacing=spacing,
        labels={"anterior": 1, "posterior": 2},
    )

    preprocess_case(RawCase(case_id=case_id, images=images, label=label), plans, tmp_path)

    dataset = PreprocessedDataset(tmp_path)
    properties = dataset.properties(case_id)
    image, segmentation = dataset.image(case_id)[:], dataset.segmentation(case_id)[:]
    assert image.dtype == np.uint8 and image.shape == (1, *segmentation.shape)
    assert image.min() == 0 and image.max() == 255 and 5 < image.mean() < 250
    np.testing.assert_allclose(properties["spacing"], spacing, rtol=0.02)
    raw, geometry = read_segmentation(label)
    voxel_ratio = np.prod(properties["spacing"]) / np.prod(geometry.spacing)
    for value in np.unique(raw[raw > 0]).tolist():
        voxels = properties["labels"][value]["voxels"] * voxel_ratio
        assert voxels == pytest.approx((raw == value).sum(), rel=0.03)
