from __future__ import annotations

import json
import shutil

import pytest

from promptseg.files import read_json, write_json
from promptseg.io.dataset import RawCase, case_groups, problems_of_content, read_raw_dataset
from promptseg.labels import meanings
from tests.real_data import raw_folder
from tests.synthetic import write_raw_dataset

REGIONS = {
    "labels": {"background": 0, "whole": [1, 2, 3], "core": [3, 2], "enhancing": [3], "ignore": 4}
}
SOUND = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "a": 1}, "file_ending": ".mha"}


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


def test_the_ignore_label_is_the_value_of_no_label(dataset):
    edit_json(dataset, labels={"ignore": 3, "b": 2, "background": 0, "a": 1})
    read = read_raw_dataset(dataset)
    assert read.labels == {"a": 1, "b": 2} and read.ignore_label == 3
    assert meanings(read.labels, 3) == {0: "background", 1: "a", 2: "b", 3: "ignore"}


def test_regions_are_read_in_the_order_of_the_file(dataset):
    # as nnU-Net's page on region-based training has them, in which a list may have one value
    edit_json(dataset, **REGIONS, regions_class_order=[1, 2, 3])
    read = read_raw_dataset(dataset)
    assert list(read.labels.items()) == [("whole", (1, 2, 3)), ("core", (2, 3)), ("enhancing", 3)]
    assert read.regions_class_order == (1, 2, 3) and read.ignore_label == 4
    assert meanings(read.labels, 4) == {
        0: "background",
        1: "whole",
        2: "whole and core",
        3: "whole and core and enhancing",
        4: "ignore",
    }
    edit_json(dataset, labels={"background": [0], "b": [2], "a": [1]})  # lists, but no regions
    read = read_raw_dataset(dataset)
    assert list(read.labels.items()) == [("a", 1), ("b", 2)] and read.regions_class_order == ()


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
        (
            {"labels": {"background": 0, "a": [1, 2]}},
            r"regions_class_order: expected .* order \('a' \[1, 2\]\), found None",
        ),
        ({**REGIONS, "regions_class_order": [1, 2]}, r"regions_class_order: .*, found \[1, 2\]"),
        ({**REGIONS, "regions_class_order": [3, 2, 1]}, "regions_class_order: expected one of"),
        ({**REGIONS, "regions_class_order": [2, 2, 3]}, "regions_class_order: .* all different"),
        ({**REGIONS, "regions_class_order": 3}, "regions_class_order: .*, found 3"),
        ({"labels": {"background": 0, "a": []}}, r"expected whole numbers for 'a', found \[\]"),
        ({"labels": {"background": 0, "a": [1, "2"]}}, r"whole numbers for 'a', found \[1, '2'\]"),
        ({"labels": {"background": 0, "a": [1, 3]}}, "expected the values 0 to 2, each once"),
        (
            {"labels": {"background": 0, "a": [1, 2], "b": [2, 1]}},
            r"0 to 2, each once, found \[\(0,\), \(1, 2\), \(1, 2\)\]",
        ),
        (
            {"labels": {"background": 0, "a": [1, 2], "ignore": 2}},
            "ignored voxels can be part of no region",
        ),
        ({"labels": {"background": 0, "a": [0, 1]}}, "background .* can be part of no region"),
        (
            {"labels": {"background": "0", "a": "1"}},
            'the values are texts, .* write them as numbers, "background": 0',
        ),
        (
            {"labels": {"background": 0, "ignore": 1, "a": 2}},
            "`ignore` must be the highest value, 2, as in nnU-Net; found 1",
        ),
        ({"labels": {"background": 0, "ignore": 1}}, "at least one label besides background"),
        (
            {"labels": {"background": 0, "a": 1, "ignore": 3}},
            r"0 to 2, each once, found \[0, 1, 3\]",
        ),
        ({"file_ending": None}, "file_ending: expected one of .* found None"),
        ({"file_ending": "nii.gz"}, "file_ending: expected one of .* found 'nii.gz'"),
        ({"file_ending": ".jpg"}, "file_ending: expected one of .* found '.jpg'"),
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
        labels={"a": [], "ignore": 3.5},
        file_ending="x",
        numTraining="y",
    )
    with pytest.raises(ValueError, match=r"has 6 problem\(s\)") as info:
        read_raw_dataset(dataset)
    for word in ("channel 0", "ignore", "background", "file_ending", "numTraining"):
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


