from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk

from promptseg.io.case_files import cases_in_folder
from promptseg.io.dataset import read_raw_dataset
from promptseg.io.images import Geometry, write_image
from tests.io.test_dicom import write_series
from tests.synthetic import write_raw_dataset

SHAPE = (4, 5, 7)


@pytest.fixture
def dataset(tmp_path):
    return write_raw_dataset(tmp_path, 7, "Small", cases=["b", "a", "c_1"], channels=2, labels=2)


def write_images(folder, *names):
    for name in names:
        write_image(
            folder / name, np.zeros(SHAPE, np.uint8), Geometry(shape=SHAPE, spacing=(3, 2, 1))
        )


def found(folder, channels=1, **options):
    cases, notes, problems = cases_in_folder(folder, channels, **options)
    assert problems == {}
    return {case.case_id: [path.name for path in case.images] for case in cases}, notes


def test_numbered_files_are_grouped_into_cases(dataset):
    cases, notes, problems = cases_in_folder(dataset / "imagesTr", 2)
    assert [(case.case_id, case.images) for case in cases] == [
        (case.case_id, case.images) for case in read_raw_dataset(dataset).cases
    ]
    assert notes == [] and problems == {} and all(case.label is None for case in cases)


def test_any_readable_ending_is_taken_and_mixed(tmp_path):
    write_images(tmp_path, "a_0000.nii.gz", "b_0000.nrrd", "c_0000.mha", "d_0000.nii")
    assert list(found(tmp_path)[0]) == ["a", "b", "c", "d"]
    assert list(found(tmp_path, file_ending=".mha")[0]) == ["c"]


def test_a_file_without_channel_number_is_accepted_and_said_so(tmp_path):
    write_images(tmp_path, "a_0000.nii.gz", "b.nii.gz", "LIVER_0007.nii.gz", "LIVER_0012.nii.gz")

    cases, notes = found(tmp_path)

    assert cases == {
        "LIVER_0007": ["LIVER_0007.nii.gz"],
        "LIVER_0012": ["LIVER_0012.nii.gz"],
        "a": ["a_0000.nii.gz"],
        "b": ["b.nii.gz"],
    }
    assert len(notes) == 1 and notes[0].startswith("3 file(s) have no channel number (_0000)")


def test_a_single_file_is_a_case(tmp_path):
    write_images(tmp_path, "a_0000.nii.gz", "a_0001.nii.gz", "b.nii.gz")
    assert found(tmp_path / "a_0000.nii.gz") == ({"a": ["a_0000.nii.gz"]}, [])
    cases, notes = found(tmp_path / "b.nii.gz")
    assert cases == {"b": ["b.nii.gz"]} and "no channel number" in notes[0]
    # With two channels, the file beside it belongs to the case, whichever is named.
    for name in ("a_0000.nii.gz", "a_0001.nii.gz"):
        assert found(tmp_path / name, 2)[0] == {"a": ["a_0000.nii.gz", "a_0001.nii.gz"]}


def test_one_file_may_hold_all_channels(tmp_path):
    two = sitk.GetImageFromArray(np.zeros((*SHAPE, 2), np.uint8), isVector=True)
    sitk.WriteImage(two, str(tmp_path / "a.nrrd"))
    assert found(tmp_path, 2)[0] == {"a": ["a.nrrd"]}
    problem = cases_in_folder(tmp_path, 3)[2]["a"]
    assert "a.nrrd holds 2 channel(s)" in problem and "expected 3 files" in problem


def test_dicom_series_are_cases(tmp_path):
    volume = np.arange(140, dtype=np.int16).reshape(SHAPE)
    write_series(tmp_path / "in" / "patient 1", volume)
    write_series(tmp_path / "in" / "patient 2", volume, uid="1.2.840.5")
    write_images(tmp_path / "in", "c_0000.nii.gz")

    cases, notes = found(tmp_path / "in")

    assert cases == {
        "c": ["c_0000.nii.gz"],
        "patient 1": ["patient 1"],
        "patient 2": ["patient 2"],
    }
    assert notes == []
    assert found(tmp_path / "in" / "patient 1") == ({"patient 1": ["patient 1"]}, [])


