"""Pretrained weights for a network that is about to be trained: SegVol's, or an earlier run's.

Which weights are loaded, left out or keep their initial values is reported name by name.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from promptseg.io.torch_files import load_safely
from promptseg.labels import meanings
from promptseg.networks.pretrained_report import PretrainedReport
from promptseg.plans import Plans
from promptseg.presets import find_preset, preset_of
from promptseg.training.checkpoint import check_format

log = logging.getLogger(__name__)

ENCODER = "image_encoder."
SHARED_WITH_SEGVOL = f"{ENCODER}blocks."  # the encoder `vit` and SegVol's have the same blocks
_OF_A_CHECKPOINT = ("trainer", "encoder", "plans", "network")
LABEL_TABLES = {  # with a row for each label: the number of rows before these
    "name_head.classes.weight": 1,
    "name_head.classes.bias": 1,
    "prompt_head.label_vectors.weight": 0,
    "label_text.tokens.weight": 0,
    "label_text.learned": 0,
}


def load_pretrained(network: nn.Module, plans: Plans, path: Path | str) -> PretrainedReport:
    """Load weights from a file into a network, and log what became of each.

    - A SegVol checkpoint and plans of the preset `segvol`: everything must fit.
    - A SegVol checkpoint and other plans: the blocks of the ViT are loaded where sizes agree.
    - A checkpoint of ours, of the same encoder: all that fits by name and shape; the vectors of
      labels by the labels' names.

    Raises:
        FileNotFoundError: if the file is not there.
        ValueError: if the file is neither, has another encoder or preset, or if nothing of its
            image encoder fits.
    """
    content = load_safely(path)
    if isinstance(content, Mapping) and "format_version" in content:
        report = _load_own(network, plans, content, path)
    else:
        preset, only = preset_of(plans), ""
        if preset is None:
            preset, only = find_preset("segvol"), SHARED_WITH_SEGVOL
        report = preset.load_weights(network, content, path, only=only)
    if not any(name.startswith(ENCODER) for name in report.loaded):
        raise ValueError(
            f"{path}: nothing of its image encoder fits this network (size {plans.size}, patch "
            f"{plans.patch_size}, stride {plans.stride}, preset {plans.preset}); train without it, "
            f"or plan for it: SegVol's weights fit `promptseg_plan --preset segvol`\n"
            f"{report.summary()}"
        )
    log.info("pretrained weights: %s", report.summary())
    return report


def _load_own(
    network: nn.Module, plans: Plans, content: Mapping[str, Any], path: Path | str
) -> PretrainedReport:
    check_format(path, content)
    if missing := [key for key in _OF_A_CHECKPOINT if key not in content]:
        raise ValueError(
            f"{path} is not a whole checkpoint: it lacks {', '.join(missing)}; give one that "
            f"promptseg_train wrote"
        )
    theirs = Plans.from_json(content["plans"], path)
    if theirs.preset != plans.preset:
        raise ValueError(
            f"{path} was trained with the preset {theirs.preset}, these plans have the preset "
            f"{plans.preset}: their networks differ; plan with --preset {theirs.preset}"
        )
    preset = preset_of(plans)
    encoder = preset.encoder if preset else network.image_encoder.name
    if content["encoder"] != encoder:
        raise ValueError(
            f"{path} is of the encoder {content['encoder']}, this network's is {encoder}; train "
            f"it with {content['trainer']} (-tr), or give weights of {encoder}"
        )
    own, given = network.state_dict(), content["network"]
    values, left_out, missing = {}, {}, {}
    for name, tensor in own.items():
        if name not in given:
            missing[name] = "not in the file"
        elif name in LABEL_TABLES and given[name].shape[1:] == tensor.shape[1:]:
            here, there = _rows(name, plans), _rows(name, theirs)
            values[name] = _by_label(tensor, given[name], here, there, LABEL_TABLES[name])
            for label in set(here) - set(there):
                missing[f"{name} of {label}"] = "no such label in the file"
            for label in set(there) - set(here):
                left_out[f"{name} of {label}"] = "no such label here"
        elif given[name].shape != tensor.shape:
            why = f"{tuple(given[name].shape)} in the file, {tuple(tensor.shape)} here"
            left_out[name] = missing[name] = why
        else:
            values[name] = given[name]
    left_out.update({name: "no such parameter here" for name in given if name not in own})
    report = PretrainedReport(
        source=str(path), loaded=tuple(values), left_out=left_out, missing=missing
    )
    if any(name.startswith(ENCODER) for name in values):
        network.load_state_dict({**own, **values})
    return report


def _rows(table: str, plans: Plans) -> list[str]:
    """What the rows of one of `LABEL_TABLES` are of: labels, or the classes that make them."""
    if not table.startswith("name_head."):
        return list(plans.labels)
    return [name for value, name in meanings(plans.labels, None).items() if value]


def _by_label(
    own: Tensor, given: Tensor, labels: Sequence[str], theirs: Sequence[str], before: int
) -> Tensor:
    """Rows of the same labels, and those before the first and after the last label."""
    result = own.clone()
    result[:before] = given[:before]
    for row, label in enumerate(labels, before):
        if label in theirs:
            result[row] = given[before + theirs.index(label)]
    result[before + len(labels) :] = given[before + len(theirs) :]
    return result
