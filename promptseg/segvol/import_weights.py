"""From SegVol's released weights to a model folder, without a dataset or training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from promptseg.experiment_planning.rules import BUDGETS
from promptseg.files import replacing_folder, through_json, write_json
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
    """Make a model folder of SegVol's weights, for `predict_files` and `load_predictor`.

    The folder is written beside its place and moved there when it is complete; if anything fails,
    an earlier import stays as it was.

    Args:
        weights: a file in any of the layouts that `read_segvol_state` reads.
        folder: the model folder to make.
        labels: names of what is segmented, with values 1, 2, ...; SegVol answers boxes and
            points, so that names do not change its answers.
        size: size of the image encoder, for weights other than the released ones.
        patch_size, stride: voxels, zyx, that the weights were trained with.
        overwrite: replace an earlier import.

    Returns:
        What was loaded and what was not, by name.

    Raises:
        FileNotFoundError: if the file of weights does not exist.
        FileExistsError: if the folder is not empty, unless it holds an earlier import only and
            `overwrite` is set.
        ValueError: if the file is not a SegVol checkpoint or does not fit the sizes, naming every
            tensor, or if the labels cannot be used.
    """
    folder = Path(folder)
    _check_folder(folder, overwrite)
    dataset = _dataset_json(labels)
    plans = segvol_plans(labels, size=size, patch_size=patch_size, stride=stride)
    network = build_network(plans, PRESET.encoder)
    report = load_segvol(network, read_segvol_state(weights), source=str(weights))
    checkpoint = {
        "trainer": "ViTTrainer",
        "encoder": PRESET.encoder,
        "plans": through_json(plans.to_json()),
        "settings": through_json(TrainingSettings().to_json()),
        "network": network.state_dict(),
    }
    with replacing_folder(folder.absolute(), overwrite=True) as new:  # `_check_folder` allows it
        save_plans(new / "plans.json", plans)
        write_json(new / "dataset.json", dataset)
        save_checkpoint(new / CHECKPOINT, checkpoint)
    return report


def segvol_plans(
    labels: Sequence[str],
    *,
    size: str = PRESET.size,
    patch_size: Sequence[int] = PRESET.patch_size,
    stride: Sequence[int] = PRESET.stride,
) -> Plans:
    """Plans for weights that were trained elsewhere, checked as if they were read from a file.

    Spacing and median shape are placeholders, which this preset does not use.
    """
    reason = "weights that were trained elsewhere; there were no training cases"
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
    """Raise a FileExistsError unless the folder is empty, or may be replaced."""
    if folder.is_file():
        raise FileExistsError(f"{folder} is a file; give a folder")
    present = {path.relative_to(folder) for path in folder.rglob("*") if not path.is_dir()}
    if present and not overwrite:
        raise FileExistsError(f"{folder} is not empty; choose another folder, or --overwrite")
    if foreign := sorted(map(str, present - _OWN_FILES)):
        raise FileExistsError(
            f"{folder} contains more than an earlier import, such as {foreign[0]}, and is left as "
            f"it is; choose another folder"
        )


def _dataset_json(labels: Sequence[str]) -> dict[str, Any]:
    """The content of the model's dataset.json; a ValueError if the labels cannot be used."""
    content = {
        "channel_names": {"0": "image"},
        "labels": {"background": 0, **{name: i for i, name in enumerate(labels, start=1)}},
        "numTraining": 0,
        "file_ending": ".nii.gz",
    }
    duplicate = sorted({name for name in labels if list(labels).count(name) > 1})
    problems = problems_of_content(content) + [f"duplicate name {name!r}" for name in duplicate]
    if any(not name.strip() for name in labels):
        problems.append("a name is empty")
    if problems:
        raise ValueError(f"labels {list(labels)} cannot be used: {'; '.join(problems)}")
    return content