def test_dicom_folders_may_be_channels(tmp_path):
    for channel in range(2):
        write_series(tmp_path / f"p_{channel:04d}", np.zeros(SHAPE, np.int16))
    assert found(tmp_path, 2)[0] == {"p": ["p_0000", "p_0001"]}


def test_missing_channels_are_named(tmp_path):
    write_images(tmp_path, "a_0000.mha", "a_0002.mha", "b_0001.mha", "c_0000.mha", "d.mha")
    problems = cases_in_folder(tmp_path, 3)[2]
    assert problems["a"] == "found a_0000.mha, a_0002.mha, missing a_0001.mha"
    assert problems["b"] == "found b_0001.mha, missing b_0000.mha, b_0002.mha"
    assert problems["c"] == "found c_0000.mha, missing c_0001.mha, c_0002.mha"
    assert problems["d"].startswith("d.mha holds 1 channel(s)")


def test_a_broken_case_is_listed_beside_the_good_ones(tmp_path):
    write_images(tmp_path, "a_0000.mha", "b_0000.mha", "b_0001.mha")
    (tmp_path / "c.mha").write_bytes(b"no image")
    cases, _, problems = cases_in_folder(tmp_path, 2)
    assert [case.case_id for case in cases] == ["a", "b", "c"]
    assert set(problems) == {"a", "c"} and "c.mha" in problems["c"]


def test_more_channels_than_the_model_takes_are_named(tmp_path):
    write_images(tmp_path, "a_0000.mha", "a_0001.mha")
    problem = cases_in_folder(tmp_path, 1)[2]["a"]
    assert problem.startswith("found a_0000.mha, a_0001.mha, but the model takes 1")


@pytest.mark.parametrize(
    "names",
    [
        ("a_0000.mha", "a_0000.nrrd"),
        ("a_0000.mha", "a.mha"),
        ("a.nii", "a.nii.gz"),
        ("a_0007.mha", "a_0007.nrrd"),
    ],
)
def test_files_that_claim_the_same_case_are_named(tmp_path, names):
    write_images(tmp_path, *names)
    (problem,) = cases_in_folder(tmp_path, 1)[2].values()
    assert "more than once" in problem and all(name in problem for name in names)


def test_other_files_are_left_out_and_said_so(tmp_path):
    write_images(tmp_path, "a_0000.mha")
    for name in ("readme.docx", "scan.png", "prompts.json", ".hidden"):
        (tmp_path / name).write_text("x")
    (tmp_path / "empty").mkdir()
    assert found(tmp_path) == (
        {"a": ["a_0000.mha"]},
        ["3 file(s) or folder(s) are not images and are ignored: empty, readme.docx, scan.png"],
    )


def test_a_folder_with_nothing_to_predict_lists_what_is_there(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"holds no image .* found 0 other .*CASE_0000\.nii"
    ):
        cases_in_folder(tmp_path, 1)
    for i in range(12):
        (tmp_path / f"picture_{i:02d}.jpg").write_text("x")
    with pytest.raises(
        FileNotFoundError, match=r"found 12 other .*: picture_00.*picture_09\.jpg and 2 more"
    ):
        cases_in_folder(tmp_path, 2)
    with pytest.raises(FileNotFoundError, match=r"expected CASE_0000\.mha with 2 channel\(s\)"):
        cases_in_folder(tmp_path, 2, file_ending=".mha")
    with pytest.raises(FileNotFoundError, match=r"picture_01\.jpg holds no image"):
        cases_in_folder(tmp_path / "picture_01.jpg", 1)
    with pytest.raises(FileNotFoundError, match="gone: no such file or folder"):
        cases_in_folder(tmp_path / "gone", 1)
