"""Checkpoints: everything needed to continue a run or to start a predictor; no pickle."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from promptseg.files import WRITING, replacing
from promptseg.io.torch_files import load_safely
from promptseg.plans import Plans
from promptseg.training.request import RunOptions
from promptseg.words import some

CHECKPOINT_FORMAT = 1
FILES = ("checkpoint_latest.pth", "checkpoint_final.pth", "checkpoint_best.pth")

log = logging.getLogger(__name__)


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write a dict of tensors and plain values, atomically."""
    with replacing(path) as temporary:
        torch.save({"format_version": CHECKPOINT_FORMAT, **content}, temporary)


def load_checkpoint(path: Path, device: str | torch.device = "cpu") -> dict[str, Any]:
    """Read a checkpoint without unpickling code (`weights_only=True`).

    Raises:
        FileNotFoundError: with the command that makes one.
        ValueError: if the file is damaged, is not a checkpoint of ours, or has another format
            version.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no checkpoint there; promptseg_train writes it")
    content = load_safely(path, "checkpoint", device)
    if not isinstance(content, dict) or "format_version" not in content:
        raise ValueError(f"{path} is not a promptseg checkpoint")
    check_format(path, content)
    return content


def check_format(path: Path | str, content: Mapping[str, Any]) -> None:
    """Refuse a checkpoint of another format version.

    Raises:
        ValueError: with both versions.
    """
    if content["format_version"] != CHECKPOINT_FORMAT:
        raise ValueError(
            f"{path} has checkpoint format {content['format_version']}, this version of promptseg "
            f"reads {CHECKPOINT_FORMAT}"
        )


def checkpoint_to_continue(
    folder: Path,
    trainer: str,
    plans: Plans,
    cases: Mapping[str, Sequence[str]],
    options: RunOptions,
) -> dict[str, Any] | None:
    """The last checkpoint of a fold that is to be continued; None where training begins.

    Args:
        folder: folder of the fold.
        trainer, plans: trainer and plans of the run, which must be the checkpoint's.
        cases: cases of the run, which must be the checkpoint's, see `check_same_cases`.
        options: `resume` and `overwrite`; with `resume` but no checkpoint a warning is logged.

    Raises:
        FileExistsError: if there is a checkpoint and neither option is set.
        ValueError: as `check_same_run` and `check_same_cases` do.
    """
    if not options.resume:
        if not options.overwrite:
            check_untrained(folder)
        return None
    if not _has_checkpoint(folder):
        log.warning("%s has no checkpoint to continue; training starts from step 0", folder)
        return None
    there, content = last_checkpoint(folder)
    check_same_run(there, content, trainer, plans)
    check_same_cases(there, content, cases)
    log.info("continuing %s from step %d", there, content["step"])
    return content


def check_untrained(folder: Path) -> None:
    """Refuse to train the fold of this folder anew.

    Raises:
        FileExistsError: if it has a checkpoint, with how to continue.
        ValueError: as `last_checkpoint` does.
    """
    if _has_checkpoint(folder):
        _, content = last_checkpoint(folder)
        raise FileExistsError(
            f"{folder} has been trained before (step {content['step']}); continue with --c, or "
            f"start again with --overwrite"
        )


def last_checkpoint(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The checkpoint to continue a fold from, and its content.

    That is `latest`, or if somebody has removed it, `final` or `best`, whichever has more steps.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is damaged; with the others that can be continued, if there are any.
    """
    latest, *others = (folder / name for name in FILES)
    others = [path for path in others if path.exists()]
    if not latest.exists() and others:
        contents = {path: load_checkpoint(path) for path in others}
        return max(contents.items(), key=lambda item: item[1]["step"])
    try:
        return latest, load_checkpoint(latest)
    except ValueError as error:
        if not others:
            raise
        names = " or ".join(path.name for path in others)
        raise ValueError(f"{error}; without that file --c continues from {names}") from error


def _has_checkpoint(folder: Path) -> bool:
    return any((folder / name).exists() for name in FILES)


def remove_leftovers(folder: Path, *, checkpoints: bool) -> None:
    """Make the folder of a fold, or remove from it what a killed run left half written.

    Args:
        folder: folder of the fold.
        checkpoints: whether to remove checkpoints as well, as the fold is started again.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob(f"{WRITING}*"):
        shutil.rmtree(leftover)
    if checkpoints:
        for name in FILES:
            (folder / name).unlink(missing_ok=True)


def check_same_run(path: Path, content: Mapping[str, Any], trainer: str, plans: Plans) -> None:
    """Refuse to continue a checkpoint of another trainer or of other plans.

    Raises:
        ValueError: saying which, and what to do.
    """
    if content["trainer"] != trainer:
        raise ValueError(f"{path} is of {content['trainer']}, this is {trainer}")
    if Plans.from_json(content["plans"], path) != plans:
        raise ValueError(
            f"{path} was trained with other plans than {plans.plans_name}.json has now; start "
            f"again with --overwrite, or plan under another name (-p)"
        )


def check_same_cases(
    path: Path, content: Mapping[str, Any], cases: Mapping[str, Sequence[str]]
) -> None:
    """Refuse to continue a checkpoint of other cases; old ones that do not record them pass.

    Args:
        path, content: file and content of the checkpoint.
        cases: `training_cases` and `validation_cases` of the run, identifiers in any order.

    Raises:
        ValueError: naming a few of the cases that were added or removed, and what to do.
    """
    changes = []
    for entry, now in cases.items():
        then, half = content.get(entry, now), entry.removesuffix("_cases")
        if came := sorted(set(now).difference(then)):
            changes.append(f"{len(came)} more for {half} ({some(came, quoted=True)})")
        if went := sorted(set(then).difference(now)):
            changes.append(f"{len(went)} fewer for {half} ({some(went, quoted=True)})")
    if changes:
        raise ValueError(
            f"{path} was trained on other cases than this fold has now: {', '.join(changes)}; put "
            f"the cases and splits_final.json back as they were, or start again with --overwrite"
        )


def random_state(device: str) -> dict[str, Tensor | None]:
    """The state of torch's random generators, on the CPU and on a CUDA device that trains."""
    on_gpu = device.startswith("cuda")
    return {
        "torch_random_state": torch.get_rng_state(),
        "cuda_random_state": torch.cuda.get_rng_state(device) if on_gpu else None,
    }


def restore_random_state(content: Mapping[str, Any], device: str) -> None:
    """Restore `random_state` from a checkpoint; that of a GPU only where both runs use one."""
    torch.set_rng_state(content["torch_random_state"])
    if device.startswith("cuda") and content.get("cuda_random_state") is not None:
        torch.cuda.set_rng_state(content["cuda_random_state"], device)


def load_weights(network: nn.Module, weights: Mapping[str, Tensor], where: object) -> None:
    """`network.load_state_dict(weights)`.

    Args:
        network: built for the plans and the encoder that the checkpoint names.
        weights: entry `network` of a checkpoint.
        where: the checkpoint, for the message.

    Raises:
        ValueError: if the encoder has changed since they were trained.
    """
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip()
        raise ValueError(
            f"{where} has the weights of another network than this version of promptseg builds for "
            f"its plans and encoder; use the version that trained it, or train again ({first})"
        ) from error
