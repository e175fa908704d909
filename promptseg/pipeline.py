"""Train a fold and measure it: the one place where training meets prediction and evaluation."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from promptseg.boxes import box_iou, label_boxes
from promptseg.evaluation.evaluate import evaluate_folders
from promptseg.evaluation.inputs import label_files
from promptseg.experiment_planning.fingerprint import FILE_NAME as FINGERPRINT_FILE
from promptseg.files import read_json, replacing
from promptseg.folders import Folders, find_dataset_folder
from promptseg.inference.batch.predict_files import predict_cases
from promptseg.inference.coarse import COARSE
from promptseg.inference.load import (
    COARSE_QUALITY,
    load_networks,
    load_predictor,
    opened_model,
    write_coarse_quality,
)
from promptseg.inference.predictor import Predictor
from promptseg.io.dataset import RawCase
from promptseg.io.images import read_segmentation
from promptseg.networks.device import choose_device
from promptseg.plans import DEFAULT_PLANS_NAME, Plans, load_plans, save_plans
from promptseg.preprocessing.dataset import PreprocessedDataset
from promptseg.presets import preset_of
from promptseg.prompts.given import case_from_json
from promptseg.signals import interrupted_by_signals
from promptseg.training.checkpoint import check_untrained
from promptseg.training.distillation import Teacher, check_teacher_fits
from promptseg.training.distributed import is_rank_zero, join, run_on_rank_zero
from promptseg.training.patches import AutoBoxes
from promptseg.training.settings import RunOptions
from promptseg.training.splits import cases_of_fold
from promptseg.training.trainers import TRAINERS
from promptseg.words import some

log = logging.getLogger(__name__)

TEACHING = "checkpoint_final.pth"


def train(
    dataset: int | str,
    folders: Folders,
    *,
    trainer: str = "ViTTrainer",
    fold: str = "0",
    group_regex: str | None = None,
    plans_name: str = DEFAULT_PLANS_NAME,
    recipe: str | None = None,
    epochs: int | None = None,
    iterations_per_epoch: int | None = None,
    time_budget: float | None = None,
    initial_lr: float | None = None,
    seed: int | None = None,
    pretrained_weights: Path | str | None = None,
    freeze: str | None = None,
    teacher: Path | str | None = None,
    ema: float | None = None,
    early_stopping: int | None = None,
    precision: str | None = None,
    compile: bool = False,
    tensorboard: bool = False,
    wandb: str | None = None,
    device: str | None = None,
    processes: int = 1,
    resume: bool = False,
    overwrite: bool = False,
) -> Path | None:
    """Train one fold of a planned dataset, then predict and evaluate its validation cases.

    Started by torchrun in several processes, these share each batch; the first writes.

    Args:
        dataset: number or full name of a folder under `folders.preprocessed`.
        folders: the three roots.
        trainer: a registered trainer's name.
        fold: `0`, ..., or `all` (every case trains, none validates).
        group_regex: finds the patient in a case identifier, see `groups_by_regex`; no patient is
            then in both halves of a fold. Takes the place of `groups` in dataset.json.
        plans_name: as given to `plan_dataset`.
        recipe: `scratch` or `paper`, see `RECIPES`; when not given, `paper` with pretrained
            weights and `scratch` without.
        epochs, iterations_per_epoch, time_budget (seconds), initial_lr, seed: override the
            trainer's settings where given. A resumed run keeps its checkpoint's, but for
            `epochs`, `time_budget` and `early_stopping`, which may extend it, and `teacher`.
        pretrained_weights: SegVol's checkpoint or one of ours to start from, see
            `load_pretrained`. A resumed run does not load them again.
        freeze: `encoder` trains all but the image encoder.
        teacher: folder or zip file of a trained model of the same plans, see `load_teacher`; for
            trainers that learn from one. A resumed run finds it again, or where this says.
        ema: decay of an average of the weights, such as 0.999, that then validates and predicts.
        early_stopping: epochs without a better validation score that end the run; 0 never ends it.
        precision: `fp32`, `bf16` or `fp16`; `bf16` on a GPU that has it, else `fp32`, when not
            given. As `ema`, it is kept by a resumed run.
        compile: let torch.compile speed up the training steps.
        tensorboard: write event files into the fold's folder.
        wandb: project at Weights & Biases that gets the metrics; nothing is sent when not given.
        device: `cpu`, `cuda`, `cuda:1`, `mps`; a GPU if there is one, when not given.
        processes: workers that make samples; 0 makes them in this process.
        resume: continue from the latest checkpoint.
        overwrite: start again although the fold has been trained.

    Returns:
        The model folder, or None if the run was interrupted before its end.

    Raises:
        FileNotFoundError: if the dataset was not planned; with the command that does it.
        FileExistsError: if the fold was trained before, without `resume` or `overwrite`.
        ImportError: if TensorBoard or W&B is asked for and not installed, with what to install.
        ValueError: for unknown names of trainer, recipe or fold, and for a patient in both halves.
    """
    trainer_class = TRAINERS.get(trainer)
    device, fold = join(choose_device(device)), str(fold)
    if pretrained_weights is not None:
        pretrained_weights = str(Path(pretrained_weights).absolute())
    if teacher is not None:
        teacher = str(Path(teacher).absolute())
    usual_recipe = "scratch" if pretrained_weights is None else "paper"
    settings = trainer_class.settings_for(recipe or usual_recipe).replace(
        epochs=epochs,
        iterations_per_epoch=iterations_per_epoch,
        time_budget=time_budget,
        initial_lr=initial_lr,
        seed=seed,
        pretrained_weights=pretrained_weights,
        freeze=freeze,
        teacher=teacher,
        ema=ema,
        early_stopping=early_stopping,
        precision=precision,
    )
    kept = {
        "--recipe": recipe,
        "--iterations": iterations_per_epoch,
        "--lr": initial_lr,
        "--seed": seed,
        "-pretrained_weights": pretrained_weights,
        "--freeze": freeze,
        "--ema": ema,
        "--precision": precision,
    }
    source, plans, case_ids = _planned(dataset, folders, plans_name)
    training_cases, validation_cases = cases_of_fold(source, fold, case_ids, group_regex)
    auto_boxes = read_json(source / f"{plans_name}_auto_prompt_boxes.json")
    model_folder = _model_folder(folders, source, trainer, plans_name)
    fold_folder = model_folder / f"fold_{fold}"
    options = RunOptions(
        device=device,
        workers=processes,
        resume=resume,
        overwrite=overwrite,
        compile=compile,
        tensorboard=tensorboard,
        wandb=wandb,
    )
    run = trainer_class(
        plans=plans,
        preprocessed=source / plans.data_identifier,
        folder=fold_folder,
        training_cases=training_cases,
        validation_cases=validation_cases,
        auto_boxes=auto_boxes,
        settings=settings,
        options=options,
        extend={
            "epochs": epochs,
            "time_budget": time_budget,
            "early_stopping": early_stopping,
            "teacher": teacher,
        },
        load_teacher=partial(
            load_teacher, plans=plans, fold=fold, validation_cases=validation_cases
        ),
    )
    with _log_file(fold_folder / "training_log.txt") if is_rank_zero() else nullcontext():
        run.prepare()
        ignored = [flag for flag, value in kept.items() if value is not None]
        if run.progress.step and ignored:
            log.warning("%s ignored: a continued run keeps its own", ", ".join(ignored))
        if is_rank_zero():
            _keep_beside_model(source, model_folder, plans)
            if not run.final_stays:
                _remove_validation(fold_folder)
        if not run.run():
            return None

        def validate() -> None:
            if validation_cases and not _is_validated(fold_folder):
                with interrupted_by_signals():
                    validate_fold(
                        model_folder,
                        fold,
                        source,
                        plans,
                        validation_cases,
                        auto_boxes,
                        device=device,
                    )

        try:
            run_on_rank_zero(validate)
        except KeyboardInterrupt:
            log.info("stopped; training is finished, and --c validates the whole cases again")
            return None
    return model_folder


def check_folds(
    dataset: int | str,
    folders: Folders,
    folds: Sequence[str],
    *,
    trainer: str = "ViTTrainer",
    group_regex: str | None = None,
    plans_name: str = DEFAULT_PLANS_NAME,
    resume: bool = False,
    overwrite: bool = False,
) -> None:
    """Refuse folds that are not there or that have been trained, before earlier ones take days.

    Args:
        dataset, folders, trainer, group_regex, plans_name, resume, overwrite: as for `train`.
        folds: to be trained later.

    Raises:
        FileNotFoundError, ValueError: as `train` does, for the dataset, its plans and its folds.
        FileExistsError: if any of the folds was trained before, without `resume` or `overwrite`.
    """
    TRAINERS.get(trainer)
    source, _, case_ids = _planned(dataset, folders, plans_name)
    model_folder = _model_folder(folders, source, trainer, plans_name)
    for fold in folds:
        cases_of_fold(source, fold, case_ids, group_regex)
        if not (resume or overwrite):
            check_untrained(model_folder / f"fold_{fold}")


def validate_fold(
    model_folder: Path,
    fold: str,
    preprocessed: Path,
    plans: Plans,
    case_ids: Sequence[str],
    auto_boxes: AutoBoxes,
    *,
    device: str | None = None,
) -> dict[str, Any]:
    """Predict whole validation cases with automatic prompts, as a user would, and evaluate them.

    The boxes are those that planning proposed for each case when it was not among the cases the
    strategy was fitted on; labels without a box are asked for by name. Writes segmentations,
    `summary.json`, `metrics.csv`, `prompts_used.json` and `predict_report.json` into the fold's
    `validation` folder, after removing what an earlier validation left there, and beside it
    `coarse_prompts.json`: how well the network's own prompts met the truth.

    Returns:
        The content of `summary.json`.

    Raises:
        RuntimeError: if cases failed, or if the raw images are no longer where they were, with
            what to do; the training itself is finished then.
    """
    dataset = PreprocessedDataset(preprocessed / plans.data_identifier)
    cases, prompts = [], {}
    for case_id in case_ids:
        files = tuple(Path(file) for file in dataset.properties(case_id)["raw"]["files"])
        cases.append(RawCase(case_id=case_id, images=files, label=None))
        prompts[case_id] = {label: {"source": "label name"} for label in plans.labels}
        for label, boxes in auto_boxes.get(case_id, {}).items():
            source = f"{plans.auto_prompts[label]['strategy']}, case held out"
            prompts[case_id][label] = {"boxes": boxes, "source": source}
    if missing := [str(f) for case in cases for f in case.images if not f.exists()]:
        raise RuntimeError(
            f"training is finished, but not validated: {len(missing)} raw images are not where "
            f"they were, first {missing[0]}; bring them back and run the same command with --c"
        )
    folder = model_folder / f"fold_{fold}" / "validation"
    _remove_validation(folder.parent)
    predictor = load_predictor(model_folder, folds=[fold], device=device)
    given = {case_id: case_from_json(labels) for case_id, labels in prompts.items()}
    report = predict_cases(predictor, cases, folder, from_file=given)
    truth_folder = preprocessed / "gt_segmentations"
    preset = preset_of(plans)
    if not report["failed"] and (preset is None or preset.knows_names):
        truth, _ = label_files(truth_folder, "ground truth")
        write_coarse_quality(folder.parent, measure_coarse(predictor, cases, truth))
    # last: a summary without failures means that all has been validated
    summary = evaluate_folders(truth_folder, folder, labels=plans.labels, cases=case_ids)
    log.info("mean validation Dice %.4f", summary["foreground_mean"]["Dice"])
    if report["failed"] or summary["failures"]:
        raise RuntimeError(
            f"training is finished, but {report['failed']} validation cases failed; see "
            f"{folder / 'predict_report.json'}: {'; '.join(summary['failures'])}"
        )
    return summary


def measure_coarse(
    predictor: Predictor, cases: Sequence[RawCase], truth: Mapping[str, Path]
) -> dict[str, float]:
    """Mean box IoU of the network's own prompts (`coarse`) with ground truth, by label.

    A label that a case has and that is not found counts as 0; one that a case does not have is
    not asked for.

    Args:
        predictor: of a fold that was not trained on these cases.
        cases: with image files.
        truth: segmentation files of the cases.

    Returns:
        For each label that any case has, the mean over the cases that have it.
    """
    ious: dict[str, list[float]] = {}
    for case in cases:
        prepared, _ = predictor.prepare_files(case.images)
        segmentation, _ = read_segmentation(truth[case.case_id])
        true = label_boxes(segmentation, predictor.plans.labels)
        there = [label for label, box in true.items() if box is not None]
        found = predictor.proposer.ask_network(prepared, there, COARSE, {})
        for label in there:
            boxes = found[label].boxes
            iou = box_iou(boxes[0], true[label]) if len(boxes) else 0.0
            ious.setdefault(label, []).append(iou)
    means = {label: float(np.mean(values)) for label, values in ious.items()}
    log.info(
        "box IoU of the network's own prompts: %s",
        ", ".join(f"{label} {iou:.3f}" for label, iou in means.items()),
    )
    return means


def _is_validated(fold_folder: Path) -> bool:
    """Whether all validation cases were predicted and evaluated."""
    summary = fold_folder / "validation" / "summary.json"
    return summary.is_file() and not read_json(summary)["failures"]


def _remove_validation(fold_folder: Path) -> None:
    """What was measured of other weights; the summary first, as it tells that the rest is whole."""
    (fold_folder / "validation" / "summary.json").unlink(missing_ok=True)
    (fold_folder / COARSE_QUALITY).unlink(missing_ok=True)
    shutil.rmtree(fold_folder / "validation", ignore_errors=True)


def load_teacher(
    path: Path, *, plans: Plans, fold: str, validation_cases: Sequence[str]
) -> Teacher:
    """The networks of a trained model that teach a fold: those of the model's fold of that name.

    They have not seen the fold's validation cases, if both were split alike. A model without that
    fold teaches with all folds that it has. Cases that the teacher may have seen are warned of.

    Args:
        path: model folder, or a zip file of it, with `checkpoint_final.pth`.
        plans: of the student.
        fold: of the student.
        validation_cases: of the student's fold.

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
        has_fold = (folder / f"fold_{fold}" / TEACHING).is_file()
        networks, of_teacher, _ = load_networks(folder, [fold] if has_fold else None, TEACHING)
        summary = folder / f"fold_{fold}" / "validation" / "summary.json"
        held_out: set[str] = set()
        if has_fold:  # one that was never validated is taken to be split as this one
            rows = read_json(summary)["metric_per_case"] if summary.is_file() else None
            held_out = set(validation_cases if rows is None else (row["case"] for row in rows))
    check_teacher_fits(of_teacher, plans, path)
    log.info("teacher: %s, %s", path, f"fold {fold}" if has_fold else "all folds that it has")
    if seen := [case_id for case_id in validation_cases if case_id not in held_out]:
        log.warning(
            "%s %s: it may have been trained on the validation cases %s, whose Dice then looks "
            "better than it is",
            path,
            "held out other cases" if has_fold else f"has no finished fold {fold}",
            some(seen, quoted=True),
        )
    return Teacher(networks, path)


