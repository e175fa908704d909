"""The challenge's training files to raw datasets, and predictions back to its layout."""

from __future__ import annotations

import numpy as np
import pytest

from promptseg.commands import convert
from promptseg.conversion.npz_dataset import convert_npz
from promptseg.conversion.predictions import convert_predictions_to_npz
from promptseg.experiment_planning.examine import examine_dataset
from promptseg.experiment_planning.planner import choose_normalizations
from promptseg.io.dataset import read_raw_dataset
from promptseg.io.images import Geometry, read_image, read_segmentation, write_image
from promptseg.preprocessing.normalize import keep_windowed
from tests.real_data import require_real_data

SHAPE = (4, 7, 6)
SPACING = (2.5, 0.7, 0.8)  # zyx


def labels(*values):
    array = np.zeros(SHAPE, np.int64)
    for i, value in enumerate(values):
        array[1 : 3 + i % 2, 2:5, i] = value
    return array


def image(seed=0):
    return np.random.default_rng(seed).integers(0, 256, SHAPE).astype(np.uint8)


def save(folder, name, **arrays):
    folder.mkdir(exist_ok=True)
    content = {"imgs": image(), "gts": labels(1, 2), "spacing": np.array(SPACING[::-1])}
    arrays = {key: value for key, value in (content | arrays).items() if value is not None}
    np.savez_compressed(folder / f"{name}.npz", **arrays)


@pytest.fixture
def files(tmp_path):
    folder = tmp_path / "npz"
    save(folder, "CT_A_0001", imgs=image(1), gts=labels(1, 4))
    save(folder, "CT_A_0002", imgs=image(2), gts=labels(2).astype(np.uint8))
    return folder


def run(folder, tmp_path, *arguments):
    roots = ["-d", "5", "--name", "Npz", "--raw", str(tmp_path / "raw"), "-np", "0"]
    return convert.main(["-i", str(folder), *roots, *arguments])


def test_files_become_a_raw_dataset_that_planning_accepts(files, tmp_path):
    result = convert_npz(files, tmp_path / "raw", number=5, name="Npz")

    assert result.done == ("CT_A_0001", "CT_A_0002") and not result.failed
    assert "no file contains label_3; listed nevertheless" in result.report()
    raw = read_raw_dataset(result.output)
    assert result.output.name == "Dataset005_Npz" and raw.channel_names == ("CT",)
    assert raw.labels == {f"label_{v}": v for v in range(1, 5)}
    examination = examine_dataset(raw, processes=0)
    assert not examination.problems
    assert choose_normalizations(examination.fingerprint)[0] == (keep_windowed(),)
    for case, seed, expected in zip(raw.cases, (1, 2), (labels(1, 4), labels(2)), strict=True):
        found, geometry = read_image(case.images)
        np.testing.assert_array_equal(found[0], image(seed))
        assert geometry.difference_from(Geometry(shape=SHAPE, spacing=SPACING), 1e-6) is None
        np.testing.assert_array_equal(read_segmentation(case.label)[0], expected)


@pytest.mark.parametrize(
    ("prefix", "channel"),
    [("MR", "MRI"), ("PET", "PET"), ("US", "US"), ("Microscopy", "Microscopy")],
)
def test_the_modality_comes_from_the_names(tmp_path, prefix, channel):
    save(tmp_path / "npz", f"{prefix}_B_1")
    result = convert_npz(tmp_path / "npz", tmp_path / "raw", number=5, name="Npz")
    assert read_raw_dataset(result.output).channel_names == (channel,)


