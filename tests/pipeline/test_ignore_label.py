"""A dataset with nnU-Net's `ignore` label, from its folder to the evaluation of a model."""

from __future__ import annotations

import numpy as np
import pytest

from promptseg.evaluation.evaluate import evaluate_folders
from promptseg.experiment_planning.planner import plan_dataset
from promptseg.files import read_json, write_json
from promptseg.folders import Folders
from promptseg.inference.batch.predict_files import predict_files
from promptseg.io.images import read_segmentation, write_image
from promptseg.labels import IGNORED
from promptseg.plans import load_plans
from promptseg.preprocessing.dataset import PreprocessedDataset
from promptseg.training.dataset import TrainingSteps
from promptseg.training.settings import TrainingSettings
from tests.synthetic import write_raw_dataset
from tests.trained import train

SHAPE, IGNORE, KNOWN = (9, 24, 30), 3, np.s_[:, :, 8:]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Six planned cases of two labels, of which the first columns are not annotated."""
    root = tmp_path_factory.mktemp("ignore")
    raw = write_raw_dataset(root / "raw", 3, "Partly", cases=6, shape=SHAPE, labels=2)
    for path in (raw / "labelsTr").iterdir():
        segmentation, geometry = read_segmentation(path)
        segmentation[:, :, :8] = IGNORE
        write_image(path, segmentation, geometry)
    content = read_json(raw / "dataset.json")
    content["labels"]["ignore"] = IGNORE
    write_json(raw / "dataset.json", content)
    folders = Folders(
        raw=root / "raw", preprocessed=root / "preprocessed", results=root / "results"
    )
    plan_dataset(3, folders, size="tiny", processes=0, locator=False)
    return folders


def test_plans_know_the_value_and_statistics_leave_it_out(folders):
    folder = folders.preprocessed / "Dataset003_Partly"
    plans = load_plans(folder / "PromptSegPlans.json")
    assert plans.labels == {"label_1": 1, "label_2": 2} and plans.ignore_label == IGNORE
    fingerprint = read_json(folder / "dataset_fingerprint.json")
    known = int(np.prod(SHAPE)) * 22 // 30
    for counts in fingerprint["hu_histograms"]["0"].values():
        known -= sum(counts) / len(fingerprint["cases"])
    assert known == 0
    for case in fingerprint["cases"]:
        assert case["labels"].keys() == {"1", "2"}
        assert all(label["box"][0][2] == 8 for label in case["labels"].values())


def test_training_learns_from_what_is_known(folders):
    folder = folders.preprocessed / "Dataset003_Partly"
    plans = load_plans(folder / "PromptSegPlans.json")
    data = PreprocessedDataset(folder / plans.data_identifier)
    for case_id in data.case_ids:
        segmentation = data.segmentation(case_id)[:]
        stored, _ = read_segmentation(folder / "gt_segmentations" / f"{case_id}.nii.gz")
        np.testing.assert_array_equal(segmentation == IGNORED, stored == IGNORE)
        np.testing.assert_array_equal(segmentation[KNOWN], stored[KNOWN])
        voxels = data.properties(case_id)["annotated"]
        assert (segmentation[tuple(voxels.T)] != IGNORED).all() and len(voxels) == 1000
    settings = TrainingSettings(foreground_fraction=0.0, zoom_out_fraction=0.0)
    for step in range(3):
        batch = TrainingSteps(data.folder, data.case_ids, plans, settings, {})[step]
        assert (batch.segmentation != IGNORED).flatten(1).any(1).all()
        assert not (batch.targets & batch.ignored).any()


def test_a_model_is_measured_on_what_is_known_and_never_predicts_the_value(folders, tmp_path):
    model = train(3, folders, fold="0", epochs=1, iterations_per_epoch=2, processes=0, device="cpu")
    summary = read_json(model / "fold_0" / "validation" / "summary.json")
    known = int(np.prod(SHAPE)) * 22 // 30
    for case in summary["metric_per_case"]:
        for metrics in case["metrics"].values():
            assert sum(metrics[name] for name in ("TP", "FP", "FN", "TN")) == known
    raw = folders.raw / "Dataset003_Partly"
    predict_files(model, raw / "imagesTr", tmp_path)
    for path in tmp_path.glob("*.nii.gz"):
        assert set(np.unique(read_segmentation(path)[0])) <= {0, 1, 2}
    again = evaluate_folders(raw / "labelsTr", tmp_path)  # by the dataset.json beside them
    assert again["warnings"] == [] and again["labels"] == {"1": "label_1", "2": "label_2"}
