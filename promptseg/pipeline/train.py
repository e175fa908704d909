"""Train a fold and measure it: the one room where training meets prediction and evaluation."""

from __future__ import annotations

import dataclasses
import logging
import shutil
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path

from promptseg.experiment_planning.fingerprint import FILE_NAME as FINGERPRINT_FILE
from promptseg.files import replacing
from promptseg.folders import Folders, find_dataset_folder
from promptseg.inference.load import LOCATOR_FILE
from promptseg.networks.device import choose_device
from promptseg.pipeline.teacher import load_teacher
from promptseg.pipeline.validate_fold import is_validated, remove_validation, validate_fold
from promptseg.plans import save_plans
from promptseg.signals import interrupted_by_signals
from promptseg.training.checkpoint import check_untrained
from promptseg.training.distributed import is_rank_zero, join, run_on_rank_zero
from promptseg.training.fold import Fold, load_fold
from promptseg.training.logging import log_to_file
from promptseg.training.request import RunOptions, TrainingRequest
from promptseg.training.trainer import BaseTrainer
from promptseg.training.trainers import TRAINERS

log = logging.getLogger(__name__)


def train(
    dataset: int | str,
    folders: Folders,
    request: TrainingRequest | None = None,
    options: RunOptions | None = None,
) -> Path | None:
    """Train one fold of a planned dataset, then predict and evaluate its validation cases.

    Started by torchrun in several processes, these share each batch; the first one writes.

    Args:
        dataset: number or full name of a folder under `folders.preprocessed`.
        folders: the three roots.
        request: fold, trainer and plans, and settings in place of the trainer's own; the defaults
            of `TrainingRequest` when not given.
        options: device, worker processes, and what to do where the fold has been trained before;
            the defaults of `RunOptions` when not given.

    Returns:
        The model folder, or None if the run was interrupted before its end.

    Raises:
        FileNotFoundError: if the dataset was not planned; with the command that does it.
        FileExistsError: if the fold was trained before, without `resume` or `overwrite`.
        ImportError: if TensorBoard or W&B is requested and not installed, with what to install.
        ValueError: for unknown names of trainer, recipe or fold, for settings that are out of
            range, and for a patient in both halves.
    """
    request, options = request or TrainingRequest(), options or RunOptions()
    fold = _find_fold(dataset, folders, request)
    trainer_class = TRAINERS.get(request.trainer or fold.plans.trainer)
    options = dataclasses.replace(options, device=join(choose_device(options.device)))
    settings = trainer_class.settings_for(request.recipe_name).replace(**request.overrides())
    model_folder = _model_folder(folders, fold, request)
    fold_folder = model_folder / f"fold_{fold.name}"
    run = trainer_class(
        fold,
        fold_folder,
        settings,
        options,
        extend=request.extensions(),
        load_teacher=partial(load_teacher, fold=fold),
    )
    with log_to_file(fold_folder / "training_log.txt") if is_rank_zero() else nullcontext():
        run.prepare()
        ignored = request.ignored_flags()
        if run.progress.step and ignored:
            log.warning("%s ignored: a continued run keeps its own", ", ".join(ignored))
        if is_rank_zero():
            _prepare_model_folder(model_folder, fold, run)
        if not run.run():
            return None
        try:
            run_on_rank_zero(partial(_validate_once, model_folder, fold, options.device))
        except KeyboardInterrupt:
            log.info("stopped; training is finished, and --c validates the whole cases again")
            return None
    return model_folder


def check_folds(
    dataset: int | str,
    folders: Folders,
    requests: Sequence[TrainingRequest],
    options: RunOptions,
) -> None:
    """Refuse folds that do not exist or that have been trained, before earlier ones take days.

    Args:
        dataset, folders, options: as for `train`.
        requests: folds to be trained later.

    Raises:
        FileNotFoundError, ValueError: as `train` does, for the dataset, its plans and its folds.
        FileExistsError: if any of the folds was trained before, without `resume` or `overwrite`.
    """
    for request in requests:
        fold = _find_fold(dataset, folders, request)
        TRAINERS.get(request.trainer or fold.plans.trainer)
        if not (options.resume or options.overwrite):
            check_untrained(_model_folder(folders, fold, request) / f"fold_{fold.name}")


def _find_fold(dataset: int | str, folders: Folders, request: TrainingRequest) -> Fold:
    made_by = f"run `promptseg_plan -d {dataset}` first"
    source = find_dataset_folder(folders.preprocessed, dataset, made_by)
    return load_fold(source, request.plans_name, str(request.fold), request.group_regex)


def _model_folder(folders: Folders, fold: Fold, request: TrainingRequest) -> Path:
    trainer = request.trainer or fold.plans.trainer
    return folders.results / fold.source.name / f"{trainer}__{request.plans_name}__3d"


def _prepare_model_folder(model_folder: Path, fold: Fold, run: BaseTrainer) -> None:
    """Write what makes a model usable away from its dataset, and remove an outdated validation."""
    save_plans(model_folder / "plans.json", fold.plans)
    for name in ("dataset.json", FINGERPRINT_FILE):
        with replacing(model_folder / name) as temporary:
            shutil.copyfile(fold.source / name, temporary)
    if fold.locator is not None:
        with replacing(model_folder / f"fold_{fold.name}" / LOCATOR_FILE) as temporary:
            shutil.copyfile(fold.locator, temporary)
    if not run.final_stays:
        remove_validation(model_folder / f"fold_{fold.name}")


def _validate_once(model_folder: Path, fold: Fold, device: str) -> None:
    """Validate a fold that has validation cases and is not validated yet."""
    if fold.validation_cases and not is_validated(model_folder / f"fold_{fold.name}"):
        with interrupted_by_signals():
            validate_fold(model_folder, fold, device=device)
