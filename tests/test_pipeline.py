"""From raw files to Dice on real cases, through the commands."""

import json
import shutil

import numpy as np
import pytest

from promptseg.commands import evaluate, plan, train
from promptseg.commands import predict as predict_command
from promptseg.io.images import Geometry, read_image, read_segmentation, write_image
from tests.real_data import raw_folder
from tests.training.test_distributed import start
from tests.training.test_training import wait_for

TRAINING, UNSEEN = 16, 4


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    """Raw folder with 16 hippocampus cases, 4 more to predict, one model trained for a minute."""
    source = raw_folder() / "Dataset004_Hippocampus"
    root = tmp_path_factory.mktemp("pipeline")
    target = root / "raw" / "Dataset004_Hippocampus"
    cases = sorted(path.name.split(".")[0] for path in (source / "labelsTr").iterdir())
    for number, case_id in enumerate(cases[: TRAINING + UNSEEN]):
        images, labels = ("imagesTr", "labelsTr") if number < TRAINING else ("imagesTs", "labelsTs")
        for folder, name, kind in (
            (images, f"{case_id}_0000.nii.gz", "imagesTr"),
            (labels, f"{case_id}.nii.gz", "labelsTr"),
        ):
            (target / folder).mkdir(parents=True, exist_ok=True)
            shutil.copy(source / kind / name, target / folder / name)
    content = json.loads((source / "dataset.json").read_text())
    (target / "dataset.json").write_text(json.dumps({**content, "numTraining": TRAINING}))

    stages = {name: str(root / name) for name in ("raw", "preprocessed", "results")}
    flags = {name: [f"--{name}", path] for name, path in stages.items()}
    assert plan.main(["-d", "4", *flags["raw"], *flags["preprocessed"]]) == 0
    training = ["-d", "4", "-f", "all", "--epochs", "4", "--iterations", "25"]
    assert train.main([*training, *flags["preprocessed"], *flags["results"]]) == 0
    return root


def first_losses(roots, results, processes, steps=4):
    """Of the first steps of a run of the usual length, as each process saw them."""
    results.mkdir()
    # in float32: rounding decides which voxel of an error is clicked, and then everything after
    fixed = ("-np", "0", "-device", "cpu", "--precision", "fp32")
    flags = ("-d", "4", "-tr", "ViTTrainer", "-f", "all", *fixed)
    process = start(
        roots / "preprocessed", results, "-m", "promptseg", "train", "-num_gpus", str(processes),
        flags=(*flags, "--epochs", "1000", "--iterations", str(steps)),
    )  # fmt: skip
    files = [results / f"{rank}.txt" for rank in range(processes)]
    try:
        wait_for(lambda: all(lines(file) >= steps for file in files), process, seconds=600)
    finally:
        process.terminate()  # torchrun's processes are groups of their own, which it ends
        process.communicate(timeout=120)
    return [np.loadtxt(file)[:steps] for file in files]


def lines(file):
    return file.read_text().count("\n") if file.is_file() else 0


def test_two_processes_have_the_losses_of_one(roots, tmp_path):
    (expected,) = first_losses(roots, tmp_path / "one", 1)
    assert np.ptp(expected) > 0.1
    for losses in first_losses(roots, tmp_path / "two", 2):
        np.testing.assert_allclose(losses, expected, rtol=1e-4)


def predict(roots, output, *arguments):
    images = roots / "raw" / "Dataset004_Hippocampus" / "imagesTs"
    command = ["-i", str(images), "-o", str(output), "--results", str(roots / "results")]
    return predict_command.main([*command, *arguments])


def mean_dice(roots, output):
    truth = roots / "raw" / "Dataset004_Hippocampus" / "labelsTs"
    assert evaluate.main(["-g", str(truth), "-p", str(output)]) == 0
    return json.loads((output / "summary.json").read_text())["foreground_mean"]["Dice"]


def test_automatic_prompts_segment_unseen_cases(roots, tmp_path):
    assert predict(roots, tmp_path, "--auto-prompt") == 0
    assert mean_dice(roots, tmp_path) > 0.5

    report = json.loads((tmp_path / "predict_report.json").read_text())
    used = json.loads((tmp_path / "prompts_used.json").read_text())["cases"]
    assert len(report["cases"]) == UNSEEN and report["failed"] == 0
    images = roots / "raw" / "Dataset004_Hippocampus" / "imagesTs"
    for case_id, entry in report["cases"].items():
        _, geometry = read_image(images / f"{case_id}_0000.nii.gz")
        segmentation, of_prediction = read_segmentation(tmp_path / f"{case_id}.nii.gz")
        assert of_prediction == geometry
        for value, name in ((1, "Anterior"), (2, "Posterior")):
            assert entry["labels"][name]["voxels"] == np.count_nonzero(segmentation == value)
            assert len(used[case_id][name]["boxes"]) == 1


def test_used_prompts_can_be_given_back(roots, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    assert predict(roots, first, "--auto-prompt") == 0
    assert predict(roots, second, "--prompts", str(first / "prompts_used.json")) == 0
    for path in first.glob("*.nii.gz"):
        np.testing.assert_array_equal(
            read_segmentation(path)[0], read_segmentation(second / path.name)[0]
        )


def test_label_names_alone_and_forced_strategies_work(roots, tmp_path):
    assert predict(roots, tmp_path / "names") == 0
    assert mean_dice(roots, tmp_path / "names") > 0.5
    assert predict(roots, tmp_path / "paper", "--auto-prompt", "intensity") == 0
    report = json.loads((tmp_path / "paper" / "predict_report.json").read_text())
    sources = {e["labels"]["Anterior"]["source"] for e in report["cases"].values()}
    assert sources == {"intensity"}
    assert predict(roots, tmp_path / "odd", "--auto-prompt", "magic") == 1


def test_turned_and_flipped_files_come_back_in_their_own_geometry(roots, tmp_path):
    images = roots / "raw" / "Dataset004_Hippocampus" / "imagesTs"
    source = sorted(images.iterdir())[0]
    image, geometry = read_image(source)
    turned = Geometry(
        shape=geometry.shape,
        spacing=geometry.spacing,
        origin=(31.5, -20.25, 7.125),
        direction=(0.0, 1.0, 0.0, -1.0, 0.0, 0.0, 0.0, 0.0, 1.0),
    )
    write_image(tmp_path / "in" / "turned.nrrd", image[0], turned)

    code = predict_command.main(
        ["-i", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--auto-prompt"]
        + ["--results", str(roots / "results")]
    )

    assert code == 0
    _, found = read_segmentation(tmp_path / "out" / "turned.nrrd")
    assert found.difference_from(turned) is None
