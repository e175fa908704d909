"""A small fixed set of validation patches, queried in several ways after every epoch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from promptseg.boxes import label_boxes
from promptseg.labels import label_mask
from promptseg.networks.encoding import Encoding
from promptseg.networks.prompt_encoder import NO_LABEL, Query
from promptseg.networks.promptable import PromptableNetwork, decode_in_parts
from promptseg.plans import Plans
from promptseg.preprocessing.dataset import PreprocessedDataset
from promptseg.prompts.simulated import jitter_box
from promptseg.training.dataset import Batch, make_batch
from promptseg.training.losses import PromptLoss, hard_dice, without_ignored
from promptseg.training.patches import AutoBoxes, zoom_in
from promptseg.training.rounds import corrected
from promptseg.training.sampling import draw_patch_start

WAYS = ("label", "box", "auto", "object")  # `object`: the box without the name
CLICKS = 3  # corrections of what the label's name gave, measured as the way `clicks`


@dataclass(frozen=True, kw_only=True)
class ValidationPatch:
    """One patch with queries in several ways.

    Attributes:
        batch: the patch and its queries.
        ways: for each query its way, one of `WAYS`.
        missed: number of labels in the patch whose automatic box lies outside it.
    """

    batch: Batch
    ways: tuple[str, ...]
    missed: int


def validation_patches(
    folder: Path,
    case_ids: Sequence[str],
    plans: Plans,
    auto_boxes: AutoBoxes,
    seed: int,
    most: int = 12,
) -> list[ValidationPatch]:
    """One patch per case, on a label, for up to `most` cases; the same at every call.

    Each label in the patch is queried by its name, by a jittered box with and without the name, and
    automatically: by the plans' box with the name, or by the name where the plans have no box in
    this case. A single box that lies elsewhere counts as missed. Of several, another might lie
    here, so that the label is then not queried automatically.
    """
    dataset = PreprocessedDataset(folder)
    patches = []
    for number, case_id in enumerate(sorted(case_ids)[:most]):
        rng = np.random.default_rng([seed, 2, number])
        properties = dataset.properties(case_id)
        present = [of["locations"] for of in dataset.labels(case_id, plans.labels).values()]
        locations = present[number % len(present)] if present else properties["annotated"]
        start = draw_patch_start(properties["shape"], plans.patch_size, locations, rng)
        sample = zoom_in(dataset, case_id, plans, auto_boxes, start)
        queries, targets, ways, missed = [], [], [], 0
        boxes = label_boxes(sample.segmentation, plans.labels)
        for index, (name, values) in enumerate(plans.labels.items()):
            if boxes[name] is None:
                continue
            whole = sample.whole_boxes[name]
            box = jitter_box(whole, plans.patch_size, rng)
            boxes_by_way = {"label": None, "box": box, "object": box}
            proposed = len(auto_boxes.get(case_id, {}).get(name, ()))
            if name in sample.auto_boxes or not proposed:
                boxes_by_way["auto"] = sample.auto_boxes.get(name)
            elif proposed == 1:
                missed += 1
            for way, box in boxes_by_way.items():
                asked = NO_LABEL if way == "object" else index
                queries.append(Query(label=asked, box=box))
                targets.append(label_mask(sample.segmentation, values))
                ways.append(way)
        if queries:
            batch = make_batch([sample], queries, targets)
            patches.append(ValidationPatch(batch=batch, ways=tuple(ways), missed=missed))
    return patches


@torch.no_grad()
def validate(
    network: PromptableNetwork,
    patches: Sequence[ValidationPatch],
    loss: PromptLoss,
    device: str | torch.device,
) -> dict[str, float | None]:
    """Mean loss and the mean Dice of each way of `WAYS` and of `clicks`; None without a query."""
    losses: list[float] = []
    dice: dict[str, list[float]] = {way: [] for way in (*WAYS, "clicks")}
    network.eval()
    for patch in patches:
        batch = patch.batch.to(device)
        encoding = network.encode(batch.image)
        logits, iou = decode_in_parts(network, encoding, batch.prompts)
        losses.append(float(loss(logits, iou, batch.targets, batch.ignored)))
        measured = hard_dice(without_ignored(logits, batch.ignored), batch.targets).tolist()
        for way, value in zip(patch.ways, measured, strict=True):
            dice[way].append(value)
        dice["auto"] += [0.0] * patch.missed
        named = torch.tensor([way == "label" for way in patch.ways], device=device)
        of_names = replace(batch, prompts=batch.prompts[named], targets=batch.targets[named])
        dice["clicks"] += _after_clicks(network, encoding, of_names, logits[named])
    network.train()
    means = {f"val_dice_{way}": _mean(values) for way, values in dice.items()}
    return {"val_loss": _mean(losses), **means}


def _after_clicks(
    network: PromptableNetwork, encoding: Encoding, batch: Batch, logits: Tensor
) -> list[float]:
    """Dice of each query of a batch after `CLICKS` clicks in its largest error."""
    prompts, wanted, ignored = batch.prompts, batch.targets.cpu().numpy(), batch.ignored
    for _ in range(CLICKS):
        prompts = corrected(prompts, logits, wanted, ignored=ignored)
        logits, _ = decode_in_parts(network, encoding, prompts)
    return hard_dice(without_ignored(logits, ignored), batch.targets).tolist()


def _mean(values: Sequence[float]) -> float | None:
    return float(np.nanmean(values)) if len(values) else None
