"""The demo: write phantoms, then plan, train, predict, evaluate and draw a picture."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from promptseg.demo.phantom import LABELS, MODALITIES, write_phantom_dataset
from promptseg.demo.picture import PictureRow, draw_cases
from promptseg.evaluation.evaluate import evaluate_folders
from promptseg.files import read_json, write_json
from promptseg.folders import Folders
from promptseg.io.images import read_image, read_segmentation
from promptseg.preprocessing.normalize import default_normalization, intensity_range

logger = logging.getLogger(__name__)

TRAINING_CASES, TEST_CASES, DRAWN_CASES = 16, 4, 3
TRAINING_SECONDS = 240.0
_DATASET_IDS = {modality: 901 + i for i, modality in enumerate(MODALITIES)}
_MARKER = "promptseg_demo.json"
_PARTS = ("raw", "preprocessed", "results", "predictions", "demo.png")


def run_demo(
    folder: Path | str = "promptseg_demo",
    *,
    modality: str = "CT",
    time_budget: float = TRAINING_SECONDS,
    processes: int = 2,
    seed: int = 12345,
) -> dict[str, Any]:
    """Run every stage on a dataset of phantoms, through the files that each stage writes.

    Args:
        folder: where to write `raw`, `preprocessed`, `results`, `predictions` and `demo.png`;
            those of an earlier demo are replaced.
        modality: one of `MODALITIES`.
        time_budget: training time in seconds.
        processes: number of worker processes.
        seed: seed of the phantoms and of the training.

    Returns:
        `evaluation` (as `evaluate_folders` returns it), the paths `folder`, `dataset_folder`,
        `model_folder`, `predictions` and `picture`, and the `seconds` that each stage took.

    Raises:
        ValueError: if the modality is unknown, or `folder` contains something other than a demo.
    """
    folder = Path(folder)
    if modality not in MODALITIES:
        raise ValueError(f"unknown modality {modality!r}; there are {', '.join(MODALITIES)}")
    _clear(folder)
    write_json(folder / _MARKER, {"modality": modality, "seed": seed})
    seconds: dict[str, float] = {}
    with _timed("phantoms", seconds):
        number = _DATASET_IDS[modality]
        dataset_folder = write_phantom_dataset(
            folder / "raw", modality, TRAINING_CASES, TEST_CASES, seed, number
        )
    model_folder = _plan_and_train(
        folder,
        dataset_folder.name,
        seconds,
        time_budget=time_budget,
        processes=processes,
        seed=seed,
    )
    predictions = folder / "predictions"
    evaluation = _predict_and_evaluate(model_folder, dataset_folder, predictions, seconds)
    with _timed("picture", seconds):
        rows = picture_rows(dataset_folder, predictions, evaluation, modality)
        title = f"promptseg demo: {modality} phantoms not seen in training, automatic prompts"
        draw_cases(rows[:DRAWN_CASES], folder / "demo.png", title)
    return {
        "folder": folder,
        "dataset_folder": dataset_folder,
        "model_folder": model_folder,
        "predictions": predictions,
        "picture": folder / "demo.png",
        "evaluation": evaluation,
        "seconds": seconds,
    }


# The stages import what they run when they run it: it brings torch, which the phantoms and their
# workers do without.


def _plan_and_train(
    folder: Path,
    dataset: str,
    seconds: dict[str, float],
    *,
    time_budget: float,
    processes: int,
    seed: int,
) -> Path:
    """Plan the dataset and train on all of its training cases; the folder of the model."""
    from promptseg.experiment_planning.planner import plan_dataset
    from promptseg.pipeline.train import train
    from promptseg.training.request import RunOptions, TrainingRequest

    folders = Folders(
        raw=folder / "raw", preprocessed=folder / "preprocessed", results=folder / "results"
    )
    with _timed("plan", seconds):
        plan_dataset(dataset, folders, size="tiny", processes=processes, locator=False)
    with _timed("train", seconds):
        model_folder = train(
            dataset,
            folders,
            TrainingRequest(fold="all", time_budget=time_budget, seed=seed),
            RunOptions(processes=processes),
        )
    if model_folder is None:
        raise RuntimeError(f"the demo was stopped while training; its files so far are in {folder}")
    return Path(model_folder)


def _predict_and_evaluate(
    model_folder: Path, dataset_folder: Path, predictions: Path, seconds: dict[str, float]
) -> dict[str, Any]:
    """Segment the test images and compare the results with their labels."""
    from promptseg.inference.batch.predict_files import predict_files

    images = dataset_folder / "imagesTs"
    with _timed("predict", seconds):
        predict_files(model_folder, images, predictions, folds=("all",), auto_prompt="plans")
    with _timed("evaluate", seconds):
        return evaluate_folders(dataset_folder / "labelsTs", predictions)


def picture_rows(
    dataset_folder: Path, predictions: Path, evaluation: dict[str, Any], modality: str
) -> list[PictureRow]:
    """One picture row for each evaluated case, read back from the files."""
    prompts_file = predictions / "prompts_used.json"
    prompts = read_json(prompts_file)["cases"] if prompts_file.is_file() else {}
    rows = []
    for result in evaluation["metric_per_case"]:
        case = result["case"]
        image, geometry = read_image(dataset_folder / "imagesTs" / f"{case}_0000.nii.gz")
        used = prompts.get(case, {})
        rows.append(
            PictureRow(
                case_id=case,
                image=image[0],
                reference=read_segmentation(result["reference_file"])[0],
                prediction=read_segmentation(result["prediction_file"])[0],
                spacing=geometry.spacing,
                labels=LABELS,
                boxes={name: used.get(name, {}).get("boxes", []) for name in LABELS},
                dice={n: result["metrics"][str(value)]["Dice"] for n, value in LABELS.items()},
                display_range=intensity_range(image[0], default_normalization(modality)),
            )
        )
    return rows


def _clear(folder: Path) -> None:
    """Remove the files of an earlier demo; refuse a folder that contains anything else."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ValueError(f"{folder.absolute()} is a file; name a folder for the demo")
    if any(folder.iterdir()) and not (folder / _MARKER).is_file():
        raise ValueError(
            f"{folder.absolute()} already exists and was not made by the demo (it has no "
            f"{_MARKER}); nothing was changed: name a new or empty folder"
        )
    for part in _PARTS:
        path = folder / part
        if path.is_symlink() or path.is_file():
            path.unlink()
        elif path.is_dir():
            shutil.rmtree(path)


@contextmanager
def _timed(stage: str, seconds: dict[str, float]) -> Iterator[None]:
    logger.info("demo: %s", stage)
    start = time.perf_counter()
    yield
    seconds[stage] = time.perf_counter() - start