def test_several_modalities_are_refused_and_listed_until_one_is_chosen(files, tmp_path, capsys):
    save(files, "MR_B_1")
    save(files, "CT_C_1")
    assert run(files, tmp_path) == 1
    error = capsys.readouterr().err
    assert "4 files are of 2 modalities" in error and "--only CT_" in error
    assert "CT: 3 (CT_A_0001, CT_A_0002, CT_C_1); MR: 1 (MR_B_1)" in error
    assert not (tmp_path / "raw").exists()
    assert run(files, tmp_path, "--only", "CT_") == 0
    output = capsys.readouterr().out
    assert "3 of 3 case(s)" in output and "the files are of 2 sources (CT_A, CT_C)" in output
    assert run(files, tmp_path, "--only", "CT_A", "--overwrite") == 0
    assert "2 of 2 case(s)" in capsys.readouterr().out
    assert run(files, tmp_path, "--only", "PET_", "--overwrite") == 1
    assert "expected files PET_NAME.npz, found none" in capsys.readouterr().err


def test_broken_files_are_listed_together_and_the_others_converted(files, tmp_path, capsys):
    save(files, "CT_A_nogts", gts=None)
    save(files, "CT_A_shape", gts=labels(1)[:-1])
    save(files, "CT_A_negative", gts=labels(-1))
    save(files, "CT_A_half", gts=labels(1) * 0.5)
    save(files, "CT_A_spacing", spacing=np.array([1.0, 0.0, 1.0]))
    save(files, "CT_A_2d", imgs=image()[0])
    (files / "CT_A_cut.npz").write_bytes((files / "CT_A_0001.npz").read_bytes()[:200])
    (files / "CT_A_empty.npz").write_bytes(b"")
    (files / "._CT_A_0001.npz").write_bytes(b"a Mac's notes")

    assert run(files, tmp_path) == 1

    output = capsys.readouterr().out
    for text in (
        "CT_A_nogts.npz: expected an array gts, found imgs, spacing; if the labels are in other "
        "files, give --ground-truth FOLDER",
        "CT_A_shape.npz: gts: shape (3, 7, 6), but imgs has (4, 7, 6)",
        "CT_A_negative.npz: gts: expected label values of 0 and above, found -1",
        "labels must be whole numbers, found 0.5",
        "CT_A_spacing.npz: spacing: expected three positive numbers",
        "CT_A_2d.npz: imgs: expected three dimensions",
        "CT_A_cut.npz cannot be read as .npz",
        "CT_A_empty.npz is empty",
        "2 of 10 case(s) written to",
    ):
        assert text in output
    raw = read_raw_dataset(tmp_path / "raw" / "Dataset005_Npz")
    assert [case.case_id for case in raw.cases] == ["CT_A_0001", "CT_A_0002"]
    assert raw.content["numTraining"] == 2


def test_labels_may_lie_in_another_folder(tmp_path, files):
    save(tmp_path / "gts", "CT_A_0001", imgs=None, gts=labels(2), spacing=None)
    result = convert_npz(
        files, tmp_path / "raw", number=5, name="Npz", ground_truth=tmp_path / "gts"
    )
    assert result.done == ("CT_A_0001",)
    assert "found no file CT_A_0002.npz with its labels" in result.failed["CT_A_0002"]
    found, geometry = read_segmentation(result.output / "labelsTr" / "CT_A_0001.nii.gz")
    np.testing.assert_array_equal(found, labels(2))
    assert geometry.spacing == pytest.approx(SPACING)


def test_numbered_objects_are_refused_or_merged(tmp_path, capsys):
    texts = {"1": "cell", "instance_label": 1}
    save(tmp_path / "npz", "CT_A_1", gts=labels(300, 7), text_prompts=texts)
    assert run(tmp_path / "npz", tmp_path) == 1
    error = capsys.readouterr().err
    assert "its 2 label values number the objects of one kind" in error
    assert "--merge-instances" in error
    assert run(tmp_path / "npz", tmp_path, "--merge-instances") == 0
    raw = read_raw_dataset(tmp_path / "raw" / "Dataset005_Npz")
    assert raw.labels == {"label_1": 1}
    found, _ = read_segmentation(raw.cases[0].label)
    np.testing.assert_array_equal(found, labels(300, 7) > 0)


