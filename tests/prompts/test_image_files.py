"""Prompting files: what is found, how it is normalized, what is written, and what goes wrong."""

from __future__ import annotations

import json

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage

from promptseg.io.case_files import cases_in_folder
from promptseg.io.images import Geometry, write_image
from promptseg.preprocessing.normalize import ct_window, normalize, percentile_clipping
from promptseg.prompts.automatic import auto_prompt
from promptseg.prompts.image_files import AutoPromptOptions, auto_prompt_files, find_images
from promptseg.prompts.picture import draw_boxes
from promptseg.prompts.types import prompts_from_json, read_prompts_file

SHAPE = (12, 40, 52)
SPACING = (3.0, 0.8, 1.1)
DIRECTION = (0.0, -1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0)  # a quarter turn in the x-y plane


def mr_like(seed=0):
    image = np.random.default_rng(seed).normal(100, 10, SHAPE)
    image[3:9, 10:24, 15:33] += 200
    return ndimage.gaussian_filter(image, 1).astype(np.float32)


def ct_like(seed=0):
    image = np.full(SHAPE, -1000.0)
    image[1:11, 4:36, 5:47] = -50
    image[3:9, 10:24, 15:33] = 60
    image[5, 12, 20:24] = 900
    return (image + np.random.default_rng(seed).normal(0, 10, SHAPE)).astype(np.int16)


def save(path, image):
    write_image(
        path,
        image,
        Geometry(shape=image.shape, spacing=SPACING, origin=(5, -7, 20), direction=DIRECTION),
    )
    return path


def save_dicom_series(folder, image):
    folder.mkdir()
    volume = sitk.GetImageFromArray(image)
    for z in range(len(image)):
        slice_ = volume[:, :, z]
        for key, value in {
            "0020|000e": "1.2.3",
            "0020|000d": "1.2",
            "0008|0060": "CT",
            "0020|0032": f"0\\0\\{3 * z}",
            "0020|0037": "1\\0\\0\\0\\1\\0",
            "0020|0013": str(z),
        }.items():
            slice_.SetMetaData(key, value)
        writer = sitk.ImageFileWriter()
        writer.KeepOriginalImageUIDOn()
        writer.SetFileName(str(folder / f"{z:03d}.dcm"))
        writer.Execute(slice_)


def only_box(content, case_id):
    return content["cases"][case_id]["object"]["boxes"]


# what is written


def test_a_file_gets_the_box_of_the_library_call(tmp_path):
    image = mr_like()
    path = save(tmp_path / "PAT_01_0000.nii.gz", image)

    content = auto_prompt_files(path, tmp_path / "boxes.json")

    expected = auto_prompt(normalize(image, percentile_clipping()))
    assert only_box(content, "PAT_01") == [expected.box.tolist()]
    entry = content["cases"]["PAT_01"]["object"]
    assert entry["source"] == "intensity"
    assert entry["score"] == pytest.approx(expected.score, abs=1e-4)
    assert content["failed"] == {}


def test_the_written_file_is_a_prompts_file(tmp_path):
    save(tmp_path / "A.nrrd", mr_like())
    content = auto_prompt_files(tmp_path, tmp_path / "out" / "boxes.json")

    cases = read_prompts_file(tmp_path / "out" / "boxes.json")
    prompts = prompts_from_json(cases["A"]["object"], SHAPE, "A")

    assert prompts.boxes.tolist() == only_box(content, "A")
    written = json.loads((tmp_path / "out" / "boxes.json").read_text())
    assert (written["frame"], written["format_version"]) == ("voxel zyx", 1)


def test_boxes_in_mm_are_the_voxels_outer_edges_in_the_world(tmp_path):
    path = save(tmp_path / "A.nii.gz", mr_like())
    content = auto_prompt_files(path, tmp_path / "boxes.json")
    image = sitk.ReadImage(str(path))

    (box,), (corners,) = only_box(content, "A"), content["report"]["A"]["boxes_mm"]

    for voxel, corner in zip(box, corners, strict=True):
        index = [i - 0.5 for i in voxel[::-1]]
        expected = image.TransformContinuousIndexToPhysicalPoint(index)
        np.testing.assert_allclose(corner, expected, atol=2e-3)


def test_an_image_without_a_component_is_written_without_boxes(tmp_path):
    path = save(tmp_path / "flat.nii.gz", np.full(SHAPE, 7, np.uint8))

    content = auto_prompt_files(path, tmp_path / "boxes.json", png=True)

    entry = content["cases"]["flat"]["object"]
    assert (entry["boxes"], entry["score"], entry["reason"]) == ([], 0.0, "constant_image")
    assert (tmp_path / "boxes_png" / "flat.png").stat().st_size > 1000


def test_parameters_reach_the_strategy_and_the_file(tmp_path):
    path = save(tmp_path / "A.nii.gz", mr_like())
    parameters = {"margin": 0, "components": 3}

    content = auto_prompt_files(
        path, tmp_path / "boxes.json", AutoPromptOptions(parameters=parameters)
    )

    expected = auto_prompt(normalize(mr_like(), percentile_clipping()), **parameters).boxes
    assert only_box(content, "A") == [box.tolist() for box in expected]
    assert content["parameters"] == parameters


