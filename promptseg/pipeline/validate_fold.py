"""Validate a trained fold: predict its held-out cases as a user would, and evaluate them."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from promptseg.evaluation.evaluate import evaluate_folders
from promptseg.evaluation.inputs import label_files
from promptseg.files import read_json, write_json
from promptseg.inference.batch.predict_files import predict_cases
from promptseg.inference.load import (
    DICE_SAMPLES,
    PROMPT_QUALITY,
    load_predictor,
    read_prompt_quality,
    write_prompt_quality,
)
from promptseg.inference.options import PredictionOptions
from promptseg.inference.predictor import Predictor
from promptseg.inference.prompting import HYBRID, NAME, OWN, PLANS, Proposer
from promptseg.io.dataset import RawCase
from promptseg.pipeline.dice_samples import dice_samples
from promptseg.pipeline.prompt_quality import measure_prompts
from promptseg.pipeline.strategy_quality import measure_strategies
from promptseg.predicted_dice import write_samples
from promptseg.preprocessing.dataset import PreprocessedDataset
from promptseg.presets import preset_of
from promptseg.prompts.given import CasePrompts, GivenPrompts, case_from_json
from promptseg.prompts.types import VOXEL
from promptseg.training.fold import Fold

Measured = TypeVar("Measured")

log = logging.getLogger(__name__)


def validate_fold(model_folder: Path, fold: Fold, *, device: str | None = None) -> dict[str, Any]:
    """Predict whole validation cases with automatic prompts, as a user would, and evaluate them.

    First it is measured which strategy leads to the best masks of each label; what is found is
    written as `prompt_strategies.json` beside the checkpoints, and followed here as in every
    prediction. Boxes of the plans' strategies are those that planning proposed for each case when
    it was not among the cases that the strategy was fitted on. Writes segmentations,
    `summary.json`, `metrics.csv`, `prompts_used.json` and `predict_report.json` into the fold's
    `validation` folder, after removing what an earlier validation left there. `summary.json` has
    one key more than the evaluation's, `prompts`: how well prompts work, see `measure_prompts`.

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
    ground_truth, _ = label_files(fold.ground_truth, "ground truth")
    held_out = held_out_prompts(fold)
    if preset_of(fold.plans) is None:
        measured = _measured(measure_strategies, predictor, cases, ground_truth, held_out)
        if measured is not None:
            write_prompt_quality(folder.parent, measured)
            best = read_prompt_quality([model_folder], [fold.name])
            predictor.proposer = Proposer(fold.plans, best, predictor.proposer.locator)
            predictor.proposer.log_choice(PLANS)
    prompts = chosen_prompts(predictor, cases, held_out)
    if preset_of(fold.plans) is None:
        predictor.keep_evidence = True
        predictor.n_perturbations = PredictionOptions().n_perturbations  # as a user's will be
    report = predict_cases(predictor, cases, folder, from_file=prompts)
    if report["failed"] == len(cases):  # no file to evaluate
        errors = [f"case {case_id}: {e['error']}" for case_id, e in report["cases"].items()]
        raise _failed(report["failed"], folder, errors)
    prompts_measured = None
    if not report["failed"] and preset_of(fold.plans) is None:  # presets are without sessions
        prompts_measured = _measured(measure_prompts, predictor, cases, ground_truth)
        samples = _measured(dice_samples, predictor, cases, ground_truth, report)
        if samples is not None:
            write_samples(folder.parent / DICE_SAMPLES, samples)
    # last: a summary without failures means that everything has been validated
    summary = evaluate_folders(
        fold.ground_truth, folder, labels=fold.plans.declared_labels, cases=fold.validation_cases
    )
    if prompts_measured is not None:
        summary["prompts"] = prompts_measured
        write_json(folder / "summary.json", summary)
    log.info("mean validation Dice %.4f", summary["foreground_mean"]["Dice"])
    if report["failed"] or summary["failures"]:
        raise _failed(report["failed"], folder, summary["failures"])
    return summary


def _measured(
    measure: Callable[..., Measured], predictor: Predictor, *arguments: Any
) -> Measured | None:
    """What `measure` returns; None, with a warning, where it fails.

    It is told beside the results of a training, which is finished and stays so.
    """
    try:
        return measure(predictor, *arguments)
    except Exception as error:
        log.warning("prompts were not measured: %s", error, exc_info=True)
        return None


def chosen_prompts(
    predictor: Predictor, cases: Sequence[RawCase], held_out: Mapping[str, CasePrompts]
) -> dict[str, CasePrompts]:
    """The prompts of cases by the strategy that is best for each label (`Proposer.strategy_of`).

    Args:
        predictor: proposes the network's own prompts.
        cases: with their image files.
        held_out: for each case those of the plans' strategies, fitted without it.
    """
    return {case.case_id: _chosen(predictor, case, held_out[case.case_id]) for case in cases}


def _chosen(predictor: Predictor, case: RawCase, held_out: CasePrompts) -> CasePrompts:
    proposer = predictor.proposer
    ways = {label: proposer.strategy_of(label, PLANS) for label in predictor.plans.labels}
    by_name = (GivenPrompts(frame=VOXEL, source=NAME),)
    chosen = {
        label: by_name if way == NAME else held_out.labels[label] for label, way in ways.items()
    }
    if own := [label for label, way in ways.items() if way in OWN]:
        try:
            prepared, geometry = predictor.prepare_files(case.images)
            both = {label: p for label, p in held_out.on(geometry).items() if ways[label] == HYBRID}
        except (ValueError, OSError):  # told when the case is predicted
            return held_out
        for label, found in proposer.ask_network(prepared, own, PLANS, both).items():
            told = {"source": found.source, "score": found.score, "reason": found.reason}
            chosen[label] = (GivenPrompts(frame=VOXEL, boxes=found.boxes, **told),)
    return CasePrompts(labels=chosen, problems=held_out.problems)


def is_validated(fold_folder: Path) -> bool:
    """Whether all validation cases were predicted and evaluated."""
    summary = fold_folder / "validation" / "summary.json"
    return summary.is_file() and not read_json(summary)["failures"]


def remove_validation(fold_folder: Path) -> None:
    """Remove what was measured with other weights; first the summary, which marks it complete."""
    (fold_folder / "validation" / "summary.json").unlink(missing_ok=True)
    for name in (PROMPT_QUALITY, DICE_SAMPLES):
        (fold_folder / name).unlink(missing_ok=True)
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


def _failed(count: int, folder: Path, reasons: Sequence[str]) -> RuntimeError:
    return RuntimeError(
        f"training is finished, but {count} validation cases failed; see "
        f"{folder / 'predict_report.json'}: {'; '.join(reasons)}"
    )