@pytest.mark.parametrize(
    ("values", "message"),
    [((1, 256), "label values reach 256, at most 255"), ((), "gts of all files are empty")],
)
def test_labels_that_make_no_dataset_are_refused(tmp_path, capsys, values, message):
    save(tmp_path / "npz", "CT_A_1", gts=labels(*values))
    assert run(tmp_path / "npz", tmp_path) == 1
    assert message in capsys.readouterr().err
    assert not list((tmp_path / "raw").iterdir())


def test_the_order_of_spacings_can_be_given(tmp_path):
    save(tmp_path / "npz", "CT_A_1", spacing=np.array(SPACING))
    result = convert_npz(
        tmp_path / "npz", tmp_path / "raw", number=5, name="Npz", spacing_order="zyx"
    )
    _, geometry = read_image(result.output / "imagesTr" / "CT_A_1_0000.nii.gz")
    assert geometry.spacing == pytest.approx(SPACING)


def test_a_folder_of_neither_kind_says_what_was_expected(tmp_path, capsys):
    assert run(tmp_path / "nothing", tmp_path) == 1
    assert "expected a task folder of the Decathlon" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--to", "npz"], "--to npz needs -o"),
        (["--to", "dicom-seg", "-o", "out"], "--to dicom-seg needs --dicom"),
        (["-d", "4"], "needs -d ID and --name NAME"),
    ],
)
def test_missing_flags_are_named(files, arguments, message, capsys):
    with pytest.raises(SystemExit):
        convert.main(["-i", str(files), *arguments])
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha", ".npz"])
def test_predictions_become_files_that_the_challenge_reads(tmp_path, ending):
    geometry = Geometry(shape=SHAPE, spacing=SPACING)
    write_image(tmp_path / "preds" / f"CT_A_0018{ending}", labels(1, 9).astype(np.int16), geometry)
    result = convert_predictions_to_npz(tmp_path / "preds", tmp_path / "out")
    assert result.done == ("CT_A_0018",)
    with np.load(tmp_path / "out" / "CT_A_0018.npz") as content:
        np.testing.assert_array_equal(content["segs"], labels(1, 9))
        assert content["segs"].dtype == np.uint8
    _, found = read_segmentation(tmp_path / "out" / "CT_A_0018.npz")
    assert found.difference_from(geometry, 1e-6) is None


def test_predictions_that_cannot_be_written_are_listed(tmp_path, capsys):
    geometry = Geometry(shape=SHAPE, spacing=SPACING)
    for name, values in (("a", labels(1)), ("b", labels(-1)), ("c", labels(70000))):
        write_image(tmp_path / "preds" / f"{name}.nii.gz", values.astype(np.int32), geometry)
    write_image(tmp_path / "preds" / "a.nrrd", labels(1).astype(np.uint8), geometry)
    write_image(tmp_path / "preds" / "d.nii.gz", labels(1).astype(np.uint8), geometry)
    (tmp_path / "preds" / "e.nii.gz").write_bytes(b"")
    arguments = ["--to", "npz", "-i", str(tmp_path / "preds"), "-o", str(tmp_path / "out")]
    arguments += ["-np", "0"]

    assert convert.main(arguments) == 1

    output = capsys.readouterr().out
    assert "labels -1 to 0 do not fit into uint16" in output and "labels 0 to 70000" in output
    assert "case 'a': predictions has several files" in output and "e.nii.gz" in output
    assert "1 of 5 case(s) written to" in output
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["d.npz"]
    assert convert.main(arguments) == 1
    assert "already contains d.npz; choose another folder" in capsys.readouterr().err


def test_real_training_files_become_a_dataset(tmp_path):
    folder = require_real_data("npz")
    result = convert_npz(folder, tmp_path / "raw", number=5, name="Lesion", only="CT_Lesion")
    assert len(result.done) == 3 and not result.failed
    for case in read_raw_dataset(result.output).cases:
        with np.load(folder / f"{case.case_id}.npz") as content:
            found, geometry = read_image(case.images)
            np.testing.assert_array_equal(found[0], content["imgs"])
            np.testing.assert_array_equal(read_segmentation(case.label)[0], content["gts"])
            assert geometry.spacing == pytest.approx(content["spacing"][::-1])