def test_workers_write_what_one_process_writes(tmp_path):
    for seed in range(2):
        save(tmp_path / f"{seed}.nii.gz", mr_like(seed))

    alone = auto_prompt_files(tmp_path, tmp_path / "a.json")
    together = auto_prompt_files(tmp_path, tmp_path / "b.json", processes=2)

    assert alone["cases"] == together["cases"]


# normalization


@pytest.mark.parametrize(
    ("arguments", "window"),
    [
        ({}, "soft tissue"),  # guessed
        ({"modality": "ct"}, "soft tissue"),
        ({"window": "bone"}, "bone"),
        ({"modality": "CT", "window": "lung"}, "lung"),
        ({"modality": "MR"}, None),
    ],
)
def test_ct_goes_through_the_window_that_was_asked_for(tmp_path, arguments, window):
    path = save(tmp_path / "A.nii.gz", ct_like())

    content = auto_prompt_files(path, tmp_path / "boxes.json", AutoPromptOptions(**arguments))

    normalization = ct_window(window) if window else percentile_clipping()
    expected = auto_prompt(normalize(ct_like(), normalization))
    assert only_box(content, "A") == [expected.box.tolist()]
    how = content["report"]["A"]["normalization"]
    assert how.startswith("window" if window else "percentiles 0.5 to 99.5")
    assert ("look like HU" in how) == (arguments == {})


def test_the_first_of_several_channels_is_looked_at_and_said_so(tmp_path):
    channels = np.stack([mr_like(), np.zeros(SHAPE, np.float32)], axis=-1)
    image = sitk.GetImageFromArray(channels, isVector=True)
    sitk.WriteImage(image, str(tmp_path / "A.nii.gz"))

    content = auto_prompt_files(tmp_path / "A.nii.gz", tmp_path / "boxes.json")

    assert content["cases"]["A"]["object"]["reason"] == "ok"
    assert "the first of 2 channels" in content["report"]["A"]["normalization"]


def test_a_challenge_npz_is_taken_as_it_is(tmp_path):
    image = normalize(mr_like(), percentile_clipping()).astype(np.uint8)
    boxes = np.array([{"z_min": 1}], dtype=object)  # needs pickle; must not be touched
    np.savez_compressed(tmp_path / "CT_x_0001.npz", imgs=image, spacing=SPACING, boxes=boxes)
    np.savez_compressed(tmp_path / "CT_x_0001_gt.npz", gts=image)

    content = auto_prompt_files(tmp_path, tmp_path / "boxes.json")

    assert list(content["cases"]) == ["CT_x_0001"]
    assert only_box(content, "CT_x_0001") == [auto_prompt(image).box.tolist()]


@pytest.mark.parametrize(
    ("written", "zyx"),
    [
        ((0.8, 0.8, 3.0), (3.0, 0.8, 0.8)),  # x, y, z: pixels of a slice are square
        ((3.0, 0.8, 0.8), (3.0, 0.8, 0.8)),  # z, y, x
        (None, (1.0, 1.0, 1.0)),
    ],
)
def test_boxes_in_mm_follow_the_spacing_of_a_challenge_npz(tmp_path, written, zyx):
    image = normalize(mr_like(), percentile_clipping()).astype(np.uint8)
    spacing = {} if written is None else {"spacing": np.array(written)}
    np.savez_compressed(tmp_path / "A.npz", imgs=image, **spacing)

    content = auto_prompt_files(tmp_path / "A.npz", tmp_path / "boxes.json")

    (box,) = only_box(content, "A")
    report = content["report"]["A"]
    assert report["spacing"] == zyx
    # Without origin or direction: the centre of voxel 0 is at 0 mm, its outer edge half before it.
    expected = ((np.array(box) - 0.5) * zyx)[:, ::-1]
    np.testing.assert_allclose(report["boxes_mm"], [expected], atol=1e-3)


# what is found


