"""The demo: phantoms written to files, then plan, train, predict, evaluate and one picture."""

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
        folder: gets `raw`, `preprocessed`, `results`, `predictions` and `demo.png`; what an
            earlier demo left there is replaced.
        modality: one of `MODALITIES`.
        time_budget: seconds of training.
        processes: worker processes.
        seed: of the phantoms and the training.

    Returns:
        `evaluation` (as `evaluate_folders` returns it), the paths `folder`, `dataset_folder`,
        `model_folder`, `predictions` and `picture`, and the `seconds` that each stage took.

    Raises:
        ValueError: if the modality is unknown, or `folder` holds something else than a demo.
    """
    folder = Path(folder)
    if modality not in MODALITIES:
        raise ValueError(f"unknown modality {modality!r}; there are {', '.join(MODALITIES)}")
    _clear(folder)
    write_json(folder / _MARKER, {"modality": modality, "seed": seed})
    # Imported here: these bring torch, which the phantoms and their workers do without.
    from promptseg.experiment_planning.planner import plan_dataset
    from promptseg.inference.batch.predict_files import predict_files
    from promptseg.pipeline import train

    folders = Folders(
        raw=folder / "raw", preprocessed=folder / "preprocessed", results=folder / "results"
    )
    predictions, seconds = folder / "predictions", {}
    with _timed("phantoms", seconds):
        dataset_folder = write_phantom_dataset(
            folders.raw, modality, TRAINING_CASES, TEST_CASES, seed, _DATASET_IDS[modality]
        )
    with _timed("plan", seconds):
        plan_dataset(dataset_folder.name, folders, size="tiny", processes=processes)
    with _timed("train", seconds):
        model_folder = train(
            dataset_folder.name,
            folders,
            trainer="ViTTrainer",
            fold="all",
            time_budget=time_budget,
            processes=processes,
            seed=seed,
        )
    if model_folder is None:
        raise RuntimeError(f"the demo was stopped in its training; what it made is in {folder}")
    with _timed("predict", seconds):
        predict_files(
            model_folder,
            dataset_folder / "imagesTs",
            predictions,
            folds=("all",),
            auto_prompt="plans",
        )
    with _timed("evaluate", seconds):
        evaluation = evaluate_folders(dataset_folder / "labelsTs", predictions)
    with _timed("picture", seconds):
        rows = picture_rows(dataset_folder, predictions, evaluation, modality)
        title = f"promptseg demo: {modality} phantoms it has not seen, automatic prompts"
        draw_cases(rows[:DRAWN_CASES], folder / "demo.png", title)
    return {
        "folder": folder,
        "dataset_folder": dataset_folder,
        "model_folder": Path(model_folder),
        "predictions": predictions,
        "picture": folder / "demo.png",
        "evaluation": evaluation,
        "seconds": seconds,
    }


def picture_rows(
    dataset_folder: Path, predictions: Path, evaluation: dict[str, Any], modality: str
) -> list[PictureRow]:
    """What there is to draw of each evaluated case, read back from the files."""
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
    """Remove what an earlier demo left; refuse a folder that holds anything else."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ValueError(f"{folder.absolute()} is a file; name a folder for the demo")
    if any(folder.iterdir()) and not (folder / _MARKER).is_file():
        raise ValueError(
            f"{folder.absolute()} exists and was not made by the demo (it has no {_MARKER}); "
            f"nothing was changed: name a new or empty folder"
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
