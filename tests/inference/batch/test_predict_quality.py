"""What `promptseg_predict` tells of its segmentations: report, review list, probabilities."""

from __future__ import annotations

import csv
import logging
import shutil

import numpy as np
import pytest

from promptseg.commands import evaluate, predict
from promptseg.files import read_json, write_json
from promptseg.inference.batch.predict_files import predict_cases, predict_files
from promptseg.inference.load import write_prompt_quality
from promptseg.inference.options import PredictionOptions
from promptseg.inference.predictor import Predictor
from promptseg.inference.results import probabilities_file, read_probabilities
from promptseg.io.dataset import RawCase
from promptseg.io.images import read_segmentation, write_image
from tests.inference.batch.test_predict_files import GEOMETRY
from tests.inference.fakes import LevelNetwork
from tests.inference.test_consistency import TouchyNetwork
from tests.inference.test_predictor import SMALL, blocks, save_fold
from tests.small_plans import small_plans

LABELS = ["liver", "spleen", "lesion"]


@pytest.fixture(scope="module")
def model_zip(tmp_path_factory):
    """A zipped model of one fold, whose own box did well for the spleen in validation."""
    folder = tmp_path_factory.mktemp("results") / "model"
    (folder / "fold_0").mkdir(parents=True)
    save_fold(folder, "0", small_plans())
    write_prompt_quality(
        folder / "fold_0",
        {"dice": {"spleen": {"name": 0.3, "coarse": 0.5}}, "seconds": {"name": 1.0, "coarse": 2.0}},
    )
    write_json(folder / "dataset.json", {"labels": {"background": 0, "liver": 1, "spleen": 2}})
    return shutil.make_archive(str(folder), "zip", folder)


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    for name in ("a", "b"):
        write_image(folder / f"{name}_0000.nii.gz", blocks(SMALL)[0], GEOMETRY)
    (folder / "broken_0000.nii.gz").write_bytes(b"")
    return folder


def test_the_command_writes_report_review_list_and_probabilities(
    model_zip, images, tmp_path, caplog
):
    output, review = tmp_path / "out", tmp_path / "lists" / "review.csv"
    arguments = ["-m", model_zip, "-i", str(images), "-o", str(output), "--auto-prompt"]
    arguments += ["--review-list", str(review), "--save_probabilities", "--perturbations", "2"]
    with caplog.at_level(logging.INFO, "promptseg"):
        assert predict.main(arguments) == 1  # one file is broken

    told = [r.message for r in caplog.records if "validation" in r.message]
    assert told == [
        "prompted as validation found best, not as planned (Dice): spleen by coarse (0.500)"
    ]

    report = read_json(output / "predict_report.json")
    assert {name: entry["status"] for name, entry in report["cases"].items()} == {
        "a": "done", "b": "done", "broken": "failed",
    }  # fmt: skip
    for case_id in ("a", "b"):
        labels = report["cases"][case_id]["labels"]
        assert list(labels) == LABELS
        for result in labels.values():
            assert 0 <= result["predicted_iou"] <= 1
            has_prompt = bool(result["boxes"] or result["points"])
            assert (result["prompt_consistency"] is not None) == has_prompt
        assert "no_usable_strategy" in labels["liver"]["flags"]
        assert labels["spleen"]["source"] in ("coarse", "label name")

        segmentation, _ = read_segmentation(output / f"{case_id}.nii.gz")
        probabilities = read_probabilities(probabilities_file(output, case_id))
        assert list(probabilities) == LABELS
        best = np.max([values.astype(float) for values in probabilities.values()], axis=0)
        assert best.shape == SMALL
        assert (best[segmentation > 0] >= 0.5).all() and (best[segmentation == 0] <= 0.5).all()

    with open(review, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["case"] for row in rows] == ["broken", "a", "b"]
    assert rows[0]["reasons"].startswith("failed: ") and rows[1]["reasons"]
    assert not (output / "dataset.json").is_dir()
    assert read_json(output / "dataset.json")["labels"]["spleen"] == 2


def test_a_review_list_that_cannot_be_written_is_refused_at_once(model_zip, images, tmp_path):
    with pytest.raises(ValueError, match=r"is a folder; the review list is a CSV file"):
        predict_files(model_zip, images, tmp_path / "out", review_list=images)
    assert not (tmp_path / "out").exists()


def test_probabilities_do_not_disturb_the_evaluation(model_zip, images, tmp_path):
    output = tmp_path / "out"
    (images / "broken_0000.nii.gz").unlink()
    arguments = ["-m", model_zip, "-i", str(images), "-o", str(output), "--save_probabilities"]
    assert predict.main([*arguments, "--perturbations", "0"]) == 0
    for name in ("a", "b"):
        write_image(tmp_path / "truth" / f"{name}.nii.gz", blocks(SMALL)[1], GEOMETRY)
    assert evaluate.main(["-g", str(tmp_path / "truth"), "-p", str(output)]) == 0
    report = read_json(output / "predict_report.json")
    results = [r for entry in report["cases"].values() for r in entry["labels"].values()]
    assert [result["prompt_consistency"] for result in results] == [None] * 6


def test_probabilities_of_an_earlier_run_do_not_stay_beside_new_segmentations(images, tmp_path):
    case = RawCase(case_id="a", images=(images / "a_0000.nii.gz",), label=None)
    file = probabilities_file(tmp_path, "a")
    for keeps in (True, False):
        model = Predictor([LevelNetwork()], small_plans(), keep_probabilities=keeps)
        assert predict_cases(model, [case], tmp_path)["failed"] == 0
        assert file.is_file() == keeps


def test_a_report_says_where_masks_hang_on_the_exact_prompt(images, tmp_path):
    plans = small_plans(auto_prompts={"liver": {"strategy": "intensity", "candidates": {}}})
    case = RawCase(case_id="a", images=(images / "a_0000.nii.gz",), label=None)
    report = predict_cases(
        Predictor([TouchyNetwork()], plans, n_perturbations=3),
        [case],
        tmp_path,
        PredictionOptions(auto_prompt="intensity"),
    )
    labels = report["cases"]["a"]["labels"]
    assert labels["liver"]["voxels"] and labels["liver"]["prompt_consistency"] == 0
    assert "disagreement" in labels["liver"]["flags"]
