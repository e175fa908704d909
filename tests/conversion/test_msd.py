"""Task folders of the Decathlon to raw datasets that planning accepts."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk

from promptseg.commands import convert
from promptseg.conversion.msd import convert_msd, is_msd_task
from promptseg.experiment_planning.examine import examine_dataset
from promptseg.files import read_json, write_json
from promptseg.io.dataset import read_raw_dataset
from promptseg.io.images import Geometry, read_image, read_segmentation, write_image

SHAPE = (4, 7, 6)
GEOMETRY = Geometry(
    shape=SHAPE,
    spacing=(2.5, 0.8, 0.7),
    origin=(-12.5, 30.25, 7.0),
    direction=(0.8, -0.6, 0.0, 0.6, 0.8, 0.0, 0.0, 0.0, 1.0),
)


def volume(case, channel):
    return np.random.default_rng([case, channel]).normal(100, 9, SHAPE).astype(np.float32)


def labels(case):
    array = np.zeros(SHAPE, np.uint8)
    array[1:3, 2:5, 1 + case : 4] = 1
    array[1, 5, 3] = 2
    return array


def write_channels(path, channels):
    """A four-dimensional image, as the Decathlon has them, written by SimpleITK alone."""
    volumes = []
    for channel in channels:
        image = sitk.GetImageFromArray(channel)
        image.SetSpacing(GEOMETRY.spacing[::-1])
        image.SetOrigin(GEOMETRY.origin)
        image.SetDirection(GEOMETRY.direction)
        volumes.append(image)
    sitk.WriteImage(sitk.JoinSeries(volumes), str(path))


@pytest.fixture(params=[1, 2])
def task(request, tmp_path):
    """A task of two training cases and one to predict, of one or two channels."""
    folder, channels = tmp_path / "Task07_Organ", request.param
    for name in ("imagesTr", "labelsTr", "imagesTs"):
        (folder / name).mkdir(parents=True)
    for case in range(3):
        path = folder / ("imagesTs" if case == 2 else "imagesTr") / f"organ_00{case}.nii.gz"
        if channels == 1:
            write_image(path, volume(case, 0), GEOMETRY)
        else:
            write_channels(path, [volume(case, channel) for channel in range(channels)])
        (path.parent / f"._{path.name}").write_bytes(b"\0\5\x16\7 a Mac's notes")
        if case != 2:
            write_image(folder / "labelsTr" / path.name, labels(case), GEOMETRY)
    content = {
        "name": "Organ",
        "licence": "CC-BY-SA 4.0",
        "tensorImageSize": "4D",
        "modality": {str(i): name for i, name in enumerate(("T2", "ADC")[:channels])},
        "labels": {"0": "background", "1": "organ", "2": "spot"},
        "numTraining": 2,
        "numTest": 1,
        "training": [
            {"image": f"./imagesTr/organ_00{i}.nii.gz", "label": f"./labelsTr/organ_00{i}.nii.gz"}
            for i in range(2)
        ],
        "test": ["./imagesTs/organ_002.nii.gz"],
    }
    write_json(folder / "dataset.json", content)
    return folder


def channels_of(task):
    return len(read_json(task / "dataset.json")["modality"])


def test_a_task_becomes_a_raw_dataset_that_planning_accepts(task, tmp_path):
    result = convert_msd(task, tmp_path / "raw")

    assert result.done == ("organ_000", "organ_001", "organ_002") and not result.failed
    assert result.output == tmp_path / "raw" / "Dataset007_Organ" and not result.notes
    raw = read_raw_dataset(result.output)
    assert raw.channel_names == ("T2", "ADC")[: channels_of(task)]
    assert raw.labels == {"organ": 1, "spot": 2}
    assert raw.content["numTraining"] == 2 and raw.content["licence"] == "CC-BY-SA 4.0"
    assert not examine_dataset(raw, processes=0).problems
    for number, case in enumerate(raw.cases):
        image, geometry = read_image(case.images)
        expected = [volume(number, channel) for channel in range(channels_of(task))]
        np.testing.assert_array_equal(image, expected)
        assert geometry.differences_from(GEOMETRY, tolerance=1e-6) == []
        np.testing.assert_array_equal(read_segmentation(case.label)[0], labels(number))
    test_images = sorted(path.name for path in (result.output / "imagesTs").iterdir())
    assert test_images == [f"organ_002_000{i}.nii.gz" for i in range(channels_of(task))]
    assert not [p for p in result.output.rglob("*") if p.name.startswith(".")]


def test_broken_cases_are_listed_together_and_the_others_converted(task, tmp_path, capsys):
    (task / "labelsTr" / "organ_000.nii.gz").write_bytes(b"")
    (task / "imagesTs" / "organ_002.nii.gz").unlink()
    arguments = ["-i", str(task), "-d", "12", "--name", "Other", "--raw", str(tmp_path / "raw")]

    assert convert.main([*arguments, "-np", "0"]) == 1

    output = capsys.readouterr().out
    assert "organ_000: " in output and "labelsTr/organ_000.nii.gz" in output
    assert "organ_002: " in output and "organ_002.nii.gz: no such file" in output
    assert "1 of 3 case(s) written to" in output
    raw = read_raw_dataset(tmp_path / "raw" / "Dataset012_Other")
    assert [case.case_id for case in raw.cases] == ["organ_001"]
    assert raw.content["numTraining"] == 1
    assert not list(raw.folder.rglob("*organ_000*"))


def test_a_wrong_number_of_channels_is_a_broken_case(task, tmp_path):
    write_channels(task / "imagesTr" / "organ_000.nii.gz", [volume(0, i) for i in range(3)])
    result = convert_msd(task, tmp_path / "raw")
    (problem,) = result.failed.values()
    assert f"found 3 channel(s), expected {channels_of(task)}" in problem


def test_nothing_is_written_when_every_case_is_broken(task, tmp_path):
    for path in task.glob("images*/organ*"):
        path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"none of 3 case\(s\) could be converted:\n  organ_000: "):
        convert_msd(task, tmp_path / "raw")
    assert not list((tmp_path / "raw").iterdir())


def test_a_dataset_that_is_there_is_replaced_only_when_asked(task, tmp_path, capsys):
    arguments = ["-i", str(task), "--raw", str(tmp_path / "raw"), "-np", "0"]
    assert convert.main(arguments) == 0
    old = tmp_path / "raw" / "Dataset007_Organ" / "old.txt"
    old.write_text("mine")

    assert convert.main(arguments) == 1
    assert "Dataset007_Organ already exists; remove it, or give --over" in capsys.readouterr().err
    assert old.exists()
    assert convert.main([*arguments, "--name", "Another"]) == 1
    assert "Dataset007_Organ has the number 7; choose another with -d" in capsys.readouterr().err
    assert convert.main([*arguments, "--overwrite"]) == 0
    assert not old.exists() and [p.name for p in (tmp_path / "raw").iterdir()] == [
        "Dataset007_Organ"
    ]


def test_images_that_the_list_leaves_out_are_noted(task, tmp_path):
    (task / "imagesTr" / "more_001.nii.gz").write_bytes(b"")
    assert convert_msd(task, tmp_path / "raw").notes == (
        "left out, as dataset.json does not list them: more_001.nii.gz",
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"modality": ["MRI"]}, r"modality: expected .*found \['MRI'\]"),
        ({"modality": {"a": "MRI"}}, "modality: expected"),
        ({"labels": {"background": 0}}, "labels: expected"),
        (
            {"labels": {"0": "background", "1": "a", "2": "a"}},
            "labels: names must be unique, found",
        ),
        ({"labels": {"0": "background", "2": "a"}}, "expected the values 0 to 1, each once"),
        ({"labels": {"0": "background"}}, "expected at least one label"),
        ({"training": [], "test": []}, "training: expected cases, found none"),
        ({"training": ["./imagesTr/a.nii.gz"]}, 'training: expected {"image"'),
        ({"training": [{"image": "../../x.nii.gz", "label": "a"}]}, "expected a file of the task"),
        ({"training": [{"image": 5, "label": "a"}]}, "expected a file of the task, found 5"),
        ({"test": ["/etc/passwd"]}, "expected a file of the task, found '/etc/passwd'"),
        ({"test": ["./imagesTs/a.mha"]}, "expected a file NAME.nii.gz"),
        ({"test": ["./imagesTr/organ_000.nii.gz"]}, "duplicate entries for 'organ_000'"),
    ],
)
def test_malformed_lists_are_refused_before_anything_is_written(task, tmp_path, changes, message):
    content = read_json(task / "dataset.json")
    write_json(task / "dataset.json", content | changes)
    with pytest.raises(ValueError, match=message):
        convert_msd(task, tmp_path / "raw")
    assert not (tmp_path / "raw").exists()


def test_a_folder_of_another_name_needs_number_and_name(task, tmp_path):
    other = task.rename(tmp_path / "decathlon")
    assert is_msd_task(other) and not is_msd_task(tmp_path)
    with pytest.raises(ValueError, match=r"expected a folder named Task04_Name, or else -d ID"):
        convert_msd(other, tmp_path / "raw", number=3)
    with pytest.raises(ValueError, match="expected a number from 0 and a name of letters"):
        convert_msd(other, tmp_path / "raw", number=3, name="../x")
    result = convert_msd(other, tmp_path / "raw", number=3, name="X")
    assert result.output.name == "Dataset003_X"


@pytest.mark.parametrize("channels", [1, 2])
def test_a_task_of_nnunet_v1_has_a_file_of_each_channel(tmp_path, channels):
    folder = tmp_path / "Task550_Organ"
    for case, part in ((0, "imagesTr"), (1, "imagesTr"), (2, "imagesTs")):
        for channel in range(channels):
            name = f"organ_00{case}_{channel:04d}.nii.gz"
            write_image(folder / part / name, volume(case, channel), GEOMETRY)
        if part == "imagesTr":
            write_image(folder / "labelsTr" / f"organ_00{case}.nii.gz", labels(case), GEOMETRY)
    content = {
        "modality": {str(i): name for i, name in enumerate(("T2", "ADC")[:channels])},
        "labels": {"0": "background", "1": "organ", "2": "spot"},
        "training": [
            {
                "image": f"./imagesTr/organ_00{case}.nii.gz",
                "label": f"./labelsTr/organ_00{case}.nii.gz",
            }
            for case in range(2)
        ],
        "test": ["./imagesTs/organ_002.nii.gz"],
    }
    write_json(folder / "dataset.json", content)
    assert convert.main(["-i", str(folder), "--raw", str(tmp_path / "raw")]) == 0
    made = read_raw_dataset(tmp_path / "raw" / "Dataset550_Organ")
    assert [case.case_id for case in made.cases] == ["organ_000", "organ_001"]
    for number, case in enumerate(made.cases):
        image, geometry = read_image(case.images)
        np.testing.assert_array_equal(image, [volume(number, c) for c in range(channels)])
        assert geometry.difference_from(GEOMETRY) is None
    assert len(list((made.folder / "imagesTs").iterdir())) == channels
    assert not examine_dataset(made, 0).problems

    # a channel that is missing is a problem of its case alone
    (folder / "imagesTr" / f"organ_001_{channels - 1:04d}.nii.gz").unlink()
    assert convert.main(["-i", str(folder), "--raw", str(tmp_path / "other")]) == 1
    made = read_raw_dataset(tmp_path / "other" / "Dataset550_Organ")
    assert [case.case_id for case in made.cases] == ["organ_000"]