def _planned(
    dataset: int | str, folders: Folders, plans_name: str
) -> tuple[Path, Plans, list[str]]:
    """Folder, plans and case identifiers of a preprocessed dataset."""
    made_by = f"run `promptseg_plan -d {dataset}` first"
    source = find_dataset_folder(folders.preprocessed, dataset, made_by)
    plans = load_plans(source / f"{plans_name}.json")
    return source, plans, PreprocessedDataset(source / plans.data_identifier).case_ids


def _model_folder(folders: Folders, source: Path, trainer: str, plans_name: str) -> Path:
    return folders.results / source.name / f"{trainer}__{plans_name}__3d"


def _keep_beside_model(source: Path, model_folder: Path, plans: Plans) -> None:
    """What a model folder needs to be understood away from the dataset."""
    save_plans(model_folder / "plans.json", plans)
    for name in ("dataset.json", FINGERPRINT_FILE):
        with replacing(model_folder / name) as temporary:
            shutil.copyfile(source / name, temporary)


class _log_file:
    """Everything logged goes to a file too, appended, while the block runs; and what ends it."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.handler = logging.FileHandler(path, encoding="utf-8")
        self.handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))

    def __enter__(self) -> None:
        logger = logging.getLogger("promptseg")
        self.level = logger.level
        if logger.getEffectiveLevel() > logging.INFO:
            logger.setLevel(logging.INFO)
        logger.addHandler(self.handler)

    def __exit__(self, *ended_by: Any) -> None:
        kind, error, _ = ended_by
        if error is not None:  # the terminal gets it from the command
            message = f"error: {str(error) or kind.__name__}"
            record = {"levelno": logging.ERROR, "msg": message, "exc_info": ended_by}
            self.handler.handle(logging.makeLogRecord(record))
        logger = logging.getLogger("promptseg")
        logger.removeHandler(self.handler)
        logger.setLevel(self.level)
        self.handler.close()
