import dataclasses
import json
import shutil

import numpy as np
import pytest

from promptseg.commands import find_best as command
from promptseg.commands import predict
from promptseg.files import read_json, write_json
from promptseg.inference.load import load_predictor
from promptseg.inference_plan import InferencePlan, PostProcessing
from promptseg.io.images import Geometry, read_segmentation, write_image
from promptseg.pipeline.choose_postprocessing import (
    choose_postprocessing,
    cross_validated_choice,
)
from promptseg.pipeline.find_best import find_best, table
from tests.small_plans import small_plans
from tests.trained import train

NAME = "Dataset007_Boxes"
UNET, LIGHT = "UNetTrainer__PromptSegPlans__3d", "MobileNetTrainer__PromptSegPlans__3d"
SHORT = {"epochs": 1, "iterations_per_epoch": 4, "processes": 0, "device": "cpu"}


@pytest.fixture(scope="module")
def trained(planned, tmp_path_factory):
    """Two trainers on the folds 0 and 1, one of them on fold 2 as well."""
    folders = dataclasses.replace(planned, results=tmp_path_factory.mktemp("results"))
    for trainer, folds in (("UNetTrainer", (0, 1, 2)), ("MobileNetTrainer", (0, 1))):
        for fold in folds:
            train(7, folders, trainer=trainer, fold=fold, **SHORT)
    return folders


def flags(folders):
    roots = ("preprocessed", "results")
    return [part for name in roots for part in (f"--{name}", str(getattr(folders, name)))]


def test_the_best_of_models_and_ensembles_is_chosen_and_followed(trained, tmp_path, capsys):
    assert command.main(["-d", "7", "-np", "0", *flags(trained)]) == 0
    results = trained.results / NAME
    plan, printed = InferencePlan.load(results), capsys.readouterr()
    assert plan.folds == ("0", "1") and "fold 2 left out" in printed.err
    both = f"{LIGHT} + {UNET}"
    assert set(plan.measured["dice"]) == {LIGHT, UNET, both}
    for name in (LIGHT, UNET):  # the cases of both folds, counted alike
        rows = [
            row
            for fold in "01"
            for row in read_json(results / name / f"fold_{fold}/validation/summary.json")[
                "metric_per_case"
            ]
        ]
        labels = ([row["metrics"][label]["Dice"] for row in rows] for label in "12")
        expected = np.mean([np.nanmean(np.array(dice, float)) for dice in labels])
        assert plan.measured["dice"][name] == pytest.approx(expected, abs=1e-9)
    best = max(plan.measured["dice"].values())
    assert plan.measured["dice"][" + ".join(plan.models)] == best
    assert plan.measured["dice_after_postprocessing"] >= best - 1e-9
    assert f"{best:.4f}" in printed.out and "<- chosen" in printed.out
    assert "promptseg_predict -i INPUT -o OUTPUT -d 7" in printed.out

    # the command it prints, on the ensemble and with post-processing that takes everything away
    labels = read_json(results / UNET / "plans.json")["labels"]
    steps = {next(iter(labels)): PostProcessing(min_mm3=1e9)}
    dataclasses.replace(plan, models=(LIGHT, UNET), postprocessing=steps).save(results)
    images, output = trained.raw / NAME / "imagesTr", tmp_path / "out"
    arguments = ["-i", str(images), "-o", str(output), "--results", str(trained.results)]
    assert predict.main([*arguments, "-d", "7", "-device", "cpu"]) == 0
    assert f"following {results / 'inference_plan.json'}" in capsys.readouterr().out
    report = read_json(output / "predict_report.json")
    assert report["auto_prompt"] == "plans"
    for entry in report["cases"].values():
        removed = entry["labels"][next(iter(labels))]
        assert removed["voxels"] == 0 and "empty" in removed["flags"]
        assert not (read_segmentation(entry["prediction"])[0] == 1).any()


def test_an_ensemble_has_the_networks_of_its_models(trained):
    folders = [trained.results / NAME / name for name in (LIGHT, UNET)]
    both = load_predictor(folders, folds=["0"], device="cpu").networks
    alone = [load_predictor(folder, folds=["0"], device="cpu").networks[0] for folder in folders]
    assert len(both) == 2
    for found, expected in zip(both, alone, strict=True):
        weights = found.state_dict()
        assert weights.keys() == expected.state_dict().keys()
        assert all((weights[k] == v).all() for k, v in expected.state_dict().items())


