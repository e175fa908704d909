from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from promptseg.experiment_planning.examine import examine_dataset
from promptseg.experiment_planning.integrity import (
    Problem,
    check_geometry,
    check_image,
    check_label,
    report,
    unused_labels,
)
from promptseg.experiment_planning.planner import choose_normalizations
from promptseg.files import read_json, write_json
from promptseg.io.dataset import read_raw_dataset
from promptseg.io.images import Geometry, read_image, read_segmentation, write_image
from promptseg.preprocessing.normalize import keep_windowed
from tests.real_data import raw_folder
from tests.synthetic import write_raw_dataset

PATH = Path("case.nii.gz")
LABELS = {"organ": 1, "lesion": 2}
MEANINGS = {0: "background", 1: "organ", 2: "lesion"}


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    return write_raw_dataset(tmp_path_factory.mktemp("raw"), cases=3, channels=2, labels=2)


@pytest.fixture
def dataset(template, tmp_path):
    return shutil.copytree(template, tmp_path / template.name)


def examine(folder, processes=0):
    return examine_dataset(read_raw_dataset(folder), processes)


def change(path, voxels=None, **geometry_changes):
    """Rewrite a file with some voxels or its geometry changed."""
    image, geometry = read_image(path)
    array = image[0].copy()
    if voxels is not None:
        array = voxels(array)
    geometry = Geometry(**{**geometry.__dict__, "shape": array.shape, **geometry_changes})
    write_image(path, array, geometry)


def with_value(value, dtype=None):
    def put(array):
        array = array.astype(dtype or array.dtype)
        array[3, 4, 5] = value
        return array

    return put


# One check at a time


def test_a_problem_is_one_sentence():
    problem = Problem("a", Path("x/a.mha"), "3 channels", "2", "remove one")
    assert str(problem) == "a: x/a.mha: found 3 channels, expected 2; remove one"
    assert str(Problem(None, None, "x", "y", "z")) == ": found x, expected y; z"


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32", "float64"])
def test_an_image_in_order_has_no_problem(dtype):
    image = np.arange(2 * 3 * 5).reshape(2, 3, 5).astype(dtype)
    assert check_image("a", PATH, image) == []


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_counted(value):
    image = np.arange(30.0).reshape(2, 3, 5)
    image[0, 1] = value
    (problem,) = check_image("a", PATH, image)
    assert problem.found == "5 NaN or infinite of 30 voxels"


@pytest.mark.parametrize("image", [np.zeros((2, 3, 5), np.uint8), np.full((2, 3, 5), -7.5)])
def test_a_constant_image_is_a_problem(image):
    (problem,) = check_image("a", PATH, image)
    assert problem.found == f"the value {image[0, 0, 0]:g} in every voxel"


@pytest.mark.parametrize("dtype", ["uint8", "int32", "float32"])
def test_declared_labels_are_in_order(dtype):
    assert check_label("a", PATH, np.resize([0, 1, 2], (1, 2, 3, 5)).astype(dtype), MEANINGS) == []
    assert check_label("a", PATH, np.resize([0, 2], (1, 2, 3, 5)).astype(dtype), MEANINGS) == []


@pytest.mark.parametrize(
    ("values", "dtype", "found"),
    [
        ([0, 1, 3], "uint8", "undeclared label values 3 (10 voxels)"),
        ([0, 1, 300], "int16", "undeclared label values 300 (10 voxels)"),
        ([0, 1, -1], "float32", "undeclared label values -1 (10 voxels)"),
        ([0, 5, 6], "uint8", "undeclared label values 5 (10 voxels), 6 (10 voxels)"),
        ([0, 1, 0.5], "float32", "values that are not whole numbers, 0.5 (10 voxels)"),
        ([0, 1, np.nan], "float64", "values that are not whole numbers, nan (10 voxels)"),
        ([0, 1, np.inf], "float64", "values that are not whole numbers, inf (10 voxels)"),
    ],
)
def test_wrong_labels_are_counted(values, dtype, found):
    segmentation = np.resize(values, (1, 2, 3, 5)).astype(dtype)
    (problem,) = check_label("a", PATH, segmentation, MEANINGS)
    assert problem.found == found


def test_many_wrong_values_are_cut_short():
    segmentation = np.arange(60).reshape(1, 3, 4, 5)
    (problem,) = check_label("a", PATH, segmentation, MEANINGS)
    assert problem.found.endswith("7 (1 voxel) and 52 more")


def test_every_differing_field_of_a_geometry_is_a_problem():
    image = Geometry(shape=(4, 5, 7), spacing=(2.5, 0.8, 0.7))
    label = Geometry(shape=(7, 5, 4), spacing=(0.7, 0.8, 2.5), origin=(0, 0, 9))

    problems = check_geometry("a", PATH, label, Path("image.mha"), image)

    assert [p.found for p in problems] == [
        "shape (7, 5, 4)",
        "spacing (0.7, 0.8, 2.5)",
        "origin (0, 0, 9)",
    ]
    assert problems[0].expected == "(4, 5, 7) (zyx, voxels) as in image.mha"


