from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import SimpleITK as sitk

from promptseg.files import read_json, write_json
from promptseg.io.dataset import RawCase, cases_in_folder, read_raw_dataset
from promptseg.io.images import Geometry, write_image
from tests.io.test_dicom import write_series
from tests.real_data import raw_folder
from tests.synthetic import write_raw_dataset

SHAPE = (4, 5, 7)


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    root = tmp_path_factory.mktemp("raw")
    return write_raw_dataset(root, 7, "Small", cases=["b", "a", "c_1"], channels=2, labels=2)


@pytest.fixture
def dataset(template, tmp_path):
    return shutil.copytree(template, tmp_path / template.name)


def edit_json(folder, **changes):
    """Change keys of dataset.json; None removes one."""
    content = read_json(folder / "dataset.json") | changes
    content = {key: value for key, value in content.items() if value is not None}
    write_json(folder / "dataset.json", content)


def write_images(folder, *names):
    for name in names:
        write_image(
            folder / name, np.zeros(SHAPE, np.uint8), Geometry(shape=SHAPE, spacing=(3, 2, 1))
        )


# dataset.json and training cases


def test_a_dataset_is_read_with_its_cases_in_order(dataset):
    read = read_raw_dataset(dataset)

    assert (read.name, read.folder) == ("Dataset007_Small", dataset)
    assert read.channel_names == ("CT", "CT")
    assert list(read.labels.items()) == [("label_1", 1), ("label_2", 2)]
    assert [case.case_id for case in read.cases] == ["a", "b", "c_1"]
    assert read.cases[2] == RawCase(
        case_id="c_1",
        images=(
            dataset / "imagesTr" / "c_1_0000.nii.gz",
            dataset / "imagesTr" / "c_1_0001.nii.gz",
        ),
        label=dataset / "labelsTr" / "c_1.nii.gz",
    )
    assert read.content == read_json(dataset / "dataset.json")


def test_labels_are_ordered_by_value_and_channels_by_number(dataset):
    edit_json(
        dataset,
        labels={"z": 2, "background": 0, "a": 1},
        channel_names={"1": "PET", "0": "CT"},
        numTraining=None,
    )
    read = read_raw_dataset(dataset)
    assert list(read.labels.items()) == [("a", 1), ("z", 2)]
    assert read.channel_names == ("CT", "PET")


def test_cases_with_missing_files_are_listed(dataset):
    (dataset / "imagesTr" / "a_0000.nii.gz").unlink()
    (dataset / "labelsTr" / "b.nii.gz").unlink()
    for path in (dataset / "imagesTr").glob("c_1_*"):
        path.unlink()

    a, b, c = read_raw_dataset(dataset).cases

    assert [path.name for path in a.images] == ["a_0001.nii.gz"]
    assert b.label is None and len(b.images) == 2
    assert c.images == () and c.label is not None


def test_hidden_and_other_files_are_no_cases(dataset):
    for name in ("._a_0000.nii.gz", ".DS_Store", "notes.txt", "x_0000.nrrd"):
        (dataset / "imagesTr" / name).write_text("x")
    assert len(read_raw_dataset(dataset).cases) == 3