def test_person_given_prompts_are_not_post_processed(trained, tmp_path):
    results, images = trained.results / NAME, trained.raw / NAME / "imagesTr"
    labels = list(read_json(results / UNET / "plans.json")["labels"])
    case = sorted(path.name.removesuffix("_0000.nii.gz") for path in images.iterdir())[0]
    (tmp_path / "images").mkdir()
    shutil.copy(images / f"{case}_0000.nii.gz", tmp_path / "images")
    box = {case: {labels[0]: {"boxes": [[[2, 2, 2], [14, 20, 18]]]}}}
    write_json(tmp_path / "prompts.json", {"format_version": 1, "cases": box})
    everything = PostProcessing(min_mm3=1e9)
    plan = InferencePlan(
        models=(UNET,), folds=("0",), postprocessing={name: everything for name in labels}
    )
    plan.save(results)
    arguments = ["-i", str(tmp_path / "images"), "-o", str(tmp_path / "out"), "-d", "7"]
    arguments += ["--results", str(trained.results), "-device", "cpu", "--auto-prompt"]
    prompted = [*arguments, "--prompts", str(tmp_path / "prompts.json")]
    assert predict.main(prompted) == 0
    found = read_json(tmp_path / "out" / "predict_report.json")["cases"][case]["labels"]
    assert found[labels[1]]["voxels"] == 0
    without = dataclasses.replace(plan, postprocessing={})
    without.save(results)
    assert predict.main([*prompted[:3], str(tmp_path / "other"), *prompted[4:]]) == 0
    expected = read_json(tmp_path / "other" / "predict_report.json")["cases"][case]["labels"]
    assert found[labels[0]]["voxels"] >= expected[labels[0]]["voxels"] > 0


def test_folds_and_trainers_that_are_not_there_are_said(trained, tmp_path, capsys):
    assert command.main(["-d", "7", "-f", "2", *flags(trained)]) == 1
    assert "MobileNetTrainer__PromptSegPlans__3d: 0, 1;" in capsys.readouterr().err
    assert command.main(["-d", "7", "-tr", "ViTTrainer", *flags(trained)]) == 1
    assert "no validated fold of ViTTrainer" in capsys.readouterr().err
    plan = find_best(7, trained, trainers=["UNetTrainer"], folds=["2"], processes=0)
    assert list(plan.measured["dice"]) == [UNET] and "<- chosen" in "\n".join(table(plan))
    splits = trained.preprocessed / NAME / "splits_final.json"
    before = splits.read_text()
    changed = json.loads(before)
    changed[0], changed[2] = changed[2], changed[0]
    splits.write_text(json.dumps(changed))
    try:
        assert command.main(["-d", "7", "-f", "0", *flags(trained)]) == 1
    finally:
        splits.write_text(before)
    assert "train the fold again" in capsys.readouterr().err


def rows_of(folder, pairs):
    """Evaluation rows of (prediction, reference) label maps, written to files."""
    geometry = Geometry(shape=(8, 20, 24), spacing=(2.0, 1.0, 1.0))
    rows = []
    for number, (prediction, reference) in enumerate(pairs):
        files = {}
        for kind, array in (("prediction", prediction), ("reference", reference)):
            file = folder / f"{kind}_{number}.nii.gz"
            write_image(file, array, geometry)
            files[f"{kind}_file"] = str(file)
        volumes = {
            str(v): {"volume_ml_reference": (reference == v).sum() * 2 / 1000} for v in (1, 2)
        }
        rows.append({"case": f"case{number}", "metrics": volumes, **files})
    return rows


def test_postprocessing_is_chosen_where_it_helps_cases_it_was_not_chosen_by(tmp_path):
    pairs = []
    for number in range(6):
        reference = np.zeros((8, 20, 24), np.uint8)
        reference[2:6, 4:10, 4:10] = 1
        reference[2:6, 4:7, 14:20] = 2
        reference[2:6, 12:15, 14:20] = 2  # two components of one size
        prediction = reference.copy()
        prediction[number, 18, 20:23] = 1  # three false voxels, somewhere else
        pairs.append((prediction, reference))
    plans = small_plans(labels={"one": 1, "two": 2})
    steps, choices, after = choose_postprocessing(rows_of(tmp_path, pairs), plans)
    assert list(steps) == ["one"] and steps["one"].largest_component
    assert choices["one"]["dice"] == pytest.approx(2 * 144 / (2 * 144 + 3))
    assert choices["one"]["dice_cross_validated"] == 1.0
    assert choices["two"] == {"steps": "none", "dice": 1.0, "dice_cross_validated": 1.0}
    assert after == 1.0


def test_what_helps_one_case_alone_is_not_chosen():
    dice = np.tile([0.8, 0.79], (10, 1))
    dice[3, 1] = 0.95
    assert dice[:, 1].mean() > dice[:, 0].mean()
    chosen, confirmed = cross_validated_choice(dice)
    assert chosen == 0 and confirmed == pytest.approx(0.8)
    assert cross_validated_choice(np.tile([0.8, 0.9], (10, 1))) == (1, pytest.approx(0.9))
    assert cross_validated_choice(np.array([[0.8, 0.9]])) == (0, 0.8)  # one case confirms nothing


def test_voxels_to_ignore_do_not_choose_the_postprocessing(tmp_path):
    pairs = []
    for number in range(6):
        reference = np.zeros((8, 20, 24), np.uint8)
        reference[2:6, 4:10, 4:10], reference[2:6, 4:7, 14:20] = 1, 2
        prediction = reference.copy()
        prediction[number, 18, 20:23] = 1
        reference[:, 17:] = 3
        pairs.append((prediction, reference))
    rows, plans = rows_of(tmp_path, pairs), small_plans(labels={"one": 1, "two": 2})
    steps, choices, after = choose_postprocessing(rows, dataclasses.replace(plans, ignore_label=3))
    assert steps == {} and choices["one"]["dice"] == after == 1.0
    assert choose_postprocessing(rows, plans)[0].keys() == {"one"}