def test_only_labels_that_no_case_has_are_warned_of():
    (warning,) = unused_labels(LABELS, {0, 1})
    assert "'lesion' (2) is declared" in warning
    assert unused_labels(LABELS, {1, 2}) == []


# Whole datasets


def test_a_dataset_in_order_has_neither_problems_nor_warnings(dataset):
    examination = examine(dataset)
    assert (examination.problems, examination.warnings) == ([], [])
    assert examination.good_cases == read_raw_dataset(dataset).cases


IMAGE, SECOND, LABEL = (
    "imagesTr/case_1_0000.nii.gz",
    "imagesTr/case_1_0001.nii.gz",
    "labelsTr/case_1.nii.gz",
)

BREAKS = {
    "no label": (lambda d: (d / LABEL).unlink(), ["found no file, expected the labels"]),
    "no channel": (lambda d: (d / SECOND).unlink(), [r"_0001\S+: found no file, .*channel 1"]),
    "another channel number": (
        lambda d: (d / SECOND).rename(d / "imagesTr/case_1_0002.nii.gz"),
        [r"_0001\S+: found no file, but case_1_0000.nii.gz, case_1_0002.nii.gz, .*channel 1"],
    ),
    "no image": (
        lambda d: [(d / IMAGE).unlink(), (d / SECOND).unlink()],
        ["_0000.* found no file", "_0001.* found no file"],
    ),
    "third channel": (
        lambda d: shutil.copy(d / IMAGE, d / "imagesTr/case_1_0002.nii.gz"),
        [r"found 3 channel\(s\) \(case_1_0000"],
    ),
    "nan": (lambda d: change(d / SECOND, with_value(np.nan)), ["found 1 NaN or infinite"]),
    "infinite": (lambda d: change(d / IMAGE, with_value(np.inf)), ["found 1 NaN or infinite"]),
    "constant": (lambda d: change(d / IMAGE, np.zeros_like), ["found the value 0 in every voxel"]),
    "undeclared": (lambda d: change(d / LABEL, with_value(9)), [r"values 9 \(1 voxel\)"]),
    "fraction": (
        lambda d: change(d / LABEL, with_value(0.5, "float32")),
        ["not whole numbers, 0.5"],
    ),
    "cropped label": (lambda d: change(d / LABEL, lambda a: a[:-1]), [r"found shape \(8, 14, 17"]),
    "transposed label": (
        lambda d: change(d / LABEL, lambda a: np.ascontiguousarray(a.T)),
        [r"found shape \(17, 14, 9\)"],
    ),
    "label spacing": (lambda d: change(d / LABEL, spacing=(2.5, 0.8, 0.8)), ["found spacing"]),
    "label origin": (lambda d: change(d / LABEL, origin=(0, 0, 0)), ["found origin"]),
    "label direction": (
        lambda d: change(d / LABEL, direction=(1, 0, 0, 0, 1, 0, 0, 0, 1)),
        ["found direction"],
    ),
    "channel spacing": (lambda d: change(d / SECOND, spacing=(3, 0.8, 0.7)), ["found spacing"]),
    "channel shape": (lambda d: change(d / SECOND, lambda a: a[1:]), ["found shape"]),
    "text": (lambda d: (d / IMAGE).write_text("hello"), [r"no usable file \(cannot be read"]),
    "empty file": (lambda d: (d / LABEL).write_bytes(b""), [r"no usable file \(cannot be read"]),
    "cut short": (
        lambda d: (d / IMAGE).write_bytes((d / IMAGE).read_bytes()[:-9]),
        [r"no usable file \(is damaged or cut short"],
    ),
    "two dimensions": (
        lambda d: sitk.WriteImage(sitk.Image([7, 5], sitk.sitkUInt8), str(d / LABEL)),
        [r"no usable file \(expected three dimensions, found 2"],
    ),
    "four dimensions": (
        lambda d: sitk.WriteImage(sitk.Image([7, 5, 4, 3], sitk.sitkUInt8), str(d / IMAGE)),
        [r"no usable file \(expected three dimensions, found 4"],
    ),
    "label with components": (
        lambda d: sitk.WriteImage(
            sitk.GetImageFromArray(np.ones((9, 14, 17, 2), np.uint8), isVector=True),
            str(d / LABEL),
        ),
        ["found 2 channels, expected one", "found spacing", "found direction", "found origin"],
    ),
}


