"""The challenge's protocol on files: npz, raw datasets, and what can be wrong with them."""

from __future__ import annotations

import csv

import numpy as np
import pytest

from promptseg.commands import evaluate as command
from promptseg.evaluation.challenge_files import evaluate_challenge
from promptseg.files import write_json
from promptseg.inference.load import training_cases
from promptseg.io.images import Geometry, write_image
from promptseg.training.checkpoint import load_checkpoint, save_checkpoint
from tests.saved_model import saved_model
from tests.small_plans import small_plans

SHAPE, SPACING = (8, 12, 16), (2.5, 1.0, 0.75)
FIELDS = ("z_min", "z_mid_y_min", "z_mid_x_min"), ("z_max", "z_mid_y_max", "z_mid_x_max")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model of two folds; each was trained on the cases of the other."""
    folder = saved_model(tmp_path_factory.mktemp("model") / "m", small_plans(), folds=("0", "1"))
    for fold, case_id in (("0", "case_1"), ("1", "case_0")):
        path = folder / f"fold_{fold}" / "checkpoint_final.pth"
        save_checkpoint(path, {**load_checkpoint(path), "training_cases": [case_id]})
    return folder


def volumes(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = np.zeros(SHAPE, np.uint8)
    labels[1:6, 2:8, 2:7], labels[3:7, 3:9, 9:14] = 1, 3
    return rng.integers(0, 90, SHAPE).astype(np.uint8) + 80 * (labels > 0).astype(np.uint8), labels


def box(lower, upper) -> dict:
    """Inclusive, as in the challenge's files."""
    of = {name: value for names, corner in zip(FIELDS, (lower, upper), strict=True)
          for name, value in zip(names, corner, strict=True)}  # fmt: skip
    return of | {"z_mid": (lower[0] + upper[0]) // 2}


def write_npz(path, **changes):
    image, labels = volumes()
    boxes = np.array([box((1, 2, 2), (5, 7, 6)), box((3, 3, 9), (6, 8, 13))], object)
    content = {"imgs": image, "gts": labels, "spacing": np.array(SPACING), "boxes": boxes}
    path.parent.mkdir(exist_ok=True)
    content |= changes
    np.savez(path, **{key: value for key, value in content.items() if value is not None})


def rows_of(folder) -> list[dict]:
    with open(folder / "challenge_metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_npz_files_are_evaluated_and_broken_ones_named(model, tmp_path, capsys):
    data, output = tmp_path / "npz", tmp_path / "out"
    write_npz(data / "CT_a.npz")
    write_npz(data / "CT_b.npz", boxes=None)  # the first round is skipped
    write_npz(data / "CT_c.npz", boxes=np.array([box((1, 2, 2), (5, 7, 6))], object))
    write_npz(data / "CT_d.npz", gts=np.zeros(SHAPE, np.uint8), boxes=None)
    write_npz(data / "CT_e.npz", gts=np.ones((8, 12, 15), np.uint8), boxes=None)
    (data / "CT_f.npz").write_bytes(b"no zip file")
    arguments = ["-g", str(data), "--cvpr", str(model), "-o", str(output), "-device", "cpu"]
    assert command.main([*arguments, "--spacing-order", "zyx", "-f", "0"]) == 1

    first, second = rows_of(output)
    assert (first["CaseName"], second["CaseName"]) == ("CT_a", "CT_b")
    assert float(first["RunningTime_1"]) > 0 == float(second["RunningTime_1"])
    assert float(second["DSC_1"]) == float(second["NSD_1"]) == 0.0
    assert first["num_class"] == "2" and first["runtime_upperbound"] == "180.0"
    for row in (first, second):
        dice = [float(row[f"DSC_{n}"]) for n in range(2, 7)]
        expected = sum(dice) - (dice[0] + dice[-1]) / 2
        assert float(row["DSC_AUC"]) == pytest.approx(expected) and 0 <= min(dice) <= max(dice) <= 1
    printed = capsys.readouterr().out
    assert "means over 2 cases" in printed and "4 problems:" in printed
    for message in (
        "case 'CT_c': ", "1 boxes, but 2 labels in gts", "the ground truth has no object",
        "has shape (8, 12, 15), its image (8, 12, 16)", "CT_f.npz cannot be read as .npz",
    ):  # fmt: skip
        assert message in printed


def test_images_and_ground_truth_may_be_in_two_folders(model, tmp_path):
    write_npz(tmp_path / "images" / "CT_a.npz", gts=None)
    write_npz(tmp_path / "truth" / "CT_a.npz", imgs=None, spacing=None, boxes=None)
    found = evaluate_challenge(
        model, tmp_path / "truth", tmp_path / "out", images=tmp_path / "images", folds=["0"]
    )
    assert found["failures"] == [] and len(found["rows"]) == 1
    write_npz(tmp_path / "together" / "CT_a.npz")
    same = evaluate_challenge(model, tmp_path / "together", tmp_path / "out", folds=["0"])
    for key, value in same["rows"][0].items():
        assert "Time" in key or found["rows"][0][key] == value
    write_npz(tmp_path / "truth" / "CT_b.npz")
    with pytest.raises(FileNotFoundError, match="has no image CT_b.npz"):
        evaluate_challenge(model, tmp_path / "truth", tmp_path, images=tmp_path / "images")


@pytest.fixture
def raw(tmp_path):
    """A raw dataset of three cases; nobody knows a slice of the last."""
    folder, geometry = tmp_path / "Dataset001_Small", Geometry(shape=SHAPE, spacing=SPACING)
    labels = {"background": 0, "liver": 1, "spleen": 2, "lesion": 3, "ignore": 4}
    content = {"channel_names": {"0": "CT"}, "labels": labels, "file_ending": ".nii.gz"}
    write_json(folder / "dataset.json", {**content, "numTraining": 3})
    for number in range(3):
        image, segmentation = volumes(number)
        if number == 2:
            segmentation[3] = 4
        write_image(folder / "imagesTr" / f"case_{number}_0000.nii.gz", image, geometry)
        write_image(folder / "labelsTr" / f"case_{number}.nii.gz", segmentation, geometry)
    return folder


def test_of_a_raw_dataset_the_cases_are_evaluated_that_the_model_has_not_seen(model, raw, tmp_path):
    assert training_cases(model) == {"case_0", "case_1"}
    found = evaluate_challenge(model, raw, tmp_path / "of_0", folds=["0"])
    assert [row["CaseName"] for row in found["rows"]] == ["case_0", "case_2"]
    assert [row["num_class"] for row in found["rows"]] == [2, 2]  # ignored voxels are no object
    assert found["failures"] == [] and rows_of(tmp_path / "of_0")[0]["CaseName"] == "case_0"
    both = evaluate_challenge(model, raw, tmp_path / "of_both", with_names=True)
    assert [row["CaseName"] for row in both["rows"]] == ["case_2"]
    for path in (raw / "labelsTr").glob("case_2*"):
        path.unlink()
    with pytest.raises(ValueError, match="was trained on all .* cases.*name one fold"):
        evaluate_challenge(model, raw, tmp_path)


def test_a_folder_of_something_else_and_a_missing_output_are_refused(model, tmp_path, capsys):
    with pytest.raises(FileNotFoundError, match="expected NAME.npz files, or a raw dataset"):
        evaluate_challenge(model, tmp_path, tmp_path)
    assert command.main(["-g", str(tmp_path), "--cvpr", str(model)]) == 1
    assert "--cvpr needs a folder to write to: -o FOLDER" in capsys.readouterr().err
