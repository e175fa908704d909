import dataclasses
import re
import shutil

import pytest

from promptseg.files import read_json, write_json
from promptseg.inference.load import DICE_SAMPLES
from promptseg.pipeline import validate_fold
from tests.trained import train

SHORT = {"epochs": 1, "iterations_per_epoch": 1, "processes": 0, "device": "cpu"}


def test_cases_that_fail_are_named_and_validated_again(planned, tmp_path):
    name = "Dataset007_Boxes"
    shutil.copytree(planned.preprocessed / name, tmp_path / "preprocessed" / name)
    folders = dataclasses.replace(
        planned, preprocessed=tmp_path / "preprocessed", results=tmp_path / "results"
    )
    source = tmp_path / "preprocessed" / name
    kept = {path: read_json(path) for path in sorted((source / "PromptSegPlans_3d").glob("*.json"))}
    broken = tmp_path / "broken.nii.gz"
    broken.write_bytes(b"not an image")
    for path, properties in kept.items():
        raw = {**properties["raw"], "files": [str(broken)]}
        write_json(path, {**properties, "raw": raw})

    with pytest.raises(RuntimeError) as failure:  # all of them: there is nothing to evaluate
        train(7, folders, **SHORT)
    fold = tmp_path / "results" / name / "UNetTrainer__PromptSegPlans__3d" / "fold_0"
    cases = read_json(source / "splits_final.json")[0]["val"]
    assert re.match(
        rf"training is finished, but 2 validation cases failed; see {fold}/validation/"
        rf"predict_report.json: case {cases[0]}: .*{broken}.*; case {cases[1]}: ",
        str(failure.value),
        re.DOTALL,
    )
    assert (fold / "checkpoint_final.pth").is_file()

    path = source / "PromptSegPlans_3d" / f"{cases[0]}.json"
    write_json(path, kept[path])
    with pytest.raises(RuntimeError, match=f"but 1 validation cases failed; see .*{cases[1]}"):
        train(7, folders, resume=True, **SHORT)
    assert read_json(fold / "validation" / "summary.json")["failures"]

    for path, properties in kept.items():
        write_json(path, properties)
    train(7, folders, resume=True, **SHORT)
    summary = read_json(fold / "validation" / "summary.json")
    assert summary["failures"] == [] and len(summary["metric_per_case"]) == 2
    assert (fold / DICE_SAMPLES).is_file()
    measured = summary["prompts"]
    assert measured["cases"] == cases and measured["objects"] == 4
    for start in ("name", "name and box", "box", "click"):
        dice = measured["starts"][start]["dice"]
        assert len(dice) == len(measured["clicks"]) == 4 and 0 <= min(dice) <= max(dice) <= 1
    log = (fold / "training_log.txt").read_text()
    assert "clicked right  IoU rank" in log and "prompts were not measured" not in log


def test_prompts_that_cannot_be_measured_fail_no_training(planned, tmp_path, monkeypatch, caplog):
    def broken(*arguments):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(validate_fold, "measure_prompts", broken)
    folders = dataclasses.replace(planned, results=tmp_path / "results")
    model = train(7, folders, **SHORT)
    summary = read_json(model / "fold_0" / "validation" / "summary.json")
    assert summary["failures"] == [] and "prompts" not in summary
    assert "prompts were not measured: out of memory" in caplog.text