@pytest.mark.parametrize("break_", BREAKS)
def test_a_broken_case_is_reported_and_left_out(dataset, break_):
    damage, expected = BREAKS[break_]
    damage(dataset)

    examination = examine(dataset)

    texts = [str(problem) for problem in examination.problems]
    assert len(texts) == len(expected), texts
    for text, pattern in zip(texts, expected, strict=True):
        assert text.startswith("case_1: ") and "case_1" in text.split(":")[1]
        pytest.raises(ValueError, _raise, text).match(pattern)
    assert [case.case_id for case in examination.good_cases] == ["case_0", "case_2"]
    assert [case.case_id for case in examination.fingerprint.cases] == ["case_0", "case_2"]


def _raise(text):
    raise ValueError(text)


@pytest.mark.parametrize("processes", [0, 2])
def test_all_broken_cases_are_listed_at_once_in_their_order(dataset, processes):
    (dataset / "labelsTr" / "case_0.nii.gz").unlink()
    change(dataset / LABEL, with_value(9), origin=(0, 0, 0))
    change(dataset / SECOND, with_value(np.nan))
    (dataset / "imagesTr" / "case_2_0001.nii.gz").write_text("x")

    examination = examine(dataset, processes)

    assert [p.case_id for p in examination.problems] == ["case_0"] + 3 * ["case_1"] + ["case_2"]
    assert examination.good_cases == () and examination.fingerprint.cases == ()
    text = report(examination.problems, 3)
    assert text.startswith("5 problem(s), 3 of 3 cases broken:\n  case_0: ")
    assert len(text.splitlines()) == 6


def test_problems_of_one_kind_are_one_line_that_names_every_file(tmp_path):
    folder = write_raw_dataset(tmp_path, cases=20)
    for number in range(12):
        change(folder / "labelsTr" / f"case_{number}.nii.gz", with_value(9 + number % 2))
    problems = examine(folder).problems
    (line,) = report(problems, 20).splitlines()[1:]
    assert line.startswith(f"  12 files: expected {problems[0].expected}; {problems[0].advice}")
    for problem in problems:
        assert f"{problem.path.name} ({problem.found})" in line

    alike = [problem for problem in problems if problem.found == problems[0].found]
    (line,) = report(alike, 20).splitlines()[1:]
    assert line.startswith(f"  6 files: found {alike[0].found}, expected ")
    assert line.endswith(": " + ", ".join(problem.path.name for problem in alike))


def test_a_missing_channel_number_is_said(tmp_path):
    folder = write_raw_dataset(tmp_path, cases=2)
    (folder / "imagesTr/case_1_0000.nii.gz").rename(folder / "imagesTr/case_1.nii.gz")
    # case_1 reads as channel-less, so that its file is found by its case's name.
    (problem,) = examine(folder).problems
    assert problem.case_id == "case_1"
    assert str(problem).endswith(
        "found case_1.nii.gz, expected channel 0 (CT); add the channel number to its name"
    )


def test_the_only_channel_with_another_number_is_a_problem(tmp_path):
    folder = write_raw_dataset(tmp_path, cases=2)
    (folder / "imagesTr/case_1_0000.nii.gz").rename(folder / "imagesTr/case_1_0001.nii.gz")
    (problem,) = examine(folder).problems
    assert "found no file, but case_1_0001.nii.gz, expected channel 0 (CT)" in str(problem)


def test_endings_in_upper_case_are_used_and_other_image_files_listed(dataset):
    for path in list(dataset.glob("*Tr/case_1*")):
        path.rename(path.with_name(path.name.replace(".nii.gz", ".NII.GZ")))
    image, geometry = read_image(dataset / "imagesTr/case_0_0000.nii.gz")
    write_image(dataset / "imagesTr/case_9_0000.nii", image[0], geometry)
    shutil.copy(dataset / "labelsTr/case_2.nii.gz", dataset / "labelsTr/case_2.nrrd")

    examination = examine(dataset)

    assert examination.problems == [] and len(examination.good_cases) == 3
    (warning,) = examination.warnings
    assert warning.startswith("2 image file(s) belong to no case") and warning.endswith(
        "imagesTr/case_9_0000.nii, labelsTr/case_2.nrrd; convert or rename them to train on them"
    )


def test_cases_without_a_label_are_negative_ones_and_counted(dataset):
    change(dataset / LABEL, np.zeros_like)
    examination = examine(dataset)
    assert examination.problems == [] and len(examination.good_cases) == 3
    (warning,) = examination.warnings
    assert warning.startswith("1 of 3 cases have no label") and warning.endswith(": case_1")


def test_a_dataset_without_any_label_is_refused_even_without_its_broken_cases(dataset):
    for case in ("case_0", "case_1"):
        change(dataset / f"labelsTr/{case}.nii.gz", np.zeros_like)
    (dataset / "labelsTr/case_2.nii.gz").write_text("x")
    examination = examine(dataset)
    assert examination.good_cases == ()
    assert [p.case_id for p in examination.problems] == ["case_2", None]
    assert "found no foreground voxel in any usable case" in str(examination.problems[1])