# The groups of the cases


def dataset_json(folder, **entries):
    path = folder / "dataset.json"
    path.write_text(json.dumps(SOUND | entries))
    return path


def test_groups_are_optional_and_extra_cases_do_no_harm(tmp_path):
    assert case_groups(dataset_json(tmp_path), ["b", "a"]) is None
    path = dataset_json(tmp_path, groups={"a": "p 1", "test_case": "p9", "b": "p2"})
    groups = case_groups(path, ["b", "a"])
    assert list(groups.items()) == [("b", "p2"), ("a", "p 1")]
    assert problems_of_content(json.loads(path.read_text())) == []


@pytest.mark.parametrize(
    ("groups", "problem"),
    [
        (None, 'expected {"CASE": "GROUP", ...}, found None'),
        ({}, 'expected {"CASE": "GROUP", ...}, found {}'),
        ([], 'expected {"CASE": "GROUP", ...}, found []'),
        (["p1", "p2"], 'expected {"CASE": "GROUP", ...}, found'),
        ("^p", 'expected {"CASE": "GROUP", ...}, found \'^p\''),
        (5, 'expected {"CASE": "GROUP", ...}, found 5'),
        ({"p1": ["a"], "p2": ["b", "c"]}, "found each group with a list of its cases; write"),
        ({"a": "p1", "b": 2}, "as text, for 'b', found 2"),
        ({"a": "p1", "b": None}, "as text, for 'b', found None"),
        ({"a": "p1", "b": ["p2"]}, "as text, for 'b', found ['p2']"),
        ({"a": "p1", "b": {"id": 2}}, "as text, for 'b', found {'id': 2}"),
        ({"a": "p1", "b": True}, "as text, for 'b', found True"),
        ({"a": "p1", "b": ""}, "as text, for 'b', found ''"),
        ({"a": "p1", "b": " \t"}, "as text, for 'b', found ' \\t'"),
    ],
)
def test_malformed_groups_are_put_in_words(tmp_path, groups, problem):
    (found,) = problems_of_content(SOUND | {"groups": groups})
    assert found.startswith("groups: ") and problem in found
    path = dataset_json(tmp_path, groups=groups)
    with pytest.raises(ValueError, match=r"dataset\.json: groups: expected") as info:
        case_groups(path, ["a", "b"])
    assert str(info.value) == f"{path}: {found}"


def test_every_problem_of_the_groups_is_listed_beside_the_others():
    problems = problems_of_content(SOUND | {"groups": {"a": 1, "b": "p", "c": 2}, "labels": None})
    assert len(problems) == 3
    assert sum(problem.startswith("groups: ") for problem in problems) == 2


def test_cases_without_a_group_are_listed_with_names_that_fit_no_case(tmp_path):
    path = dataset_json(tmp_path, groups={"a": "p1", "B": "p2", "case_c": "p3"})
    with pytest.raises(ValueError, match="2 of 3 cases have no group, 'b', 'c'; give") as info:
        case_groups(path, ["a", "b", "c"])
    assert str(path) in str(info.value) and "there are no cases 'B', 'case_c'" in str(info.value)


def test_of_many_cases_without_a_group_ten_are_listed(tmp_path):
    path = dataset_json(tmp_path, groups={"a": "p1"})
    with pytest.raises(ValueError, match="20 of 21 cases .*, 'c9' and 10 more; give") as info:
        case_groups(path, ["a"] + [f"c{i}" for i in range(20)])
    assert "there are no cases" not in str(info.value)