def test_cases_listed_in_dataset_json_are_taken_from_there(dataset, tmp_path, monkeypatch):
    monkeypatch.setenv("ELSEWHERE", str(tmp_path / "elsewhere"))
    (tmp_path / "elsewhere").mkdir()
    shutil.move(dataset / "labelsTr" / "b.nii.gz", tmp_path / "elsewhere" / "odd name.nii.gz")
    entry = {
        "images": ["imagesTr/b_0000.nii.gz", "./imagesTr/b_0001.nii.gz"],
        "label": "$ELSEWHERE/odd name.nii.gz",
    }
    gone = {"images": ["imagesTr/gone.nii.gz"], "label": "labelsTr/gone.nii.gz"}
    edit_json(dataset, dataset={"B": entry, "A": gone}, numTraining=2)

    a, b = read_raw_dataset(dataset).cases

    assert a == RawCase(case_id="A", images=(), label=None)
    assert b.case_id == "B" and len(b.images) == 2
    assert b.label == tmp_path / "elsewhere" / "odd name.nii.gz"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"channel_names": None}, r"channel_names: expected .* found None"),
        ({"channel_names": {}}, r"channel_names: expected .* found \{\}"),
        ({"channel_names": ["CT"]}, r"channel_names: expected .* found \['CT'\]"),
        ({"channel_names": {"1": "CT"}}, r"expected the keys \['0'\], found \['1'\]"),
        ({"channel_names": {"0": "CT", "2": "MR"}}, r"keys \['0', '1'\], found \['0', '2'\]"),
        ({"channel_names": {"0": 5}}, "expected a name for channel 0, found 5"),
        ({"channel_names": {"0": " "}}, "expected a name for channel 0, found ' '"),
        ({"channel_names": None, "modality": {"0": "CT"}}, "rename it to channel_names, write"),
        ({"labels": None}, "labels: expected .* found None"),
        ({"labels": {}}, "labels: expected"),
        ({"labels": ["background", "a"]}, "labels: expected"),
        ({"labels": {"0": "background", "1": "a"}}, "write name: value, as nnU-Net v2 does"),
        ({"labels": {"a": 1}}, '"background": 0, found no background'),
        ({"labels": {"background": 1, "a": 0}}, '"background": 0, found 1'),
        ({"labels": {"background": 0}}, "at least one label besides background"),
        ({"labels": {"background": 0, "a": "1"}}, "whole number for 'a', found '1'"),
        ({"labels": {"background": 0, "a": 1.0}}, "whole number for 'a', found 1.0"),
        ({"labels": {"background": 0, "a": True}}, "whole number for 'a', found True"),
        ({"labels": {"background": 0, "a": 1, "b": 1}}, r"0 to 2, each once, found \[0, 1, 1\]"),
        ({"labels": {"background": 0, "a": 1, "b": 3}}, r"0 to 2, each once, found \[0, 1, 3\]"),
        ({"labels": {"background": 0, "a": -1}}, r"0 to 1, each once, found \[-1, 0\]"),
        ({"labels": {"background": 0, "a": [1, 2]}}, "region-based labels are not supported"),
        ({"labels": {"background": 0, "a": 1, "ignore": 2}}, "`ignore` is not supported; remove"),
        ({"file_ending": None}, "file_ending: expected one of .* found None"),
        ({"file_ending": "nii.gz"}, "file_ending: expected one of .* found 'nii.gz'"),
        ({"file_ending": ".png"}, "file_ending: expected one of .* found '.png'"),
        ({"file_ending": 3}, "file_ending: expected one of .* found 3"),
        ({"numTraining": "3"}, "numTraining: expected .* found '3'"),
        ({"numTraining": 2.5}, "numTraining: expected .* found 2.5"),
        ({"dataset": []}, "dataset: expected"),
        ({"dataset": {"a": {"images": "x", "label": "y"}}}, "dataset: expected"),
        ({"dataset": {"a": {"images": [1], "label": "y"}}}, "dataset: expected"),
        ({"dataset": {"a": {"images": ["x"]}}}, "dataset: expected"),
        *(
            ({"dataset": {name: {"images": [], "label": "y"}}}, "cannot be a case identifier")
            for name in (
                "",
                ".",
                "..",
                ".a",
                "../a",
                "../../../a",
                "/a",
                "a/b",
                "a\\b",
                "C:a",
                "a\0",
            )
        ),
    ],
)
def test_a_malformed_dataset_json_is_refused(dataset, changes, message):
    edit_json(dataset, **changes)
    with pytest.raises(ValueError, match=message) as info:
        read_raw_dataset(dataset)
    assert f"{dataset / 'dataset.json'} has 1 problem(s)" in str(info.value)


def test_all_problems_of_a_dataset_json_are_listed_at_once(dataset):
    edit_json(
        dataset,
        channel_names={"0": ""},
        labels={"a": [1], "ignore": 3},
        file_ending="x",
        numTraining="y",
    )
    with pytest.raises(ValueError, match=r"has 6 problem\(s\)") as info:
        read_raw_dataset(dataset)
    for word in ("channel 0", "region", "ignore", "background", "file_ending", "numTraining"):
        assert word in str(info.value)


@pytest.mark.parametrize("text", ["[]", "3", "null", '"x"'])
def test_a_dataset_json_that_is_no_object_is_refused(dataset, text):
    (dataset / "dataset.json").write_text(text)
    with pytest.raises(ValueError, match=r"dataset\.json has 1 .*\n.*expected an object"):
        read_raw_dataset(dataset)


@pytest.mark.parametrize("name", ["dataset.json", "imagesTr", "labelsTr", "."])
def test_a_missing_part_of_a_dataset_is_named(dataset, name):
    path = dataset / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(FileNotFoundError, match=f"{path.name}: no such"):
        read_raw_dataset(dataset)


def test_the_real_datasets_are_read():
    for folder in sorted(raw_folder().iterdir()):
        read = read_raw_dataset(folder)
        content = json.loads((folder / "dataset.json").read_text())
        assert len(read.cases) == content["numTraining"]
        assert all(len(case.images) == 1 and case.label.exists() for case in read.cases)
        assert len({case.case_id for case in read.cases}) == len(read.cases)


# Cases to predict


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
        ["3 file(s) or folder(s) are no images and left out: empty, readme.docx, scan.png"],
    )


def test_a_folder_with_nothing_to_predict_lists_what_is_there(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"holds no image .* found 0 other .*CASE_0000\.nii"
    ):
        cases_in_folder(tmp_path, 1)
    for i in range(12):
        (tmp_path / f"picture_{i:02d}.png").write_text("x")
    with pytest.raises(
        FileNotFoundError, match=r"found 12 other .*: picture_00.*picture_09\.png and 2 more"
    ):
        cases_in_folder(tmp_path, 2)
    with pytest.raises(FileNotFoundError, match=r"expected CASE_0000\.mha with 2 channel\(s\)"):
        cases_in_folder(tmp_path, 2, file_ending=".mha")
    with pytest.raises(FileNotFoundError, match=r"picture_01\.png holds no image"):
        cases_in_folder(tmp_path / "picture_01.png", 1)
    with pytest.raises(FileNotFoundError, match="gone: no such file or folder"):
        cases_in_folder(tmp_path / "gone", 1)
