"""SegVol's released weights to a model folder: no dataset, no training."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from promptseg.experiment_planning.rules import BUDGETS
from promptseg.files import WRITING, through_json, write_json
from promptseg.io.dataset import problems_of_content
from promptseg.networks.pretrained_report import PretrainedReport
from promptseg.networks.promptable import build_network
from promptseg.plans import Plans, save_plans
from promptseg.segvol.preset import PRESET
from promptseg.segvol.weights import load_segvol, read_segvol_state
from promptseg.training.checkpoint import save_checkpoint
from promptseg.training.settings import TrainingSettings

CHECKPOINT = Path("fold_all", "checkpoint_final.pth")
_OWN_FILES = {Path("plans.json"), Path("dataset.json"), CHECKPOINT}


def import_segvol(
    weights: Path | str,
    folder: Path | str,
    *,
    labels: Sequence[str] = ("object",),
    size: str = PRESET.size,
    patch_size: Sequence[int] = PRESET.patch_size,
    stride: Sequence[int] = PRESET.stride,
    overwrite: bool = False,
) -> PretrainedReport:
    """Make a model folder of SegVol's weights, for `predict_files` and `Predictor`.

    The folder is written beside its place and moved there when it is whole.

    Args:
        weights: a file in any of the layouts that `read_segvol_state` knows.
        folder: to make.
        labels: names for what is segmented, values 1, 2, ...; SegVol answers boxes and points,
            so that a name says nothing to it.
        size: widths of the image encoder, of weights of other sizes than the released.
        patch, stride: voxels, zyx, that such weights were trained with.
        overwrite: replace what an earlier import made there.

    Returns:
        What was loaded and what was not, by name.

    Raises:
        FileNotFoundError: if the file is not there.
        FileExistsError: if there is something in the folder already.
        ValueError: if the file is no SegVol checkpoint or does not fit the sizes, naming every
            tensor, or if the labels cannot be used.
    """
    folder = Path(folder)
    _check_folder(folder, overwrite)
    dataset = {
        "channel_names": {"0": "image"},
        "labels": {"background": 0, **{name: i for i, name in enumerate(labels, start=1)}},
        "numTraining": 0,
        "file_ending": ".nii.gz",
    }
    if problems := problems_of_content(dataset) + _problems_of_names(labels):
        raise ValueError(f"labels {list(labels)} cannot be used: {'; '.join(problems)}")
    plans = segvol_plans(labels, size=size, patch_size=patch_size, stride=stride)
    network = build_network(plans, PRESET.encoder)
    report = load_segvol(network, read_segvol_state(weights), source=str(weights))

    folder.absolute().parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=WRITING, dir=folder.absolute().parent))
    try:
        made = beside / "model"
        save_plans(made / "plans.json", plans)
        write_json(made / "dataset.json", dataset)
        save_checkpoint(
            made / CHECKPOINT,
            {
                "trainer": "ViTTrainer",
                "encoder": "vit",
                "plans": through_json(plans.to_json()),
                "settings": through_json(TrainingSettings().to_json()),
                "network": network.state_dict(),
            },
        )
        if folder.exists():
            folder.rename(beside / "earlier")
        made.rename(folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return report


def segvol_plans(
    labels: Sequence[str],
    *,
    size: str = PRESET.size,
    patch_size: Sequence[int] = PRESET.patch_size,
    stride: Sequence[int] = PRESET.stride,
) -> Plans:
    """Plans for weights that were trained elsewhere, checked as if they were read from a file.

    Spacing and median shape are those of no image: this preset reads neither.
    """
    reason = "weights that were trained elsewhere; no training case was looked at"
    intensity = {"strategy": "intensity", "reason": reason, "candidates": {}}
    plans = Plans(
        dataset_name="Dataset000_SegVol",
        plans_name="SegVolPlans",
        size=size,
        preset=PRESET.name,
        channel_names=("image",),
        modalities=("unknown",),
        normalizations=(PRESET.normalization,),
        spacing=(1.0, 1.0, 1.0),
        median_shape=(1, 1, 1),
        patch_size=tuple(patch_size),
        stride=tuple(stride),
        batch_size=BUDGETS["base"].batch_size,
        labels={name: i for i, name in enumerate(labels, start=1)},
        auto_prompts={name: intensity for name in labels},
        reasons={
            "patch_size": "preset segvol: what the weights were trained with",
            "spacing": reason,
        },
    )
    return Plans.from_json(through_json(plans.to_json()), "plans for SegVol's weights")


def _check_folder(folder: Path, overwrite: bool) -> None:
    """Only a folder that has nothing but an earlier import may be replaced."""
    if folder.is_file():
        raise FileExistsError(f"{folder} is a file; name a folder")
    there = {path.relative_to(folder) for path in folder.rglob("*") if not path.is_dir()}
    if there and not overwrite:
        raise FileExistsError(f"{folder} is not empty; choose another folder, or --overwrite")
    if foreign := sorted(map(str, there - _OWN_FILES)):
        raise FileExistsError(
            f"{folder} has more than an earlier import in it, such as {foreign[0]}; it is left "
            f"as it is, choose another folder"
        )


def _problems_of_names(labels: Sequence[str]) -> list[str]:
    twice = sorted({name for name in labels if list(labels).count(name) > 1})
    empty = ["a name is empty"] if any(not name.strip() for name in labels) else []
    return [f"{name!r} is there twice" for name in twice] + empty
