"""Validate a trained fold: predict its held-out cases as a user would, and evaluate them."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from promptseg.evaluation.evaluate import evaluate_folders
from promptseg.evaluation.inputs import label_files
from promptseg.files import read_json, write_json
from promptseg.inference.batch.predict_files import predict_cases
from promptseg.inference.load import COARSE_QUALITY, load_predictor, write_coarse_quality
from promptseg.inference.predictor import Predictor
from promptseg.io.dataset import RawCase
from promptseg.pipeline.coarse_quality import measure_coarse
from promptseg.pipeline.prompt_quality import measure_prompts
from promptseg.plans import Plans
from promptseg.preprocessing.dataset import PreprocessedDataset
from promptseg.presets import preset_of
from promptseg.prompts.given import CasePrompts, case_from_json
from promptseg.training.fold import Fold

log = logging.getLogger(__name__)


def validate_fold(model_folder: Path, fold: Fold, *, device: str | None = None) -> dict[str, Any]:
    """Predict whole validation cases with automatic prompts, as a user would, and evaluate them.

    The boxes are those that planning proposed for each case when it was not among the cases the
    strategy was fitted on; labels without a box are prompted by name. Writes segmentations,
    `summary.json`, `metrics.csv`, `prompts_used.json` and `predict_report.json` into the fold's
    `validation` folder, after removing what an earlier validation left there, and beside it
    `coarse_prompts.json`: how well the network's own prompts match ground truth. `summary.json`
    has one key more than the evaluation's, `prompts`: how well prompts work, see
    `measure_prompts`.

    Returns:
        The content of `summary.json`.

    Raises:
        RuntimeError: if cases failed, or if the raw images are no longer where they were, with
            what to do; the training itself is finished then.
    """
    cases = raw_validation_cases(fold)
    folder = model_folder / f"fold_{fold.name}" / "validation"
    remove_validation(folder.parent)
    predictor = load_predictor(model_folder, folds=[fold.name], device=device)
    report = predict_cases(predictor, cases, folder, from_file=held_out_prompts(fold))
    if report["failed"] == len(cases):  # no file to evaluate
        errors = [f"case {case_id}: {e['error']}" for case_id, e in report["cases"].items()]
        raise _failed(report["failed"], folder, errors)
    ground_truth, _ = label_files(fold.ground_truth, "ground truth")
    prompts_measured = None
    if not report["failed"]:
        if _knows_names(fold.plans):
            write_coarse_quality(folder.parent, measure_coarse(predictor, cases, ground_truth))
        prompts_measured = _prompt_quality(predictor, cases, ground_truth)
    # last: a summary without failures means that everything has been validated
    summary = evaluate_folders(
        fold.ground_truth, folder, labels=fold.plans.labels, cases=fold.validation_cases
    )
    if prompts_measured is not None:
        summary["prompts"] = prompts_measured
        write_json(folder / "summary.json", summary)
    log.info("mean validation Dice %.4f", summary["foreground_mean"]["Dice"])
    if report["failed"] or summary["failures"]:
        raise _failed(report["failed"], folder, summary["failures"])
    return summary


def _prompt_quality(
    predictor: Predictor, cases: Sequence[RawCase], ground_truth: Mapping[str, Path]
) -> dict[str, Any] | None:
    """What `measure_prompts` returns; None, with a warning, where it fails or cannot be done.

    It is told beside the results of a training, which is finished and stays so.
    """
    if preset_of(predictor.plans) is not None:  # without sessions
        return None
    try:
        return measure_prompts(predictor, cases, ground_truth)
    except Exception as error:
        log.warning("prompts were not measured: %s", error, exc_info=True)
        return None


def is_validated(fold_folder: Path) -> bool:
    """Whether all validation cases were predicted and evaluated."""
    summary = fold_folder / "validation" / "summary.json"
    return summary.is_file() and not read_json(summary)["failures"]


def remove_validation(fold_folder: Path) -> None:
    """Remove what was measured with other weights; first the summary, which marks it complete."""
    (fold_folder / "validation" / "summary.json").unlink(missing_ok=True)
    (fold_folder / COARSE_QUALITY).unlink(missing_ok=True)
    shutil.rmtree(fold_folder / "validation", ignore_errors=True)


def raw_validation_cases(fold: Fold) -> list[RawCase]:
    """The validation cases with their raw images.

    Raises:
        RuntimeError: if the images are no longer where they were, with what to do.
    """
    dataset = PreprocessedDataset(fold.preprocessed)
    cases = []
    for case_id in fold.validation_cases:
        files = tuple(Path(file) for file in dataset.properties(case_id)["raw"]["files"])
        cases.append(RawCase(case_id=case_id, images=files, label=None))
    if missing := [str(f) for case in cases for f in case.images if not f.exists()]:
        raise RuntimeError(
            f"training is finished, but not validated: {len(missing)} raw images are not where "
            f"they were, first {missing[0]}; bring them back and run the same command with --c"
        )
    return cases


def held_out_prompts(fold: Fold) -> dict[str, CasePrompts]:
    """The automatic prompts of each validation case, of fits that did not see it."""
    return {c: case_from_json(_prompts(fold, c)) for c in fold.validation_cases}


def _prompts(fold: Fold, case_id: str) -> Mapping[str, Any]:
    """A case's automatic prompts in the form of a prompts file."""
    prompts: dict[str, Any] = {label: {"source": "label name"} for label in fold.plans.labels}
    for label, boxes in fold.auto_boxes.get(case_id, {}).items():
        source = f"{fold.plans.auto_prompts[label]['strategy']}, case held out"
        prompts[label] = {"boxes": boxes, "source": source}
    return prompts


def _knows_names(plans: Plans) -> bool:
    """Whether the network can find labels by name, so that its own prompts can be measured."""
    preset = preset_of(plans)
    return preset is None or preset.knows_names


def _failed(count: int, folder: Path, reasons: Sequence[str]) -> RuntimeError:
    return RuntimeError(
        f"training is finished, but {count} validation cases failed; see "
        f"{folder / 'predict_report.json'}: {'; '.join(reasons)}"
    )