def test_a_dicom_folder_is_one_case_alone_and_among_others(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    save_dicom_series(folder / "patient", ct_like())
    save(folder / "B_0000.nii.gz", mr_like())

    alone = auto_prompt_files(folder / "patient", tmp_path / "a.json")
    both = auto_prompt_files(folder, tmp_path / "b.json")

    assert list(both["cases"]) == ["B", "patient"]
    assert only_box(alone, "patient") == only_box(both, "patient")
    assert len(only_box(alone, "patient")) == 1


def test_loose_dicom_files_do_not_hide_other_images(tmp_path):
    folder = tmp_path / "in"
    save_dicom_series(folder, ct_like())
    assert find_images(folder) == {"in": folder}
    save(folder / "B_0000.nii.gz", mr_like())
    assert find_images(folder) == {"B": folder / "B_0000.nii.gz"}
    assert [case.case_id for case in cases_in_folder(folder, channel_count=1)[0]] == ["B"]


def test_every_channel_file_is_prompted_alone(tmp_path):
    for channel in range(2):
        save(tmp_path / f"P_{channel:04d}.nii.gz", mr_like(channel))

    assert sorted(find_images(tmp_path)) == ["P", "P_0001"]


def test_one_bad_file_does_not_stop_the_others(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    save(folder / "good.nii.gz", mr_like())
    (folder / "broken.nii.gz").write_bytes(b"no image")
    (folder / "cut.npz").write_bytes(b"PK\x03\x04 and no more")
    broken_values = mr_like()
    broken_values[3, 4, 5] = np.nan
    save(folder / "nan.nii.gz", broken_values)
    np.savez(folder / "other.npz", data=np.zeros(3))
    np.savez(folder / "flat.npz", imgs=np.zeros((3, 4), np.uint8))
    np.savez(folder / "raw.npz", imgs=ct_like())
    sitk.WriteImage(sitk.Image(4, 5, sitk.sitkUInt8), str(folder / "plane.nrrd"))

    content = auto_prompt_files(folder, tmp_path / "boxes.json", png=True)

    assert list(content["cases"]) == ["good"]
    failed = content["failed"]
    assert sorted(failed) == ["broken", "cut", "flat", "nan", "other", "plane", "raw"]
    assert "broken.nii.gz" in failed["broken"]
    assert "nan.nii.gz: 1 voxels are NaN or infinite" in failed["nan"]
    assert "other.npz: expected an array imgs, found data" in failed["other"]
    assert "flat.npz: imgs: expected three dimensions (z, y, x)" in failed["flat"]
    assert "found shape (3, 4)" in failed["flat"]
    assert "cut.npz cannot be read as .npz: File is not a zip file" in failed["cut"]
    assert "raw.npz: intensities must lie in [0, 255]" in failed["raw"]
    assert "plane.nrrd" in failed["plane"]
    assert json.loads((tmp_path / "boxes.json").read_text())["failed"] == failed
    assert [p.name for p in (tmp_path / "boxes_png").iterdir()] == ["good.png"]


def test_a_folder_without_images_lists_what_is_there(tmp_path):
    (tmp_path / "notes.txt").write_text("")

    with pytest.raises(FileNotFoundError, match=r"no image to prompt, found notes.txt; expected"):
        auto_prompt_files(tmp_path, tmp_path / "boxes.json")


def test_a_path_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="missing.nii.gz: no such file or folder"):
        auto_prompt_files(tmp_path / "missing.nii.gz", tmp_path / "boxes.json")


def test_two_files_of_one_case_are_refused(tmp_path):
    save(tmp_path / "A.nii.gz", mr_like())
    save(tmp_path / "A_0000.nrrd", mr_like())

    with pytest.raises(ValueError, match="are both the case 'A'; rename or move one"):
        auto_prompt_files(tmp_path, tmp_path / "boxes.json")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"strategy": "magic"}, "unknown automatic prompt 'magic'; registered"),
        ({"strategy": "atlas"}, "'atlas' needs"),
        ({"parameters": {"sigam": 1}}, "no parameter 'sigam'"),
        ({"parameters": {"sigma": -1}}, "sigma must be voxels, at least 0"),
        ({"modality": "X-ray"}, "modality must be CT, MRI, PET or US, found 'X-ray'"),
        ({"window": "liver"}, "window must be one of soft tissue, lung, .* found 'liver'"),
        ({"modality": "PET", "window": "lung"}, "window 'lung' is for CT, but the modality is PET"),
    ],
)
def test_wrong_arguments_fail_before_anything_is_read(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        options = AutoPromptOptions(**arguments)
        auto_prompt_files(tmp_path / "never_read", tmp_path / "boxes.json", options)
    assert not (tmp_path / "boxes.json").exists()


# pictures


def test_the_picture_shows_the_box_where_it_is(tmp_path):
    from matplotlib.image import imread

    image = np.zeros((30, 40, 50), np.uint8)
    box = np.array([[10, 15, 20], [20, 30, 45]])

    draw_boxes(image, [box], (2.0, 1.0, 1.0), tmp_path / "a.png")
    draw_boxes(image, [], (2.0, 1.0, 1.0), tmp_path / "b.png")

    orange = [
        np.count_nonzero(np.abs(imread(tmp_path / name)[..., :3] - (1, 0.69, 0)).max(2) < 0.02)
        for name in ("a.png", "b.png")
    ]
    assert orange[0] > 500  # three outlines
    assert orange[1] == 0


@pytest.mark.parametrize("shape", [(1, 40, 52), (60, 3, 2), (1, 1, 1)])
def test_thin_volumes_and_boxes_beyond_the_image_can_be_drawn(tmp_path, shape):
    boxes = [np.array([[-5, -5, -5], [6, 9, 8]]), np.array([[0, 0, 0], [1, 1, 1]])]

    draw_boxes(np.full(shape, 9.0), boxes, (5.0, 1.0, 0.5), tmp_path / "a.png", title="thin")

    assert (tmp_path / "a.png").stat().st_size > 1000
