"""Find what segments a dataset best: a trainer, or several together, and post-processing."""

from __future__ import annotations

import itertools
import logging
import shutil
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from promptseg.evaluation.evaluate import evaluate_folders
from promptseg.evaluation.summary import mean_of_defined
from promptseg.files import read_json
from promptseg.folders import Folders, find_dataset_folder
from promptseg.inference.batch.predict_files import predict_cases
from promptseg.inference.load import load_predictor
from promptseg.inference_plan import InferencePlan
from promptseg.pipeline.choose_postprocessing import choose_postprocessing
from promptseg.pipeline.validate_fold import (
    chosen_prompts,
    held_out_prompts,
    is_validated,
    raw_validation_cases,
)
from promptseg.plans import load_plans
from promptseg.tables import aligned
from promptseg.training.fold import load_fold
from promptseg.words import some

log = logging.getLogger(__name__)

ENSEMBLES = "ensembles"  # folder of their predictions, beside the models


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One model, or several whose networks are averaged, with what it makes of validation cases.

    Attributes:
        models: names of the model folders.
        rows: of all cases, as in the `metric_per_case` of `evaluate_folders`.
        dice: mean over the labels of the mean over the cases where it is defined.
    """

    models: tuple[str, ...]
    rows: Sequence[Mapping[str, Any]]
    dice: float

    @classmethod
    def of(cls, models: tuple[str, ...], summaries: Sequence[Mapping[str, Any]]) -> Candidate:
        """From the summaries of its folds."""
        rows = [row for summary in summaries for row in summary["metric_per_case"]]
        return cls(models=models, rows=rows, dice=_mean_dice(rows))


def find_best(
    dataset: int | str,
    folders: Folders,
    *,
    trainers: Sequence[str] | None = None,
    folds: Sequence[str] | None = None,
    ensembles: bool = True,
    processes: int = 2,
    device: str | None = None,
) -> InferencePlan:
    """Compare the trained models of a dataset, and write `inference_plan.json` beside them.

    Compared are the models on their own, by the validation of their training, and ensembles of all
    pairs and of all together, if of the same plans, which predict the held-out cases here, by the
    automatic prompts that their models did best with on average. The best by mean Dice then gets
    post-processing for each label, chosen by cross-validation over the cases.

    Args:
        dataset: number or full name.
        folders: the three roots.
        trainers: those to compare; all that are trained when not given.
        folds: those to compare on; those that all models have when not given.
        ensembles: whether to try them.
        processes: worker processes for post-processing and evaluation; 0 for none.
        device: where ensembles predict.

    Returns:
        The plan; `measured` has the mean Dice of every candidate and the choice for each label.

    Raises:
        FileNotFoundError: if the dataset was not planned, or has no validated model.
        ValueError: if the models have no fold in common, or the folds changed after training.
    """
    results = find_dataset_folder(folders.results, dataset, "train it with promptseg_train")
    planned = find_dataset_folder(folders.preprocessed, dataset, "run promptseg_plan first")
    trained = _validated(results, trainers)
    chosen = _common_folds(trained, folds)
    candidates = [
        Candidate.of((name,), [_validation(results, planned, name, fold) for fold in chosen])
        for name in trained
    ]
    for models in _ensembles(list(trained)) if ensembles else ():
        summaries = [_of_ensemble(results, planned, models, fold, device) for fold in chosen]
        candidates.append(Candidate.of(models, summaries))
    best = max(candidates, key=lambda c: (c.dice, -len(c.models)))  # of equal ones the smallest
    plans = load_plans(results / best.models[0] / "plans.json")
    steps, choices, after = choose_postprocessing(best.rows, plans, processes)
    plan = InferencePlan(
        models=best.models,
        folds=tuple(chosen),
        postprocessing=steps,
        measured={
            "cases": len(best.rows),
            "dice": {" + ".join(c.models): c.dice for c in candidates},
            "postprocessing": choices,
            "dice_after_postprocessing": after,
        },
    )
    plan.save(results)
    return plan


def table(plan: InferencePlan) -> list[str]:
    """The lines of two tables: what was compared, and the post-processing of each label."""
    chosen = " + ".join(plan.models)
    rows = [["mean Dice", "model or ensemble"]]
    for name, dice in sorted(plan.measured["dice"].items(), key=lambda item: -item[1]):
        rows.append([f"{dice:.4f}", f"{name}{'  <- chosen' if name == chosen else ''}"])
    labels = [["label", "before", "after", "post-processing"]]
    for label, choice in plan.measured["postprocessing"].items():
        figures = [f"{choice[key]:.4f}" for key in ("dice", "dice_cross_validated")]
        labels.append([label, *figures, choice["steps"]])
    return [*aligned(rows, left=(1,)), "", *aligned(labels, left=(0, 3))]


def _validated(results: Path, trainers: Sequence[str] | None) -> dict[str, list[str]]:
    """The validated folds of each model folder by name.

    Raises:
        FileNotFoundError: if there is none, with what to do.
    """
    found: dict[str, list[str]] = defaultdict(list)
    for folder in sorted(results.glob("*__*__*/fold_*")):
        name, fold = folder.parent.name, folder.name.removeprefix("fold_")
        if trainers is not None and name.split("__")[0] not in trainers:
            continue
        if (folder / "checkpoint_final.pth").is_file() and is_validated(folder):
            found[name].append(fold)
    if missing := sorted(set(trainers or ()) - {name.split("__")[0] for name in found}):
        raise FileNotFoundError(
            f"{results} has no validated fold of {', '.join(missing)}; train it with "
            f"promptseg_train"
        )
    if not found:
        raise FileNotFoundError(
            f"{results} has no validated fold; train some with promptseg_train -f 0 1 2 3 4"
        )
    return dict(found)


def _common_folds(trained: Mapping[str, list[str]], folds: Sequence[str] | None) -> list[str]:
    """The folds to compare on, which every model has; says which are left out.

    Raises:
        ValueError: if there are none, listing what each model has.
    """
    common = sorted(set.intersection(*map(set, trained.values())))
    wanted = common if folds is None else list(dict.fromkeys(folds))
    has = "; ".join(f"{name}: {', '.join(of_model)}" for name, of_model in trained.items())
    if not wanted or set(wanted) - set(common):
        raise ValueError(
            f"folds to compare on must be validated for every model, but {has}; train the missing "
            f"ones, or name trainers (-tr) or folds (-f) that have them in common"
        )
    if left_out := sorted({f for of_model in trained.values() for f in of_model} - set(wanted)):
        log.info("fold %s left out: compared are folds %s", some(left_out), ", ".join(wanted))
    return wanted


def _ensembles(models: list[str]) -> list[tuple[str, ...]]:
    """All pairs, and all together, of the same plans; says which are left out."""
    combined = [*itertools.combinations(models, 2), *[tuple(models)] * (len(models) > 2)]
    alike = [of for of in combined if len({_plans_name(name) for name in of}) == 1]
    for names in combined:
        if names not in alike:
            log.info("no ensemble of %s: their plans differ", " and ".join(names))
    return alike


def _plans_name(model: str) -> str:
    return model.split("__")[1]


def _validation(results: Path, planned: Path, name: str, fold: str) -> dict[str, Any]:
    """The evaluation of a model's fold that its training made.

    Raises:
        ValueError: if the cases that were validated are not the fold's.
    """
    cases = load_fold(planned, _plans_name(name), fold).validation_cases
    summary = read_json(results / name / f"fold_{fold}" / "validation" / "summary.json")
    validated = {row["case"] for row in summary["metric_per_case"]}
    if validated != set(cases):
        raise ValueError(
            f"{results / name}, fold {fold}: {len(validated)} cases were validated, which are not "
            f"the {len(cases)} of splits_final.json; train the fold again"
        )
    return summary


def _of_ensemble(
    results: Path, planned: Path, models: tuple[str, ...], fold: str, device: str | None
) -> dict[str, Any]:
    """The evaluation of an ensemble, which predicts a fold's validation cases first.

    Raises:
        RuntimeError: naming the report of cases that it could not predict.
    """
    of_fold = load_fold(planned, _plans_name(models[0]), fold)
    log.info("fold %s of the ensemble %s", fold, " + ".join(models))
    output = results / ENSEMBLES / "+".join(models) / f"fold_{fold}"
    shutil.rmtree(output, ignore_errors=True)
    predictor = load_predictor([results / name for name in models], folds=[fold], device=device)
    cases = raw_validation_cases(of_fold)
    prompts = chosen_prompts(predictor, cases, held_out_prompts(of_fold))
    report = predict_cases(predictor, cases, output, from_file=prompts)
    if report["failed"]:
        raise RuntimeError(
            f"{report['failed']} validation cases failed; see {output / 'predict_report.json'}"
        )
    return evaluate_folders(
        of_fold.ground_truth,
        output,
        labels=of_fold.plans.declared_labels,
        cases=of_fold.validation_cases,
    )


def _mean_dice(rows: Sequence[Mapping[str, Any]]) -> float:
    """The mean over the labels of the mean over the cases, as `foreground_mean` has it."""
    by_label = defaultdict(list)
    for row in rows:
        for label, metrics in row["metrics"].items():
            by_label[label].append(np.nan if metrics["Dice"] is None else metrics["Dice"])
    return mean_of_defined([mean_of_defined(dice) for dice in by_label.values()])