def test_labels_that_floats_hardly_miss_are_labels(dataset):
    change(dataset / LABEL, lambda a: a.astype(np.float32) + np.float32(4e-4))
    assert examine(dataset).problems == []
    expected = read_image(dataset / LABEL)[0][0].round().astype(np.uint8)
    np.testing.assert_array_equal(read_segmentation(dataset / LABEL)[0], expected)
    change(dataset / LABEL, lambda a: np.where(a.round() == 1, 0.998, a).astype(np.float32))
    assert "not whole numbers, 0.998" in str(examine(dataset).problems[0])


def test_another_number_of_cases_than_declared_is_a_problem_of_the_dataset(dataset):
    content = read_json(dataset / "dataset.json")
    write_json(dataset / "dataset.json", content | {"numTraining": 5})

    examination = examine(dataset)

    (problem,) = examination.problems
    assert problem.case_id is None
    assert "found 3 training cases in the folders, expected 5, as numTraining says" in str(problem)
    assert len(examination.good_cases) == 3


def test_a_dataset_without_cases_says_what_is_there(dataset):
    content = read_json(dataset / "dataset.json")
    write_json(dataset / "dataset.json", content | {"file_ending": ".mha"})

    (problem,) = examine(dataset).problems

    assert "found no training case (there are case_0_0000.nii.gz, case_0_0001" in str(problem)
    assert "expected CASE_0000.mha and labelsTr/CASE.mha" in str(problem)


def test_a_label_that_no_case_has_is_a_warning(dataset):
    content = read_json(dataset / "dataset.json")
    labels = content["labels"] | {"rare": 3}
    write_json(dataset / "dataset.json", content | {"labels": labels})

    examination = examine(dataset)

    assert examination.problems == []
    assert [w for w in examination.warnings if "'rare' (3)" in w] == examination.warnings


def test_ct_that_is_not_in_hu_is_a_warning(tmp_path):
    folder = write_raw_dataset(tmp_path, cases=2)
    for i in range(2):
        change(folder / f"imagesTr/case_{i}_0000.nii.gz", lambda array: array + 2000)
    (warning,) = examine(folder).warnings
    assert "declared CT, but no case has a value below 0" in warning


def test_ct_that_was_windowed_before_is_kept_as_it_is(tmp_path):
    folder = write_raw_dataset(tmp_path, cases=2)
    for i in range(2):
        path = folder / f"imagesTr/case_{i}_0000.nii.gz"
        change(path, lambda array: np.clip((array + 160) / 400 * 255, 0, 255).astype(np.uint8))
    examination = examine(folder)
    (warning,) = examination.warnings
    assert "all its values lie within 0 to 255: taken as windowed before" in warning
    normalizations, reason = choose_normalizations(examination.fingerprint)
    assert normalizations == (keep_windowed(),)
    assert reason == "channel 0: CT windowed to 0 to 255 before, kept as it is"


def test_whole_numbers_stored_as_floats_are_labels(dataset):
    for path in (dataset / "labelsTr").iterdir():
        change(path, lambda array: array.astype(np.float64))
    assert examine(dataset).problems == []


def test_one_file_with_all_channels_as_components_is_accepted(tmp_path):
    folder = write_raw_dataset(tmp_path, cases=2, channels=2)
    for case in read_raw_dataset(folder).cases:
        first, second = (sitk.ReadImage(str(path)) for path in case.images)
        sitk.WriteImage(sitk.Compose(first, second), str(case.images[0]))
        case.images[1].unlink()
    examination = examine(folder)
    assert examination.problems == []
    assert all(len(case.channels) == 2 for case in examination.fingerprint.cases)


def test_a_broken_real_case_is_found_among_good_ones(tmp_path):
    source = raw_folder() / "Dataset004_Hippocampus"
    cases = read_raw_dataset(source).cases[:6]
    for folder in ("imagesTr", "labelsTr"):
        (tmp_path / "Dataset004_Hippocampus" / folder).mkdir(parents=True)
    for case in cases:
        for path in (*case.images, case.label):
            relative = path.relative_to(source)
            shutil.copyfile(path, tmp_path / "Dataset004_Hippocampus" / relative)
    content = read_json(source / "dataset.json") | {"numTraining": 6}
    write_json(tmp_path / "Dataset004_Hippocampus" / "dataset.json", content)
    broken = tmp_path / "Dataset004_Hippocampus" / cases[3].label.relative_to(source)
    change(broken, with_value(3))

    examination = examine(tmp_path / "Dataset004_Hippocampus")

    (problem,) = examination.problems
    assert problem.case_id == cases[3].case_id
    assert problem.expected == "0 (background), 1 (Anterior), 2 (Posterior)"
    assert len(examination.good_cases) == 5
