"""Two folders to numbers: the file's shape, NaN, prompts, and everything that can be wrong."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from promptseg.boxes import value_box
from promptseg.commands import evaluate as command
from promptseg.evaluation.evaluate import Tolerances, evaluate_folders, format_table
from promptseg.files import write_json
from promptseg.io.images import Geometry, write_image

SHAPE, SPACING = (4, 6, 5), (2.5, 1.0, 0.8)  # a voxel is 2 mm3
GEOMETRY = Geometry(shape=SHAPE, spacing=SPACING, origin=(3.0, -7.0, 11.0))
LABELS = {"background": 0, "organ": 1, "lesion": 2}


def block(**boxes) -> np.ndarray:
    """A segmentation with label n in the box given as `label_n=(z0, z1, y0, y1, x0, x1)`."""
    segmentation = np.zeros(SHAPE, np.uint8)
    for name, (z0, z1, y0, y1, x0, x1) in boxes.items():
        segmentation[z0:z1, y0:y1, x0:x1] = int(name.removeprefix("label_"))
    return segmentation


@pytest.fixture
def folders(tmp_path) -> tuple[Path, Path]:
    """Two cases. Organ: 2x3x4 = 24 voxels against 2x3x2 = 12 within them. Lesion: only in b."""
    truth, predictions = tmp_path / "data" / "labelsTs", tmp_path / "predictions"
    organ, smaller = (0, 2, 0, 3, 0, 4), (0, 2, 0, 3, 0, 2)
    write_image(truth / "a.nii.gz", block(label_1=organ), GEOMETRY)
    write_image(predictions / "a.nii.gz", block(label_1=smaller), GEOMETRY)
    lesion = (3, 4, 4, 6, 4, 5)
    write_image(truth / "b.nii.gz", block(label_1=organ, label_2=lesion), GEOMETRY)
    write_image(predictions / "b.nrrd", block(label_1=organ), GEOMETRY)
    write_json(tmp_path / "data" / "dataset.json", {"labels": LABELS})
    return truth, predictions


def test_summary_has_nnunets_shape_and_hand_worked_numbers(folders):
    summary = evaluate_folders(*folders)

    assert summary["failures"] == summary["missing"] == summary["warnings"] == []
    assert {"foreground_mean", "mean", "metric_per_case"} <= summary.keys()
    first, second = summary["metric_per_case"]
    assert first["prediction_file"] == str(folders[1] / "a.nii.gz")
    assert second["prediction_file"] == str(folders[1] / "b.nrrd")
    assert first["reference_file"] == str(folders[0] / "a.nii.gz")
    organ = first["metrics"]["1"]
    assert {k: organ[k] for k in ("TP", "FP", "FN", "TN")} == {
        "TP": 12, "FP": 0, "FN": 12, "TN": 120 - 24,
    }  # fmt: skip
    assert (organ["n_pred"], organ["n_ref"]) == (12, 24)
    assert organ["Dice"] == pytest.approx(2 / 3)
    assert organ["IoU"] == pytest.approx(1 / 2)
    assert organ["volume_ml_reference"] == pytest.approx(0.048)
    assert organ["volume_ml_prediction"] == pytest.approx(0.024)
    assert summary["mean"]["1"]["Dice"] == pytest.approx((2 / 3 + 1) / 2)
    assert summary["mean"]["1"]["TP"] == pytest.approx((12 + 24) / 2)
    assert summary["mean"]["2"]["Dice"] == 0.0  # missed in b, in neither in a
    assert summary["foreground_mean"]["Dice"] == pytest.approx(5 / 12)


def test_undefined_dice_is_left_out_of_the_mean_counted_and_null_in_the_file(folders):
    summary = evaluate_folders(*folders)

    assert math.isnan(summary["metric_per_case"][0]["metrics"]["2"]["Dice"])
    assert summary["undefined"]["2"]["Dice"] == 1 and summary["undefined"]["1"]["Dice"] == 0

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    text = (folders[1] / "summary.json").read_text()
    written = json.loads(text, parse_constant=refuse)
    assert written["metric_per_case"][0]["metrics"]["2"]["Dice"] is None
    assert written["mean"]["1"]["Dice"] == summary["mean"]["1"]["Dice"]
    assert format_table(written) == format_table(summary)


def test_a_label_in_no_case_has_no_mean_and_does_not_spoil_the_foreground_mean(folders):
    labels = {"organ": 1, "gland": 7}
    with_gland = evaluate_folders(*folders, labels=labels)
    assert math.isnan(with_gland["mean"]["7"]["Dice"])
    assert with_gland["foreground_mean"]["Dice"] == with_gland["mean"]["1"]["Dice"]


def test_csv_has_a_row_for_each_case_and_label(folders):
    evaluate_folders(*folders)
    with open(folders[1] / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))

    assert [(r["case"], r["label"], r["name"]) for r in rows] == [
        ("a", "1", "organ"), ("a", "2", "lesion"), ("b", "1", "organ"), ("b", "2", "lesion"),
    ]  # fmt: skip
    assert list(rows[0]) == [
        "case", "label", "name", "dice", "iou", "nsd_1mm", "nsd_2mm", "hd95_mm", "assd_mm",
        "volume_ml_reference", "volume_ml_prediction", "volume_error_ml", "volume_error_relative",
        "lesions_reference", "lesions_prediction", "lesion_precision", "lesion_recall", "lesion_f1",
        "box_iou", "box_recall", "prompt_source",
    ]  # fmt: skip
    assert float(rows[0]["dice"]) == pytest.approx(2 / 3, abs=1e-6)
    assert rows[1]["dice"] == rows[0]["box_iou"] == rows[0]["prompt_source"] == ""


def prompts(cases: dict) -> dict:
    return {"format_version": 1, "frame": "voxel", "axes": "zyx", "cases": cases}


def test_box_iou_compares_what_the_used_boxes_enclose_with_the_true_bounding_box(folders):
    two_halves = [[[0, 0, 0], [2, 3, 2]], [[0, 0, 2], [2, 3, 4]]]
    used = {
        "a": {
            "organ": {"boxes": [[[0, 0, 0], [4, 3, 4]]], "source": "atlas", "score": 0.4},
            "lesion": {"boxes": [[[0, 0, 0], [1, 1, 1]]], "source": "atlas"},
        },
        "b": {"organ": {"boxes": two_halves, "source": "file"}, "lesion": {"source": "none"}},
    }
    write_json(folders[1] / "prompts_used.json", prompts(used))

    summary = evaluate_folders(*folders)

    first, second = (row["metrics"] for row in summary["metric_per_case"])
    assert first["1"]["box_iou"] == pytest.approx(24 / 48)
    assert first["1"]["prompt_source"] == "atlas" and first["1"]["box_recall"] == 1.0
    assert math.isnan(first["2"]["box_iou"])  # a box for a label that is not there
    assert second["1"]["box_iou"] == 1.0  # two boxes that together are the true one
    assert math.isnan(second["2"]["box_iou"]) and second["2"]["prompt_source"] == "none"
    assert summary["mean"]["1"]["box_iou"] == pytest.approx(0.75)
    assert summary["undefined"]["2"]["box_iou"] == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "cannot be used"),
        (json.dumps({"format_version": 1, "frame": "voxel", "axes": "xyz", "cases": {}}), "'xyz'"),
        (
            json.dumps({"format_version": 2, "frame": "voxel", "axes": "zyx", "cases": {}}),
            "found 2",
        ),
        (json.dumps({"format_version": 1, "frame": "voxel", "axes": "zyx"}), "cases"),
        (json.dumps(prompts({"a": {"organ": {"boxes": [[0, 0, 0, 1, 1, 1]]}}})), "(n, 2, 3)"),
        (json.dumps(prompts({"a": {"organ": {"boxes": 3}}})), "cannot be used"),
        (json.dumps(prompts({"a": 5})), "cannot be used"),
        (json.dumps(prompts({"a": {"organ": {"boxes": [[["q"] * 3] * 2]}}})), "cannot be used"),
    ],
)
def test_bad_prompts_are_a_failure_and_the_rest_is_evaluated(folders, content, message):
    (folders[1] / "prompts_used.json").write_text(content)
    summary = evaluate_folders(*folders)
    [failure] = summary["failures"]
    assert message in failure and "box IoU left out" in failure
    assert summary["mean"]["1"]["Dice"] == pytest.approx(5 / 6)


def test_without_dataset_json_the_values_found_are_the_labels(folders):
    (folders[0].parent / "dataset.json").unlink()

    summary = evaluate_folders(*folders)

    assert summary["labels"] == {"1": "1", "2": "2"}
    absent = summary["metric_per_case"][0]["metrics"]["2"]  # a has no lesion anywhere
    assert math.isnan(absent["Dice"]) and absent["TN"] == 120 and absent["n_ref"] == 0
    assert list(summary["metric_per_case"][0]["metrics"]) == ["1", "2"]


def test_dataset_json_of_the_predictions_comes_before_that_of_the_ground_truth(folders):
    write_json(folders[1] / "dataset.json", {"labels": {"background": 0, "renamed": 1}})
    summary = evaluate_folders(*folders)
    assert summary["labels"] == {"1": "renamed"}
    [warning] = summary["warnings"]
    assert "case 'b': values [2] are not labels" in warning


def test_voxels_with_the_ignore_label_count_nowhere(folders):
    summary = evaluate_folders(*folders, labels={"organ": 1, "ignore": 2})
    assert summary["warnings"] == [] and list(summary["mean"]) == ["1"]
    assert summary["metric_per_case"][1]["metrics"]["1"]["TN"] == 120 - 24 - 2


@pytest.mark.parametrize("value", ["1", 1.5, None, True, [], [1, "2"]])
def test_a_label_that_is_no_whole_number_is_refused_by_name(folders, value):
    with pytest.raises(ValueError, match="label 'organ': expected one whole number"):
        evaluate_folders(*folders, labels={"organ": value})


@pytest.mark.parametrize("content", [{}, [], {"labels": [0, 1]}])
def test_a_dataset_json_without_labels_is_refused(folders, content):
    write_json(folders[0].parent / "dataset.json", content)
    with pytest.raises(ValueError, match="dataset.json: expected an object `labels`"):
        evaluate_folders(*folders)


def test_every_failure_is_listed_and_the_good_cases_are_evaluated(folders):
    truth, predictions = folders
    good = block(label_1=(0, 2, 0, 3, 0, 4))
    for case in "cdefgh":
        write_image(truth / f"{case}.nii.gz", good, GEOMETRY)
    moved = Geometry(shape=SHAPE, spacing=SPACING, origin=(9.0, -7.0, 11.0))
    write_image(predictions / "c.nii.gz", good, moved)
    stretched = Geometry(shape=SHAPE, spacing=(2.5, 1.0, 0.9), origin=GEOMETRY.origin)
    write_image(predictions / "d.nii.gz", good, stretched)
    (predictions / "e.nii.gz").write_bytes(b"not an image")
    write_image(predictions / "f.nii.gz", good + np.float32(0.5), GEOMETRY)
    write_image(predictions / "g.nii.gz", good, GEOMETRY)
    write_image(predictions / "g.mha", good, GEOMETRY)
    write_image(predictions / "extra.nii.gz", good, GEOMETRY)

    summary = evaluate_folders(truth, predictions)

    failures = "\n".join(summary["failures"])
    assert "case 'c'" in failures and "origin (3, -7, 11) and (9, -7, 11)" in failures
    assert "case 'd'" in failures and "spacing" in failures
    assert "case 'e'" in failures and "cannot be read as an image" in failures
    assert "case 'f'" in failures and "labels must be whole numbers, found 1.5" in failures
    assert "case 'g': predictions has several files: g.mha, g.nii.gz; keep one" in failures
    assert "cases without prediction (1): h" in failures
    assert summary["missing"] == ["h"]
    assert any("extra" in warning for warning in summary["warnings"])
    assert [row["case"] for row in summary["metric_per_case"]] == ["a", "b"]
    table = format_table(summary)
    assert "6 problems:" in table and "warning: predictions without ground truth" in table


def test_missing_predictions_can_be_allowed(folders):
    (folders[1] / "b.nrrd").unlink()
    assert evaluate_folders(*folders)["failures"] == ["cases without prediction (1): b"]
    allowed = evaluate_folders(*folders, missing_ok=True)
    assert allowed["failures"] == [] and allowed["missing"] == ["b"]


def test_a_different_shape_is_a_failure_that_names_both(folders):
    other = Geometry(shape=(4, 6, 4), spacing=SPACING, origin=GEOMETRY.origin)
    write_image(folders[1] / "a.nii.gz", np.ones(other.shape, np.uint8), other)
    [failure] = evaluate_folders(*folders)["failures"]
    assert "shape (4, 6, 5) and (4, 6, 4)" in failure and "one voxel grid" in failure


def test_when_every_case_fails_there_is_a_summary_without_numbers(folders):
    for path in folders[1].iterdir():
        path.write_bytes(b"")
    summary = evaluate_folders(*folders)
    assert len(summary["failures"]) == 2 and summary["metric_per_case"] == []
    assert math.isnan(summary["foreground_mean"]["Dice"])
    assert "2 problems" in format_table(summary)


def test_the_cases_named_are_evaluated_and_no_other(folders):
    truth, predictions = folders
    write_image(predictions / "stale.nii.gz", block(), GEOMETRY)
    (truth / "c.nii.gz").write_bytes(b"")  # never read
    everything = evaluate_folders(truth, predictions)
    summary = evaluate_folders(truth, predictions, cases=["b"])

    np.testing.assert_equal(summary["metric_per_case"], everything["metric_per_case"][1:])
    assert summary["failures"] == summary["missing"] == summary["warnings"] == []
    assert everything["missing"] == ["c"] and len(everything["warnings"]) == 1


def test_named_cases_that_are_not_there_are_reported(folders):
    truth, predictions = folders
    (predictions / "a.nii.gz").unlink()
    write_image(predictions / "c.nii.gz", block(), GEOMETRY)
    summary = evaluate_folders(truth, predictions, cases=["a", "b", "c"])
    assert summary["missing"] == ["a"]
    assert summary["failures"] == [
        "cases without ground truth (1): c", "cases without prediction (1): a",
    ]  # fmt: skip
    allowed = evaluate_folders(truth, predictions, cases=["a", "b"], missing_ok=True)
    assert allowed["missing"] == ["a"] and allowed["failures"] == []
    with pytest.raises(ValueError, match="no case among a is in both folders"):
        evaluate_folders(truth, predictions, cases=["a"])


def test_no_common_case_missing_folders_and_empty_folders_are_refused(folders, tmp_path):
    truth, predictions = folders
    with pytest.raises(FileNotFoundError, match="predictions: there is no folder .*nowhere"):
        evaluate_folders(truth, tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="ground truth: .* has no label file.*only dataset"):
        evaluate_folders(truth.parent, predictions)
    (predictions / "b.nrrd").unlink()
    (predictions / "a.nii.gz").rename(predictions / "z.nii.gz")
    with pytest.raises(ValueError, match="no case is in both folders: .* has a, b, .* has z"):
        evaluate_folders(truth, predictions)


def test_worker_processes_change_nothing(folders):
    alone = evaluate_folders(*folders)
    workers = evaluate_folders(*folders, processes=2)
    np.testing.assert_equal(workers, alone)


def test_table_shows_labels_means_counts_and_the_worst_cases(folders):
    lines = format_table(evaluate_folders(*folders)).splitlines()

    assert lines[0].split("  ")[0] == "label" and "NSD 1  NSD 2" in lines[0]
    assert lines[2].split()[:5] == ["organ", "2", "0.833", "0.667-1.000", "0.833"]
    assert lines[3].split()[:5] == ["lesion", "1", "0.000", "-", "0.000"]
    assert lines[2].split()[-2:] == ["-25.0", "1.000"] and lines[3].split()[-2:] == [
        "-100.0",
        "0.000",
    ]
    assert lines[5].split()[:2] == ["mean", "0.417"]
    text = "\n".join(lines)
    assert "a label in neither segmentation: 1 times, left out" in text
    assert "in only one of them: 1 missed, 0 invented; Dice, NSD and F1 are 0," in text
    assert lines[-1] == "worst:  b lesion 0.000;  a organ 0.667;  b organ 1.000"
    assert len({len(line) for line in lines[:6]}) == 1


def test_the_table_fits_a_terminal_with_many_columns_and_long_names(folders):
    box = {"boxes": [[[0, 0, 0], [2, 3, 4]]]}
    long = "a name of a region that is much longer than any column may be"
    write_json(folders[1] / "prompts_used.json", prompts({"a": {long: box, "lesion": box}}))
    summary = evaluate_folders(*folders, labels={long: [1, 2], "lesion": 2})
    lines = format_table(summary).splitlines()[:6]
    assert max(map(len, lines)) <= 100 and "..." in lines[2] and lines[0].endswith("box IoU")


def test_regions_are_measured_as_the_union_of_their_values(folders):
    # Organ 1 of 24 voxels, lesion 2 of 2; predicted are 12 of the organ in a, all of it in b.
    labels = {"background": 0, "both": [1, 2], "lesion": 2}
    write_json(folders[0].parent / "dataset.json", {"labels": labels})
    summary = evaluate_folders(*folders)
    assert summary["labels"] == {"(1, 2)": "both", "2": "lesion"}  # as nnU-Net has the keys
    a, b = (row["metrics"]["(1, 2)"] for row in summary["metric_per_case"])
    assert (a["TP"], a["FN"], b["TP"], b["FN"], b["FP"]) == (12, 12, 24, 2, 0)
    assert b["Dice"] == pytest.approx(2 * 24 / (24 + 26)) and summary["warnings"] == []
    ignoring = evaluate_folders(*folders, labels={"both": [1, 3], "ignore": 2})
    assert ignoring["metric_per_case"][1]["metrics"]["(1, 3)"]["Dice"] == 1.0


def test_surfaces_volumes_and_lesions_of_a_case_are_hand_worked(folders):
    summary = evaluate_folders(*folders)
    a, b = (row["metrics"] for row in summary["metric_per_case"])
    # 24 voxels against 12; of 2 mm3. The far wall of the organ is two voxels of 0.8 mm away.
    assert a["1"]["volume_error_ml"] == pytest.approx(0.024)
    assert a["1"]["volume_error_relative"] == pytest.approx(-0.5)
    assert a["1"]["hd95_mm"] == pytest.approx(1.6)
    assert 0.4 < a["1"]["nsd_1mm"] < 1.0 == a["1"]["nsd_2mm"]
    assert a["1"]["lesions_reference"] == a["1"]["lesions_prediction"] == 1
    assert b["1"]["nsd_1mm"] == 1.0 and b["1"]["hd95_mm"] == b["1"]["assd_mm"] == 0.0
    # the lesion is missed in b, and in neither segmentation of a
    diagonal = math.dist((0, 0, 0), np.multiply(SHAPE, SPACING))
    assert b["2"]["hd95_mm"] == b["2"]["assd_mm"] == pytest.approx(diagonal)
    assert b["2"]["nsd_1mm"] == b["2"]["nsd_2mm"] == b["2"]["lesion_f1"] == 0.0
    assert b["2"]["lesion_recall"] == 0.0 and math.isnan(b["2"]["lesion_precision"])
    assert b["2"]["volume_error_relative"] == -1.0
    for key in ("nsd_1mm", "hd95_mm", "assd_mm", "lesion_f1", "volume_error_relative"):
        assert math.isnan(a["2"][key]) and summary["undefined"]["2"][key] == 1
    assert a["2"]["volume_error_ml"] == 0.0 and a["2"]["lesions_reference"] == 0
    assert summary["empty_masks"] == {
        "1": {"both": 0, "only_prediction_empty": 0, "only_reference_empty": 0},
        "2": {"both": 1, "only_prediction_empty": 1, "only_reference_empty": 0},
    }
    assert "diagonal" in summary["definitions"]["empty masks"]


def test_tolerances_can_differ_between_labels(folders, tmp_path):
    own = Tolerances(default=(1.0, 1.6), of_label={"lesion": (0.5,)})
    summary = evaluate_folders(*folders, output=tmp_path / "new", tolerances=own)
    a = summary["metric_per_case"][0]["metrics"]["1"]
    assert a["nsd_1.6mm"] == 1.0 > a["nsd_1mm"]  # 1.6 mm is where the farthest wall is
    assert {"nsd_1mm", "nsd_1.6mm"} <= summary["mean"]["1"].keys()
    assert [key for key in summary["mean"]["2"] if "nsd" in key] == ["nsd_0.5mm"]
    assert "nsd_0.5mm" in summary["foreground_mean"]
    assert "NSD of lesion: 0.000 at 0.5 mm" in format_table(summary)
    with open(tmp_path / "new" / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[0]["nsd_0.5mm"] == rows[1]["nsd_1mm"] == "" and rows[3]["nsd_0.5mm"] == "0"
    with pytest.raises(ValueError, match="tolerances of 'spleen': no such label; .*'organ'"):
        evaluate_folders(*folders, tolerances=Tolerances(of_label={"spleen": (1,)}))


@pytest.mark.parametrize("bad", [(), (-1.0,), (math.inf,), (math.nan,)])
def test_tolerances_are_distances(bad):
    with pytest.raises(ValueError, match=r"tolerances \(liver\): expected distances in mm"):
        Tolerances(of_label={"liver": bad})


def test_results_go_to_the_folder_that_is_named_and_leave_the_predictions_alone(folders, tmp_path):
    before = sorted(folders[1].iterdir())
    summary = evaluate_folders(*folders, output=tmp_path / "some" / "where", box_plots=True)
    assert sorted(folders[1].iterdir()) == before
    names = {path.name for path in (tmp_path / "some" / "where").iterdir()}
    assert names == {"summary.json", "metrics.csv", "metrics.png"}
    assert summary["metric_per_case"][0]["metrics"]["1"]["TP"] == 12


@pytest.mark.parametrize("orientation", ["RAS", "PIL", "SRP", "LAI"])
def test_a_prediction_may_have_its_axes_another_way(folders, tmp_path, orientation):
    straight = evaluate_folders(*folders)
    turned = tmp_path / "turned"
    turned.mkdir()
    boxes = {}
    for path in folders[1].glob("*.n*"):
        image = sitk.DICOMOrient(sitk.ReadImage(str(path)), orientation)
        sitk.WriteImage(image, str(turned / f"{path.name.split('.')[0]}.mha"))
        array = sitk.GetArrayFromImage(image)
        boxes[path.name.split(".")[0]] = {"organ": {"boxes": [value_box(array, 1).tolist()]}}
    write_json(turned / "prompts_used.json", prompts(boxes))
    summary = evaluate_folders(folders[0], turned)
    assert summary["failures"] == []
    for row, other in zip(summary["metric_per_case"], straight["metric_per_case"], strict=True):
        for label, expected in other["metrics"].items():
            found = dict(row["metrics"][label])
            of_prompts = {k: found.pop(k) for k in ("box_iou", "box_recall", "prompt_source")}
            np.testing.assert_equal(found, {k: expected[k] for k in found})
    assert of_prompts["box_iou"] != of_prompts["box_iou"]  # of the lesion
    boxed = [row["metrics"]["1"] for row in summary["metric_per_case"]]
    assert [m["box_iou"] for m in boxed] == [0.5, 1.0]  # of the predicted organ's box
    assert [m["box_recall"] for m in boxed] == [0.5, 1.0]


def test_the_command_evaluates_and_draws(folders, tmp_path, capsys):
    output = tmp_path / "out"
    arguments = ["-g", str(folders[0]), "-p", str(folders[1]), "-o", str(output), "-np", "0"]
    assert command.main([*arguments, "--tolerances", "0.5", "lesion=3"]) == 0
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 100
    assert "NSD of organ" in printed and "NSD of lesion: 0.000 at 3 mm" in printed
    assert (output / "metrics.png").stat().st_size > 5000
    (folders[1] / "b.nrrd").unlink()
    assert command.main(arguments) == 1
    assert "cases without prediction (1): b" in capsys.readouterr().out
    assert command.main([*arguments, "--tolerances", "lesion=-1"]) == 1
    assert "expected distances in mm" in capsys.readouterr().err
    for wrong in (["--tolerances", "much"], ["--cvpr", "model"]):
        with pytest.raises(SystemExit):
            command.main([*arguments, *wrong])
