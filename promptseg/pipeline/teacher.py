"""The trained model that teaches a student network: its networks, and what they may have seen."""

from __future__ import annotations

import logging
from pathlib import Path

from promptseg.files import read_json
from promptseg.inference.load import load_networks, opened_model
from promptseg.training.distillation import Teacher, check_teacher_fits
from promptseg.training.fold import Fold
from promptseg.words import some

CHECKPOINT = "checkpoint_final.pth"

log = logging.getLogger(__name__)


def load_teacher(path: Path, fold: Fold) -> Teacher:
    """The networks of a trained model that teach a fold: those of the model's fold of that name.

    These have not seen the student's validation cases, if both folds were split alike. A model
    without that fold teaches with all folds it has. A warning names validation cases that the
    teacher may have been trained on.

    Args:
        path: model folder, or a zip file of it, with `checkpoint_final.pth`.
        fold: the student's fold.

    Raises:
        FileNotFoundError: if there is no model, or no finished fold of it.
        ValueError: if the model's plans differ in what `check_teacher_fits` compares.
    """
    if not path.exists():
        raise FileNotFoundError(
            f"{path}: the teacher is not there; give the folder or zip file of a trained model "
            f"with --teacher, also with --c, if it was moved"
        )
    with opened_model(path) as folder:
        has_fold = (folder / f"fold_{fold.name}" / CHECKPOINT).is_file()
        folds = [fold.name] if has_fold else None
        networks, plans, _ = load_networks(folder, folds, CHECKPOINT)
        held_out = _held_out(folder, fold) if has_fold else set()
    check_teacher_fits(plans, fold.plans, path)
    log.info("teacher: %s, %s", path, f"fold {fold.name}" if has_fold else "all folds it has")
    if seen := [case_id for case_id in fold.validation_cases if case_id not in held_out]:
        log.warning(
            "%s %s: it may have been trained on the validation cases %s, whose Dice then looks "
            "better than it is",
            path,
            "held out other cases" if has_fold else f"has no finished fold {fold.name}",
            some(seen, quoted=True),
        )
    return Teacher(networks, path)


def _held_out(model_folder: Path, fold: Fold) -> set[str]:
    """Cases that the model's fold of that name did not train on.

    A fold that was never validated is assumed to be split like the student's.
    """
    summary = model_folder / f"fold_{fold.name}" / "validation" / "summary.json"
    if not summary.is_file():
        return set(fold.validation_cases)
    return {row["case"] for row in read_json(summary)["metric_per_case"]}
