"""Checkpoints: everything a run needs to go on, and a predictor to start; no pickle."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from promptseg.experiment_planning.plans import Plans
from promptseg.files import replacing
from promptseg.safe_loading import load_safely

CHECKPOINT_FORMAT = 1


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write a dict of tensors and plain values; the file is the old or the new one, whole."""
    with replacing(path) as temporary:
        torch.save({"format_version": CHECKPOINT_FORMAT, **content}, temporary)


def load_checkpoint(path: Path, device: str | torch.device = "cpu") -> dict[str, Any]:
    """Read a checkpoint without unpickling code (`weights_only=True`).

    Raises:
        FileNotFoundError: with the command that makes one.
        ValueError: if the file is damaged, no checkpoint of ours, or of another format version.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no checkpoint there; promptseg_train writes it")
    content = load_safely(path, "checkpoint", device)
    if not isinstance(content, dict) or "format_version" not in content:
        raise ValueError(f"{path} is no promptseg checkpoint")
    if content["format_version"] != CHECKPOINT_FORMAT:
        raise ValueError(
            f"{path} has checkpoint format {content['format_version']}, this version of promptseg "
            f"reads {CHECKPOINT_FORMAT}"
        )
    return content


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
