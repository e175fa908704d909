"""An nnU-Net dataset with regions and `ignore`, from its folder to masks by the regions' names."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from promptseg.demo.phantom import write_phantom_dataset
from promptseg.evaluation.evaluate import evaluate_folders
from promptseg.experiment_planning.planner import plan_dataset
from promptseg.files import read_json, write_json
from promptseg.folders import Folders
from promptseg.inference.batch.predict_files import predict_files
from promptseg.inference.load import load_predictor
from promptseg.io.images import read_image, read_segmentation, write_image
from promptseg.labels import label_mask
from promptseg.plans import load_plans
from promptseg.preprocessing.dataset import PreprocessedDataset
from promptseg.training.dataset import TrainingSteps
from promptseg.training.settings import TrainingSettings
from tests.trained import train

REGIONS = {"organs": (1, 2, 3), "whole liver": (1, 3), "lesion": 3}
CLASS_ORDER, IGNORE, UNKNOWN = (2, 1, 3), 4, np.s_[:2]


def halved(path):
    """Keep every second voxel of a file, so that training takes seconds."""
    array, geometry = read_image(path)
    small, spacing = array[0, ::2, ::2, ::2], tuple(2 * mm for mm in geometry.spacing)
    write_image(path, small, replace(geometry, shape=small.shape, spacing=spacing))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Planned CT phantoms (liver 1, kidney 2, lesion 3), whose lowest slices are not annotated."""
    root = tmp_path_factory.mktemp("regions")
    raw = write_phantom_dataset(root / "raw", "CT", training_cases=5, test_cases=1, dataset_id=5)
    for path in sorted(raw.rglob("*.nii.gz")):
        halved(path)
    for path in (raw / "labelsTr").iterdir():
        segmentation, geometry = read_segmentation(path)
        segmentation[UNKNOWN] = IGNORE
        write_image(path, segmentation, geometry)
    labels = {name: list(np.atleast_1d(values).tolist()) for name, values in REGIONS.items()}
    content = read_json(raw / "dataset.json")
    content["labels"] = {"background": 0, **labels, "ignore": IGNORE}
    write_json(raw / "dataset.json", {**content, "regions_class_order": list(CLASS_ORDER)})
    folders = Folders(
        raw=root / "raw", preprocessed=root / "preprocessed", results=root / "results"
    )
    plan_dataset(5, folders, size="tiny", processes=0, locator=False)
    return folders


@pytest.fixture(scope="module")
def planned(folders):
    folder = folders.preprocessed / "Dataset005_PhantomCT"
    return folder, load_plans(folder / "PromptSegPlans.json")


@pytest.fixture(scope="module")
def model(folders):
    return train(5, folders, fold="0", epochs=1, iterations_per_epoch=2, processes=0, device="cpu")


def test_regions_are_planned_like_labels(planned):
    folder, plans = planned
    assert list(plans.labels.items()) == list(REGIONS.items())
    assert plans.regions_class_order == CLASS_ORDER and plans.ignore_label == IGNORE
    assert plans.auto_prompts.keys() == REGIONS.keys()
    fingerprint = read_json(folder / "dataset_fingerprint.json")
    for case in fingerprint["cases"]:
        stored, _ = read_segmentation(folder / "gt_segmentations" / f"{case['case_id']}.nii.gz")
        assert case["labels"]["(1, 2, 3)"]["voxels"] == np.isin(stored, (1, 2, 3)).sum()


def test_regions_are_asked_for_in_training(planned):
    folder, plans = planned
    data = PreprocessedDataset(folder / plans.data_identifier)
    values, asked = list(REGIONS.values()), set()
    settings = TrainingSettings(unnamed_fraction=0.0, objects_per_step=6)
    for step in range(3):
        batch = TrainingSteps(data.folder, data.case_ids, plans, settings, {})[step]
        queries = zip(batch.prompts.labels, batch.prompts.image_index, batch.targets, strict=True)
        for label, image, target in queries:
            expected = label_mask(batch.segmentation[image].numpy(), values[label])
            np.testing.assert_array_equal(target, expected)
            asked.add(int(label))
    assert asked == {0, 1, 2}


def test_regions_are_validated_by_their_values(model):
    summary = read_json(model / "fold_0" / "validation" / "summary.json")
    assert summary["labels"] == {str(values): name for name, values in REGIONS.items()}
    assert summary["failures"] == [] and set(summary["prompts"]["starts"]) >= {"name", "box"}
    for case in summary["metric_per_case"]:
        reference, _ = read_segmentation(case["reference_file"])
        predicted, _ = read_segmentation(case["prediction_file"])
        known = reference != IGNORE
        for values in REGIONS.values():
            true, found = label_mask(reference, values), label_mask(predicted, values) & known
            metrics = case["metrics"][str(values)]
            assert metrics["TP"] == (true & found).sum() and metrics["n_ref"] == true.sum()
            assert metrics["n_pred"] == found.sum()


def test_regions_are_segmented_by_their_names(folders, model, tmp_path):
    raw = folders.raw / "Dataset005_PhantomCT"
    report = predict_files(model, raw / "imagesTs", tmp_path, auto_prompt="plans")
    [(case_id, entry)] = report["cases"].items()
    found, _ = read_segmentation(tmp_path / f"{case_id}.nii.gz")
    assert set(np.unique(found)) <= {0, 1, 2, 3} and entry["labels"].keys() == REGIONS.keys()
    for name, values in REGIONS.items():
        assert entry["labels"][name]["voxels"] == label_mask(found, values).sum()
    summary = evaluate_folders(raw / "labelsTs", tmp_path)  # by dataset.json beside the masks
    assert summary["labels"] == {str(values): name for name, values in REGIONS.items()}
    assert summary["warnings"] == []

    image, geometry = read_image(raw / "imagesTs" / f"{case_id}_0000.nii.gz")
    predictor = load_predictor(model, device="cpu", keep_probabilities=True)
    predictor.set_image(image, geometry.spacing, geometry.direction)
    prediction = predictor.predict(labels=list(REGIONS))
    masks = dict.fromkeys(REGIONS)
    for name in REGIONS:
        lower, region = prediction.probabilities.region(name)
        masks[name] = np.zeros(image.shape[1:], np.float16)
        masks[name][tuple(slice(a, a + n) for a, n in zip(lower, region.shape, strict=True))] = (
            region
        )
    # a region is at least as likely as its part, as their probabilities are sums
    assert (masks["organs"] >= masks["whole liver"] - 2e-3).all()
    assert (masks["whole liver"] >= masks["lesion"] - 2e-3).all()
    session = predictor.new_object("whole liver")
    mask, _ = session.add_box([[4, 6, 6], [12, 20, 20]])
    assert mask.shape == image.shape[1:]
