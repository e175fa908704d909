"""The networks of a trained model, from its folder."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from promptseg.experiment_planning.plans import Plans
from promptseg.networks.promptable import PromptableNetwork, build_network
from promptseg.training.checkpoint import load_checkpoint
from promptseg.training.settings import TrainingSettings

log = logging.getLogger(__name__)


def load_networks(
    folder: Path, folds: Sequence[str] | None, checkpoint: str
) -> tuple[list[PromptableNetwork], Plans, TrainingSettings]:
    """Load one network a fold, and what they were trained with.

    Args:
        folder: `results/DatasetXXX_Name/TRAINER__PLANS__3d`.
        folds: `0`, ..., `all`; every fold with that checkpoint when not given.
        checkpoint: file name in each fold's folder.

    Raises:
        FileNotFoundError: if the folder or a checkpoint is missing, saying what is there.
        ValueError: if the folds were trained with different plans.
    """
    paths = _checkpoints(folder, folds, checkpoint)
    contents = [load_checkpoint(path) for path in paths]
    first = contents[0]
    for path, content in zip(paths, contents, strict=True):
        if content["plans"] != first["plans"]:
            raise ValueError(f"{path} was trained with other plans than {paths[0]}")
    plans = Plans.from_json(first["plans"], paths[0])
    networks = []
    for content in contents:
        network = build_network(plans, content["encoder"])
        network.load_state_dict(content["network"])
        networks.append(network)
    log.info("model %s, %s, %s", folder.name, ", ".join(p.parent.name for p in paths), checkpoint)
    return networks, plans, TrainingSettings.from_json(first["settings"])


def _checkpoints(folder: Path, folds: Sequence[str] | None, checkpoint: str) -> list[Path]:
    """Checkpoint files of a model's folds, or a FileNotFoundError that says what is there."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such model folder")
    there = sorted(p.parent.name for p in folder.glob(f"fold_*/{checkpoint}"))
    wanted = there if folds is None else [f"fold_{fold}" for fold in folds]
    paths = [folder / name / checkpoint for name in wanted]
    if missing := [str(path) for path in paths if not path.is_file()]:
        raise FileNotFoundError(
            f"no {', '.join(missing)}; folds with a {checkpoint}: {', '.join(there) or 'none'}"
        )
    if not paths:
        raise FileNotFoundError(
            f"{folder} has no fold with a {checkpoint}; was its training finished? Other "
            f"checkpoints can be named with -chk"
        )
    return paths
